"""The start of the dynamics with `start: initial_state`, and how a gradient passes through it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import batched, float_type
from retrograd.plugins import member
from retrograd.weights import flatten, unflatten


class InitialState:
    """`Model.initial_state(k)`, with the states that the scenario table gives in its place."""

    def __init__(self, cls: type[Model]) -> None:
        self._method = member(cls, "initial_state", (len(cls.states),))
        self._value = eqx.filter_jit(jax.vmap(self._one, in_axes=(None, 0, 0)))
        self._jvp = eqx.filter_jit(jax.vmap(self._tangent_one, in_axes=(None, 0, 0, None, None)))
        self._vjp = eqx.filter_jit(jax.vmap(self._adjoint_one, in_axes=(None, 0, 0, 0)))

    def _one(self, model: Model, k: jax.Array, x0: jax.Array) -> jax.Array:
        return jnp.where(jnp.isnan(x0), self._method(model, k), x0)

    def _adjoint_one(self, model: Model, k: jax.Array, x0: jax.Array, lam: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights, static = eqx.partition(model, eqx.is_inexact_array)

        def paired(weights: Any, k: jax.Array) -> jax.Array:
            return jnp.dot(lam, self._one(eqx.combine(weights, static), k, x0))

        gm, gk = jax.grad(paired, argnums=(0, 1))(weights, k)
        return gk, flatten(gm).astype(k.dtype)

    def _tangent_one(self, model: Model, k: jax.Array, x0: jax.Array, dweights: jax.Array, dk: jax.Array) -> jax.Array:
        moved = lambda w, k: self._one(unflatten(model, w), k, x0)
        weights = flatten(model).astype(k.dtype)
        return jax.vmap(lambda dw, dk: jax.jvp(moved, (weights, k), (dw, dk))[1])(dweights, dk)

    def with_tangent(
        self, model: Model, k: jax.Array, x0: jax.Array, dk: np.ndarray, dweights: np.ndarray
    ) -> tuple[jax.Array, jax.Array]:
        """Returns one scenario's start and its derivatives, (state,) and (direction, state): traceable."""
        return self._one(model, k, x0), self._tangent_one(model, k, x0, jnp.asarray(dweights), jnp.asarray(dk))

    def value(self, model: Model, k: np.ndarray, x0: np.ndarray) -> np.ndarray:
        """Returns the starts, shape (scenario, state).

        - `k`: shape (scenario, parameter).
        - `x0`: shape (scenario, state), NaN where the table gives none.
        """
        return batched(self._value, model, k, x0)

    def adjoint(self, model: Model, k: np.ndarray, x0: np.ndarray, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns lam . dx/dk (scenario, parameter) and lam . dx/dp (scenario, weight)."""
        return batched(self._vjp, model, k, x0, lam)

    def tangent(self, model: Model, k: np.ndarray, x0: np.ndarray, dk: np.ndarray, dweights: np.ndarray) -> np.ndarray:
        """Returns the derivatives of the starts in directions of k and the weights, (scenario, direction, state).

        - `dk`, `dweights`: shape (direction, parameter) and (direction, weight).
        """
        directions = jnp.asarray(dweights, float_type()), jnp.asarray(dk, float_type())
        tangent: Any = self._jvp
        call = lambda model, *rows: tangent(model, *rows, *directions)
        return batched(call, model, k, x0)


def initial_states(cls: type[Model], model: Model, k: np.ndarray, x0: np.ndarray) -> np.ndarray:
    """Returns the starts of the dynamics, shape (scenario, state)."""
    return InitialState(cls).value(model, k, x0)
