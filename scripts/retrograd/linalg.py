"""Small dense linear systems, batched: the inner kernel of every implicit step and of its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Up to here elimination is unrolled into elementwise operations that vectorise over the batch; LAPACK
# is called once a matrix, which costs microseconds each. Above it the unrolled program grows too long.
UNROLL = 6
# How much larger a lower row's entry must be to become the pivot. XLA evaluates a comparison anew in every loop that
# uses it, rounded one way or another: with 1, ties were decided both ways within one elimination, whose result was then
# off in the third digit. Models have ties, such as the two rates of an exchange, but none at an odd ratio like this.
DOMINANCE = 1.37


def eliminated(a: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Returns b -> x of a x = b, by Gaussian elimination with row scaling and threshold pivoting, done once for all b.

    - `a`: shape (..., n, n); b and x have shape (..., n).

    A singular matrix gives inf or NaN in its own row of the batch only.
    """
    n = a.shape[-1]
    # Scaled rows keep the pivot choice meaningful where rates of e^20 and e^-5 stand in one matrix.
    scale = jnp.max(jnp.abs(a), axis=-1)
    scale = jnp.where(scale > 0, scale, 1)
    scaled = a / scale[..., None]
    if n > UNROLL:
        parts = jax.scipy.linalg.lu_factor(scaled)
        return lambda b: jax.scipy.linalg.lu_solve(parts, (b / scale)[..., None])[..., 0]
    rows = [scaled[..., i, :] for i in range(n)]
    swaps, factors = {}, {}
    for c in range(n):
        for r in range(c + 1, n):
            swaps[c, r] = jnp.abs(rows[r][..., c]) > DOMINANCE * jnp.abs(rows[c][..., c])
            swap = swaps[c, r][..., None]
            rows[c], rows[r] = jnp.where(swap, rows[r], rows[c]), jnp.where(swap, rows[c], rows[r])
        pivot = rows[c] / rows[c][..., c : c + 1]
        for r in range(c + 1, n):
            factors[c, r] = rows[r][..., c]
            rows[r] = rows[r] - rows[r][..., c : c + 1] * pivot

    def solve(b: jax.Array) -> jax.Array:
        right = [(b / scale)[..., i] for i in range(n)]
        for c in range(n):
            for r in range(c + 1, n):
                swap = swaps[c, r]
                right[c], right[r] = jnp.where(swap, right[r], right[c]), jnp.where(swap, right[c], right[r])
            pivot = right[c] / rows[c][..., c]
            for r in range(c + 1, n):
                right[r] = right[r] - factors[c, r] * pivot
        x: list[jax.Array] = [jnp.zeros(())] * n
        for c in reversed(range(n)):
            known = sum((rows[c][..., j] * x[j] for j in range(c + 1, n)), start=jnp.zeros((), a.dtype))
            x[c] = (right[c] - known) / rows[c][..., c]
        return jnp.stack(x, axis=-1)

    return solve


def solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns x of a x = b, as `eliminated` does; `a`: shape (..., n, n), `b`: shape (..., n)."""
    return eliminated(a)(b)


def orthonormal(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Returns an orthonormal basis of the space that a matrix' columns span, shape (row, rank).

    - `matrix`: shape (row, column), of that rank.

    Gram and Schmidt, the largest column first: no BLAS or LAPACK, whose last digits the processor decides.
    """
    rest, basis = matrix.copy(), np.zeros((len(matrix), rank))
    along = lambda v, columns: np.sum(v[:, None] * columns, axis=0)
    for j in range(rank):
        v = rest[:, np.argmax(along(np.ones(len(rest)), rest**2))]
        v = v - np.sum(basis * along(v, basis), axis=1)
        basis[:, j] = v / np.sqrt(np.sum(v * v))
        rest = rest - basis[:, j, None] * along(basis[:, j], rest)
    return basis


def projector(basis: np.ndarray) -> np.ndarray:
    """Returns the projector on the space of an orthonormal basis (row, rank), shape (row, row)."""
    return np.sum(basis[:, None] * basis, axis=2)


def tolerance(settings: Mapping[str, Any], x: Any) -> Any:
    """Returns atol + rtol |x|, of the shape of `x`, an array of numpy or JAX."""
    return settings["atol"] + settings["rtol"] * abs(x)


def jitter(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Returns relative changes of the size of rounding, one to three units in the last place; all 0 with seed 0."""
    if not seed:
        return np.zeros(shape, dtype)
    rng = np.random.Generator(np.random.PCG64(seed))
    return (rng.choice([-3, -2, -1, 1, 2, 3], shape) * np.finfo(dtype).eps).astype(dtype)
