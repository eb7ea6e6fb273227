"""Replay, its adjoint and the check: against closed forms, other integrators and planted mistakes."""

from __future__ import annotations

import warnings

import closed_form
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from problems import (
    START,
    Networked,
    StiffGrid,
    gradient_problem,
    grid,
    networked,
    options,
    scenarios,
    solve,
)
from textbook import Robertson

from retrograd.api import Model
from retrograd.certificates import gradient_table, verdicts
from retrograd.dynamics import rows_at
from retrograd.gradients import largest
from retrograd.plugins import vector_field
from retrograd.replay import Replayer
from retrograd.schema import REASONS, VERDICTS
from retrograd.steady import SteadyProblem

TIMES = np.linspace(0, 10, 21)


def words(codes) -> list[str]:
    return [VERDICTS[c] for c in np.ravel(codes)]


@pytest.fixture(scope="module")
def stiff():
    """The stiff grid under `recommended`: problem, recorded scenarios, table of gradients by both methods."""
    settings = options(methods=["replay", "checkpoint"], wrt=["dynamic"])
    k, x = grid(), np.tile(START, (90, 1))
    records = solve(StiffGrid, StiffGrid(), settings, TIMES, x, k)
    problem = gradient_problem(StiffGrid, StiffGrid(), settings, TIMES)
    recorded = scenarios(records, x, k)
    return problem, recorded, gradient_table(problem, recorded)


@pytest.mark.exhaustive
def test_every_replay_gradient_of_the_stiff_grid_is_verified(stiff):
    _, _, table = stiff
    assert set(words(table["verdict"][:, 0])) == {"verified"}
    # The check is a check: its bound is far below the derivatives that it judges.
    size = np.max(np.abs(table["fd"]), axis=1)
    assert np.median(table["fd_error"] / size[:, None]) < 1e-10
    # The replay is the same step as the solve's: to the bit.
    assert np.max(table["replay_deviation"]) == 0


def test_the_default_adjoint_loses_most_of_the_stiff_grid(stiff):
    # DESIGN: 16 of 90 with a finite gradient, through rejected steps whose stages overflowed.
    _, _, table = stiff
    status = words(table["status"][:, 1])
    assert status.count("nonfinite") == 74
    assert status.count("refuted") == 0
    assert np.isnan(table["ad"][np.array(status) == "nonfinite", 1]).any()


CASES = [
    {"p2": 0.0, "k1": -5.0, "k2": 0.0, "k3": -5.0, "k4": -3.2617188},
    {"p2": 0.0, "k1": 0.0, "k2": 0.0, "k3": 0.0, "k4": -3.2617188},
    {"p2": 10.0, "k1": 5.0, "k2": 0.0, "k3": 5.0, "k4": -3.2617188},
]


@pytest.mark.slow
def test_states_and_gradients_against_the_closed_form_at_50_digits():
    times = [0.5, 10.0]
    k = np.array([[case[name] for name in StiffGrid.parameters] for case in CASES])
    x = np.tile(START, (len(CASES), 1))
    exact_x = [np.array([[float(v) for v in closed_form.solution(t, START, c)] for t in times]) for c in CASES]
    exact_g = []
    for case in CASES:
        g = closed_form.gradient(times, START, case)
        exact_g.append([float(g[name]) for name in StiffGrid.parameters])
    errors = []
    for rtol in (1e-6, 1e-8):
        settings = options(rtol=rtol, atol=rtol / 100)
        records = solve(StiffGrid, StiffGrid(), settings, times, x, k)
        problem = gradient_problem(StiffGrid, StiffGrid(), settings, times)
        replayed, _ = problem.replay(scenarios(records, x, k))
        for i, record in enumerate(records):
            found = rows_at(record, x[i], np.array(times))
            assert np.max(np.abs(found - exact_x[i]) / (rtol / 100 + rtol * np.abs(exact_x[i]))) < 100
        errors.append(
            [
                np.max(np.abs(replayed["dynamic"][i] - exact_g[i])) / np.max(np.abs(exact_g[i]))
                for i in range(len(CASES))
            ]
        )
    assert np.max(errors[0]) < 1e-4
    assert np.max(errors[1]) < 1e-6
    assert np.all(np.array(errors[1]) < 0.5 * np.array(errors[0]))


class Tracking(Networked):
    """Its loss uses the network and the parameters too, so that every path of the gradient is taken."""

    def loss(self, times, x, k):
        return jnp.sum(x[:, 0] ** 2 * jnp.exp(-times)) + k["level"] * jnp.sum(self.network(x[-1]))


def reference_loss(model, times, k_dynamic, k_steady):
    """The loss by SciPy's Radau at tight tolerance, from the steady state by SciPy's root finder."""
    names = list(model.parameters)
    as_dict = lambda k: {n: jnp.asarray(v) for n, v in zip(names, k, strict=True)}
    rate = jax.jit(lambda x, k: model.vector_field(0.0, x, dict(zip(names, k, strict=True))))
    root = scipy.optimize.root(lambda x: np.asarray(rate(x, k_steady)), np.zeros(2), tol=1e-14)
    assert np.max(np.abs(root.fun)) < 1e-12
    solution = scipy.integrate.solve_ivp(
        lambda t, x: np.asarray(rate(x, k_dynamic)),
        (0, times[-1]),
        root.x,
        method="Radau",
        rtol=1e-12,
        atol=1e-13,
        t_eval=times,
    )
    return float(model.loss(jnp.asarray(times), jnp.asarray(solution.y.T), as_dict(k_dynamic)))


def steady_scenarios(model, settings, times, k_dynamic, k_steady):
    cls = type(model)
    field = vector_field(cls, "stable", None)
    steady = SteadyProblem(cls, field, {"method": "root", "rtol": 1e-10, "atol": 1e-10, "max_steps": 256})
    found = steady.find(model, k_steady, np.full((len(k_steady), 2), np.nan))
    assert np.all(found.status == 0)
    records = solve(cls, model, settings, times, found.x, k_dynamic)
    problem = gradient_problem(cls, model, settings, times, steady)
    return problem, scenarios(records, found.x, k_dynamic, k_steady, found.conserved_basis)


@pytest.mark.slow
def test_the_whole_chain_with_steady_state_and_network_against_scipy():
    model = Tracking.build(jax.random.PRNGKey(3))
    times = [0.0, 0.3, 1.0, 2.0]
    k_dynamic, k_steady = np.array([[50.0, 0.7], [5.0, -0.4]]), np.array([[20.0, -0.5], [8.0, 1.1]])
    settings = options(rtol=1e-9, atol=1e-11, methods=["replay", "checkpoint"])
    problem, recorded = steady_scenarios(model, settings, times, k_dynamic, k_steady)
    table = gradient_table(problem, recorded)
    assert problem.labels == [
        "rate@dynamic",
        "level@dynamic",
        "rate@steady",
        "level@steady",
        "network[0]",
        "network[1]",
    ]
    assert set(words(table["verdict"])) == {"verified"}
    for i in range(2):
        h = 1e-4
        for j in range(2):
            step = h * np.eye(2)[j]
            by_dynamic = [reference_loss(model, times, k_dynamic[i] + s * step, k_steady[i]) for s in (1, -1)]
            by_steady = [reference_loss(model, times, k_dynamic[i], k_steady[i] + s * step) for s in (1, -1)]
            size = np.max(np.abs(table["ad"][i]))
            assert table["ad"][i, 0, j] == pytest.approx(np.diff(by_dynamic)[0] / (-2 * h), abs=1e-6 * size)
            assert table["ad"][i, 0, 2 + j] == pytest.approx(np.diff(by_steady)[0] / (-2 * h), abs=1e-6 * size)
        # The full gradient to the weights and its random directions are one thing.
        np.testing.assert_allclose(
            problem.directions @ table["gradient_network"][i, 0], table["ad"][i, 0, 4:], rtol=1e-12
        )


def test_start_at_an_initial_state_that_depends_on_parameters():
    model, times = networked(), [0.5, 1.0]
    k = np.array([[3.0, 0.7]])
    x = np.array([[0.7, 0.0]])
    settings = options(rtol=1e-9, atol=1e-11, wrt=["dynamic", "network"])
    records = solve(Networked, model, settings, times, x, k)
    problem = gradient_problem(Networked, model, settings, times)
    table = gradient_table(problem, scenarios(records, x, k))
    assert set(words(table["verdict"])) == {"verified"}
    # A start that the table gives does not depend on `level`.
    fixed = scenarios(records, x, k)
    fixed.x0 = x.copy()
    other = gradient_table(problem, fixed)
    assert set(words(other["verdict"])) == {"verified"}
    assert abs(other["ad"][0, 0, 1] - table["ad"][0, 0, 1]) > 1e-2


@pytest.mark.parametrize("solver", ["Tsit5", "Dopri8", "Bosh3", "Heun", "Kvaerno3", "Kvaerno4", "Kvaerno5", "Rodas5P"])
def test_each_solver_has_its_adjoint(solver):
    model, times = networked(), [0.5, 1.0]
    k, x = np.array([[3.0, 0.7]]), np.array([[0.7, 0.0]])
    settings = options(solver=solver, rtol=1e-5, wrt=["dynamic", "network"])
    records = solve(Networked, model, settings, times, x, k)
    problem = gradient_problem(Networked, model, settings, times)
    table = gradient_table(problem, scenarios(records, x, k))
    assert set(words(table["verdict"])) == {"verified"}
    assert table["replay_deviation"][0] < 1


def test_the_replay_gradient_is_the_one_of_jax_through_the_same_steps():
    # Kvaerno3 on three given steps, written out once more and differentiated by JAX: no adjoint of ours in it.
    import diffrax
    import optimistix as optx

    model = networked()
    field = vector_field(Networked, "stable", None)
    k, x = np.array([[3.0, 0.7]]), np.array([[0.7, 0.1]])
    ends = np.array([0.1, 0.25, 0.5])
    problem = gradient_problem(Networked, model, options(solver="Kvaerno3", wrt=["dynamic"]), [0.5])
    recorded = scenarios([], x, k)
    recorded.steps, recorded.step_x, recorded.ok = [ends], [np.full((3, 2), np.nan)], np.array([True])
    replayed, _ = problem.replay(recorded)

    solver = diffrax.Kvaerno3(root_finder=optx.Newton(rtol=1e-13, atol=1e-13))
    term = diffrax.ODETerm(lambda t, x, k: field(model, jnp.asarray(t), x, k))

    def loss(k):
        y, begin = jnp.stack([k[1], jnp.asarray(0.0)]), jnp.asarray(0.0)
        state, start = solver.init(term, begin, jnp.asarray(ends[0]), y, k), begin
        for end in jnp.asarray(ends):
            y, _, _, state, _ = solver.step(term, start, end, y, k, state, False)
            start = end
        return jnp.sum(y**2)

    recorded.x_start = np.array([[0.7, 0.0]])
    replayed, _ = problem.replay(recorded)
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(k[0]))
    assert replayed["loss"][0] == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(replayed["dynamic"][0], gradient, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_default_adjoint_of_a_guarded_chord_is_never_refuted():
    # Its own stages are solved to a tolerance, its own steps may be others: both belong to its error bar.
    guard = {"x_max": 100.0, "dx_fill": 1e30}
    settings = options(methods=["checkpoint"], wrt=["dynamic"], method="chord", guard=guard, max_steps=4096)
    k, x = grid(), np.tile(START, (90, 1))
    records = solve(StiffGrid, StiffGrid(), settings, TIMES, x, k)
    problem = gradient_problem(StiffGrid, StiffGrid(), settings, TIMES)
    table = gradient_table(problem, scenarios(records, x, k))
    assert set(words(table["verdict"])) == {"verified"}
    # And the bar stays narrow: a hundredth of the tolerance, as a rule.
    size = largest(table["fd"], table["scale"]) / table["scale"]
    assert np.median(table["ad_error"][:, 0] / size) < 2e-8


def test_planted_mistakes_are_refuted(stiff):
    problem, recorded, table = stiff
    fd, fd_error, smooth = table["fd"], table["fd_error"], np.zeros(table["fd"].shape, bool)
    scale = problem.scales(recorded)
    right = table["ad"][:, 0]
    error = table["ad_error"][:, 0]
    mistakes = {
        "sign": -right,
        "factor": right * (1 + 1e-5),
        "swapped": right[:, [1, 0, 2, 3, 4]],
        "dropped": np.where(np.arange(5) == 2, 0.0, right),
    }
    for name, wrong in mistakes.items():
        found = verdicts(wrong, error, fd, fd_error, smooth, scale, problem.dtype)[0]
        told = np.abs(wrong - right) > 3 * (fd_error + error)
        assert told.sum() >= 90, name
        assert set(words(found[told])) <= {"refuted"}, name
    assert set(words(verdicts(right, error, fd, fd_error, smooth, scale, problem.dtype)[0])) == {"verified"}


def test_verdicts_by_hand():
    scale = np.ones((1, 1))

    def judge(ad: float, fd: float, fd_error: float, kink: bool = False) -> tuple[str, str]:
        cell = lambda value: np.array([[value]])
        at = cell(ad), cell(0.0), cell(fd), cell(fd_error), cell(kink)
        verdict, reason = verdicts(*at, scale, np.dtype(float))
        return VERDICTS[verdict[0, 0]], REASONS[reason[0, 0]]

    assert judge(1.0, 1.0, 1e-9) == ("verified", "agrees")
    assert judge(1.001, 1.0, 1e-9) == ("refuted", "differs")
    assert judge(1.0, 1.0, 0.5) == ("inconclusive", "bound_too_wide")
    assert judge(1.0, 1.0, 1e-9, True) == ("inconclusive", "kink")
    assert judge(1.001, 1.0, 1e-9, True) == ("inconclusive", "kink")
    assert judge(np.nan, 1.0, 1e-9) == ("nonfinite", "derivative_nonfinite")
    assert judge(np.inf, 1.0, 1e-9) == ("nonfinite", "derivative_nonfinite")
    assert judge(1.0, np.nan, np.nan) == ("inconclusive", "no_difference")


class Kinked(Model):
    """Its rate has a corner at x = c, on which the trajectory sits."""

    states = {"x": "1"}
    parameters = {"c": "1"}

    def vector_field(self, t, x, k):
        return -jnp.abs(x - k["c"]) - (x - k["c"])

    def initial_state(self, k):
        return jnp.array([1.0])


def test_float32_keeps_the_gradient_of_a_conserved_quantity():
    """Robertson over eight decades: a stage's matrix has eigenvalues from 1 to 1e10, more than float32 can hold."""
    steps = [np.concatenate([np.geomspace(1e-6, 1e7, 120), [4e7]])]
    k, x = np.array([[0.04, 3e7, 1e4]]), np.array([[1.0, 0.0, 0.0]])
    settings = options(rtol=1e-4, atol=1e-5)
    model, found = Robertson(), {}
    for wide in (True, False):
        with jax.enable_x64(wide):
            replayer = Replayer(vector_field(Robertson, "stable", None), settings, 3)
            _, stages = replayer.forward(model, x, k, steps)
            assert stages[0].dtype == np.float64 and replayer.dtype == (np.float64 if wide else np.float32)
            injected = np.zeros((121, 3))
            injected[-1] = [1.0, 0.0, -1.0]
            by_start, by_k, _ = replayer.backward(model, k, steps, stages, [injected], 0)
            along = np.zeros((1, 3, 3))
            (moved,) = replayer.tangent(model, k, steps, stages, along, np.eye(3), np.zeros((3, 0)))
            found[wide] = by_start[0], by_k[0], moved[-1, :, 0] - moved[-1, :, 2]
    start, by_k, tangent = found[True]
    np.testing.assert_allclose(tangent, by_k, rtol=1e-8)
    # What leaves one species enters another: moving any of them at the start moves the same total.
    np.testing.assert_allclose(start, start[0], rtol=1e-3)
    np.testing.assert_allclose(found[False][0], start, rtol=1e-3)
    # States and rates have seven digits, of which two to three are left where cotangents of two species nearly cancel.
    np.testing.assert_allclose(found[False][1], by_k, rtol=0.05)
    np.testing.assert_allclose(found[False][2], by_k, rtol=0.05)


def test_a_kink_is_not_verified():
    k, x = np.array([[1.0]]), np.array([[1.0]])
    settings = options(wrt=["dynamic"])
    records = solve(Kinked, Kinked(), settings, [1.0], x, k)
    table = gradient_table(gradient_problem(Kinked, Kinked(), settings, [1.0]), scenarios(records, x, k))
    assert words(table["verdict"]) == ["inconclusive"]
    assert REASONS[table["reason"][0, 0, 0]] == "kink"
    assert table["fd_left"][0, 0] != pytest.approx(table["fd_right"][0, 0], rel=0.1)


class Corners(Model):
    """Each of its parameters drives one state, round a corner of its own but for the last."""

    states = dict.fromkeys(("relu", "clip", "maximum", "guard", "smooth"), "1")
    parameters = dict.fromkeys(states, "1")

    def vector_field(self, t, x, k):
        aims = [
            jax.nn.relu(k["relu"]),
            jnp.clip(k["clip"], 0, 2),
            jnp.maximum(k["maximum"], 0.5 * (1 + k["maximum"] ** 2)),
            jnp.full_like(k["guard"], 3.0),
            k["smooth"],
        ]
        return 1e3 * (jnp.stack(aims) - x)

    def initial_state(self, k):
        return jnp.stack([0 * k["relu"], k["smooth"], k["smooth"], k["guard"], 0 * k["relu"]])

    def loss(self, times, x, k):
        return jnp.sum((x + 1) ** 2)


def test_each_kink_is_told_and_its_neighbours_are_verified():
    model, times = Corners(), [1e-4, 1.0]
    # On all corners, off all of them; `maximum` has its two arguments touch at 1, without a corner.
    k = np.array([[0.0, 2.0, 1.0, 3.0, 0.7], [0.3, 1.5, 0.4, 2.5, 0.7], [-0.3, 2.5, 1.7, 2.9, 0.7]])
    x = np.stack([np.zeros(3), k[:, 4], k[:, 4], k[:, 3], np.zeros(3)], axis=1)
    settings = options(wrt=["dynamic"], methods=["replay", "forward"], guard={"x_max": 3.0, "dx_fill": 1e30})
    records = solve(Corners, model, settings, times, x, k)
    problem = gradient_problem(Corners, model, settings, times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = gradient_table(problem, scenarios(records, x, k))
    for m in range(2):
        told = [REASONS[r] for r in table["reason"][0, m]]
        assert told == ["kink", "kink", "agrees", "kink", "agrees"]
        assert words(table["verdict"][0, m]) == [
            "inconclusive",
            "inconclusive",
            "verified",
            "inconclusive",
            "verified",
        ]
    assert set(words(table["verdict"][1:].ravel())) == {"verified"}


@pytest.mark.slow
def test_scenarios_that_were_not_simulated_are_skipped_and_touch_nobody():
    model, times = networked(), [0.5, 1.0]
    k = np.array([[3.0, 0.7], [2.0, 0.1], [4.0, -0.2]])
    x = np.stack([[level, 0.0] for level in k[:, 1]])
    settings = options(wrt=["dynamic", "network"], methods=["replay", "checkpoint"])
    records = solve(Networked, model, settings, times, x, k)
    problem = gradient_problem(Networked, model, settings, times)
    full = gradient_table(problem, scenarios(records, x, k))
    part = scenarios(records, x, k)
    part.ok[1] = False
    part.x_start[1] = np.nan
    other = gradient_table(problem, part)
    assert words(other["status"][1]) == ["skipped"] * 2
    assert np.isnan(other["ad"][1]).all()
    assert np.isnan(other["loss"][1])
    for name, value in full.items():
        np.testing.assert_array_equal(value[[0, 2]], other[name][[0, 2]], err_msg=name)
    nobody = scenarios(records, x, k)
    nobody.ok[:] = False
    assert set(words(gradient_table(problem, nobody)["verdict"])) == {"skipped"}
