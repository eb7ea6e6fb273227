"""Small models and settings that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.dynamics import Integrator
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.plugins import load_class, vector_field

ROOT = Path(__file__).parent.parent
START = (-1.72336394, -10.41214394)
P4 = -3.2617188

StiffGrid = load_class(str(ROOT / "config/models/stiff_grid.py"), "StiffGrid")


def grid() -> np.ndarray:
    """Returns the 90 parameter sets of the stiff grid, shape (90, 5), in the order of the model's parameters."""
    rows = [
        {"p2": p2, "k1": k1, "k2": 0.0, "k3": k3, "k4": P4}
        for k1 in (-5, 0, 5, 10, 15)
        for k3 in (-5, 0, 5, 10, 15, 20)
        for p2 in (-10, 0, 10)
    ]
    return np.array([[row[name] for name in StiffGrid.parameters] for row in rows], float)


def options(**changes: Any) -> dict[str, Any]:
    """Returns the settings of `recommended`, with changes; keys of `controller` and `nonlinear` may be given flat."""
    out: dict[str, Any] = {
        "precision": "float64",
        "formulation": "stable",
        "guard": None,
        "solver": "Kvaerno5",
        "nonlinear": {"method": "newton", "rtol": None, "atol": None},
        "controller": {
            "rtol": 1e-6,
            "atol": 1e-8,
            "pcoeff": 0.0,
            "icoeff": 1.0,
            "dcoeff": 0.0,
            "dtmax": None,
            "dt0": None,
        },
        "segments": None,
        "max_steps": 16384,
        "gradient": {
            "methods": ["replay"],
            "wrt": ["dynamic", "steady", "network"],
            "directions": 2,
            "seed": 0,
            "free_differences": 0,
            "reference": 0,
        },
    }
    for key, value in changes.items():
        for part in (out["controller"], out["nonlinear"], out["gradient"]):
            if key in part:
                part[key] = value
                break
        else:
            out[key] = value
    return out


def solve(cls, model, settings, times, x_start, k, formulation="stable"):
    """Returns the records of all scenarios."""
    field = vector_field(cls, formulation, settings["guard"])
    return Integrator(field, model, settings, times, len(cls.states)).run(x_start, k)


def gradient_problem(cls, model, settings, times, steady=None, formulation="stable") -> GradientProblem:
    """Returns the gradient stage of a model."""
    return GradientProblem(cls, vector_field(cls, formulation, settings["guard"]), model, settings, times, steady)


def scenarios(records, x_start, k, k_steady=None, conserved=None, x_rest=None) -> Scenarios:
    """Returns simulated scenarios as the gradient stage takes them.

    - `x_rest`: by default `x_start`, where there is `conserved`.
    """
    total, n = x_start.shape
    return Scenarios(
        k_dynamic=k,
        k_steady=k if k_steady is None else k_steady,
        x0=np.full((total, n), np.nan),
        x_start=x_start,
        steps=[r.step_time for r in records],
        step_x=[r.step_x for r in records],
        ok=np.array([r.status == 0 for r in records]),
        x_rest=None if conserved is None else x_start if x_rest is None else x_rest,
        conserved=conserved,
    )


class Networked(Model):
    """Two stiff states that relax, driven by a small network."""

    states = {"a": "1", "b": "1"}
    parameters = {"rate": "s-1", "level": "1"}
    network: eqx.nn.MLP

    @classmethod
    def build(cls, key):
        return cls(network=eqx.nn.MLP(2, 1, 4, 1, jnp.tanh, key=key))

    def vector_field(self, t, x, k):
        push = self.network(x)[0]
        return jnp.stack([k["rate"] * (push - x[0]), k["level"] - x[1] + 0.1 * x[0]])

    def initial_state(self, k):
        return jnp.stack([k["level"], jnp.zeros_like(k["level"])])


def networked() -> Networked:
    return Networked.build(jax.random.PRNGKey(3))
