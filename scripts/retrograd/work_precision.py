"""Gradient error against cost: each method over a range of tolerances, held against SciPy.

Times leave compilation out, are taken in one process on one thread, and belong to the machine: nothing else in a study
depends on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retrograd.api import Model
from retrograd.context import Chunk, field_of
from retrograd.dynamics import Integrator
from retrograd.gradients import GradientProblem, Scenarios, from_records, largest
from retrograd.reference import Reference
from retrograd.starts import starts_of
from retrograd.steady import SteadyProblem
from retrograd.timing import derivatives, timed

Settings = Mapping[str, Any]

# Absolute tolerance over relative tolerance, as in `recommended`.
ABSOLUTE = 1e-2
# A method whose call took longer than this [s] is left out at finer tolerances: what does not get
# through at one of them uses up its budget of steps at the next.
PATIENCE = 60.0


def measure(
    cls: type[Model], model: Model, options: Settings, chunk: Chunk, tell: Callable[[str], object]
) -> dict[str, np.ndarray]:
    """Returns the variables of `work_precision.nc`.

    - `options`: of the gradients' stage of a variant, and `benchmark`: which methods at which tolerances. The variant's
      own tolerances and inner iteration are replaced: diffrax's adjoint is taken as users write it, with its chord
      iteration, and with full Newton too.
    - `tell`: called with what has just been measured.
    """
    total, methods, tolerances = len(chunk.ids), options["benchmark"]["methods"], options["benchmark"]["tolerances"]
    steady, x, x_rest, conserved = starts(cls, model, options, chunk)
    good = np.all(np.isfinite(x), axis=1)

    @functools.cache
    def recorded(rtol: float, nonlinear: str) -> tuple[GradientProblem, Scenarios, float]:
        controller = {**options["controller"], "rtol": rtol, "atol": ABSOLUTE * rtol}
        settings = {**options, "controller": controller, "nonlinear": {**options["nonlinear"], "method": nonlinear}}
        field, times = field_of(cls, options), options["save_times"]
        integrator = Integrator(field, model, settings, times, len(cls.states))
        records, seconds = timed(integrator.run, x, chunk.k_dynamic)
        data = from_records(chunk, x, records, x_rest, conserved)
        return GradientProblem(cls, field, model, settings, times, steady), data, seconds / total

    problem, data, _ = recorded(tolerances[-1], "newton")
    scale = problem.scales(data)
    wanted, uncertain = Reference(problem).derivatives(data, np.flatnonzero(good))
    tell("reference")
    shape = (len(methods), len(tolerances))
    out = {
        "error": np.full((*shape, total), np.nan),
        "seconds": np.full(shape, np.nan),
        "solve_seconds": np.full(shape, np.nan),
        "steps": np.full((*shape, total), np.nan),
        "reference_error": (largest(uncertain, scale) / largest(wanted, scale))[:, 0],
    }
    slow: set[str] = set()
    for t, rtol in enumerate(tolerances):
        for m, name in enumerate(methods):
            problem, data, solve_seconds = recorded(rtol, "chord" if name == "checkpoint" else "newton")
            rows = np.flatnonzero(data.ok)
            if name in slow or not len(rows):
                continue
            value, seconds = timed(derivatives, name, problem, data.take(rows))
            if seconds > PATIENCE:
                slow.add(name)
            apart = np.max(np.abs(value - wanted[rows]) * scale[rows], axis=1) / largest(wanted, scale)[rows, 0]
            out["error"][m, t, rows] = apart
            out["solve_seconds"][m, t] = solve_seconds
            # What starts from no recorded solve has made its own.
            own = name.startswith(("checkpoint", "backsolve", "fd_free"))
            out["seconds"][m, t] = seconds / len(rows) + (0 if own else solve_seconds)
            out["steps"][m, t, rows] = [len(data.steps[r]) for r in rows]
            tell(f"{name} at {rtol:g}")
    return out


def starts(
    cls: type[Model], model: Model, options: Settings, chunk: Chunk
) -> tuple[SteadyProblem | None, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Returns the steady stage, starts of the dynamics (scenario, state), and `x_rest` and `conserved` of `Scenarios`.

    A start that was not found is NaN, and skipped, as in the study.
    """
    find = options["find"]
    if find is None:
        return None, starts_of(cls, model, chunk.k_dynamic, chunk.x0), None, None
    steady = SteadyProblem(cls, field_of(cls, find), find["steady_state"])
    found = steady.find(model, chunk.k_steady, chunk.x0)
    x = starts_of(cls, model, chunk.k_dynamic, chunk.x0, (found.status, found.x))
    return steady, x, found.x, found.conserved_basis
