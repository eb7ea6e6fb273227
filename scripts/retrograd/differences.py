"""Derivatives by finite differences that state their own error bound.

Central differences over a sweep of widths, each four times narrower than the last, are extrapolated (Richardson; error
estimate after Ridders 1982, doi:10.1016/S0141-1195(82)80057-0). The noise of the function is measured in the same
values: what is left at narrow widths of the even part f(+h) - 2 f(0) + f(-h) and of the odd part f(+h) - f(-h) once
the parts are taken off that fall with the two lowest powers of h.

Where the slopes to the left and to the right differ, there is no derivative, and central differences would agree on the
mean of the two without a doubt: an even part that falls with h in place of h^2 gives such a kink away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATIO = 4.0
WIDTHS = 6
WIDEST = 2.0**-6
# Where further sweeps start, in widths, for what the first one is too wide for.
FURTHER = (6, 9)
# A check whose bound is wider than this share of the derivative says nothing about it.
RESOLUTION = 1e-2
# Pairs of neighbouring widths, from the narrow end, that give the noise.
NOISE_PAIRS = 2
# The largest of a few samples of noise against what noise may bring: with 3 the bound held in 99.85 % of functions
# whose noise does not show in their size, with 1 in 99.7 %; `pytest tests/unit/test_differences.py -s` measures it.
NOISE_MARGIN = 3.0
# On the distance from what the narrowest widths give, where a sweep is not that of a smooth function. With 2 in place
# of 3 the bound did not hold for 2 of 88 derivatives beside the kinks of a relu network.
KINK_MARGIN = 3.0
ORDERS = 4


def widths(scale: np.ndarray, dtype: np.dtype, start: int = 0) -> np.ndarray:
    """Returns a sweep, shape (..., width), widest first, for parameters of typical size `scale`, shape (...).

    - `start`: how many widths of the first sweep and below it are passed over.

    In float32 a sweep is shorter, since its noise is larger by nine digits.
    """
    ratio = RATIO if np.dtype(dtype) == np.float64 else 2.0
    return scale[..., None] * WIDEST / ratio ** (np.arange(WIDTHS) + start)


def coarse(bound: np.ndarray, size: np.ndarray, largest: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns where a bound on a derivative is too wide to say anything.

    - `size`: magnitude of the derivative.
    - `largest`: magnitude of the largest beside it, in the same unit; what is small beside it may count as zero.
    """
    zero = 10 * np.sqrt(float(np.finfo(dtype).eps)) * largest
    with np.errstate(invalid="ignore"):
        return ~(bound <= np.maximum(RESOLUTION * size, zero))


@dataclass
class Samples:
    """Values of functions of one variable around a point."""

    h: np.ndarray  # (item, width), as they were used, widest first, in a constant ratio
    plus: np.ndarray  # (item, width), values at +h; NaN where there is none
    minus: np.ndarray  # (item, width), values at -h
    center: np.ndarray  # (item,)
    eps: float  # of the float type in which the function was computed
    least: np.ndarray | None = None  # (item,), noise that the function has at least, from elsewhere

    def noise(self, pairs: int = NOISE_PAIRS) -> np.ndarray:
        """Returns the noise of the values, measured in some pairs of neighbouring widths, shape (item,)."""
        h, ratio = self.h, (self.h[:, 0] / self.h[:, 1])[:, None]
        with np.errstate(all="ignore"):
            even = self.plus - 2 * self.center[:, None] + self.minus
            even = _without(_without(even, ratio**2), ratio**4)
            # In a quotient's place the odd part is one power higher.
            odd = _without(_without(self.quotients(), ratio**2, 1), ratio**4, 1)
            odd = (odd[:, 1:] - odd[:, :-1]) * h[:, 1:] / 2
        return NOISE_MARGIN * np.maximum(_narrow(np.abs(even[:, 1:]), pairs), _narrow(np.abs(odd), pairs))

    def rounding(self) -> np.ndarray:
        """Returns the noise that the values have at least, shape (item,): their own rounding, and what is known."""
        values = np.abs(np.concatenate([self.plus, self.minus, self.center[:, None]], axis=1))
        own = self.eps * np.max(np.where(np.isfinite(values), values, 0), axis=1)
        return own if self.least is None else np.fmax(own, self.least)

    def quotients(self) -> np.ndarray:
        """Returns the central difference quotients, shape (item, width)."""
        return (self.plus - self.minus) / (2 * self.h)


def _without(values: np.ndarray, factor: np.ndarray, constant: int = 0) -> np.ndarray:
    # Takes off the part that a width has `factor` times of the next one's; unchanged where the wider one is missing.
    # - `constant`: 1 to keep the part that is the same at every width.
    wider = np.concatenate([np.full_like(values[:, :1], np.nan), values[:, :-1]], axis=1)
    less = (values - wider / factor) / (1 - constant / factor)
    return np.where(np.isfinite(less), less, values)


def _narrow(samples: np.ndarray, pairs: int) -> np.ndarray:
    # The narrowest pairs only: a kink beside the point crosses those last.
    known = np.isfinite(samples)
    narrow = known & (np.cumsum(known[:, ::-1], axis=1)[:, ::-1] <= pairs)
    return np.max(np.where(narrow, samples, 0), axis=1)


@dataclass
class Estimate:
    """A derivative with its error bound, and the sweep that it came from."""

    value: np.ndarray  # (item,)
    error: np.ndarray  # (item,)
    step: np.ndarray  # (item,), the narrowest width that entered
    quotients: np.ndarray  # (item, width)
    left: np.ndarray  # (item,), slope to the left at the narrowest width
    right: np.ndarray  # (item,)
    kink: np.ndarray  # (item,), whether these differ by more than curvature and noise explain


def estimate(samples: Samples, others: np.ndarray | None = None, pairs: int = NOISE_PAIRS) -> Estimate:
    """Returns derivatives from function values.

    - `others`: noise measured along other variables of the same function, shape (other, item).
    - `pairs`: how many pairs of neighbouring widths, from the narrow end, give the noise.

    Functions with a common value have a common noise, which is known better from all of them than from each. The
    median counts, of two the smaller: a kink looks like noise, and belongs to the variables that cross it. A variable
    that changes no bit of the value shows no noise, and says nothing of it.
    """
    with np.errstate(all="ignore"):
        own = samples.noise(pairs)
        least = samples.noise(1)
        common = None
        if others is not None and len(others):
            seen = np.sort(np.where(others > 0, others, np.inf), axis=0)
            middle = np.maximum(np.sum(others > 0, axis=0) - 1, 0) // 2
            common = np.where(np.any(others > 0, axis=0), np.take_along_axis(seen, middle[None], axis=0)[0], 0)
            least = np.minimum(least, np.min(others, axis=0))
            own = np.maximum(own, common)
        kink, suspected = _kinks(samples, common)
        found = _estimate(samples, np.maximum(own, samples.rounding()), least, kink)
        found.error = np.maximum(found.error, np.where(np.isnan(found.error), 0, suspected))
        return found


def _estimate(s: Samples, noise: np.ndarray, least: np.ndarray, kink: np.ndarray) -> Estimate:
    h, quotients = s.h, s.quotients()
    ratio = h[:, 0] / h[:, 1]
    items, count = h.shape
    table = np.full((items, count, ORDERS), np.nan)
    table[:, :, 0] = quotients
    best = np.full(items, np.nan)
    bound = np.full(items, np.inf)
    step = np.full(items, np.nan)
    for j in range(1, count):
        rounding = noise / h[:, j]
        for m in range(1, min(j, ORDERS - 1) + 1):
            factor = ratio ** (2 * m)
            finer, coarser = table[:, j, m - 1], table[:, j - 1, m - 1]
            table[:, j, m] = finer + (finer - coarser) / (factor - 1)
            # The larger of the two differences: one alone can be small by accident.
            truncation = np.maximum(np.abs(table[:, j, m] - finer), np.abs(table[:, j, m] - coarser))
            total = truncation + 2 * rounding
            better = total < bound
            best = np.where(better, table[:, j, m], best)
            bound = np.where(better, total, bound)
            step = np.where(better, h[:, j], step)
    # Wide widths can agree by chance on the far side of a kink. The narrowest ones know nothing of it; the least noise
    # that was seen anywhere has nothing of it either.
    apart = np.abs(best - table[:, -1, 1])
    told = _bends(quotients, least, h) | (apart > 2.2 * least / h[:, -1])
    bound = np.fmax(bound, np.where(told, KINK_MARGIN * apart, 0))
    bound = np.where(np.isfinite(best), bound, np.nan)
    right, left = (s.plus - s.center[:, None]) / h, (s.center[:, None] - s.minus) / h
    return Estimate(best, bound, step, quotients, left[:, -1], right[:, -1], kink)


def _bends(quotients: np.ndarray, noise: np.ndarray, h: np.ndarray) -> np.ndarray:
    # Of a smooth function the quotients move by a power of h, the second as a rule, and by noise.
    moved = np.abs(np.diff(quotients, axis=1))
    wide, narrow = moved[:, :-1], moved[:, 1:]
    power = np.log(wide / narrow) / np.log(h[:, :1] / h[:, 1:2])
    known = wide > 8 * noise[:, None] / h[:, 2:]
    return np.any(known & ~((power > 1) & (power < 3)), axis=1)


def _kinks(s: Samples, others: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns where there is a kink at the point, and what one that is not certain does to a quotient, both (item,).

    - `others`: noise that is known from elsewhere.
    """
    even = s.plus - 2 * s.center[:, None] + s.minus
    ratio = (s.h[:, 0] / s.h[:, 1])[:, None]
    # Without the part in h^2 a kink is left, and without that in h too nothing but noise.
    jump = even[:, 1:] - even[:, :-1] / ratio**2
    left = jump[:, 1:] - jump[:, :-1] / ratio
    last, noise = np.abs(jump[:, -1]), np.max(np.abs(left[:, -2:]), axis=1)
    # The jumps at neighbouring widths are in the ratio of these; in that of a higher power it is curvature.
    falls = np.abs(left[:, -1]) < last
    suspected = np.where(falls & (last > 2 * np.maximum(s.rounding(), noise)), last / s.h[:, -1], 0)
    noise = np.maximum(s.rounding(), noise if others is None else np.fmin(noise, others))
    # Of a jump so far above the noise no more than a quarter is left: where it is more, one variable's noise is larger
    # than the others'.
    return (np.abs(left[:, -1]) < last / 2) & (last > 8 * noise), suspected
