"""Portable bits: the rules against NumPy, and no call out of a compiled program, whatever it does.

The rules hold for a whole process, so what is compiled with them is compiled in processes of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrograd import portable

ROOT = Path(__file__).parents[2]
RNG = np.random.Generator(np.random.PCG64(0))


def test_power():
    x, y = RNG.uniform(0, 1e4, 1000), RNG.uniform(-5, 5, 1000)
    units = np.abs(portable.power(jnp.asarray(x), jnp.asarray(y)) / x**y - 1) / np.finfo(float).eps
    assert np.all(units <= 2 + np.abs(y * np.log(x)))


def test_power_at_the_edges():
    x, y = np.meshgrid([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, np.inf, np.nan], [-3.0, -2, -0.5, 0, 0.5, 2, 3, np.inf])
    with np.errstate(all="ignore"):
        wanted = x**y
    # (-1)^inf is 1 in C, since it is an even number; nothing asks for it.
    usual = ~((x == -1) & np.isinf(y))
    found = np.asarray(portable.power(jnp.asarray(x), jnp.asarray(y)))
    np.testing.assert_allclose(found[usual], wanted[usual], rtol=1e-14)


@pytest.mark.parametrize(
    ("shapes", "dimensions"),
    [
        (((3, 4), (4, 5)), (((1,), (0,)), ((), ()))),
        (((4, 3), (5, 4)), (((0,), (1,)), ((), ()))),
        (((7, 3, 75), (7, 75, 2)), (((2,), (1,)), ((0,), (0,)))),
        (((2, 3, 4), (4, 2, 3, 5)), (((0, 2), (1, 0)), ((1,), (2,)))),
        (((3,), (3,)), (((0,), (0,)), ((), ()))),
        (((3, 0), (0, 2)), (((1,), (0,)), ((), ()))),
        (((0, 3), (3, 2)), (((1,), (0,)), ((), ()))),
    ],
)
def test_products(shapes, dimensions):
    a, b = (jnp.asarray(RNG.standard_normal(s)) for s in shapes)
    found = portable.multiply(a, b, dimension_numbers=dimensions, preferred_element_type=None)
    wanted = jax.lax.dot_general(a, b, dimensions)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-13)


def test_sums_and_whole_powers():
    a = RNG.standard_normal((3, 70, 2))
    wanted = np.zeros(2)
    for row in a.reshape(-1, 2):
        wanted = wanted + row
    assert np.array_equal(portable.add_up(jnp.asarray(a), axes=(0, 1)), wanted)
    for y in (-3, -1, 0, 1, 2, 7):
        np.testing.assert_allclose(portable.whole_power(jnp.asarray(a), y=y), a**y, rtol=1e-14)


@pytest.mark.parametrize("shape", [(5, 5), (2, 3, 4, 4), (6, 3), (3, 6)])
def test_factors(shape):
    a = jnp.asarray(RNG.standard_normal(shape))
    for found, wanted in zip(portable.factorise(a), jax.lax.linalg.lu(a), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("left", "lower", "transposed", "unit"), [*product([True, False], repeat=4)])
def test_substitution(left: bool, lower: bool, transposed: bool, unit: bool):
    a = jnp.asarray(RNG.standard_normal((2, 4, 4)) + 4 * np.eye(4))
    b = jnp.asarray(RNG.standard_normal((2, 4, 3) if left else (2, 3, 4)))
    how = {"left_side": left, "lower": lower, "transpose_a": transposed, "conjugate_a": False, "unit_diagonal": unit}
    np.testing.assert_allclose(
        portable.substitute(a, b, **how), jax.lax.linalg.triangular_solve(a, b, **how), rtol=1e-9
    )


@pytest.mark.parametrize("shape", [(8, 4), (3, 4, 4), (2, 3, 5)])
def test_reflections(shape):
    a = jnp.asarray(RNG.standard_normal(shape)).at[..., 1:, 0].set(0)
    found, factors = portable.reflectors(a)
    wanted, wanted_factors = jnp.linalg.qr(a, mode="raw")
    np.testing.assert_allclose(found, jnp.swapaxes(wanted, -1, -2), atol=1e-14)
    np.testing.assert_allclose(factors, wanted_factors, atol=1e-14)
    q = jnp.linalg.qr(a, mode="complete")[0]
    for left, transpose in product([True, False], repeat=2):
        c = jnp.asarray(RNG.standard_normal((*shape[:-2], q.shape[-1], q.shape[-1])))
        turned = jnp.swapaxes(q, -1, -2) if transpose else q
        again = portable.reflected(found, factors, c, left=left, transpose=transpose)
        np.testing.assert_allclose(again, turned @ c if left else c @ turned, atol=1e-13)
    if shape[-2] >= shape[-1]:
        np.testing.assert_allclose(portable.orthogonal(found, factors), jnp.linalg.qr(a)[0], atol=1e-14)


CALLS = """
import json, sys
from retrograd.job import prepare_jax
prepare_jax("float64", 1, sys.argv[1] == "portable")
import jax, jax.numpy as jnp, lineax as lx, optimistix as optx
sys.path.insert(0, "tests")
import numpy as np
from problems import options, StiffGrid
from retrograd.dynamics import Integrator
from retrograd.plugins import vector_field

def names(lowered):
    text = lowered.compile().as_text() + lowered.as_text()
    return sorted(w for w in ("custom-call", "custom_call", "power(", "stablehlo.power", " dot(") if w in text)

# Every product and sum is rounded by itself, in the order of the terms, as NumPy does it.
p, q, r = np.random.default_rng(0).standard_normal((3, 4096))
plain = [lambda p, q, r: p * q + q * r, lambda p, q, r: p**2 - r, lambda p, q, r: 1.0 * (p * q) + r]
if sys.argv[1] == "portable":
    assert all(np.array_equal(jax.jit(f)(p, q, r), f(p, q, r)) for f in plain)
    rows = p.reshape(64, 64)
    assert np.array_equal(jax.jit(lambda m: jnp.sum(m, axis=1))(rows), [sum(row) for row in rows])

out = {}
a, b = jnp.ones((32, 9, 9)), jnp.ones((32, 9))
out["solve"] = names(jax.jit(lambda a, b: jnp.linalg.solve(a, b[..., None])).lower(a, b))
square = lambda x, args: x**1.5 - jnp.arange(1.0, 4.0)
for finder in (optx.Newton, optx.LevenbergMarquardt, optx.Dogleg):
    one = lambda x: optx.root_find(square, finder(rtol=1e-8, atol=1e-8), x, throw=False).value
    call = jax.jit(jax.vmap(one))
    out[finder.__name__] = names(call.lower(jnp.ones((32, 3))))
    assert np.allclose(call(2 * jnp.ones((32, 3))), np.arange(1.0, 4.0) ** (2 / 3)), finder
model = StiffGrid.build(jax.random.key(0))
for method in ("newton", "chord"):
    how = options(nonlinear={"method": method, "rtol": None, "atol": None})
    solve = Integrator(vector_field(StiffGrid, "stable", None), model, how, [1.0], 2)
    x, k = jnp.zeros((solve.lanes, 2)), jnp.zeros((solve.lanes, 5))
    lanes = solve._refill(model, solve._no_lanes(x, k), jnp.ones(solve.lanes, bool), x, k)
    out[method] = names(solve._block.lower(model, lanes).lowered)
print(json.dumps(out))
"""


def calls(mode: str) -> dict[str, list[str]]:
    """Returns for some programs what they call or leave to a library, in `portable` mode or in another one."""
    command = [sys.executable, "-c", CALLS, mode]
    env = {"PYTHONPATH": str(ROOT / "scripts"), "PATH": "/usr/bin:/bin", "EQX_ON_ERROR": "off"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_program_calls_out():
    assert set(map(tuple, calls("portable").values())) == {()}
    # What it is good for: without it each of them does.
    assert all(calls("usual").values())
