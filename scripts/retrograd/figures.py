"""The figures of the report. Each function draws one of them on an empty matplotlib Figure or SubFigure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from retrograd.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    OUTCOME_STYLE,
    PURPLE,
    SKY,
    VERMILION,
    Drawing,
    empty,
    files,
    literal,
    log_axis,
    outcome_patches,
    power,
    present_outcomes,
    say,
)
from retrograd.results import spread
from retrograd.schema import OUTCOMES, VERDICTS

if TYPE_CHECKING:
    import xarray as xr

    from retrograd.results import Results, Treated

# How many of a kind are drawn; what is left out is said in the captions.
MOST_PANELS = 5
MOST_STATES = 6
MOST_WRT = 16
MOST_VALLEYS = 12

_LINES: tuple[tuple[str, str, Literal["-", "--", "-.", ":"]], ...] = (
    *((BLUE, "o", "-"), (VERMILION, "s", "--"), (GREEN, "^", "-."), (PURPLE, "D", ":")),
    *((ORANGE, "v", "-"), (SKY, "P", "--"), (BLACK, "X", "-."), (GREY, "<", ":")),
)
VERIFIED = VERDICTS.index("verified")
_METHOD = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"))


# --- small helpers --------------------------------------------------------------------------------


def thin(x: np.ndarray, y: np.ndarray, columns: int = 220, rows: int = 160) -> np.ndarray:
    """Returns the indices, in order, of points that the eye can tell apart: one for each cell of a grid."""
    if not len(x):
        return np.zeros(0, int)

    def cells(v: np.ndarray, n: int) -> np.ndarray:
        span = float(v.max() - v.min())
        return np.zeros(len(v), int) if span == 0 else np.floor((v - v.min()) / span * n).astype(int)

    _, first = np.unique(cells(x, columns) * (rows + 1) + cells(y, rows), return_index=True)
    return np.sort(first)


def grid_shape(total: int, most: int = 3) -> tuple[int, int]:
    """Returns the rows and columns of so many panels."""
    columns = total if total <= most else (2 if total == 4 else most)
    return -(-total // columns), columns


# --- choices that the captions repeat -------------------------------------------------------------


def shown_variants(results: Results, most: int = MOST_PANELS) -> list[Treated]:
    """Returns the variants that get a panel: all, or the best, its contrast and the first others."""
    variants = results.shown
    if len(variants) <= most:
        return variants
    first = [v for v in (results.best, results.contrast) if v is not None]
    chosen = first + [v for v in variants if v not in first][: most - len(first)]
    return [v for v in variants if v in chosen]


def shown_trajectories(results: Results, count: int = 6, failed: int = 2) -> list[int]:
    """Returns scenarios spread over the step counts of the best variant, and failed ones, as indices."""
    i = results.index(results.best)
    attempts = results.attempts[i]
    recorded = results.best.dynamics["step_count"].values > 0
    good = results.best.dynamics["status"].values == 0
    order = np.argsort(attempts, kind="stable")
    chosen = spread(order[good[order]], count)
    # Those that got furthest have most to show.
    rest = order[~good[order] & recorded[order]]
    return [int(s) for s in [*chosen, *rest[::-1][: failed if len(chosen) else count]]]


def shown_steps(results: Results) -> list[tuple[str, int]]:
    """Returns the easiest, the median and the hardest scenario that both variants recorded."""
    pair = [v for v in (results.contrast, results.best) if v is not None]
    recorded = np.all([v.dynamics["attempt_count"].values > 0 for v in pair], axis=0)
    attempts = results.attempts[results.index(pair[0])]
    order = np.argsort(attempts, kind="stable")
    order = order[recorded[order]]
    if len(order) >= 3:
        picks = [order[0], order[(len(order) - 1) // 2], order[-1]]
        return [(word, int(s)) for word, s in zip(("easiest", "median", "hardest"), picks, strict=True)]
    words = {1: ("only one",), 2: ("easier", "harder")}.get(len(order), ())
    return [(word, int(s)) for word, s in zip(words, order, strict=True)]


def reference_method(treated: Treated) -> int:
    """Returns the index of the method that the sweep is held against: replay, or the first one."""
    methods = treated.methods
    return methods.index("replay") if "replay" in methods else 0


def shown_sweeps(results: Results) -> tuple[list[int], list[int]]:
    """Returns the derivatives that get a panel, and the scenarios with the tightest, the median and the widest bound.

    Bounds count relative to the scenario's largest derivative. Where there are more derivatives than panels, those
    with the widest bounds have one.
    """
    best = results.best
    bound = relative(best.gradients["fd_error"].values, best)
    usable = np.isfinite(bound) & np.isfinite(best.gradients["fd_sweep"].values).any(axis=2)
    bound = np.where(usable, bound, -1.0)
    columns = np.flatnonzero(usable.any(axis=0))
    if len(columns) > MOST_VALLEYS:
        widest = np.max(bound[:, columns], axis=0)
        columns = np.sort(columns[np.argsort(-widest, kind="stable")[:MOST_VALLEYS]])
    if not len(columns):
        return [], []
    widest = np.max(bound[:, columns], axis=1)
    order = np.argsort(widest, kind="stable")
    order = order[widest[order] >= 0]
    return [int(j) for j in columns], [int(s) for s in spread(order, 3)]


def relative(values: np.ndarray, treated: Treated) -> np.ndarray:
    """Returns numbers (scenario, ..., wrt) over the scenario's largest |fd|; NaN where that is 0."""
    size = treated.size.reshape((-1,) + (1,) * (values.ndim - 1))
    with np.errstate(all="ignore"):
        return np.where(size > 0, values / size, np.nan)


# --- the figures ----------------------------------------------------------------------------------


def outcomes(results: Results, figure: FigureBase) -> None:
    """Draws, for each variant, how many scenarios ended how."""
    variants = results.shown
    total = len(results.scenarios)
    axes = figure.subplots()
    present = present_outcomes(results)
    for row, treated in enumerate(variants):
        codes = results.outcome[results.index(treated)]
        left = 0
        for code in present:
            count = int((codes == code).sum())
            if not count:
                continue
            _, colour, hatch = OUTCOME_STYLE[OUTCOMES[code]]
            axes.barh(
                row,
                count,
                left=left,
                height=0.66,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.8,
            )
            wide = count >= 0.025 * total * len(str(count))
            axes.text(
                left + count / 2,
                row if wide else row - 0.36,
                str(count),
                ha="center",
                va="center" if wide else "bottom",
                fontsize=8.5 if wide else 7,
                color="black",
                bbox={"boxstyle": "round,pad=0.18", "fc": "white", "ec": "none"} if wide else None,
            )
            left += count
    axes.set_yticks(range(len(variants)), [literal(v.name, 28) for v in variants], fontsize=9)
    axes.set_ylim(len(variants) - 0.4, -0.65)
    axes.set_xlim(0, total)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("scenarios")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    figure.legend(
        handles=outcome_patches(results),
        loc="outside upper left",
        ncols=min(3, len(present)),
        handlelength=2.2,
        handleheight=1.1,
    )


def attempts(results: Results, figure: FigureBase) -> None:
    """Draws the attempts, accepted and rejected, of every scenario: one row a variant, sorted within it."""
    variants = results.shown
    axes = figure.subplots()
    drawn: list[float] = []
    for row, treated in enumerate(variants):
        i = results.index(treated)
        count = results.attempts[i].astype(float)
        order = np.argsort(count, kind="stable")
        height = row + 0.36 - 0.72 * (np.arange(len(order)) + 0.5) / max(len(order), 1)
        x, good = count[order], treated.dynamics["status"].values[order] == 0
        for keep, colour, marker, size in ((good, BLUE, "o", 3.2), (~good, VERMILION, "x", 4.0)):
            keep = keep & (x > 0)
            some = np.flatnonzero(keep)
            some = some[thin(np.log(x[some]), height[some], 300, 40)]
            axes.plot(
                x[some],
                height[some],
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=size,
                alpha=0.8,
            )
        drawn += [float(v) for v in x[x > 0]]
        limit = treated.settings.get("dynamics", {}).get("max_steps")
        if limit:
            axes.plot([limit] * 2, [row - 0.42, row + 0.42], color=BLACK, linewidth=1.2)
            drawn.append(float(limit))
        if (x > 0).any():
            axes.plot([np.median(x[x > 0])] * 2, [row - 0.42, row + 0.42], color=GREY, linewidth=1.2, linestyle=":")
    log_axis(axes.xaxis, drawn)
    if drawn:
        axes.set_xlim(min(drawn) / 1.5, max(drawn) * 1.5)
    axes.set_yticks(range(len(variants)), [literal(v.name, 28) for v in variants], fontsize=9)
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_xlabel("attempted steps of a scenario, accepted and rejected")
    handles = [
        Line2D([], [], linestyle="none", marker="o", color=BLUE, markersize=4, label="solved"),
        Line2D([], [], linestyle="none", marker="x", color=VERMILION, markersize=5, label="failed"),
        Line2D([], [], color=GREY, linestyle=":", label="median"),
        Line2D([], [], color=BLACK, label="max_steps"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)


def trajectories(results: Results, figure: FigureBase, chosen: Sequence[int] | None = None) -> None:
    """Draws states over model time for scenarios spread over the step counts, under the best variant.

    - `chosen`: other scenarios, as indices; each has an accepted step.
    """
    best = results.best
    chosen = shown_trajectories(results) if chosen is None else chosen
    if not chosen:
        empty(figure, f"No step of any scenario was accepted under {literal(best.name)}.")
        return
    dynamics = best.dynamics
    times = dynamics["model_time"].values
    states = best.states[:MOST_STATES]
    rows, columns = grid_shape(len(states))
    grid = figure.subplots(rows, columns, squeeze=False)
    records = [best.record(s) for s in chosen]
    logarithmic = _is_log_time(times, records)
    first = np.concatenate([t[1:2] for t, _ in records])
    handles = []
    for panel, state in enumerate(states):
        axes = grid.flat[panel]
        values = []
        left = log_axis(axes.xaxis, np.concatenate([first, times[-1:]]), ticks=5)[0] if logarithmic else 0.0
        for n, (s, (t, x)) in enumerate(zip(chosen, records, strict=True)):
            colour, marker, dash = _LINES[n % len(_LINES)]
            good = dynamics["status"].values[s] == 0
            y = x[:, panel]
            if logarithmic:
                # Time 0 has no place on the axis: a curve comes in at its start value.
                t, y = np.concatenate([[left, t[1] / 2], t[1:]]), np.concatenate([[y[0], y[0]], y[1:]])
            where = np.flatnonzero(np.isfinite(y))
            values.append(y[where])
            u = np.log(t) if logarithmic else t
            where = where[thin(u[where], y[where], 300, 240)]
            # Markers tell lines apart in print; they stand where others do not.
            ticks = np.linspace(u[where[0]], u[where[-1]], 5)[:-1] if len(where) else []
            ticks = [v + (n + 0.5) * (u[where[-1]] - u[where[0]]) / (4 * len(chosen)) for v in ticks]
            spots = sorted({int(np.argmin(np.abs(u[where] - v))) for v in ticks})
            axes.plot(t[where], y[where], color=colour, linestyle=dash, marker=marker, markersize=4, markevery=spots)
            if not good and len(where):
                axes.plot(t[where[-1]], y[where[-1]], marker="x", color=BLACK, markersize=8, markeredgewidth=2)
            if panel == 0:
                name = literal(results.scenarios[s], 34) + ("" if good else " (failed at ✕)")
                handles.append(Line2D([], [], color=colour, linestyle=dash, marker=marker, markersize=4, label=name))
        together = np.concatenate(values) if values else np.zeros(0)
        if together.size and together.min() > 0 and together.max() > 1e4 * together.min():
            log_axis(axes.yaxis, together)
        axes.set_title(f"{literal(state, 20)} [{literal(best.state_units[panel], 20)}]", loc="left")
        axes.grid(color="#e6e6e6", linewidth=0.6)
        if panel >= len(states) - columns:
            axes.set_xlabel(f"model time [{literal(best.time_unit, 20)}]")
    for axes in list(grid.flat)[len(states) :]:
        axes.remove()
    figure.legend(handles=handles, loc="outside lower left", ncols=2, handlelength=3.2)


def _is_log_time(times: np.ndarray, records: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether time needs decades: by the save times, or by when the scenarios drawn make their change."""
    positive = times[times > 0]
    if len(positive) > 1 and positive[-1] > 1e3 * positive[0] and np.ptp(np.diff(positive)) > positive[0]:
        return True
    halves = []
    for t, x in records:
        moved = np.nancumsum(np.abs(np.diff(x, axis=0)).sum(axis=1)) if len(t) > 1 else np.zeros(0)
        if len(moved) and moved[-1] > 0:
            halves.append(t[1:][np.searchsorted(moved, moved[-1] / 2)])
    return len(halves) > 1 and min(halves) > 0 and max(halves) > 300 * min(halves)


def steps(results: Results, figure: FigureBase) -> None:
    """Draws step size over model time, accepted and rejected, for three scenarios under two variants."""
    chosen = shown_steps(results)
    pair = [v for v in (results.contrast, results.best) if v is not None]
    if not chosen:
        empty(figure, "No scenario has recorded attempts.")
        return
    grid = figure.subplots(len(pair), len(chosen), squeeze=False, sharex="col", sharey=True)
    every_t: list[list[np.ndarray]] = [[] for _ in chosen]
    every_dt: list[np.ndarray] = []
    for row, treated in enumerate(pair):
        for column, (word, s) in enumerate(chosen):
            axes = grid[row, column]
            mine = treated.dynamics.isel(attempt=treated.attempts(s))
            t, dt = mine["attempt_end"].values, mine["attempt_end"].values - mine["attempt_start"].values
            usable = (t > 0) & (dt > 0) & np.isfinite(dt)
            yes, ok = (mine[name].values.astype(bool) for name in ("attempt_accepted", "attempt_finite"))
            for keep, style in (
                (yes, {"color": BLUE, "marker": ".", "markersize": 3, "linestyle": "-", "linewidth": 0.7}),
                (~yes & ok, {"color": VERMILION, "marker": "x", "markersize": 4, "linestyle": "none"}),
                (~yes & ~ok, {"color": BLACK, "marker": "+", "markersize": 6, "linestyle": "none"}),
            ):
                some = np.flatnonzero(keep & usable)
                if len(some):
                    some = some[thin(np.log(t[some]), np.log(dt[some]), 160, 120)]
                    axes.plot(t[some], dt[some], **style)
            every_t[column].append(t[usable])
            every_dt.append(dt[usable])
            told = f"{int(yes.sum())} accepted, {int((~yes).sum())} rejected"
            if treated.dynamics["status"].values[s] != 0:
                told += ", failed"
            head = f"{word}: {literal(results.scenarios[s], 24)}\n" if row == 0 else ""
            axes.set_title(head + told, loc="left", fontsize=8)
            axes.grid(color="#e6e6e6", linewidth=0.6)
            if column == 0:
                axes.set_ylabel(f"{literal(treated.name, 20)}\nstep size [{literal(treated.time_unit, 12)}]")
            if row == len(pair) - 1:
                axes.set_xlabel(f"model time [{literal(treated.time_unit, 12)}]")
    for axes, found in zip(grid[0], every_t, strict=True):
        log_axis(axes.xaxis, np.concatenate(found), ticks=5)
    log_axis(grid[0, 0].yaxis, np.concatenate(every_dt))
    handles = [
        Line2D([], [], color=BLUE, marker=".", label="accepted"),
        Line2D([], [], color=VERMILION, marker="x", linestyle="none", label="rejected: error above tolerance"),
        Line2D([], [], color=BLACK, marker="+", linestyle="none", label="rejected: no finite error estimate"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)


def gradient_errors(results: Results, figure: FigureBase) -> None:
    """Draws |AD - FD| for every derivative, method and variant beside the bound that decides."""
    shown = shown_variants(results)
    if not any(len(v.wrt) for v in shown):
        empty(figure, "The study asks for no derivatives.")
        return
    rows, columns = grid_shape(len(shown) + 1 if len(shown) > 1 else 1)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    tables = [_errors(v) for v in shown]
    every = np.concatenate([np.concatenate([e.ravel(), b.ravel()]) for e, b in tables])
    every = np.clip(every[np.isfinite(every) & (every > 0)], 1e-20, 1e6)
    # What is exactly 0 has no logarithm: it stands on a line of its own below.
    floor = 10.0 ** (np.floor(np.log10(every.min())) - 1) if every.size else 1e-17
    methods = sorted({m for v in shown for m in v.methods}, key=[m for v in shown for m in v.methods].index)
    for panel, (treated, (error, bound)) in enumerate(zip(shown, tables, strict=True)):
        axes = grid.flat[panel]
        wrt = shown_wrt(treated)
        count = len(treated.methods)
        lost = 0
        for m, method in enumerate(treated.methods):
            colour, marker = _METHOD[methods.index(method) % len(_METHOD)]
            verdict = treated.gradients["verdict"].values[:, m]
            for place, j in enumerate(wrt):
                x = place + (m - (count - 1) / 2) * 0.7 / count
                y, b = error[:, m, j], bound[:, m, j]
                finite = b[np.isfinite(b)]
                if finite.size:
                    low, high = np.clip([np.median(finite), finite.max()], floor, 1e6)
                    axes.plot([x, x], [low, high], color="#c4c4c4", linewidth=3.2, solid_capstyle="butt", zorder=1)
                    axes.plot([x - 0.17, x + 0.17], [high, high], color=BLACK, linewidth=1, zorder=2)
                lost += int((verdict[:, j] == VERDICTS.index("nonfinite")).sum())
                value = np.clip(np.where(y == 0, floor, y), floor, 1e6)
                good = value[np.isfinite(value) & (verdict[:, j] == VERIFIED)]
                if good.size:
                    axes.plot([x, x], [good.min(), good.max()], color=colour, linewidth=1.1, zorder=3)
                    for v, size in ((np.median(good), 4.5), (good.max(), 2.5)):
                        axes.plot(x, v, marker=marker, markersize=size, color=colour, markeredgewidth=0, zorder=3)
                some = np.flatnonzero(np.isfinite(value) & (verdict[:, j] != VERIFIED))
                some = some[thin(np.zeros(len(some)), np.log(value[some]), 1, 20)]
                axes.plot(
                    *(np.full(len(some), x), value[some]),
                    linestyle="none",
                    marker="x",
                    markersize=5,
                    color=VERMILION,
                    zorder=4,
                )
        axes.set_title(literal(treated.name, 28), loc="left", fontweight="bold")
        if lost:
            axes.set_title(f"{lost} not finite", loc="right", fontsize=7.5, color=GREY)
        axes.set_xticks(range(len(wrt)), [literal(treated.wrt[j], 18) for j in wrt], rotation=90, fontsize=7)
        axes.set_xlim(-0.6, max(len(wrt), 1) - 0.4)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        if panel % columns == 0:
            axes.set_ylabel("|AD − FD| / largest |FD|")
        if not np.isfinite(error).any():
            say(axes, "no finite derivative\nto compare")
    axes = grid.flat[0]
    _, top = log_axis(axes.yaxis, every if every.size else [1e-16, 1])
    axes.set_ylim(floor * 0.3, top * 3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _=None: "0" if v <= floor * 1.01 else power(v)))
    ticks = LogLocator(numticks=6).tick_values(floor * 100, top)
    axes.set_yticks([floor, *[t for t in ticks if floor * 90 < t < top]])
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=_METHOD[i % 4][1],
            color=_METHOD[i % 4][0],
            label=f"{m}: median, largest",
        )
        for i, m in enumerate(methods)
    ]
    handles += [
        Line2D([], [], linestyle="none", marker="x", color=VERMILION, label="not verified"),
        Line2D([], [], color="#c4c4c4", linewidth=3.2, label="bound, median to largest"),
        Line2D([], [], color=BLACK, linewidth=1, label="largest bound"),
    ]
    spare = list(grid.flat)[len(shown) :]
    for axes in spare:
        axes.axis("off")
    if spare:
        spare[0].legend(handles=handles, loc="center left")
    else:
        figure.legend(handles=handles, loc="outside lower left", ncols=3)


def shown_wrt(treated: Treated) -> list[int]:
    """Returns the derivatives that are drawn: all, or those with the largest errors, in order."""
    if len(treated.wrt) <= MOST_WRT:
        return list(range(len(treated.wrt)))
    error, _ = _errors(treated)
    worst = np.max(np.where(np.isfinite(error), error, -1), axis=(0, 1), initial=-1)
    return sorted(int(j) for j in np.argsort(-worst, kind="stable")[:MOST_WRT])


def _errors(treated: Treated) -> tuple[np.ndarray, np.ndarray]:
    """Returns |ad - fd| and its bound, (scenario, method, wrt), over the scenario's largest |fd|."""
    return relative(treated.difference, treated), relative(treated.bound, treated)


def shown_pairs(results: Results) -> list[Treated]:
    """Returns the variants that have both replay and forward, for the dot-product test."""
    return [v for v in results.shown if {"replay", "forward"} <= set(v.methods)]


def dot_product(results: Results, figure: FigureBase) -> None:
    """Draws |replay - forward|, the largest of each scenario, beside what both say that rounding may do."""
    shown = shown_pairs(results)
    if not shown:
        empty(figure, "The study does not form gradients by both replay and forward.")
        return
    axes = figure.subplots()
    tables = []
    for treated in shown:
        pick = [treated.methods.index(name) for name in ("replay", "forward")]
        ad, error = (relative(treated.gradients[name].values[:, pick], treated) for name in ("ad", "ad_error"))
        distance, bound = np.abs(ad[:, 0] - ad[:, 1]), error.sum(axis=1)
        most = lambda table: np.max(table, axis=1, initial=-1.0, where=np.isfinite(table))
        tables.append((most(distance), most(bound)))
    every = np.concatenate([np.concatenate(pair) for pair in tables])
    every = every[every > 0]
    # What is exactly 0 has no logarithm: it stands on a line of its own at the left.
    floor = 10.0 ** (np.floor(np.log10(every.min())) - 1) if every.size else 1e-17
    for row, (distance, bound) in enumerate(tables):
        known = np.sort(distance[distance >= 0])
        limits = bound[bound > 0]
        if limits.size:
            low, high = float(np.median(limits)), float(limits.max())
            axes.plot([low, high], [row, row], color="#c4c4c4", linewidth=7, solid_capstyle="butt", zorder=1)
            axes.plot([high, high], [row - 0.3, row + 0.3], color=BLACK, linewidth=1, zorder=2)
        height = row + 0.3 - 0.6 * np.arange(len(known)) / max(len(known) - 1, 1)
        value = np.maximum(known, floor)
        keep = thin(np.log(value), height)
        axes.plot(value[keep], height[keep], linestyle="none", marker="o", markersize=2.5, color=BLUE, zorder=3)
    log_axis(axes.xaxis, np.concatenate([every, [floor]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _=None: "0" if v <= floor * 1.01 else power(v)))
    axes.set_yticks(range(len(shown)), [literal(v.name, 28) for v in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("largest |replay − forward| of a scenario / its largest |FD|")
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    handles = [
        Line2D([], [], linestyle="none", marker="o", markersize=4, color=BLUE, label="scenario, sorted"),
        Line2D([], [], color="#c4c4c4", linewidth=5, label="both methods' rounding, median to largest"),
        Line2D([], [], color=BLACK, linewidth=1, label="largest"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)


def difference_sweep(results: Results, figure: FigureBase) -> None:
    """Draws the error of the difference quotient over its width, against the best variant's gradient."""
    best = results.best
    columns, scenarios = shown_sweeps(results)
    if not columns:
        empty(figure, "No finite differences were formed.")
        return
    method = reference_method(best)
    high, wide = grid_shape(len(columns), most=4)
    grid = figure.subplots(high, wide, squeeze=False, sharey=True)
    every_y: list[float] = []
    for axes, j in zip(grid.flat, columns, strict=False):
        every_x: list[float] = []
        for n, s in enumerate(scenarios):
            colour, marker, dash = _LINES[n]
            ad = best.gradients["ad"].values[s, method, j]
            if not np.isfinite(ad):
                ad = best.gradients["fd"].values[s, j]
            size = best.size[s]
            h = np.abs(best.gradients["fd_sweep_width"].values[s, j])
            with np.errstate(all="ignore"):
                y = np.abs(best.gradients["fd_sweep"].values[s, j] - ad) / size
                bound = best.gradients["fd_error"].values[s, j] / size
                fd = abs(best.gradients["fd"].values[s, j] - ad) / size
            keep = np.isfinite(y) & (h > 0)
            # An exact hit has no logarithm, and less than rounding says nothing.
            y = np.maximum(y, 1e-17)
            axes.plot(h[keep], y[keep], color=colour, marker=marker, markersize=3, linestyle=dash, linewidth=1)
            every_x += [float(v) for v in h[keep]]
            every_y += [float(v) for v in y[keep]]
            step = best.gradients["fd_step"].values[s, j]
            if step > 0 and np.isfinite(bound):
                at, low = max(float(bound), 1e-17), max(float(fd) if np.isfinite(fd) else 0.0, 1e-17)
                axes.plot([step / 1.9, step * 1.9], [at, at], color=colour, linewidth=2.2, solid_capstyle="butt")
                axes.plot([step], [low], marker="*", color=colour, markersize=8, markeredgecolor="white")
                every_y += [at, low]
        log_axis(axes.xaxis, every_x, ticks=4)
        axes.set_title(literal(best.wrt[j], 20), loc="left", fontweight="bold")
        axes.grid(color="#e6e6e6", linewidth=0.6)
    log_axis(grid[0, 0].yaxis, every_y)
    for axes in list(grid.flat)[len(columns) :]:
        axes.axis("off")
    figure.supxlabel("step width h", fontsize=9)
    figure.supylabel("error / largest |FD| of the scenario", fontsize=9)
    handles = [
        Line2D([], [], color=c, marker=m, markersize=4, linestyle=d, label=literal(results.scenarios[s], 40))
        for s, (c, m, d) in zip(scenarios, _LINES, strict=False)
    ]
    handles += [
        Line2D([], [], color=GREY, marker="*", markersize=9, linestyle="none", label="extrapolated, at its smallest h"),
        Line2D([], [], color=GREY, linewidth=2.4, label="its error bound"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)


def work_precision(measured: xr.Dataset, figure: FigureBase) -> None:
    """Draws each method's gradient error over its cost, one point a tolerance, the median over the scenarios."""
    axes = figure.subplots()
    seconds, error = measured["seconds"].values, measured["error"].values
    methods = [str(name) for name in measured["method_name"].values]
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    for m, name in enumerate(methods):
        colour, marker, dash = _LINES[m % len(_LINES)]
        known = np.isfinite(error[m])
        some = known.any(axis=1) & np.isfinite(seconds[m])
        if not some.any():
            continue
        low, middle, high = (
            np.array([np.quantile(e[k], q) if k.any() else np.nan for e, k in zip(error[m], known, strict=True)])
            for q in (0.1, 0.5, 0.9)
        )
        x, low, middle, high = (np.maximum(v[some], 1e-17) for v in (seconds[m], low, middle, high))
        lost = known.shape[1] - known[some].sum(axis=1).min()
        label = name.replace("_", " ") + (f" (none for up to {lost} of {known.shape[1]} scenarios)" if lost else "")
        axes.plot(x, middle, color=colour, marker=marker, linestyle=dash, markersize=5, label=label)
        axes.vlines(x, low, high, color=colour, linewidth=0.8, alpha=0.6)
        drawn.append((x, np.concatenate([low, high])))
    if not drawn:
        say(axes, "nothing could be compared with the reference")
        return
    log_axis(axes.xaxis, np.concatenate([x for x, _ in drawn]))
    log_axis(axes.yaxis, np.concatenate([y for _, y in drawn]))
    axes.set_xlabel("time for solve and gradient [s per scenario]")
    axes.set_ylabel("gradient error / largest derivative")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    figure.legend(loc="outside upper left", ncols=2)


def speed(measured: xr.Dataset, figure: FigureBase) -> None:
    """Draws each peer's error over its time, for solves and for gradients, one point a tolerance."""
    panels = figure.subplots(1, 2)
    names = [str(name) for name in measured["peer_name"].values]
    for q, (part, axes) in enumerate(zip(("solve", "gradient"), panels, strict=True)):
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        with warnings.catch_warnings():
            # Of what was not measured.
            warnings.simplefilter("ignore", RuntimeWarning)
            seconds = np.nanmedian(measured["seconds"].values[:, :, q], axis=-1)
            error = np.maximum(np.nanmedian(measured[f"{part}_error"].values, axis=-1), 1e-17)
        for p, name in enumerate(names):
            colour, marker, dash = _LINES[p % len(_LINES)]
            known = np.isfinite(seconds[p]) & np.isfinite(error[p])
            label = name.replace("_", " ") if q == 0 else None
            at = seconds[p][known], error[p][known]
            axes.plot(*at, color=colour, marker=marker, linestyle=dash, markersize=5, label=label)
            drawn.append(at)
        if not any(len(x) for x, _ in drawn):
            say(axes, "nothing could be compared with the reference")
            continue
        log_axis(axes.xaxis, np.concatenate([x for x, _ in drawn]))
        log_axis(axes.yaxis, np.concatenate([y for _, y in drawn]))
        axes.set_xlabel(f"{part} [s per scenario]")
        axes.set_ylabel(f"median error of the {part} [1]")
        axes.grid(color="#e6e6e6", linewidth=0.6)
    figure.legend(loc="outside upper left", ncols=len(names))


# --- files ----------------------------------------------------------------------------------------


def _rows_high(base: float, each: float) -> Callable[[Results], tuple[float, float]]:
    return lambda r: (8.0, base + min(each * len(r.shown), max(5.0 - base, 0.22 * len(r.shown))))


FIGURES = {
    "outcomes": Drawing(outcomes, _rows_high(1.1, 0.36)),
    "trajectories": Drawing(trajectories, lambda r: (8.0, 4.0 if len(r.best.states) <= 3 else 5.0)),
    "steps": Drawing(steps, lambda r: (8.0, 4.6 if r.contrast else 3.2)),
    "attempts": Drawing(attempts, _rows_high(1.0, 0.5)),
    "gradient_errors": Drawing(gradient_errors, lambda r: (8.0, 5.0 if len(r.variants) > 2 else 3.8)),
    "dot_product": Drawing(dot_product, lambda r: (8.0, 1.4 + 0.4 * max(len(shown_pairs(r)), 1))),
    "difference_sweep": Drawing(
        difference_sweep, lambda r: (8.0, min(2.4 + 1.2 * (len(shown_sweeps(r)[0]) // 4), 5.0))
    ),
}


def draw_work_precision(measured: xr.Dataset, formats: Sequence[str] = ("svg", "png")) -> dict[str, bytes]:
    """Returns the figure of gradient error over cost, likewise, from what `work_precision.nc` holds."""
    return files(lambda figure: work_precision(measured, figure), (8.0, 4.4), formats)


def draw_speed(measured: xr.Dataset, formats: Sequence[str] = ("svg", "png")) -> dict[str, bytes]:
    """Returns the figure of speed and accuracy beside others, likewise, from what `speed.nc` holds."""
    return files(lambda figure: speed(measured, figure), (8.0, 4.0), formats)
