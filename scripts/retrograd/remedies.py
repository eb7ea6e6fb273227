"""What a study says about remedies, in words and tables: effects, smallest cures, and which variant to take."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from retrograd import store
from retrograd.effects import clear_interactions
from retrograd.schema import EFFECT_KINDS

if TYPE_CHECKING:
    from retrograd.results import Results, Treated

# Interactions and cures that are told; effects.nc holds all.
MOST_TOLD = 12
# Factor by which times of the same work differ on a machine with other jobs; the bootstrap over scenarios has no share
# in it.
NOISE = 1.1


def effect_rows(results: Results, kind: str) -> list[dict[str, Any]]:
    """Returns the effects of one kind (main, interaction, beside), each with values and intervals, and a judgement.

    Of interactions those on verified gradients whose interval is clear of 0, the largest first.
    """
    ds = results.effects
    if ds is None:
        return []
    names = store.labels(ds, "effect")
    if kind == "interaction":
        told = clear_interactions(ds)[:MOST_TOLD]
    else:
        told = np.flatnonzero(ds["effect_kind"].values == EFFECT_KINDS.index(kind))
    rows = []
    for e in told:
        measured = [tuple(float(ds[part].values[m, e]) for part in ("value", "low", "high")) for m in range(3)]
        name, _, twin = names[e].partition(" (against ")
        row = {"name": name, "twin": twin.removesuffix(")"), "judgement": judge(*measured)}
        row |= dict(zip(store.labels(ds, "measure"), measured, strict=True))
        rows.append(row)
    return rows


def judge(verified: tuple[float, ...], attempts: tuple[float, ...], seconds: tuple[float, ...]) -> str:
    """Returns what an interval that is clear of no effect says: of what is verified first, then of its cost."""
    if verified[1] > 0:
        return "helps"
    if verified[2] < 0:
        return "harms"
    for (_, low, high), clear in ((attempts, 1.0), (seconds, NOISE)):
        if high < 1 / clear:
            return "saves"
        if low > clear:
            return "costs"
    return "no clear effect"


def cure_rows(results: Results) -> list[dict[str, Any]]:
    """Returns the smallest sets of remedies, of the most scenarios first, with examples."""
    ds = results.effects
    if ds is None:
        return []
    size, cure = ds["cure_size"].values, [str(text) for text in ds["cure"].values]
    names = store.labels(ds, "scenario")
    rows = []
    for text, count in Counter(c for c, n in zip(cure, size, strict=True) if n >= 0).most_common(MOST_TOLD):
        hit = [i for i, c in enumerate(cure) if c == text]
        told = {"cure": text, "size": int(size[hit[0]]), "count": count, "examples": [names[i] for i in hit[:3]]}
        rows.append(told | {"more": max(count - 3, 0)})
    return rows


def without_cure(results: Results) -> list[str]:
    """Returns the scenarios that no cell of the design verifies."""
    ds = results.effects
    if ds is None:
        return []
    return [n for n, size in zip(store.labels(ds, "scenario"), ds["cure_size"].values, strict=True) if size < 0]


def advice(results: Results) -> dict[str, Any] | None:
    """Returns the cheapest variant that verifies every scenario that any variant does; None where none verifies one.

    Where no single variant does, the cheapest of those that verify most, and who verifies the rest. What is cheapest
    goes by time where it was measured, else by attempts.
    """
    good = results.outcome == 0
    solvable = good.any(axis=0)
    if not solvable.any():
        return None
    counts = good.sum(axis=1)
    cost = results.seconds if results.seconds is not None else np.median(results.attempts, axis=1)
    candidates = np.flatnonzero(counts == counts.max())
    # A time that is not known is no bargain.
    i = int(min(candidates, key=lambda v: (np.nan_to_num(cost[v], nan=np.inf), v)))
    chosen = results.variants[i]
    first = lambda s: results.variants[int(np.flatnonzero(good[:, s])[0])].name
    left = [(results.scenarios[s], first(s)) for s in np.flatnonzero(solvable & ~good[i])]
    digits = results.summary["ode_digits"].values[i][good[i]]
    digits = digits[np.isfinite(digits)]
    return {
        "name": chosen.name,
        "method": chosen.method,
        "verified": int(counts[i]),
        "solvable": int(solvable.sum()),
        "total": len(results.scenarios),
        "alike": len(candidates) - 1,
        "attempts": float(np.median(results.attempts[i])),
        "seconds": None if results.seconds is None else float(results.seconds[i]),
        "digits": float(digits.min()) if digits.size else np.nan,
        "left": left[:MOST_TOLD],
        "left_out": max(len(left) - MOST_TOLD, 0),
        "unsolved": [results.scenarios[s] for s in np.flatnonzero(~solvable)],
        "yaml": _pasted(results, chosen),
    }


def _pasted(results: Results, chosen: Treated) -> str:
    """Returns a variant as it is pasted into a study's config."""
    listed: dict[str, Any] = {"variants": [chosen.name]}
    settings = results.settings.get("defined", {}).get(chosen.name)
    if settings is not None:
        listed["define_variants"] = {chosen.name: json.loads(json.dumps(settings))}
    return yaml.safe_dump(listed, sort_keys=False, allow_unicode=True, default_flow_style=None, width=88)
