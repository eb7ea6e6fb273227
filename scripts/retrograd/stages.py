"""The stages of a chunk of scenarios, each with its rescue ladder.

A rung is tried on the scenarios that are still open, in the order of the ladder, and each scenario keeps the number of
the rung that rescued it: 0 for none. A scenario that no rung rescues keeps what its first failure left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import batched
from retrograd.context import Chunk, field_of
from retrograd.dynamics import SKIPPED, SUCCESSFUL, Integrator, Record
from retrograd.gradients import GradientProblem, Scenarios, gradient_table
from retrograd.steady import CONVERGED, INVALID, Steady, SteadyProblem

Options = Mapping[str, Any]
Tell = Callable[[str, int, int], None]


def rung_names(options: Options) -> list[str]:
    """Returns the names of a stage's rungs by their number; that of 0 is `none`."""
    return ["none", *(rung["name"] for rung in options["rescue"])]


def on_rung(options: Options, rung: int) -> dict[str, Any]:
    """Returns a stage's settings as a rung changes them."""
    return {**options, **(options["rescue"][rung - 1]["settings"] if rung else {})}


def _rungs(options: Options) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, rung in enumerate(options["rescue"], 1):
        if rung["settings"] is not None:
            yield number, on_rung(options, number)


def find_steady_states(
    cls: type[Model], model: Model, options: Options, k: np.ndarray, x0: np.ndarray, tell: Tell
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
    for number, settings in _rungs(options):
        rows = np.flatnonzero(usable & (found.status != CONVERGED))
        if not len(rows):
            break
        problem = SteadyProblem(cls, field_of(cls, settings), settings["steady_state"])
        tried = problem.find(model, k[rows], x0[rows])
        good = tried.status == CONVERGED
        good &= _within_guard(cls, model, options, settings, k[rows], [row[None] for row in tried.x])
        found.replace(rows[good], tried.take(good))
        rung[rows[good]] = number
        tell(rung_names(options)[number], len(rows), int(np.sum(good)))
    return found, rung


def simulate(
    cls: type[Model],
    model: Model,
    options: Options,
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

    def integrator(settings: Options) -> Integrator:
        return Integrator(field_of(cls, settings), model, settings, options["save_times"], len(cls.states))

    first = integrator(options)
    first.compile(start.shape[1], k.shape[1])
    compiled()
    records = first.run(start, k, done=done)
    rung = np.zeros(len(k), np.int64)
    for number, settings in _rungs(options):
        rows = np.array([i for i, r in enumerate(records) if r.status not in (SUCCESSFUL, SKIPPED)], int)
        if not len(rows):
            break
        tried = integrator(settings).run(start[rows], k[rows])
        good = np.array([r.status == SUCCESSFUL for r in tried])
        good &= _within_guard(cls, model, options, settings, k[rows], [r.step_x for r in tried])
        for i in np.flatnonzero(good):
            records[rows[i]] = tried[i]
        rung[rows[good]] = number
        tell(rung_names(options)[number], len(rows), int(np.sum(good)))
    return records, rung


def _within_guard(
    cls: type[Model], model: Model, options: Options, settings: Options, k: np.ndarray, states: list[np.ndarray]
) -> np.ndarray:
    """Returns of which scenarios all states, arrays (step, state), are such that a rung's guard changed nothing.

    A bound that acts makes another model of it, and the solution of that one is no rescue.
    """
    guard = settings["guard"]
    if guard is None or guard == options["guard"]:
        return np.ones(len(states), bool)
    field = field_of(cls, options)
    rate = eqx.filter_jit(jax.vmap(lambda m, x, k: field(m, jnp.zeros((), x.dtype), x, k), in_axes=(None, 0, 0)))
    good = np.array([bool(np.all(np.abs(x) < guard["x_max"])) for x in states])
    for i in np.flatnonzero(good):
        if len(states[i]):
            rates = batched(rate, model, states[i], np.repeat(k[i : i + 1], len(states[i]), axis=0))
            good[i] = bool(np.all(np.isfinite(rates)))
    return good


def gradient_problem(
    cls: type[Model], model: Model, options: Options, steady_rung: int = 0, rung: int = 0
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
    options: Options,
    plain: GradientProblem,
    recorded: Scenarios,
    rungs: tuple[np.ndarray, np.ndarray],
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, np.ndarray]:
    """Returns the variables of `gradients.nc`, each scenario differentiated under the settings that solved it.

    - `options`: of the gradients' stage; `plain`: its problem without a rung.
    - `rungs`: each scenario's rung of the steady state and of the simulation, shape (scenario,).
    - `done`: called with 1 after each derivative of the check.
    """

    pairs = np.stack(rungs, axis=1)
    rescued = recorded.ok & np.any(pairs > 0, axis=1)
    table = gradient_table(plain, recorded.only(~rescued), done)
    for pair in np.unique(pairs[rescued], axis=0):
        rows = rescued & np.all(pairs == pair, axis=1)
        problem = gradient_problem(cls, model, options, int(pair[0]), int(pair[1]))
        part = gradient_table(problem, recorded.only(rows))
        for name, value in part.items():
            table[name][rows] = value[rows]
    return table


def chunk_summary(codes: np.ndarray, names: tuple[str, ...], chunk: Chunk) -> list[str]:
    """Returns one line for each status but the first that occurs: how many scenarios, and the first ten by name."""
    lines = []
    for code in np.unique(codes[codes != 0]):
        which = [name for name, c in zip(chunk.ids, codes, strict=True) if c == code]
        lines.append(f"{names[code]}: {len(which)} scenarios: {', '.join(which[:10])}")
    return lines
