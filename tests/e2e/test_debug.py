"""`snakemake debug`: one scenario alone, through Snakemake, and the Python call that its trace holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pipeline
import pytest

pytestmark = pytest.mark.e2e

PLUGIN = '''\
"""Relaxation of a level, in its logarithm: stiff where the rate is, and with an exponential that overflows."""

import jax.numpy as jnp
from retrograd.api import Model


class Level(Model):
    states = {"x": "1"}
    parameters = {"rate": "1", "level": "1"}

    def vector_field(self, t, x, k):
        drive = jnp.exp(k["level"] - x)  # overflows
        return jnp.exp(k["rate"]) * (drive - 1.0)

    def initial_guess(self, k):
        return jnp.stack([k["level"]])
'''
SCENARIOS = """\
scenario\trate\tlevel@steady\tlevel@dynamic
mild\t0\t0\t1
a/b: fast\t20\t1.0\t-2.0
17\t0\t0\t-1
"""
CONFIG = """\
study: level
model: {plugin: level.py, class: Level}
scenarios: level.tsv
save_times: [0.5, 2.0]
variants: [own, naive32]
gradient: {methods: [replay, checkpoint], wrt: [dynamic, steady]}
define_variants:
  own: {controller: {rtol: 1.0e-8, atol: 1.0e-10}}
"""


def exact(start: float, rate: float, level: float, t: float) -> float:
    """Returns x(t): exp(x) relaxes to exp(level) linearly."""
    u, full = np.exp(start), np.exp(level)
    return float(np.log(full + (u - full) * np.exp(-np.exp(rate) * t)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of the repository with the study, not run."""
    folder = pipeline.copy_repository(tmp_path_factory.mktemp("debug"))
    (folder / "level.py").write_text(PLUGIN)
    (folder / "level.tsv").write_text(SCENARIOS)
    (folder / "level.yaml").write_text(CONFIG)
    return folder


def debug(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return pipeline.snakemake(repository, "debug", *arguments, "--configfile", "level.yaml")


@pytest.fixture(scope="module")
def traced(repository) -> tuple[str, str]:
    """The trace of the scenario that overflows, and what was on the screen."""
    run = debug(repository, "--config", "scenario=a/b: fast", "variant=own")
    assert run.returncode == 0, run.stdout
    return (repository / "results/level/debug/own/1.txt").read_text(encoding="utf-8"), run.stdout


def attempts(text: str) -> list[tuple[float, float, bool, float, list[tuple[float, float]]]]:
    """Returns (t, dt, accepted, error norm, (time, x) of each stage) of the attempts in a trace."""
    section = text.split("\nAttempts\n")[1].split("\nThe same in a batch\n")[0]
    found = []
    for part in re.split(r"^#\d+ +", section, flags=re.MULTILINE)[1:]:
        head, *rows = part.splitlines()
        match = re.fullmatch(r"t (\S+) +dt (\S+) +(accepted|rejected) +error norm (\S+)", head)
        assert match, head
        cells = [row.split() for row in rows if re.match(r" {4} {0,2}\d+  \S", row)]
        stages = [(float(time), float(x)) for _, time, x in cells]
        found.append((float(match[1]), float(match[2]), match[3] == "accepted", float(match[4]), stages))
    return found


@pytest.mark.slow
def test_the_trace_holds_every_attempt(traced):
    rows = attempts(traced[0])
    assert len(rows) > 20
    t = 0.0
    for start, dt, accepted, error, stages in rows:
        assert start == t
        assert accepted == (error < 1)
        assert len(stages) == 7
        # The last stage is the end of the step.
        assert stages[-1][0] == pytest.approx(start + dt, rel=1e-5)
        if accepted:
            t, x = stages[-1]
            assert x == pytest.approx(exact(1.0, 20.0, -2.0, t), abs=1e-6)
    assert t == pytest.approx(2.0)
    counts = f"{sum(r[2] for r in rows)} steps accepted, {sum(not r[2] for r in rows)} rejected"
    assert counts in traced[0]
    assert counts in traced[1]


@pytest.mark.slow
def test_the_trace_names_the_expression_that_overflowed(traced):
    text, screen = traced
    line = next(i for i, row in enumerate(PLUGIN.splitlines(), start=1) if row.endswith("# overflows"))
    place = f'at level.py:{line}, in Level.vector_field: jnp.exp(k["level"] - x)'
    # Said in the head, on the screen and at the attempt.
    assert place in text.split("\nParameters\n")[0]
    assert place in screen
    first = text.split("\n#1 ")[1].split("\n#2 ")[0]
    assert "stage 2: Newton's iterate 0 (the predictor)" in first
    assert place in first
    (power,) = re.findall(r"exp of \[(\S+)\] gave \[inf\]", first)
    assert float(power) > 709


@pytest.mark.slow
def test_the_way_back_visits_the_steps_from_the_last_to_the_first(traced):
    text, screen = traced
    section = text.split("\nGradient by replay: the way back\n")[1].split("\nGradient by checkpoint")[0]
    visits = re.findall(r"^ +(\d+) +(\d+) +(\S+) -> (\S+) +(\S+) +(\S+)$", section, re.MULTILINE)
    steps = [(r[0], r[4][-1][0]) for r in attempts(text) if r[2]]
    assert [int(v[0]) for v in visits] == list(range(1, len(steps) + 1))
    assert [int(v[1]) for v in visits] == list(range(len(steps), 0, -1))
    for visit, (start, end) in zip(visits, reversed(steps), strict=True):
        assert (float(visit[2]), float(visit[3])) == (end, start)
    # The loss is the sum of squares over the save times: 2 x at the last one.
    assert float(visits[0][4]) == pytest.approx(2 * 2.0, rel=1e-6)
    assert "Every cotangent is finite." in section
    assert "Gradient by replay: finite." in screen
    # Rejected attempts that overflowed are among what diffrax differentiates.
    assert "Gradient by checkpoint: NOT finite." in screen
    last = max(i for i, r in enumerate(attempts(text), start=1) if not np.isfinite(r[3]))
    assert f"the first that the way back meets is #{last}," in " ".join(text.split())


def call(text: str, repository: Path) -> tuple[int, float, float]:
    """Runs the Python calls of a trace; returns the number of attempts and both final states: ours, and diffrax's."""
    ours, diffraxs = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "EQX_", "PYTHONPATH"))}
    command = [sys.executable, "-c", ours + diffraxs]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, last, other = re.findall(r"attempts (\d+) final state \[(\S+)\]\n.*final state \[(\S+)\]", done.stdout)[0]
    return int(count), float(last), float(other)


@pytest.mark.slow
def test_the_call_in_the_trace_repeats_the_run(traced, repository):
    rows = attempts(traced[0])
    count, last, _ = call(traced[0], repository)
    assert count == len(rows)
    assert f"{last:.9g}" == f"{rows[-1][4][-1][1]:.9g}"


@pytest.mark.slow
def test_only_the_model_is_needed_and_the_command_always_runs(traced, repository):
    assert sorted(p.name for p in (repository / "results/level").iterdir()) == ["debug", "logs", "model.nc"]
    planned = pipeline.snakemake(
        repository, "debug", "-n", "--config", "scenario=a/b: fast", "variant=own", "--configfile", "level.yaml"
    )
    assert planned.returncode == 0, planned.stdout
    assert "rule debug:" in planned.stdout
    assert "rule export:" not in planned.stdout


@pytest.mark.slow
@pytest.mark.exhaustive
def test_an_id_that_looks_like_a_number_in_float32(traced, repository):
    run = debug(repository, "--config", "scenario=17", "variant=naive32")
    assert run.returncode == 0, run.stdout
    text = (repository / "results/level/debug/naive32/2.txt").read_text(encoding="utf-8")
    assert text.startswith("Scenario 17 of study level, variant naive32\n")
    assert "prepare_jax('float32')" in text
    rows = attempts(text)
    assert rows[-1][4][-1][1] == pytest.approx(exact(0.0, 0.0, -1.0, 2.0), rel=1e-3)
    count, last, other = call(text, repository)
    assert count == len(rows)
    assert f"{last:.9g}" == f"{rows[-1][4][-1][1]:.9g}"
    assert other == pytest.approx(exact(0.0, 0.0, -1.0, 2.0), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            [],
            [
                "scenario: found nothing, wanted one of 'mild', 'a/b: fast', '17'",
                "variant: found nothing, wanted one of",
            ],
        ),
        (["--config", "scenario=midl", "variant=own"], ["scenario: found 'midl'", "did you mean 'mild'?"]),
        (["--config", "scenario=18", "variant=naive"], ["scenario: found 18", "variant: found 'naive', wanted one of"]),
        (["--config", "scenario=mild"], ["variant: found nothing, wanted one of 'own', 'naive32'"]),
    ],
)
def test_a_wrong_scenario_or_variant_is_one_message_before_any_rule_runs(repository, arguments, told):
    before = sorted((repository / "results").rglob("*"))
    run = debug(repository, *arguments)
    assert run.returncode != 0
    for text in told:
        assert text in run.stdout
    assert run.stdout.count("snakemake debug cannot run") == 1
    assert "For example: snakemake debug --config scenario=mild variant=own" in run.stdout
    assert "Traceback" not in run.stdout
    assert sorted((repository / "results").rglob("*")) == before


def test_other_targets_do_not_look_at_the_arguments(repository):
    run = pipeline.snakemake(repository, "-n", "--config", "scenario=nonsense", "--configfile", "level.yaml")
    assert run.returncode == 0, run.stdout
    assert "rule report:" in run.stdout
    assert "rule debug:" not in run.stdout
