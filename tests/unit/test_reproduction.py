"""A study computed anew: what is told before, what its working directory holds, whose built-in variants hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from retrograd import reproduction
from retrograd.plan import Plan

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "jax": "0.10.2",
    "precision": "float32",
    "threads": 1,
    "cpu_features": ["avx", "fma"],
    "xla_flags": "--xla_cpu_multi_thread_eigen=false",
}
STUDY = {
    "study": "s",
    "model": {"plugin": "m/model.py", "class": "M", "weights": "m/w.safetensors"},
    "scenarios": "m/s.tsv",
}


@pytest.fixture
def archived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "unpacked"
    files = {
        "config/config.yaml": yaml.safe_dump(STUDY),
        "config/variants.yaml": "own: {}\n",
        "m/model.py": "model",
        "m/w.safetensors": "weights",
        "m/s.tsv": "scenarios",
        "results/s/v/dynamics.nc": "results",
        "scripts/simulate.py": "code",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(reproduction, "attributes", lambda path: {"environment": ENVIRONMENT})
    monkeypatch.chdir(tmp_path)
    return folder


def test_what_differs_is_told_and_what_belongs_to_jobs_is_not(archived: Path):
    present = ENVIRONMENT | {
        "jax": "0.11.2",
        "precision": "none",
        "threads": 8,
        "xla_flags": "",
        "cpu_features": ["avx"],
    }
    assert reproduction.told(archived, archived, present) == [
        "environment: jax is 0.11.2 here, 0.10.2 in the archive",
        "environment: cpu_features is avx here, avx fma in the archive",
    ]


def test_other_code_is_told(archived: Path):
    (line,) = reproduction.told(archived, ROOT, ENVIRONMENT)
    assert re.fullmatch(
        r"code: \d+ of the workflow's files are not those of the archive, such as .+; the present ones compute", line
    )
    assert reproduction.told(archived, archived, ENVIRONMENT) == ["environment and code are those of the archive"]


def test_the_working_directory_has_what_was_given_and_no_results(archived: Path, tmp_path: Path):
    archive = tmp_path / "a.zip"
    archive.write_text("zip")
    folder = reproduction.prepared(archived, archive, "0123456789")
    assert folder == Path("results/reproductions/s-01234567")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    given = {"config/config.yaml", "config/variants.yaml", "m/model.py", "m/w.safetensors", "m/s.tsv"}
    assert there == given | {"reference.zip"}


def test_a_run_that_was_broken_off_goes_on_and_a_finished_one_starts_anew(archived: Path, tmp_path: Path):
    archive = tmp_path / "a.zip"
    archive.write_text("zip")
    folder = reproduction.prepared(archived, archive, "0123456789")
    (folder / "results").mkdir()
    assert (reproduction.prepared(archived, archive, "0123456789") / "results").is_dir()
    (folder / reproduction.FINISHED).touch()
    assert not (reproduction.prepared(archived, archive, "0123456789") / "results").exists()
    assert not (folder / reproduction.FINISHED).exists()


def test_the_built_in_variants_of_the_working_directory_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for role in ("plugin", "weights"):
        config["model"][role] = str(ROOT / config["model"][role])
    config["scenarios"] = str(ROOT / config["scenarios"])
    monkeypatch.chdir(tmp_path)
    usual = Plan(config, ROOT).study.variant("recommended")
    variants = yaml.safe_load((ROOT / "config/variants.yaml").read_text())
    variants["recommended"]["max_steps"] = usual.max_steps + 1
    (tmp_path / "config").mkdir()
    (tmp_path / "config/variants.yaml").write_text(yaml.safe_dump(variants))
    assert Plan(config, ROOT).study.variant("recommended").max_steps == usual.max_steps + 1
