"""Models as CasADi expressions: the same values as JAX's, and a clear word where there is no translation."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrograd.errors import RetrogradError

ca = pytest.importorskip("casadi", reason="the extra peers is not installed: envs/requirements-dev.txt has it")
field = importlib.import_module("retrograd.casadi_field")
NETWORK = eqx.nn.MLP(3, 2, 8, 2, jnp.tanh, key=jax.random.key(0))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: NETWORK(x),
        lambda x: jnp.stack([jnp.expm1(x[0]) * x[1], x[2] ** 3, jnp.exp(x[0] - x[2]) / x[1]]),
        lambda x: jnp.concatenate([jnp.sqrt(x), jnp.log1p(x), jnp.log(x), jnp.sin(x), jnp.cos(x), -x]),
        lambda x: jnp.where(x > 1, jnp.minimum(x, 1.5), jnp.maximum(x, 0.5)) + jnp.abs(x - 1),
        lambda x: jnp.sum(jnp.outer(x, x), axis=0) + jnp.reshape(jnp.outer(x, x), -1)[2:5],
        lambda x: jax.nn.sigmoid(x) + jax.nn.softplus(x) + x**2.5,
        lambda x: jnp.ones((2, 3)) @ x + jnp.sum(x[None] * np.eye(3)[:2], axis=1),
        lambda x: jax.nn.relu(x - 1),
    ],
)
def test_values_are_those_of_jax(function: Callable[[jax.Array], jax.Array]):
    x = np.array([0.3, 1.7, 2.2])
    symbols = ca.SX.sym("x", 3)
    found = field.translated(function, x)(field.scalars(symbols))
    value = ca.Function("f", [symbols], [ca.vertcat(*found.ravel())])(x)
    np.testing.assert_allclose(value.full().ravel(), np.ravel(function(jnp.asarray(x))), rtol=1e-13)


def test_an_operation_without_a_translation_is_named():
    symbols = ca.SX.sym("x", 3)
    with pytest.raises(RetrogradError, match="found the operation cummax in the model, wanted one of abs, add"):
        field.translated(jax.lax.cummax, np.ones(3))(field.scalars(symbols))
