"""The replay of Rodas5P, and its discrete adjoint and tangent.

With the notation of `rosenbrock.py`, W = I - h gamma J and J_i = df/dx(t_i, Y_i), a cotangent lam of x_next gives, for
i from the last stage to the first,

    v_i = W^-T (b_i lam + sum_{j>i} a_ji eta_j + gamma sum_{j>i} C_ji v_j),    eta_i = h gamma J_i^T v_i,

cotangents h gamma v_i of f(t_i, Y_i), h gamma sum_i v_i u_i^T of J and gamma h^2 sum_i d_i v_i of T, and with these two
pulled back through the slopes at the start of the step, lam_prev = lam + sum_i eta_i + (dJ/dx)^T Jbar + (dT/dx)^T Tbar.
As J is part of the step, so are second derivatives of f part of its adjoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from retrograd.linalg import eliminated
from retrograd.replay import WALK, Replayer, flat_rows, zeros_of
from retrograd.rosenbrock import Rodas5PTableau, Rosenbrock, slopes, stage_points
from retrograd.runge_kutta import stage_times
from retrograd.weights import flatten, unflatten


class RosenbrockReplayer(Replayer):
    """The compiled replay of a variant whose solver is Rodas5P."""

    def make_step(self, options: Mapping[str, Any]) -> Any:
        return Rosenbrock(self._field)

    def _points(self, t0, t1, stages):
        return stage_times(Rodas5PTableau.c, t0, t1), stage_points(stages)

    def _start_slopes(self, model, t, x, k):
        # df/dx and df/dt.
        return slopes(lambda t, x: self._field(model, t, x, k), t, x)[1:]

    def _sources_block(self, model, direction, t0, t1, k, dk, stages):
        # Besides, of the slopes at the start: (step, lane, dir, state, state) and (step, lane, dir, state).
        rates = super()._sources_block(model, direction, t0, t1, k, dk, stages)
        weights = flatten(model).astype(self.dtype)

        def source(t, x, k, dw, dk):
            moved = lambda w, k: self._start_slopes(unflatten(model, w), t, x, k)
            return jax.jvp(moved, (weights, k), (dw, dk))[1]

        over_lanes = jax.vmap(source, in_axes=(0, 0, 0, None, None))
        along = lambda dw, dk: jax.lax.map(lambda at: over_lanes(at[0], at[1], k, dw, dk), (t0, stages[..., 0, :]))
        of_slopes = jax.lax.map(lambda d: along(*d), (direction, dk))
        return rates, *(jnp.moveaxis(v, 0, 2) for v in of_slopes)

    def _backward_block(self, model, t0, t1, k, stages, jacobians, injected, lam, grad_k, grad_model):
        tab, eye = Rodas5PTableau, jnp.eye(self.n, dtype=WALK)
        gamma, s = tab.gamma, tab.stages
        weights, static = eqx.partition(model, eqx.is_inexact_array)

        def lane(t0, t1, k, stages, jac, lam):
            h, u, jac = (t1 - t0).astype(WALK), stages[1:].astype(WALK), jac.astype(WALK)
            solve = eliminated((eye - h * gamma * jac[0]).T)
            v, eta = [lam] * s, [lam] * s
            for i in reversed(range(s)):
                later = range(i + 1, s)
                right = float(tab.b[i]) * lam
                right = right + sum(
                    float(tab.a[j, i]) * eta[j] + gamma * float(tab.coupling[j, i]) * v[j] for j in later
                )
                v[i] = solve(right)
                # h gamma J^T v from the equation that v solves: a product would multiply its rounding by the stiffness.
                eta[i] = v[i] - right + (h * gamma * ((jac[i] - jac[0]).T @ v[i]) if i else 0)
            # Padded steps have h = 0 and slopes that may be anything.
            all_v = jnp.where(h == 0, 0, jnp.stack(v))
            bars = (h * gamma * (all_v.T @ u), h * h * gamma * (jnp.asarray(tab.d, WALK) @ all_v))
            start = lambda weights, x, k: self._start_slopes(eqx.combine(weights, static), t0, x, k)
            pull = jax.vjp(start, weights, stages[0], k)[1]
            of_weights, of_x, of_k = pull(tuple(bar.astype(stages.dtype) for bar in bars))
            of_weights, of_k = jax.tree_util.tree_map(lambda v: jnp.where(h == 0, 0, v), (of_weights, of_k))
            before = lam + sum(eta) + of_x.astype(WALK)
            return jnp.where(h == 0, lam, before), of_k, of_weights, h * gamma * all_v

        def step(carry, inputs):
            lam, gk, gw = carry
            t0, t1, stages, jac, inject = inputs
            lam, more_k, more_w, phi = jax.vmap(lane)(t0, t1, k, stages, jac, lam + inject)
            return (lam, gk + more_k, jax.tree_util.tree_map(jnp.add, gw, more_w)), phi

        carry = (lam, grad_k, zeros_of(weights, lam))
        (lam, gk, gw), phi = jax.lax.scan(step, carry, (t0, t1, stages, jacobians, injected), reverse=True)
        return lam, phi, gk, grad_model + flat_rows(gw, self.dtype)

    def _tangent_block(self, model, t0, t1, k, stages, jacobians, sources, dx):
        tab, eye = Rodas5PTableau, jnp.eye(self.n, dtype=WALK)
        gamma = tab.gamma

        def lane(t0, t1, k, stages, jac, sources, dx):
            h, u, jac = (t1 - t0).astype(WALK), stages[1:].astype(WALK), jac.astype(WALK)
            rates, jac_source, time_source = (v.astype(WALK) for v in sources)
            solve = jax.vmap(eliminated(eye - h * gamma * jac[0]))
            along = lambda d: jax.jvp(lambda x: self._start_slopes(model, t0, x, k), (stages[0],), (d,))[1]
            djac, dtime = jax.vmap(along)(dx.astype(stages.dtype))
            djac, dtime = djac + jac_source, dtime + time_source
            du: list[Any] = []
            for i in range(tab.stages):
                moved = dx + sum(float(tab.a[i, j]) * du[j] for j in range(i))
                right = h * (moved @ jac[i].T + rates[i]) + h * h * float(tab.d[i]) * dtime + h * (djac @ u[i])
                du.append(solve(gamma * (right + sum(float(tab.coupling[i, j]) * du[j] for j in range(i)))))
            end = dx + sum(float(b) * d for b, d in zip(tab.b, du, strict=True))
            return jnp.where(h == 0, dx, end)

        def step(dx, inputs):
            t0, t1, stages, jac, sources = inputs
            end = jax.vmap(lane)(t0, t1, k, stages, jac, sources, dx)
            return end, end

        return jax.lax.scan(step, dx, (t0, t1, stages, jacobians, sources))
