"""Robertson's kinetics: a stiff test problem with a conserved quantity and no network."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from retrograd.api import Model


class Robertson(Model):
    """Autocatalysis with three rates, nine orders of magnitude apart (Robertson 1966).

        da/dt = -k1 a + k3 b c
        db/dt =  k1 a - k3 b c - k2 b^2
        dc/dt =  k2 b^2

    Textbook values: k1 = 0.04, k2 = 3e7, k3 = 1e4 (Hairer and Wanner, Solving Ordinary Differential
    Equations II, section IV.1, where they stand in the equations without names).

    - `a`, `b`, `c`: amounts of the three species as fractions of the whole, so that a + b + c stays 1.
    - `k1`: the slow first-order rate of a, in 1/s.
    - `k2`: the fast second-order rate of b with itself, in 1/s since fractions have no unit.
    - `k3`: the second-order rate of b with c, in 1/s.
    """

    states = {"a": "1", "b": "1", "c": "1"}
    parameters = {"k1": "s-1", "k2": "s-1", "k3": "s-1"}
    time_unit = "s"
    # Mass action has no better form; both names make every built-in variant applicable.
    formulations = {"naive": "vector_field", "stable": "vector_field"}

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns dx/dt in 1/s, shape (3,).

        - `t`: time in s, scalar; the model is autonomous.
        - `x`: state, shape (3,), in the order a, b, c.
        - `k`: k1 to k3, scalars.
        """
        del t
        a, b, c = x
        first, second, third = k["k1"] * a, k["k2"] * b**2, k["k3"] * b * c
        return jnp.stack([third - first, first - third - second, second])

    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns pure a, shape (3,).

        - `k`: unused.
        """
        del k
        return jnp.array([1.0, 0.0, 0.0])

    def initial_guess(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns pure c, shape (3,): the steady state, where a and b are used up.

        It is a double root in b, to which Newton's method converges slowly and where the Jacobian is
        singular: studies of this model use `start: initial_state`.

        - `k`: unused.
        """
        del k
        return jnp.array([0.0, 0.0, 1.0])

    def invariants(self, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the sum of the fractions, shape (1,).

        - `x`: state, shape (3,). `k`: unused.
        """
        del k
        return jnp.sum(x, keepdims=True)

    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the sum of squares of a, 1e4 b and c over the save times.

        b peaks near 3.6e-5 under the textbook values; unscaled, the loss would not see it.

        - `times`: save times in s, shape (time,). `k`: unused.
        - `x`: states there, shape (time, 3).
        """
        del times, k
        return jnp.sum((x * jnp.array([1.0, 1.0e4, 1.0])) ** 2)
