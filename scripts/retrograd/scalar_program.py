"""A JAX function read operation by operation, on scalars of another library: CasADi's or SymPy's.

Arrays become NumPy arrays of scalar expressions, whose shapes NumPy moves about itself; only elementwise functions
are the library's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from retrograd.errors import RetrogradError

Operations = Mapping[str, Callable[..., Any]]


def each(function: Callable[..., Any], arguments: int = 1) -> Callable[..., Any]:
    """Returns a function of scalars as an operation on arrays of them."""
    return lambda *values, **_: np.frompyfunc(function, arguments, 1)(*values)


def _dot(a: np.ndarray, b: np.ndarray, *, dimension_numbers: Any, **_: Any) -> np.ndarray:
    (left, right), batch = dimension_numbers
    if batch != ((), ()):
        raise RetrogradError("found a batched product in the model, wanted one of two plain arrays.")
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


# What moves numbers about, and arithmetic that a scalar's own operators do.
_COMMON: Operations = {
    "add": lambda a, b, **_: a + b,
    "add_any": lambda a, b, **_: a + b,
    "sub": lambda a, b, **_: a - b,
    "mul": lambda a, b, **_: a * b,
    "div": lambda a, b, **_: a / b,
    "neg": lambda a, **_: -a,
    "integer_pow": _power,
    "square": lambda a, **_: a * a,
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda *parts, dimension, **_: np.concatenate(parts, axis=dimension),
    "convert_element_type": lambda x, **_: x,
    "copy": lambda x, **_: x,
    "dot_general": _dot,
    "cumsum": lambda x, *, axis, reverse, **_: (
        np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)
    ),
    "reduce_prod": lambda x, *, axes, **_: np.prod(x, axis=tuple(axes)),
    "reduce_sum": lambda x, *, axes, **_: np.sum(x, axis=tuple(axes)),
    "reshape": lambda x, *, new_sizes, **_: np.reshape(x, new_sizes),
    "rev": lambda x, *, dimensions, **_: np.flip(x, dimensions),
    "slice": _slice,
    "split": lambda x, *, sizes, axis, **_: np.split(x, np.cumsum(sizes)[:-1], axis),
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, axis=tuple(dimensions)),
    "stack": lambda *parts, axis=0, **_: np.stack(parts, axis=axis),
    "stop_gradient": lambda x, **_: x,
    "unstack": lambda x, *, axis, **_: [np.squeeze(part, axis) for part in np.split(x, x.shape[axis], axis)],
    "transpose": lambda x, *, permutation, **_: np.transpose(x, permutation),
}
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")


def run(program: Any, values: Sequence[Any], operations: Operations, called: Operations) -> list[np.ndarray]:
    """Returns what a program of JAX's gives on arrays of another library's scalars.

    - `program`: what `jax.make_jaxpr` returns.
    - `values`: one array an argument, flattened as JAX does.
    - `operations`: the library's elementwise operations, by the name of JAX's primitive.
    - `called`: likewise, of JAX's own functions that are to be taken whole, by their name.

    Raises RetrogradError where an operation has no translation.
    """
    return _run(program.jaxpr, program.consts, values, {**_COMMON, **operations}, called)


def _run(
    program: core.Jaxpr, constants: Sequence[Any], values: Sequence[Any], operations: Operations, called: Operations
) -> list[np.ndarray]:
    known: dict[Any, np.ndarray] = {}

    def read(v: Any) -> np.ndarray:
        return _array(v.val) if isinstance(v, core.Literal) else known[v]

    for variables, given in ((program.constvars, constants), (program.invars, values)):
        known |= dict(zip(variables, map(_array, given), strict=True))
    for equation in program.eqns:
        inputs = [read(v) for v in equation.invars]
        name, parameters = equation.primitive.name, equation.params
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr", parameters.get("fun_jaxpr")))
        if name in operations:
            outputs = operations[name](*inputs, **parameters)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        elif inner is not None and (whole := called.get(str(parameters.get("name", "")))):
            outputs = [whole(*inputs)]
        elif inner is not None and name in _CALLS:
            outputs = _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, operations, called)
        else:
            raise RetrogradError(
                f"found the operation {name} in the model, wanted one of {', '.join(sorted(operations))}"
            )
        known |= dict(zip(equation.outvars, map(_array, outputs), strict=True))
    return [read(v) for v in program.outvars]


def _array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).astype(object)
    # Another library's scalars: NumPy would take some of them for arrays.
    out = np.empty((), object)
    out[()] = value
    return out
