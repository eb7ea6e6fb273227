"""The README's first model, taken from its code blocks and run to the letter in a copy of the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pipeline
import pytest

from retrograd import store
from retrograd.schema import OUTCOMES

README = (pipeline.ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FILES = {m[1]: text for _, text in BLOCKS if (m := re.match(r"# (my/\S+)\n", text))}
# What makes the environment that the tests run in already.
SET_UP = ("make ", "source ")


def commands() -> list[str]:
    section = README.partition("## Bring your own model")[2].partition("\n## ")[0]
    lines = "".join(re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)).splitlines()
    return [line for line in lines if not line.startswith(SET_UP)]


def run(command: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "EQX_", "PYTEST_"))}
    environment.pop("PYTHONPATH", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def test_the_blocks_are_the_files_that_the_text_names():
    assert list(FILES) == ["my/reactor.py", "my/save_weights.py", "my/reactor.tsv", "my/reactor.yaml", "my/verdicts.py"]
    assert [line.split()[0] for line in commands()] == [
        "mkdir",
        "PYTHONPATH=scripts",
        "snakemake",
        "PYTHONPATH=scripts",
    ]


@pytest.mark.e2e
@pytest.mark.slow
def test_the_first_model_runs_to_the_letter(tmp_path):
    repository = pipeline.copy_repository(tmp_path / "retrograd")
    make_folder, *rest = commands()
    run(make_folder, repository)
    for name, text in FILES.items():
        (repository / name).write_text(text, encoding="utf-8")
    for command in rest:
        told = run(command, repository)
    assert "recommended" in told
    assert "4" in told
    summary = store.read(repository / "results/reactor/summary.nc", "summary")
    outcomes = [OUTCOMES[code] for code in summary["outcome"].values.ravel()]
    assert outcomes == ["verified"] * 4
    assert (repository / "results/reactor/report/index.html").is_file()
