"""The start of the dynamics, from parameters or from a steady state, and how a gradient passes through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import batched, float_type
from retrograd.linalg import jitter
from retrograd.plugins import member
from retrograd.steady import CONVERGED
from retrograd.weights import flatten, unflatten

Method = Callable[[Model, jax.Array, jax.Array], jax.Array]


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


def adjoint_through(
    method: Method, model: Model, x: jax.Array, k: jax.Array, lam: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a cotangent of `method(model, x, k)`, shape (state,), carried on to x, k and the weights: traceable."""
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    paired = lambda weights, x, k: jnp.dot(lam, method(eqx.combine(weights, static), x, k))
    gm, gx, gk = jax.grad(paired, argnums=(0, 1, 2))(weights, x, k)
    return gx, gk, flatten(gm).astype(k.dtype)


def tangent_through(
    method: Method, model: Model, x: jax.Array, k: jax.Array, dx: jax.Array, dk: jax.Array, dweights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `method(model, x, k)` and its derivatives, (state,) and (direction, state): traceable."""
    moved = lambda w, x, k: method(unflatten(model, w), x, k)
    at = (flatten(model).astype(k.dtype), x, k)
    return moved(*at), jax.vmap(lambda *d: jax.jvp(moved, at, d)[1])(dweights, dx, dk)


class StartOfDynamics:
    """`Model.start_of_dynamics(x, k)`; without one of the model's own, values and tangents pass as they are."""

    def __init__(self, cls: type[Model]) -> None:
        self.given = cls.start_of_dynamics is not Model.start_of_dynamics
        self.n = len(cls.states)
        self._method = member(cls, "start_of_dynamics", (self.n,))
        self._value = eqx.filter_jit(jax.vmap(self._method, in_axes=(None, 0, 0)))
        self._jvp = eqx.filter_jit(jax.vmap(self.with_tangent, in_axes=(None, 0, 0, 0, None, None)))
        self._vjp = eqx.filter_jit(jax.vmap(self._adjoint_one, in_axes=(None, 0, 0, 0)))

    def _adjoint_one(
        self, model: Model, x: jax.Array, k: jax.Array, lam: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return adjoint_through(self._method, model, x, k, lam)

    def with_tangent(
        self, model: Model, x: jax.Array, k: jax.Array, dx: jax.Array, dk: jax.Array, dweights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns one scenario's start and its derivatives, (state,) and (direction, state): traceable.

        - `x`, `dx`: the steady state and its derivatives, likewise.
        """
        if not self.given:
            return x, dx
        return tangent_through(self._method, model, x, k, dx, dk, dweights)

    def value(self, model: Model, x: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Returns the starts, shape (scenario, state); NaN where `x` is not finite.

        - `x`, `k`: shape (scenario, state) and (scenario, parameter).
        """
        if not self.given:
            return x
        # A model that sets every state anew has a start even without a steady state.
        return np.where(np.all(np.isfinite(x), axis=1, keepdims=True), batched(self._value, model, x, k), np.nan)

    def adjoint(
        self, model: Model, x: np.ndarray, k: np.ndarray, lam: np.ndarray, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns lam . ds/dx (scenario, state), lam . ds/dk (scenario, parameter) and lam . ds/dp (scenario, weight).

        - `seed`: 0, or that of changes of the size of rounding (`linalg.jitter`).
        """
        return batched(self._vjp, model, x * (1 + jitter((self.n,), float_type(), seed)), k, lam)

    def tangent(
        self,
        model: Model,
        x: np.ndarray,
        k: np.ndarray,
        dx: np.ndarray,
        dk: np.ndarray,
        dweights: np.ndarray,
        seed: int = 0,
    ) -> np.ndarray:
        """Returns the derivatives of the starts, shape (scenario, direction, state).

        - `dx`: those of the steady states, likewise.
        - `dk`, `dweights`: shape (direction, parameter) and (direction, weight).
        - `seed`: as in `adjoint`.
        """
        if not self.given:
            return dx
        directions = jnp.asarray(dk, float_type()), jnp.asarray(dweights, float_type())
        tangent: Any = self._jvp
        call = lambda model, *rows: tangent(model, *rows, *directions)[1]
        return batched(call, model, x * (1 + jitter((self.n,), float_type(), seed)), k, dx)


def starts_of(
    cls: type[Model],
    model: Model,
    k: np.ndarray,
    x0: np.ndarray,
    at_rest: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Returns the starts of the dynamics, shape (scenario, state); NaN where no steady state was found to start from.

    - `k`, `x0`: as in `InitialState.value`.
    - `at_rest`: status (scenario,) and x (scenario, state) of the steady states, None with `start: initial_state`.
    """
    if at_rest is None:
        return InitialState(cls).value(model, k, x0)
    status, x = at_rest
    return StartOfDynamics(cls).value(model, np.where((status == CONVERGED)[:, None], x, np.nan), k)
