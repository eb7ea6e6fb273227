"""The adaptive solves of a chunk of scenarios, with the rescue ladder.

A rung is tried on the scenarios that are still open, in the order of the ladder, and each scenario keeps the number of
the rung that rescued it: 0 for none. A scenario that no rung rescues keeps what its first failure left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retrograd.api import Model
from retrograd.context import field_of, within_guard
from retrograd.dynamics import SKIPPED, SUCCESSFUL, Integrator, Record
from retrograd.rescue import rung_names, rungs

Settings = Mapping[str, Any]
Tell = Callable[[str, int, int], None]


def simulate(
    cls: type[Model],
    model: Model,
    options: Settings,
    start: np.ndarray,
    k: np.ndarray,
    tell: Tell,
    done: Callable[[int], None] = lambda count: None,
    compiled: Callable[[], None] = lambda: None,
) -> tuple[list[Record], np.ndarray]:
    """Returns the records of the adaptive solves and each scenario's rung, shape (scenario,).

    - `options`: precision, formulation, guard, solver, nonlinear, controller, segments, max_steps, save_times, rescue.
    - `start`: shape (scenario, state); NaN in rows that are skipped.
    - `k`: parameters of the dynamic phase, shape (scenario, parameter).
    - `tell`: as in `find_steady_states`.
    - `done`: called with the number of scenarios that have just ended.
    - `compiled`: called after compilation.
    """

    def integrator(settings: Settings) -> Integrator:
        return Integrator(field_of(cls, settings), model, settings, options["save_times"], len(cls.states))

    first = integrator(options)
    first.compile(start.shape[1], k.shape[1])
    compiled()
    records = first.run(start, k, done=done)
    rung = np.zeros(len(k), np.int64)
    for number, settings in rungs(options):
        rows = np.array([i for i, r in enumerate(records) if r.status not in (SUCCESSFUL, SKIPPED)], int)
        if not len(rows):
            break
        tried = integrator(settings).run(start[rows], k[rows])
        good = np.array([r.status == SUCCESSFUL for r in tried])
        good &= within_guard(cls, model, options, settings, k[rows], [r.step_x for r in tried])
        for i in np.flatnonzero(good):
            records[rows[i]] = tried[i]
        rung[rows[good]] = number
        tell(rung_names(options)[number], len(rows), int(np.sum(good)))
    return records, rung
