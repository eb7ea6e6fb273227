"""The tables of the report's page, as rows of plain values."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import xarray as xr

from retrograd import details, figures
from retrograd.results import MOST_VARIANTS, Results, Treated, spread
from retrograd.schema import CAUSES, OUTCOMES, REASONS, STEADY_METHOD, STEADY_STATUS, VERDICTS
from retrograd.wording import CAUSE_WORDS, REASON_WORDS, SHORT, verdict, worst_state

# Rows of the scenario table, and of the table of derivatives: a page is read, the rest is in summary.nc.
MOST_SCENARIOS = 2000
MOST_DERIVATIVES = 200
MOST_SYMBOLS = 200
# Sentences about single scenarios under one cause.
MOST_SAID = 5
# Scenarios whose records are looked up under one cause and variant.
MOST_LOOKED = 20


def _largest(values: np.ndarray) -> float:
    return float(np.max(values, initial=-np.inf, where=np.isfinite(values))) if np.isfinite(values).any() else np.nan


def median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else np.nan


def _least(values: np.ndarray) -> float:
    return -_largest(-values)


def rescued(results: Results, i: int) -> int:
    """Returns how many scenarios a rung of a variant's ladder solved."""
    rungs = [results.summary[name].values[i] > 0 for name in ("rung", "steady_state_rung") if name in results.summary]
    return int(np.any(rungs, axis=0).sum()) if rungs else 0


def verdict_table(results: Results) -> list[dict[str, Any]]:
    """Returns the rows of the verdict table, one a variant."""
    rows = []
    for i, treated in enumerate(results.variants):
        attempts = results.attempts[i][results.attempts[i] > 0].astype(float)
        m = treated.methods.index(treated.method)
        steady = None if treated.steady is None else int((treated.steady["status"].values != 0).sum())
        rows.append(
            {
                "name": treated.name,
                "best": treated is results.best,
                "method": treated.method,
                "counts": [int((results.outcome[i] == c).sum()) for c in range(len(OUTCOMES))],
                "median": median(attempts),
                "most": _largest(attempts),
                **_worst(treated, m),
                "steady": steady,
                "rescued": rescued(results, i),
                "digits": _least(results.summary["ode_digits"].values[i]),
                "sentence": verdict(results, treated),
            }
        )
    return rows


def fewest_digits(results: Results) -> tuple[float, str] | None:
    """Returns the fewest ODE digits under the best variant, and in which scenario; None where none are known."""
    digits = results.summary["ode_digits"].values[results.index(results.best)]
    if not np.isfinite(digits).any():
        return None
    at = int(np.nanargmin(np.where(np.isfinite(digits), digits, np.nan)))
    return float(digits[at]), results.scenarios[at]


def undetermined(results: Results) -> dict[str, int]:
    """Returns how many verified derivatives under the best variant are smaller than their error against the ODE.

    `total` of them are larger than their bounds, `left_out` are not: of those no more is known than that.
    """
    treated = results.best
    m = treated.methods.index(treated.method)
    ad, ode = np.abs(treated.gradients["ad"].values[:, m]), treated.gradients["ode_error"].values
    verified = treated.gradients["verdict"].values[:, m] == VERDICTS.index("verified")
    larger = verified & (np.abs(treated.gradients["fd"].values) > treated.bound[:, m])
    counts = {"count": larger & (ad <= ode), "total": larger, "left_out": verified & ~larger}
    return {name: int(np.sum(those)) for name, those in counts.items()}


def _worst(treated: Treated, m: int) -> dict[str, float]:
    """Returns the largest error by a method, relative to the scenario's largest |fd|, and the bound there."""
    error, bound = (figures.relative(v, treated)[:, m] for v in (treated.difference, treated.bound))
    if not np.isfinite(error).any():
        return {"error": np.nan, "bound": np.nan}
    at = np.unravel_index(np.nanargmax(np.where(np.isfinite(error), error, np.nan)), error.shape)
    return {"error": float(error[at]), "bound": float(bound[at])}


def method_table(results: Results) -> list[dict[str, Any]]:
    """Returns how the scenarios of each variant fared by each gradient method."""
    rows = []
    for treated in results.variants:
        status = treated.gradients["status"].values
        error = figures.relative(treated.difference, treated)
        bound = figures.relative(treated.bound, treated)
        for m, method in enumerate(treated.methods):
            rows.append(
                {
                    "name": treated.name,
                    "method": method,
                    "decides": method == treated.method,
                    "counts": [int((status[:, m] == c).sum()) for c in range(len(VERDICTS))],
                    "error": _largest(error[:, m]),
                    "bound": median(bound[:, m]),
                    "why": _reasons(treated, m),
                }
            )
    return rows


def _reasons(treated: Treated, m: int) -> list[tuple[str, int]]:
    """Returns why derivatives by a method are not verified, and of how many, most frequent first."""
    reason = treated.gradients["reason"].values[:, m]
    counts = [(words, int((reason == REASONS.index(name)).sum())) for name, words in REASON_WORDS.items()]
    return sorted((c for c in counts if c[1]), key=lambda c: -c[1])


def independent_table(results: Results) -> list[dict[str, Any]]:
    """Returns how replay compares with derivatives that share no steps with it, one row a variant and kind.

    Distances count relative to the error bars of both and, as all in the report, to the scenario's largest |fd|.
    """
    rows = []
    for treated in results.variants:
        m = figures.reference_method(treated)
        ad = treated.gradients["ad"].values[:, m]
        bar = treated.gradients["ode_error"].values + treated.gradients["ad_error"].values[:, m]
        for name, words in (("reference", "SciPy on sensitivity equations"), ("fd_free", "differences of free solves")):
            value, error = (treated.gradients[n].values for n in (name, f"{name}_error"))
            known = np.isfinite(value)
            if known.any():
                distance = np.abs(value - ad)
                inside = known & (distance <= error + bar)
                rows.append(
                    {
                        "name": treated.name,
                        "method": treated.methods[m],
                        "words": words,
                        "scenarios": int(known.any(axis=1).sum()),
                        "derivatives": int(known.sum()),
                        "inside": int(inside.sum()),
                        "distance": _largest(figures.relative(distance, treated)),
                        "own": median(figures.relative(error, treated)),
                    }
                )
    return rows


def derivative_table(results: Results) -> tuple[list[dict[str, Any]], int]:
    """Returns the best variant's largest error of each derivative, and how many rows are left out."""
    best = results.best
    error = figures.relative(best.difference, best)
    bound = figures.relative(best.bound, best)
    size = figures.relative(np.abs(best.gradients["fd"].values), best)
    verdicts = best.gradients["verdict"].values
    rows = []
    for j, label in enumerate(best.wrt):
        for m, method in enumerate(best.methods):
            column = error[:, m, j]
            judged = verdicts[:, m, j] != VERDICTS.index("skipped")
            row = {
                "wrt": label,
                "method": method,
                "verified": int((verdicts[:, m, j] == 0).sum()),
                "small": int(((verdicts[:, m, j] == 0) & (size[:, j] <= bound[:, m, j])).sum()),
                "judged": int(judged.sum()),
                "error": _largest(column),
                "bound": np.nan,
                "scenario": "",
                "widest": _largest(bound[:, m, j]),
            }
            if np.isfinite(column).any():
                worst = int(np.nanargmax(column))
                row |= {"bound": float(bound[worst, m, j]), "scenario": results.scenarios[worst]}
            rows.append(row)
    left_out = max(len(rows) - MOST_DERIVATIVES, 0)
    if left_out:
        keep = sorted(range(len(rows)), key=lambda r: -np.nan_to_num(rows[r]["error"], nan=-1.0))[:MOST_DERIVATIVES]
        rows = [rows[r] for r in sorted(keep)]
    return rows, left_out


# An item of a model's docstring: "- `k1`, `k3`: what they are", over any number of indented lines.
_ITEM = re.compile(r"^[-*] +(`[^`\n]+`(?:(?:,| and) *`[^`\n]+`)*) *: *(.+(?:\n[ \t]+\S.*)*)", re.MULTILINE)


def meanings(description: str) -> dict[str, str]:
    """Returns what a model's docstring says of its symbols, by symbol: its items that begin with names in backticks."""
    told: dict[str, str] = {}
    for names, text in _ITEM.findall(description):
        told |= dict.fromkeys(re.findall(r"`([^`]+)`", names), " ".join(text.split()))
    return told


def symbol_table(results: Results) -> tuple[list[dict[str, Any]], int]:
    """Returns the rows of the table of symbols, states before parameters, and how many are left out.

    A row has unit, meaning, the names of the derivatives by it, and the ranges of its values over the scenarios.
    """
    best, attrs = results.best, results.model.attrs
    told = meanings(str(attrs.get("description", "")))
    places = {str(name): i for i, name in enumerate(best.dynamics["parameter_name"].values)}
    rows = [
        {
            "name": name,
            "role": "state",
            "unit": unit,
            "meaning": told.get(name, ""),
            "wrt": [],
            "ranges": [("at time 0", *_range(best.dynamics["x_start"].values[:, i]))],
        }
        for i, (name, unit) in enumerate(zip(best.states, best.state_units, strict=True))
    ]
    files = [("steady phase", best.steady), ("dynamic phase", best.dynamics)]
    for name, unit in json.loads(attrs.get("parameters", "{}")).items():
        columns = [(p, ds["k"].values[:, places[name]]) for p, ds in files if ds is not None and name in places]
        alike = len(columns) < 2 or np.array_equal(columns[0][1], columns[1][1], equal_nan=True)
        rows.append(
            {
                "name": name,
                "role": "parameter",
                "unit": unit,
                "meaning": told.get(name, ""),
                "wrt": [label for label in best.wrt if label.rpartition("@")[0] == name],
                "ranges": [("" if alike else phase, *_range(v)) for phase, v in columns[: 1 if alike else 2]],
            }
        )
    return rows[:MOST_SYMBOLS], max(len(rows) - MOST_SYMBOLS, 0)


def _range(values: np.ndarray) -> tuple[float, float]:
    return _least(values), _largest(values)


def steady_table(results: Results) -> list[dict[str, Any]]:
    """Returns how the search for steady states went under each variant; empty where the study has none."""
    rows = []
    for treated in results.variants:
        if treated.steady is None:
            continue
        ds = treated.steady
        status = ds["status"].values
        counts = [(STEADY_STATUS[c].replace("_", " "), int((status == c).sum())) for c in range(len(STEADY_STATUS))]
        good = status == 0
        by = [(STEADY_METHOD[c], int((ds["method"].values[good] == c).sum())) for c in range(len(STEADY_METHOD))]

        def over(name: str, ds: xr.Dataset = ds, good: np.ndarray = good) -> float:
            return _largest(ds[name].values[good].astype(float)) if name in ds else np.nan

        rows.append(
            {
                "name": treated.name,
                "found": int(good.sum()),
                "failed": [(words, count) for words, count in counts[1:] if count],
                "methods": [(words, count) for words, count in by if count],
                "residual": over("residual_norm"),
                "iterations": over("iterations"),
                "eigenvalue": over("max_real_eigenvalue"),
                "cross_check": over("cross_check"),
            }
        )
    return rows


def failure_table(results: Results) -> list[dict[str, Any]]:
    """Returns one entry for each cause that occurred, with a row for each variant that it hit."""
    cause = results.summary["cause"].values
    time = results.summary["cause_time"].values
    out = []
    for code, name in enumerate(CAUSES):
        if name == "none" or not (cause == code).any():
            continue
        words, advice = CAUSE_WORDS[name]
        rows, said = [], []
        for i, treated in enumerate(results.variants):
            hit = np.flatnonzero(cause[i] == code)
            if len(hit):
                first = {"variant": treated.name, "scenario": results.scenarios[hit[0]]}
                said.append(first | {"text": str(results.summary["cause_text"].values[i, hit[0]])})
                when = time[i, hit][np.isfinite(time[i, hit])]
                rows.append(
                    {
                        "name": treated.name,
                        "count": len(hit),
                        "examples": [results.scenarios[s] for s in spread(hit, 3)],
                        "more": max(len(hit) - 3, 0),
                        "earliest": float(when.min()) if when.size else np.nan,
                        "latest": float(when.max()) if when.size else np.nan,
                        "where": _where(results, treated, i, hit),
                        "cure": _cure(results, treated, hit),
                    }
                )
        # Of many variants those that it hit most.
        keep = sorted(range(len(rows)), key=lambda r: -rows[r]["count"])[:MOST_VARIANTS]
        told = {
            "code": name,
            "number": code,
            "words": words,
            "advice": advice,
            "said": [said[r] for r in keep[:MOST_SAID]],
        }
        out.append(told | {"rows": [rows[r] for r in sorted(keep)], "left_out": len(rows) - len(keep)})
    return out


def _where(results: Results, treated: Treated, i: int, hit: np.ndarray) -> str:
    """Returns the state or the derivative that a cause names most often."""
    for variable, names, what in (
        ("cause_term", treated.wrt, "derivative"),
        ("cause_state", treated.states, "state"),
    ):
        codes = results.summary[variable].values[i, hit]
        codes = codes[(codes >= 0) & (codes < len(names))]
        if len(codes):
            found, counts = np.unique(codes, return_counts=True)
            most = int(np.argmax(counts))
            share = "" if counts[most] == len(hit) else f" ({counts[most]} of {len(hit)})"
            first = worst_state(
                results, treated, hit[np.isin(results.summary[variable].values[i, hit], found[most])][0]
            )
            why = f": {first[1]}" if what == "state" and first else ""
            return f"{what} {names[found[most]]}{share}{why}"
    # Where the causes name none, those of some scenarios are looked up in their records.
    looked = [told for s in spread(hit, MOST_LOOKED) if (told := worst_state(results, treated, s))]
    if not looked:
        return ""
    (name, why), count = Counter(looked).most_common(1)[0]
    share = "" if count == len(looked) else f" ({count} of {len(looked)}{' looked at' * (len(looked) < len(hit))})"
    return f"state {name}{share}: {why}"


def _cure(results: Results, treated: Treated, hit: np.ndarray) -> dict[str, Any] | None:
    """Returns the other variant that verifies most of these scenarios, None where no one does."""
    best: dict[str, Any] | None = None
    for other in results.variants:
        count = int((results.outcome[results.index(other), hit] == 0).sum())
        if other is treated or not count:
            continue
        better = best is None or count > best["count"] or (count == best["count"] and other is results.best)
        if better:
            best = {"name": other.name, "count": count, "of": len(hit)}
    return best


def scenario_table(results: Results) -> tuple[list[dict[str, Any]], int]:
    """Returns one row a scenario with its outcome under each variant, and how many are left out.

    Where there are too many, those with details stay, then those that fail under the best variant, then those that
    fail under most others, then the ones with most attempts; rows stand in the order of the study.
    """
    i = results.index(results.best)
    total = len(results.scenarios)
    keep = np.arange(total)
    if total > MOST_SCENARIOS:
        keep = np.sort(list(dict.fromkeys([*details.chosen(results), *details.worst_first(results)]))[:MOST_SCENARIOS])
    cause = results.summary["cause"].values
    rungs = [ds["rung_name"].values for ds in (results.best.steady, results.best.dynamics) if ds is not None]
    rows = []
    for s in keep:
        cells = []
        for v in map(results.index, results.shown):
            name = OUTCOMES[results.outcome[v, s]]
            why = CAUSE_WORDS[CAUSES[cause[v, s]]][0] if name != "verified" else ""
            cells.append(
                {
                    "code": int(results.outcome[v, s]),
                    "cause": int(cause[v, s]),
                    "sign": SHORT[name][0],
                    "words": SHORT[name][1],
                    "why": why,
                }
            )
        rung = ", ".join(str(names[s]) for names in rungs if names[s] != "none")
        rows.append(
            {"name": results.scenarios[s], "cells": cells, "attempts": int(results.attempts[i, s]), "rung": rung}
        )
    return rows, total - len(rows)
