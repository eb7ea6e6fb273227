"""Steps that keep a derivative of the states within the tolerances: where the states alone say nothing of it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from problems import gradient_problem, options, scenarios, solve

from retrograd.api import Model
from retrograd.certificates import gradient_table
from retrograd.schema import VERDICTS

TIMES = [0.5, 10.0]
# b / a = 2, which is where the state begins: nothing moves, and every step has an error of 0.
K = np.array([[1.0, 2.0], [30.0, 60.0]])
START = np.full((2, 1), 2.0)


class Resting(Model):
    """x' = b - a x."""

    states = {"x": "1"}
    parameters = {"a": "s-1", "b": "s-1"}

    def vector_field(self, t, x, k):
        return jnp.stack([k["b"] - k["a"] * x[0]])

    def initial_state(self, k):
        return jnp.stack([2.0 + 0 * k["a"]])


class Dosed(Resting):
    """The same with a jump of which every step after it is at rest again."""

    jump_times = (1.0,)

    def jump(self, t, x, k):
        return 2 * x - 2.0


def exact(k: np.ndarray, jumps: bool) -> np.ndarray:
    """Returns d loss / d (a, b), loss the sum of squares of x at the save times, shape (2,)."""
    a = k[0]
    to_b = lambda t: (1 - np.exp(-a * t)) / a
    early, late = to_b(TIMES[0]), to_b(TIMES[1])
    if jumps:
        # The jump doubles what the derivative is.
        late = 2 * to_b(1.0) * np.exp(-a * 9) + to_b(9.0)
    return 4 * (early + late) * np.array([-2.0, 1.0])


def gradients(cls: type[Model], rtol: float, sensitivities: bool, **changes):
    settings = options(rtol=rtol, atol=rtol / 100, **changes)
    settings["controller"]["sensitivities"] = sensitivities
    records = solve(cls, cls(), settings, TIMES, START, K)
    problem = gradient_problem(cls, cls(), settings, TIMES)
    return gradient_table(problem, scenarios(records, START, K)), records


SOLVERS = [
    pytest.param({}, id="Kvaerno5"),
    pytest.param({"method": "chord"}, id="chord", marks=pytest.mark.slow),
    pytest.param({"solver": "Rodas5P"}, id="Rodas5P", marks=pytest.mark.slow),
    pytest.param({"solver": "Tsit5"}, id="Tsit5", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("changes", SOLVERS)
@pytest.mark.parametrize("cls", [Resting, Dosed])
def test_a_start_at_rest_has_right_derivatives(cls, changes):
    table, _ = gradients(cls, 1e-8, True, **changes)
    assert {VERDICTS[v] for v in np.ravel(table["verdict"])} == {"verified"}
    for i in range(2):
        right = exact(K[i], cls is Dosed)
        np.testing.assert_allclose(table["ad"][i, 0], right, rtol=1e-6)
        assert np.all(np.abs(table["ad"][i, 0] - right) <= table["ode_error"][i] + table["ad_error"][i, 0])


def test_without_them_they_are_off_and_the_error_bar_says_so():
    table, records = gradients(Resting, 1e-8, False)
    for i in range(2):
        off = np.abs(table["ad"][i, 0] - exact(K[i], False))
        assert np.max(off / np.abs(exact(K[i], False))) > 1e-5
        assert np.all(off <= table["ode_error"][i] + table["ad_error"][i, 0])
    assert max(r.num_accepted for r in records) < 10


def test_steps_of_a_scenario_have_the_same_bits_whatever_stands_beside_it():
    settings = options()
    settings["controller"]["sensitivities"] = True
    k = np.random.default_rng(0).uniform(0.5, 20, (40, 2))
    start = np.full((40, 1), 1.5)
    together = solve(Resting, Resting(), settings, TIMES, start, k)
    for i in (0, 17, 39):
        (alone,) = solve(Resting, Resting(), settings, TIMES, start[i : i + 1], k[i : i + 1])
        assert np.array_equal(alone.end, together[i].end) and np.array_equal(alone.step_x, together[i].step_x)
