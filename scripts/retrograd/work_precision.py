"""Gradient error against cost: each method over a range of tolerances, held against SciPy.

Times are of the second call, compilation left out, in one process on one thread, and belong to the machine: nothing
else in a study depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retrograd import peers
from retrograd.api import Model
from retrograd.context import Chunk, field_of
from retrograd.dynamics import SUCCESSFUL, Integrator
from retrograd.gradients import GradientProblem, Scenarios, largest
from retrograd.reference import Reference
from retrograd.starts import initial_states
from retrograd.steady import CONVERGED, SteadyProblem

Settings = Mapping[str, Any]

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)
# Absolute tolerance over relative tolerance, as in `recommended`.
ABSOLUTE = 1e-2
# A method's name, and its inner iteration: diffrax's adjoint is taken as users write it, and with full Newton too.
METHODS = {
    "replay": "newton",
    "forward": "newton",
    "fd": "newton",
    "checkpoint": "chord",
    "checkpoint_newton": "newton",
    "backsolve": "newton",
    "fd_free": "newton",
}


def measure(
    cls: type[Model], model: Model, options: Settings, chunk: Chunk, tell: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Returns the variables of `work_precision.nc`.

    - `options`: of the gradients' stage of a variant; its tolerances, inner iteration and methods are replaced.
    - `tell`: called with what has just been measured.
    """
    find = options["find"]
    steady = None if find is None else SteadyProblem(cls, field_of(cls, find), find["steady_state"])
    total = len(chunk.ids)
    if steady is None:
        x, good, conserved = initial_states(cls, model, chunk.k_dynamic, chunk.x0), np.ones(total, bool), None
    else:
        found = steady.find(model, chunk.k_steady, chunk.x0)
        x, good, conserved = found.x, found.status == CONVERGED, found.conserved_basis

    def treated(rtol: float, nonlinear: str) -> tuple[GradientProblem, Integrator]:
        controller = {**options["controller"], "rtol": rtol, "atol": ABSOLUTE * rtol}
        settings = {**options, "controller": controller, "nonlinear": {**options["nonlinear"], "method": nonlinear}}
        problem = GradientProblem(cls, field_of(cls, options), model, settings, options["save_times"], steady)
        return problem, Integrator(field_of(cls, options), model, settings, options["save_times"], len(cls.states))

    def recorded(integrator: Integrator) -> Scenarios:
        records = integrator.run(x, chunk.k_dynamic)
        solved = np.array([r.status == SUCCESSFUL for r in records]) & good
        steps, step_x = [r.step_time for r in records], [r.step_x for r in records]
        return Scenarios(chunk.k_dynamic, chunk.k_steady, chunk.x0, x, steps, step_x, solved, conserved)

    problem, integrator = treated(TOLERANCES[-1], "newton")
    scale = problem.scales(recorded(integrator))
    wanted, uncertain = Reference(problem).derivatives(recorded(integrator), np.flatnonzero(good))
    tell("reference")
    shape = (len(METHODS), len(TOLERANCES))
    out = {
        "error": np.full((*shape, total), np.nan),
        "seconds": np.full(shape, np.nan),
        "solve_seconds": np.full(shape, np.nan),
        "steps": np.full((*shape, total), np.nan),
        "reference_error": (largest(uncertain, scale) / largest(wanted, scale))[:, 0],
    }
    for t, rtol in enumerate(TOLERANCES):
        for m, (name, nonlinear) in enumerate(METHODS.items()):
            problem, integrator = treated(rtol, nonlinear)
            recorded(integrator)
            begun = time.perf_counter()
            data = recorded(integrator)
            solved = time.perf_counter()
            rows = np.flatnonzero(data.ok)
            if not len(rows):
                continue
            part = data.take(rows)
            value, taken = _timed(name, problem, part)
            apart = np.max(np.abs(value - wanted[rows]) * scale[rows], axis=1) / largest(wanted, scale)[rows, 0]
            out["error"][m, t, rows] = apart
            out["solve_seconds"][m, t] = (solved - begun) / total
            # What starts from no recorded solve has made its own.
            own = name.startswith(("checkpoint", "backsolve", "fd_free"))
            out["seconds"][m, t] = taken / len(rows) + (0 if own else out["solve_seconds"][m, t])
            out["steps"][m, t, rows] = [len(s) for s in part.steps]
            tell(f"{name} at {rtol:g}")
    return out


def _timed(name: str, problem: GradientProblem, data: Scenarios) -> tuple[np.ndarray, float]:
    """Returns a method's derivatives, (scenario, wrt), and the seconds of a second call."""

    def replay() -> np.ndarray:
        return problem.columns_of(problem.replay(data)[0])

    def forward() -> np.ndarray:
        found, stages = problem.replay(data)
        return problem.tangents(data, stages, found["rows"])

    def fd() -> np.ndarray:
        found, stages = problem.replay(data)
        return problem.differences(data, found["loss"], stages, lambda label: None)["fd"]

    calls = {
        "replay": replay,
        "forward": forward,
        "fd": fd,
        "checkpoint": lambda: problem.columns_of(peers.checkpoint(problem, data)[0]),
        "backsolve": lambda: peers.backsolve_at(problem, data, problem.options["controller"]["rtol"]),
        "fd_free": lambda: peers.free_differences(problem, data)[0],
    }
    call = calls[name.removesuffix("_newton")]
    call()
    begun = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begun
