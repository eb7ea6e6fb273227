"""What each remedy of a factorial study is worth: effects, with intervals from a bootstrap over scenarios.

The scenarios are a sample of those that somebody has, the treatments are not: so scenarios are drawn anew, and each
brings its results under all treatments (Efron and Tibshirani 1993, chapter 6).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from retrograd import store
from retrograd.rescue import dotted
from retrograd.schema import EFFECT_KINDS, MEASURES, OUTCOMES

DRAWS, SEED = 2000, 1
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Effect:
    """What one level does beside the first of its factor, or two of them beyond the sum of each alone."""

    factors: tuple[str, ...]
    levels: tuple[str, ...]
    value: float
    low: float
    high: float


def draws(total: int) -> np.ndarray:
    """Returns the weights of the scenarios in each draw, shape (draw, scenario): each sums to 1."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    return rng.multinomial(total, np.full(total, 1 / total), size=DRAWS) / total


def effects(values: np.ndarray, cells: Sequence[Mapping[str, str]], order: Mapping[str, Sequence[str]]) -> list[Effect]:
    """Returns main effects and interactions of two factors.

    - `values`: shape (cell, scenario); NaN counts nowhere.
    - `cells`: level of each factor.
    - `order`: levels of each factor, the one that others are compared with first.

    A main effect is the mean over the cells with that level less the mean over those with the first one; balanced
    designs make other factors cancel. An interaction is the difference of such differences.
    """
    weights = draws(values.shape[1])
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def mean(rows: np.ndarray) -> np.ndarray:
        # Of the sample first, then of each draw.
        sums, counts = filled[rows].sum(axis=0), known[rows].sum(axis=0).astype(float)
        with np.errstate(invalid="ignore"):
            return np.concatenate([[sums.sum() / counts.sum()], (weights @ sums) / (weights @ counts)])

    at = lambda **levels: np.array([all(cell[f] == v for f, v in levels.items()) for cell in cells])
    out = [
        _effect((factor,), (level,), mean(at(**{factor: level})) - mean(at(**{factor: first})))
        for factor, (first, *others) in order.items()
        for level in others
    ]
    for (a, (a0, *a_others)), (b, (b0, *b_others)) in combinations(order.items(), 2):
        for i in a_others:
            for j in b_others:
                corner = [at(**{a: u, b: v}) for u, v in ((i, j), (i, b0), (a0, j), (a0, b0))]
                if all(rows.any() for rows in corner):
                    both, only_a, only_b, neither = map(mean, corner)
                    out.append(_effect((a, b), (i, j), both - only_a - only_b + neither))
    return out


def _effect(factors: tuple[str, ...], levels: tuple[str, ...], values: np.ndarray) -> Effect:
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, LEVELS) if drawn.size else (np.nan, np.nan)
    return Effect(factors, levels, float(values[0]), float(low), float(high))


def smallest_cures(
    good: np.ndarray, cells: Sequence[Mapping[str, str]], order: Mapping[str, Sequence[str]]
) -> list[list[frozenset[tuple[str, str]]]]:
    """Returns, for each scenario, the smallest sets of remedies under which it is good; empty where there is none.

    - `good`: shape (cell, scenario).

    A remedy is a factor at another level than its first.
    """
    remedies, place = [remedies_of(cell, order) for cell in cells], list(order)
    out = []
    for column in good.T:
        working = [remedies[i] for i in np.flatnonzero(column)]
        fewest = min(map(len, working), default=0)
        smallest = (r for r in working if len(r) == fewest)
        out.append(sorted(smallest, key=lambda r: sorted(place.index(f) for f, _ in r)))
    return out


def waterfall(
    good: np.ndarray, cells: Sequence[Mapping[str, str]], order: Mapping[str, Sequence[str]]
) -> list[tuple[frozenset[tuple[str, str]], int]]:
    """Returns remedies added one after the other, from none, and how many scenarios are good with all up to there.

    - `good`: shape (cell, scenario).

    Each time the one that adds most scenarios; where no single one adds any, the two that do, and so on. Only cells of
    the design are stepped on. It ends where nothing adds one.
    """
    counts = {remedies_of(cell, order): int(row.sum()) for cell, row in zip(cells, good, strict=True)}
    here, place = frozenset[tuple[str, str]](), list(order)
    if here not in counts:
        return []
    out = [(here, counts[here])]
    for size in range(1, len(order) + 1):
        while True:
            options = [r for r in counts if r > here and len(r) == len(here) + size]
            # Of equals the factors that the design names first.
            rank = lambda r, here=here: (-counts[r], sorted(place.index(f) for f, _ in r - here))
            best = min(options, key=rank, default=here)
            if counts[best] <= counts[here]:
                break
            out.append((best - here, counts[best]))
            here = best
    return out


def remedies_of(cell: Mapping[str, str], order: Mapping[str, Sequence[str]]) -> frozenset[tuple[str, str]]:
    """Returns the factors of a cell that are at another level than their first, with that level."""
    return frozenset((f, v) for f, v in cell.items() if v != order[f][0])


# -- a study's ---------------------------------------------------------------------------------------------


def weigh(settings: Mapping[str, Any], summary: xr.Dataset, seconds: np.ndarray) -> dict[str, Any]:
    """Returns the variables and labels of `effects.nc`.

    - `settings`: as `Plan.effects_settings` gives them.
    - `seconds`: time of solve and gradient, shape (variant, scenario).
    """
    variants, scenarios = (store.labels(summary, name) for name in ("variant", "scenario"))
    order, by_name = dict(settings["factors"]), settings["cells"]
    cells = [by_name[name] for name in variants if name in by_name]
    rows = np.array([i for i, name in enumerate(variants) if name in by_name])
    good = summary["outcome"].values == OUTCOMES.index("verified")
    attempts = (summary["num_accepted"].values + summary["num_rejected"].values).astype(float)
    with np.errstate(divide="ignore"):
        # Nothing attempted, such as after a search for the steady state that failed, is no effort of 0.
        measures = [good.astype(float), *(np.where(v > 0, np.log10(v), np.nan) for v in (attempts, seconds))]
    found = [
        ("main" if len(e[0].factors) == 1 else "interaction", _name(e[0]), e)
        for e in _of_each([m[rows] for m in measures], cells, order)
    ]
    for i, name in enumerate(variants):
        if name not in by_name:
            twin, changed = _twin(settings, name, [variants[r] for r in rows])
            pair = [m[[variants.index(twin), i]] for m in measures]
            (effect,) = _of_each(pair, [{"": "no"}, {"": "yes"}], {"": ["no", "yes"]})
            found.append(("beside", f"{name}: {', '.join(changed) or 'the same'} (against {twin})", effect))
    table = lambda get: np.array([[get(e[m]) for _, _, e in found] for m in range(len(MEASURES))])
    factor = lambda values: np.concatenate([values[:1], 10.0 ** values[1:]])
    cures = smallest_cures(good[rows], cells, order)
    steps = waterfall(good[rows], cells, order)
    told = lambda s: " + ".join(level for f in order for g, level in s if g == f)
    level = lambda name, f: by_name.get(name, {}).get(f, "")
    index = lambda name, f: order[f].index(level(name, f)) if name in by_name else -1
    with warnings.catch_warnings():
        # A variant under which nothing was attempted.
        warnings.simplefilter("ignore", RuntimeWarning)
        middle = np.nanmedian(np.where(attempts > 0, attempts, np.nan), axis=1)
    return {
        "values": {
            "level": [[index(name, f) for f in order] for name in variants],
            "level_name": [[level(name, f) for f in order] for name in variants],
            "verified": good.mean(axis=1),
            "attempts": middle,
            "seconds": np.nansum(seconds, axis=1) / len(scenarios),
            "value": factor(table(lambda e: e.value)),
            "low": factor(table(lambda e: e.low)),
            "high": factor(table(lambda e: e.high)),
            "effect_kind": [EFFECT_KINDS.index(kind) for kind, _, _ in found],
            "cure_size": [len(sets[0]) if sets else -1 for sets in cures],
            "cure": [" or ".join(told(s) or "none needed" for s in sets) for sets in cures],
            "waterfall_verified": [count for _, count in steps],
        },
        "labels": {
            "variant": variants,
            "factor": list(order),
            "measure": list(MEASURES),
            "effect": [name for _, name, _ in found],
            "scenario": scenarios,
            "waterfall": [f"+ {told(s)}" if s else " ".join(levels[0] for levels in order.values()) for s, _ in steps],
        },
    }


def clear_interactions(ds: xr.Dataset) -> list[int]:
    """Returns the interactions on the share verified whose interval excludes 0, the largest first, as indices."""
    m = MEASURES.index("verified")
    value, low, high = (ds[name].values[m] for name in ("value", "low", "high"))
    clear = (ds["effect_kind"].values == EFFECT_KINDS.index("interaction")) & ((low > 0) | (high < 0))
    return [int(e) for e in np.argsort(-np.abs(value), kind="stable") if clear[e]]


def _of_each(
    measures: list[np.ndarray], cells: Sequence[Mapping[str, str]], order: Mapping[str, Sequence[str]]
) -> list[tuple[Effect, ...]]:
    return list(zip(*(effects(m, cells, order) for m in measures), strict=True))


def _name(effect: Effect) -> str:
    return " × ".join(f"{f}: {v}" for f, v in zip(effect.factors, effect.levels, strict=True))


def _twin(settings: Mapping[str, Any], name: str, among: list[str]) -> tuple[str, list[str]]:
    """Returns the variant whose settings differ from those of another in the fewest keys, and these keys."""
    mine = _dotted(settings, name)

    def pair(other: str) -> tuple[str, list[str]]:
        theirs = _dotted(settings, other)
        return other, [key for key, value in mine.items() if value != theirs.get(key)]

    return min(map(pair, among), key=lambda pair: len(pair[1]))


def _dotted(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    out: dict[str, Any] = {"gradient": settings["gradient_of"][name]}
    for stage in ("steady_state", "dynamics"):
        out |= dotted(settings["variants"][name].get(stage, {}))
    return out


def seconds_of(
    settings: Mapping[str, Any], summary: xr.Dataset, read: Callable[[str, str, int], Mapping[str, float]]
) -> np.ndarray:
    """Returns the time of solve and gradient that falls to each scenario, shape (variant, scenario).

    - `settings`: as `Plan.effects_settings` gives them.
    - `read`: stage, work and chunk -> times of its parts for all of the chunk.

    Scenarios of a job are solved side by side: each gets the share of its attempts.
    """
    attempts = summary["num_accepted"].values + summary["num_rejected"].values
    out = np.full(attempts.shape, np.nan)
    for i, name in enumerate(store.labels(summary, "variant")):
        works = settings["works"][name]
        for c, (start, stop) in enumerate(settings["chunks"]):
            total = sum(
                read(stage, works[stage], c)[part]
                for stage, part in (("dynamics", "solve"), ("gradients", settings["gradient_of"][name]))
            )
            mine = attempts[i, start:stop]
            if mine.sum():
                out[i, start:stop] = total * mine / mine.sum()
    return out
