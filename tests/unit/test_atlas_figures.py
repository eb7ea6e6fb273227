"""The figures of many variants: that they draw on odd studies too, and that they say what the results hold."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from retrograd import atlas_figures, drawing
from retrograd.results import MOST_VARIANTS, Results, Treated
from retrograd.scenarios import Table
from retrograd.schema import CAUSES, OUTCOMES

NAMES = list(atlas_figures.FIGURES)
FACTORS = {
    "precision": ("float32", "float64"),
    "formulation": ("naive", "stable"),
    "guard": ("free", "bounded"),
    "nonlinear": ("chord", "newton"),
    "controller": ("I", "PI"),
    "start": ("root", "integrate"),
    "gradient": ("checkpoint", "replay"),
}
CAUSE_OF = {
    "verified": 0,
    "forward_failed": CAUSES.index("steps_exhausted_stiff"),
    "gradient_nonfinite": CAUSES.index("rejected_step_overflowed"),
    "gradient_refuted": CAUSES.index("gradient_differs"),
    "inconclusive": CAUSES.index("check_too_coarse"),
    "steady_state_failed": CAUSES.index("steady_state_not_found"),
}


# Start, end, accepted, finite: by scenario, in turn. The second is the shortest with an attempt that is not finite.
RECORDS = (
    [(0.0, 0.5, 1, 1), (0.5, 1.0, 1, 1), (1.0, 2.0, 1, 1)],
    [(0.0, 1e-5, 1, 1), (1e-5, 1.0, 0, 0), (1e-5, 0.1, 0, 1), (1e-5, 0.01, 1, 1), (0.01, 2.0, 1, 1)],
    [(0.0, 0.5, 1, 1), (0.5, 2.0, 0, 1), (0.5, 2.0, 1, 1)],
    [(0.0, 0.5, 1, 1), (0.5, 2.0, 0, 0), (0.5, 2.0, 0, 0), (0.5, 1.0, 1, 1), (1.0, 1.5, 1, 1), (1.5, 2.0, 1, 1)],
)


def treated(name: str, outcome: np.ndarray, ratio: np.ndarray | None, recorded: bool = True) -> Treated:
    rows = [RECORDS[s % 4] if recorded else [] for s in range(len(outcome))]
    flat = np.array([attempt for row in rows for attempt in row], float).reshape(-1, 4)
    failed = np.isin(outcome, [OUTCOMES.index("forward_failed"), OUTCOMES.index("steady_state_failed")])
    dynamics = xr.Dataset(
        {
            "status": ("scenario", np.where(failed, 1, 0)),
            "attempt_count": ("scenario", [len(row) for row in rows]),
            "step_count": ("scenario", [sum(int(a[2]) for a in row) for row in rows]),
            "attempt_start": ("attempt", flat[:, 0]),
            "attempt_end": ("attempt", flat[:, 1]),
            "attempt_accepted": ("attempt", flat[:, 2].astype(np.int8)),
            "attempt_finite": ("attempt", flat[:, 3].astype(np.int8)),
        },
        {"model_time": ("model_time", [0.0, 2.0], {"units": "s"})},
    )
    if ratio is not None:
        dynamics["stiffness_ratio"] = ("scenario", ratio)
    return Treated(name, "replay", {}, dynamics, xr.Dataset())


def study(
    outcomes: dict[str, list[str]],
    *,
    table: tuple[tuple[str, ...], list[tuple[float | None, ...]]] | None = None,
    ids: list[str] | None = None,
    effects: xr.Dataset | None = None,
    ratio: bool = True,
    recorded: bool = True,
) -> Results:
    """Returns results with the outcomes asked for, by variant; they are in memory alone.

    - `table`: columns and rows of the scenario table; without one a grid of k1 over k2.
    """
    codes = np.array([[OUTCOMES.index(o) for o in row] for row in outcomes.values()], np.int8)
    total = codes.shape[1]
    ids = ids or [f"s{i:02d}" for i in range(total)]
    columns, rows = table or (("k1", "k2", "k3"), [(float(i // 4), 10.0 ** (i % 4), 1.0) for i in range(total)])
    ratios = np.where(np.arange(total) % 7 == 6, np.nan, np.geomspace(1.0, 1e9, total)) if ratio else None
    # A variant's summary need not be that of its records here: no figure holds the two together.
    summary = xr.Dataset(
        {
            "outcome": (("variant", "scenario"), codes),
            "cause": (("variant", "scenario"), np.array([[CAUSE_OF[o] for o in row] for row in outcomes.values()])),
            "num_accepted": (("variant", "scenario"), np.ones(codes.shape, int)),
            "num_rejected": (("variant", "scenario"), np.zeros(codes.shape, int)),
        },
        {"variant_name": ("variant", list(outcomes)), "scenario_name": ("scenario", ids)},
    )
    variants = tuple(treated(v, codes[i], ratios, recorded) for i, v in enumerate(outcomes))
    # A cell may be empty, which the table's own reader does not let pass yet.
    cells: Any = rows
    return Results({}, summary, xr.Dataset(), variants, Table(tuple(ids), columns, tuple(cells)), effects)


def design(scenarios: int = 24, extras: int = 2, factors: int = 7) -> Results:
    """Returns a full design with singles before it: cells of more remedies verify more."""
    chosen = dict(list(FACTORS.items())[:factors])
    cells = list(product((0, 1), repeat=factors))
    rng = np.random.default_rng(1)
    outcomes: dict[str, list[str]] = {}
    bad = [o for o in OUTCOMES if o != "verified"]
    for i in range(extras):
        outcomes[f"extra{i}"] = ["forward_failed"] * scenarios
    for cell in cells:
        name = "-".join(levels[i] for levels, i in zip(chosen.values(), cell, strict=True))
        good = round(scenarios * (1 + sum(cell)) / (factors + 2))
        outcomes[name] = ["verified"] * good + [bad[i] for i in rng.integers(0, 3, scenarios - good)]
    names = [f"{f}: {levels[1]}" for f, levels in chosen.items()]
    pairs = [f"{a} × {b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    every = [*names, *pairs, *(f"extra{i}" for i in range(extras))]
    kind = [0] * len(names) + [1] * len(pairs) + [2] * extras
    value = np.stack([rng.uniform(-0.5, 0.5, len(every)), *(10 ** rng.uniform(-1.2, 0.6, (2, len(every))))])
    half = rng.uniform(0.02, 0.3, len(every))
    low = np.stack([value[0] - half, *(value[1:] / (1 + half))])
    high = np.stack([value[0] + half, *(value[1:] * (1 + half))])
    value[2, 0] = np.nan
    low[:, -1] = high[:, -1] = np.nan
    steps = min(factors, 5)
    effects = xr.Dataset(
        {
            "verified": ("variant", np.array([r.count("verified") / scenarios for r in outcomes.values()])),
            "level": (("variant", "factor"), np.array([[-1] * factors] * extras + [list(c) for c in cells], np.int32)),
            "value": (("measure", "effect"), value),
            "low": (("measure", "effect"), low),
            "high": (("measure", "effect"), high),
            "effect_kind": ("effect", np.array(kind, np.int8)),
            "waterfall_verified": ("waterfall", np.array([3, 3, 9, 15, 20, 21][: steps + 1], np.int32)),
        },
        {
            "variant_name": ("variant", list(outcomes)),
            "measure_name": ("measure", ["verified", "attempts", "seconds"]),
            "effect_name": ("effect", every),
            "factor_name": ("factor", list(chosen)),
            "waterfall_name": ("waterfall", ["naive32", *(f"+ {v[1]}" for v in list(chosen.values())[:steps])]),
        },
    )
    return study(outcomes, effects=effects)


def draw(results: Results, name: str) -> Figure:
    figure = Figure()
    atlas_figures.FIGURES[name].draw(results, figure)
    return figure


def files(results: Results, name: str, *formats: str) -> dict[str, bytes]:
    return drawing.render(atlas_figures.FIGURES[name], results, formats)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


MIXED = {
    "recommended": ["verified"] * 12,
    "naive": ["verified", *OUTCOMES[1:], *["gradient_nonfinite"] * 6],
}


def odd() -> dict[str, Results]:
    """Returns studies that lack what others have, or have far more of it."""
    rng = np.random.default_rng(2)
    total = 2000
    strange = {
        f"ва$riant$ {i}\n<{i}>" + "-x_" * (i % 40): [OUTCOMES[k] for k in rng.integers(0, 6, total)] for i in range(200)
    }
    values = rng.random((total, 2))
    large = study(
        strange,
        ids=[f"$s^{i}$ é" for i in range(total)],
        table=(("$k", "é", "copy", "x0:A"), [(a, b * 1e-9, a, None if a < 0.1 else 1.0) for a, b in values.tolist()]),
    )
    bare = study(MIXED, ratio=False)
    for v in bare.variants:
        for name in ("attempt_finite", "attempt_start"):
            del v.dynamics[name]
    del bare.summary["cause"]
    unknown = study(MIXED)
    for v in unknown.variants:
        v.dynamics["stiffness_ratio"] = ("scenario", np.full(12, np.nan))
    hollow = design(factors=2)
    assert hollow.effects is not None
    for name in ("value", "low", "high"):
        hollow.effects[name][:] = np.nan
    endless = design(factors=2)
    assert endless.effects is not None
    endless.effects["high"][:] = np.inf
    endless.effects["low"][1:] = 0.0
    return {
        "large": large,
        "bare": bare,
        "unknown": unknown,
        "hollow": hollow,
        "endless": endless,
        "single": study({"only": ["verified"]}),
        "failed": study({"a": ["forward_failed"] * 5, "b": ["steady_state_failed"] * 5}, recorded=False),
        "no table": replace(study(MIXED), table=None),
        "no columns": study(MIXED, table=((), [()] * 12)),
    }


@pytest.fixture(scope="module")
def factorial() -> Results:
    """130 variants: 128 cells of a design, and two outside it."""
    return design()


@pytest.fixture(scope="module")
def strange() -> dict[str, Results]:
    return odd()


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_a_large_design_draw(factorial: Results, name: str) -> None:
    assert len(factorial.variants) == 130
    drawn = files(factorial, name, "svg")["svg"]
    assert len(drawn) < 500_000
    size = atlas_figures.FIGURES[name].size(factorial)
    assert size[0] == 8.0
    assert 1.0 < size[1] < 11.0
    assert ET.fromstring(drawn).tag.endswith("svg")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_results_give_the_same_bytes(name: str) -> None:
    once, again = (files(design(factors=2), name, "svg", "png") for _ in range(2))
    assert once == again


def test_odd_results_draw_and_are_told(strange: dict[str, Results]) -> None:
    for results in (strange[key] for key in strange if key != "large"):
        told = atlas_figures.labels(results)
        assert list(told) == NAMES
        for name in NAMES:
            draw(results, name)
            assert told[name].endswith(".")
            width, height = atlas_figures.FIGURES[name].size(results)
            assert width == 8.0
            assert 1.0 < height < 12.0


@pytest.mark.parametrize("name", NAMES)
def test_many_scenarios_leave_files_small_and_names_as_they_are(strange: dict[str, Results], name: str) -> None:
    large = strange["large"]
    drawn = files(large, name, "svg")["svg"]
    assert len(drawn) < 2_500_000
    text = " ".join(ET.fromstring(drawn).itertext())
    assert ("ва$riant$ " in text) == (name in ("outcome_maps", "stiffness", "evaluation_order"))
    assert "\n<" not in text
    assert len(atlas_figures.labels(large)[name]) > 20


def test_what_is_lacking_is_said(strange: dict[str, Results]) -> None:
    said = lambda study, name: " ".join(words(draw(strange[study], name)))
    assert said("single", "outcome_maps") == "Fewer than two columns of the scenario table vary."
    assert said("no table", "outcome_maps") == "The scenario table was not given."
    assert said("bare", "stiffness") == "These results hold no stiffness ratio."
    assert said("unknown", "stiffness") == "No scenario has a stiffness ratio."
    assert said("single", "cause_sets") == said("bare", "cause_sets") == "No scenario met a cause."
    assert said("single", "waterfall") == said("single", "effects") == "The study has no factors."
    assert said("failed", "evaluation_order") == "No solved scenario has recorded attempts."
    assert said("hollow", "effects").count("no number") == 3 * len(atlas_figures.shown_effects(strange["hollow"]))


def test_maps_show_singles_the_best_and_an_even_choice_of_cells(factorial: Results) -> None:
    shown = atlas_figures.shown_maps(factorial)
    assert len(shown) == atlas_figures.MOST_MAPS
    assert [v.name for v in shown[:2]] == ["extra0", "extra1"]
    assert factorial.best in shown
    assert [factorial.index(v) for v in shown] == sorted(factorial.index(v) for v in shown)
    counts = sorted(factorial.verified(v) for v in shown[2:])
    cells = sorted(factorial.verified(v) for v in factorial.variants[2:])
    assert counts[0] == cells[0]
    assert counts[-1] == cells[-1]
    assert abs(np.median(counts) - np.median(cells)) <= 1
    figure = draw(factorial, "outcome_maps")
    assert sum(axes.axison for axes in figure.axes) == atlas_figures.MOST_MAPS
    assert len(draw(factorial, "stiffness").axes[0].get_yticks()) == MOST_VARIANTS
    assert len(atlas_figures.shown_maps(study(MIXED))) == 2


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # c copies b, d runs against it: neither makes a map with it.
        ({"a": [1, 1, 1, 1], "b": [1, 2, 3, 4], "c": [5, 6, 7, 8], "d": [4, 3, 2, 1], "e": [0, 0, 1, 0]}, ("b", "e")),
        ({"a": [1, 1, 2, 2], "b": [1, 2, 1, 2], "c": [1, 1, 1, 2]}, ("a", "b")),
        # An empty cell is a value of its own.
        ({"a": [None, None, 2, 2], "b": [7, 7, 7, 7], "c": [1, None, 1, None]}, ("a", "c")),
        ({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]}, ("a", "b")),
        ({"a": [1, 2, 3, 4], "b": [1, 1, 1, 1]}, None),
    ],
)
def test_maps_span_the_columns_that_tell_scenarios_apart(
    columns: dict[str, list[float | None]], expected: tuple[str, str] | None
) -> None:
    rows = list(zip(*columns.values(), strict=True))
    results = study({"v": ["verified"] * 4}, table=(tuple(columns), rows))
    assert atlas_figures.mapped_columns(results) == expected


def rectangles(figure: Figure, panel: int) -> list[np.ndarray]:
    """Returns the corners of all scenarios of a panel, outcome by outcome: each of shape (scenario, 5, 2)."""
    patches = [p for p in figure.axes[panel].patches if isinstance(p, PathPatch)]
    return [np.asarray(p.get_path().vertices).reshape(-1, 5, 2) for p in patches]


def test_no_scenario_of_a_map_hides_another() -> None:
    # Seven scenarios at each of four places, which other columns tell apart.
    rows = [(float(i % 2), float(i // 2 % 2), 0.0) for i in range(28)]
    outcome = [OUTCOMES[i % 6] for i in range(28)]
    figure = draw(study({"v": outcome, "w": outcome[::-1]}, table=(("a", "b", "c"), rows)), "outcome_maps")
    for panel in range(2):
        found = rectangles(figure, panel)
        assert [len(r) for r in found] == [outcome.count(o) for o in OUTCOMES]
        sides = [(r[0, 0], r[0, 1], r[2, 0], r[2, 1]) for r in np.concatenate(found)]
        assert sum((right - left) * (top - bottom) for left, bottom, right, top in sides) == pytest.approx(4 * 0.92**2)
        for i, (left, bottom, right, top) in enumerate(sides):
            for other_left, other_bottom, other_right, other_top in sides[:i]:
                wide = min(right, other_right) - max(left, other_left)
                high = min(top, other_top) - max(bottom, other_bottom)
                assert min(wide, high) < 1e-9
    hatches = {p.get_hatch() for p in figure.axes[0].patches if isinstance(p, PathPatch)}
    assert len(hatches) == 6


def test_a_map_has_each_scenario_at_its_values() -> None:
    rows = [(100.0, 1.0), (1.0, 1.0), (1.0, 5.0), (10.0, 5.0)]
    outcome = ["verified", "inconclusive", "forward_failed", "forward_failed"]
    axes = (figure := draw(study({"v": outcome}, table=(("a", "b"), rows)), "outcome_maps")).axes[0]
    centres = [np.round(r[:, [0, 2]].mean(axis=1)).tolist() for r in rectangles(figure, 0)]
    assert centres == [[[2, 0]], [[0, 1], [1, 1]], [[0, 0]]]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "10", "100"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "5"]


def test_stiffness_shows_every_scenario_in_every_row() -> None:
    results = study(MIXED)
    axes = draw(results, "stiffness").axes[0]
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in points) == 24
    assert len({line.get_marker() for line in points}) == 6
    x = np.concatenate([line.get_xdata() for line in points if np.round(np.mean(line.get_ydata())) == 1])
    ratio = results.best.dynamics["stiffness_ratio"].values
    known = np.isfinite(ratio)
    assert set(ratio[known]) < set(x)
    # Those without a ratio stand beyond all others.
    assert (np.sort(x)[-int((~known).sum()) :] > 1e9).all()


def test_cause_sets_count_scenarios_and_cells() -> None:
    results = study({"a": ["verified"] * 6, "b": ["verified"] * 6})
    kink, coarse = CAUSES.index("kink"), CAUSES.index("check_too_coarse")
    results.summary["cause"][:] = [[0, kink, kink, coarse, 0, kink], [0, kink, coarse, kink, coarse, 0]]
    assert atlas_figures.met_causes(results) == [
        ((kink,), 2),
        ((kink, coarse), 2),
        ((), 1),
        ((coarse,), 1),
    ]
    top, dots, left = draw(results, "cause_sets").axes
    assert [bar.get_height() for bar in top.patches] == [2, 2, 1, 1]
    assert [bar.get_width() for bar in left.patches] == [5, 3]
    assert [t.get_text() for t in dots.get_yticklabels()] == ["kink", "check too coarse"]
    filled = [list(line.get_ydata()) for line in dots.lines if line.get_color() == drawing.BLACK]
    assert filled == [[0], [0, 1], [], [1]]
    assert [t.get_text() for t in dots.get_xticklabels()] == ["nothing\nfailed"]
    assert "kink and check too coarse: 2" in atlas_figures.labels(results)["cause_sets"]


def test_rare_cause_sets_are_counted_together() -> None:
    # 25 scenarios, each with a set of its own, but for two.
    pairs = [(a, b) for a in range(1, 8) for b in range(a + 1, 8)][:21] + [(8, 9)] * 2 + [(8, 10), (9, 10)]
    results = study({"a": ["verified"] * 25, "b": ["verified"] * 25})
    results.summary["cause"][:] = np.array(pairs).T
    top, dots, _ = draw(results, "cause_sets").axes
    heights = [bar.get_height() for bar in top.patches]
    assert heights == [2, *[1] * 19, 4]
    assert [t.get_text() for t in dots.get_xticklabels()] == ["others:\n4 sets"]


def test_waterfall_bars_float_from_count_to_count(factorial: Results) -> None:
    axes = draw(factorial, "waterfall").axes[0]
    bars = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches]
    assert bars == [(0, 3), (3, 3), (3, 9), (9, 15), (15, 20), (20, 21)]
    said = [text.get_text() for text in axes.texts]
    assert said == ["3", "3\n(+0)", "9\n(+6)", "15\n(+6)", "20\n(+5)", "21\n(+1)", "all 24"]
    assert "naive32 3, + float64 3, + stable 9" in atlas_figures.labels(factorial)["waterfall"]


def test_effects_are_in_order_and_filled_where_clear(factorial: Results) -> None:
    data = factorial.effects
    assert data is not None
    shown = atlas_figures.shown_effects(factorial)
    kinds = data["effect_kind"].values[shown]
    assert kinds.tolist() == [0] * 7 + [2] * 2 + [1] * 8
    assert shown[:9] == [*range(7), 28, 29]
    value, low, high = (data[name].values[0] for name in ("value", "low", "high"))
    clear = (low > 0) | (high < 0)
    sizes = np.abs(value[shown[9:]])
    assert clear[shown[9:]].all()
    assert (np.diff(sizes) <= 0).all()
    left_out = [e for e in range(7, 28) if e not in shown and clear[e]]
    assert left_out
    assert np.abs(value[left_out]).max() <= sizes[-1]
    figure = draw(factorial, "effects")
    points = [line for line in figure.axes[0].lines if line.get_marker() in tuple("oDs")]
    assert [line.get_xdata()[0] for line in points] == pytest.approx(value[shown])
    assert [line.get_markerfacecolor() != "white" for line in points] == clear[shown].tolist()
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log", "log"]
    # Time has no number for the first effect.
    assert [text.get_text() for text in figure.axes[2].texts] == ["no number"]


def test_the_evaluation_drawn_is_the_shortest_with_an_attempt_that_is_not_finite() -> None:
    results = study(MIXED)
    assert results.contrast is not None
    assert results.contrast.name == "naive"
    # Under naive 1 has failed; 5 has its record, but no steady state; 3 is longer; 2 and 6 are finite.
    assert atlas_figures.shown_evaluation(results) == (results.contrast, 9)
    calm = study({"a": ["verified"], "b": ["gradient_refuted"]})
    assert atlas_figures.shown_evaluation(calm) == (calm.contrast, 0)
    failed = study({"a": ["verified"] * 4, "b": ["forward_failed"] * 4})
    assert atlas_figures.shown_evaluation(failed) == (failed.best, 1)


def test_replay_runs_back_over_accepted_steps_alone() -> None:
    results = study(MIXED)
    found = atlas_figures.shown_evaluation(results)
    assert found is not None
    start = found[0].attempts(found[1]).start
    orders = [(order - start).tolist() for _, order in atlas_figures.phases(*found)]
    assert orders == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [4, 3, 0]]
    figure = draw(results, "evaluation_order")
    segments = []
    for axes in figure.axes:
        accepted, rejected, lost, spots, crosses = axes.lines
        count = lambda line: int(np.isnan(np.asarray(line.get_ydata(), float)).sum())
        segments.append([count(line) for line in (accepted, rejected, lost)])
        assert [len(line.get_xdata()) for line in (spots, crosses)] == segments[-1][1:]
    assert segments == [[3, 1, 1], [3, 1, 1], [3, 0, 0]]
    forward, checkpoint, replay = (axes.lines[0].get_ydata() for axes in figure.axes)
    # Steps from 1e-5 to 2: the axis is logarithmic, with time 0 a decade below the first time.
    assert figure.axes[0].get_yscale() == "log"
    assert np.nanmin(forward) == pytest.approx(1e-6)
    assert forward[:2].tolist() == pytest.approx([1e-6, 1e-5])
    for backward in (checkpoint, replay):
        assert backward[:2].tolist() == pytest.approx([2.0, 0.01])
        assert (backward[0::3] > backward[1::3]).all()
    assert "5 attempts forward" in atlas_figures.labels(results)["evaluation_order"]
    assert "3 accepted steps backward by replay" in atlas_figures.labels(results)["evaluation_order"]


def test_model_time_is_linear_where_steps_are_alike() -> None:
    figure = draw(study({"a": ["verified"], "b": ["gradient_refuted"]}), "evaluation_order")
    assert figure.axes[0].get_yscale() == "linear"


def test_names_break_at_hyphens_and_lose_their_middle() -> None:
    name = "float64-stable-bounded-newton-PI-root-replay"
    assert atlas_figures.wrapped(name, 22, 3) == "float64-stable-\nbounded-newton-PI-\nroot-replay"
    assert atlas_figures.wrapped("a" * 50, 11, 3) == "aaaaa…aaaaa"
    assert atlas_figures.wrapped(name, 11, 2).count("\n") == 1
    assert "…" in atlas_figures.wrapped(name, 11, 2)
    assert atlas_figures.wrapped("", 10, 2) == ""
    assert atlas_figures.wrapped("a$b", 10, 2) == r"a\$b"
