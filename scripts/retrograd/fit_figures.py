"""Simulations held against measurements: two figures, and what the page says beside them.

Functions as in `figures`, made of the same parts (`drawing`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from retrograd import store
from retrograd.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Drawing, empty, literal, log_axis, say
from retrograd.figures import grid_shape, shown_variants, thin
from retrograd.schema import FIT_STATUS, VERDICTS
from retrograd.simulations import NOMINAL

if TYPE_CHECKING:
    import xarray as xr

    from retrograd.results import Results, Treated

# How many of a kind are drawn or listed; what is left out is said in the captions.
MOST_OBSERVABLES = 12
MOST_SAMPLES = 50

# One experiment, one colour and marker; those beyond are grey.
_EXPERIMENTS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
_OTHERS = ("#a8a8a8", ".")
# Values over more than this take a logarithmic axis.
_WIDE = 100.0


# --- choices that the captions repeat -------------------------------------------------------------


def shown_sample(fit: xr.Dataset) -> int:
    """Returns the sample that is drawn: the nominal one, else the first."""
    names = store.labels(fit, "sample")
    return names.index(NOMINAL) if NOMINAL in names else 0


def observables(fit: xr.Dataset) -> list[str]:
    """Returns what was measured, in the order of the measurements; the first have a panel."""
    return list(dict.fromkeys(map(str, fit["observable_name"].values)))


def experiments(fit: xr.Dataset) -> list[str]:
    """Returns the experiments, those with most measurements first, which have a colour."""
    return [name for name, _ in Counter(map(str, fit["experiment_name"].values)).most_common()]


def _fitted(results: Results) -> list[tuple[Treated, xr.Dataset]]:
    return [(v, v.fit) for v in shown_variants(results) if v.fit is not None]


def _groups(fit: xr.Dataset) -> list[tuple[np.ndarray, str, str, int]]:
    """Returns the measurements of each coloured experiment, and of all others, as masks: colour, marker, height."""
    own = fit["experiment_name"].values.astype(str)
    names = experiments(fit)
    out = [(own == name, colour, marker, 3) for name, (colour, marker) in zip(names, _EXPERIMENTS, strict=False)]
    return [(~np.isin(own, names[: len(out)]), *_OTHERS, 2), *out]


def _handles(fit: xr.Dataset) -> list[Line2D]:
    names = experiments(fit)
    point = lambda colour, marker, label: Line2D(
        [], [], linestyle="none", marker=marker, color=colour, markersize=5, label=label
    )
    out = [point(c, m, literal(name, 28)) for name, (c, m) in zip(names, _EXPERIMENTS, strict=False)]
    rest = len(names) - len(out)
    return out + ([point(*_OTHERS, f"{rest} other experiment{'s' if rest > 1 else ''}")] if rest else [])


def _legend(figure: FigureBase, fit: xr.Dataset) -> None:
    handles = _handles(fit)
    # Four of the longest labels are wider than the figure.
    long = max(len(str(h.get_label())) for h in handles) > 20
    figure.legend(handles=handles, loc="outside upper left", ncols=3 if long else 4)


def _is_wide(values: np.ndarray) -> bool:
    return values.size > 0 and bool(values.min() > 0 and values.max() > _WIDE * values.min())


# --- the figures ----------------------------------------------------------------------------------


def scatter(results: Results, figure: FigureBase) -> None:
    """Draws simulated over measured values, one panel a variant, on the same axes."""
    drawn = [(v.name, ds, ds["simulation"].values[shown_sample(ds)]) for v, ds in _fitted(results)]
    measured = drawn[0][1]["measured"].values if drawn else np.zeros(0)
    finite = np.concatenate([s[np.isfinite(s)] for _, _, s in drawn]) if drawn else measured
    if not finite.size:
        empty(figure, "No measurement has a simulated value.")
        return
    values = np.concatenate([measured, finite])
    rows, columns = grid_shape(len(drawn))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, ds, simulated) in zip(grid.flat, drawn, strict=False):
        if wide := _is_wide(values):
            limits = log_axis(axes.xaxis, values, ticks=5)
            log_axis(axes.yaxis, values, ticks=5)
        else:
            room = 0.05 * float(np.ptp(values)) or 0.05 * abs(float(values[0])) or 1.0
            limits = (float(values.min()) - room, float(values.max()) + room)
            axes.set_xlim(*limits)
            axes.set_ylim(*limits)
        axes.set_aspect("equal", adjustable="box")
        axes.plot(limits, limits, color="#bdbdbd", linewidth=1.0, zorder=1)
        for own, colour, marker, height in _groups(ds):
            some = np.flatnonzero(own & np.isfinite(simulated))
            x, y = (np.log(v[some]) if wide else v[some] for v in (measured, simulated))
            some = some[thin(x, y, 120, 120)]
            axes.plot(
                measured[some],
                simulated[some],
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=4,
                alpha=0.85,
                markeredgecolor="white",
                markeredgewidth=0.4,
                zorder=height,
            )
        axes.set_title(literal(name, 28), loc="left", fontweight="bold")
        lost = int((~np.isfinite(simulated)).sum())
        if lost:
            note = f"{lost} of {len(simulated)} not simulated"
            axes.text(0.98, 0.03, note, ha="right", color=GREY, fontsize=7.5, transform=axes.transAxes)
        axes.grid(color="#e6e6e6", linewidth=0.6)
    for axes in list(grid.flat)[len(drawn) :]:
        axes.axis("off")
    figure.supxlabel("measured", fontsize=9)
    figure.supylabel("simulated", fontsize=9)
    _legend(figure, drawn[0][1])


def time_courses(results: Results, figure: FigureBase) -> None:
    """Draws measured and simulated values over model time under the best variant, one panel an observable."""
    fit = results.best.fit
    if fit is None:
        empty(figure, "The model declares no measurements.")
        return
    names = observables(fit)[:MOST_OBSERVABLES]
    rows, columns = grid_shape(len(names), most=4 if len(names) > 9 else 3)
    grid = figure.subplots(rows, columns, squeeze=False)
    own = fit["observable_name"].values.astype(str)
    for panel, name in enumerate(names):
        axes = grid.flat[panel]
        _course(axes, fit, own == name)
        axes.set_title(literal(name, 26), loc="left", fontweight="bold")
        axes.grid(color="#e6e6e6", linewidth=0.6)
    for axes in list(grid.flat)[len(names) :]:
        axes.axis("off")
    figure.supxlabel(f"model time [{literal(results.best.time_unit, 20)}]", fontsize=9)
    figure.supylabel("measured (points), simulated (lines)", fontsize=9)
    _legend(figure, fit)


def _course(axes: Axes, fit: xr.Dataset, of_panel: np.ndarray) -> None:
    times, measured = fit["measurement_time"].values, fit["measured"].values
    sample = shown_sample(fit)
    simulated, noise = fit["simulation"].values[sample], fit["noise"].values[sample]
    of_panel = of_panel & np.isfinite(times)
    if not of_panel.any():
        say(axes, "measured at rest only")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    values = np.concatenate([measured[of_panel], simulated[of_panel & np.isfinite(simulated)]])
    if _is_wide(values):
        log_axis(axes.yaxis, values, ticks=4)
    at = np.unique(times[of_panel])
    if len(at) == 1:
        axes.set_xticks(at, [f"{at[0]:g}"])
    which = np.unique(fit["experiment_name"].values.astype(str), return_inverse=True)[1]
    for own, colour, marker, height in _groups(fit):
        some = np.flatnonzero(of_panel & own)
        some = some[np.lexsort((times[some], which[some]))]
        if not len(some):
            continue
        points = some[thin(times[some], measured[some], 80, 60)]
        axes.errorbar(
            times[points],
            measured[points],
            yerr=np.abs(np.nan_to_num(noise[points])),
            linestyle="none",
            marker=marker,
            color=colour,
            markersize=3.6,
            elinewidth=0.8,
            alpha=0.8,
            zorder=height,
        )
        # One line an experiment; a lone time makes none.
        ends = np.flatnonzero(np.diff(which[some])) + 1
        t, y = (np.insert(v[some], ends, np.nan) for v in (times, simulated))
        axes.plot(t, y, color=colour, linewidth=1.3, zorder=height + 0.5)
        lone = [part for part in np.split(some, ends) if np.ptp(times[part]) == 0]
        if lone:
            alone = np.concatenate(lone)
            style = {"linestyle": "none", "marker": "_", "markersize": 10, "markeredgewidth": 1.6}
            axes.plot(times[alone], simulated[alone], color=colour, zorder=height + 0.5, **style)


def _courses_size(results: Results) -> tuple[float, float]:
    count = 1 if results.best.fit is None else min(len(observables(results.best.fit)), MOST_OBSERVABLES)
    rows, _ = grid_shape(count, most=4 if count > 9 else 3)
    return 8.0, {1: 3.8, 2: 4.6}.get(rows, 5.0)


FIGURES = {
    "fit": Drawing(scatter, lambda r: (8.0, 3.6 if len(_fitted(r)) <= 3 else 5.0)),
    "time_courses": Drawing(time_courses, _courses_size),
}


# --- the page -------------------------------------------------------------------------------------


def labels(results: Results) -> dict[str, str]:
    """Returns what each figure shows, in a sentence for those who cannot see it."""
    fit = results.best.fit
    if fit is None:
        return dict.fromkeys(FIGURES, "The model declares no measurements.")
    names, drawn = observables(fit), _fitted(results)
    spreads = "; ".join(f"{v.name} {_spread(ds)}" for v, ds in drawn)
    return {
        "fit": f"Simulated over measured values by variant. Median |residual| over the noise: {spreads}.",
        "time_courses": "Measured and simulated values over model time under "
        f"{results.best.name}. Observables: {', '.join(names[:MOST_OBSERVABLES])}.",
    }


def _spread(fit: xr.Dataset) -> str:
    residual = np.abs(fit["residual"].values[shown_sample(fit)])
    residual = residual[np.isfinite(residual)]
    return f"{np.median(residual):.2g}" if residual.size else "none"


def told(results: Results) -> dict[str, Any] | None:
    """Returns what the page says of measurements: counts, names and a table; None where nothing was measured."""
    fit = results.best.fit
    if fit is None:
        return None
    samples, drawn = store.labels(fit, "sample"), _fitted(results)
    times = fit["measurement_time"].values
    return {
        "measurements": fit.sizes["measurement"],
        "experiments": len(experiments(fit)),
        "samples": samples,
        "sample": samples[shown_sample(fit)],
        "variants": [v for v, _ in drawn],
        "coloured": len(_EXPERIMENTS),
        "grey": max(len(experiments(fit)) - len(_EXPERIMENTS), 0),
        "at_rest": int((~np.isfinite(times)).sum()),
        "left_out": observables(fit)[MOST_OBSERVABLES:],
        "table": [
            {"name": name, "cells": [_cell(v, ds, s) for v, ds in drawn]}
            for s, name in enumerate(samples[:MOST_SAMPLES])
        ],
    }


def _cell(treated: Treated, fit: xr.Dataset, s: int) -> dict[str, Any]:
    verdict = fit["verdict"].values[s, store.labels(fit, "method").index(treated.method)]
    return {
        "llh": float(fit["llh"].values[s]),
        "error": float(fit["llh_error"].values[s]),
        "why": FIT_STATUS[int(fit["status"].values[s])].replace("_", " "),
        "verdict": VERDICTS[int(verdict)],
    }
