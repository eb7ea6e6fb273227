"""Derivatives by finite differences that state their own error bound.

Central differences over a sweep of widths, each four times narrower than the last, are extrapolated (Richardson; error
estimate after Ridders 1982, doi:10.1016/S0141-1195(82)80057-0). The function's own rounding noise is measured in the
same values: what is left of the even part f(+h) - 2 f(0) + f(-h) at narrow widths, once its quadratic part is taken
off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATIO = 4.0
WIDTHS = 6
WIDEST = 2.0**-6
# Pairs of neighbouring widths, from the narrow end, whose even parts give the noise.
NOISE_PAIRS = 2
ORDERS = 4


def widths(scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the sweep, shape (..., width), widest first, for parameters of typical size `scale`, shape (...).

    In float32 the sweep is shorter, since its noise is larger by nine digits.
    """
    ratio = RATIO if np.dtype(dtype) == np.float64 else 2.0
    return scale[..., None] * WIDEST / ratio ** np.arange(WIDTHS)


@dataclass
class Estimate:
    """A derivative with its error bound, and the sweep that it came from."""

    value: np.ndarray  # (...)
    error: np.ndarray  # (...)
    step: np.ndarray  # (...), the narrowest width that entered
    quotients: np.ndarray  # (..., width)


def estimate(h: np.ndarray, plus: np.ndarray, minus: np.ndarray, center: np.ndarray, dtype: np.dtype) -> Estimate:
    """Returns derivatives from function values.

    - `h`: widths as they were used, shape (item, width), widest first, in a constant ratio.
    - `plus`, `minus`: function values at +h and -h, same shape; NaN where there is none.
    - `center`: value at 0, shape (item,).
    - `dtype`: float type in which the function was computed.
    """
    with np.errstate(all="ignore"):
        return _estimate(h, plus, minus, _noise(h, plus, minus, center, float(np.finfo(dtype).eps)))


def _estimate(h: np.ndarray, plus: np.ndarray, minus: np.ndarray, noise: np.ndarray) -> Estimate:
    quotients = (plus - minus) / (2 * h)
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
    # Wide widths can agree by chance on the far side of a kink. The narrowest quotient knows nothing of those.
    nearest = np.abs(best - quotients[:, -1]) - 2 * noise / h[:, -1]
    bound = np.where(nearest > bound, nearest, bound)
    bound = np.where(np.isfinite(best), bound, np.nan)
    return Estimate(best, bound, step, quotients)


def _noise(h: np.ndarray, plus: np.ndarray, minus: np.ndarray, center: np.ndarray, eps: float) -> np.ndarray:
    even = plus - 2 * center[:, None] + minus
    # The quadratic part of one width taken off the next. The narrowest pairs only: a kink crosses those last.
    left = np.abs(even[:, 1:] - even[:, :-1] * (h[:, 1:] / h[:, :-1]) ** 2)
    known = np.isfinite(left)
    narrow = known & (np.cumsum(known[:, ::-1], axis=1)[:, ::-1] <= NOISE_PAIRS)
    own = np.max(np.where(narrow, left, 0), axis=1)
    values = np.abs(np.concatenate([plus, minus, center[:, None]], axis=1))
    size = np.max(np.where(np.isfinite(values), values, 0), axis=1)
    return np.maximum(own, 2 * eps * size)
