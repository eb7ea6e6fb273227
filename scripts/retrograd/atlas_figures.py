"""The figures of a study of many variants: maps of outcomes, causes met together, effects of factors.

Functions as in `figures`, made of the same parts (`drawing`).
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from retrograd import store
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
    literal,
    log_axis,
    outcome_patches,
    power,
    present_outcomes,
    say,
    superscript,
)
from retrograd.effects import clear_interactions
from retrograd.results import MOST_VARIANTS, spread
from retrograd.schema import CAUSES, EFFECT_KINDS, OUTCOMES

if TYPE_CHECKING:
    import xarray as xr

    from retrograd.results import Results, Treated

# How many of a kind are drawn; what is left out is said in the captions.
MOST_MAPS = 40
MOST_LEVELS = 24
MOST_MARKS = 4000
MOST_SETS = 20
MOST_INTERACTIONS = 8

# One outcome, one marker: they are told apart in black and white too.
_MARKERS = {
    "verified": (GREEN, "o", 3.2),
    "forward_failed": (VERMILION, "x", 3.8),
    "gradient_nonfinite": (ORANGE, "s", 3.2),
    "gradient_refuted": (PURPLE, "D", 3.0),
    "inconclusive": (SKY, "^", 3.6),
    "steady_state_failed": (GREY, "+", 4.4),
}

# What kinds of effect look like: heading, colour and marker.
_KINDS = {
    "main": ("main effects", BLUE, "o"),
    "interaction": ("largest interactions", PURPLE, "D"),
    "beside": ("beside the design", ORANGE, "s"),
}

# The measures of an effect: name in the file, words of its panel, what no effect is.
_MEASURES = (
    ("verified", "share verified\n(difference)", 0.0),
    ("attempts", "attempts\n(factor)", 1.0),
    ("seconds", "time per scenario\n(factor)", 1.0),
)


# --- small helpers --------------------------------------------------------------------------------


def wrapped(name: str, width: int, lines: int, at: str = "-") -> str:
    """Returns a name over several lines as matplotlib draws it letter for letter.

    - `width`: letters in a line; a piece longer than that loses its middle, and so does what is left for the last one.
    - `lines`: how many at most.
    - `at`: what a line may end with.
    """
    rows = [""]
    pieces = name.split(at)
    for piece in [*(p + at for p in pieces[:-1]), pieces[-1]]:
        if rows[-1] and len(rows[-1]) + len(piece.rstrip()) > width:
            rows.append("")
        rows[-1] += piece
    rows[lines - 1 :] = ["".join(rows[lines - 1 :])] if len(rows) >= lines else []
    return "\n".join(literal(row.strip(), width) for row in rows)


def _number(value: float) -> str:
    """Returns a value of the scenario table in three digits, as `3×10⁻⁹` where it is very large or small."""
    if not np.isfinite(value):
        return "–"
    mantissa, e, exponent = f"{value:.3g}".replace("-", "−").partition("e")
    if not e:
        return mantissa
    tens = "10" + superscript(int(exponent.replace("−", "-")))
    return tens if mantissa == "1" else f"{mantissa}×{tens}"


def _legend(figure: FigureBase, handles: list[Patch] | list[Line2D]) -> None:
    columns = len(handles) if len(handles) <= 4 else 3
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handleheight=1.1)


def _widen(figure: FigureBase) -> None:
    """Leaves more room beside long labels: a browser's letters are wider than those the layout is found with."""
    # The layout of a part of a figure is the whole figure's.
    layout = figure.get_layout_engine() if isinstance(figure, Figure) else None
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(w_pad=0.1)


# --- choices that the captions repeat -------------------------------------------------------------


def shown_maps(results: Results) -> list[Treated]:
    """Returns the variants that have a map, in the study's order.

    All, or those outside the design first, then its cells, evenly spread over how many scenarios they verify.
    """
    variants = list(results.variants)
    if len(variants) <= MOST_MAPS:
        return variants
    # With the best variant last among its equals, it is an end of the order and so is always there.
    rank = lambda i: (results.verified(variants[i]), variants[i] is results.best)
    apart, cells = (
        np.array(sorted((i for i, v in enumerate(variants) if results.is_cell(v) == cell), key=rank), int)
        for cell in (False, True)
    )
    apart = spread(apart, MOST_MAPS)
    chosen = {*apart, *spread(cells, MOST_MAPS - len(apart))}
    return [v for i, v in enumerate(variants) if i in chosen]


def _table(results: Results) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the columns of the scenario table, and its values, shape (scenario, column); empty cells are NaN."""
    table = results.table
    if table is None:
        return (), np.zeros((len(results.scenarios), 0))
    return table.columns, np.array(table.rows, dtype=float).reshape(len(table.rows), len(table.columns))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns which of its column's values, in order, each entry is; NaN is one of them and the last."""
    columns = [np.unique(column, return_inverse=True)[1].reshape(-1) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros(values.shape, int)


def mapped_columns(results: Results) -> tuple[str, str] | None:
    """Returns the two columns of the scenario table that a map spans; None where fewer than two vary.

    They are the pair that tells most scenarios apart, of equals the pair with most values, then the first one.
    """
    columns, values = _table(results)
    ranks = _ranks(values)
    many = ranks.max(axis=0, initial=0) + 1
    varying = np.flatnonzero(many > 1)
    found, most = None, (False, 0, 0)
    for position, a in enumerate(varying):
        for b in varying[position + 1 :]:
            one, other = ranks[:, a], ranks[:, b]
            # Two columns that rise or fall together show one direction only.
            along = np.array_equal(one, other) or np.array_equal(one, other.max() - other)
            key = (not along, len(np.unique(one * many[b] + other)), int(many[a] + many[b]))
            if key > most:
                found, most = (columns[a], columns[b]), key
    return found


def mapped_scenarios(results: Results) -> np.ndarray:
    """Returns the scenarios that the maps show, as indices: all, or a random choice, the same in every run."""
    return _sample(results, len(shown_maps(results)))


def plotted_scenarios(results: Results) -> np.ndarray:
    """Returns the scenarios that the figure over stiffness shows, likewise."""
    return _sample(results, len(results.shown))


def _sample(results: Results, variants: int) -> np.ndarray:
    # An even choice would fall in step with the grid that many a table is.
    return np.sort(np.random.default_rng(0).permutation(len(results.scenarios))[: MOST_MARKS // variants])


def met_causes(results: Results) -> list[tuple[tuple[int, ...], int]]:
    """Returns each set of causes that scenarios met over all variants, as codes, with the number of scenarios.

    Most frequent first, of equals the smaller set. Scenarios under which nothing failed have the empty set.
    """
    if "cause" not in results.summary:
        return []
    codes = results.summary["cause"].values
    sets = Counter(tuple(sorted({int(c) for c in column} - {0})) for column in codes.T)
    return sorted(sets.items(), key=lambda item: (-item[1], len(item[0]), item[0]))


def shown_effects(results: Results) -> list[int]:
    """Returns the effects that have a row, as indices: main ones, single variants, then the largest interactions.

    Of interactions those whose interval for the share verified excludes 0.
    """
    effects = results.effects
    if effects is None:
        return []
    kind = effects["effect_kind"].values
    main, beside = (np.flatnonzero(kind == EFFECT_KINDS.index(k))[:MOST_VARIANTS] for k in ("main", "beside"))
    return [*map(int, main), *map(int, beside), *clear_interactions(effects)[:MOST_INTERACTIONS]]


def shown_evaluation(results: Results) -> tuple[Treated, int] | None:
    """Returns the variant and the scenario whose evaluations are drawn; None where no solved one is recorded.

    Under the contrast of the best variant, else under that one: of the scenarios with a rejected attempt the one with
    fewest attempts, those with an attempt that was not finite before others.
    """
    solved: list[tuple[bool, bool, int, int, Treated]] = []
    for treated in (results.contrast or results.best, results.best):
        dynamics = treated.dynamics
        if not {"attempt_start", "attempt_end", "attempt_accepted", "attempt_finite"} <= set(dynamics):
            continue
        accepted, finite = (dynamics[f"attempt_{what}"].values.astype(bool) for what in ("accepted", "finite"))
        # What failed has no backward pass.
        rows = np.flatnonzero((dynamics["status"].values == 0) & (dynamics["attempt_count"].values > 0))
        ends = treated.offsets["attempt"]
        start, stop = ends[rows], ends[rows + 1]
        calm, whole = (_none_between(~every, start, stop) for every in (accepted, accepted | finite))
        columns = (found.tolist() for found in (calm, whole, stop - start, rows))
        solved += [(*found, treated) for found in zip(*columns, strict=True)]
        if any(not calm for calm, *_ in solved):
            break
    if not solved:
        return None
    *_, s, treated = min(solved, key=lambda found: found[:4])
    return treated, s


def _none_between(flags: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Returns whether none of flags[start:stop] is set, for arrays of starts and stops."""
    before = np.concatenate([[0], np.cumsum(flags)])
    return before[stop] == before[start]


def phases(treated: Treated, scenario: int) -> list[tuple[str, np.ndarray]]:
    """Returns the forward pass and both backward passes: what each is, and its attempts in order, as indices."""
    mine = treated.attempts(scenario)
    every = np.arange(mine.start, mine.stop)
    accepted = every[treated.dynamics["attempt_accepted"][mine].values.astype(bool)]
    return [
        ("forward solve:\nevery attempt", every),
        ("backward, checkpoint:\nevery attempt", every[::-1]),
        ("backward, replay:\naccepted steps", accepted[::-1]),
    ]


# --- the figures ----------------------------------------------------------------------------------


def _grid(results: Results, columns: tuple[str, str], scenarios: np.ndarray) -> list[tuple[np.ndarray, list[str]]]:
    """Returns for both columns the place of each scenario, shape (scenario,), and the label of each place.

    Values that follow each other share a place where there are too many to see, or where most places would be empty.
    """
    names, values = _table(results)
    where = [names.index(c) for c in columns]
    ranks, values = _ranks(values)[scenarios][:, where], values[scenarios][:, where]
    many = [int(rank.max()) + 1 for rank in ranks.T]
    places = list(many)
    while max(places) > MOST_LEVELS or places[0] * places[1] > max(3 * len(scenarios), 4):
        wider = int(places[1] > places[0])
        places[wider] = -(-places[wider] // 2)
    out = []
    for rank, value, levels, count in zip(ranks.T, values.T, many, places, strict=True):
        at = rank * count // levels
        members = [np.sort(value[at == place]) for place in range(count)]
        out.append((at, [_number(m[len(m) // 2]) if len(m) else "" for m in members]))
    return out


def _slices(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns left, bottom, right and top of each scenario's rectangle, shape (scenario, 4): a cell is divided."""
    out = np.empty((len(x), 4))
    for place in np.unique(np.stack([x, y], axis=1), axis=0):
        here = np.flatnonzero((x == place[0]) & (y == place[1]))
        layers = np.array_split(here, round(len(here) ** 0.5))
        for row, layer in enumerate(layers):
            left = place[0] - 0.46 + 0.92 * np.arange(len(layer)) / len(layer)
            top = place[1] + 0.46 - 0.92 * row / len(layers)
            out[layer] = np.stack(
                [
                    left,
                    np.full(len(layer), top - 0.92 / len(layers)),
                    left + 0.92 / len(layer),
                    np.full(len(layer), top),
                ],
                axis=1,
            )
    return out


def _maps_wide(panels: int) -> int:
    return panels if panels < 5 else (5 if panels <= 15 else 6 if panels <= 24 else 7)


def outcome_maps(results: Results, figure: FigureBase) -> None:
    """Draws, for each variant, the outcome of every scenario over two columns of the scenario table."""
    columns = mapped_columns(results)
    if columns is None:
        empty(
            figure,
            "Fewer than two columns of the scenario table vary."
            if results.table
            else "The scenario table was not given.",
        )
        return
    shown, scenarios = shown_maps(results), mapped_scenarios(results)
    (x, x_labels), (y, y_labels) = _grid(results, columns, scenarios)
    sides = _slices(x, y)
    corners = np.stack(
        [sides[:, [0, 1]], sides[:, [2, 1]], sides[:, [2, 3]], sides[:, [0, 3]], sides[:, [0, 1]]], axis=1
    )
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    wide = _maps_wide(len(shown))
    grid = figure.subplots(-(-len(shown) // wide), wide, squeeze=False, sharex=True, sharey=True)
    present = present_outcomes(results)
    for panel, axes in enumerate(grid.flat):
        if panel >= len(shown):
            axes.axis("off")
            continue
        outcome = results.outcome[results.index(shown[panel])]
        for code in present:
            mine = corners[outcome[scenarios] == code]
            if not len(mine):
                continue
            _, colour, hatch = OUTCOME_STYLE[OUTCOMES[code]]
            # One path for all of an outcome: its hatch runs on from cell to cell, and the file stays small.
            path = Path(mine.reshape(-1, 2), codes * len(mine))
            axes.add_patch(PathPatch(path, facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.35))
        axes.set_facecolor("#f3f3f3")
        name = wrapped(shown[panel].name, 20 if wide > 5 else 26, 4)
        axes.set_title(name, loc="left", fontsize=6.2 if wide > 5 else 7, pad=3)
        axes.text(
            *(1.01, 0.5, f"{int((outcome == 0).sum())} of {len(outcome)}"),
            transform=axes.transAxes,
            rotation=270,
            ha="left",
            va="center",
            fontsize=6,
            color="#444444",
        )
        low = panel + wide >= len(shown)
        axes.tick_params(axis="x", labelsize=6, length=1.5, pad=1.5, bottom=low, labelbottom=low)
        axes.tick_params(axis="y", labelsize=6, length=1.5, pad=1.5, left=panel % wide == 0)
        for side in axes.spines.values():
            side.set_visible(False)
    axes = grid[0, 0]
    axes.set_xlim(-0.6, len(x_labels) - 0.4)
    axes.set_ylim(-0.6, len(y_labels) - 0.4)
    # As many labels as have room beside each other, in inches.
    beside = 7.0 / wide / (0.055 * max(map(len, x_labels)) + 0.07)
    for axis, labels, most in ((axes.xaxis, x_labels, max(int(beside), 2)), (axes.yaxis, y_labels, 6)):
        ticks = spread(np.arange(len(labels)), most)
        axis.set_ticks(ticks, [labels[t] for t in ticks])
    figure.supxlabel(literal(columns[0], 40), fontsize=9)
    figure.supylabel(literal(columns[1], 40), fontsize=9)
    _legend(figure, outcome_patches(results))


def _ratios(results: Results) -> np.ndarray:
    """Returns the stiffness ratios of the scenarios that are drawn, under the best variant; NaN where there is none."""
    ratio = results.best.dynamics["stiffness_ratio"].values.astype(float)[plotted_scenarios(results)]
    return np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan)


def without_ratio(results: Results) -> bool:
    """Returns whether the figure over stiffness has scenarios without a ratio."""
    return "stiffness_ratio" in results.best.dynamics and bool(np.isnan(_ratios(results)).any())


def stiffness(results: Results, figure: FigureBase) -> None:
    """Draws the outcome of every scenario over its stiffness ratio under the best variant, one row a variant."""
    if "stiffness_ratio" not in results.best.dynamics:
        empty(figure, "These results hold no stiffness ratio.")
        return
    variants, scenarios = results.shown, plotted_scenarios(results)
    ratio = _ratios(results)
    known = np.isfinite(ratio)
    if not known.any():
        empty(figure, "No scenario has a stiffness ratio.")
        return
    _widen(figure)
    axes = figure.subplots()
    low, high = log_axis(axes.xaxis, ratio[known], ticks=9)
    # What has no ratio stands in a band beyond the axis rather than nowhere.
    band = high * (high / low) ** (0.1 * np.arange(5) / 4)
    at = ratio.copy()
    at[~known] = band[1] * (band[3] / band[1]) ** np.linspace(0, 1, int((~known).sum()))
    # Multiples of the golden ratio, in order of x: those next to each other lie far apart.
    order = np.argsort(at, kind="stable")
    jitter = np.empty(len(at))
    jitter[order] = (np.arange(len(at)) * 0.6180339887498949) % 1.0 - 0.5
    present = present_outcomes(results)
    for row, treated in enumerate(variants):
        outcome = results.outcome[results.index(treated)][scenarios]
        height = row + 0.7 * jitter
        for code in present:
            colour, marker, size = _MARKERS[OUTCOMES[code]]
            some = outcome == code
            if not some.any():
                continue
            axes.plot(
                at[some],
                height[some],
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=size,
                markeredgewidth=1.0 if marker in "x+" else 0.0,
                alpha=0.85,
            )
        axes.axhline(row + 0.5, color="#e6e6e6", linewidth=0.6, zorder=0)
    if not known.all():
        axes.set_xlim(low, band[4])
        axes.axvspan(high, band[4], color="#eeeeee", linewidth=0, zorder=0)
        ticks = [t for t in axes.xaxis.get_major_locator().tick_values(low, high) if low <= t <= high]
        axes.xaxis.set_major_locator(FixedLocator([*ticks, band[2]]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _=None: "none" if v > high else power(v)))
    axes.set_yticks(range(len(variants)), [wrapped(v.name, 30, 2) for v in variants])
    axes.tick_params(axis="y", length=0, labelsize=8 if len(variants) <= 12 else 6.5)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_xlabel(f"stiffness ratio of the scenario, under {literal(results.best.name)}")
    handles = []
    for code in present:
        colour, marker, _ = _MARKERS[OUTCOMES[code]]
        words = OUTCOME_STYLE[OUTCOMES[code]][0]
        handles.append(Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=5, label=words))
    _legend(figure, handles)


def cause_sets(results: Results, figure: FigureBase) -> None:
    """Draws which causes the same scenarios met: columns are sets of causes, rows are causes."""
    sets = met_causes(results)
    if not any(members for members, _ in sets):
        empty(figure, "No scenario met a cause.")
        return
    codes = results.summary["cause"].values
    cells = {c: int((codes == c).sum()) for c in range(1, len(CAUSES)) if (codes == c).any()}
    causes = sorted(cells, key=lambda c: (-cells[c], c))
    shown, others = sets[:MOST_SETS], sets[MOST_SETS:]
    width = len(shown) + bool(others)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 3.4), height_ratios=(1.6, max(0.28 * len(causes), 0.8)))
    top = figure.add_subplot(grid[0, 1])
    dots = figure.add_subplot(grid[1, 1], sharex=top)
    left = figure.add_subplot(grid[1, 0], sharey=dots)
    counts = [count for _, count in shown] + ([sum(count for _, count in others)] if others else [])
    bars = top.bar(range(width), counts, width=0.62, color=BLUE)
    if others:
        bars[-1].set(facecolor="#b8b8b8", hatch="////", edgecolor="white")
    for x, count in enumerate(counts):
        top.text(x, count, str(count), ha="center", va="bottom", fontsize=7)
    top.set_ylabel("scenarios")
    top.set_ylim(0, max(counts) * 1.15)
    top.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    top.tick_params(axis="x", bottom=False, labelbottom=False)
    for row in range(len(causes)):
        if row % 2 == 0:
            dots.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", linewidth=0, zorder=0)
    for x, (members, _) in enumerate(shown):
        rows = [causes.index(c) for c in members]
        away = [row for row in range(len(causes)) if row not in rows]
        dots.plot([x] * len(away), away, linestyle="none", marker="o", markersize=4, color="#d0d0d0")
        dots.plot([x] * len(rows), sorted(rows), color=BLACK, marker="o", markersize=6, linewidth=1.6)
    dots.set_xlim(-0.6, width - 0.4)
    dots.set_ylim(len(causes) - 0.5, -0.5)
    dots.set_yticks(range(len(causes)), [CAUSES[c].replace("_", " ") for c in causes])
    dots.set_xlabel("sets of causes, most frequent first")
    notes = {x: "nothing\nfailed" for x, (members, _) in enumerate(shown) if not members}
    notes |= {width - 1: f"others:\n{len(others)} sets"} if others else {}
    dots.set_xticks(list(notes), list(notes.values()), fontsize=6.5)
    dots.tick_params(bottom=False, left=False)
    left.barh(range(len(causes)), [cells[c] for c in causes], height=0.62, color=GREY)
    for row, c in enumerate(causes):
        left.text(cells[c], row, f"{cells[c]} ", ha="right", va="center", fontsize=7)
    left.set_xlim(max(cells.values()) * 1.35, 0)
    left.set_xlabel("cells with the cause:\nscenarios × variants")
    left.xaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    left.tick_params(axis="y", left=False, labelleft=False)
    for axes, sides in ((dots, ("left", "bottom")), (left, ("left",)), (top, ("bottom",))):
        for side in sides:
            axes.spines[side].set_visible(False)


def waterfall(results: Results, figure: FigureBase) -> None:
    """Draws how many scenarios are verified as one remedy after the other is added to the base."""
    if results.effects is None:
        empty(figure, "The study has no factors.")
        return
    count = [int(n) for n in results.effects["waterfall_verified"].values]
    if not count:
        empty(figure, "The study has no remedies to add.")
        return
    names = store.labels(results.effects, "waterfall")
    total = len(results.scenarios)
    axes = figure.subplots()
    axes.bar(0, count[0], width=0.6, color=BLUE)
    for x, (before, after) in enumerate(pairwise(count), start=1):
        axes.bar(x, after - before, bottom=before, width=0.6, color=GREEN, hatch="////", edgecolor="white")
        axes.plot([x - 1 - 0.3, x + 0.3], [before, before], color=GREY, linewidth=0.8)
    gains = [None, *np.diff(count)]
    for x, (height, gain) in enumerate(zip(count, gains, strict=True)):
        words = str(height) if gain is None else f"{height}\n({'+' if gain >= 0 else '−'}{abs(gain)})"
        axes.annotate(
            words, (x, height), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8
        )
    axes.axhline(total, color=BLACK, linewidth=1, linestyle="--")
    # Beside the axes, where no bar's count stands.
    axes.text(1.01, total, f"all {total}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    width = max(90 // len(names), 8)
    axes.set_xticks(range(len(names)), [wrapped(name, width, 3, " ") for name in names])
    axes.set_xlim(-0.6, len(names) - 0.4)
    # Counts stand above the bars, of which the highest may reach the line.
    axes.set_ylim(0, max(total, 1) * 1.2)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_ylabel("scenarios verified")
    axes.tick_params(axis="x", length=0)


def _factor_axis(axes: Axes, values: np.ndarray) -> None:
    """Makes x logarithmic around factors, 1 included, with ticks that are read as such."""
    values = values[np.isfinite(values) & (values > 0)]
    low, high = float(min([0.5, *values])), float(max([2.0, *values]))
    low, high = max(low / 1.25, 1e-300), min(high * 1.25, 1e300)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    fine = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    coarse = [10.0**d for d in decades]
    within = lambda ticks: [t for t in ticks if low <= t <= high]
    ticks = within(fine) if len(within(fine)) <= 5 else within(coarse)
    if len(ticks) > 5:
        every = -(-len(ticks) // 4)
        ticks = [t for t, d in zip(coarse, decades, strict=True) if low <= t <= high and d % every == 0]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _=None: f"{v:g}" if 1e-3 <= v <= 1e3 else power(v)))
    axes.xaxis.set_minor_locator(NullLocator())


def _effect_rows(effects: xr.Dataset, shown: list[int]) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Returns the height of each effect's row, and of the headings with their words; downwards from 0."""
    kind = effects["effect_kind"].values
    rows: dict[int, float] = {}
    headings = []
    y, last = 0.0, None
    for e in shown:
        if kind[e] != last:
            y += 0.4 if rows else 0.0
            headings.append((y, _KINDS[EFFECT_KINDS[kind[e]]][0]))
            y, last = y + 0.9, kind[e]
        rows[e] = y
        y += 1.0
    return rows, headings


def effects(results: Results, figure: FigureBase) -> None:
    """Draws what each factor does to the share verified, to the attempts and to the time, with intervals."""
    shown = shown_effects(results)
    if results.effects is None or not shown:
        empty(figure, "The study has no factors.")
        return
    data = results.effects
    kind = data["effect_kind"].values
    measures = store.labels(data, "measure")
    rows, headings = _effect_rows(data, shown)
    # Which variant one is held against, the table beside the figure says.
    names = [name.partition(" (against ")[0] for name in store.labels(data, "effect")]
    panels = [m for m in _MEASURES if m[0] in measures]
    _widen(figure)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (measure, words, none) in zip(grid.flat, panels, strict=True):
        value, low, high = (data[key].values[measures.index(measure)][shown] for key in ("value", "low", "high"))
        axes.axvline(none, color=BLACK, linewidth=0.9, zorder=1)
        for y in list(rows.values()):
            axes.axhline(y, color="#ececec", linewidth=0.6, zorder=0)
        if none:
            _factor_axis(axes, np.concatenate([value, low, high]))
        else:
            sizes = np.abs([value, low, high])
            most = float(np.max(sizes, initial=0.1, where=np.isfinite(sizes))) * 1.12
            axes.set_xlim(-most, most)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, symmetric=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _=None: f"{v:+.3g}".replace("-", "−") if v else "0"))
        for e, v, below, above in zip(shown, value, low, high, strict=True):
            _, colour, marker = _KINDS[EFFECT_KINDS[kind[e]]]
            if not np.isfinite(v) or (none and v <= 0):
                axes.text(
                    *(0.99, rows[e], "no number"),
                    transform=axes.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    fontsize=6.5,
                    color=GREY,
                    bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
                )
                continue
            axes.plot([below, above], [rows[e]] * 2, color=colour, linewidth=1.8, zorder=2)
            clear = below > none or above < none
            axes.plot(
                v,
                rows[e],
                marker=marker,
                markersize=5.5,
                color=colour,
                markerfacecolor=colour if clear else "white",
                markeredgewidth=1.3,
                zorder=3,
            )
        axes.set_xlabel(words)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    axes = grid[0, 0]
    at = [*rows.values(), *(y for y, _ in headings)]
    axes.tick_params(axis="y", labelsize=7)
    axes.set_yticks(at, [*(wrapped(names[e], 42, 2, " × ") for e in rows), *(words for _, words in headings)])
    for label in axes.get_yticklabels()[len(rows) :]:
        label.set(fontweight="bold", fontsize=8)
    axes.set_ylim(max(at) + 0.7, -0.6)
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=5.5, label="interval excludes no effect"),
        Line2D(
            [], [], color=GREY, marker="o", markersize=5.5, markerfacecolor="white", label="does not, or is unknown"
        ),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)


def evaluation_order(results: Results, figure: FigureBase) -> None:
    """Draws where in model time a solve and two backward passes through it stand, over the order of evaluation."""
    found = shown_evaluation(results)
    if found is None:
        empty(figure, "No solved scenario has recorded attempts.")
        return
    treated, s = found
    dynamics = treated.dynamics
    start, end = dynamics["attempt_start"].values, dynamics["attempt_end"].values
    accepted = dynamics["attempt_accepted"].values.astype(bool)
    finite = dynamics["attempt_finite"].values.astype(bool)
    passes = phases(treated, s)
    total = sum(len(order) for _, order in passes)
    # A pass of few steps still needs room for its title.
    ratios = [max(len(order), 0.24 * total) for _, order in passes]
    grid = figure.subplots(1, 3, sharey=True, squeeze=False, width_ratios=ratios)
    mine = treated.attempts(s)
    times = np.concatenate([start[mine], end[mine]])
    size = (end - start)[mine]
    size, positive = size[np.isfinite(size) & (size > 0)], times[np.isfinite(times) & (times > 0)]
    floor = None
    if size.size and size.max() > 1e3 * size.min():
        log_axis(grid[0, 0].yaxis, positive)
        # Time 0 has no logarithm: it stands on a line of its own at the bottom.
        floor = 10.0 ** (np.floor(np.log10(positive.min())) - 1)
    small = total > 150
    begin = 0
    for panel, (axes, (words, order)) in enumerate(zip(grid.flat, passes, strict=True)):
        x = begin + np.arange(len(order))
        before, after = (start[order], end[order]) if panel == 0 else (end[order], start[order])
        if floor is not None:
            before, after = np.maximum(before, floor), np.maximum(after, floor)
        for keep, colour in (
            (accepted[order], BLUE),
            (~accepted[order] & finite[order], ORANGE),
            (~accepted[order] & ~finite[order], VERMILION),
        ):
            # One line with gaps for all of a kind.
            gaps = np.full(int(keep.sum()), np.nan)
            axes.plot(
                np.stack([x[keep], x[keep] + 1, gaps], axis=1).ravel(),
                np.stack([before[keep], after[keep], gaps], axis=1).ravel(),
                color=colour,
                linewidth=1.2 if small else 1.8,
                solid_capstyle="butt",
            )
        # Where the next attempt starts elsewhere, model time jumps.
        jump = np.flatnonzero(after[:-1] != before[1:])
        axes.vlines(x[1:][jump], after[jump], before[1:][jump], color=GREY, linestyle=":", linewidth=0.9)
        tried = end[order] if floor is None else np.maximum(end[order], floor)
        side = x + (1 if panel == 0 else 0)
        for keep, colour, marker in (
            (~accepted[order] & finite[order], ORANGE, "o"),
            (~accepted[order] & ~finite[order], VERMILION, "x"),
        ):
            axes.plot(
                side[keep],
                tried[keep],
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=3 if small else 5,
                markerfacecolor="white" if marker == "o" else colour,
                zorder=3,
            )
        axes.set_title(words, loc="left", fontsize=8)
        axes.set_facecolor("white" if panel == 0 else "#f3f3f3")
        axes.set_xlim(begin - 0.5, begin + max(len(order), 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        if not len(order):
            say(axes, "none")
        begin += len(order)
    axes = grid[0, 0]
    if floor is not None:
        low = floor
        axes.set_ylim(bottom=floor / 2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _=None: "0" if v <= low * 1.01 else power(v)))
        top = float(axes.get_ylim()[1])
        decades = range(round(np.log10(floor)) + 1, int(np.floor(np.log10(top))) + 1)
        ticks = [10.0**d for d in decades[:: -(-len(decades) // 7)]]
        axes.yaxis.set_major_locator(FixedLocator([floor, *ticks]))
    axes.set_ylabel(f"model time [{literal(treated.time_unit, 20)}]")
    grid[0, 1].set_xlabel("order of evaluation")
    figure.suptitle(
        f"{literal(results.scenarios[s], 50)} under {literal(treated.name, 50)}", fontsize=9, x=0.01, ha="left"
    )
    handles = [
        Line2D([], [], color=BLUE, linewidth=1.8, label="accepted"),
        Line2D(
            [], [], color=ORANGE, linewidth=1.8, marker="o", markerfacecolor="white", markersize=5, label="rejected"
        ),
        Line2D([], [], color=VERMILION, linewidth=1.8, marker="x", markersize=5, label="rejected, not finite"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)


# --- sizes, and words -----------------------------------------------------------------------------


def _maps_size(results: Results) -> tuple[float, float]:
    if mapped_columns(results) is None:
        return (8.0, 1.6)
    panels = len(shown_maps(results))
    wide = _maps_wide(panels)
    each = {1: 4.0, 2: 3.0, 3: 2.3, 4: 1.9, 5: 1.65}.get(wide, 1.35)
    return (8.0, 1.1 + each * -(-panels // wide))


def _cause_size(results: Results) -> tuple[float, float]:
    causes = {code for members, _ in met_causes(results) for code in members}
    return (8.0, 2.9 + 0.24 * len(causes)) if causes else (8.0, 1.6)


def _effects_size(results: Results) -> tuple[float, float]:
    shown = shown_effects(results)
    return (8.0, 1.9 + 0.27 * len(shown)) if shown else (8.0, 1.6)


FIGURES: dict[str, Drawing] = {
    "outcome_maps": Drawing(outcome_maps, _maps_size),
    "stiffness": Drawing(stiffness, lambda r: (8.0, 1.4 + 0.29 * max(len(r.shown), 3))),
    "cause_sets": Drawing(cause_sets, _cause_size),
    "waterfall": Drawing(waterfall, lambda r: (8.0, 1.6 if r.effects is None else 3.6)),
    "effects": Drawing(effects, _effects_size),
    "evaluation_order": Drawing(evaluation_order, lambda r: (8.0, 1.6 if shown_evaluation(r) is None else 3.8)),
}


def labels(results: Results) -> dict[str, str]:
    """Returns what each figure shows, in a sentence for those who cannot see it."""
    columns, shown = mapped_columns(results), shown_maps(results)
    counted = ", ".join(f"{v.name} {results.verified(v)}" for v in shown)
    total = len(results.scenarios)
    maps = f"Maps of outcomes over {columns[0]} and {columns[1]}" if columns else "No maps: fewer than two columns vary"
    sets = "; ".join(
        f"{' and '.join(CAUSES[c].replace('_', ' ') for c in members) or 'nothing failed'}: {count}"
        for members, count in met_causes(results)[:MOST_SETS]
    )
    steps, rows = "The study has no factors.", "The study has no factors."
    if results.effects is not None:
        data = results.effects
        names = store.labels(data, "waterfall")
        counts = [int(n) for n in data["waterfall_verified"].values]
        added = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        steps = f"Scenarios verified of {total} as remedies are added: {added}."
        found = ", ".join(str(data["effect_name"].values[e]) for e in shown_effects(results))
        rows = f"Effects on share verified, attempts and time, with intervals: {found}."
    evaluation = shown_evaluation(results)
    order = "No solved scenario has recorded attempts."
    if evaluation is not None:
        treated, s = evaluation
        forward, _, replay = (len(order) for _, order in phases(treated, s))
        order = (
            f"Model time over the order of evaluation for {results.scenarios[s]} under {treated.name}: "
            f"{forward} attempts forward, the same {forward} backward by checkpoint, "
            f"{replay} accepted steps backward by replay."
        )
    return {
        "outcome_maps": f"{maps}. Verified of {total}: {counted}.",
        "stiffness": f"Outcomes over the stiffness ratio. Variants: {', '.join(v.name for v in results.shown)}.",
        "cause_sets": f"Numbers of scenarios that met each set of causes. {sets}.",
        "waterfall": steps,
        "effects": rows,
        "evaluation_order": order,
    }
