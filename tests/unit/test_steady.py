"""Steady states: every way in which the search can go, each with its status."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from problems import StiffGrid, grid

from retrograd.api import Model
from retrograd.plugins import vector_field
from retrograd.schema import STEADY_METHOD, STEADY_STATUS
from retrograd.steady import SteadyProblem

OPTIONS = {"method": "root", "rtol": 1e-10, "atol": 1e-10, "max_steps": 256}


def find(cls, k, x0=None, **changes):
    k = np.atleast_2d(np.asarray(k, float))
    x0 = np.full((len(k), len(cls.states)), np.nan) if x0 is None else np.atleast_2d(np.asarray(x0, float))
    problem = SteadyProblem(cls, vector_field(cls, "stable", None), {**OPTIONS, **changes})
    return problem, problem.find(cls(), k, x0)


def words(found) -> list[str]:
    return [STEADY_STATUS[s] for s in found.status]


def method(found) -> list[str]:
    return [STEADY_METHOD[m] for m in found.method]


class Exchange(Model):
    """A and B turn into each other: their total is conserved and df/dx is singular."""

    states = {"a": "1", "b": "1"}
    parameters = {"forth": "1", "back": "1"}

    def vector_field(self, t, x, k):
        net = k["forth"] * x[0] - k["back"] * x[1]
        return jnp.stack([-net, net])

    def initial_guess(self, k):
        return jnp.array([1.0, 0.5])


class Declared(Exchange):
    def invariants(self, x, k):
        return jnp.sum(x)


class NoRoot(Model):
    states = {"x": "1"}
    parameters = {"k": "1"}

    def vector_field(self, t, x, k):
        return 1 + k["k"] * x**2


class Bistable(Model):
    """Stable roots at -1 and 1, an unstable one at 0."""

    states = {"x": "1"}
    parameters = {"k": "1"}

    def vector_field(self, t, x, k):
        return k["k"] * (x - x**3)

    def initial_guess(self, k):
        return jnp.array([0.1])


class Oscillator(Model):
    """Van der Pol: the only steady state is unstable."""

    states = {"x": "1", "y": "1"}
    parameters = {"mu": "1"}

    def vector_field(self, t, x, k):
        return jnp.stack([x[1], k["mu"] * (1 - x[0] ** 2) * x[1] - x[0]])

    def initial_guess(self, k):
        return jnp.array([1.0, 0.1])


class Drift(Model):
    """x does not appear in its own rate, which is not zero: df/dx is singular and nothing is conserved."""

    states = {"x": "1", "y": "1"}
    parameters = {"k": "1"}

    def vector_field(self, t, x, k):
        return jnp.stack([k["k"] + 0 * x[0], -x[1]])


class Undefined(Model):
    states = {"x": "1"}
    parameters = {"k": "1"}

    def vector_field(self, t, x, k):
        return jnp.log(-jnp.abs(x) - k["k"])


def test_the_stiff_grid_has_all_its_steady_states():
    k = grid()
    _, found = find(StiffGrid, k)
    assert words(found) == ["converged"] * 90
    names = list(StiffGrid.parameters)
    exact1 = k[:, names.index("k4")]
    exact0 = k[:, names.index("p2")] - exact1 - k[:, names.index("k2")]
    np.testing.assert_allclose(found.x, np.stack([exact0, exact1], axis=1), rtol=1e-12)
    assert np.all(found.max_real_eigenvalue < 0)
    # Integration from the guess comes to rest at the same place.
    assert np.nanmax(found.cross_check) < 1
    assert np.mean(np.isfinite(found.cross_check)) > 0.9


def test_starting_at_the_root_takes_no_iteration():
    k = grid()[:2]
    _, there = find(StiffGrid, k)
    _, again = find(StiffGrid, k, there.x)
    assert words(again) == ["converged"] * 2
    assert again.iterations.tolist() == [0, 0]


@pytest.mark.parametrize("cls", [Exchange, Declared])
@pytest.mark.parametrize("how", ["root", "integrate"])
def test_a_conserved_total_is_kept(cls, how):
    _, found = find(cls, [[1.0, 2.0], [1e6, 1e-3]], method=how)
    assert words(found) == ["converged"] * 2
    assert method(found) == [how] * 2
    forth, back = np.array([1.0, 1e6]), np.array([2.0, 1e-3])
    exact = 1.5 * np.stack([back, forth], axis=1) / (forth + back)[:, None]
    np.testing.assert_allclose(found.x, exact, rtol=1e-9)
    assert found.n_conserved.tolist() == [1, 1]
    # The eigenvalue 0 of the conserved direction says nothing about stability.
    assert np.all(found.max_real_eigenvalue < -1)


def test_the_guess_of_the_table_sets_the_total():
    _, found = find(Exchange, [[1.0, 1.0]], [[3.0, np.nan]])
    np.testing.assert_allclose(found.x, [[1.75, 1.75]])


@pytest.mark.parametrize("cls", [Exchange, Declared])
def test_the_derivative_with_a_conserved_total(cls):
    k = np.array([[1.0, 2.0]])
    problem, found = find(cls, k)
    x0 = np.full((1, 2), np.nan)
    gk, _ = problem.adjoint(cls(), found.x, k, x0, found.conserved_basis, np.array([[1.0, 0.0]]))
    # a = 1.5 back / (forth + back)
    np.testing.assert_allclose(gk, [[-1.5 * 2 / 9, 1.5 * 1 / 9]], rtol=1e-10)


def test_no_root_is_said_to_be_none():
    _, found = find(NoRoot, [[1.0]])
    assert words(found) == ["not_a_root"]
    # The point where the search ended stays, for who wants to know why.
    assert found.residual_norm[0] >= 1.0


def test_several_roots_the_stable_one_is_taken():
    _, found = find(Bistable, [[1.0], [1.0], [1.0]], [[np.nan], [-0.3], [0.0]])
    np.testing.assert_allclose(found.x[:2, 0], [1.0, -1.0])
    assert words(found)[:2] == ["converged"] * 2
    # Exactly on the unstable root nothing moves: the root is reported, as unstable.
    assert words(found)[2] == "unstable"
    assert found.max_real_eigenvalue[2] == pytest.approx(1.0)


def test_a_limit_cycle_has_an_unstable_steady_state():
    _, found = find(Oscillator, [[1.0]])
    assert words(found) == ["unstable"]
    assert found.max_real_eigenvalue[0] == pytest.approx(0.5)


def test_integration_that_never_rests_runs_out_of_steps():
    _, found = find(Oscillator, [[1.0]], method="integrate", max_steps=8)
    assert words(found) == ["max_steps_reached"]


def test_a_drift_is_no_steady_state():
    _, found = find(Drift, [[1.0]])
    assert words(found)[0] in ("not_a_root", "invalid")


def test_rates_that_are_never_finite():
    _, found = find(Undefined, [[1.0]])
    assert words(found) == ["nonfinite"]


def test_a_guess_that_is_not_finite_is_invalid_and_touches_nobody():
    _, alone = find(Bistable, [[1.0]] * 2, [[0.4], [-0.4]])
    _, mixed = find(Bistable, [[1.0]] * 3, [[0.4], [np.inf], [-0.4]])
    assert words(mixed) == ["converged", "invalid", "converged"]
    np.testing.assert_array_equal(alone.x, mixed.x[[0, 2]])


def test_the_residual_is_evaluated_at_the_returned_point():
    k = grid()[[0, 89]]
    _, found = find(StiffGrid, k)
    field = vector_field(StiffGrid, "stable", None)
    rates = [
        field(StiffGrid(), jnp.zeros(()), jnp.asarray(x), jnp.asarray(row)) for x, row in zip(found.x, k, strict=True)
    ]
    np.testing.assert_allclose(found.residual_norm, np.max(np.abs(np.stack(rates)), axis=1), atol=1e-12)


def test_integration_agrees_with_an_independent_integrator():
    _, found = find(Exchange, [[0.7, 0.2]], method="integrate")
    rhs = lambda t, x: [-(0.7 * x[0] - 0.2 * x[1]), 0.7 * x[0] - 0.2 * x[1]]
    end = scipy.integrate.solve_ivp(rhs, (0, 100), [1.0, 0.5], method="Radau", rtol=1e-12, atol=1e-14).y[:, -1]
    np.testing.assert_allclose(found.x[0], end, rtol=1e-9)
