"""A model's vector field as a CasADi expression, so that CVODES solves the very model that we do.

JAX's program of the field is read operation by operation. Arrays become NumPy arrays of scalar expressions, whose
shapes NumPy moves about itself; only elementwise functions are CasADi's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import casadi as ca
import jax
import numpy as np
from jax.extend import core

from retrograd.errors import RetrogradError


def _each(function: Callable[..., Any], arguments: int = 1) -> Callable[..., Any]:
    return lambda *values, **_: np.frompyfunc(function, arguments, 1)(*values)


def _dot(a: np.ndarray, b: np.ndarray, *, dimension_numbers: Any, **_: Any) -> np.ndarray:
    (left, right), batch = dimension_numbers
    if batch != ((), ()):
        raise RetrogradError("CasADi: found a batched product in the vector field, wanted one of two plain arrays.")
    return np.tensordot(a, b, axes=(left, right))


def _power(x: np.ndarray, *, y: int, **_: Any) -> np.ndarray:
    return x**y


def _broadcast(x: np.ndarray, *, shape: tuple[int, ...], broadcast_dimensions: Sequence[int], **_: Any) -> np.ndarray:
    full = [1] * len(shape)
    for i, d in enumerate(broadcast_dimensions):
        full[d] = np.shape(x)[i]
    return np.broadcast_to(np.reshape(x, full), shape)


def _slice(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> np.ndarray:
    steps = strides or [1] * len(start_indices)
    return x[tuple(slice(*at) for at in zip(start_indices, limit_indices, steps, strict=True))]


def _select(which: np.ndarray, *cases: np.ndarray, **_: Any) -> np.ndarray:
    return np.frompyfunc(lambda w, no, yes: ca.if_else(w, yes, no), 3, 1)(which, *cases)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b, **_: a + b,
    "add_any": lambda a, b, **_: a + b,
    "sub": lambda a, b, **_: a - b,
    "mul": lambda a, b, **_: a * b,
    "div": lambda a, b, **_: a / b,
    "neg": lambda a, **_: -a,
    "abs": _each(ca.fabs),
    "cos": _each(ca.cos),
    "exp": _each(ca.exp),
    "expm1": _each(ca.expm1),
    "log": _each(ca.log),
    "log1p": _each(ca.log1p),
    "logistic": _each(lambda x: 1 / (1 + ca.exp(-x))),
    "max": _each(ca.fmax, 2),
    "min": _each(ca.fmin, 2),
    "pow": _each(ca.power, 2),
    "integer_pow": _power,
    "sin": _each(ca.sin),
    "sqrt": _each(ca.sqrt),
    "square": lambda a, **_: a * a,
    "tanh": _each(ca.tanh),
    "eq": _each(lambda a, b: a == b, 2),
    "ne": _each(lambda a, b: a != b, 2),
    "lt": _each(lambda a, b: a < b, 2),
    "gt": _each(lambda a, b: a > b, 2),
    "le": _each(lambda a, b: a <= b, 2),
    "ge": _each(lambda a, b: a >= b, 2),
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda *parts, dimension, **_: np.concatenate(parts, axis=dimension),
    "convert_element_type": lambda x, **_: x,
    "copy": lambda x, **_: x,
    "dot_general": _dot,
    "reduce_sum": lambda x, *, axes, **_: np.sum(x, axis=tuple(axes)),
    "reshape": lambda x, *, new_sizes, **_: np.reshape(x, new_sizes),
    "slice": _slice,
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, axis=tuple(dimensions)),
    "stack": lambda *parts, axis=0, **_: np.stack(parts, axis=axis),
    "stop_gradient": lambda x, **_: x,
    "transpose": lambda x, *, permutation, **_: np.transpose(x, permutation),
}


def translated(function: Callable[..., Any], *arguments: np.ndarray) -> Callable[..., np.ndarray]:
    """Returns a JAX function of arrays as one of arrays of CasADi's scalars; raises RetrogradError where it cannot.

    - `arguments`: examples, for their shapes.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return lambda *values: _run(closed.jaxpr, closed.consts, values)[0]


def _run(program: core.Jaxpr, constants: Sequence[Any], values: Sequence[Any]) -> list[np.ndarray]:
    known: dict[Any, np.ndarray] = {}

    def read(v: Any) -> np.ndarray:
        return _array(v.val) if isinstance(v, core.Literal) else known[v]

    for variables, given in ((program.constvars, constants), (program.invars, values)):
        known |= dict(zip(variables, map(_array, given), strict=True))
    for equation in program.eqns:
        inputs = [read(v) for v in equation.invars]
        name, parameters = equation.primitive.name, equation.params
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr", parameters.get("fun_jaxpr")))
        if name in OPERATIONS:
            outputs = [OPERATIONS[name](*inputs, **parameters)]
        elif inner is not None and name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"):
            outputs = _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        else:
            raise RetrogradError(
                f"CasADi: found the operation {name} in the model, wanted one of {', '.join(sorted(OPERATIONS))}: add "
                "it to casadi_field.py, or leave casadi out of benchmark.peers."
            )
        known |= dict(zip(equation.outvars, map(_array, outputs), strict=True))
    return [read(v) for v in program.outvars]


def _array(value: Any) -> np.ndarray:
    # Of Python's numbers and CasADi's scalars: NumPy would take either for an array of its own.
    if isinstance(value, ca.SX):
        out = np.empty((), object)
        out[()] = value
        return out
    return np.asarray(value).astype(object)


def scalars(vector: Any) -> np.ndarray:
    """Returns a vector of CasADi's as an array of its scalars, shape (size,)."""
    out = np.empty(vector.numel(), object)
    for i in range(len(out)):
        out[i] = vector[i]
    return out
