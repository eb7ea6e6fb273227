"""What the report shows of one scenario: its trajectory, its attempts, its finite differences, its derivatives.

Plain numbers, four digits of each, for a page that draws them where they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from retrograd import drawing, figures
from retrograd.results import Results, Treated, spread
from retrograd.schema import OUTCOMES, REASONS, STEADY_STATUS, VERDICTS
from retrograd.wording import REASON_WORDS, VERDICT_WORDS, worst_state

# Scenarios times variants: some 5 kB each, so that a page stays within a few megabytes.
MOST_PAIRS = 480
# Of each: points of a trajectory, attempts, derivatives in the table and in valleys, valleys that are drawn together.
MOST_POINTS = 80
MOST_ATTEMPTS = 120
MOST_WRT = 16
MOST_VALLEYS = 6
# Relative errors below it are drawn there: a logarithmic axis has no place for 0.
EXACT = 1e-17


def worst_first(results: Results) -> np.ndarray:
    """Returns all scenarios, as indices: first those that fail under the best, then most variants, then costly ones."""
    i = results.index(results.best)
    failing = (results.outcome != 0).sum(axis=0)
    return np.lexsort((-results.attempts[i], -failing, results.outcome[i] == 0))


def chosen(results: Results) -> list[int]:
    """Returns the scenarios that have details, as indices in the order of the study.

    All where they fit. Else up to half of the room is for those that fail, under the best variant first and then under
    most variants; the rest is an even sample of the others by attempts.
    """
    total = len(results.scenarios)
    room = max(MOST_PAIRS // max(len(results.shown), 1), 1)
    if total <= room:
        return list(range(total))
    order = worst_first(results)
    worst = order[(results.outcome != 0).any(axis=0)[order]][: (room + 1) // 2]
    others = np.argsort(results.attempts[results.index(results.best)], kind="stable")
    others = others[~np.isin(others, worst)]
    return sorted(int(s) for s in [*worst, *spread(others, room - len(worst))])


def page_data(results: Results, cause_words: Any) -> dict[str, Any]:
    """Returns what the page's script draws, ready for JSON.

    - `cause_words`: code of a cause to its words and advice.
    """
    best, rows = results.best, chosen(results)
    parameters = [str(p) for p in best.dynamics["parameter_name"].values]
    return {
        "states": [*map(list, zip(best.states, best.state_units, strict=True))][: figures.MOST_STATES],
        "parameters": parameters,
        "time": best.time_unit,
        "outcomes": [drawing.OUTCOME_STYLE[o][0] for o in OUTCOMES],
        "verdicts": [VERDICT_WORDS.get(v, v) for v in VERDICTS],
        "reasons": [REASON_WORDS.get(r, r.replace("_", " ")) for r in REASONS],
        "valleys": MOST_VALLEYS,
        "skipped": VERDICTS.index("skipped"),
        "causes": cause_words,
        "variants": [_variant(v) for v in results.shown],
        "scenarios": [
            {
                "name": results.scenarios[s],
                "k": _parameters(results, s),
                "by": [_details(results, v, s) for v in results.shown],
            }
            for s in rows
        ],
    }


def _variant(treated: Treated) -> dict[str, Any]:
    return {
        "name": treated.name,
        "method": treated.method,
        "methods": treated.methods,
        "wrt": _wrt(treated)[1],
        "of": len(treated.wrt),
    }


def _wrt(treated: Treated) -> tuple[list[int], list[str]]:
    kept = list(range(len(treated.wrt)))[:MOST_WRT]
    return kept, [treated.wrt[j] for j in kept]


def _parameters(results: Results, s: int) -> list[list[float | None]]:
    """Returns each parameter's value in the steady and in the dynamic phase; one where there is one phase."""
    best = results.best
    files = [ds for ds in (best.steady, best.dynamics) if ds is not None]
    return [_numbers(values) for values in zip(*(ds.variables["k"].values[s] for ds in files), strict=True)]


def _details(results: Results, treated: Treated, s: int) -> dict[str, Any]:
    i = results.index(treated)
    summary = results.summary
    out: dict[str, Any] = {
        "o": int(results.outcome[i, s]),
        "c": int(summary.variables["cause"].values[i, s]),
        "text": str(summary.variables["cause_text"].values[i, s]),
        "n": [int(summary.variables[name].values[i, s]) for name in ("num_accepted", "num_rejected")],
        "loss": _numbers([treated.gradients.variables["loss"].values[s]])[0],
        "digits": _numbers([summary.variables["ode_digits"].values[i, s]])[0],
        "rung": [str(d.variables["rung_name"].values[s]) for d in (treated.steady, treated.dynamics) if d is not None],
    }
    if state := worst_state(results, treated, s):
        out["at"] = state
    if treated.steady is not None:
        status = STEADY_STATUS[int(treated.steady.variables["status"].values[s])].replace("_", " ")
        measured = (treated.steady.variables[n].values[s] for n in ("residual_norm", "max_real_eigenvalue"))
        out["rest"] = [status, *_numbers(measured)]
    return out | _trajectory(treated, s) | _attempts(treated, s) | _derivatives(treated, s)


def _trajectory(treated: Treated, s: int) -> dict[str, Any]:
    t, x = treated.record(s)
    x = x[:, : figures.MOST_STATES]
    if len(t) < 2:
        return {}
    # Evenly by what each step adds to the curves, so that the points lie where something happens.
    with np.errstate(all="ignore"):
        finite = np.where(np.isfinite(x), x, np.nan)
        size = np.nanmax(finite, axis=0) - np.nanmin(finite, axis=0)
        moved = np.nansum(np.abs(np.diff(x, axis=0)) / np.where(size > 0, size, 1.0), axis=1)
    even = np.full(len(moved), 1.0 / len(moved))
    way = np.concatenate([[0.0], np.cumsum(even + moved / max(float(moved.sum()), 1e-300))])
    keep = np.unique(np.searchsorted(way, np.linspace(0.0, way[-1], MOST_POINTS)).clip(0, len(t) - 1))
    return {"t": _numbers(t[keep]), "x": [_curve(column) for column in x[keep].T]}


def _attempts(treated: Treated, s: int) -> dict[str, Any]:
    mine, ds = treated.attempts(s), treated.dynamics
    end, start = (ds.variables[name][mine].values for name in ("attempt_end", "attempt_start"))
    accepted, finite = (ds.variables[name][mine].values.astype(bool) for name in ("attempt_accepted", "attempt_finite"))
    # 0: accepted, 1: rejected for its error, 2: rejected without a finite error.
    kind = np.where(accepted, 0, np.where(finite, 1, 2))
    usable = (end > 0) & (end > start) & np.isfinite(end)
    if not usable.any():
        return {}
    keep = np.flatnonzero(usable)
    parts = []
    for code in range(3):
        some = keep[kind[keep] == code]
        if len(some):
            room = MOST_ATTEMPTS if code == 0 else MOST_ATTEMPTS // 2
            parts.append(some[_extremes(end[some], (end - start)[some], room)])
    keep = np.sort(np.concatenate(parts))
    return {"a": [_numbers(end[keep]), _numbers((end - start)[keep]), [int(v) for v in kind[keep]]]}


def _extremes(end: np.ndarray, size: np.ndarray, room: int) -> np.ndarray:
    """Returns up to `room` steps: of each equal part of a logarithmic time axis the shortest and the longest one.

    `figures.thin` keeps whatever the eye tells apart, which is no bound on a page with hundreds of such charts.
    """
    if len(end) <= room:
        return np.arange(len(end))
    time = np.log(end / end.min())
    part = (time / max(float(time.max()), 1e-300) * (room // 2)).astype(int).clip(0, room // 2 - 1)
    order = np.lexsort((size, part))
    first = np.flatnonzero(np.diff(part[order], prepend=-1))
    last = np.append(first[1:], len(order)) - 1
    return np.unique(order[np.concatenate([first, last])])


def _derivatives(treated: Treated, s: int) -> dict[str, Any]:
    ds, m = treated.gradients, treated.methods.index(treated.method)
    columns, _ = _wrt(treated)
    if not columns:
        return {}
    at = lambda name: ds.variables[name].values[s][..., columns]
    spread_of = lambda name: ds.variables[name].values[s][columns]
    sweep, width, size = spread_of("fd_sweep"), np.abs(spread_of("fd_sweep_width")), treated.size[s]
    valleys = []
    if size > 0:
        ad, fd = at("ad")[figures.reference_method(treated)], at("fd")
        against = np.where(np.isfinite(ad), ad, fd)
        with np.errstate(all="ignore"):
            error, bound = np.abs(sweep - against[:, None]) / size, at("fd_error") / size
        known = np.isfinite(error).any(axis=1) & np.isfinite(bound) & np.isfinite(width[:, [0, -1]]).all(axis=1)
        known = np.flatnonzero(known)
        widest = known[np.argsort(-bound[known], kind="stable")]
        # Widths are in a constant ratio, so the first and the last one tell all.
        ends, errors = _decades(width[:, [0, -1]]), _decades(np.maximum(error, EXACT))
        valleys = [[int(j), *ends[j], errors[j], *_decades(bound[[j]])] for j in widest]
    return {
        "ad": [_numbers(row) for row in at("ad")],
        "ade": _numbers(at("ad_error")[m]) if "ad_error" in ds else [],
        "fd": _numbers(at("fd")),
        "fde": _numbers(at("fd_error")),
        "ode": _numbers(at("ode_error")),
        "v": [[int(c) for c in row] for row in at("verdict")],
        "why": [int(c) for c in at("reason")[m]],
        "valley": valleys,
    }


def _curve(values: np.ndarray) -> list[float | None]:
    """Returns values to a thousandth of their range: a large one that hardly moves would be a staircase by digits."""
    finite = values[np.isfinite(values)]
    span = float(np.ptp(finite)) if finite.size else 0.0
    if not (0 < span < float(np.abs(finite).max())):
        return _numbers(values)
    decimals = 3 - int(np.floor(np.log10(span)))
    return [float(round(float(v), decimals)) if np.isfinite(v) else None for v in values]


def _decades(values: np.ndarray) -> Any:
    """Returns logarithms to base 10 in whole hundredths, as lists: what a logarithmic axis shows, in few characters."""
    with np.errstate(all="ignore"):
        logs = 100 * np.log10(values)
    if logs.ndim > 1:
        return [_decades(row) for row in values]
    return [round(float(v)) if np.isfinite(v) else None for v in logs]


def _numbers(values: Iterable[Any]) -> list[float | None]:
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(list(values), float)]
