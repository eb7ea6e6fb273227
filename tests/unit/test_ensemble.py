"""What rounding can do to a replay: its limits against the error that rounding really makes, in 50 digits."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from problems import START, StiffGrid, gradient_problem, grid, options, scenarios, solve

from retrograd import ensemble
from retrograd.api import Model
from retrograd.runge_kutta import Tableau

TIMES = np.linspace(0, 10, 21)
EPS = np.finfo(np.float64).eps


class Decay(Model):
    states = {"a": "1", "b": "1"}
    parameters = {"fast": "1", "slow": "1"}

    def initial_state(self, k):
        return jnp.array([1.0, 0.25])

    def vector_field(self, t, x, k):
        return jnp.stack([-k["fast"] * x[0], k["slow"] * (x[0] - x[1])])


RATES = np.array([[0.3, 0.7], [40.0, 1.3], [1e5, 0.2]])


@pytest.fixture(scope="module")
def replayed():
    settings = options(methods=["replay"], wrt=["dynamic"])
    start = np.tile([1.0, 0.25], (len(RATES), 1))
    records = solve(Decay, Decay(), settings, TIMES, start, RATES)
    problem = gradient_problem(Decay, Decay(), settings, TIMES)
    data = scenarios(records, start, RATES)
    return data, ensemble.replay(problem, data)


def in_fifty_digits(rates: np.ndarray, start: np.ndarray, steps: np.ndarray) -> list[list[mpmath.mpf]]:
    """Returns the states at the steps' ends of the Runge-Kutta method itself: it is linear, so its stages are."""
    tab = Tableau("Kvaerno5")
    s = tab.stages
    with mpmath.workdps(50):
        fast, slow = (mpmath.mpf(float(r)) for r in rates)
        jac = mpmath.matrix([[-fast, 0], [slow, -slow]])
        x, t, out = mpmath.matrix([mpmath.mpf(float(v)) for v in start]), mpmath.mpf(0), []
        for end in map(float, steps):
            h = mpmath.mpf(end) - t
            rate = [jac * x]
            for i in range(1, s):
                base = x + h * sum((mpmath.mpf(float(tab.a[i, j])) * rate[j] for j in range(i)), mpmath.matrix(2, 1))
                y = mpmath.lu_solve(mpmath.eye(2) - h * mpmath.mpf(float(tab.a[i, i])) * jac, base)
                rate.append(jac * y)
            x, t = y, mpmath.mpf(end)
            out.append([x[0], x[1]])
    return out


def test_the_limit_holds_and_is_no_more_than_it_must_be(replayed):
    data, found = replayed
    for i in range(len(RATES)):
        exact = in_fifty_digits(RATES[i], data.x_start[i], data.steps[i])
        error = np.array(
            [
                [abs(float(mpmath.mpf(float(v)) - e)) for v, e in zip(*pair, strict=True)]
                for pair in zip(found.ends[i], exact, strict=True)
            ]
        )
        size = np.max(np.abs(found.ends[i]), axis=0)
        limit = found.ends_rounding[i] + 4 * EPS * size
        assert np.all(error <= limit)
        # Within a thousand units in the last place after all these steps, not anything.
        assert np.max(found.ends_rounding[i] / size) < 1e3 * EPS


def test_the_limit_does_not_depend_on_the_neighbours(replayed):
    data, found = replayed
    problem = gradient_problem(Decay, Decay(), options(methods=["replay"], wrt=["dynamic"]), TIMES)
    alone = ensemble.replay(problem, data.take(np.array([1])), refined=False)
    for name, value in alone.rounding.items():
        assert np.array_equal(value[0], found.rounding[name][1]), name
    assert np.array_equal(alone.ends_rounding[0], found.ends_rounding[1])
    assert alone.solver == {}


def test_a_limit_never_falls_on_the_way(replayed):
    _, found = replayed
    assert np.all(np.diff(found.rounding["x"], axis=1) >= 0)
    for rounding in found.ends_rounding:
        assert np.all(np.diff(rounding, axis=0) >= 0)


def test_what_is_replayed_is_what_was_recorded():
    settings = options(methods=["replay"], wrt=["dynamic"])
    k, x = grid()[::9], np.tile(START, (10, 1))
    records = solve(StiffGrid, StiffGrid(), settings, TIMES, x, k)
    data = scenarios(records, x, k)
    found = ensemble.replay(gradient_problem(StiffGrid, StiffGrid(), settings, TIMES), data, refined=False)
    for end, recorded in zip(found.ends, data.step_x, strict=True):
        assert np.array_equal(end, recorded)
    # A rate changed by 1e-9 is seen in every scenario: in one of them, or another, of its values.
    moved = ensemble.replay(
        gradient_problem(StiffGrid, StiffGrid(), settings, TIMES),
        dataclasses.replace(data, k_dynamic=k * (1 + 1e-9)),
        refined=False,
    )
    for i in range(10):
        apart = [np.abs(moved.values[n][i] - found.values[n][i]) / (found.rounding[n][i] + 1e-300) for n in ("x", "ad")]
        assert max(np.nanmax(a) for a in apart) > 10
