"""Causes of failures: each provoked on purpose, each named with what made it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, StiffGrid, gradient_problem, options, scenarios, solve

from retrograd import causes
from retrograd.api import Model
from retrograd.certificates import gradient_table
from retrograd.gradient_causes import of_gradients
from retrograd.plugins import vector_field
from retrograd.schema import CAUSES, STEADY_STATUS
from retrograd.steady import SteadyProblem
from retrograd.wording import CAUSE_WORDS

FIND = {"method": "root", "rtol": 1e-10, "atol": 1e-10, "max_steps": 64, "starts": 0}


class Trouble(Model):
    """An oscillator, a decay, a growth and an exponential; each parameter switches one of them on."""

    states = {"x": "1", "v": "1", "u": "1"}
    parameters = {"turns": "1", "decay": "1", "growth": "1", "steep": "1"}

    def vector_field(self, t, x, k):
        return jnp.stack(
            [
                x[1] - k["decay"] * (x[0] - jnp.cos(t)),
                -(k["turns"] ** 2) * x[0] + jnp.exp(k["steep"] * x[2]) - 1.0,
                k["growth"] * x[2] ** 2,
            ]
        )

    def initial_state(self, k):
        return jnp.stack([1.0 + 0 * k["turns"], 0.0 * k["turns"], 1.0 + 0 * k["turns"]])


# Settings that differ from those of `recommended`, parameters, cause, and what its sentence says.
CASES: dict[str, tuple[dict[str, Any], list[float], str, str]] = {
    "oscillation": (
        {"max_steps": 300},
        [1e3, 0, 0, 0],
        "steps_exhausted_oscillating",
        r"300 attempts, \d+ of them accepted, reached t = 0\.\d+ of 10: [xv] turned \d+ times in the last \d+ steps",
    ),
    "explicit and stiff": (
        {"solver": "Tsit5", "max_steps": 500},
        [1, 1e6, 0, 0],
        "steps_exhausted_stiff",
        r"the fastest rate there is 1e\+06, the steps \d\.\d+e-06 in the median: stability holds",
    ),
    "dtmax": (
        {"dtmax": 1e-4, "max_steps": 300},
        [1, 0, 0, 0],
        "steps_limited",
        r"300 attempts, 300 of them accepted, .*dtmax = 0\.0001 allows, so it takes 1e\+05 steps at least",
    ),
    "accuracy": (
        {"max_steps": 10},
        [1, 0, 0, 0],
        "steps_exhausted",
        r"10 attempts, \d+ of them accepted, reached t = .* of 10; .*: accuracy takes so many steps",
    ),
    "blow-up": (
        {},
        [1, 0, 0.5, 0],
        "step_size_collapsed",
        # u = 1 / (1 - t / 2)
        r"At t = (2|1\.9999\d*), x = .* the step shrank to \d\.?\d*e-1\d",
    ),
    "overflow at the start": (
        {},
        [1, 0, 0, 800],
        "nonfinite_rate",
        r"At the start, .*exp of 800 gave inf; at test_causes\.py:\d+, in Trouble\.vector_field: jnp\.exp",
    ),
    "overflow on the way": (
        {"method": "chord"},
        [1, 0, 0.5, 400],
        # 400 exp(400 u) overflows before exp(400 u) does, and h a_ii 400 exp(400 u) after it.
        "state_overflow",
        r"attempts gave no error estimate; the last one, from t = 0\.87\d*.*: stage 3: .*overflow, although the rates",
    ),
    "slope that overflows": (
        {"method": "newton"},
        [1, 0, 0.5, 400],
        "nonfinite_jacobian",
        r"attempts gave no error estimate; the last one, from t = 0\.86\d*.*: .*df/dx is not: mul of .*jnp\.exp",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_of_a_simulation(name: str):
    changes, values, code, sentence = CASES[name]
    times, k = [5.0, 10.0], np.array([values])
    settings = options(save_times=times, **changes)
    x = np.array([[1.0, 0.0, 1.0]])
    records = solve(Trouble, Trouble(), settings, times, x, k)
    (found,) = causes.of_dynamics(Trouble, Trouble(), settings, records, x, k)
    assert found.name == code, found
    assert re.search(sentence, found.text), found.text
    # Of a file the name only: its folder is the machine's.
    assert str(Path(__file__).parent) not in found.text
    assert (found.time == 0.0) == (name == "overflow at the start")


def test_of_simulations_that_went_well():
    times, k, x = [1.0], np.array([[1.0, 0, 0, 0]] * 2), np.array([[1.0, 0.0, 1.0], [np.nan] * 3])
    settings = options(save_times=times)
    records = solve(Trouble, Trouble(), settings, times, x, k)
    assert [c.name for c in causes.of_dynamics(Trouble, Trouble(), settings, records, x, k)] == ["none", "none"]


class Resting(Model):
    """Roots, or none: dx/dt = gain x (level - x^2) + push + exp(steep x) - 1."""

    states = {"x": "1"}
    parameters = {"gain": "1", "level": "1", "push": "1", "steep": "1"}

    def vector_field(self, t, x, k):
        rate = k["gain"] * x * (k["level"] - x**2) + k["push"] + jnp.exp(k["steep"] * x) - 1.0
        return rate


def test_of_steady_states():
    k = np.array(
        [
            [1.0, 1.0, 0.0, 0.0],  # at rest at the guess, and stable
            [1.0, 1.0, 0.0, 0.0],  # at rest at the guess, and unstable
            [0.0, 1.0, 2.0, 1.0],  # nowhere at rest
            [1.0, 1.0, 0.0, 800.0],  # an exponential that overflows at the guess
            [1.0, 1.0, 0.0, 0.0],  # no guess
        ]
    )
    x0 = np.array([[1.0], [0.0], [0.0], [1.0], [np.inf]])
    settings = options() | {"steady_state": FIND}
    problem = SteadyProblem(Resting, vector_field(Resting, "stable", None), FIND)
    found = problem.find(Resting(), k, x0)
    assert [STEADY_STATUS[s] == "converged" for s in found.status][:3] == [True, False, False]
    told = causes.of_steady_states(Resting, Resting(), settings, found, k)
    assert [c.name for c in told] == [
        "none",
        "steady_state_unstable",
        "steady_state_not_found",
        "steady_state_overflow",
        "steady_state_overflow",
    ]
    assert "real part 1, above 0" in told[1].text
    assert re.search(r"exp of \[?800\]? gave \[?inf", told[3].text)
    assert told[4].text == "The first guess is not finite: [inf]"


@pytest.mark.slow
def test_of_gradients():
    # Chord and naive formula: rejected steps overflow, and only the gradient by replay of the accepted ones is finite.
    k = np.array([[0.0, 5.0, 0.0, 5.0, -3.2617188], [-10.0, -5.0, 0.0, -5.0, -3.2617188]])
    times, x = [5.0, 10.0], np.tile(START, (2, 1))
    settings = options(save_times=times, method="chord", wrt=["dynamic"], methods=["replay", "checkpoint"])
    records = solve(StiffGrid, StiffGrid(), settings, times, x, k, "naive")
    problem = gradient_problem(StiffGrid, StiffGrid(), settings, times, formulation="naive")
    data = scenarios(records, x, k)
    table = gradient_table(problem, data)
    (replay, checkpoint), mild = of_gradients(problem, data, records, table)
    assert replay.name == "none" and [c.name for c in mild] == ["none", "none"]
    assert checkpoint.name == "rejected_step_overflowed"
    assert re.search(
        r"attempts were rejected, and the way back runs through them; one that turns .*: .*exp of",
        checkpoint.text,
    )
    # The same with a derivative that is wrong, and one whose slopes differ.
    table["ad"][1, 0, 2] *= 1.5
    table["status"][1, 0], table["verdict"][1, 0, 2] = 1, 1
    (wrong, _) = of_gradients(problem, data, records, table)[1]
    assert (wrong.name, wrong.term) == ("gradient_differs", 2)
    assert re.fullmatch(
        r"d loss / d k2@dynamic = .* by replay, .* by differences: .* apart, where .* allow .*", wrong.text
    )


@pytest.mark.slow
def test_of_a_gradient_whose_own_solve_is_unfinished():
    # A budget that the recorded solve had, and diffrax's own has not.
    k, times = np.array([[-10.0, -5.0, 0.0, -5.0, -3.2617188]]), [5.0, 10.0]
    settings = options(save_times=times, method="newton", wrt=["dynamic"], methods=["replay", "checkpoint"])
    records = solve(StiffGrid, StiffGrid(), settings, times, np.array([START]), k)
    short = {**settings, "max_steps": len(records[0].end) // 2}
    problem, data = gradient_problem(StiffGrid, StiffGrid(), short, times), scenarios(records, np.array([START]), k)
    table = gradient_table(problem, data)
    ((replay, checkpoint),) = of_gradients(problem, data, records, table)
    assert replay.name == "none" and np.isnan(table["solve_end"][0, 0])
    assert checkpoint.name == "gradient_unfinished"
    assert 0 < checkpoint.time == table["solve_end"][0, 1] < times[-1]
    assert f"{short['max_steps']} attempts were used up" in checkpoint.text


def test_the_table_has_a_code_for_each():
    rows = [[causes.Cause(), causes.Cause("kink", term=3, text="a corner")]]
    found = causes.table(rows)
    assert CAUSES[found["cause"][0, 1]] == "kink" and found["cause_term"].tolist() == [[-1, 3]]
    assert found["cause_text"].shape == (1, 2) and np.isnan(found["cause_time"]).all()


def test_every_code_has_its_section_in_the_docs():
    text = (Path(__file__).parents[2] / "config" / "CAUSES.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(\w+)`$", text, re.MULTILINE)
    assert sorted(sections) == sorted(CAUSES[1:])
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(#\1\) \| (.*?) \|", text, re.MULTILINE))
    assert list(rows) == sections
    for name, words in rows.items():
        # The brackets of the report's words stand in the section.
        assert words.replace("`", "") == re.sub(r" \(.*?\)", "", CAUSE_WORDS[name][0])
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for section in sections:
        for part in ("**What it looks like.**", "**Why it happens.**", "**What to try.**", "**Evidence.**"):
            assert part in section, section[:40]
