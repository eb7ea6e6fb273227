"""The turnover system with a formula in place of the network: a test bed whose stiffness is a grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from retrograd.api import Model


class StiffGrid(Model):
    """Turnover of a regulator and its target in log-concentrations, with f = p2 - x1.

        dx0/dt = exp(k1) * (exp(p2 - x1 - x0 - k2) - 1)
        dx1/dt = exp(k3) * (exp(k4 - x1) - 1)

    All states and parameters are natural logarithms, hence of unit 1; time is in seconds.

    - `x0`, `x1`: levels of target and regulator.
    - `k1`, `k3`: their turnover rates, in 1/s.
    - `k2`: the factor by which the target's production is cut.
    - `k4`: the level at which the regulator settles.
    - `p2`: the target's level where the regulator's is 1; in place of the weights, hence its name.

    x1 has a closed form, `exact_regulator`. Given it, x0 is a quadrature and not elementary, so `exact`
    stays undefined.
    """

    states = {"x0": "1", "x1": "1"}
    parameters = {"p2": "1", "k1": "1", "k2": "1", "k3": "1", "k4": "1"}
    time_unit = "s"
    formulations = {"naive": "naive_field", "stable": "vector_field"}

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns dx/dt in 1/s, shape (2,), accurate near the steady state too.

        - `t`: time in s, scalar; the model is autonomous.
        - `x`: state, shape (2,).
        - `k`: p2 and k1 to k4, scalars.
        """
        del t
        target = jnp.exp(k["k1"]) * jnp.expm1(k["p2"] - x[1] - x[0] - k["k2"])
        regulator = jnp.exp(k["k3"]) * jnp.expm1(k["k4"] - x[1])
        return jnp.stack([target, regulator])

    def naive_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the same as `vector_field`, written as on paper: it cancels near the steady state.

        - `t`: time in s, scalar; the model is autonomous.
        - `x`: state, shape (2,).
        - `k`: p2 and k1 to k4, scalars.
        """
        del t
        target = jnp.exp(k["k1"]) * (jnp.exp(k["p2"] - x[1] - x[0] - k["k2"]) - 1.0)
        regulator = jnp.exp(k["k3"]) * (jnp.exp(k["k4"] - x[1]) - 1.0)
        return jnp.stack([target, regulator])

    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the start of the grid's runs, shape (2,), the same for every scenario.

        - `k`: unused.
        """
        del k
        return jnp.array([-1.72336394, -10.41214394])

    def initial_guess(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the steady state, which has a formula here, shape (2,).

        - `k`: p2 and k1 to k4, scalars.
        """
        return jnp.stack([k["p2"] - k["k4"] - k["k2"], k["k4"]])

    def residual_scale(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the time constants in s, shape (2,): the scaled residual is free of rates up to e^20.

        - `k`: p2 and k1 to k4, scalars.
        """
        return jnp.exp(-jnp.stack([k["k1"], k["k3"]]))

    def exact_regulator(self, t: jax.Array, x1_start: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns x1 at time t, scalar, from its closed form.

        For w = exp(x1 - k4), dw/dt = exp(k3) * (1 - w), so with d = x1_start - k4 and s = exp(k3) * t

            w = 1 + (exp(d) - 1) * exp(-s) = (1 - exp(-s)) + exp(d - s)

        - `t`: time in s since the start, scalar, not negative.
        - `x1_start`: x1 at time 0, scalar.
        - `k`: p2 and k1 to k4, scalars.
        """
        d, s = x1_start - k["k4"], jnp.exp(k["k3"]) * t
        # Around w = 1 the logarithm of the first form keeps the small distance from k4; where w is far
        # from 1 it cancels (d << 0) or overflows (d >> 0), and the sum of two positive terms does neither.
        small = jnp.where(d < 1.0, jnp.expm1(jnp.minimum(d, 1.0)) * jnp.exp(-s), jnp.exp(d - s) - jnp.exp(-s))
        close = jnp.abs(small) < 0.5
        near = jnp.log1p(jnp.where(close, small, 0.0))
        far = jnp.logaddexp(jnp.log(-jnp.expm1(-s)), d - s)
        return k["k4"] + jnp.where(close, near, far)
