"""Batches of one fixed width.

XLA's rounding depends on the width of a batch (1, or 2 to 5, against 7 and more) but not on the place in it: one
width for all, the last batch padded, makes results independent of how a study is cut into jobs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrograd.devices import on_gpu

# A processor's caches hold the networks' values of so many lanes; a GPU is filled by more of them.
LANES = 1024 if on_gpu() else 32


def float_type() -> np.dtype:
    """Returns this process's float type: float32, or float64 where JAX was started with it."""
    return np.dtype(jnp.zeros(()).dtype)


def lanes_of(n: int, most: int = LANES) -> int:
    """Returns how many lanes a batch of systems of n states has, a power of two: `most`, or fewer of large systems.

    The number of states alone decides. Where a lane's matrices are large, which is LAPACK's work, more lanes save
    nothing: of 16 steps with 7 stages a quarter of a gigabyte is to be enough. 32 lanes fit up to 96 states.
    """
    fit = (1 << 28) / (16 * 7 * 8 * n**2)
    return min(most, 1 << max(int(math.log2(fit)), 0))


def batched(call: Callable[..., Any], shared: Any, *arrays: np.ndarray, lanes: int = LANES) -> Any:
    """Returns `call(shared, *rows)` over all rows of the arrays, in batches of one width, joined; numpy, in float64.

    - `call`: compiled, over rows of shape (lane, ...); returns an array or a pytree of arrays, lane first.
    - `shared`: passed on as it is: the model.
    """
    total, dtype, pieces, tree = len(arrays[0]), float_type(), [], None
    for i in range(0, total, lanes):
        rows = slice(i, i + lanes) if i + lanes <= total else np.r_[i:total, [i] * (i + lanes - total)]
        # Of numpy: jax's own call takes them over in a tenth of the time that `jnp.asarray` needs for each.
        out = call(shared, *(np.asarray(a[rows], dtype) for a in arrays))
        leaves, tree = jax.tree_util.tree_flatten(out)
        pieces.append([np.asarray(v) for v in leaves])
    return jax.tree_util.tree_unflatten(tree, [_wide(np.concatenate(v)[:total]) for v in zip(*pieces, strict=True)])


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
