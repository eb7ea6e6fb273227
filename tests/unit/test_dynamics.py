"""The adaptive solve and its record: against diffrax's own loop, and lane by lane."""

from __future__ import annotations

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import P4, START, StiffGrid, grid, options, solve

from retrograd.api import Model
from retrograd.dynamics import (
    DT_MIN,
    MAX_STEPS,
    NONFINITE,
    SKIPPED,
    SUCCESSFUL,
    make_controller,
    make_solver,
    rows_at,
    save_index,
)
from retrograd.plugins import vector_field
from retrograd.runge_kutta import RungeKutta

TIMES = np.linspace(0, 10, 21)


def starts(count: int) -> np.ndarray:
    return np.tile(START, (count, 1))


@pytest.mark.parametrize("solver", ["Kvaerno5", "Rodas5P", "Tsit5"])
def test_the_loop_takes_the_steps_of_diffeqsolve(solver):
    settings = options(method="chord", solver=solver)
    k = grid()[[0, 3, 18]] if solver == "Tsit5" else grid()[[0, 1, 2, 24]]
    records = solve(StiffGrid, StiffGrid(), settings, TIMES, starts(len(k)), k)
    field = vector_field(StiffGrid, "stable", None)

    @jax.jit
    def reference(x, k):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, args: field(StiffGrid(), jnp.asarray(t), x, args)),
            make_solver(settings),
            0.0,
            10.0,
            None,
            x,
            k,
            saveat=diffrax.SaveAt(steps=True),
            stepsize_controller=make_controller(settings, TIMES[1:]),
            max_steps=4096,
        )
        return solution.ts, solution.ys, solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]

    for row, record in zip(k, records, strict=True):
        ts, ys, accepted, rejected = reference(jnp.asarray(START), jnp.asarray(row))
        n = int(accepted)
        assert (record.num_accepted, len(record.end) - record.num_accepted) == (n, int(rejected))
        np.testing.assert_allclose(record.step_time, ts[:n], rtol=1e-6)
        # The steps are the same; rounding, fed back through their lengths, stays below one unit of the tolerance.
        np.testing.assert_allclose(record.step_x, ys[:n], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", ["Kvaerno3", "Kvaerno4", "Kvaerno5"])
def test_our_step_is_that_of_diffrax_with_its_stages_solved_to_rounding(solver):
    k = grid()[[0, 3, 6, 18, 21, 24]]
    settings = options(solver=solver, method="newton", rtol=1e-13, atol=1e-14)
    field = vector_field(StiffGrid, "stable", None)
    ours = RungeKutta(field, solver, 1e-8, 2, np.dtype(float), 30)
    theirs = make_solver(settings | {"nonlinear": settings["nonlinear"] | {"rtol": 1e-14, "atol": 1e-14}})
    term = diffrax.ODETerm(lambda t, x, args: field(StiffGrid(), jnp.asarray(t), x, args))
    x = jnp.asarray(START)
    for row in jnp.asarray(k):
        t0 = jnp.asarray(0.0)
        rate = field(StiffGrid(), t0, x, row)
        t1 = 0.1 / jnp.max(jnp.abs(rate))
        found = ours(StiffGrid(), t0, t1, x, rate, row)
        wanted, error, _, _, _ = theirs.step(term, t0, t1, x, row, (jnp.asarray(False), rate), False)
        moved = np.max(np.abs(wanted - x))
        assert moved > 1e-2
        np.testing.assert_allclose(found.x, wanted, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.error, error, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found.rate, field(StiffGrid(), t1, found.x, row), rtol=1e-6)
        # The stages satisfy their equations.
        a, c = ours.tableau.a, ours.tableau.c
        rates = np.array([field(StiffGrid(), c[i] * t1, y, row) for i, y in enumerate(found.stages)])
        np.testing.assert_allclose(found.stages, x + t1 * (a @ rates), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["Kvaerno5", "Rodas5P"])
def test_equilibrium_to_the_last_bit_costs_no_steps(solver):
    """Rate times rounding is e^25 * 1e-16: rates evaluated there would make every long step look wrong."""
    stiff = dict(zip(StiffGrid.parameters, grid()[0], strict=True)) | {"k1": 25.0, "k3": 24.0, "p2": 10.0}
    k = np.array([[stiff[name] for name in StiffGrid.parameters]])
    times = np.linspace(0, 1e5, 21)
    (record,) = solve(StiffGrid, StiffGrid(), options(solver=solver), times, starts(1), k)
    assert record.status == SUCCESSFUL
    assert len(record.end) < 300
    # At rest: x1 = k4, x0 = p2 - x1 - k2.
    np.testing.assert_allclose(record.step_x[-1], [10.0 - P4, P4], rtol=1e-14)


def test_every_attempt_is_recorded_and_every_save_time_ends_a_step():
    records = solve(StiffGrid, StiffGrid(), options(), TIMES, starts(6), grid()[::15])
    for record in records:
        assert record.status == SUCCESSFUL
        np.testing.assert_array_equal(record.end[record.accepted], record.step_time)
        # An attempt starts where the last accepted one ended; a rejected one is tried again from the same place.
        begin = np.concatenate([[0.0], record.step_time])[np.concatenate([[0], np.cumsum(record.accepted)[:-1]])]
        np.testing.assert_array_equal(record.start, begin)
        assert np.all(record.error[record.accepted] < 1)
        assert np.all(record.error[~record.accepted] >= 1)
        assert np.isin(TIMES[1:], record.step_time).all()
        rows = rows_at(record, np.array(START), TIMES)
        np.testing.assert_array_equal(rows[0], START)
        np.testing.assert_array_equal(rows[-1], record.step_x[-1])


class Explosive(Model):
    """dx/dt = k x^2 - y: blows up at t = 1 / (k x(0)) where y is 0; `poison` puts NaN into the rate."""

    states = {"x": "1", "y": "1"}
    parameters = {"k": "1", "poison": "1"}

    def vector_field(self, t, x, k):
        rate = jnp.stack([k["k"] * x[0] ** 2 - x[1], -x[1]])
        return jnp.where((k["poison"] > 0) & (t >= k["poison"] - 1), jnp.nan, rate)


def test_statuses_are_told_apart_lane_by_lane():
    k = np.array([[-1.0, 0], [1.0, 0], [-1.0, 1.0], [-1.0, 2.0], [-1.0, 0]])
    x = np.array([[1.0, 0.1], [1.0, 0.0], [1.0, 0.1], [1.0, 0.1], [np.nan, 0.0]])
    records = solve(Explosive, Explosive(), options(max_steps=600), [1.0, 2.0], x, k)
    status = [r.status for r in records]
    assert status[0] == SUCCESSFUL
    # Blow-up in finite time: time stands still or the budget is gone, never a success.
    assert status[1] in (DT_MIN, MAX_STEPS, NONFINITE)
    # Rates that are never finite, and rates that are not from t = 1 on.
    assert status[2] in (DT_MIN, MAX_STEPS, NONFINITE)
    assert status[3] in (DT_MIN, MAX_STEPS, NONFINITE)
    assert status[4] == SKIPPED
    assert np.all(np.isnan(rows_at(records[1], x[1], np.array([1.0, 2.0]))[1]))
    assert np.all(np.isfinite(rows_at(records[0], x[0], np.array([1.0, 2.0]))))
    # What was reached before the failure stays.
    assert records[3].step_time[-1] <= 1.0
    assert records[3].num_accepted > 3


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in ("start", "end", "accepted", "error", "step_time", "step_x")
    )


def test_a_poisoned_lane_changes_no_bit_of_its_neighbours():
    healthy = np.array([[-k, 0.0] for k in np.linspace(0.5, 5, 7)])
    x = np.tile([1.0, 0.3], (7, 1))
    alone = solve(Explosive, Explosive(), options(), TIMES, x, healthy)
    for poison in (1.0, 3.0):
        k = np.insert(healthy, [0, 3, 7], [[-1.0, poison]], axis=0)
        mixed = solve(Explosive, Explosive(), options(max_steps=500), TIMES, np.tile([1.0, 0.3], (10, 1)), k)
        kept = [mixed[i] for i in (1, 2, 3, 5, 6, 7, 8)]
        assert all(same(a, b) for a, b in zip(alone, kept, strict=True))


def test_results_do_not_depend_on_order_or_company():
    k = grid()
    together = solve(StiffGrid, StiffGrid(), options(), TIMES, starts(90), k)
    order = np.random.default_rng(1).permutation(90)
    shuffled = solve(StiffGrid, StiffGrid(), options(), TIMES, starts(90), k[order])
    assert all(same(together[i], shuffled[place]) for place, i in enumerate(order))
    few = solve(StiffGrid, StiffGrid(), options(), TIMES, starts(3), k[[5, 40, 89]])
    assert all(same(together[i], few[place]) for place, i in enumerate((5, 40, 89)))


def test_the_whole_stiff_grid_is_solved_and_agrees_with_the_closed_form_of_x1():
    k = grid()
    records = solve(StiffGrid, StiffGrid(), options(), TIMES, starts(90), k)
    assert [r.status for r in records] == [SUCCESSFUL] * 90
    names = list(StiffGrid.parameters)
    for record, row in zip(records, k, strict=True):
        x = rows_at(record, np.array(START), TIMES)[:, 1]
        # v = exp(x1) obeys a linear equation.
        decay = np.exp(-np.exp(row[names.index("k3")]) * TIMES)
        exact = P4 + np.log1p(np.expm1(START[1] - P4) * decay)
        assert np.max(np.abs(x - exact) / (1e-8 + 1e-6 * np.abs(exact))) < 100


def test_segments_bound_the_step_where_they_say():
    settings = options(segments=[{"until": 1.0, "dtmax": 0.01}, {"until": 3.0, "dtmax": None}], dtmax=0.5)
    (record,) = solve(StiffGrid, StiffGrid(), settings, [10.0], starts(1), grid()[:1])
    steps = np.diff(np.concatenate([[0.0], record.step_time]))
    begin = record.step_time - steps
    assert np.all(steps[begin < 1.0 - 1e-12] <= 0.01 + 1e-12)
    assert 0.01 < np.max(steps[(begin >= 1.0) & (begin < 3.0)]) <= 0.5 + 1e-12
    assert 1.0 in record.step_time
    assert 3.0 in record.step_time


def test_max_steps_counts_attempts():
    (record,) = solve(StiffGrid, StiffGrid(), options(max_steps=10), TIMES, starts(1), grid()[-1:])
    assert record.status == MAX_STEPS
    assert len(record.end) == 10


@pytest.mark.parametrize("solver", ["Tsit5", "Dopri8", "Bosh3", "Kvaerno3", "Kvaerno4"])
def test_other_solvers_run(solver):
    (record,) = solve(StiffGrid, StiffGrid(), options(solver=solver), [1.0], starts(1), grid()[18:19])
    assert record.status == SUCCESSFUL


def test_save_index_needs_exact_ends():
    steps = np.array([0.1, 0.5, np.nextafter(1.0, 2.0)])
    np.testing.assert_array_equal(save_index(steps, np.array([0.5, 1.0])), [-1, 0, -1])
