"""What an edit reruns: exactly what depends on it. Asked of dry runs with the repository's own profile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pipeline
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GATHERS = {"steady_state", "dynamics", "gradients"}
END = {"summary", "report"}
GRADIENTS = {"gradients_chunk 0", "gradients_chunk 1", "gradients", *END}
DYNAMICS = {"dynamics_chunk 0", "dynamics_chunk 1", "dynamics", *GRADIENTS}
STEADY = {"steady_state_chunk 0", "steady_state_chunk 1", "steady_state", *DYNAMICS}
ALL = {"export", *STEADY}


def chunk(*indices: int) -> set[str]:
    """Returns the jobs of all stages on some chunks."""
    return {f"{stage}_chunk {i}" for stage in GATHERS for i in indices}


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        assert old.encode() in content, f"{old!r} is no longer in the file: mend this test"
        return content.replace(old.encode(), new.encode())

    return edit


def appended(text: str) -> Callable[[bytes], bytes]:
    return lambda content: content + text.encode()


CODE = appended("\n_edited = True\n")

EDITS = {
    # inputs
    "the plug-in": ("models/tiny.py", CODE, ALL),
    "a scenario": ("tiny.tsv", replaced("very stiff\t1.0e6", "very stiff\t2.0e6"), chunk(1) | GATHERS | END),
    "the name of a scenario": ("tiny.tsv", replaced("mild", "meek"), chunk(0) | GATHERS | END),
    "one scenario more": ("tiny.tsv", appended("new\t3.0\t0.5\t310.0\t300.0\n"), chunk(1) | GATHERS | END),
    "one scenario fewer": ("tiny.tsv", replaced("very stiff", "# very stiff"), GATHERS | END),
    # The result files name the sha256 of the table; no number is computed again.
    "a comment among the scenarios": ("tiny.tsv", replaced("# Mild", "# Very mild"), GATHERS | END),
    # config
    "rtol and atol, swapped": (
        "tiny.yaml",
        replaced("controller: {rtol: 1.0e-6, atol: 1.0e-8", "controller: {rtol: 1.0e-8, atol: 1.0e-6"),
        DYNAMICS,
    ),
    "max_steps of the steady state": ("tiny.yaml", replaced("max_steps: 256", "max_steps: 128"), STEADY),
    "the seed of the check": ("tiny.yaml", replaced("seed: 0", "seed: 1"), GRADIENTS),
    "a save time": ("tiny.yaml", replaced("4.0]", "5.0]"), DYNAMICS),
    "the chunk size": ("tiny.yaml", replaced("chunk_size: 2", "chunk_size: 1"), chunk(0, 1, 2) | GATHERS | END),
    "a comment in the config": ("tiny.yaml", replaced("study:", "# mine\nstudy:"), set()),
    "another spelling of a number": ("tiny.yaml", replaced("rtol: 1.0e-6", "rtol: 0.000001"), set()),
    # code
    "a rule's script": ("scripts/simulate.py", CODE, DYNAMICS),
    "the script of the last rule": ("scripts/plot_report.py", CODE, {"report"}),
    "the replay": ("scripts/retrograd/replay.py", CODE, GRADIENTS),
    "the figures": ("scripts/retrograd/figures.py", CODE, {"report"}),
    "the page": ("scripts/retrograd/report.html.j2", appended("<!-- edited -->\n"), {"report"}),
    "the steady states": ("scripts/retrograd/steady.py", CODE, STEADY),
    "what all rules use": ("scripts/retrograd/job.py", CODE, ALL),
    "the study's checks": ("scripts/retrograd/loading.py", CODE, set()),
    "a script of no rule": ("scripts/make_scenarios.py", CODE, set()),
    "a built-in variant that the study does not use": (
        "config/variants.yaml",
        replaced("max_steps: 16384", "max_steps: 16383"),
        set(),
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_reruns_what_depends_on_it(study, what):
    name, edit, wanted = EDITS[what]
    file = study / name
    before = file.read_bytes()
    file.write_bytes(edit(before))
    try:
        assert pipeline.planned(study) == wanted
    finally:
        file.write_bytes(before)


def test_new_weights_rerun_everything(study):
    file = study / "models/tiny.safetensors"
    before = file.read_bytes()
    pipeline.write_weights(file, 2 * pipeline.WEIGHT)
    try:
        assert pipeline.planned(study) == ALL
    finally:
        file.write_bytes(before)


def test_another_variant_shares_what_it_has_in_common(study):
    file = study / "tiny.yaml"
    before = file.read_text()
    own = before[before.index("  own:\n") :]
    twin = own.replace("  own:", "  loose:").replace("rtol: 1.0e-6", "rtol: 1.0e-4")
    file.write_text(before.replace("variants: [own]", "variants: [own, loose]") + twin)
    try:
        # The steady states are those of the other variant: only joined anew.
        assert pipeline.planned(study) == {"steady_state", *DYNAMICS}
    finally:
        file.write_text(before)


def touch_everything(study) -> None:
    now = time.time()
    files = [study / "Snakefile", *study.glob("models/*"), *study.glob("tiny.*"), *study.glob("config/*.yaml")]
    files += [*study.glob("workflow/**/*.smk"), *study.glob("scripts/**/*.py"), *study.glob("scripts/**/*.j2")]
    assert len(files) > 30
    for file in files:
        os.utime(file, (now, now))


def test_touching_reruns_nothing(study):
    touch_everything(study)
    assert pipeline.planned(study) == set()


def test_touching_reruns_nothing_without_the_profile_either(study):
    """The contract's command is `snakemake --cores 8`, which finds no profile below workflow/ by itself."""
    touch_everything(study)
    assert pipeline.planned(study, profile=False) == set()


def test_an_edit_changes_the_results_of_its_scenario_alone(study):
    """The plan is carried out once: the other chunk's file stays, and its scenarios keep their bits."""
    import numpy as np

    import retrograd

    path = study / "results/tiny/own/gradients.nc"
    before = retrograd.open_results(path).load()
    (kept,) = study.glob("results/tiny/chunks/gradients/*/0.nc")
    stamp = kept.stat().st_mtime_ns
    file = study / "tiny.tsv"
    file.write_text(file.read_text().replace("very stiff\t1.0e6", "very stiff\t2.0e6"))
    run = pipeline.snakemake(study, "--configfile", "tiny.yaml")
    assert run.returncode == 0, run.stdout
    after = retrograd.open_results(path).load()
    assert kept.stat().st_mtime_ns == stamp
    for name in ("mild", "stiff"):
        assert after.ad.sel(scenario=name).values.tobytes() == before.ad.sel(scenario=name).values.tobytes()
    assert not np.array_equal(after.ad.sel(scenario="very stiff"), before.ad.sel(scenario="very stiff"))
    assert pipeline.planned(study) == set()
