"""Derivatives as others form them: diffrax's adjoints, differences of free adaptive solves.

They are held against the same check as our own, each with the error that it brings in itself.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.batches import LANES, batched
from retrograd.differences import Samples, estimate, widths
from retrograd.dynamics import FIRST_STEP, Integrator, make_controller, make_solver, rows_at
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.jumps import FieldWithJumps, Jumps, after, jumps_of, spans
from retrograd.plugins import member
from retrograd.weights import flatten, unflatten

# Attempts of the adjoint's integration between two save times. What decays fast forwards explodes backwards, and would
# use up any budget: stiff scenarios take minutes each without this.
BACKWARD_STEPS = 1000
# Compiled functions that are kept for another call: with two tolerances, those of one problem.
KEPT = 2


def _solve(
    problem: GradientProblem, term: Any, x: jax.Array, args: Any, jump: Any, adjoint: Any, rtol: float, steps: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns diffrax's states at the save times, whether it got to the end, and the ends of its steps if wanted.

    - `jump`: (t, x) -> the state after a jump.

    Shapes (time, state), () and (step, 1 + state): the time of each end and the state there, inf for padding.
    """
    options = problem.options
    controller = options["controller"]
    share = rtol / controller["rtol"]
    options = {**options, "controller": {**controller, "rtol": rtol, "atol": controller["atol"] * share}}
    dt0 = controller["dt0"]
    finished, rows, ends = jnp.ones((), bool), [], []
    with_time = lambda t, x, args=None: jnp.concatenate([jnp.asarray(t, x.dtype)[None], x])
    for begin, end, jumps in spans(problem.field, problem.times[-1], problem.dtype):
        inside = problem.times[(problem.times >= begin) & (problem.times <= end)]
        stops = np.union1d(inside, end)
        ends_too = diffrax.SubSaveAt(steps=True, fn=with_time)
        saveat = diffrax.SaveAt(ts=jnp.asarray(stops))
        if steps:
            saveat = diffrax.SaveAt(subs=(diffrax.SubSaveAt(ts=jnp.asarray(stops)), ends_too))
        solution = diffrax.diffeqsolve(
            term,
            make_solver(options),
            t0=jnp.asarray(begin),
            t1=jnp.asarray(end),
            dt0=jnp.asarray(FIRST_STEP if dt0 is None else dt0, problem.dtype),
            y0=x,
            args=args,
            saveat=saveat,
            stepsize_controller=make_controller(options, stops[stops > begin]),
            adjoint=adjoint,
            max_steps=options["max_steps"],
            throw=False,
        )
        found, *taken = cast(tuple[jax.Array, ...], solution.ys if steps else (solution.ys,))
        finished &= solution.result == diffrax.RESULTS.successful
        rows.append(found[: len(inside)])
        ends += taken
        x = found[-1]
        if jumps:
            x = jump(jnp.asarray(end), x)
            ends.append(with_time(after(end), x)[None])
    # Where the last save time is a jump, no piece follows on it.
    rows += [x[None]] if jumps else []
    return jnp.concatenate(rows), finished, jnp.concatenate(ends) if steps else None


def checkpoint(
    problem: GradientProblem, data: Scenarios, together: bool = False
) -> tuple[dict[str, np.ndarray], list[np.ndarray], list[np.ndarray], float]:
    """Returns gradients by `diffrax.RecursiveCheckpointAdjoint` through the adaptive solve, as users form them.

    - `together`: in batches, as is fastest; else one after the other. In a batch diffrax forms the first stage of all
      lanes anew while any lane is at its first step, and saves states for the way back as the longest solve needs them:
      the last digits of a scenario depend on its neighbours.

    Keys: `dynamic`, `steady`, `network`; NaN where diffrax did not get to the end: it would leave rows unsaved,
    and a finite derivative of those that are there. The other values are the ends of the steps that it took, the states
    there, (step,) and (step, state), and how long it took for all scenarios [s], compilation left out.
    """
    order, back = _by_length(data)
    through = _through_the_solve(problem, together)
    begun = time.perf_counter()
    gx, gk, gw, ends = batched(through, problem.model, data.x_start[order], data.k_dynamic[order])
    seconds = time.perf_counter() - begun
    dynamic, steady, network = problem.from_start(data, gx[back], gk[back], gw[back])
    taken = [rows[np.isfinite(rows[:, 0])] for rows in ends[back]]
    gradient = {"dynamic": dynamic, "steady": steady, "network": network}
    return gradient, [rows[:, 0] for rows in taken], [rows[:, 1:] for rows in taken], seconds


@functools.lru_cache(maxsize=KEPT)
def _through_the_solve(problem: GradientProblem, together: bool) -> Callable[..., Any]:
    term = diffrax.ODETerm(lambda t, x, args: problem.field(args[0], jnp.asarray(t), x, args[1]))
    times = jnp.asarray(problem.times)
    call = member(problem.cls, "loss", ())
    jumps = jumps_of(problem.field)
    rtol = problem.options["controller"]["rtol"]

    def loss(weights, x, k, static):
        model = eqx.combine(weights, static)
        jump = lambda t, x: jumps.apply(model, t, x, k) if jumps else x
        adjoint = diffrax.RecursiveCheckpointAdjoint()
        rows, finished, ends = _solve(problem, term, x, (model, k), jump, adjoint, rtol, True)
        return call(model, times, rows, k), (ends, finished)

    def one(model, x, k):
        weights, static = eqx.partition(model, eqx.is_inexact_array)
        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        (gw, gx, gk), (ends, finished) = gradient(weights, x, k, static)
        only = lambda g: jnp.where(finished, g, jnp.nan)
        return only(gx), only(gk), only(flatten(gw).astype(k.dtype)), ends

    # Compiled ahead: the run is so long that nobody wants a second one to tell its time from the compiler's.
    gradient = eqx.filter_jit(jax.vmap(one, in_axes=(None, 0, 0)) if together else _in_turn(one))
    rows = lambda n: jnp.zeros((LANES, n), problem.dtype)
    return gradient.lower(problem.model, rows(problem.n), rows(len(problem.cls.parameters))).compile()


def _in_turn(one: Callable[..., Any]) -> Callable[..., Any]:
    # What `vmap` would give, each row by a program that sees no other.
    return lambda model, x, k: jax.lax.map(lambda row: one(model, *row), (x, k))


def _by_length(data: Scenarios) -> tuple[np.ndarray, np.ndarray]:
    # Like with like: a batch takes as long as its slowest lane.
    order = np.argsort([len(s) for s in data.steps], kind="stable")
    return order, np.argsort(order)


def backsolve(problem: GradientProblem, data: Scenarios) -> tuple[np.ndarray, np.ndarray]:
    """Returns derivatives by `diffrax.BacksolveAdjoint`, and their own error, both (scenario, wrt).

    The error is twice the difference to a tenth of the tolerances.
    """
    rtol = problem.options["controller"]["rtol"]
    found = backsolve_at(problem, data, rtol)
    return found, 2 * np.abs(found - backsolve_at(problem, data, rtol / 10))


def backsolve_at(problem: GradientProblem, data: Scenarios, rtol: float) -> np.ndarray:
    """Returns derivatives by `diffrax.BacksolveAdjoint` at this relative tolerance, shape (scenario, wrt).

    The adjoint equations are integrated backwards together with the states (Chen et al. 2018, arXiv:1806.07366). By the
    weights only the checked directions are taken, or the system would be as large as the network.
    """
    ga, gx, gk = batched(_backwards(problem, rtol), None, data.x_start, data.k_dynamic)
    start = problem.from_start(data, gx, gk, np.zeros((len(gx), problem.weights)))
    out = problem.columns_of(dict(zip(("dynamic", "steady", "network"), start, strict=True)))
    for j, (kind, i) in enumerate(problem.columns):
        out[:, j] += ga[:, i] if kind == "network" else 0
    return out


@functools.lru_cache(maxsize=KEPT)
def _backwards(problem: GradientProblem, rtol: float) -> Callable[..., Any]:
    directions = jnp.asarray(problem.directions, problem.dtype)
    weights = flatten(problem.model).astype(problem.dtype)
    moved = lambda a: unflatten(problem.model, weights + a @ directions)
    term = diffrax.ODETerm(lambda t, x, args: problem.field(moved(args[0]), jnp.asarray(t), x, args[1]))
    times = jnp.asarray(problem.times)
    call = member(problem.cls, "loss", ())
    jumps = jumps_of(problem.field)
    adjoint = diffrax.BacksolveAdjoint(max_steps=min(problem.options["max_steps"], BACKWARD_STEPS), throw=False)

    def loss(a, x, k):
        jump = lambda t, x: jumps.apply(moved(a), t, x, k) if jumps else x
        rows, finished, _ = _solve(problem, term, x, (a, k), jump, adjoint, rtol, False)
        return call(moved(a), times, rows, k), finished

    def one(_, x, k):
        zero = jnp.zeros(len(directions), problem.dtype)
        gradient, finished = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(zero, x, k)
        return jax.tree_util.tree_map(lambda g: jnp.where(finished, g, jnp.nan), gradient)

    # In batches neighbours would change last digits, as in `checkpoint`.
    return eqx.filter_jit(_in_turn(one))


def free_differences(problem: GradientProblem, data: Scenarios) -> tuple[np.ndarray, np.ndarray]:
    """Returns finite differences of adaptive solves that choose their steps anew, and their bound: (scenario, wrt).

    What most scripts do. The choice of steps is noise in these values, which the bound contains; how much wider it is
    than that on frozen steps is what freezing them is worth.
    """
    total, integrator = len(data.k_dynamic), _with_weights(problem)
    flat = np.asarray(flatten(problem.model), np.float64)
    sweep = widths(problem.scales(data), problem.dtype)

    def losses(x: np.ndarray, k: np.ndarray, weights: np.ndarray) -> np.ndarray:
        records = integrator.run(x, np.concatenate([k, np.tile(weights, (len(k), 1))], axis=1))
        rows = np.stack([rows_at(r, start, problem.times) for r, start in zip(records, x, strict=True)])
        model = unflatten(problem.model, jnp.asarray(weights, problem.dtype))
        return problem.losses(model, rows, k)

    center = losses(data.x_start, data.k_dynamic, flat)
    value, error = np.full((2, total, len(problem.columns)), np.nan)
    for j, (kind, i) in enumerate(problem.columns):
        values = np.empty((2, total, sweep.shape[2]))
        for s, sign in enumerate((1.0, -1.0)):
            for w in range(sweep.shape[2]):
                x, k, weights = problem.shifted(data, kind, i, sign * sweep[:, j, w])
                values[s, :, w] = losses(x, k, weights)
        found = estimate(Samples(sweep[:, j], values[0], values[1], center, float(np.finfo(problem.dtype).eps)))
        value[:, j], error[:, j] = found.value, found.error
    return value, error


@functools.lru_cache(maxsize=KEPT)
def _with_weights(problem: GradientProblem) -> Integrator:
    # The weights are parameters of its scenarios, so that one compilation serves all perturbations.
    names = len(problem.cls.parameters)
    cut = lambda kw: (kw[:names], kw[names:])
    of_weights = lambda call: lambda model, t, x, kw: call(unflatten(model, cut(kw)[1]), t, x, cut(kw)[0])
    field, jumps = of_weights(problem.field), jumps_of(problem.field)
    if jumps is not None:
        field = FieldWithJumps(field, Jumps(jumps.times, of_weights(jumps.apply)))
    return Integrator(field, problem.model, problem.options, list(problem.times), problem.n)
