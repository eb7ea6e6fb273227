"""Finite differences: the error bound that they state holds, and is no looser than it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from retrograd.differences import Estimate, Samples, estimate, widths

CASES = 10_000
Function = Callable[[Any, Any], Any]

# g(u) and g'(u); p is an exponent of the case.
FAMILIES: dict[str, tuple[Function, Function]] = {
    "exp": (lambda u, p: np.exp(u), lambda u, p: np.exp(u)),
    "sin": (lambda u, p: np.sin(u), lambda u, p: np.cos(u)),
    "polynomial": (lambda u, p: ((u - 1) * u + 2) * u - 3, lambda u, p: (3 * u - 2) * u + 2),
    "tanh": (lambda u, p: np.tanh(u), lambda u, p: 1 - np.tanh(u) ** 2),
    "power": (lambda u, p: u**p, lambda u, p: p * u ** (p - 1)),
    "log": (lambda u, p: np.log(u), lambda u, p: 1 / u),
}


def differences(h: np.ndarray, plus: np.ndarray, minus: np.ndarray, center: np.ndarray, dtype: Any) -> Estimate:
    return estimate(Samples(h, plus, minus, center, float(np.finfo(dtype).eps)))


@dataclass
class Cases:
    """Functions sum_j c_j g_j(a_j x) with random coefficients, at random points, their values taken in `dtype`."""

    h: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    center: np.ndarray
    true: np.ndarray
    dtype: np.dtype
    noise: np.ndarray

    def estimate(self) -> Estimate:
        return differences(self.h, self.plus, self.minus, self.center, self.dtype)


def cases(
    families: list[str], *, dtype: type = np.float64, offset: tuple[float, float] | None = None, within: bool = False
) -> Cases:
    """Returns random cases.

    - `offset`: decades of a number that is added to the function, so that its values are rounded more coarsely.
    - `within`: it is taken off again, so that the noise does not show in the size of the values.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    scale = 10.0 ** rng.uniform(-3, 3, CASES)
    at = scale.astype(dtype)
    h = widths(scale, np.dtype(dtype))
    plus, minus = (at[:, None] + h).astype(dtype), (at[:, None] - h).astype(dtype)
    a = (10.0 ** rng.uniform(-1, 1, (CASES, len(families))) / scale[:, None]).astype(dtype)
    c = rng.standard_normal(a.shape) * 10.0 ** rng.uniform(-2, 2, a.shape)
    c[rng.random(a.shape) < 0.5] = 0
    c[np.arange(CASES), rng.integers(0, len(families), CASES)] = 1
    c, p = c.astype(dtype), rng.uniform(-3, 4, CASES).astype(dtype)
    added = (10.0 ** rng.uniform(*offset, CASES) if offset else np.zeros(CASES)).astype(dtype)

    def value(x: np.ndarray) -> np.ndarray:
        terms = zip(a.T, c.T, families, strict=True)
        out = sum(cj[:, None] * FAMILIES[name][0](aj[:, None] * x, p[:, None]) for aj, cj, name in terms)
        out = out + added[:, None]
        out = out - added[:, None] if within else out
        assert out.dtype == dtype
        return out.astype(np.float64)

    # The derivative in a wider type, of the function whose coefficients were rounded to `dtype`.
    wide = np.longdouble if dtype is np.float64 else np.float64
    terms = zip(a.astype(wide).T, c.astype(wide).T, families, strict=True)
    true = sum(cj * aj * FAMILIES[name][1](aj * at.astype(wide), p.astype(wide)) for aj, cj, name in terms)
    noise = float(np.finfo(dtype).eps) * np.maximum(np.abs(value(at[:, None])[:, 0]), added)
    used = (plus.astype(np.float64) - minus.astype(np.float64)) / 2
    return Cases(used, value(plus), value(minus), value(at[:, None])[:, 0], np.asarray(true), np.dtype(dtype), noise)


def judge(found: Estimate, true: np.ndarray) -> tuple[float, float, float]:
    """Returns how often the bound held, the median of bound over error, and that of bound over derivative."""
    assert np.all(np.isfinite(found.value))
    assert np.all(np.isfinite(found.error))
    error = np.abs(found.value - true).astype(np.float64)
    ratio = found.error / np.maximum(error, np.finfo(float).tiny)
    return float(np.mean(error <= found.error)), float(np.median(ratio)), float(np.median(found.error / np.abs(true)))


@pytest.mark.parametrize("name", [*FAMILIES, "mixture"])
def test_the_bound_holds(name: str, capsys: pytest.CaptureFixture[str]):
    drawn = cases(list(FAMILIES) if name == "mixture" else [name])
    held, loose, relative = judge(drawn.estimate(), drawn.true)
    with capsys.disabled():
        print(
            f"\n  {name}: held in {held:.2%}, bound/error {loose:.2g}, bound/derivative {relative:.1g} (medians)",
            end="",
        )
    assert held >= 0.99
    assert loose <= 100
    assert relative < 1e-8


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize("noise", [1e-12, 1e-10])
def test_extrapolation_lets_wide_widths_be_used(noise: float, degree: int):
    """Each column takes off one even power of the width. Without it narrow ones had to do, which magnify the noise."""
    rng = np.random.Generator(np.random.PCG64(2))
    h = widths(np.ones(CASES), np.dtype(np.float64))
    noisy = lambda x: x**degree + noise * rng.standard_normal(x.shape)
    found = differences(h, noisy(1 + h), noisy(1 - h), noisy(np.ones((CASES, 1)))[:, 0], np.float64)
    assert np.mean(np.abs(found.value - degree) <= found.error) >= 0.99
    assert np.median(found.error) < 20_000 * noise
    assert np.median(np.abs(found.value - degree)) < 1200 * noise


@pytest.mark.parametrize("within", [False, True], ids=["in the size", "hidden"])
def test_the_bound_holds_with_rounding_noise(within: bool, capsys: pytest.CaptureFixture[str]):
    drawn = cases(list(FAMILIES), offset=(3, 9), within=within)
    held, loose, _ = judge(drawn.estimate(), drawn.true)
    with capsys.disabled():
        print(f"\n  noise, {within=}: held in {held:.2%}, bound/error {loose:.2g} (median)", end="")
    assert held >= 0.99
    assert loose <= 100


@pytest.mark.parametrize("offset", [None, (0, 3)], ids=["plain", "noise"])
def test_float32(offset: tuple[float, float] | None):
    drawn = cases(list(FAMILIES), dtype=np.float32, offset=offset)
    held, loose, relative = judge(drawn.estimate(), drawn.true)
    assert held >= 0.99
    assert loose <= 100
    assert relative < (1e-3 if offset is None else 0.1)


def test_values_computed_in_float32_need_the_bound_of_float32():
    """The noise that is measured carries the bound even where the type that is told does not."""
    drawn = cases(list(FAMILIES), dtype=np.float32)
    told, _, _ = judge(drawn.estimate(), drawn.true)
    wrong, _, _ = judge(differences(drawn.h, drawn.plus, drawn.minus, drawn.center, np.dtype(np.float64)), drawn.true)
    assert told >= 0.99
    assert wrong >= 0.9


@pytest.mark.parametrize("gone", [[0], [1], [2], [3], [4], [5], [0, 1], [1, 2], [4, 5], [0, 1, 2], [3, 4, 5]], ids=str)
@pytest.mark.parametrize("within", [False, True], ids=["plain", "noise"])
def test_missing_values(gone: list[int], within: bool):
    drawn = cases(list(FAMILIES), offset=(3, 9) if within else None, within=within)
    drawn.plus[:, gone[0]] = np.nan
    drawn.minus[:, gone] = np.nan
    found = drawn.estimate()
    held, _, _ = judge(found, drawn.true)
    print(f"{gone=}, {within=}: held in {held:.2%}")
    assert held >= 0.99
    assert np.all(np.isnan(found.quotients[:, gone]))
    assert not np.any(np.isin(found.step, drawn.h[:, gone]))


def test_without_two_neighbouring_widths_there_is_no_estimate():
    drawn = cases(["exp"])
    drawn.plus[:, [0, 2, 4]] = np.nan
    found = drawn.estimate()
    assert np.all(np.isnan(found.value))
    assert np.all(np.isnan(found.error))
    assert np.all(np.isnan(found.step))


def test_a_row_without_values_leaves_the_others_alone():
    drawn = cases(["exp"])
    whole = drawn.estimate()
    drawn.plus[3] = drawn.minus[3] = np.nan
    found = drawn.estimate()
    assert np.isnan(found.value[3]) and np.isnan(found.error[3])
    others = np.arange(CASES) != 3
    assert np.array_equal(found.value[others], whole.value[others])
    assert np.array_equal(found.error[others], whole.error[others])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("constant", [0.0, 1.0, -1e6, 1e-30])
def test_a_constant_function(constant: float, dtype: type):
    scale = np.array([1e-3, 1.0, 1e3])
    h = widths(scale, np.dtype(dtype))
    values = np.full(h.shape, dtype(constant), np.float64)
    found = differences(h, values, values, values[:, 0], np.dtype(dtype))
    assert np.all(found.value == 0)
    # Rounding of the function at the widest width but one, and nothing else.
    assert np.all(found.error * scale <= 2000 * np.finfo(dtype).eps * abs(constant))
    assert np.all((found.error > 0) == (constant != 0))


@pytest.mark.parametrize(
    ("name", "error"),
    [("a jump", lambda x: (x > 0) * 1.0), ("a kink", np.abs), ("a root", lambda x: np.sign(x) * np.sqrt(np.abs(x)))],
)
def test_no_false_promise_where_there_is_no_derivative(name: str, error: Callable[[Any], Any]):
    """Off the middle, so that the differences do not cancel by symmetry: the bound must cover their spread."""
    h = widths(np.ones(1), np.dtype(np.float64))
    at = 0.3 * h[0, 3]
    found = differences(h, error(at + h), error(at - h), np.atleast_1d(error(at)), np.dtype(np.float64))
    spread = np.ptp(found.quotients[0, :3])
    assert found.error[0] > 0.1 * spread, name


def test_one_sided_noise_is_measured():
    """Noise far above the type's rounding, as of a solver: it is seen in the values, the size tells nothing of it."""
    rng = np.random.Generator(np.random.PCG64(1))
    h = widths(np.ones(CASES), np.dtype(np.float64))
    noisy = lambda x: np.exp(x) + 1e-9 * rng.standard_normal(x.shape)
    center = noisy(np.zeros((CASES, 1)))[:, 0]
    found = differences(h, noisy(h), noisy(-h), center, np.dtype(np.float64))
    held, loose, _ = judge(found, np.ones(CASES))
    assert held >= 0.99
    assert loose <= 100


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_widths(dtype: type):
    found = widths(np.array([[1.0, 1e-3], [2.0, 5.0]]), np.dtype(dtype))
    assert found.shape[:2] == (2, 2)
    assert np.all(np.diff(found) < 0)
    ratios = found[..., :-1] / found[..., 1:]
    assert np.allclose(ratios, ratios.flat[0], rtol=1e-14)
    # In proportion to the scale, and small against it.
    assert np.allclose(found[0, 0] * 2, found[1, 0], rtol=1e-14)
    assert np.all(found[0, 0] < 0.1)
    assert np.all(found[0, 0] > np.finfo(dtype).eps)


@pytest.mark.parametrize("offset", [None, (0, 3)], ids=["plain", "noise"])
@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_a_kink_at_the_point_is_told_from_noise_and_curvature(size: float, offset: tuple[float, float] | None):
    """Central differences agree on the mean of the two slopes: only the one-sided ones know."""
    drawn = cases(list(FAMILIES), offset=offset, within=offset is not None)
    assert np.mean(drawn.estimate().kink) < 1e-3
    jump = size * np.abs(drawn.true).astype(float)
    drawn.plus = drawn.plus + jump[:, None] * drawn.h
    found = drawn.estimate()
    large = jump * drawn.h[:, -1] > 100 * drawn.noise
    assert np.mean(large) > 0.5
    assert np.mean(found.kink[large]) > 0.99
    # Automatic differentiation gives the slope to one side: it must not be called wrong.
    side = np.where(np.arange(CASES) % 2, drawn.true, drawn.true + jump)
    assert np.mean((np.abs(found.value - side) > found.error) & ~found.kink) < 1e-3


@pytest.mark.parametrize("noise", [1e-13, 1e-11, 1e-9, 1e-6])
def test_white_noise_is_no_kink(noise: float):
    rng = np.random.Generator(np.random.PCG64(4))
    h = widths(np.ones(CASES), np.dtype(np.float64))
    noisy = lambda x: np.exp(x) + noise * rng.standard_normal(x.shape)
    found = differences(h, noisy(h), noisy(-h), noisy(np.zeros((CASES, 1)))[:, 0], np.float64)
    assert np.mean(found.kink) < 1e-3


def test_noise_known_from_elsewhere_widens_the_bound():
    drawn = cases(["exp"])
    samples = Samples(drawn.h, drawn.plus, drawn.minus, drawn.center, float(np.finfo(float).eps))
    told = estimate(samples, np.full((1, CASES), 1e-3) * np.abs(drawn.center))
    assert np.all(told.error > 10 * drawn.estimate().error)


def test_variables_that_change_no_bit_say_nothing_of_the_noise():
    """A network's noise in one variable, among others to which the state has relaxed: no kink."""
    rng = np.random.Generator(np.random.PCG64(1))
    h = np.broadcast_to(widths(np.ones(1), np.dtype(float)), (500, 6))
    at = lambda u: 250 * np.exp(0.5 * u) + rng.normal(0, 1e-12, np.shape(u))
    sample = Samples(h, at(h), at(-h), np.full(500, 250.0), float(np.finfo(float).eps))
    noise = sample.noise()
    others = np.stack([noise, np.zeros(500), np.zeros(500), 1.5 * noise, np.zeros(500)])
    assert not np.any(estimate(sample, others).kink)
    # A kink is one all the same.
    bent = Samples(h, sample.plus + 1e-3 * h, sample.minus + 1e-3 * h, sample.center, sample.eps)
    assert np.all(estimate(bent, others).kink)
