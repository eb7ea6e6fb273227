"""The steady states of a chunk of scenarios, with the rescue ladder.

A rung is tried on the scenarios that are still open, in the order of the ladder, and each scenario keeps the number of
the rung that rescued it: 0 for none. A scenario that no rung rescues keeps what its first failure left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retrograd.api import Model
from retrograd.context import field_of, within_guard
from retrograd.rescue import rung_names, rungs
from retrograd.steady import CONVERGED, INVALID, Steady, SteadyProblem

Settings = Mapping[str, Any]
Tell = Callable[[str, int, int], None]


def find_steady_states(
    cls: type[Model], model: Model, options: Settings, k: np.ndarray, x0: np.ndarray, tell: Tell
) -> tuple[Steady, np.ndarray]:
    """Returns the steady states and each scenario's rung, shape (scenario,).

    - `options`: precision, formulation, guard, steady_state, rescue.
    - `k`: parameters of the steady phase, shape (scenario, parameter).
    - `x0`: first guess, shape (scenario, state), NaN where the model's own is to be used.
    - `tell`: called with the name of a rung, the number of scenarios tried on it, and the number rescued.
    """
    found = SteadyProblem(cls, field_of(cls, options), options["steady_state"]).find(model, k, x0)
    rung = np.zeros(len(k), np.int64)
    usable = found.status != INVALID
    for number, settings in rungs(options):
        rows = np.flatnonzero(usable & (found.status != CONVERGED))
        if not len(rows):
            break
        problem = SteadyProblem(cls, field_of(cls, settings), settings["steady_state"])
        tried = problem.find(model, k[rows], x0[rows])
        good = tried.status == CONVERGED
        good &= within_guard(cls, model, options, settings, k[rows], [row[None] for row in tried.x])
        found.replace(rows[good], tried.take(good))
        rung[rows[good]] = number
        tell(rung_names(options)[number], len(rows), int(np.sum(good)))
    return found, rung
