"""One scenario alone: its attempts against the batch, its stages against their equations, its way back."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, StiffGrid, grid, networked, options, solve

from retrograd import trace
from retrograd.api import Model
from retrograd.dynamics import NONFINITE, SUCCESSFUL
from retrograd.jump_replay import make_replayer
from retrograd.plugins import vector_field
from retrograd.runge_kutta import Tableau
from retrograd.weights import n_weights

TIMES = [0.5, 2.0]
FIELD = vector_field(StiffGrid, "stable", None)


def alone(settings, k, x=START, field=FIELD, model=None):
    return trace.solve(field, model or StiffGrid(), settings | {"save_times": TIMES}, np.array(x), np.array(k))


@pytest.mark.parametrize(
    ("changes", "inner"),
    # diffrax's chord iteration ends before it has converged to rounding.
    [({}, 1e-12), ({"method": "chord"}, 1e-5), ({"solver": "Tsit5"}, 1e-12)],
)
def test_attempts_are_those_of_the_batch_and_stages_solve_their_equations(changes, inner):
    settings = options(**changes)
    k = grid()[0]
    run = alone(settings, k)
    (record,) = solve(StiffGrid, StiffGrid(), settings, TIMES, np.array([START]), k[None])
    assert run.status == record.status == SUCCESSFUL
    np.testing.assert_array_equal([a.accepted for a in run.attempts], record.accepted)
    np.testing.assert_allclose(run.steps, record.step_time, rtol=1e-6)
    np.testing.assert_allclose(run.step_x, record.step_x, rtol=1e-6)
    tableau = Tableau(settings["solver"])
    for attempt in (a for a in run.attempts if a.is_finite):
        h = attempt.t1 - attempt.t0
        rates = np.array([FIELD(StiffGrid(), jnp.array(0.0), jnp.array(y), jnp.array(k)) for y in attempt.stages])
        np.testing.assert_allclose(attempt.rates, rates, rtol=inner, atol=max(inner, 1e-8))
        np.testing.assert_allclose(attempt.stages, attempt.x + h * tableau.a @ rates, rtol=inner, atol=inner)


class Falling(Model):
    """dx/dt = exp(k) (exp(-x) - 1): a predictor far below 0 overflows."""

    states = {"x": "1"}
    parameters = {"k": "1"}

    def vector_field(self, t, x, k):
        return jnp.exp(k["k"]) * (jnp.exp(-x) - 1)


class Rooted(Model):
    """dx/dt = -k sign(x) |x|^(1/3), which Newton's method leaves at twice the distance, on the other side."""

    states = {"x": "1"}
    parameters = {"k": "1"}

    def vector_field(self, t, x, k):
        return -k["k"] * jnp.cbrt(x)


@pytest.mark.parametrize("method", ["newton", "chord"])
def test_an_overflow_in_the_inner_iteration_is_traced_to_its_expression(method):
    settings = options(method=method)
    field = vector_field(Falling, "stable", None)
    run = alone(settings, [20.0], [3.0], field, Falling())
    first = run.attempts[0]
    assert (first.t0, first.t1, first.accepted, first.is_finite) == (0.0, 0.01, False, False)
    diagnosis = trace.Diagnosis(field, Falling(), settings, [20.0])
    finding = diagnosis(first)
    # The predictor of the second stage: x + h a_22 f(x) at the least, and exp of minus that is far above exp(709).
    assert finding.stage == 1
    assert "the rates there are not finite" in finding.said
    origin = finding.origin
    assert origin is not None
    assert (origin.primitive, origin.expression, origin.file) == ("exp", "jnp.exp(-x)", __file__)
    assert float(origin.operands[0][0]) > 709
    # Without the overflow there is nothing to tell.
    assert diagnosis.rates(0.0, [3.0]) is None
    assert diagnosis.rates(0.0, [-1000.0]) is not None


def test_a_newton_iteration_that_stays_finite_is_told_as_such():
    settings = options(dt0=1.0)
    field = vector_field(Rooted, "stable", None)
    run = alone(settings, [1e6], [1.0], field, Rooted())
    first = run.attempts[0]
    assert not first.is_finite
    finding = trace.Diagnosis(field, Rooted(), settings, [1e6])(first)
    assert finding.stage == 1
    assert finding.origin is None
    assert "stay finite and do not converge in 10" in finding.said


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "the Newton iteration of its stages converges"),
        ({"method": "chord"}, "the chord iteration of its stages converges"),
        ({"solver": "Tsit5"}, "the step is finite"),
    ],
)
def test_a_step_that_succeeds_on_its_own_depends_on_rounding(changes, wanted):
    settings = options(**changes)
    k = grid()[0]
    attempt = next(a for a in alone(settings, k).attempts if a.accepted)
    assert trace.Diagnosis(FIELD, StiffGrid(), settings, k)(attempt).sentence == (
        f"when the step is repeated on its own, outside the batch, {wanted}: it depends on rounding, thus on the "
        "batch's vector width and the machine, whether this step succeeds"
    )


def test_the_chord_iteration_of_diffrax_is_told_with_its_two_corrections():
    settings = options(method="chord")
    k1, k3 = (list(StiffGrid.parameters).index(name) for name in ("k1", "k3"))
    k = next(row for row in grid() if row[k1] == 5 and row[k3] == 5)
    run = alone(settings, k)
    lost = [a for a in run.attempts if not a.is_finite and np.all(np.isfinite(a.stages))]
    assert lost
    diagnosis = trace.Diagnosis(FIELD, StiffGrid(), settings, k)
    for attempt in lost[:5]:
        finding = diagnosis(attempt)
        assert finding.stage is not None and finding.stage >= 1
        assert "has not converged after two corrections" in finding.said


def test_an_explicit_step_is_traced_too():
    settings = options(solver="Tsit5")
    field = vector_field(Falling, "stable", None)
    run = alone(settings, [20.0], [3.0], field, Falling())
    first = next(a for a in run.attempts if not a.is_finite)
    finding = trace.Diagnosis(field, Falling(), settings, [20.0])(first)
    assert finding.stage == 1
    assert finding.origin is not None and finding.origin.expression == "jnp.exp(-x)"


def test_rates_that_are_not_finite_at_the_start_make_no_attempt():
    field = vector_field(Falling, "stable", None)
    run = alone(options(), [1.0], [-1000.0], field, Falling())
    assert (run.status, run.attempts) == (NONFINITE, [])
    np.testing.assert_array_equal(run.x, [-1000.0])


@pytest.mark.parametrize("solver", ["Kvaerno5", "Rodas5P", "Tsit5"])
def test_the_way_back_is_that_of_the_replay(solver):
    model = networked()
    field = vector_field(type(model), "stable", None)
    settings = options(solver=solver)
    k = np.array([20.0, 0.7])
    run = alone(settings, k, [0.3, -0.2], field, model)
    replayer = make_replayer(field, settings, 2)
    _, stages = replayer.forward(model, run.x_start[None], k[None], [run.steps])
    rng = np.random.default_rng(0)
    injected = np.where(rng.random((len(run.steps), 1)) < 0.3, rng.standard_normal((len(run.steps), 2)), 0.0)
    injected[-1] = [1.0, -2.0]
    visits, failed = trace.walk_back(field, model, settings, k, run.steps, stages[0], injected)
    assert failed is None
    assert [v.step for v in visits] == list(reversed(range(len(run.steps))))
    assert visits[0].t1 == TIMES[-1] and visits[-1].t0 == 0.0
    assert all(a.t0 == b.t1 for a, b in pairwise(visits))
    by_start, _, _ = replayer.backward(model, k[None], [run.steps], stages, [injected], n_weights(model))
    np.testing.assert_allclose(visits[-1].at_start, by_start[0], rtol=1e-10)
    np.testing.assert_array_equal(visits[0].at_end, injected[-1])


def test_a_cotangent_that_is_lost_on_the_way_back_is_told_with_its_expression():
    class Kinked(Model):
        states = {"x": "1"}
        parameters = {"k": "1"}

        def vector_field(self, t, x, k):
            return -k["k"] * jnp.sqrt(jnp.abs(x - 1.0)) - x

    field = vector_field(Kinked, "stable", None)
    steps = np.array([0.1, 0.2, 0.3])
    # The second step has its stages where the root has no derivative.
    stages = np.full((3, 7, 1), 0.5)
    stages[1] = 1.0
    visits, failed = trace.walk_back(
        field, Kinked(), options(), np.array([1.0]), steps, stages, np.array([[0.0], [0.0], [1.0]])
    )
    assert [bool(np.all(np.isfinite(v.at_start))) for v in visits] == [True, False, False]
    assert failed is not None and failed.stage == 6
    assert "Jacobian" in failed.said
    assert failed.origin is not None and "jnp.sqrt" in failed.origin.text


def test_float32_is_traced_in_float32():
    """In a process of its own width: here the start alone is narrowed, and comes back so."""
    with jax.enable_x64(False):
        run = alone(options(rtol=1e-4, atol=1e-5), grid()[0])
        assert run.x_start.dtype == np.float32 and run.attempts[0].stages.dtype == np.float32
        assert run.status == SUCCESSFUL
