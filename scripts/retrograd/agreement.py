"""How far two runs agree, by limits that the runs' own numerics give.

Values of a quantity are identical, or within what rounding can do to them, or within what the choice of steps can, or
different. Where one of these limits spans the quantity itself, agreement within it says nothing: not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrograd.schema import AGREEMENT, STAGES

IDENTICAL, ROUNDING, SOLVER, NOT_COMPARABLE, DIFFERENT, NOT_COMPARED = range(len(AGREEMENT))
# What is compared, in the order in which one is made of the other.
PARTS = ("study", "model", *STAGES)
# Agreement within this share of a quantity's own size is information; within more it is none.
RESOLUTION = 0.1
# Units in the last place, of the quantity's size, that any two computations of a value may differ by: where a part of
# the size of the whole cancels, as in 1 - tanh^2, its rounding shows under no change of what went in.
FLOOR = 4
# Units in the last place, of a value itself, that it may differ by where no changed replays of it have been made: first
# guesses have none, and those of a run are none of its model with another's weights, parameters or formulation. Wider
# than FLOOR, which stands beside a measurement and counts in the quantity's size.
UNMEASURED = 64


@dataclass
class Quantity:
    """One quantity of two runs, and its limits; arrays of one shape, or broadcast to it.

    - `owner`: the scenario of each row, shape (row,); None where no row belongs to one.
    - `rounding`: what rounding can do to it; None where no difference is explained by rounding, as in inputs.
    - `solver`: what the choice of steps can do beside it; NaN where that is not known.
    - `size`: what a difference is a share of.
    - `tolerance`: atol + rtol |x|, None where the quantity has none.
    - `place`: index -> where that is, in words.
    - `compared`: which rows, shape (row,); None for all.
    - `dtype`: in which these numbers were computed.
    """

    here: np.ndarray
    there: np.ndarray
    owner: np.ndarray | None = None
    rounding: Any = None
    solver: Any = 0.0
    size: Any = 1.0
    tolerance: Any = None
    place: Callable[[tuple[int, ...]], str] = lambda index: ""
    compared: np.ndarray | None = None
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float64))


@dataclass
class Weighed:
    """What a quantity came to.

    - `values`: for the file's variables of (variant, kind, quantity).
    - `codes`: the verdict on each value.
    - `scenario`: the worst of each scenario, shape (scenario,).
    """

    values: dict[str, Any]
    codes: np.ndarray
    scenario: np.ndarray

    @property
    def verdict(self) -> int:
        return int(self.values["verdict"])


def unmeasured(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns what rounding may do to values, of their shape, where no changed replay has shown it."""
    return UNMEASURED * np.finfo(dtype).eps * np.abs(values)


def weigh(q: Quantity, scenarios: int) -> Weighed:
    """Returns how the values of a quantity compare, in all and by scenario."""
    here, there = np.asarray(q.here, float), np.asarray(q.there, float)
    shape = here.shape
    spread = lambda value: np.broadcast_to(np.asarray(value, float), shape)
    exact = q.rounding is None
    with np.errstate(all="ignore"):
        size, both = spread(q.size), np.maximum(np.abs(here), np.abs(there))
        apart = np.abs(here - there)
        floor = FLOOR * float(np.finfo(q.dtype).eps) * np.fmax(both, size)
        rounding = np.zeros(shape) if exact else spread(q.rounding) + floor
        solver = np.zeros(shape) if exact else spread(q.solver)
        unknown = np.isnan(rounding + solver)
        limit = np.where(np.isnan(rounding), floor, rounding) + np.where(np.isnan(solver), 0, solver)
        # Below what counts as zero beside the quantity, no more than that can be asked of it.
        useful = lambda bound: bound <= RESOLUTION * size
        codes = np.full(shape, DIFFERENT, np.int8)
        codes[unknown & np.isfinite(apart)] = NOT_COMPARABLE
        within = apart <= limit
        codes[within] = np.where(useful(limit), SOLVER, NOT_COMPARABLE)[within]
        within = apart <= rounding
        codes[within] = np.where(useful(rounding), ROUNDING, NOT_COMPARABLE)[within]
        equal = (here == there) | (np.isnan(here) & np.isnan(there))
        codes[equal] = IDENTICAL
        excess = np.where(equal, 0.0, np.where(np.isnan(apart), np.inf, apart / np.where(limit > 0, limit, np.nan)))
        excess = np.where(~equal & np.isnan(excess), np.inf, excess)
        relative = np.where(equal, 0.0, apart / both)
        limits = np.where(size > 0, limit / size, np.nan)
    chosen = np.ones(len(here), bool) if q.compared is None else q.compared
    codes = np.where(chosen.reshape(-1, *[1] * (len(shape) - 1)), codes, NOT_COMPARED).astype(np.int8)
    used = codes != NOT_COMPARED
    values = nothing_compared() | {"n_values": int(used.sum()), "n_equal": int((equal & used).sum())}
    if used.any():
        ulp = np.where(equal, 0.0, ulps(here, there, q.dtype))
        values["verdict"] = int(worst_of(codes[used]))
        values["max_ulp"], values["max_relative"] = _most(ulp[used]), _most(relative[used])
        values["over_limit"] = _most(excess[used])
        if q.tolerance is not None:
            values["max_tolerance"] = _most(np.where(equal, 0.0, apart / spread(q.tolerance))[used])
        if not exact:
            with np.errstate(all="ignore"):
                values["over_rounding"] = _most(np.where(equal, 0.0, apart / rounding)[used])
            values["detection_limit"] = _most(limits[used & np.isfinite(limits)])
        if not equal[used].all():
            rank = np.where(used & ~equal, RANK[codes] + 1 - 1 / (2 + np.nan_to_num(excess, posinf=1e300)), -1.0)
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(rank)), shape))
            values["where"] = q.place(index)
            values["where_scenario"] = -1 if q.owner is None else int(q.owner[index[0]])
    return Weighed(values, codes, by_owner(codes, q.owner, scenarios))


def nothing_compared() -> dict[str, Any]:
    """Returns `Weighed.values` of a quantity of which nothing was compared."""
    measures = ("max_ulp", "max_relative", "max_tolerance", "over_rounding", "over_limit", "detection_limit")
    found: dict[str, Any] = dict.fromkeys(measures, np.nan)
    return found | {"n_values": 0, "n_equal": 0, "verdict": NOT_COMPARED, "where": "", "where_scenario": -1}


def by_owner(codes: np.ndarray, owner: np.ndarray | None, scenarios: int) -> np.ndarray:
    """Returns the worst verdict of each scenario, shape (scenario,), from codes (row, ...)."""
    out = np.full(scenarios, NOT_COMPARED, np.int8)
    if owner is not None and len(owner):
        rank = np.zeros(scenarios, int)
        np.maximum.at(rank, owner, RANK[worst_of(codes.reshape(len(codes), -1))])
        out = np.argsort(RANK)[rank].astype(np.int8)
    return out


# Of several verdicts the worst counts: one that cannot be told hides no difference, and is worse than agreement.
RANK = np.array([1, 2, 3, 4, 5, 0])


def worst_of(codes: np.ndarray) -> np.ndarray:
    """Returns the worst verdict along the last axis; not compared where there is none."""
    if codes.shape[-1] == 0:
        return np.full(codes.shape[:-1], NOT_COMPARED, np.int8)
    at = np.argmax(RANK[codes], axis=-1)
    return np.take_along_axis(codes, at[..., None], axis=-1)[..., 0]


def counted(found: Mapping[tuple[str, str], Weighed]) -> dict[tuple[str, str], Weighed]:
    """Returns the verdicts that count: a replay within rounding is the best there can be, and lowers none."""
    return {key: w for key, w in found.items() if key[0] == "free" or w.verdict != ROUNDING}


def verdict_of(found: Mapping[tuple[str, str], Weighed]) -> int:
    """Returns the verdict on a variant."""
    return int(worst_of(np.array([w.verdict for w in counted(found).values()])))


def _most(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.max(known)) if known.size else np.nan


def ulps(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns how many numbers of a float type lie between values, as float64; NaN where one is NaN."""
    kind = np.int32 if dtype == np.float32 else np.int64
    low = np.iinfo(kind).min

    def ordered(values: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(values, dtype).view(kind)
        return np.where(bits < 0, low - bits, bits).astype(np.float64 if kind is np.int32 else object)

    with np.errstate(all="ignore"):
        apart = np.abs(ordered(a) - ordered(b)).astype(np.float64)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, apart)
