"""Small linear systems: against exact arithmetic, where pivots and scaling matter, and lane by lane."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from retrograd import linalg
from retrograd.linalg import UNROLL

SIZES = range(1, 9)
solve = jax.jit(linalg.solve)
LANES = 16


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the solutions of each row of a batch, rounded from 60 digits."""
    with mpmath.workdps(60):
        rows = [
            mpmath.lu_solve(mpmath.matrix(m.tolist()), mpmath.matrix(v.tolist())) for m, v in zip(a, b, strict=True)
        ]
        return np.array([[float(value) for value in row] for row in rows])


def error(found: jax.Array, wanted: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Returns the largest error of each row in units of rounding times the matrix' condition, in the matrix' type."""
    largest = np.max(np.abs(np.asarray(found, np.float64) - wanted), axis=-1) / np.max(np.abs(wanted), axis=-1)
    return largest / np.linalg.cond(a) / np.finfo(found.dtype).eps


def systems(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.standard_normal((LANES, n, n)), rng.standard_normal((LANES, n))


def test_sizes_reach_both_branches():
    assert min(SIZES) <= UNROLL < max(SIZES)


@pytest.mark.parametrize("n", SIZES)
def test_against_exact_arithmetic(n: int):
    a, b = systems(n)
    found = solve(jnp.asarray(a), jnp.asarray(b))
    assert found.shape == b.shape
    assert found.dtype == jnp.float64
    assert np.all(error(found, exact(a, b), a) < 4)
    assert np.allclose(found, np.linalg.solve(a, b[..., None])[..., 0], rtol=1e-10)


@pytest.mark.parametrize("n", SIZES)
def test_badly_scaled_rows(n: int):
    a, b = systems(n, 1)
    rng = np.random.Generator(np.random.PCG64(2))
    # Powers of two leave the solution as it is, to the bit.
    factor = np.exp2(np.round(rng.uniform(-66, 66, (LANES, n))))
    assert factor.max() / factor.min() > (1e20 if n > 1 else 1e10)
    found = solve(jnp.asarray(a * factor[..., None]), jnp.asarray(b * factor))
    assert np.all(error(found, exact(a, b), a) < 4)


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("power", [1e-20, 1e20])
def test_the_pivot_does_not_depend_on_the_scale_of_rows(n: int, power: float):
    """Unscaled, partial pivoting takes 1e-18 * 1e20 for the larger pivot, and loses the other row."""
    a = np.eye(n)
    a[:2, :2] = [[1e-18, 1.0], [1.0, 1.0]]
    x = np.arange(1.0, n + 1)
    factor = np.ones(n)
    factor[0] = power
    a, b = (np.broadcast_to(v, (LANES, *v.shape)) for v in (a * factor[:, None], (a @ x) * factor))
    found = solve(jnp.asarray(a), jnp.asarray(b))
    assert np.allclose(found, x, rtol=1e-14)


@pytest.mark.parametrize("n", range(2, 9))
def test_zeros_on_the_diagonal(n: int):
    rng = np.random.Generator(np.random.PCG64(3))
    a = np.stack([np.eye(n)[np.roll(np.arange(n), 1 + i % (n - 1))] for i in range(LANES)])
    a *= rng.uniform(0.5, 2, (LANES, n, 1))
    assert np.all(np.diagonal(a, axis1=1, axis2=2) == 0)
    x = rng.standard_normal((LANES, n))
    found = solve(jnp.asarray(a), jnp.asarray((a @ x[..., None])[..., 0]))
    assert np.allclose(found, x, rtol=1e-14)


@pytest.mark.parametrize("n", range(2, 9))
def test_a_tiny_pivot(n: int):
    a, b = systems(n, 8)
    a[:, 0, 0] = 1e-18
    found = solve(jnp.asarray(a), jnp.asarray(b))
    assert np.all(error(found, exact(a, b), a) < 4)


@pytest.mark.parametrize("n", SIZES)
def test_a_singular_matrix_spoils_its_own_row_only(n: int):
    a, b = systems(n, 4)
    clean = np.asarray(solve(jnp.asarray(a), jnp.asarray(b)))
    a[3] = 0
    if n > 1:
        a[5] = 1  # every row the same: exact zeros in the elimination
    a[7, 0, 0] = np.nan
    spoiled = [3, 7] + ([5] if n > 1 else [])
    found = np.asarray(solve(jnp.asarray(a), jnp.asarray(b)))
    assert not np.any(np.all(np.isfinite(found[spoiled]), axis=-1))
    others = np.setdiff1d(np.arange(LANES), spoiled)
    assert np.array_equal(found[others], clean[others])


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_float32(n: int):
    a, b = (v.astype(np.float32) for v in systems(n, 5))
    found = solve(jnp.asarray(a), jnp.asarray(b))
    assert found.dtype == jnp.float32
    assert np.all(error(found, exact(a, b), a) < 4)


# Compiling the shapes of the larger ones takes seconds, and shows nothing else.
@pytest.mark.parametrize("n", [1, 2, 8])
def test_batches(n: int):
    a, b = systems(n, 6)
    whole = solve(jnp.asarray(a), jnp.asarray(b))
    one = solve(jnp.asarray(a[2]), jnp.asarray(b[2]))
    assert one.shape == (n,)
    square = solve(jnp.asarray(a.reshape(4, 4, n, n)), jnp.asarray(b.reshape(4, 4, n)))
    mapped = jax.jit(jax.vmap(linalg.solve))(jnp.asarray(a), jnp.asarray(b))
    assert square.shape == (4, 4, n)
    for other, wanted in ((one, whole[2]), (square.reshape(LANES, n), whole), (mapped, whole)):
        assert np.allclose(other, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_derivatives(n: int):
    """The adjoint runs through it: dx/db is the inverse, dx/da is -inverse x."""
    a, b = (jnp.asarray(v[0]) for v in systems(n, 7))
    inverse = np.linalg.inv(a)
    assert np.allclose(jax.jit(jax.jacrev(linalg.solve, 1))(a, b), inverse, rtol=1e-8, atol=1e-10)
    wanted = -np.einsum("ij,k->ijk", inverse, inverse @ b)
    assert np.allclose(
        jax.jit(jax.jacfwd(linalg.solve, 0))(a, b), wanted, rtol=1e-8, atol=1e-9 * np.max(np.abs(wanted))
    )


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (3, 1), (5, 3), (8, 8)])
def test_orthonormal_bases_span_what_the_singular_vectors_span(n: int, rank: int):
    rng = np.random.Generator(np.random.PCG64(n))
    matrix = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, 4 * n))
    basis = linalg.orthonormal(matrix, rank)
    assert basis.shape == (n, rank)
    assert np.allclose(basis.T @ basis, np.eye(rank), atol=1e-13)
    u = np.linalg.svd(matrix)[0][:, :rank]
    assert np.allclose(linalg.projector(basis), u @ u.T, atol=1e-12)


def test_a_column_that_nearly_lies_in_the_others_stays_orthonormal():
    matrix = np.array([[1.0, 1.0], [1e-7, 0.0], [0.0, 1e-7]])
    basis = linalg.orthonormal(matrix, 2)
    assert np.allclose(basis.T @ basis, np.eye(2), atol=1e-7)
