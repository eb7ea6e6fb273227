"""Dynamics that begin at a state set from the steady one: every derivative against the closed form, at 50 digits."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from problems import Networked, gradient_problem, networked, options, scenarios, solve

from retrograd import ensemble, speed, work_precision
from retrograd.api import Model
from retrograd.certificates import gradient_table
from retrograd.context import Chunk
from retrograd.plugins import vector_field
from retrograd.schema import VERDICTS
from retrograd.starts import StartOfDynamics
from retrograd.steady import SteadyProblem
from retrograd.trace_text import trace

TIMES = [0.0, 0.3, 2.0]
STEADY = {"method": "root", "rtol": 1e-10, "atol": 1e-10, "max_steps": 256}
WEIGHT, BIAS = 0.7, -0.2
NONE = np.full((1, 2), np.nan)
PHASES = ("dynamic", "steady")


class Dosed(Model):
    """a <=> b comes to rest, a is set anew, from a dose, a network and the b there, and the two exchange again."""

    states = {"a": "mol", "b": "mol"}
    parameters = {"forth": "s-1", "back": "s-1", "total": "mol", "dose": "mol-1"}
    network: eqx.nn.Linear

    @classmethod
    def build(cls, key):
        return cls(network=eqx.nn.Linear(1, 1, key=key))

    def vector_field(self, t, x, k):
        flux = k["forth"] * x[0] - k["back"] * x[1]
        return jnp.stack([-flux, flux])

    def initial_guess(self, k):
        return jnp.stack([k["total"], jnp.zeros_like(k["total"])])

    def start_of_dynamics(self, x, k):
        return jnp.stack([k["dose"] * x[1] ** 2 + self.network(x[1:])[0], x[1]])


def dosed(cls: type[Model] = Dosed) -> Any:
    model: Any = cls.build(jax.random.PRNGKey(0))
    where = lambda m: (m.network.weight, m.network.bias)
    return eqx.tree_at(where, model, (jnp.full((1, 1), WEIGHT), jnp.full(1, BIAS)))


K_DYNAMIC = np.array([[3.0, 0.5, 1.0, 2.0], [1e4, 2e3, 1.0, 0.3], [0.2, 0.1, 5.0, -1.5]])
K_STEADY = np.array([[1.0, 2.0, 1.5, 1.0], [4.0, 0.5, 3.0, 1.0], [1e3, 1e3, 2.5, 1.0]])


def states(values: list[Any]) -> tuple[Any, list[Any]]:
    """Returns the steady b, and a and b at the save times, in closed form.

    - `values`: parameters of the dynamic phase, those of the steady phase, weight and bias.
    """
    forth, back, _, dose, forth_steady, back_steady, total, _, weight, bias = map(mp.mpf, values)
    rest = total * forth_steady / (forth_steady + back_steady)
    start = dose * rest**2 + weight * rest + bias
    level = (start + rest) * forth / (forth + back)
    b = [level + (rest - level) * mp.exp(-(forth + back) * mp.mpf(t)) for t in TIMES]
    return rest, [v for y in b for v in (start + rest - y, y)]


def exact(i: int) -> tuple[float, np.ndarray]:
    """Returns the loss and its derivatives by the parameters of both phases, weight and bias."""
    with mp.workdps(50):
        values = [*map(float, K_DYNAMIC[i]), *map(float, K_STEADY[i]), WEIGHT, BIAS]
        loss = lambda *v: mp.fsum(x**2 for x in states(list(v))[1])
        slopes = [mp.diff(loss, values, tuple(int(i == j) for i in range(10)), h=mp.mpf(10) ** -15) for j in range(10)]
        return float(loss(*values)), np.array(slopes, float)


def prepared(cls: type[Model] = Dosed, rtol: float = 1e-9, **changes: Any):
    """Returns the problem and its recorded scenarios."""
    model, settings = dosed(cls), options(rtol=rtol, atol=rtol / 100, **changes)
    steady = SteadyProblem(cls, vector_field(cls, "stable", None), STEADY)
    found = steady.find(model, K_STEADY, np.full((3, 2), np.nan))
    assert np.all(found.status == 0)
    start = StartOfDynamics(cls).value(model, found.x, K_DYNAMIC)
    records = solve(cls, model, settings, TIMES, start, K_DYNAMIC)
    problem = gradient_problem(cls, model, settings, TIMES, steady)
    return problem, scenarios(records, start, K_DYNAMIC, K_STEADY, found.conserved_basis, found.x)


METHODS = ["replay", "forward", "checkpoint", "backsolve"]


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    problem, recorded = prepared(methods=METHODS, free_differences=3, reference=3)
    return gradient_table(problem, recorded) | {"labels": problem.labels, "directions": problem.directions}


@pytest.fixture(scope="module")
def rough():
    """Problem and scenarios at an ordinary tolerance: compiled once."""
    return prepared(rtol=1e-6)


def wanted(table: dict[str, Any]) -> np.ndarray:
    """Returns the derivatives in the order of the labels, (scenario, wrt)."""
    out = []
    for i in range(3):
        _, slopes = exact(i)
        out.append([*slopes[:8], *(table["directions"] @ slopes[8:])])
    return np.array(out)


def test_every_method_gives_the_derivatives_of_the_closed_form(table):
    names = [f"{name}@{phase}" for phase in PHASES for name in Dosed.parameters]
    assert table["labels"] == [*names, "network[0]", "network[1]"]
    right, size = wanted(table), table["scale"]
    for m, method in enumerate(METHODS[:3]):
        assert {VERDICTS[v] for v in np.ravel(table["verdict"][:, m])} == {"verified"}, method
        error = np.abs(table["ad"][:, m] - right) * size
        assert np.all(error < 1e-6 * np.max(np.abs(right) * size, axis=1, keepdims=True)), method
        assert np.all(np.abs(table["ad"][:, m] - right) <= table["ode_error"] + table["ad_error"][:, m]), method
    # Backwards the stiff one explodes; the others come back.
    for i in (0, 2):
        off = np.abs(table["ad"][i, 3] - right[i])
        assert np.all(off <= table["ad_error"][i, 3] + table["ode_error"][i])
        assert np.max(off * size[i]) < 1e-4 * np.max(np.abs(right[i]) * size[i])
    np.testing.assert_allclose(table["loss"], [exact(i)[0] for i in range(3)], rtol=1e-7)


def test_differences_and_reference_give_them_too(table):
    right, size = wanted(table), table["scale"]
    most = np.max(np.abs(right) * size, axis=1, keepdims=True)
    for name, within in (("fd", 1e-6), ("fd_free", 1e-4), ("reference", 1e-6)):
        off = np.abs(table[name] - right)
        assert np.all(off <= table[f"{name}_error"] + table["ode_error"]), name
        assert np.all(off * size < within * most), name
    assert np.all(table["reference_verdict"] == 0)


def test_the_gradient_to_the_weights_is_that_of_the_start(table):
    for i in range(3):
        _, slopes = exact(i)
        for m in (0, 2):
            np.testing.assert_allclose(table["gradient_network"][i, m], slopes[8:], rtol=1e-6)


# Scales of what is passed on to the steady state, the dynamic parameters and the weights.
@pytest.mark.parametrize("scale", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1.001, 1, 1), (1, -1, 1)])
def test_a_mistake_in_the_adjoint_is_refuted(scale, rough, monkeypatch):
    problem, recorded = rough
    right = problem.onset.adjoint
    wrong = lambda *given: tuple(s * v for s, v in zip(scale, right(*given), strict=True))
    monkeypatch.setattr(problem.onset, "adjoint", wrong)
    verdict = gradient_table(problem, recorded)["verdict"][:, 0]
    refuted = np.any(verdict == VERDICTS.index("refuted"), axis=0)
    parts = [[label.endswith(part) for label in problem.labels] for part in ("@steady", "@dynamic")]
    parts.append([label.startswith("network") for label in problem.labels])
    for s, part in zip(scale, parts, strict=True):
        assert np.any(refuted & part) == (s != 1)


def test_a_tangent_that_skips_the_start_is_refuted(monkeypatch):
    problem, recorded = prepared(rtol=1e-6, methods=["forward"])
    monkeypatch.setattr(problem.onset, "tangent", lambda model, x, k, dx, *rest: dx)
    assert VERDICTS.index("refuted") in gradient_table(problem, recorded)["verdict"]


@pytest.mark.slow
def test_an_explicit_and_a_linearly_implicit_solver():
    for solver in ("Tsit5", "Rodas5P"):
        problem, recorded = prepared(rtol=1e-7, solver=solver, methods=["replay", "forward"], max_steps=100_000)
        keep = recorded.take(np.array([0, 2]))
        table = gradient_table(problem, keep)
        assert {VERDICTS[v] for v in np.ravel(table["verdict"])} == {"verified"}, solver
        right = wanted({"directions": problem.directions})[[0, 2]]
        size = np.max(np.abs(right * table["scale"]), axis=1, keepdims=True)
        assert np.all(np.abs(table["ad"][:, 0] - right) * table["scale"] < 1e-4 * size), solver


def test_a_scenario_has_the_same_bits_whatever_stands_beside_it():
    rng = np.random.default_rng(2)
    x, k, lam = rng.uniform(0.5, 2, (70, 2)), rng.uniform(0.5, 2, (70, 4)), rng.normal(size=(70, 2))
    onset, model = StartOfDynamics(Dosed), dosed()
    dx, dk, dw = rng.normal(size=(70, 3, 2)), rng.normal(size=(3, 4)), rng.normal(size=(3, 2))
    for rows in (np.array([5]), np.arange(33, 70), rng.permutation(70)):
        assert np.array_equal(onset.value(model, x[rows], k[rows]), onset.value(model, x, k)[rows])
        found = onset.tangent(model, x[rows], k[rows], dx[rows], dk, dw)
        assert np.array_equal(found, onset.tangent(model, x, k, dx, dk, dw)[rows])
        pairs = zip(onset.adjoint(model, x[rows], k[rows], lam[rows]), onset.adjoint(model, x, k, lam), strict=True)
        assert all(np.array_equal(part, whole[rows]) for part, whole in pairs)


class Washed(Dosed):
    """Every state is set anew."""

    def start_of_dynamics(self, x, k):
        return jnp.stack([k["dose"], k["total"]])


def test_without_a_steady_state_there_is_no_start():
    x = np.array([[1.0, 2.0], [np.nan, np.nan], [1.0, np.nan]])
    found = StartOfDynamics(Washed).value(dosed(Washed), x, K_DYNAMIC)
    assert np.array_equal(found[0], [2.0, 1.0]) and np.all(np.isnan(found[1:]))


def test_a_start_that_forgets_the_steady_state_has_no_derivatives_by_it():
    problem, recorded = prepared(Washed, rtol=1e-6)
    found = gradient_table(problem, recorded)
    assert {VERDICTS[v] for v in np.ravel(found["verdict"])} == {"verified"}
    assert np.all(found["ad"][:, 0, 4:] == 0) and np.all(found["ad"][:, 0, 3] != 0)


def test_a_model_without_one_starts_at_the_very_bits_of_the_steady_state():
    x = np.array([[0.1, -0.0], [np.nan, 3.0]])
    onset = StartOfDynamics(Networked)
    assert not onset.given
    assert onset.value(networked(), x, np.ones((2, 2))) is x
    dx: Any = np.ones((2, 1, 2))
    assert onset.tangent(networked(), x, np.ones((2, 2)), dx, np.ones((1, 2)), np.ones((1, 17))) is dx


def test_replays_with_rounding_move_steady_state_and_start(rough):
    problem, recorded = rough
    found = ensemble.replay(problem, recorded, refined=False)
    assert recorded.x_rest is not None
    np.testing.assert_allclose(found.values["steady_x"], recorded.x_rest, rtol=1e-12)
    np.testing.assert_allclose(found.values["x_start"], recorded.x_start, rtol=1e-12)
    for i in range(3):
        values = [*map(float, K_DYNAMIC[i]), *map(float, K_STEADY[i]), WEIGHT, BIAS]
        rest, path = states(values)
        assert abs(found.values["steady_x"][i, 1] - float(rest)) <= found.rounding["steady_x"][i, 1] + 1e-15
        assert abs(found.values["x_start"][i, 0] - float(path[0])) <= found.rounding["x_start"][i, 0] + 1e-15
    assert np.all(found.rounding["x_start"] < 1e-13)
    # Another dose is another start, and no other steady state.
    more = K_DYNAMIC * np.array([1, 1, 1, 1 + 1e-9])
    moved = ensemble.starts(problem, problem.model, dataclasses.replace(recorded, k_dynamic=more))
    assert np.array_equal(moved["steady_x"], found.values["steady_x"])
    assert np.all(np.abs(moved["x_start"] - found.values["x_start"])[:, 0] > found.rounding["x_start"][:, 0])


CHUNK = Chunk(["one"], K_DYNAMIC[:1], K_STEADY[:1], NONE)


def settings(**changes: Any) -> dict[str, Any]:
    find = {"precision": "float64", "formulation": "stable", "guard": None, "steady_state": STEADY | {"starts": 0}}
    here = options(**changes) | {"start": "steady_state", "save_times": TIMES, "find": find | {"rescue": []}}
    return here | {"steady_state": find["steady_state"]}


def test_the_trace_tells_where_the_dynamics_begin():
    found = trace(Dosed, dosed(), CHUNK, settings(), study="s", variant="v", plugin="p.py", model_file="m.nc")
    section = found.text.split("\nStart: start_of_dynamics\n")[1].split("\nAttempts\n")[0]
    # b at rest is 1.5 / 3.
    assert "a = 0.65, b = 0.5" in section
    start = re.search(r"^x_start = np.array\(\[(.*), (.*)\]\)", found.text, re.MULTILINE)
    assert start is not None and [float(v) for v in start.groups()] == pytest.approx([0.65, 0.5], rel=1e-12)
    assert "Gradient by replay: finite." in found.short
    slopes = exact(0)[1]
    for j, name in enumerate(f"{name}@{phase}" for phase in PHASES for name in Dosed.parameters):
        told = next(line for line in found.text.splitlines() if line.split()[:1] == [name])
        assert float(told.split()[1]) == pytest.approx(slopes[j], rel=1e-3, abs=1e-6)


class Broken(Dosed):
    def start_of_dynamics(self, x, k):
        return jnp.stack([jnp.log(-x[1]), x[1]])


def test_a_start_that_is_not_finite_is_traced_to_its_expression():
    found = trace(Broken, dosed(Broken), CHUNK, settings(), study="s", variant="v", plugin="p", model_file="m")
    assert found.short == ["start_of_dynamics is not finite, and the simulation is skipped."]
    assert "log of -0.5 gave nan" in found.text and "jnp.log(-x[1])" in found.text
    assert "Attempts" not in found.text


@pytest.mark.slow
@pytest.mark.exhaustive
def test_benchmarks_begin_there_too():
    chunk = Chunk(["a", "b"], K_DYNAMIC[:2], K_STEADY[:2], np.full((2, 2), np.nan))
    asked = settings() | {"benchmark": {"methods": ["replay", "checkpoint"], "tolerances": [1e-4, 1e-7]}}
    table = work_precision.measure(Dosed, dosed(), asked, chunk, lambda told: None)
    assert np.all(table["reference_error"] < 1e-7)
    assert np.all(table["error"][:, 1] < 1e-4) and np.all(table["error"][:, 1] < table["error"][:, 0])
    _, x, rest, _ = work_precision.starts(Dosed, dosed(), asked, chunk)
    assert rest is not None and np.array_equal(x[:, 1], rest[:, 1]) and np.all(x[:, 0] != rest[:, 0])
    # The speed of others is that of the dynamics from there.
    found = speed.references(Dosed, dosed(), asked, x, chunk.k_dynamic)
    for i in range(2):
        values = [*map(float, K_DYNAMIC[i]), *map(float, K_STEADY[i]), WEIGHT, BIAS]
        np.testing.assert_allclose(found.rows[i].ravel(), np.array(states(values)[1], float), rtol=1e-7)


# -- estimated ----------------------------------------------------------------------------------------


class Some(Dosed):
    estimated = ("dose", "back")


class Nothing(Dosed):
    estimated = ()


@pytest.mark.slow
def test_derivatives_are_taken_by_the_estimated_parameters_only(rough):
    problem, recorded = prepared(Some, rtol=1e-6, methods=["replay", "forward", "checkpoint"], reference=1)
    labels = ["back@dynamic", "dose@dynamic", "back@steady", "dose@steady", "network[0]", "network[1]"]
    assert problem.labels == labels
    whole, same = rough
    at = [whole.labels.index(label) for label in labels]
    found, full = gradient_table(problem, recorded), gradient_table(whole, same)
    assert found["ad"].shape == (3, 3, 6) and found["reference"].shape == (3, 6)
    assert np.array_equal(found["ad"][:, 0], full["ad"][:, 0][:, at])
    np.testing.assert_allclose(found["fd"], full["fd"][:, at], rtol=1e-6, atol=1e-9)
    assert {VERDICTS[v] for v in np.ravel(found["verdict"])} == {"verified"}
    asked = settings() | {"find": None}
    by = speed.references(Some, dosed(Some), asked, recorded.x_start[:1], K_DYNAMIC[:1])
    assert by.slopes.shape == (1, 4)
    assert by.of_gradient(np.zeros((1, 4)), np.zeros((1, 2))).shape == (1,)


@pytest.mark.slow
def test_weights_alone():
    problem, recorded = prepared(Nothing, rtol=1e-6)
    assert problem.labels == ["network[0]", "network[1]"]
    assert {VERDICTS[v] for v in np.ravel(gradient_table(problem, recorded)["verdict"])} == {"verified"}
