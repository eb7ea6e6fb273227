"""The replay of Rodas5P, and its discrete adjoint and tangent.

With the notation of `rosenbrock.py`, W = I - h gamma J and J_i = df/dx(t_i, Y_i), a cotangent lam of x_next gives, for i
from the last stage to the first,

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
from retrograd.plugins import Field
from retrograd.replay import WALK, Replayer
from retrograd.rosenbrock import Rodas5PTableau, Rosenbrock, slopes
from retrograd.runge_kutta import stage_times
from retrograd.weights import flatten, unflatten


class RosenbrockReplayer(Replayer):
    """The compiled replay of a variant whose solver is Rodas5P."""

    def make_step(self, options: Mapping[str, Any]) -> Any:
        return Rosenbrock(self._field)

    def _points(self, t0, t1, stages):
        # Times and arguments of the stages' rates, (..., stage) and (..., stage, state).
        a = jnp.asarray(Rodas5PTableau.a, stages.dtype)
        moved = jnp.einsum("ij,...jn->...in", a, stages[..., 1:, :])
        return stage_times(Rodas5PTableau.c, t0, t1), stages[..., :1, :] + moved

    def _start_slopes(self, model, t, x, k):
        # df/dx and df/dt.
        return slopes(lambda t, x: self._field(model, t, x, k), t, x)[1:]

    def _jacobians_block(self, model, t0, t1, k, stages, jitter):
        def jacobian(t, y, k):
            return jax.jacfwd(lambda y: self._field(model, t, y, k))(y)

        over_lanes = jax.vmap(jax.vmap(jacobian, in_axes=(0, 0, None)))
        # Step by step, as in the replay of Runge-Kutta methods.
        return jax.lax.map(lambda at: over_lanes(*at, k), self._points(t0, t1, stages)) * (1 + jitter)

    def _sources_block(self, model, direction, t0, t1, k, dk, stages):
        # Derivatives in each direction of weights and parameters: of the rates, (step, lane, stage, dir, state), and of
        # the slopes at the start, (step, lane, dir, state, state) and (step, lane, dir, state).
        weights = flatten(model).astype(self.dtype)
        with_ = lambda call, t, y, k: jax.vmap(
            lambda dw, dk: jax.jvp(lambda w, k: call(unflatten(model, w), t, y, k), (weights, k), (dw, dk))[1]
        )(direction, dk)

        def lane(times, points, k):
            rates = jax.vmap(lambda t, y: with_(self._field, t, y, k))(times, points)
            return rates, *with_(self._start_slopes, times[0], points[0], k)

        over_lanes = jax.vmap(lane)
        return jax.lax.map(lambda at: over_lanes(*at, k), self._points(t0, t1, stages))

    def _backward_block(self, model, t0, t1, k, stages, jacobians, injected, lam):
        # As in `Replayer`; the cotangents are those of the rates, (step, lane, stage, state), of df/dx and of df/dt.
        tab, eye = Rodas5PTableau, jnp.eye(self.n, dtype=WALK)
        gamma, s = tab.gamma, tab.stages

        def lane(t0, t1, k, stages, jac, lam):
            h, u, jac = (t1 - t0).astype(WALK), stages[1:].astype(WALK), jac.astype(WALK)
            solve = eliminated((eye - h * gamma * jac[0]).T)
            v, eta = [lam] * s, [lam] * s
            for i in reversed(range(s)):
                later = range(i + 1, s)
                right = float(tab.b[i]) * lam
                right = right + sum(float(tab.a[j, i]) * eta[j] + gamma * float(tab.coupling[j, i]) * v[j] for j in later)
                v[i] = solve(right)
                # h gamma J^T v from the equation that v solves: a product would multiply its rounding by the stiffness.
                eta[i] = v[i] - right + (h * gamma * ((jac[i] - jac[0]).T @ v[i]) if i else 0)
            all_v = jnp.stack(v)
            bar_jac = h * gamma * (all_v.T @ u)
            bar_time = h * h * gamma * (jnp.asarray(tab.d, WALK) @ all_v)
            x = stages[0]
            pull = jax.vjp(lambda x: self._start_slopes(model, t0, x, k), x)[1]
            curved = pull((bar_jac.astype(x.dtype), bar_time.astype(x.dtype)))[0].astype(WALK)
            # Padded steps have h = 0 and slopes that may be anything.
            none = lambda bar: jnp.where(h == 0, 0, bar)
            before = jnp.where(h == 0, lam, lam + sum(eta) + curved)
            return before, (none(h * gamma * all_v), none(bar_jac), none(bar_time))

        def step(lam, inputs):
            *rest, inject = inputs
            t0, t1, stages, jac = rest
            return jax.vmap(lane)(t0, t1, k, stages, jac, lam + inject)

        return jax.lax.scan(step, lam, (t0, t1, stages, jacobians, injected), reverse=True)

    def _paired_block(self, model, t0, t1, k, stages, phi, grad_k, grad_model):
        weights, static = eqx.partition(model, eqx.is_inexact_array)
        weighed = lambda bar, value: jnp.sum(jnp.where(bar == 0, 0, value) * bar)

        def paired(weights, k, times, points, phi):
            full = eqx.combine(weights, static)
            rates = jax.vmap(lambda t, y: self._field(full, t, y, k))(times, points)
            jac, by_time = self._start_slopes(full, times[0], points[0], k)
            return weighed(phi[0], rates) + weighed(phi[1], jac) + weighed(phi[2], by_time)

        per_lane = jax.vmap(jax.grad(paired, argnums=(0, 1)), in_axes=(None, 0, 0, 0, 0))

        def add(sums, step):
            gm, gk = per_lane(weights, k, *step)
            flat = jax.vmap(lambda g, _: flatten(g).astype(self.dtype))(gm, gk)
            return (sums[0] + gk, sums[1] + flat), None

        return jax.lax.scan(add, (grad_k, grad_model), (*self._points(t0, t1, stages), phi))[0]

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


def make_replayer(field: Field, options: Mapping[str, Any], n: int) -> Replayer:
    """Returns the replay of a variant's solver; arguments as those of `Replayer`."""
    return (RosenbrockReplayer if options["solver"] == "Rodas5P" else Replayer)(field, options, n)
