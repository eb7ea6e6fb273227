"""A model's vector field as a CasADi expression, so that CVODES solves the very model that we do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import casadi as ca
import jax
import numpy as np

from retrograd.errors import RetrogradError
from retrograd.scalar_program import Operations, each, run


def _select(which: np.ndarray, *cases: np.ndarray, **_: Any) -> np.ndarray:
    return np.frompyfunc(lambda w, no, yes: ca.if_else(w, yes, no), 3, 1)(which, *cases)


_OPERATIONS: Operations = {
    "abs": each(ca.fabs),
    "cos": each(ca.cos),
    "exp": each(ca.exp),
    "expm1": each(ca.expm1),
    "log": each(ca.log),
    "log1p": each(ca.log1p),
    "logistic": each(lambda x: 1 / (1 + ca.exp(-x))),
    "max": each(ca.fmax, 2),
    "min": each(ca.fmin, 2),
    "pow": each(ca.power, 2),
    "sin": each(ca.sin),
    "sqrt": each(ca.sqrt),
    "tanh": each(ca.tanh),
    "eq": each(lambda a, b: a == b, 2),
    "ne": each(lambda a, b: a != b, 2),
    "lt": each(lambda a, b: a < b, 2),
    "gt": each(lambda a, b: a > b, 2),
    "le": each(lambda a, b: a <= b, 2),
    "ge": each(lambda a, b: a >= b, 2),
    "select_n": _select,
}


def translated(function: Callable[..., Any], *arguments: np.ndarray) -> Callable[..., np.ndarray]:
    """Returns a JAX function of arrays as one of arrays of CasADi's scalars; raises RetrogradError where it cannot.

    - `arguments`: examples, for their shapes.
    """
    program = jax.make_jaxpr(function)(*arguments)

    def translation(*values: np.ndarray) -> np.ndarray:
        try:
            return run(program, values, _OPERATIONS, {})[0]
        except RetrogradError as error:
            raise RetrogradError(
                f"CasADi: {error}: add it to casadi_field.py, or leave casadi out of benchmark.peers."
            ) from error

    return translation


def scalars(vector: Any) -> np.ndarray:
    """Returns a vector of CasADi's as an array of its scalars, shape (size,)."""
    out = np.empty(vector.numel(), object)
    for i in range(len(out)):
        out[i] = vector[i]
    return out
