"""States that jump at given times: records, replays and every derivative against the closed form, at 50 digits."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from problems import gradient_problem, options, scenarios, solve

from retrograd import ensemble
from retrograd.api import Model
from retrograd.causes import of_dynamics
from retrograd.certificates import gradient_table
from retrograd.context import Chunk
from retrograd.dynamics import NONFINITE, SUCCESSFUL, rows_at
from retrograd.errors import RetrogradError
from retrograd.jump_replay import ReplayerWithJumps
from retrograd.jumps import row_times
from retrograd.plugins import _check_declarations, vector_field
from retrograd.schema import VERDICTS
from retrograd.trace import SingleSteps
from retrograd.trace_text import trace

# The second one and the last are jumps, of which 1.0 is not saved.
TIMES = [0.0, 0.5, 0.8, 2.0]
WEIGHT, BIAS = 0.7, -0.2
METHODS = ["replay", "forward", "checkpoint", "backsolve"]
K = np.array([[3.0, 0.5, 1.0, 2.0, 0.4], [1e4, 2e3, 30.0, 1.0, 0.3], [0.2, 0.1, 5.0, 4.0, -1.5]])


class Dosed(Model):
    """a <=> b: a is set anew at 0.5, from a dose, a network and b; another rate holds from 1 on; b jumps at the end."""

    states = {"a": "mol", "b": "mol"}
    parameters = {"forth": "s-1", "back": "s-1", "later": "s-1", "total": "mol", "dose": "mol-1"}
    jump_times = (0.5, 1.0, 2.0)
    network: eqx.nn.Linear

    @classmethod
    def build(cls, key):
        return cls(network=eqx.nn.Linear(1, 1, key=key))

    def vector_field(self, t, x, k):
        flux = jnp.where(t > 1.0, k["later"], k["forth"]) * x[0] - k["back"] * x[1]
        return jnp.stack([-flux, flux])

    def initial_state(self, k):
        return jnp.stack([k["total"], jnp.zeros_like(k["total"])])

    def jump(self, t, x, k):
        a = jnp.where(t == 0.5, k["dose"] * x[1] ** 2 + self.network(x[1:])[0], x[0])
        return jnp.stack([a, jnp.where(t == 2.0, k["dose"] * x[1] + x[0], x[1])])


def dosed(cls: type[Model] = Dosed) -> Any:
    model: Any = cls.build(jax.random.PRNGKey(0))
    where = lambda m: (m.network.weight, m.network.bias)
    return eqx.tree_at(where, model, (jnp.full((1, 1), WEIGHT), jnp.full(1, BIAS)))


def path(values: list[Any]) -> list[Any]:
    """Returns a and b at the save times, one after the other; values: of the parameters, weight and bias."""
    forth, back, later, total, dose, weight, bias = map(mp.mpf, values)

    def onward(a, b, rate, time):
        level = (a + b) * rate / (rate + back)
        new = level + (b - level) * mp.exp(-(rate + back) * mp.mpf(time))
        return a + b - new, new

    a, b = onward(total, 0, forth, 0.5)
    dosed = dose * b**2 + weight * b + bias, b
    saved = onward(*dosed, forth, mp.mpf(0.8) - mp.mpf(0.5))
    a, b = onward(*onward(*dosed, forth, 0.5), later, 1)
    return [total, mp.mpf(0), *dosed, *saved, a, dose * b + a]


def exact(i: int) -> tuple[float, np.ndarray]:
    """Returns the loss and its derivatives by the parameters, weight and bias."""
    with mp.workdps(50):
        values = [*map(float, K[i]), WEIGHT, BIAS]
        loss = lambda *v: mp.fsum(x**2 for x in path(list(v)))
        slopes = [mp.diff(loss, values, tuple(int(i == j) for i in range(7)), h=mp.mpf(10) ** -15) for j in range(7)]
        return float(loss(*values)), np.array(slopes, float)


def prepared(cls: type[Model] = Dosed, rtol: float = 1e-9, **changes: Any):
    """Returns the problem and its recorded scenarios."""
    model, settings = dosed(cls), options(rtol=rtol, atol=rtol / 100, **changes)
    start = np.stack([K[:, 3], np.zeros(3)], axis=1)
    records = solve(cls, model, settings, TIMES, start, K)
    assert [r.status for r in records] == [SUCCESSFUL] * 3
    return gradient_problem(cls, model, settings, TIMES), scenarios(records, start, K), records


def wanted(directions: np.ndarray) -> np.ndarray:
    """Returns the derivatives in the order of the labels, (scenario, wrt)."""
    slopes = [exact(i)[1] for i in range(3)]
    return np.array([[*s[:5], *(directions @ s[5:])] for s in slopes])


@pytest.fixture(scope="module")
def rough():
    """Problem, scenarios and records at an ordinary tolerance: compiled once."""
    return prepared(rtol=1e-6, methods=["replay", "forward"])


def test_a_jump_is_a_step_to_the_next_number_and_its_row_is_what_follows(rough):
    _, recorded, records = rough
    saved = row_times(Dosed.jump_times, TIMES, np.dtype(float))
    np.testing.assert_array_equal(saved, [0, np.nextafter(0.5, 1), 0.8, np.nextafter(2, 3)])
    for i, record in enumerate(records):
        for t in Dosed.jump_times:
            at = np.flatnonzero(record.step_time == t)
            assert len(at) == 1 and record.step_time[at[0] + 1] == np.nextafter(t, 9)
        rows = rows_at(record, recorded.x_start[i], saved)
        right = np.array(path([*map(float, K[i]), WEIGHT, BIAS]), float).reshape(4, 2)
        np.testing.assert_allclose(rows, right, rtol=1e-4, atol=1e-6)
        # What the jump makes of the state before it, to the bit.
        before = record.step_x[np.flatnonzero(record.step_time == 2.0)[0]]
        assert rows[-1, 1] == pytest.approx(K[i, 4] * before[1] + before[0], rel=1e-14)


@pytest.mark.slow
def test_every_method_gives_the_derivatives_of_the_closed_form():
    problem, recorded, _ = prepared(methods=METHODS, free_differences=2, reference=2)
    # Without the stiff one: backwards it explodes, and it takes minutes to find out.
    kept = np.array([0, 2])
    table = gradient_table(problem, recorded.take(kept))
    assert problem.labels == [*(f"{name}@dynamic" for name in Dosed.parameters), "network[0]", "network[1]"]
    right, size = wanted(problem.directions)[kept], table["scale"]
    most = np.max(np.abs(right) * size, axis=1, keepdims=True)
    for m, method in enumerate(METHODS[:3]):
        assert {VERDICTS[v] for v in np.ravel(table["verdict"][:, m])} == {"verified"}, method
        error = np.abs(table["ad"][:, m] - right)
        assert np.all(error * size < 1e-6 * most), method
        assert np.all(error <= table["ode_error"] + table["ad_error"][:, m]), method
    assert np.all(np.abs(table["ad"][:, 3] - right) * size < 1e-4 * most)
    for name, within in (("fd", 1e-6), ("fd_free", 1e-4), ("reference", 1e-6)):
        off = np.abs(table[name] - right)
        # The bound of free differences is an estimate of what the choice of steps adds, and missed some by a factor.
        assert name == "fd_free" or np.all(off <= table[f"{name}_error"] + table["ode_error"]), name
        assert np.all(off * size < within * most), name
    assert np.all(table["reference_verdict"] == 0)
    np.testing.assert_allclose(table["loss"], [exact(i)[0] for i in kept], rtol=1e-7)
    for row, i in enumerate(kept):
        np.testing.assert_allclose(table["gradient_network"][row, 0], exact(i)[1][5:], rtol=1e-6)


def test_replay_and_tangent_are_verified_and_near_the_closed_form(rough):
    problem, recorded, _ = rough
    table = gradient_table(problem, recorded)
    assert {VERDICTS[v] for v in np.ravel(table["verdict"])} == {"verified"}
    assert np.max(table["replay_deviation"]) < 1e-6
    right, size = wanted(problem.directions), table["scale"]
    for m in range(2):
        off = np.abs(table["ad"][:, m] - right)
        assert np.all(off * size < 1e-3 * np.max(np.abs(right) * size, axis=1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["Tsit5", "Rodas5P", "chord"])
def test_other_solvers(solver):
    named = {"method": "chord"} if solver == "chord" else {"solver": solver}
    problem, recorded, _ = prepared(rtol=1e-7, methods=["replay", "forward"], max_steps=100_000, **named)
    keep = recorded.take(np.array([0, 2]))
    table = gradient_table(problem, keep)
    assert {VERDICTS[v] for v in np.ravel(table["verdict"])} == {"verified"}
    right = wanted(problem.directions)[[0, 2]]
    most = np.max(np.abs(right * table["scale"]), axis=1, keepdims=True)
    assert np.all(np.abs(table["ad"][:, 0] - right) * table["scale"] < 1e-4 * most)


# Scales of what a jump passes on to the state before it, the parameters and the weights.
@pytest.mark.parametrize("scale", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1.001, 1, 1), (1, -1, 1)])
def test_a_mistake_in_the_adjoint_of_a_jump_is_refuted(scale, rough, monkeypatch):
    problem, recorded, _ = rough
    right = problem.replayer._vjp
    wrong = lambda *given: tuple(s * v for s, v in zip(scale, right(*given), strict=True))
    monkeypatch.setattr(problem.replayer, "_vjp", wrong)
    replay = gradient_table(problem, recorded)["verdict"][:, 0]
    assert VERDICTS.index("refuted") in replay


def test_a_scenario_has_the_same_bits_whatever_stands_beside_it(rough):
    problem, recorded, _ = rough
    together, _ = problem.replay(recorded)
    for i in range(3):
        alone, _ = problem.replay(recorded.take(np.array([i])))
        assert all(np.array_equal(alone[name], together[name][i : i + 1]) for name in ("rows", "dynamic", "network"))


def test_replays_with_rounding_stay_within_their_limits(rough):
    problem, recorded, _ = rough
    found = ensemble.replay(problem, recorded, refined=False)
    assert np.all(np.isfinite(found.rounding["x"])) and 0 < np.max(found.rounding["x"]) < 1e-9
    assert np.all(np.isfinite(found.rounding["ad"]))


def test_steps_cut_short_end_where_they_end(rough):
    problem, recorded, records = rough
    assert isinstance(problem.replayer, ReplayerWithJumps)
    for most in (0, 1, int(np.flatnonzero(records[0].step_time == 0.5)[0]) + 1, 20):
        steps = [s[:most] for s in recorded.steps]
        ends, _ = problem.replayer.forward(problem.model, recorded.x_start, K, steps)
        for end, record in zip(ends, records, strict=True):
            np.testing.assert_allclose(end, record.step_x[:most], rtol=1e-12, atol=1e-14)


def test_attempts_one_by_one_are_those_of_the_batch(rough):
    problem, recorded, records = rough
    steps = SingleSteps(problem.field, problem.model, {**problem.options, "save_times": TIMES}, 2)
    run = steps.solve(recorded.x_start[0], K[0])
    # Last digits differ, and through the error estimate the steps by more.
    np.testing.assert_allclose(run.steps, records[0].step_time, rtol=1e-6)


@pytest.mark.slow
def test_in_single_precision():
    jax.config.update("jax_enable_x64", False)
    try:
        problem, recorded, records = prepared(rtol=1e-4, methods=["replay", "forward"])
        saved = row_times(Dosed.jump_times, TIMES, np.dtype(np.float32))
        rows = rows_at(records[0], recorded.x_start[0], saved)
        right = np.array(path([*map(float, K[0]), WEIGHT, BIAS]), float).reshape(4, 2)
        np.testing.assert_allclose(rows, right, rtol=1e-3)
        found = problem.columns_of(problem.replay(recorded)[0])[0]
        np.testing.assert_allclose(found, wanted(problem.directions)[0], rtol=2e-2, atol=2e-2)
    finally:
        jax.config.update("jax_enable_x64", True)


class Lost(Dosed):
    def jump(self, t, x, k):
        return jnp.where(t == 0.5, jnp.log(-x), x)


def test_a_jump_that_is_not_finite_is_told_as_the_cause():
    settings = options() | {"save_times": TIMES}
    start = np.array([[1.0, 0.0]])
    (record,) = solve(Lost, dosed(Lost), settings, TIMES, start, K[:1])
    assert record.status == NONFINITE and record.step_time[-1] == 0.5 and not record.accepted[-1]
    (cause,) = of_dynamics(Lost, dosed(Lost), settings, [record], start, K[:1])
    assert cause.name == "state_overflow" and cause.time == 0.5
    assert cause.text.startswith("At t = 0.5, x = [") and cause.text.endswith("the model's jump gives no finite state")


@pytest.mark.slow
def test_the_trace_goes_through_jumps():
    chunk = Chunk(["one"], K[:1], K[:1], np.full((1, 2), np.nan))
    settings = options() | {"start": "initial_state", "save_times": TIMES, "find": None}
    found = trace(Dosed, dosed(), chunk, settings, study="s", variant="v", plugin="p.py", model_file="m.nc")
    assert "Gradient by replay: finite." in found.short
    slopes = exact(0)[1]
    for j, name in enumerate(f"{name}@dynamic" for name in Dosed.parameters):
        told = next(line for line in found.text.splitlines() if line.split()[:1] == [name])
        assert float(told.split()[1]) == pytest.approx(slopes[j], rel=1e-3, abs=1e-6)
    assert "diffrax's own loop" not in found.text


class Plain(Dosed):
    jump_times = ()


def test_without_jumps_nothing_is_another(rough):
    field = vector_field(Plain, "stable", None)
    assert type(field).__name__ == "function"
    assert not isinstance(gradient_problem(Plain, dosed(Plain), options(), TIMES).replayer, ReplayerWithJumps)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([1.0], "jump_times is [1.0], wanted a tuple of times such as (5.0, 10.0)"),
        (("1",), "jump_times is ('1',), wanted a tuple of times"),
        ((0.0, 1.0), "jump_times is (0.0, 1.0), wanted finite times above 0, increasing"),
        ((2.0, 1.0), "wanted finite times above 0, increasing"),
        ((1.0, 1.0), "wanted finite times above 0, increasing"),
        ((float("nan"),), "wanted finite times above 0, increasing"),
        ((float("inf"),), "wanted finite times above 0, increasing"),
    ],
)
def test_jump_times_that_are_none_are_refused(times, found):
    cls = type("Wrong", (Dosed,), {"jump_times": times})
    with pytest.raises(RetrogradError) as error:
        _check_declarations(cls, "p.py, class Wrong")
    assert found in str(error.value)
