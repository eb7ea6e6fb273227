"""Traces of scenarios that end early: what is said where there is no start, and where rates fail at it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from problems import options

from retrograd.api import Model
from retrograd.context import Chunk
from retrograd.trace_text import Trace, trace

STEADY = {"method": "root", "rtol": 1e-10, "atol": 1e-10, "max_steps": 64, "starts": 0}


class Fragile(Model):
    """Overflows where x is far below 0."""

    states = {"x": "mol m-3"}
    parameters = {"k": "1"}
    time_unit = "h"

    def vector_field(self, t, x, k):
        return jnp.exp(k["k"] - x) - 1.0

    def initial_guess(self, k):
        return jnp.log(k["k"])[None]

    def initial_state(self, k):
        return jnp.sqrt(k["k"])[None]


def traced(k: float, start: str, x0: float = np.nan, **changes: Any) -> Trace:
    settings = options(**changes) | {"start": start, "save_times": [0.5, 1.0]}
    settings["steady_state"] = STEADY if start == "steady_state" else None
    settings["gradient"] = {"methods": ["replay"], "wrt": ["dynamic"], "directions": 0, "seed": 0}
    row = np.array([[k]])
    chunk = Chunk(["a/b"], row, row, np.array([[x0]]))
    return trace(
        Fragile, Fragile(), chunk, settings, study="mine", variant="own", plugin="fragile.py", model_file="model.nc"
    )


def test_a_start_that_is_not_finite_is_traced_to_its_expression():
    found = traced(-4.0, "initial_state")
    assert found.short == ["initial_state is not finite, and the simulation is skipped."]
    assert "sqrt of -4 gave nan" in found.text
    assert 'jnp.sqrt(k["k"])' in found.text
    assert "Attempts" not in found.text


def test_a_guess_that_is_not_finite_is_traced_to_its_expression():
    found = traced(-4.0, "steady_state")
    assert found.short == ["The search for the steady state ended as invalid, and the simulation is skipped."]
    assert "log of -4 gave nan" in found.text
    assert 'jnp.log(k["k"])' in found.text


@pytest.mark.parametrize("x0", [-1000.0])
def test_rates_that_fail_at_the_start(x0):
    found = traced(1.0, "initial_state", x0)
    assert found.short[0] == "Simulation: nonfinite; 0 steps accepted, 0 rejected, 0 without a finite error estimate."
    assert found.short[1].startswith("First failure, at the start: no attempt was made")
    assert found.short[2] == "    exp of [1001] gave [inf]"
    assert 'jnp.exp(k["k"] - x)' in found.short[3]
    assert "did not reach the last save time" in found.text


def test_head_parameters_and_settings():
    found = traced(1.0, "initial_state", max_steps=3)
    lines = found.text.splitlines()
    assert lines[0] == "Scenario a/b of study mine, variant own"
    assert lines[1] == "=" * len(lines[0])
    # What is said in short stands at the top, as on the screen.
    assert lines[3 : 3 + len(found.short)] == found.short
    assert found.short[0].startswith("Simulation: max_steps_reached; ")
    assert any(line.split() == ["k", "1.0", "[1]"] for line in lines)
    assert "max_steps: 3" in lines
    assert "save_times: 2, from 0.5 to 1.0 h" in lines
    assert len([line for line in lines if line.startswith("#") and " t " in line]) == 3
    assert max(map(len, lines)) < 200
