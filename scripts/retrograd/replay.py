"""Re-integration on recorded steps, and its discrete adjoint.

On a frozen sequence of steps a Runge-Kutta method is a smooth map of start state, parameters and weights: nothing is
adapted and nothing is rejected. With stages Y_i and rates f_i = f(t_i, Y_i),

    Y_i = x + h sum_j a_ij f_j,        x_next = x + h sum_i b_i f_i,

the adjoint (Hager 2000, doi:10.1007/s002110000178; here with the implicit diagonal a_ii) of a cotangent lam of
x_next is, for i from the last stage to the first,

    phi_i = h b_i lam + h sum_{j>=i} a_ji eta_j,    eta_i = (df/dx_i)^T phi_i,    lam_prev = lam + sum_i eta_i,

and a parameter's gradient is sum_i phi_i . df/dp(t_i, Y_i). The stages are solved to rounding, whatever inner iteration
the recorded run used: the map that is differentiated is the Runge-Kutta method itself.

The sequential part of the adjoint is n x n algebra on Jacobians; those and the parameters' gradients are formed for a
block of steps at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import LANES, float_type
from retrograd.linalg import solve
from retrograd.plugins import Field
from retrograd.weights import flatten

BLOCK = 32
# Most lanes of a walk over many items. Results of a lane do not depend on it (see batches.py).
WIDE = 256
# Newton on a stage; from the recorded stages it takes 1 to 3 iterations, from a predictor rarely more than 10.
NEWTON_STEPS = 30
SIMPLIFIED_STEPS = 40
# Above this size the inverse matrices of all steps are not kept, and neighbours are solved by full Newton.
LINEARISED_BYTES = 1 << 28


class Tableau:
    """The coefficients of a diffrax Runge-Kutta solver as full arrays."""

    def __init__(self, solver_name: str) -> None:
        t = getattr(diffrax, solver_name).tableau
        s = t.num_stages
        self.stages = s
        self.a = np.zeros((s, s))
        for i, row in enumerate(t.a_lower):
            self.a[i + 1, : i + 1] = row
        self.predictor = np.zeros((s, s))
        if t.implicit:
            self.a[np.arange(s), np.arange(s)] = t.a_diagonal
            for i, row in enumerate(t.a_predictor):
                self.predictor[i + 1, : i + 1] = row
        self.b = np.asarray(t.b_sol, float)
        self.c = np.concatenate([[0.0 if t.c1 is None else t.c1], t.c])
        self.implicit = bool(t.implicit)
        self.stiffly_accurate = bool(np.array_equal(self.b, self.a[-1]))


@dataclass
class Linearised:
    """Replayed scenarios, as the start of the replays next to them; steps are padded to the longest, with length 0."""

    lengths: np.ndarray  # (scenario,)
    t0: np.ndarray  # (step, scenario)
    t1: np.ndarray
    stages: np.ndarray  # (step, scenario, stage, state)
    inverses: np.ndarray | None  # (step, scenario, stage, state, state), of I - h a_ii df/dx there


class Replayer:
    """The compiled replay of one variant: forward over recorded steps, and backward."""

    def __init__(self, field: Field, options: Mapping[str, Any], n: int) -> None:
        """- `field`: f(model, t, x, k).
        - `options`: the variant's solver and controller.
        - `n`: number of states.
        """
        self.n = n
        self.dtype = float_type()
        self.tableau = Tableau(options["solver"])
        self._field = field
        self._floor = float(options["controller"]["atol"])
        self._forward = eqx.filter_jit(self._forward_block)
        self._backward = eqx.filter_jit(self._backward_block)
        self._inverse = eqx.filter_jit(self._inverse_block)

    # -- compiled blocks ------------------------------------------------------------------------------

    def _stage_times(self, t0: jax.Array, t1: jax.Array) -> jax.Array:
        c = jnp.asarray(self.tableau.c, self.dtype)
        # The end itself, not t0 + (t1 - t0), which may differ from it by an ulp.
        return jnp.where(c == 1, t1[..., None], t0[..., None] + c * (t1 - t0)[..., None])

    def _newton(self, model: Model, t: jax.Array, base: jax.Array, ha: jax.Array, k: jax.Array, guess: jax.Array):
        # All of shape (lane, ...); solves Y = base + ha f(t, Y) to rounding.
        eps = jnp.finfo(self.dtype).eps
        eye = jnp.eye(self.n, dtype=self.dtype)

        def rate_and_jacobian(t, y, k):
            f = lambda y: (self._field(model, t, y, k),) * 2
            jacobian, rate = jax.jacfwd(f, has_aux=True)(y)
            return rate, jacobian

        def body(carry):
            i, y, last, going = carry
            rate, jacobian = jax.vmap(rate_and_jacobian)(t, y, k)
            residual = y - base - ha[:, None] * rate
            step = solve(eye - ha[:, None, None] * jacobian, residual)
            size = jnp.max(jnp.abs(step) / (jnp.abs(y) + self._floor), axis=-1)
            y = jnp.where(going[:, None], y - step, y)
            # The next correction would be of the order of this one's square. Or at the floor that rounding sets:
            # corrections that are small and no longer shrink.
            floor = (last < 1e3 * jnp.sqrt(eps)) & (size > 0.25 * last)
            going = going & (size > 0.1 * jnp.sqrt(eps)) & ~floor & jnp.isfinite(size)
            return i + 1, y, size, going

        def unfinished(carry):
            i, _, _, going = carry
            return (i < NEWTON_STEPS) & jnp.any(going)

        # A stage without implicit part is its base; its lanes take no part.
        start = jnp.where(ha[:, None] == 0, base, guess)
        carry = (0, start, jnp.full(ha.shape, jnp.inf, self.dtype), ha != 0)
        _, y, _, going = jax.lax.while_loop(unfinished, body, carry)
        return jnp.where(going[:, None], jnp.nan, y)

    def _simplified_newton(self, model, t, base, ha, k, guess, inverse):
        # As `_newton`, with the inverse matrices of a solution next to this one: a third of the cost an iteration,
        # and convergence at a rate proportional to the distance.
        eps = jnp.finfo(self.dtype).eps

        def body(carry):
            i, y, last, going = carry
            rate = jax.vmap(lambda t, y, k: self._field(model, t, y, k))(t, y, k)
            step = jnp.einsum("lij,lj->li", inverse, y - base - ha[:, None] * rate)
            size = jnp.max(jnp.abs(step) / (jnp.abs(y) + self._floor), axis=-1)
            y = jnp.where(going[:, None], y - step, y)
            ratio = size / last
            # What is left after this correction, from the rate; or the floor that rounding sets.
            left = size * ratio / jnp.maximum(1 - ratio, 0.1)
            done = (jnp.isfinite(last) & (left < 0.5 * eps)) | (size < 2 * eps) | ((last < 1e3 * eps) & (ratio > 0.25))
            return i + 1, y, size, going & ~done & jnp.isfinite(size)

        def unfinished(carry):
            i, _, _, going = carry
            return (i < SIMPLIFIED_STEPS) & jnp.any(going)

        start = jnp.where(ha[:, None] == 0, base, guess)
        carry = (0, start, jnp.full(ha.shape, jnp.inf, self.dtype), ha != 0)
        _, y, _, going = jax.lax.while_loop(unfinished, body, carry)
        return jnp.where(going[:, None], jnp.nan, y)

    def _inverse_block(self, model, t0, t1, k, stages):
        # (step, lane, stage, state, state)
        diagonal = jnp.asarray(np.diag(self.tableau.a), self.dtype)
        eye = jnp.eye(self.n, dtype=self.dtype)

        def one(t, y, ha, k):
            jac = jax.jacfwd(lambda y: self._field(model, t, y, k))(y)
            return jax.vmap(lambda column: solve(eye - ha * jac, column), out_axes=1)(eye)

        ha = (t1 - t0)[..., None] * diagonal
        over_stages = jax.vmap(one, in_axes=(0, 0, 0, None))
        over_lanes = jax.vmap(over_stages)
        return jax.vmap(over_lanes, in_axes=(0, 0, 0, None))(self._stage_times(t0, t1), stages, ha, k)

    def _forward_block(self, model, t0, t1, x, k, guess, inverses=None):
        # t0, t1: (step, lane); x: (lane, state); guess: (step, lane, stage, state), NaN where there is none;
        # inverses: (step, lane, stage, state, state) or None.
        tab, dtype = self.tableau, self.dtype
        a, b = jnp.asarray(tab.a, dtype), jnp.asarray(tab.b, dtype)
        predictor = jnp.asarray(tab.predictor, dtype)

        def step(x, inputs):
            t0, t1, guess, inverse = inputs
            h = t1 - t0
            times = self._stage_times(t0, t1)

            def stage(carry, i):
                rates, stages = carry
                base = x + h[:, None] * jnp.einsum("j,jln->ln", a[i], rates)
                ha = h * a[i, i]
                if tab.implicit and inverse is not None:
                    y = self._simplified_newton(model, times[:, i], base, ha, k, guess[:, i], inverse[:, i])
                elif tab.implicit:
                    predicted = base + ha[:, None] * jnp.einsum("j,jln->ln", predictor[i], rates)
                    start = jnp.where(jnp.isfinite(guess[:, i]), guess[:, i], predicted)
                    y = self._newton(model, times[:, i], base, ha, k, start)
                else:
                    y = base
                explicit = jax.vmap(lambda t, y, k: self._field(model, t, y, k))(times[:, i], y, k)
                if tab.implicit:
                    # From the stage's own equation: evaluating f would multiply the rounding of y by the stiffness.
                    implicit = (y - base) / jnp.where(ha == 0, 1, ha)[:, None]
                    rate = jnp.where(ha[:, None] == 0, explicit, implicit)
                else:
                    rate = explicit
                return (rates.at[i].set(rate), stages.at[i].set(y)), None

            zeros = jnp.zeros((tab.stages, *x.shape), dtype)
            (rates, stages), _ = jax.lax.scan(stage, (zeros, zeros), jnp.arange(tab.stages))
            end = stages[-1] if tab.stiffly_accurate else x + h[:, None] * jnp.einsum("j,jln->ln", b, rates)
            end = jnp.where((h == 0)[:, None], x, end)
            return end, (end, jnp.swapaxes(stages, 0, 1))

        x, (ends, stages) = jax.lax.scan(step, x, (t0, t1, guess, inverses))
        return x, ends, stages

    def _backward_block(self, model, t0, t1, k, stages, injected, lam, grad_k, grad_model):
        # injected: (step, lane, state), the loss's cotangent of each step's end; lam: (lane, state).
        tab, dtype = self.tableau, self.dtype
        a, b = jnp.asarray(tab.a, dtype), jnp.asarray(tab.b, dtype)
        eye = jnp.eye(self.n, dtype=dtype)
        h = t1 - t0
        times = self._stage_times(t0, t1)

        def jacobian(t, y, k):
            return jax.jacfwd(lambda y: self._field(model, t, y, k))(y)

        over_stages = jax.vmap(jacobian, in_axes=(0, 0, None))
        jacobians = jax.vmap(jax.vmap(over_stages))(times, stages, jnp.broadcast_to(k, (BLOCK, *k.shape)))

        def step(lam, inputs):
            h, jac, inject = inputs
            lam = lam + inject

            def stage(eta, i):
                phi = h[:, None] * (b[i] * lam + jnp.einsum("j,jln->ln", a[:, i], eta))
                jac_t = jnp.swapaxes(jac[:, i], -1, -2)
                if tab.implicit:
                    ha = h * a[i, i]
                    phi = jnp.where((ha == 0)[:, None], phi, solve(eye - ha[:, None, None] * jac_t, phi))
                # Padded steps have h = 0 and a Jacobian that may be anything.
                phi = jnp.where((h == 0)[:, None], 0, phi)
                eta_i = jnp.where((h == 0)[:, None], 0, jnp.einsum("lij,lj->li", jac_t, phi))
                return eta.at[i].set(eta_i), phi

            zeros = jnp.zeros((tab.stages, *lam.shape), dtype)
            eta, phi = jax.lax.scan(stage, zeros, jnp.arange(tab.stages), reverse=True)
            return lam + jnp.sum(eta, axis=0), jnp.swapaxes(phi, 0, 1)

        lam, phi = jax.lax.scan(step, lam, (h, jacobians, injected), reverse=True)
        weights, static = eqx.partition(model, eqx.is_inexact_array)

        def paired(weights, k, times, stages, phi):
            full = eqx.combine(weights, static)
            rate = jax.vmap(jax.vmap(lambda t, y: self._field(full, t, y, k)))(times, stages)
            return jnp.sum(jnp.where(phi == 0, 0, rate) * phi)

        per_lane = jax.vmap(jax.grad(paired, argnums=(0, 1)), in_axes=(None, 0, 1, 1, 1))
        gm, gk = per_lane(weights, k, times, stages, phi)
        flat = jax.vmap(lambda g, _: flatten(g).astype(dtype))(gm, gk)
        return lam, grad_k + gk, grad_model + flat

    # -- host side ------------------------------------------------------------------------------------

    def _times(self, steps: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        # (step, scenario); the steps behind a scenario's last one have length 0 and change nothing.
        blocks = -(-max(map(len, steps), default=0) // BLOCK)
        t0 = np.zeros((blocks * BLOCK, len(steps)), self.dtype)
        t1 = np.zeros_like(t0)
        for i, ends in enumerate(steps):
            t1[: len(ends), i] = ends
            t1[len(ends) :, i] = ends[-1] if len(ends) else 0
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
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns states and stages of items on the steps of their scenarios.

        A lane whose item has come to its end takes up the next one at the next block, the longest first.
        """
        s = self.tableau.stages
        lengths = near.lengths[owner]
        ends = [np.zeros((n, self.n)) for n in lengths]
        kept = [np.zeros((n if keep_stages else 0, s, self.n)) for n in lengths]
        waiting = [i for i in np.argsort(lengths, kind="stable") if lengths[i]]
        if not waiting:
            return ends, kept
        # The operations of one block are short, so what counts is their number: as many lanes as keep all of them busy
        # until the longest item is done.
        width = LANES
        while width < WIDE and lengths.sum() > width * lengths.max():
            width *= 2
        item = np.full(width, -1)
        offset = np.zeros(width, np.int64)
        x = np.zeros((width, self.n), self.dtype)
        while True:
            for lane in np.flatnonzero(item < 0):
                if waiting:
                    item[lane], offset[lane] = waiting.pop(), 0
                    x[lane] = x_start[item[lane]]
            busy = np.flatnonzero(item >= 0)
            if not len(busy):
                return ends, kept
            # An idle lane repeats a busy one: its values are finite and its results are dropped.
            like = np.where(item >= 0, np.arange(width), busy[0])
            row = offset[like] + np.arange(BLOCK)[:, None]
            column = np.broadcast_to(owner[item[like]], row.shape)
            x, block_x, block_y = self._forward(
                model,
                near.t0[row, column],
                near.t1[row, column],
                x[like],
                np.asarray(k[item[like]], self.dtype),
                near.stages[row, column],
                None if inverses is None else inverses[row, column],
            )
            x, block_x = np.array(x), np.asarray(block_x)
            block_y = np.asarray(block_y) if keep_stages else None
            for lane in busy:
                i, done = item[lane], offset[lane]
                count = min(BLOCK, lengths[i] - done)
                ends[i][done : done + count] = block_x[:count, lane]
                if block_y is not None:
                    kept[i][done : done + count] = block_y[:count, lane]
                offset[lane] += BLOCK
                if offset[lane] >= lengths[i]:
                    item[lane] = -1

    def forward(
        self, model: Model, x_start: np.ndarray, k: np.ndarray, steps: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns the state at the end of each step, and the stages, of each scenario.

        - `x_start`: shape (scenario, state).
        - `k`: shape (scenario, parameter).
        - `steps`: of each scenario the ends of its steps, shape (step,); the first begins at 0.

        Results: lists of arrays (step, state) and (step, stage, state).
        """
        t0, t1 = self._times(steps)
        unknown = np.broadcast_to(np.asarray(np.nan, self.dtype), (*t0.shape, self.tableau.stages, self.n))
        near = Linearised(np.array([len(v) for v in steps], int), t0, t1, unknown, None)
        return self._walk(model, x_start, k, np.arange(len(steps)), near, None, True)

    def linearise(
        self, model: Model, k: np.ndarray, steps: Sequence[np.ndarray], stages: Sequence[np.ndarray]
    ) -> Linearised:
        """Returns what `perturbed` starts from; arguments as `backward` takes them."""
        lengths = np.array([len(v) for v in steps], int)
        t0, t1 = self._times(steps)
        y = np.zeros((*t0.shape, self.tableau.stages, self.n), self.dtype)
        for i, rows in enumerate(stages):
            y[: lengths[i], i] = rows
        out = Linearised(lengths, t0, t1, y, None)
        if not self.tableau.implicit or y.nbytes * self.n > LINEARISED_BYTES:
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
        self, model: Model, x_start: np.ndarray, k: np.ndarray, owner: np.ndarray, near: Linearised
    ) -> list[np.ndarray]:
        """Returns the states at the ends of the steps, as `forward`, of items next to scenarios that were replayed.

        - `x_start`, `k`: shape (item, state) and (item, parameter).
        - `owner`: the scenario that each item stands next to, shape (item,).

        Items that a simplified Newton iteration from there does not solve are solved by full Newton.
        """
        ends, _ = self._walk(model, x_start, k, owner, near, near.inverses, False)
        if near.inverses is not None:
            lost = np.flatnonzero([not np.all(np.isfinite(e)) for e in ends])
            if len(lost):
                again, _ = self._walk(model, x_start[lost], k[lost], owner[lost], near, None, False)
                for i, e in zip(lost, again, strict=True):
                    ends[i] = e
        return ends

    def _batches(self, lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        # Like with like: a batch takes as many steps as its longest lane.
        order = np.argsort(lengths, kind="stable")
        return [order[i : i + LANES] for i in range(0, len(order), LANES)]

    def _filled(self, lanes: np.ndarray) -> np.ndarray:
        return np.concatenate([lanes, np.repeat(lanes[:1], LANES - len(lanes))])

    def _padded(self, lanes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows[self._filled(lanes)], self.dtype)

    def backward(
        self,
        model: Model,
        k: np.ndarray,
        steps: Sequence[np.ndarray],
        stages: Sequence[np.ndarray],
        injected: Sequence[np.ndarray],
        weights: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the gradient with respect to start state (item, state), k (item, parameter), weights (item, weight).

        - `steps`, `stages`: as `forward` took and returned them.
        - `injected`: of each item the loss's derivative by the state at each step's end, shape (step, state).
        - `weights`: number of weights.
        """
        total = len(steps)
        out_x = np.zeros((total, self.n))
        out_k = np.zeros((total, k.shape[1]))
        out_w = np.zeros((total, weights))
        lengths = np.array([len(v) for v in steps], int)
        t0, t1 = self._times(steps)
        for lanes in self._batches(lengths):
            blocks = -(-max(lengths[lanes]) // BLOCK)
            full = self._filled(lanes)
            shape = (blocks * BLOCK, LANES)
            y = np.zeros((*shape, self.tableau.stages, self.n), self.dtype)
            inject = np.zeros((*shape, self.n), self.dtype)
            for lane, item in enumerate(full):
                if lengths[item]:
                    y[: lengths[item], lane] = stages[item]
                    y[lengths[item] :, lane] = stages[item][-1]
                    inject[: lengths[item], lane] = injected[item]
            kk = jnp.asarray(self._padded(lanes, k))
            lam = jnp.zeros((LANES, self.n), self.dtype)
            gk = jnp.zeros((LANES, k.shape[1]), self.dtype)
            gw = jnp.zeros((LANES, weights), self.dtype)
            for i in reversed(range(blocks)):
                part = slice(i * BLOCK, (i + 1) * BLOCK)
                lam, gk, gw = self._backward(
                    model, t0[part, full], t1[part, full], kk, y[part], inject[part], lam, gk, gw
                )
            out_x[lanes] = np.asarray(lam)[: len(lanes)]
            out_k[lanes] = np.asarray(gk)[: len(lanes)]
            out_w[lanes] = np.asarray(gw)[: len(lanes)]
        return out_x, out_k, out_w
