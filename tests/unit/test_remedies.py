"""What a study says about remedies: the tables of the page, and the variant that it advises to take."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from synthetic import study

from retrograd import fit_figures, remedies, report, store
from retrograd.effects import seconds_of, weigh
from retrograd.loading import load_study
from retrograd.plan import Plan
from retrograd.results import Results
from retrograd.schema import EFFECTS

ROOT = Path(__file__).parents[2]
FACTORS = [["guard", ["open", "bounded"]], ["nonlinear", ["chord", "newton"]], ["gradient", ["checkpoint", "replay"]]]
CELLS = {
    "-".join(run): dict(zip([f for f, _ in FACTORS], run, strict=True)) for run in product(*(v for _, v in FACTORS))
}


def ends(levels: dict[str, str]) -> list[str]:
    """Scenario 0 is verified anyway, 1 needs newton, 2 replay or a guard, 3 newton and replay, 4 is lost."""
    newton, replay, guard = (
        levels["nonlinear"] == "newton",
        levels["gradient"] == "replay",
        levels["guard"] == "bounded",
    )
    good = [True, newton, replay or guard, newton and replay, False]
    return ["verified" if g else "forward_failed" for g in good]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    outcomes = {"extra": ["verified", *["forward_failed"] * 4]} | {n: ends(c) for n, c in CELLS.items()}
    found = study(tmp_path_factory.mktemp("remedies"), outcomes)
    rows = {v: {"dynamics": {"nonlinear": {"method": CELLS[v]["nonlinear"]}}} for v in CELLS}
    rows["extra"] = {"dynamics": {"nonlinear": {"method": "chord"}, "controller": {"dtmax": 1e-4}}}
    settings = {
        "study": "tiny",
        "variants": rows,
        "gradient_of": {"extra": "checkpoint"} | {v: c["gradient"] for v, c in CELLS.items()},
        "factors": FACTORS,
        "cells": CELLS,
    }
    # Replay takes half of the time of checkpoint.
    share = np.array([0.5 if settings["gradient_of"][v.name] == "replay" else 1.0 for v in found.variants])
    weighed = weigh(settings, found.summary, share[:, None] * np.ones((len(share), 5)))
    effects = store.build(EFFECTS, weighed["values"], weighed["labels"])
    return dataclasses.replace(found, effects=effects)


def test_main_effects_are_told_with_their_intervals(results: Results):
    rows = {row["name"]: row for row in remedies.effect_rows(results, "main")}
    assert list(rows) == ["guard: bounded", "nonlinear: newton", "gradient: replay"]
    # Of 5 scenarios newton adds scenario 1 always and scenario 3 under replay.
    assert rows["nonlinear: newton"]["verified"][0] == pytest.approx(1.5 / 5)
    assert rows["gradient: replay"]["verified"][0] == pytest.approx(1 / 5)
    assert rows["guard: bounded"]["verified"][0] == pytest.approx(0.5 / 5)
    assert rows["gradient: replay"]["seconds"] == pytest.approx((0.5, 0.5, 0.5))
    assert rows["gradient: replay"]["judgement"] == "saves"
    for row in rows.values():
        value, low, high = row["verified"]
        assert low <= value <= high


@pytest.mark.parametrize(
    ("verified", "attempts", "seconds", "word"),
    [
        ((0.1, 0.02, 0.2), (2, 1.5, 3), (2, 1.5, 3), "helps"),
        ((-0.1, -0.2, -0.02), (0.5, 0.4, 0.6), (0.5, 0.4, 0.6), "harms"),
        ((0, -0.1, 0.1), (0.9, 0.8, 0.99), (2, 1.5, 3), "saves"),
        ((0, -0.1, 0.1), (1.02, 1.01, 1.03), (1, 0.9, 1.2), "costs"),
        ((0, -0.1, 0.1), (1, 0.9, 1.2), (1.2, 1.11, 1.3), "costs"),
        # Machine time varies by more than scenarios tell.
        ((0, -0.1, 0.1), (1, 0.9, 1.2), (1.05, 1.02, 1.09), "no clear effect"),
        ((0, -0.1, 0.1), (1, 0.9, 1.2), (0.95, 0.92, 0.97), "no clear effect"),
    ],
)
def test_what_an_effect_is_called(verified, attempts, seconds, word):
    assert remedies.judge(verified, attempts, seconds) == word


def test_a_variant_beside_the_design_is_held_against_its_closest_cell(results: Results):
    (row,) = remedies.effect_rows(results, "beside")
    assert row["name"] == "extra: controller.dtmax" and row["twin"] == "open-chord-checkpoint"
    assert row["verified"] == (0.0, 0.0, 0.0) and row["judgement"] == "no clear effect"


def test_smallest_cures_are_counted_and_the_lost_are_named(results: Results):
    rows = {row["cure"]: (row["size"], row["count"]) for row in remedies.cure_rows(results)}
    wanted = {"none needed": (0, 1), "newton": (1, 1), "bounded or replay": (1, 1), "newton + replay": (2, 1)}
    assert rows == wanted
    assert remedies.without_cure(results) == ["s04"]


def test_the_cheapest_of_those_that_verify_most_is_advised(results: Results):
    found = remedies.advice(results)
    assert found is not None
    assert (found["name"], found["verified"], found["solvable"], found["total"]) == ("open-newton-replay", 4, 4, 5)
    assert found["alike"] == 1 and found["unsolved"] == ["s04"] and found["left"] == []
    assert yaml.safe_load(found["yaml"]) == {"variants": ["open-newton-replay"]}
    # Without times attempts decide, and here they are the same: the first.
    plain = remedies.advice(dataclasses.replace(results, effects=None))
    assert plain is not None and plain["seconds"] is None and plain["name"] == "open-newton-replay"


def test_where_no_variant_verifies_all_the_others_are_named(tmp_path: Path):
    good, bad = "verified", "inconclusive"
    found = remedies.advice(study(tmp_path, {"a": [good, good, bad], "b": [bad, bad, good]}))
    assert found is not None
    assert (found["name"], found["left"]) == ("a", [("s02", "b")])
    assert remedies.advice(study(tmp_path / "c", {"a": ["inconclusive"]})) is None


def test_the_page_tells_it_and_ends_with_the_advice(results: Results, tmp_path: Path):
    names = [name for name in report.FIGURES if name not in fit_figures.FIGURES]
    report.make(results, str(tmp_path / "index.html"), [str(tmp_path / f"{n}.svg") for n in names], [])
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<section aria-labelledby="(\w+)"', html)[-1] == "advice"
    assert "What each remedy is worth" in html and "No variant of the design verifies 1: s04." in html
    assert all(f'aria-label="{name.replace("_", " ")}, scrolls' in html for name in ("waterfall", "effects"))
    assert len(re.findall(r"<svg", html)) == len(names)


def test_time_falls_to_scenarios_by_their_attempts(results: Results):
    summary = results.summary
    works = {v.name: {"dynamics": "d", "gradients": "g"} for v in results.variants}
    settings = {
        "works": works,
        "gradient_of": dict.fromkeys(works, "replay"),
        "chunks": [[0, 3], [3, 5]],
    }
    took = {"d": {"solve": 2.0}, "g": {"replay": 1.0, "checkpoint": 50.0}}
    read = lambda stage, work, chunk: {k: v * (1 + chunk) for k, v in took[work].items()}
    seconds = seconds_of(settings, summary, read)
    attempts = summary["num_accepted"].values + summary["num_rejected"].values
    assert seconds[:, :3].sum(axis=1) == pytest.approx(3.0) and seconds[:, 3:].sum(axis=1) == pytest.approx(6.0)
    assert seconds[0, :3] == pytest.approx(3.0 * attempts[0, :3] / attempts[0, :3].sum())


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(ROOT)
    return Plan(yaml.safe_load((ROOT / "config/studies/atlas.yaml").read_text()), ROOT)


def test_the_atlas_has_more_than_a_hundred_variants_and_shares_their_work(atlas: Plan):
    assert len(atlas.variants) == 134 and len(atlas.study.cells) == 128
    stages = [work.stage for work in atlas.works.values()]
    # Two methods judge each treatment; five of the six variants beside the design are treatments of their own.
    assert (stages.count("steady_state"), stages.count("dynamics"), stages.count("gradients")) == (17, 70, 70)
    assert len(atlas.timings()) == 140
    listed = json.loads(json.loads(atlas.report_settings())["study"])
    # What a level is compared with is the first one that the config names.
    assert list(listed["factors"]["levels"]["guard"]) == ["open", "bounded"]
    assert set(listed["define_variants"]) == {"dtmax1e-4", "dtmax1e-2", "segmented", "third_order", "advice"}
    assert listed["variants"] == atlas.variants[:6]


def test_what_is_advised_can_be_pasted(atlas: Plan, results: Results):
    settings: dict[str, Any] = json.loads(atlas.report_settings())
    config = yaml.safe_load((ROOT / "config/studies/atlas.yaml").read_text())
    for name in ("recommended", "advice", "float64-stable-bounded-PI-root-newton-replay"):
        treated = dataclasses.replace(results.variants[0], name=name)
        told = dataclasses.replace(results, settings=settings, variants=(treated,), effects=None)
        text = remedies._pasted(told, treated)
        pasted = {k: v for k, v in config.items() if k not in ("factors", "variants", "define_variants")}
        again = load_study(pasted | yaml.safe_load(text), ROOT / "config/variants.yaml")
        assert again.variants == (name,)
        assert again.variant(name) == atlas.study.variant(name)


def test_a_page_of_many_variants_shows_some_and_lists_all(tmp_path: Path):
    levels = [[f, [f"{f}0", f"{f}1"]] for f in "abcde"]
    cells = {"-".join(run): dict(zip("abcde", run, strict=True)) for run in product(*(names for _, names in levels))}
    outcomes = {"listed": ["verified", "inconclusive"]}
    outcomes |= {n: ["verified", "verified" if "1" in n else "inconclusive"] for n in cells}
    found = study(tmp_path, outcomes)
    settings = {
        "study": "tiny",
        "variants": {v: {"dynamics": {"solver": v}} for v in outcomes},
        "gradient_of": dict.fromkeys(outcomes, "replay"),
        "factors": levels,
        "cells": cells,
    }
    weighed = weigh(settings, found.summary, np.ones((33, 2)))
    results = dataclasses.replace(found, effects=store.build(EFFECTS, weighed["values"], weighed["labels"]))
    assert len(results.shown) == 24 and results.shown[0].name == "listed" and results.best in results.shown
    html = report.page(results, {})
    verdicts = html.partition('<ul class="verdicts">')[2].partition("</ul>")[0]
    assert verdicts.count("<li") == 24
    scenarios = html.partition('<table id="table">')[2].partition("</thead>")[0]
    assert scenarios.count('<th scope="col"') == 24 + 2
    table = html.partition('aria-label="Verdict table"')[2].partition("</table>")[0]
    assert table.count('<th scope="row"') == 24
    every = html.partition('aria-label="All variants"')[2].partition("</table>")[0]
    assert every.count('<th scope="row"') == 33
    assert "24 of 33 variants" in html
