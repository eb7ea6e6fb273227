"""Portable bits: what XLA leaves to libraries of the machine, written in operations that it compiles itself.

What XLA generates for exp, log and tanh comes out the same to the bit on x86-64 and aarch64 where its vectors are
equally wide and both have fused multiply-add. The rest does not: powers go to the C library, factorisations to a LAPACK
and matrix products to kernels that the processor chooses; sums are taken in the order, and products fused with
additions, that suit the processor. Here these are rules for lowering, so they hold for every program of the process:
ours, diffrax's and that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# The one that jax.lax.linalg leaves out.
from jax._src.lax.linalg import geqrf_p
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

# Terms of a product that are written out one after the other; longer sums loop over so many.
UNROLL = 32


def install() -> None:
    """Replaces the rules of this process, for programs that are traced after it."""
    linalg = jax.lax.linalg
    for primitive, rule in (
        (jax.lax.pow_p, power),
        (jax.lax.integer_pow_p, whole_power),
        (jax.lax.dot_general_p, multiply),
        (jax.lax.reduce_sum_p, add_up),
        (linalg.triangular_solve_p, substitute),
        (linalg.ormqr_p, reflected),
        (linalg.householder_product_p, orthogonal),
    ):
        mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=False), platform="cpu")
    mlir.register_lowering(jax.lax.mul_p, lambda ctx, x, y, **_: _rounded(ctx, x, y), platform="cpu")
    mlir.register_lowering(jax.lax.square_p, lambda ctx, x, **_: _rounded(ctx, x, x), platform="cpu")
    for primitive, rule in ((linalg.lu_p, factorise), (geqrf_p, reflectors)):
        mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=True), platform="cpu")


def _rounded(ctx: mlir.LoweringRuleContext, x: Any, y: Any) -> Any:
    # A product that no addition takes in: which products LLVM fuses differs between processors, and where two of them
    # cancel the choice decides all digits. It cannot see through an or with a zero of which it knows nothing.
    (aval,) = ctx.avals_out
    spread = mlir.lower_fun(lambda *factors: [jnp.broadcast_to(f, aval.shape) for f in factors], multiple_results=True)
    avals = [*ctx.avals_in] * (2 // len(ctx.avals_in))
    product = stablehlo.multiply(*spread(ctx.replace(avals_in=avals, avals_out=[aval, aval]), x, y))
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        return [product]

    def opaque(p: jax.Array) -> jax.Array:
        bits = {8: jnp.int64, 4: jnp.int32, 2: jnp.int16}[p.dtype.itemsize]
        zero = jax.lax.optimization_barrier(jnp.zeros((), bits))
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(p, bits) | zero, p.dtype)

    return mlir.lower_fun(opaque, multiple_results=False)(ctx.replace(avals_in=[aval]), product)


def power(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x^y, elementwise, to |y ln x| units in the last place; NaN for negative x and a y that is not whole."""
    y = y.astype(x.dtype)
    size = jnp.exp(y * jnp.log(jnp.abs(x)))
    sign = jnp.where(y == jnp.floor(y), jnp.where(y == 2 * jnp.floor(y / 2), 1.0, -1.0), jnp.nan).astype(x.dtype)
    return jnp.where((y == 0) | (x == 1), 1.0, jnp.where(x < 0, sign * size, size)).astype(x.dtype)


def multiply(a: jax.Array, b: jax.Array, *, dimension_numbers: Any, preferred_element_type: Any, **_: Any) -> jax.Array:
    """Returns sums of products, one term after the other; arguments are those of `jax.lax.dot_general`."""
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    free_a = [i for i in range(a.ndim) if i not in (*sum_a, *batch_a)]
    free_b = [i for i in range(b.ndim) if i not in (*sum_b, *batch_b)]
    batch, rows = [a.shape[i] for i in batch_a], [a.shape[i] for i in free_a]
    columns = [b.shape[i] for i in free_b]
    dtype = jnp.result_type(a, b) if preferred_element_type is None else preferred_element_type
    terms = math.prod(a.shape[i] for i in sum_a)
    # (term, batch, row, 1) and (term, batch, 1, column)
    a = jnp.transpose(a, (*sum_a, *batch_a, *free_a)).reshape(terms, math.prod(batch), math.prod(rows), 1).astype(dtype)
    b = (
        jnp.transpose(b, (*sum_b, *batch_b, *free_b))
        .reshape(terms, math.prod(batch), 1, math.prod(columns))
        .astype(dtype)
    )

    start = jnp.zeros(a.shape[1:3] + b.shape[3:], dtype)
    return _in_order(terms, lambda i: a[i] * b[i], start).reshape(*batch, *rows, *columns)


def add_up(a: jax.Array, *, axes: tuple[int, ...], **_: Any) -> jax.Array:
    """Returns sums over some axes, one term after the other."""
    rest = [i for i in range(a.ndim) if i not in axes]
    shape = [a.shape[i] for i in rest]
    terms = math.prod(a.shape[i] for i in axes)
    a = jnp.transpose(a, (*axes, *rest)).reshape(terms, *shape)
    return _in_order(terms, lambda i: a[i], jnp.zeros(shape, a.dtype))


def _in_order(terms: int, term: Callable[[Any], jax.Array], total: jax.Array) -> jax.Array:
    def add(total, i, count):
        for j in range(count):
            total = total + term(i + j)
        return total

    blocks, rest = divmod(terms, UNROLL)
    if blocks > 1:
        total = jax.lax.fori_loop(0, blocks, lambda i, total: add(total, i * UNROLL, UNROLL), total)
    elif blocks:
        total = add(total, 0, UNROLL)
    return add(total, blocks * UNROLL, rest)


def whole_power(x: jax.Array, *, y: int) -> jax.Array:
    """Returns x^y for a whole number y, by squaring."""
    out, factor, left = jnp.ones_like(x), x, abs(y)
    while left:
        out, left = (out * factor if left % 2 else out), left // 2
        factor = factor * factor if left else factor
    return 1 / out if y < 0 else out


def factorise(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns L and U in one matrix, the row swapped with each, and the order of rows; partial pivoting.

    - `a`: shape (..., row, column).
    """
    rows, columns = a.shape[-2:]
    row, column = jnp.arange(rows), jnp.arange(columns)

    def one(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def eliminate(c, carry):
            a, pivots, order = carry
            pivot = jnp.argmax(jnp.where(row >= c, jnp.abs(a[:, c]), -1))
            swapped = jnp.where(row == c, pivot, jnp.where(row == pivot, c, row))
            a, order, pivots = a[swapped], order[swapped], pivots.at[c].set(pivot.astype(jnp.int32))
            factor = jnp.where(row > c, a[:, c] / a[c, c], 0)
            rest = jnp.where(column > c, a[c], 0)
            # The product of zeros with what is not finite would spoil rows that are done.
            inside = (row > c)[:, None] & (column > c)
            a = jnp.where(inside, a - factor[:, None] * rest, a)
            return a.at[:, c].set(jnp.where(row > c, factor, a[:, c])), pivots, order

        steps = min(rows, columns)
        start = a, jnp.zeros(steps, jnp.int32), row.astype(jnp.int32)
        return jax.lax.fori_loop(0, steps, eliminate, start)

    return _over_batch(one, a)


def reflectors(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns R with the vectors of Householder's reflections below it, and their factors, as LAPACK's geqrf does.

    - `a`: shape (..., row, column).
    """
    rows, columns = a.shape[-2:]
    row, column = jnp.arange(rows), jnp.arange(columns)

    def one(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        def reflect(j, carry):
            a, factors = carry
            below = jnp.where(row > j, a[:, j], 0)
            still = jnp.all(below == 0)
            end = -jnp.sign(a[j, j] + (a[j, j] == 0)) * jnp.sqrt(a[j, j] ** 2 + below @ below)
            factor = jnp.where(still, 0, (end - a[j, j]) / jnp.where(still, 1, end))
            v = jnp.where(still, 0, below / jnp.where(still, 1, a[j, j] - end)).at[j].set(1)
            a = jnp.where(column > j, a - factor * v[:, None] * (v @ a), a)
            a = a.at[:, j].set(jnp.where(row > j, v, a[:, j])).at[j, j].set(jnp.where(still, a[j, j], end))
            return a, factors.at[j].set(factor)

        steps = min(rows, columns)
        return jax.lax.fori_loop(0, steps, reflect, (a, jnp.zeros(steps, a.dtype)))

    return _over_batch(one, a)


def reflected(a: jax.Array, factors: jax.Array, c: jax.Array, *, left: bool, transpose: bool) -> jax.Array:
    """Returns Q c, or c Q, of the reflections that `reflectors` gives, or the same with Q^T.

    - `a`, `factors`: shape (..., row, column) and (..., column).
    - `c`: shape (..., row, m), or (..., m, row).
    """
    # c Q = (Q^T c^T)^T
    forward = transpose == left
    c = c if left else jnp.swapaxes(c, -1, -2)
    row, count = jnp.arange(a.shape[-2]), factors.shape[-1]

    def reflect(i, c):
        j = i if forward else count - 1 - i
        v = jnp.where(row > j, a[..., :, j], 0).at[..., j].set(1)
        along = factors[..., j, None] * jnp.einsum("...i,...im->...m", v, c)
        return c - v[..., None] * along[..., None, :]

    c = jax.lax.fori_loop(0, count, reflect, c)
    return c if left else jnp.swapaxes(c, -1, -2)


def orthogonal(a: jax.Array, factors: jax.Array) -> jax.Array:
    """Returns the first columns of Q, of the shape of `a`; arguments as `reflected` takes them."""
    return reflected(
        a, factors, jnp.broadcast_to(jnp.eye(*a.shape[-2:], dtype=a.dtype), a.shape), left=True, transpose=False
    )


def _over_batch(one: Callable[[jax.Array], Any], a: jax.Array) -> Any:
    for _ in a.shape[:-2]:
        one = jax.vmap(one)
    return one(a)


def substitute(
    a: jax.Array,
    b: jax.Array,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> jax.Array:
    """Returns x of a x = b, or of x a = b, for triangular a; arguments are those of `jax.lax.linalg.triangular_solve`.

    - `a`: shape (..., n, n), real.
    - `b`: shape (..., n, m), or (..., m, n).
    """
    del conjugate_a
    across = lambda m: jnp.swapaxes(m, -1, -2)
    # x a = b is a^T x^T = b^T.
    if transpose_a == left_side:
        a, lower = across(a), not lower
    b = b if left_side else across(b)
    n = a.shape[-1]
    row = jnp.arange(n)

    def column(i, b):
        c = i if lower else n - 1 - i
        here = b[..., c, :] if unit_diagonal else b[..., c, :] / a[..., c, c, None]
        open_ = row > c if lower else row < c
        b = jnp.where(open_[:, None], b - a[..., :, c, None] * here[..., None, :], b)
        return b.at[..., c, :].set(here)

    x = jax.lax.fori_loop(0, n, column, b)
    return x if left_side else across(x)
