"""The adaptive solves of a chunk of scenarios, with the rescue ladder.

A rung is tried on the scenarios that are still open, in the order of the ladder, and each scenario keeps the number of
the rung that rescued it: 0 for none. A scenario that no rung rescues keeps what its first failure left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from retrograd.api import Model
from retrograd.batches import batched
from retrograd.context import field_of, within_guard
from retrograd.dynamics import SKIPPED, SUCCESSFUL, Integrator, Record
from retrograd.rescue import rung_names, rungs

Settings = Mapping[str, Any]
Tell = Callable[[str, int, int], None]

# States of a scenario at which its stiffness is looked at.
SAMPLES = 8


def simulate(
    cls: type[Model],
    model: Model,
    options: Settings,
    start: np.ndarray,
    k: np.ndarray,
    tell: Tell,
    done: Callable[[int], None] = lambda count: None,
    compiled: Callable[[], object] = lambda: None,
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


def stiffness_ratios(
    cls: type[Model], model: Model, options: Settings, records: Sequence[Record], start: np.ndarray, k: np.ndarray
) -> np.ndarray:
    """Returns max |Re lambda| over min |Re lambda| of df/dx, the largest on the way, shape (scenario,).

    The ratio of Lambert (1991, "Numerical Methods for Ordinary Differential Systems", section 6.2), at the start and
    at states spread over the accepted steps. A rate below 1 / T counts as that: what is slower than the
    interval is long makes nothing stiff, and conserved quantities have rate 0. NaN where no Jacobian is finite.
    """
    field, stop = field_of(cls, options), float(options["save_times"][-1])
    owner, times, states = [], [], []
    for i, record in enumerate(records):
        ends = np.unique(np.linspace(0, len(record.step_time), SAMPLES).round().astype(int))
        owner += [i] * len(ends)
        times.append(np.concatenate([[0.0], record.step_time])[ends])
        states.append(np.concatenate([start[i][None], record.step_x.reshape(-1, start.shape[1])])[ends])
    jacobian = eqx.filter_jit(jax.vmap(jax.jacfwd(field, argnums=2), in_axes=(None, 0, 0, 0)))
    found = batched(jacobian, model, np.concatenate(times), np.concatenate(states), k[owner])
    usable = np.all(np.isfinite(found), axis=(1, 2))
    rates = np.abs(np.real(np.linalg.eigvals(np.where(usable[:, None, None], found, 0))))
    ratios = rates.max(axis=1) / np.maximum(rates.min(axis=1), 1 / stop)
    out = np.full(len(records), -1.0)
    np.maximum.at(out, np.array(owner), np.where(usable, np.maximum(ratios, 1), -1))
    return np.where(out > 0, out, np.nan)
