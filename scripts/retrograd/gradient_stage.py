"""The gradients of a chunk of scenarios, each under the settings that solved it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrograd import causes
from retrograd.api import Model
from retrograd.certificates import gradient_table
from retrograd.context import field_of
from retrograd.dynamics import Record
from retrograd.gradient_causes import of_gradients
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.rescue import on_rung
from retrograd.steady import SteadyProblem

Settings = Mapping[str, Any]


def gradient_problem(
    cls: type[Model], model: Model, options: Settings, steady_rung: int = 0, rung: int = 0
) -> GradientProblem:
    """Returns the gradients' stage under the settings of two rungs.

    - `options`: of the gradients' stage; `find` in it are those of the steady state, None with `start: initial_state`.
    """
    settings, find = on_rung(options, rung), options["find"]
    steady = None
    if find is not None:
        find = on_rung(find, steady_rung)
        steady = SteadyProblem(cls, field_of(cls, find), find["steady_state"])
    return GradientProblem(cls, field_of(cls, settings), model, settings, options["save_times"], steady)


def form_gradients(
    cls: type[Model],
    model: Model,
    options: Settings,
    plain: GradientProblem,
    recorded: Scenarios,
    records: Sequence[Record],
    rungs: tuple[np.ndarray, np.ndarray],
    done: Callable[[int], None] = lambda count: None,
    took: Callable[[str, float], object] = lambda method, seconds: None,
) -> dict[str, np.ndarray]:
    """Returns the variables of `gradients.nc`, each scenario differentiated under the settings that solved it.

    - `options`: of the gradients' stage; `plain`: its problem without a rung.
    - `records`: their attempts.
    - `rungs`: each scenario's rung of the steady state and of the simulation, shape (scenario,).
    - `done`: called after each width of the check's sweep, with the number of scenarios that were replayed.
    - `took`: as in `gradient_table`, of the scenarios without a rung.
    """

    pairs = np.stack(rungs, axis=1)
    rescued = recorded.ok & np.any(pairs > 0, axis=1)

    def with_causes(problem: GradientProblem, data: Scenarios, **timed: Any) -> dict[str, np.ndarray]:
        found = gradient_table(problem, data, done, **timed)
        return found | causes.table(of_gradients(problem, data, records, found))

    table = with_causes(plain, recorded.only(~rescued), took=took)
    for pair in np.unique(pairs[rescued], axis=0):
        rows = rescued & np.all(pairs == pair, axis=1)
        problem = gradient_problem(cls, model, options, int(pair[0]), int(pair[1]))
        part = with_causes(problem, recorded.only(rows))
        for name, value in part.items():
            table[name][rows] = value[rows]
    return table
