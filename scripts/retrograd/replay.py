"""Re-integration on recorded steps, and its discrete adjoint.

On a frozen sequence of steps a Runge-Kutta method is a smooth map of start state, parameters and weights: nothing is
adapted and nothing is rejected. With stages Y_i and rates f_i = f(t_i, Y_i),

    Y_i = x + h sum_j a_ij f_j,        x_next = x + h sum_i b_i f_i,

the adjoint (Hager 2000, doi:10.1007/s002110000178; here with the implicit diagonal a_ii) of a cotangent lam of
x_next is, for i from the last stage to the first,

    phi_i = h b_i lam + h sum_{j>=i} a_ji eta_j,    eta_i = (df/dx_i)^T phi_i,    lam_prev = lam + sum_i eta_i,

and a parameter's gradient is sum_i phi_i . df/dp(t_i, Y_i). The tangent in a direction is the same map linearised
forward; it shares no code with the adjoint but the stages, and must agree with it to rounding. The stages are solved to
rounding, whatever inner iteration the recorded run used: the map that is differentiated is the Runge-Kutta method
itself (`runge_kutta.py`).

The sequential part of the adjoint is n x n algebra on Jacobians, in float64; those and the parameters' gradients are
formed for a block of steps at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import LANES, batched, float_type, lanes_of
from retrograd.linalg import jitter, solve
from retrograd.plugins import Field
from retrograd.runge_kutta import RungeKutta, stage_times
from retrograd.weights import flatten, unflatten

BLOCK = 16
# Most lanes of a walk over many items. Results of a lane do not depend on it (see batches.py).
WIDE = 8 * LANES
# Newton on a stage; from the recorded stages it takes 1 to 3 iterations, from a predictor rarely more than 10.
NEWTON_STEPS = 30
# Of the adjoint's and the tangent's algebra, whatever the width of states and Jacobians: a conserved quantity gives a
# stage's matrix I - h a_ii df/dx the eigenvalue 1 beside those of the fast rates, and float32 loses it from 1e7 on.
WALK = np.dtype(np.float64)
# What the inverse matrices of a portion of the scenarios may take, and those of a scenario whose own take more.
# Neighbours of one beyond both are solved by full Newton.
LINEARISED_BYTES, LARGEST_BYTES = 1 << 28, 1 << 30


@dataclass
class Linearised:
    """Replayed scenarios, as the start of the replays next to them; steps are padded to the longest, with length 0."""

    lengths: np.ndarray  # (scenario,)
    t0: np.ndarray  # (step, scenario)
    t1: np.ndarray
    stages: np.ndarray  # (step, scenario, stage, state)
    inverses: np.ndarray | None  # (step, scenario, stage, state, state), of I - h a_ii df/dx there

    def take(self, rows: np.ndarray) -> Linearised:
        """Returns some of the scenarios."""
        inverses = None if self.inverses is None else self.inverses[:, rows]
        return Linearised(self.lengths[rows], self.t0[:, rows], self.t1[:, rows], self.stages[:, rows], inverses)


class Replayer:
    """The compiled replay of one variant: forward over recorded steps, and backward."""

    def __init__(self, field: Field, options: Mapping[str, Any], n: int) -> None:
        """- `field`: f(model, t, x, k).
        - `options`: the variant's solver and controller.
        - `n`: number of states.
        """
        self.n = n
        self.dtype = float_type()
        self._field = field
        self._step = self.make_step(options)
        self.tableau = self._step.tableau
        # Of a step, rows of its stages that are kept, and rows of them that a neighbouring replay begins from.
        self.kept, self.guesses = self._step.kept, self._step.guesses
        self.lanes, self.wide = lanes_of(n), lanes_of(n, WIDE)
        self._first_rate = eqx.filter_jit(
            jax.vmap(lambda model, t, x, k: field(model, t, x, k), in_axes=(None, 0, 0, 0))
        )
        self._forward = eqx.filter_jit(self._forward_block)
        self._jacobians = eqx.filter_jit(self._jacobians_block)
        self._sources = eqx.filter_jit(self._sources_block)
        self._paired = eqx.filter_jit(self._paired_block)
        self._backward = eqx.filter_jit(self._backward_block)
        self._tangent = eqx.filter_jit(self._tangent_block)
        self._inverse = eqx.filter_jit(self._inverse_block)

    def make_step(self, options: Mapping[str, Any]) -> Any:
        """Returns the step that is replayed."""
        atol = float(options["controller"]["atol"])
        return RungeKutta(self._field, options["solver"], atol, self.n, self.dtype, NEWTON_STEPS)

    def _points(self, t0, t1, stages):
        # Times and arguments of the stages' rates, (..., stage) and (..., stage, state).
        return stage_times(self.tableau.c, t0, t1), stages

    # -- compiled blocks ------------------------------------------------------------------------------

    def _inverse_block(self, model, t0, t1, k, stages):
        # (step, lane, stage, state, state)
        diagonal = jnp.asarray(np.diag(self.tableau.a), self.dtype)
        eye = jnp.eye(self.n, dtype=self.dtype)

        def one(t, y, ha, k):
            jac = jax.jacfwd(lambda y: self._field(model, t, y, k))(y)
            return jax.vmap(lambda column: solve(eye - ha * jac, column), out_axes=1)(eye)

        ha = (t1 - t0)[..., None] * diagonal
        over_lanes = jax.vmap(jax.vmap(one, in_axes=(0, 0, 0, None)))
        # Step by step: in the product of a network with a whole block some rows are rounded otherwise than others.
        return jax.lax.map(
            lambda at: over_lanes(at[0], at[1], at[2], k), (stage_times(self.tableau.c, t0, t1), stages, ha)
        )

    def _forward_block(self, model, weights, t0, t1, x, rate, k, guess, changes, inverses=None):
        # weights: (model, weight), of which each has its share of the lanes, or None: the model's own for all.
        # t0, t1: (step, lane); x, rate: (lane, state); guess: (step, lane, stage, state), NaN where there is none;
        # changes: relative, of the states at the ends, (step, state); inverses: (step, lane, stage, state, state).
        lanes = jax.vmap(self._step, in_axes=(None, 0, 0, 0, 0, 0, 0, None if inverses is None else 0))
        count = 1 if weights is None else len(weights)
        if weights is not None:
            # A product of a batch with a matrix each would read a lane's weights for that lane alone.
            models, groups = _models(model, weights), eqx.filter_vmap(lanes, in_axes=(eqx.if_array(0), *[0] * 7))

        def step(carry, inputs):
            x, rate = carry
            t0, t1, guess, change, inverse = inputs
            if weights is None:
                out = lanes(model, t0, t1, x, rate, k, guess, inverse)
            else:
                share = lambda v: jnp.reshape(v, (count, len(v) // count, *v.shape[1:]))
                rows = jax.tree_util.tree_map(share, (t0, t1, x, rate, k, guess, inverse))
                out = jax.tree_util.tree_map(lambda v: jnp.reshape(v, (len(t0), *v.shape[2:])), groups(models, *rows))
            end = out.x * (1 + change)
            return (end, out.rate), (end, out.stages)

        (x, rate), (ends, stages) = jax.lax.scan(step, (x, rate), (t0, t1, guess, changes, inverses))
        return x, rate, ends, stages

    def _jacobians_block(self, model, t0, t1, k, stages, jitter):
        # stages: (step, lane, stage, state); jitter: (state, state). Returns (step, lane, stage, state, state).
        def jacobian(t, y, k):
            return jax.jacfwd(lambda y: self._field(model, t, y, k))(y)

        over_lanes = jax.vmap(jax.vmap(jacobian, in_axes=(0, 0, None)))
        # Step by step: what the field makes of a whole block does not fit the processor's caches.
        return jax.lax.map(lambda at: over_lanes(at[0], at[1], k), self._points(t0, t1, stages)) * (1 + jitter)

    def _sources_block(self, model, direction, t0, t1, k, dk, stages):
        # Derivatives of the rates by weights and parameters in each direction: (step, lane, stage, dir, state).
        weights = flatten(model).astype(self.dtype)

        def source(t, y, k, dw, dk):
            moved = lambda w, k: self._field(unflatten(model, w), t, y, k)
            return jax.jvp(moved, (weights, k), (dw, dk))[1]

        over_stages = jax.vmap(source, in_axes=(0, 0, None, None, None))
        over_lanes = jax.vmap(over_stages, in_axes=(0, 0, 0, None, None))
        at_stages = self._points(t0, t1, stages)
        # Step by step and direction by direction: in larger products some rows are rounded otherwise than others.
        along = lambda dw, dk: jax.lax.map(lambda at: over_lanes(at[0], at[1], k, dw, dk), at_stages)
        return jnp.moveaxis(jax.lax.map(lambda d: along(*d), (direction, dk)), 0, 3)

    def _backward_block(self, model, t0, t1, k, stages, jacobians, injected, lam, grad_k, grad_model):
        # t0, t1: (step, lane); lam: (lane, state); injected: (step, lane, state), the loss's cotangent of each step's
        # end. Returns lam at the start of the block, phi: (step, lane, stage, state), and the gradients with what is in
        # a step beside the rates at its stages.
        tab = self.tableau
        a, b = jnp.asarray(tab.a, WALK), jnp.asarray(tab.b, WALK)
        eye = jnp.eye(self.n, dtype=WALK)

        def step(lam, inputs):
            h, jac, inject = inputs
            h, jac = h.astype(WALK), jac.astype(WALK)
            lam = lam + inject

            def stage(eta, i):
                right = h[:, None] * (b[i] * lam + jnp.einsum("j,jln->ln", a[:, i], eta))
                jac_t = jnp.swapaxes(jac[:, i], -1, -2)
                phi, ha = right, (h * a[i, i])[:, None]
                if tab.implicit:
                    phi = jnp.where(ha == 0, phi, solve(eye - ha[..., None] * jac_t, phi))
                # Padded steps have h = 0 and a Jacobian that may be anything.
                phi = jnp.where((h == 0)[:, None], 0, phi)
                eta_i = jnp.einsum("lij,lj->li", jac_t, phi)
                if tab.implicit:
                    # As in the tangent, from the stage's equation where there is one.
                    eta_i = jnp.where(ha == 0, eta_i, (phi - right) / jnp.where(ha == 0, 1, ha))
                return eta.at[i].set(jnp.where((h == 0)[:, None], 0, eta_i)), phi

            zeros = jnp.zeros((tab.stages, *lam.shape), WALK)
            eta, phi = jax.lax.scan(stage, zeros, jnp.arange(tab.stages), reverse=True)
            return lam + jnp.sum(eta, axis=0), jnp.swapaxes(phi, 0, 1)

        lam, phi = jax.lax.scan(step, lam, (t1 - t0, jacobians, injected), reverse=True)
        return lam, phi, grad_k, grad_model

    def _paired_block(self, model, t0, t1, k, stages, phi, grad_k, grad_model):
        # phi: (step, lane, stage, state), the cotangents of the rates.
        times, points = self._points(t0, t1, stages)
        weights, static = eqx.partition(model, eqx.is_inexact_array)

        def paired(weights, k, times, stages, phi):
            full = eqx.combine(weights, static)
            rate = jax.vmap(lambda t, y: self._field(full, t, y, k))(times, stages)
            return jnp.sum(jnp.where(phi == 0, 0, rate) * phi)

        per_lane = jax.vmap(jax.grad(paired, argnums=(0, 1)), in_axes=(None, 0, 0, 0, 0))

        def add(sums, step):
            gm, gk = per_lane(weights, k, *step)
            return (sums[0] + gk, jax.tree_util.tree_map(jnp.add, sums[1], gm)), None

        sums = (grad_k, zeros_of(weights, k))
        gk, gm = jax.lax.scan(add, sums, (times, points, phi))[0]
        return gk, grad_model + flat_rows(gm, self.dtype)

    def _tangent_block(self, model, t0, t1, k, stages, jacobians, sources, dx):
        # dx: (lane, dir, state). Returns dx at the end, and at each step's end: (step, lane, dir, state).
        tab = self.tableau
        a, b = jnp.asarray(tab.a, WALK), jnp.asarray(tab.b, WALK)
        eye = jnp.eye(self.n, dtype=WALK)

        def step(dx, inputs):
            h, jac, g = (v.astype(WALK) for v in inputs)
            h = h[:, None, None]

            def stage(rates, i):
                base = dx + h * jnp.einsum("j,jldn->ldn", a[i], rates)
                j, gi = jac[:, i], g[:, i]
                times_j = lambda d: jnp.einsum("lnm,ldm->ldn", j, d) + gi
                if not tab.implicit:
                    return rates.at[i].set(times_j(base)), None
                ha = h * a[i, i]
                dy = solve((eye - ha * j)[:, None] * jnp.ones_like(base)[..., None], base + ha * gi)
                # As in the step itself, from the stage's equation where there is one.
                rate = jnp.where(ha == 0, times_j(base), (dy - base) / jnp.where(ha == 0, 1, ha))
                return rates.at[i].set(rate), None

            rates, _ = jax.lax.scan(stage, jnp.zeros((tab.stages, *dx.shape), WALK), jnp.arange(tab.stages))
            end = jnp.where(h == 0, dx, dx + h * jnp.einsum("j,jldn->ldn", b, rates))
            return end, end

        return jax.lax.scan(step, dx, (t1 - t0, jacobians, sources))

    # -- host side ------------------------------------------------------------------------------------

    def _first_rates(self, model, weights, t, x, k, of):
        if not self._step.takes_rate:
            return np.zeros_like(x)
        return by_weights(self._first_rate, model, weights, of, t, x, k)

    def _times(self, steps: Sequence[np.ndarray], begin: Any) -> tuple[np.ndarray, np.ndarray]:
        # (step, scenario); the steps behind a scenario's last one have length 0 and change nothing.
        blocks = -(-max(map(len, steps), default=0) // BLOCK)
        t0 = np.full((blocks * BLOCK, len(steps)), begin, self.dtype)
        t1 = np.zeros_like(t0)
        for i, ends in enumerate(steps):
            t1[: len(ends), i] = ends
            t1[len(ends) :, i] = ends[-1] if len(ends) else begin
        t0[1:] = t1[:-1]
        return t0, t1

    def _walk(
        self,
        model: Model,
        x_start: np.ndarray,
        k: np.ndarray,
        owner: np.ndarray,
        near: Linearised,
        inverses: np.ndarray | None,
        keep_stages: bool,
        seed: int = 0,
        weights: np.ndarray | None = None,
        of: np.ndarray | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns states and stages of items on the steps of their scenarios.

        A lane whose item has come to its end takes up the next one at the next block, the longest first.
        """
        lengths = near.lengths[owner]
        # All items' steps in a row: one assignment a block writes those of all lanes.
        first = np.concatenate([[0], np.cumsum(lengths)])
        ends = np.zeros((first[-1], self.n))
        kept = np.zeros((first[-1] if keep_stages else 0, self.kept, self.n))
        models = 1 if weights is None else len(weights)
        of = np.zeros(len(owner), int) if of is None else of
        waiting: list[list[int]] = [[] for _ in range(models)]
        for i in np.argsort(lengths, kind="stable"):
            if lengths[i]:
                waiting[of[i]].append(int(i))
        if not any(waiting):
            return _parts(first, ends, kept)
        # The operations of one block are short, so what counts is their number: as many lanes as keep all of them busy
        # until the longest item is done.
        width = models * self.lanes
        while width < self.wide and lengths.sum() > width * lengths.max():
            width *= 2
        share = width // models
        item = np.full(width, -1)
        offset = np.zeros(width, np.int64)
        x = np.zeros((width, self.n), self.dtype)
        first_rate = self._first_rates(model, weights, near.t0[0, owner], x_start, k, of)
        flat = None if weights is None else np.asarray(weights, self.dtype)
        changes = jitter((BLOCK, self.n), self.dtype, seed)
        rate = np.zeros_like(x)
        within = np.arange(BLOCK)[:, None]
        while True:
            for lane in np.flatnonzero(item < 0) if any(waiting) else ():
                if waiting[lane // share]:
                    item[lane], offset[lane] = waiting[lane // share].pop(), 0
                    x[lane], rate[lane] = x_start[item[lane]], first_rate[item[lane]]
            busy = np.flatnonzero(item >= 0)
            if not len(busy):
                return _parts(first, ends, kept)
            # An idle lane repeats a busy one: its values are finite and its results are dropped.
            like = np.where(item >= 0, np.arange(width), busy[0])
            row = offset[like] + within
            column = np.broadcast_to(owner[item[like]], row.shape)
            x, rate, block_x, block_y = self._forward(
                model,
                flat,
                near.t0[row, column],
                near.t1[row, column],
                x[like],
                rate[like],
                np.asarray(k[item[like]], self.dtype),
                near.stages[row, column],
                changes,
                None if inverses is None else inverses[row, column],
            )
            x, rate = np.array(x), np.array(rate)
            step = offset[busy] + within
            own = step < lengths[item[busy]]
            to = (first[item[busy]] + step)[own]
            ends[to] = np.asarray(block_x)[:, busy][own]
            if keep_stages:
                kept[to] = np.asarray(block_y)[:, busy][own]
            offset[busy] += BLOCK
            item[busy[offset[busy] >= lengths[item[busy]]]] = -1

    def forward(
        self, model: Model, x_start: np.ndarray, k: np.ndarray, steps: Sequence[np.ndarray], begin: Any = 0.0
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns the state at the end of each step, and the stages, of each scenario.

        - `x_start`: shape (scenario, state).
        - `k`: shape (scenario, parameter).
        - `steps`: of each scenario the ends of its steps, shape (step,).
        - `begin`: time at which the first steps begin.

        Results: lists of arrays (step, state) and (step, stage, state).
        """
        t0, t1 = self._times(steps, begin)
        unknown = np.broadcast_to(np.asarray(np.nan, self.dtype), (*t0.shape, self.guesses, self.n))
        near = Linearised(np.array([len(v) for v in steps], int), t0, t1, unknown, None)
        return self._walk(model, x_start, k, np.arange(len(steps)), near, None, True)

    def portions(self, steps: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the rows of scenarios whose inverse matrices are kept at a time, those with fewest steps first.

        Whether a scenario's are kept at all depends on its own steps alone, and so do its neighbours' last digits.
        """
        each = BLOCK * self.guesses * self.n**2 * self.dtype.itemsize
        out: list[list[int]] = []
        for i in np.argsort([len(v) for v in steps], kind="stable"):
            # All take as much as the longest.
            size = each * -(-len(steps[i]) // BLOCK)
            if out and (len(out[-1]) + 1) * size <= LINEARISED_BYTES:
                out[-1].append(int(i))
            else:
                out.append([int(i)])
        return [np.sort(rows) for rows in out]

    def linearise(
        self,
        model: Model,
        k: np.ndarray,
        steps: Sequence[np.ndarray],
        stages: Sequence[np.ndarray],
        begin: Any = 0.0,
    ) -> Linearised:
        """Returns what `perturbed` starts from, for one of the `portions`; arguments as `backward` takes them."""
        lengths = np.array([len(v) for v in steps], int)
        t0, t1 = self._times(steps, begin)
        y = np.zeros((*t0.shape, self.guesses, self.n), self.dtype)
        out = Linearised(lengths, t0, t1, y, None)
        if not self.guesses:
            return out
        for i, rows in enumerate(stages):
            y[: lengths[i], i] = rows
        if y.nbytes * self.n > LARGEST_BYTES:
            return out
        out.inverses = np.zeros((*y.shape, self.n), self.dtype)
        for lanes in self._batches(lengths):
            kk, full = self._padded(lanes, k), self._filled(lanes)
            for i in range(-(-max(lengths[lanes]) // BLOCK)):
                part = slice(i * BLOCK, (i + 1) * BLOCK)
                found = self._inverse(model, t0[part, full], t1[part, full], kk, y[part, full])
                out.inverses[part, lanes] = np.asarray(found)[:, : len(lanes)]
        return out

    def perturbed(
        self,
        model: Model,
        x_start: np.ndarray,
        k: np.ndarray,
        owner: np.ndarray,
        near: Linearised,
        seed: int = 0,
        keep_stages: bool = False,
        weights: np.ndarray | None = None,
        of: np.ndarray | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns states and stages, as `forward`, of items next to scenarios that were replayed.

        - `x_start`, `k`: shape (item, state) and (item, parameter).
        - `owner`: the scenario that each item stands next to, shape (item,).
        - `seed`: 0, or that of changes of the size of rounding (`linalg.jitter`) at the end of each step.
        - `keep_stages`: whether stages are wanted; arrays (0, stage, state) where they are not.
        - `weights`, `of`: weights in place of the model's, shape (model, weight), and which of them each item has,
          shape (item,).

        Items that a simplified Newton iteration from there does not solve are solved by full Newton.
        """
        ends, stages = self._walk(model, x_start, k, owner, near, near.inverses, keep_stages, seed, weights, of)
        if near.inverses is not None:
            item = np.repeat(np.arange(len(ends)), near.lengths[owner])
            lost = np.unique(item[~np.isfinite(np.concatenate(ends)).all(axis=1)]) if len(item) else item
            if len(lost):
                mine = None if of is None else of[lost]
                again = self._walk(
                    model, x_start[lost], k[lost], owner[lost], near, None, keep_stages, seed, weights, mine
                )
                for i, end, stage in zip(lost, *again, strict=True):
                    ends[i], stages[i] = end, stage
        return ends, stages

    def _batches(self, lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        # Like with like: a batch takes as many steps as its longest lane.
        order = np.argsort(lengths, kind="stable")
        return [order[i : i + self.lanes] for i in range(0, len(order), self.lanes)]

    def _filled(self, lanes: np.ndarray) -> np.ndarray:
        return np.concatenate([lanes, np.repeat(lanes[:1], self.lanes - len(lanes))])

    def _padded(self, lanes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows[self._filled(lanes)], self.dtype)

    def tangent(
        self,
        model: Model,
        k: np.ndarray,
        steps: Sequence[np.ndarray],
        stages: Sequence[np.ndarray],
        dx: np.ndarray,
        dk: np.ndarray,
        dweights: np.ndarray,
        jitter: int = 0,
        begin: Any = 0.0,
    ) -> list[np.ndarray]:
        """Returns the derivatives of the states at the steps' ends in some directions, arrays (step, direction, state).

        - `steps`, `stages`: as `forward` took and returned them.
        - `dx`: derivatives of the start state, shape (item, direction, state).
        - `dk`, `dweights`: each direction's part in the parameters and in the weights, shape (direction, parameter)
          and (direction, weight).
        - `jitter`: 0, or the seed of changes of the size of rounding (`linalg.jitter`) in stages and Jacobians.
        - `begin`: as in `forward`.
        """
        lengths = np.array([len(v) for v in steps], int)
        t0, t1 = self._times(steps, begin)
        out = [np.zeros((n, *dx.shape[1:])) for n in lengths]
        dk, dweights = np.asarray(dk, self.dtype), np.asarray(dweights, self.dtype)
        for lanes in self._batches(lengths):
            full = self._filled(lanes)
            kk, moved = self._padded(lanes, k), np.asarray(dx[full], WALK)
            for i in range(-(-max(lengths[lanes]) // BLOCK)):
                part = slice(i * BLOCK, (i + 1) * BLOCK)
                y, matrices = self._jittered(self._stacked(full, stages, part), jitter)
                begins, stops = t0[part, full], t1[part, full]
                jacobians = self._jacobians(model, begins, stops, kk, y, matrices)
                sources = self._sources(model, dweights, begins, stops, kk, dk, y)
                with jax.enable_x64(True):
                    moved, ends = self._tangent(model, begins, stops, kk, y, jacobians, sources, moved)
                for lane, item in enumerate(lanes):
                    rows = out[item][part]
                    rows[:] = np.asarray(ends)[: len(rows), lane]
        return out

    def _stacked(self, lanes: np.ndarray, stages: Sequence[np.ndarray], part: slice) -> np.ndarray:
        # Of one block, (step, lane, stage, state); behind a lane's last step its last stages, so that all is finite.
        out = np.zeros((BLOCK, len(lanes), self.kept, self.n), self.dtype)
        for lane, item in enumerate(lanes):
            if len(stages[item]):
                row = np.minimum(np.arange(part.start, part.stop), len(stages[item]) - 1)
                out[:, lane] = stages[item][row]
        return out

    def _jittered(self, stages: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        # Stages, and relative changes of their Jacobians (state, state): the same in every step, as the rounding of a
        # constant is, whose effects add up; and in every lane, so that results do not depend on its neighbours.
        return stages * (1 + jitter((self.n,), self.dtype, seed)), jitter((self.n, self.n), self.dtype, seed)

    def backward(
        self,
        model: Model,
        k: np.ndarray,
        steps: Sequence[np.ndarray],
        stages: Sequence[np.ndarray],
        injected: Sequence[np.ndarray],
        weights: int,
        jitter: int = 0,
        begin: Any = 0.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the gradient with respect to start state (item, state), k (item, parameter), weights (item, weight).

        - `steps`, `stages`: as `forward` took and returned them.
        - `injected`: of each item the loss's derivative by the state at each step's end, shape (step, state).
        - `weights`: number of weights.
        - `jitter`: 0, or the seed of changes of the size of rounding (`linalg.jitter`) in stages and Jacobians.
        - `begin`: as in `forward`.
        """
        total = len(steps)
        out_x = np.zeros((total, self.n))
        out_k = np.zeros((total, k.shape[1]))
        out_w = np.zeros((total, weights))
        lengths = np.array([len(v) for v in steps], int)
        t0, t1 = self._times(steps, begin)
        for lanes in self._batches(lengths):
            blocks = -(-max(lengths[lanes]) // BLOCK)
            full = self._filled(lanes)
            shape = (blocks * BLOCK, self.lanes)
            inject = np.zeros((*shape, self.n), WALK)
            for lane, item in enumerate(full):
                if lengths[item]:
                    inject[: lengths[item], lane] = injected[item]
            kk = jnp.asarray(self._padded(lanes, k))
            lam = np.zeros((self.lanes, self.n), WALK)
            gk = jnp.zeros((self.lanes, k.shape[1]), self.dtype)
            gw = jnp.zeros((self.lanes, weights), self.dtype)
            for i in reversed(range(blocks)):
                part = slice(i * BLOCK, (i + 1) * BLOCK)
                y, matrices = self._jittered(self._stacked(full, stages, part), jitter)
                begins, stops = t0[part, full], t1[part, full]
                jacobians = self._jacobians(model, begins, stops, kk, y, matrices)
                with jax.enable_x64(True):
                    at = (model, begins, stops, kk, y, jacobians, inject[part])
                    lam, phi, gk, gw = self._backward(*at, lam, gk, gw)
                gk, gw = self._paired(model, begins, stops, kk, y, np.asarray(phi, self.dtype), gk, gw)
            out_x[lanes] = np.asarray(lam)[: len(lanes)]
            out_k[lanes] = np.asarray(gk)[: len(lanes)]
            out_w[lanes] = np.asarray(gw)[: len(lanes)]
        return out_x, out_k, out_w


def _parts(first: np.ndarray, ends: np.ndarray, kept: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    # Of each item its rows: `first` has where they begin, and the end of the last ones.
    parts = list(pairwise(first))
    return [ends[a:b] for a, b in parts], [kept[a:b] for a, b in parts]


def by_weights(
    call: Any, model: Model, weights: np.ndarray | None, of: np.ndarray | None, t: np.ndarray, x: np.ndarray, k: Any
) -> np.ndarray:
    """Returns `call(model, t, x, k)` of items, shape (item, state), each under its weights.

    - `weights`, `of`: as in `Replayer.perturbed`.
    """
    if weights is None:
        return batched(call, model, t, x, k)
    assert of is not None
    out = np.empty_like(x)
    for m in np.unique(of):
        own = unflatten(model, jnp.asarray(weights[m], float_type()))
        out[of == m] = batched(call, own, t[of == m], x[of == m], k[of == m])
    return out


def zeros_of(weights: Model, lanes: jax.Array) -> Model:
    """Returns zeros for the gradients by the weights, of each lane; `lanes`: any array (lane, ...)."""
    return jax.tree_util.tree_map(lambda w: jnp.zeros((len(lanes), *w.shape), w.dtype), weights)


def flat_rows(gradients: Model, dtype: np.dtype) -> jax.Array:
    """Returns gradients by the weights, arrays (lane, ...), as rows (lane, weight); 0 where there are no weights."""
    if not jax.tree_util.tree_leaves(gradients):
        return jnp.zeros((), dtype)
    return jax.vmap(lambda g: flatten(g).astype(dtype))(gradients)


def _models(model: Model, weights: jax.Array) -> Model:
    # One model of stacked arrays, from weights (model, weight).
    return eqx.filter_vmap(lambda flat: unflatten(model, flat), out_axes=eqx.if_array(0))(weights)
