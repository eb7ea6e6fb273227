"""Effects of remedies: against tables whose effects are known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from retrograd.effects import effects, smallest_cures, waterfall

ORDER = {"a": ["off", "on"], "b": ["no", "yes"], "c": ["0", "1", "2"]}
CELLS = [dict(zip(ORDER, levels, strict=True)) for levels in product(*ORDER.values())]


def table(f, scenarios: int = 400, noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(5)
    on = np.array([[c["a"] == "on", c["b"] == "yes", c["c"] == "2"] for c in CELLS], float)
    return np.array([f(*row) for row in on])[:, None] + noise * rng.standard_normal((len(CELLS), scenarios))


def test_effects_of_a_linear_table_with_an_interaction():
    found = {
        (e.factors, e.levels): e for e in effects(table(lambda a, b, c: 1 + 2 * a - b + 4 * a * b + c), CELLS, ORDER)
    }
    assert found[("a",), ("on",)].value == pytest.approx(2 + 4 / 2)
    assert found[("b",), ("yes",)].value == pytest.approx(-1 + 4 / 2)
    assert found[("c",), ("1",)].value == pytest.approx(0)
    assert found[("c",), ("2",)].value == pytest.approx(1)
    assert found[("a", "b"), ("on", "yes")].value == pytest.approx(4)
    assert found[("a", "c"), ("on", "2")].value == pytest.approx(0, abs=1e-12)
    # 4 levels beside the first ones, and the products of two of them.
    assert len(found) == 4 + 1 + 2 + 2


def test_intervals_hold():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(60):
        lucky = rng.random(80)[None] < np.where([c["a"] == "on" for c in CELLS], 0.7, 0.4)[:, None]
        (first, *_) = effects(lucky.astype(float), CELLS, ORDER)
        inside += first.low <= 0.3 <= first.high
        assert first.low < first.value < first.high
    assert inside >= 50


def test_what_is_unknown_counts_nowhere():
    values = table(lambda a, b, c: a)
    values[:, ::2] = np.nan
    assert effects(values, CELLS, ORDER)[0].value == pytest.approx(1)


def test_smallest_cures_and_the_waterfall():
    # Scenario 0 is good anyway; 1 needs a; 2 needs b, or c at 2; 3 needs a and b; nothing cures 4.
    good = np.array(
        [
            [True, c["a"] == "on", c["b"] == "yes" or c["c"] == "2", c["a"] == "on" and c["b"] == "yes", False]
            for c in CELLS
        ]
    )
    a, b, c = ("a", "on"), ("b", "yes"), ("c", "2")
    assert smallest_cures(good, CELLS, ORDER) == [
        [frozenset()],
        [frozenset({a})],
        [frozenset({b}), frozenset({c})],
        [frozenset({a, b})],
        [],
    ]
    assert waterfall(good, CELLS, ORDER) == [(frozenset(), 1), (frozenset({a}), 2), (frozenset({b}), 4)]


def test_the_waterfall_takes_two_remedies_where_none_helps_alone():
    good = np.array([[True, c["a"] == "on" and c["c"] == "1"] for c in CELLS])
    both = frozenset({("a", "on"), ("c", "1")})
    assert waterfall(good, CELLS, ORDER) == [(frozenset(), 1), (both, 2)]
