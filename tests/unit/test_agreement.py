"""How far two runs agree: the ladder of verdicts, its limits, and what is told of the worst value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograd.agreement import (
    DIFFERENT,
    FLOOR,
    IDENTICAL,
    NOT_COMPARABLE,
    NOT_COMPARED,
    RESOLUTION,
    ROUNDING,
    SOLVER,
    Quantity,
    ulps,
    weigh,
    worst_of,
)

EPS = np.finfo(np.float64).eps


def verdict(here: float, there: float, **limits: float) -> int:
    return weigh(Quantity(np.array([here]), np.array([there]), **limits), 1).verdict


@pytest.mark.parametrize(
    ("apart", "found"), [(0.0, IDENTICAL), (0.9e-9, ROUNDING), (1.1e-9, SOLVER), (1.0e-6, SOLVER), (1.2e-6, DIFFERENT)]
)
def test_the_ladder(apart: float, found: int):
    assert verdict(1 + apart, 1.0, rounding=1e-9, solver=1e-6) == found


def test_a_limit_as_wide_as_the_quantity_tells_nothing():
    assert verdict(1.5, 1.0, rounding=1.0) == NOT_COMPARABLE
    assert verdict(1.5, 1.0, rounding=1e-9, solver=1.0) == NOT_COMPARABLE
    # Not even then is everything forgiven.
    assert verdict(3.0, 1.0, rounding=1.0) == DIFFERENT
    assert verdict(1.0, 1.0, rounding=np.inf) == IDENTICAL


def test_where_the_solver_error_is_not_known_nothing_is_called_different():
    assert verdict(1.5, 1.0, rounding=1e-9, solver=np.nan) == NOT_COMPARABLE
    assert verdict(1 + 1e-10, 1.0, rounding=1e-9, solver=np.nan) == ROUNDING


def test_what_went_in_is_the_same_or_different():
    assert verdict(np.nextafter(1.0, 2), 1.0) == DIFFERENT
    assert verdict(1.0, 1.0) == IDENTICAL


def test_missing_on_both_sides_is_the_same_and_on_one_is_a_difference():
    assert verdict(np.nan, np.nan, rounding=1.0) == IDENTICAL
    assert verdict(np.nan, 1.0, rounding=1e-9, solver=1e-6) == DIFFERENT
    assert verdict(1.0, np.nan, rounding=1e-9, solver=1e-6) == DIFFERENT


def test_rows_that_are_not_compared_do_not_count():
    q = Quantity(
        np.array([1.0, 2.0]),
        np.array([1.0, 9.0]),
        owner=np.array([0, 1]),
        rounding=1e-9,
        compared=np.array([True, False]),
    )
    found = weigh(q, 3)
    assert found.verdict == IDENTICAL
    assert found.values["n_values"] == 1
    assert found.scenario.tolist() == [IDENTICAL, NOT_COMPARED, NOT_COMPARED]


def test_nothing_to_compare():
    found = weigh(Quantity(np.zeros((0, 2)), np.zeros((0, 2)), owner=np.zeros(0, int), rounding=1.0), 2)
    assert found.verdict == NOT_COMPARED
    assert found.values["n_values"] == 0
    assert math.isnan(found.values["max_relative"])


def test_the_worst_value_is_named():
    here = np.array([[1.0, 2.0], [3.0, 4.0]])
    there = here + np.array([[0.0, 1e-10], [1e-5, 0.0]])
    place = lambda index: f"row {index[0]}, column {index[1]}"
    found = weigh(Quantity(here, there, owner=np.array([5, 2]), rounding=1e-9, solver=1e-6, place=place), 6)
    assert found.verdict == DIFFERENT
    assert found.values["where"] == "row 1, column 0"
    assert found.values["where_scenario"] == 2
    assert found.scenario.tolist() == [NOT_COMPARED, NOT_COMPARED, DIFFERENT, NOT_COMPARED, NOT_COMPARED, ROUNDING]
    assert found.values["n_equal"] == 2
    assert found.values["over_limit"] == pytest.approx(1e-5 / (1e-6 + 1e-9), rel=1e-3)
    assert found.values["max_relative"] == pytest.approx(1e-5 / 3, rel=1e-4)


@given(st.floats(1e-12, 1e-3), st.floats(0, 1e-3), st.floats(0.01, 0.99), st.floats(1.01, 1e6))
def test_the_detection_limit_holds(rounding: float, solver: float, below: float, above: float):
    """A change by less than it, times the size, is not called different; by more, it is."""
    size = 2.0
    known = lambda there: weigh(
        Quantity(np.array([1.0]), np.array([there]), rounding=rounding, solver=solver, size=size), 1
    )
    limit = known(1.0).values["detection_limit"] * size
    assert limit == pytest.approx(rounding + solver, rel=1e-2)
    assert known(1.0 + below * limit - 4 * EPS).verdict in (IDENTICAL, ROUNDING, SOLVER)
    assert known(1.0 + above * limit + 100 * EPS).verdict == DIFFERENT


def test_values_that_cancel_get_a_floor_of_the_quantity():
    assert verdict(3e-16, 1e-16, rounding=0.0, size=1.0) == ROUNDING
    assert verdict(1e-13, 1e-16, rounding=0.0, size=1.0) == DIFFERENT
    assert FLOOR * EPS < RESOLUTION


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ulps_count_the_numbers_between(dtype: type):
    kind = np.dtype(dtype)
    for start in (1.0, -1.0, 0.0, 1e-30, -7e20):
        value = moved = kind.type(start)
        for count in range(1, 5):
            moved = np.nextafter(moved, kind.type(np.inf), dtype=dtype)
            assert ulps(np.array([value], float), np.array([moved], float), kind)[0] == count
    # Across zero: the smallest numbers of both signs are two apart.
    tiny = np.nextafter(kind.type(0), kind.type(1), dtype=dtype)
    assert ulps(np.array([-tiny], float), np.array([tiny], float), kind)[0] == 2
    assert np.isnan(ulps(np.array([np.nan]), np.array([1.0]), kind)[0])


def test_what_cannot_be_told_ranks_between_agreement_and_difference():
    assert worst_of(np.array([IDENTICAL, ROUNDING, SOLVER])) == SOLVER
    assert worst_of(np.array([SOLVER, NOT_COMPARABLE])) == NOT_COMPARABLE
    assert worst_of(np.array([NOT_COMPARABLE, DIFFERENT, NOT_COMPARED])) == DIFFERENT
    assert worst_of(np.array([NOT_COMPARED, IDENTICAL])) == IDENTICAL
    assert worst_of(np.zeros((2, 0), int)).tolist() == [NOT_COMPARED, NOT_COMPARED]
