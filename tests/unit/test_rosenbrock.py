"""Rodas5P: its order, its dense output, its error estimate, and its replay against JAX through the same steps."""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, StiffGrid, gradient_problem, grid, options, scenarios, solve

from retrograd import trace
from retrograd.api import Model
from retrograd.certificates import gradient_table
from retrograd.dynamics import SUCCESSFUL, Integrator, rows_at
from retrograd.plugins import vector_field
from retrograd.rosenbrock import Rodas5P, Rodas5PTableau, rodas5p, slopes
from retrograd.schema import VERDICTS
from retrograd.weights import flatten, unflatten

TIMES = np.linspace(0, 10, 21)


def logistic(t, x):
    # x0 = 1 / (1 + exp(-t^2)); x1 = sin t, a component that time itself drives.
    return jnp.stack([2 * t * x[0] * (1 - x[0]), -3.0 * (x[1] - jnp.sin(t)) * x[0] + jnp.cos(t)])


def exact(t):
    return np.stack([1 / (1 + np.exp(-(t**2))), np.sin(t)])


@jax.jit
def one_step(t0, t1, x):
    end, u, _ = rodas5p(logistic, t0, t1, x, slopes(logistic, t0, x))
    return end, u[-1]


def test_it_has_order_five_and_an_embedded_method_of_order_four():
    apart, estimated = [], []
    for h in (0.2, 0.1, 0.05):
        t0 = jnp.asarray(1.0)
        # From a state off the solution by nothing: the local error, of one order more.
        end, error = one_step(t0, t0 + h, jnp.asarray(exact(1.0)))
        apart.append(abs(float(end[0]) - exact(1.0 + h)[0]))
        estimated.append(abs(float(error[0])))
    assert np.log2(apart[0] / apart[1]) > 5.5 and np.log2(apart[1] / apart[2]) > 5.5
    assert np.log2(estimated[1] / estimated[2]) > 4.5
    # Of many steps: the global one, time's own derivative included.
    errors = []
    for count in (40, 80, 160):
        x = jnp.asarray(exact(0.0))
        for i in range(count):
            x, _ = one_step(jnp.asarray(2.0 * i / count), jnp.asarray(2.0 * (i + 1) / count), x)
        errors.append(np.max(np.abs(np.asarray(x) - exact(2.0))))
    assert np.log2(errors[0] / errors[1]) > 4.4 and np.log2(errors[1] / errors[2]) > 4.4


def test_the_coefficients_are_those_of_a_stiffly_accurate_method():
    # Hairer and Wanner 1996, section IV.7: the last stages are the embedded result and the result itself.
    tab = Rodas5PTableau
    np.testing.assert_array_equal(tab.a[7], [*tab.b[:7], 0])
    np.testing.assert_array_equal(tab.a[6], [*tab.b[:6], 0, 0])
    # In the original form Gamma = (I / gamma - C)^-1 the rows of A Gamma sum to c, those of Gamma to d.
    full = np.linalg.inv(np.eye(8) / tab.gamma - tab.coupling)
    np.testing.assert_allclose((tab.a @ full).sum(axis=1), tab.c, atol=1e-13)
    np.testing.assert_allclose(full.sum(axis=1), tab.d, atol=1e-12)
    assert (tab.b @ full).sum() == pytest.approx(1, abs=1e-13)


def test_dense_output_of_diffrax_has_order_four():
    term = diffrax.ODETerm(lambda t, x, _: logistic(t, x))
    errors = []
    for count in (20, 40, 80):
        solution = diffrax.diffeqsolve(
            term, Rodas5P(), 0.0, 2.0, 2.0 / count, jnp.asarray(exact(0.0)), saveat=diffrax.SaveAt(dense=True)
        )
        at = 1.0 + np.array([0.2, 0.5, 0.7]) * 2.0 / count
        found = np.stack([np.asarray(solution.evaluate(t)) for t in at], axis=1)
        errors.append(np.max(np.abs(found - exact(at))))
    assert np.log2(errors[0] / errors[1]) > 3.7 and np.log2(errors[1] / errors[2]) > 3.7


@pytest.fixture(scope="module")
def stiff():
    k, x = grid(), np.tile(START, (90, 1))
    return k, x, solve(StiffGrid, StiffGrid(), options(solver="Rodas5P"), TIMES, x, k)


def test_no_step_is_accepted_that_only_looks_right(stiff):
    """Where exp(22) falls to nothing within a step, the increments' own norm let x0 jump to 2e31."""
    k, x, records = stiff
    assert {r.status for r in records} == {SUCCESSFUL}
    tight = solve(StiffGrid, StiffGrid(), options(rtol=1e-11, atol=1e-12, max_steps=100_000), TIMES, x, k)
    rows, wanted = (np.stack([rows_at(r, START, TIMES) for r in found]) for found in (records, tight))
    assert np.max(np.abs(rows - wanted) / (1 + np.abs(wanted))) < 1e-5


def test_the_regulator_of_the_stiff_grid_has_its_closed_form(stiff):
    k, _, records = stiff
    times = jnp.asarray(TIMES)
    for row, record in zip(k[::9], records[::9], strict=True):
        named = dict(zip(StiffGrid.parameters, row, strict=True))
        wanted = StiffGrid().exact_regulator(times, START[1], named)
        np.testing.assert_allclose(rows_at(record, np.array(START), TIMES)[:, 1], wanted, rtol=1e-5)


@pytest.mark.slow
def test_every_gradient_of_the_stiff_grid_is_verified_by_both_ways(stiff):
    k, x, records = stiff
    settings = options(solver="Rodas5P", methods=["replay", "forward"], wrt=["dynamic"])
    problem = gradient_problem(StiffGrid, StiffGrid(), settings, TIMES)
    table = gradient_table(problem, scenarios(records, x, k))
    assert set(table["verdict"].ravel()) == {VERDICTS.index("verified")}
    assert np.max(table["replay_deviation"]) == 0
    size = np.max(np.abs(table["fd"]), axis=1)
    assert np.median(table["fd_error"] / size[:, None]) < 1e-10


class Driven(Model):
    """A network with a clock: every part of the step's derivative is there, df/dt too."""

    states = {"a": "1", "b": "1", "c": "1"}
    parameters = {"rate": "s-1", "level": "1"}
    network: eqx.nn.MLP

    def vector_field(self, t, x, k):
        push = self.network(x)[0]
        fast = k["rate"] * (push - x[0] + jnp.sin(3 * t * k["level"]))
        return jnp.stack([fast, k["level"] * x[0] * x[1] - x[1] ** 3, jnp.exp(-t) * x[0] - x[2] * x[1]])

    def initial_state(self, k):
        return jnp.stack([k["level"], 0.5 + 0 * k["level"], 0 * k["level"]])


def driven() -> Driven:
    return Driven(network=eqx.nn.MLP(3, 1, 4, 1, jnp.tanh, key=jax.random.PRNGKey(5)))


def test_adjoint_and_tangent_are_those_of_jax_through_the_same_steps():
    model, field = driven(), vector_field(Driven, "stable", None)
    k, x = np.array([[30.0, 0.7]]), np.array([[0.7, 0.5, 0.0]])
    ends = np.array([0.02, 0.1, 0.25, 0.5, 0.9])
    settings = options(solver="Rodas5P", wrt=["dynamic", "network"], directions=3, methods=["replay", "forward"])
    problem = gradient_problem(Driven, model, settings, [0.25, 0.9])
    recorded = scenarios([], x, k)
    recorded.steps, recorded.step_x, recorded.ok = [ends], [np.full((5, 3), np.nan)], np.array([True])
    replayed, stages = problem.replay(recorded)

    def loss(k, weights):
        own = unflatten(model, weights)
        named = lambda t, x: field(own, t, x, k)
        x, begin, total = jnp.stack([k[1], 0.5 + 0 * k[1], 0 * k[1]]), jnp.asarray(0.0), 0.0
        for end in jnp.asarray(ends):
            x = rodas5p(named, begin, end, x, slopes(named, begin, x))[0]
            begin = end
            total += jnp.where((end == 0.25) | (end == 0.9), jnp.sum(x**2), 0.0)
        return total

    value, (by_k, by_weights) = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(k[0]), flatten(model))
    assert replayed["loss"][0] == pytest.approx(float(value), rel=1e-13)
    np.testing.assert_allclose(replayed["dynamic"][0], by_k, rtol=1e-11)
    np.testing.assert_allclose(replayed["network"][0], by_weights, rtol=1e-9, atol=1e-12 * np.max(np.abs(by_weights)))
    along = problem.tangents(recorded, stages, replayed["rows"])
    np.testing.assert_allclose(along, problem.columns_of(replayed), rtol=1e-11)


class Cliff(Model):
    """From x = 0 its stages overshoot into exp(1000); the solution itself is tame: x = ln(1 + k t) / 40."""

    states = {"x": "1"}
    parameters = {"k": "s-1"}

    def vector_field(self, t, x, k):
        return k["k"] / 40 * jnp.exp(-40 * x)


def test_a_step_that_overflows_is_tried_again_shorter_and_told():
    settings, k = options(solver="Rodas5P", rtol=1e-8, atol=1e-10), 1e6
    field = vector_field(Cliff, "stable", None)
    (record,) = solve(Cliff, Cliff(), settings, [1.0], np.zeros((1, 1)), np.array([[k]]))
    assert record.status == SUCCESSFUL
    lost = np.flatnonzero(~np.isfinite(record.error))
    assert len(lost)
    assert record.step_x[-1, 0] == pytest.approx(np.log1p(k) / 40, rel=1e-7)
    run = trace.solve(field, Cliff(), {**settings, "save_times": [1.0]}, [0.0], [k])
    first = next(a for a in run.attempts if not a.is_finite)
    finding = trace.Diagnosis(field, Cliff(), settings, [k])(first)
    assert finding.kind in ("rates", "iterate")
    assert finding.stage is not None and finding.stage > 0


def test_a_matrix_that_is_singular_is_told():
    # With J = [[a, c], [c, a]] all entries of I - h gamma J are equal, to the last bit, for such a and c.
    share = 0.5 * Rodas5PTableau.gamma
    rates = [(a, (share * a - 1) / share) for a in np.linspace(6.0, 7.0, 101) / share]
    a, c = next((a, c) for a, c in rates if share * c == share * a - 1)

    class Growing(Model):
        states = {"x": "1", "y": "1"}
        parameters = {}

        def vector_field(self, t, x, k):
            return a * x + c * x[::-1]

    settings = options(solver="Rodas5P") | {"save_times": [0.5]}
    field = vector_field(Growing, "stable", None)
    attempt = trace.SingleSteps(field, Growing(), settings, 1).attempt(0.0, 0.5, [1.0, 0.5], np.zeros(0))
    assert not attempt.is_finite
    assert trace.Diagnosis(field, Growing(), settings, np.zeros(0))(attempt).kind == "matrix"


def test_large_systems_take_the_same_way():
    """Above six states elimination is LAPACK's; the Jacobian is then a full matrix of exchanges, which keep the sum."""
    n, rng = 9, np.random.default_rng(0)
    rates = np.exp(rng.uniform(-3, 6, (n, n)))
    rates = rates - np.diag(rates.sum(axis=0))

    class Exchange(Model):
        states = {f"x{i}": "1" for i in range(n)}
        parameters = {"k": "1"}

        def vector_field(self, t, x, k):
            return k["k"] * (jnp.asarray(rates) @ x)

        def initial_state(self, k):
            return jnp.arange(1.0, n + 1) + 0 * k["k"]

    settings = options(solver="Rodas5P", wrt=["dynamic"], methods=["replay", "forward"])
    x, k = np.arange(1.0, n + 1)[None], np.array([[1.0]])
    records = solve(Exchange, Exchange(), settings, [0.01, 0.02], x, k)
    values, vectors = np.linalg.eig(rates)
    at = (vectors @ (np.exp(0.02 * values) * np.linalg.solve(vectors, x[0]))).real
    np.testing.assert_allclose(records[0].step_x[-1], at, rtol=1e-6)
    problem = gradient_problem(Exchange, Exchange(), settings, [0.01, 0.02])
    table = gradient_table(problem, scenarios(records, x, k))
    assert set(table["verdict"].ravel()) == {VERDICTS.index("verified")}
    # d x / d k = t A x.
    rows = np.stack([(vectors @ (np.exp(t * values) * np.linalg.solve(vectors, x[0]))).real for t in (0.01, 0.02)])
    slope = sum(2 * row @ (t * rates @ row) for t, row in zip((0.01, 0.02), rows, strict=True))
    assert table["ad"][0, 0, 0] == pytest.approx(slope, rel=1e-5)


def test_an_integrator_of_many_lanes_gives_what_one_gives_alone(stiff):
    k, x, records = stiff
    again = Integrator(
        vector_field(StiffGrid, "stable", None), StiffGrid(), options(solver="Rodas5P"), TIMES.tolist(), 2
    ).run(x[[40]], k[[40]])
    np.testing.assert_array_equal(again[0].step_x, records[40].step_x)
