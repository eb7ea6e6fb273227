"""A reference's recorded steps, replayed here: what comes out, and how far it may be from what came out there.

On given steps nothing is chosen any more, so two machines differ by rounding alone. What rounding can do is shown by an
ensemble: parameters, weights, start, the state at the end of each step, stages and Jacobians are changed by one to
three units in the last place, each member by others (stochastic arithmetic: Vignes 1993,
doi:10.1016/0378-4754(93)90003-D). The member's number is data: one executable serves them all.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.certificates import discretisation
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.linalg import jitter
from retrograd.weights import flatten, unflatten

MEMBERS = 20
# Of what the members spread, how far another machine may be: 1 gave false alarms in 3 to 14 % of cases, 3 none.
MARGIN = 3.0


@dataclass
class Replayed:
    """Scenarios on a reference's steps, and one number for each value by which another machine's may differ.

    - `values`, `rounding`: by name: `steady_x` and `x_start` (scenario, state), `x` (scenario, time, state), `loss`
      (scenario,), `ad` (scenario, wrt), `network` (scenario, weight).
    - `ends`, `ends_rounding`: states at the steps' ends, arrays (step, state).
    - `solver`: what steps half as long change, by name, as `certificates.discretisation` gives it.
    """

    values: dict[str, np.ndarray]
    rounding: dict[str, np.ndarray]
    ends: list[np.ndarray]
    ends_rounding: list[np.ndarray]
    solver: dict[str, np.ndarray]


def replay(problem: GradientProblem, data: Scenarios, *, refined: bool = True) -> Replayed:
    """Returns what replays of scenarios on recorded steps give, with their limits.

    - `data`: this run's parameters, on the steps and from the starts of the reference.
    - `refined`: whether the replay on finer steps is made too.
    """
    ends, stages = problem.replayer.forward(problem.model, data.x_start, data.k_dynamic, data.steps)
    values = _values(problem, problem, data, ends, stages)
    near = problem.replayer.linearise(problem.model, data.k_dynamic, data.steps, stages)
    base = starts(problem, problem.model, data)
    values |= base
    rounding = {name: np.zeros_like(value) for name, value in values.items()}
    ends_rounding = [np.zeros_like(e) for e in ends]
    everyone = np.arange(len(data.steps))
    for seed in range(1, MEMBERS + 1):
        member = copy.copy(problem)
        flat = np.asarray(flatten(problem.model), np.float64)
        member.model = unflatten(problem.model, jnp.asarray(_moved(flat, problem.dtype, seed), problem.dtype))
        part = replace(
            data,
            k_dynamic=_moved(data.k_dynamic, problem.dtype, seed),
            k_steady=_moved(data.k_steady, problem.dtype, seed),
        )
        # From the reference's start: where this run's own is another one, that is told of the steady state.
        own = starts(problem, member.model, part)
        off = {name: np.where(np.isfinite(x - base[name]), x - base[name], 0) for name, x in own.items()}
        part.x_start = data.x_start + off["x_start"]
        if data.x_rest is not None:
            part.x_rest = data.x_rest + off["steady_x"]
        moved, changed = problem.replayer.perturbed(
            member.model, part.x_start, part.k_dynamic, everyone, near, seed, keep_stages=True
        )
        found = _values(problem, member, part, moved, changed, seed)
        found |= own
        for name, value in found.items():
            rounding[name] = np.fmax(rounding[name], _apart(value, values[name]))
        for most, a, b in zip(ends_rounding, moved, ends, strict=True):
            np.fmax(most, _apart(a, b), out=most)
    # A difference that has come up stays: what a contracting system forgets, another machine may show later.
    ends_rounding = [MARGIN * np.maximum.accumulate(r, axis=0) for r in ends_rounding]
    rounding = {name: MARGIN * value for name, value in rounding.items()}
    rounding["x"] = np.maximum.accumulate(rounding["x"], axis=1)
    solver = {}
    if refined:
        full = {name: values[name] for name in ("loss", "loss_slope", "network")} | {"rows": values["x"]}
        full |= {name: values[name] for name in ("dynamic", "steady")}
        solver = discretisation(problem, data, full, problem.scales(data))
    return Replayed(values, rounding, ends, ends_rounding, solver)


def starts(problem: GradientProblem, model: Model, data: Scenarios) -> dict[str, np.ndarray]:
    """Returns `x_start` and, where there is a steady state, `steady_x`, next to those of the reference."""
    if problem.steady is None:
        return {"x_start": problem.starts(model, data)}
    rest = problem.at_rest(model, data)
    return {"x_start": problem.onset.value(model, rest, data.k_dynamic), "steady_x": rest}


def _values(
    problem: GradientProblem,
    member: GradientProblem,
    data: Scenarios,
    ends: list[np.ndarray],
    stages: list[np.ndarray],
    seed: int = 0,
) -> dict[str, Any]:
    rows = problem.saved(ends, data.steps, data.x_start)
    found = member.adjoint(data, stages, rows, seed)
    return found | {"x": rows, "ad": problem.columns_of(found)}


def _moved(values: np.ndarray, dtype: np.dtype, seed: int) -> np.ndarray:
    # The same for all scenarios, so that a scenario's limit does not depend on its neighbours.
    narrow = np.asarray(values, dtype)
    return np.asarray(narrow * (1 + jitter(values.shape[-1:], dtype, seed)), np.float64)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Where a member does not get through, rounding decides whether one does.
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    return np.where(np.isnan(apart) & ~np.isnan(b), np.inf, apart)
