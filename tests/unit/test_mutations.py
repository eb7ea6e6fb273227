"""Planted bugs are caught, and what is right is not called wrong.

Each mutation changes the library's own code, or what passes between its parts, while the whole table of gradients is
formed. The check must stay as it was, to the bit, and refute every derivative that the mutation moves further than the
bounds.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import MethodType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import textbook
from problems import START, Networked, StiffGrid, gradient_problem, grid, options, scenarios, solve

from retrograd import certificates, replay, steady
from retrograd.api import Model
from retrograd.certificates import gradient_table
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.plugins import vector_field
from retrograd.replay import Replayer
from retrograd.schema import REASONS, VERDICTS
from retrograd.steady import SteadyProblem

pytestmark = pytest.mark.slow

METHODS = ("replay", "forward")
FIND = {"method": "root", "rtol": 1e-10, "atol": 1e-10, "max_steps": 256}


class Tracking(Networked):
    """Its loss uses the parameters and the network too, so that every path of the gradient is taken."""

    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(x[:, 0] ** 2 * jnp.exp(-times)) + k["level"] * jnp.sum(self.network(x[-1]))


@dataclass
class Ground:
    """Scenarios on which mutations are tried, with the table that the library makes of them unmutated."""

    problem: GradientProblem
    recorded: Scenarios
    right: dict[str, np.ndarray]


def steady_scenarios(model: Model, settings: dict[str, Any], times: list[float], k: np.ndarray, k_steady: np.ndarray):
    """Returns the problem and the recorded scenarios that start at a steady state."""
    cls = type(model)
    start = SteadyProblem(cls, vector_field(cls, "stable", None), FIND)
    found = start.find(model, k_steady, np.full((len(k), len(cls.states)), np.nan))
    records = solve(cls, model, settings, times, found.x, k)
    recorded = scenarios(records, found.x, k, k_steady, found.conserved_basis)
    recorded.ok &= found.status == 0
    return gradient_problem(cls, model, settings, times, start), recorded


@cache
def ground(name: str) -> Ground:
    if name == "grid":
        k, times = grid()[::7], np.linspace(0, 10, 5)
        settings, x = options(methods=list(METHODS), wrt=["dynamic"]), np.tile(START, (len(k), 1))
        recorded = scenarios(solve(StiffGrid, StiffGrid(), settings, times, x, k), x, k)
        problem = gradient_problem(StiffGrid, StiffGrid(), settings, times)
    elif name == "steady":
        k = np.array([[50.0, 0.7], [5.0, -0.4], [1e4, 0.3]])
        k_steady = np.array([[20.0, -0.5], [8.0, 1.1], [1e4, -0.8]])
        model = Tracking.build(jax.random.PRNGKey(3))
        problem, recorded = steady_scenarios(model, options(methods=list(METHODS)), [0.0, 0.3, 1.0, 2.0], k, k_steady)
    else:
        # An explicit solver, and a start that depends on a parameter.
        k, times = np.array([[3.0, 0.7], [6.0, -0.3], [1.0, 1.2]]), [0.0, 0.5, 1.0]
        model, x = Tracking.build(jax.random.PRNGKey(4)), np.stack([[level, 0.0] for level in k[:, 1]])
        settings = options(methods=list(METHODS), wrt=["dynamic", "network"], solver="Tsit5")
        recorded = scenarios(solve(Tracking, model, settings, times, x, k), x, k)
        problem = gradient_problem(Tracking, model, settings, times)
    assert np.all(recorded.ok)
    return Ground(problem, recorded, gradient_table(problem, recorded))


GROUNDS = ("grid", "steady", "start")


# -- mutations -----------------------------------------------------------------------------------------
# Each takes pytest's monkeypatch and a problem, and changes the problem's parts.

Mutation = Callable[[pytest.MonkeyPatch, GradientProblem], None]


def _called(part: Callable[[GradientProblem], Any], name: str, change: Callable[..., Any]) -> Mutation:
    """Returns the mutation that replaces a method by `change(original, *arguments)`."""

    def mutate(patch: pytest.MonkeyPatch, problem: GradientProblem) -> None:
        owner = part(problem)
        if owner is not None:
            original = getattr(owner, name)
            patch.setattr(owner, name, lambda *args: change(original, *args))

    return mutate


def _rewritten(name: str, old: str, new: str) -> Mutation:
    """Returns the mutation that replaces a piece of the source of a compiled block of the replay."""

    def mutate(patch: pytest.MonkeyPatch, problem: GradientProblem) -> None:
        source = textwrap.dedent(inspect.getsource(getattr(Replayer, name)))
        assert source.count(old) == 1, f"{name} has changed: the mutation of {old!r} does not fit it any more"
        space: dict[str, Any] = {}
        exec(source.replace(old, new), dict(vars(replay)), space)
        compiled = {"_backward_block": "_backward", "_tangent_block": "_tangent"}[name]
        block = MethodType(space[name], problem.replayer)
        patch.setattr(problem.replayer, compiled, eqx.filter_jit(block))

    return mutate


def _steady_transposed(patch: pytest.MonkeyPatch, problem: GradientProblem) -> None:
    if problem.steady is not None:
        source = textwrap.dedent(inspect.getsource(SteadyProblem._adjoint_one))
        assert source.count("solve(jac.T, lam)") == 1
        space: dict[str, Any] = {}
        exec(source.replace("solve(jac.T, lam)", "solve(jac, lam)"), dict(vars(steady)), space)
        one = MethodType(space["_adjoint_one"], problem.steady)
        patch.setattr(problem.steady, "_adjoint", eqx.filter_jit(jax.vmap(one, in_axes=(None, 0, 0, 0, 0, 0, None))))


_replayer = lambda problem: problem.replayer
_steady = lambda problem: problem.steady
_initial = lambda problem: None if problem.steady is not None else problem.initial
_itself = lambda problem: problem


def _stale(model: Model) -> Model:
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(jax.tree_util.tree_map(lambda w: w * 1.001, weights), static)


def _neighbours(steps: list[np.ndarray]) -> list[np.ndarray]:
    # Each step as long as the one before it.
    return [np.cumsum(np.roll(np.diff(np.concatenate([[0.0], s])), 1)) for s in steps]


def _without(injected: list[np.ndarray], which: int) -> list[np.ndarray]:
    out = [rows.copy() for rows in injected]
    for rows in out:
        rows[np.flatnonzero(np.any(rows != 0, axis=1))[which]] = 0
    return out


def _scaled(*factors: float) -> Callable[..., Any]:
    """Returns the change that multiplies each of a method's results."""
    return lambda f, *args: tuple(v * c for v, c in zip(f(*args), factors, strict=True))


def _reordered(f: Callable[..., Any], *args: Any) -> Any:
    x, k, weights = f(*args)
    return x, np.roll(k, 1, axis=1), weights


def _direct(position: int) -> Mutation:
    """Returns the mutation that forgets one of the loss's own derivatives."""

    def change(f: Callable[..., Any], *args: Any) -> Any:
        out = list(f(*args))
        out[position] = jnp.zeros_like(out[position])
        return tuple(out)

    return _called(_itself, "_loss", change)


BACKWARD: dict[str, Mutation] = {
    "sign": _called(_replayer, "backward", _scaled(-1, -1, -1)),
    "factor": _called(_replayer, "backward", _scaled(1 + 1e-5, 1 + 1e-5, 1 + 1e-5)),
    "factor_of_parameters": _called(_replayer, "backward", _scaled(1, 1 + 1e-5, 1)),
    "stop_gradient_on_start": _called(_replayer, "backward", _scaled(0, 1, 1)),
    "stop_gradient_on_parameters": _called(_replayer, "backward", _scaled(1, 0, 1)),
    "stop_gradient_on_weights": _called(_replayer, "backward", _scaled(1, 1, 0)),
    "parameters_swapped": _called(_replayer, "backward", _reordered),
    "stale_weights": _called(_replayer, "backward", lambda f, model, *rest: f(_stale(model), *rest)),
    "stale_parameters": _called(_replayer, "backward", lambda f, model, k, *rest: f(model, k * 1.0001, *rest)),
    "steps_of_the_neighbours": _called(
        _replayer, "backward", lambda f, m, k, steps, *rest: f(m, k, _neighbours(steps), *rest)
    ),
    "stages_of_the_neighbours": _called(
        _replayer,
        "backward",
        lambda f, m, k, steps, stages, *rest: f(m, k, steps, [np.roll(s, 1, axis=0) for s in stages], *rest),
    ),
    "first_save_time_dropped": _called(
        _replayer, "backward", lambda f, *args: f(*args[:4], _without(args[4], 0), *args[5:])
    ),
    "last_save_time_dropped": _called(
        _replayer, "backward", lambda f, *args: f(*args[:4], _without(args[4], -1), *args[5:])
    ),
    "save_times_one_step_late": _called(
        _replayer, "backward", lambda f, *args: f(*args[:4], [np.roll(r, 1, axis=0) for r in args[4]], *args[5:])
    ),
    "transposed_jacobian_forgotten": _rewritten("_backward_block", "jnp.swapaxes(jac[:, i], -1, -2)", "jac[:, i]"),
    "transposed_tableau_forgotten": _rewritten("_backward_block", "a[:, i], eta", "a[i], eta"),
    "first_stage_dropped": _rewritten("_backward_block", "jnp.sum(eta, axis=0)", "jnp.sum(eta[1:], axis=0)"),
    "last_stage_dropped": _rewritten("_backward_block", "jnp.sum(eta, axis=0)", "jnp.sum(eta[:-1], axis=0)"),
    "cotangent_of_a_step_dropped": _rewritten(
        "_backward_block", "return lam + jnp.sum(eta, axis=0)", "return jnp.sum(eta, axis=0)"
    ),
    "implicit_part_dropped": _rewritten(
        "_backward_block", "solve(eye - ha[..., None] * jac_t, phi)", "solve(eye + 0 * jac_t, phi)"
    ),
    "implicit_part_of_half_a_step": _rewritten(
        "_backward_block", "eye - ha[..., None] * jac_t", "eye - 0.5 * ha[..., None] * jac_t"
    ),
    "weights_of_the_solution_for_those_of_a_stage": _rewritten("_backward_block", "(b[i] * lam", "(a[-2, i] * lam"),
    "start_row_of_the_loss_dropped": _called(_itself, "from_start", lambda f, d, gx, *rest: f(d, 0 * gx, *rest)),
    "direct_dependence_on_parameters_dropped": _direct(2),
    "direct_dependence_on_weights_dropped": _direct(3),
    "steady_term_dropped": _called(_steady, "adjoint", _scaled(0, 0)),
    "steady_term_of_weights_dropped": _called(_steady, "adjoint", _scaled(1, 0)),
    "steady_term_with_its_sign_wrong": _called(_steady, "adjoint", _scaled(-1, -1)),
    "steady_term_at_another_state": _called(_steady, "adjoint", lambda f, model, x, *rest: f(model, x + 1e-3, *rest)),
    "steady_jacobian_not_transposed": _steady_transposed,
    "initial_state_dropped": _called(_initial, "adjoint", _scaled(0, 0)),
    "initial_state_with_its_sign_wrong": _called(_initial, "adjoint", _scaled(-1, -1)),
}

FORWARD: dict[str, Mutation] = {
    "sign": _called(_itself, "tangents", lambda f, *args: -f(*args)),
    "factor": _called(_itself, "tangents", lambda f, *args: f(*args) * (1 + 1e-5)),
    "start_not_moved": _called(
        _replayer, "tangent", lambda f, m, k, steps, stages, dx, *rest: f(m, k, steps, stages, 0 * dx, *rest)
    ),
    "parameters_not_moved": _called(_replayer, "tangent", lambda f, *args: f(*args[:5], 0 * args[5], *args[6:])),
    "weights_not_moved": _called(_replayer, "tangent", lambda f, *args: f(*args[:6], 0 * args[6])),
    "parameters_swapped": _called(
        _replayer, "tangent", lambda f, *args: f(*args[:5], np.roll(args[5], 1, axis=1), *args[6:])
    ),
    "stale_weights": _called(_replayer, "tangent", lambda f, model, *rest: f(_stale(model), *rest)),
    "steps_of_the_neighbours": _called(
        _replayer, "tangent", lambda f, m, k, steps, *rest: f(m, k, _neighbours(steps), *rest)
    ),
    "stages_of_the_neighbours": _called(
        _replayer,
        "tangent",
        lambda f, m, k, steps, stages, *rest: f(m, k, steps, [np.roll(s, 1, axis=0) for s in stages], *rest),
    ),
    "jacobian_transposed": _rewritten(
        "_tangent_block", "j, gi = jac[:, i], g", "j, gi = jnp.swapaxes(jac[:, i], -1, -2), g"
    ),
    "source_of_the_implicit_part_dropped": _rewritten("_tangent_block", "base + ha * gi)", "base)"),
    "implicit_part_of_half_a_step": _rewritten("_tangent_block", "eye - ha * j", "eye - 0.5 * ha * j"),
    "first_stage_not_moved": _rewritten("_tangent_block", '"j,jldn->ldn", b, rates', '"j,jldn->ldn", b[1:], rates[1:]'),
    "steady_state_not_moved": _called(_steady, "tangent", lambda f, *args: 0 * f(*args)),
    "initial_state_not_moved": _called(_initial, "tangent", lambda f, *args: 0 * f(*args)),
}


def _value(change: Callable[[np.ndarray], np.ndarray]) -> Mutation:
    """Returns the mutation of the derivatives that any method has formed."""

    original = certificates.derive

    def altered(*args: Any) -> Any:
        return {name: (change(ad), *others) for name, (ad, *others) in original(*args).items()}

    return lambda patch, problem: patch.setattr(certificates, "derive", altered)


VALUES: dict[str, Mutation] = {
    "sign": _value(lambda ad: -ad),
    "factor": _value(lambda ad: ad * (1 + 1e-5)),
    "zero": _value(lambda ad: 0 * ad),
    "offset": _value(lambda ad: ad + 1e-5 * np.max(np.abs(ad), axis=1, keepdims=True)),
    "swapped": _value(lambda ad: np.roll(ad, 1, axis=1)),
    "neighbouring_scenario": _value(lambda ad: np.roll(ad, 1, axis=0)),
    "single_precision": _value(lambda ad: ad.astype(np.float32).astype(np.float64)),
    "not_a_number": _value(lambda ad: np.where(np.arange(ad.shape[1]) == 0, np.nan, ad)),
}


@pytest.mark.parametrize("name", GROUNDS)
def test_unmutated_all_is_verified(name: str):
    right = ground(name).right
    assert {VERDICTS[v] for v in right["verdict"].ravel()} == {"verified"}


def judge(mutations: dict[str, Mutation], name: str, methods: tuple[int, ...], patch: pytest.MonkeyPatch) -> int:
    """Returns how many derivatives a mutation moved beyond the bounds, over all grounds; asserts that each is refuted.

    - `methods`: positions of the methods that it changes; the others must stay.
    """
    moved = beyond = 0
    for place in GROUNDS:
        g = ground(place)
        with patch.context() as only:
            mutations[name](only, g.problem)
            found = gradient_table(g.problem, g.recorded)
        # Nothing that is mutated takes part in the check.
        for key in ("loss", "fd", "fd_error", "scale"):
            np.testing.assert_array_equal(found[key], g.right[key], err_msg=key)
        for m in range(len(METHODS)):
            wrong, right = found["ad"][:, m], g.right["ad"][:, m]
            if m not in methods:
                np.testing.assert_array_equal(wrong, right, err_msg=METHODS[m])
                continue
            # Both within their bound of what is differentiated.
            bound = 2 * g.right["fd_error"] + g.right["ad_error"][:, m] + found["ad_error"][:, m]
            told = ~(np.abs(wrong - right) <= bound)
            verdict = found["verdict"][:, m]
            wanted = np.where(np.isfinite(wrong), VERDICTS.index("refuted"), VERDICTS.index("nonfinite"))
            missed = told & (verdict != wanted)
            where = [(place, METHODS[m], g.problem.labels[j], VERDICTS[verdict[i, j]]) for i, j in np.argwhere(missed)]
            assert not where, where
            moved += int(np.sum(~(wrong == right)))
            beyond += int(np.sum(told))
    print(f"{name}: changed {moved}, beyond the bounds {beyond}")
    return beyond


@pytest.mark.parametrize("name", BACKWARD)
def test_a_bug_in_the_adjoint_is_refuted(name: str, monkeypatch: pytest.MonkeyPatch):
    # The loss's own derivatives reach the tangent by another way.
    assert judge(BACKWARD, name, (0,), monkeypatch) > 0


@pytest.mark.parametrize("name", FORWARD)
def test_a_bug_in_the_tangent_is_refuted(name: str, monkeypatch: pytest.MonkeyPatch):
    assert judge(FORWARD, name, (1,), monkeypatch) > 0


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_refuted_whatever_method_formed_it(name: str, monkeypatch: pytest.MonkeyPatch):
    assert judge(VALUES, name, (0, 1), monkeypatch) > 0


# -- what is right -------------------------------------------------------------------------------------


class Rectified(Tracking):
    """The same with relu: a trajectory may cross its kinks."""

    @classmethod
    def build(cls, key: jax.Array) -> Rectified:
        return cls(network=eqx.nn.MLP(2, 1, 8, 1, jax.nn.relu, key=key))


@dataclass
class Batch:
    """Random scenarios that share a model and the settings."""

    name: str
    solver: str
    rtol: float
    count: int
    seed: int


# A fortieth of what was measured once: 10,000 runs take ten minutes. RETROGRAD_FUZZ=20 makes them all.
SHARE = 1 if int(os.environ.get("RETROGRAD_FUZZ", "1")) >= 20 else 40
BATCHES = [
    Batch("grid", "Kvaerno5", 1e-8, 1600, 0),
    Batch("grid", "Kvaerno5", 1e-5, 1600, 1),
    Batch("grid", "Kvaerno4", 1e-6, 1600, 2),
    Batch("grid", "Kvaerno3", 1e-4, 1600, 3),
    Batch("grid", "Tsit5", 1e-7, 2200, 4),
    Batch("tanh", "Kvaerno5", 1e-6, 600, 5),
    Batch("tanh", "Kvaerno3", 1e-4, 400, 6),
    Batch("relu", "Kvaerno4", 1e-6, 600, 7),
    Batch("relu", "Tsit5", 1e-5, 400, 8),
    Batch("grid", "Rodas5P", 1e-6, 800, 9),
    Batch("tanh", "Rodas5P", 1e-6, 300, 10),
    Batch("relu", "Rodas5P", 1e-5, 300, 11),
]


def drawn(batch: Batch) -> tuple[GradientProblem, Scenarios]:
    batch = replace(batch, count=int(batch.count / SHARE))
    rng = np.random.Generator(np.random.PCG64(batch.seed))
    settings = options(solver=batch.solver, rtol=batch.rtol, atol=batch.rtol / 100, methods=list(METHODS), directions=1)
    explicit = batch.solver == "Tsit5"
    if batch.name == "grid":
        fast = 3 if explicit else 25
        lowest, highest = [-10, -5, -2, -5, -6], [10, fast, 2, fast, 2]
        k = rng.uniform(lowest, highest, (batch.count, 5))
        x, times = np.tile(START, (batch.count, 1)), [0.5, 10.0]
        problem = gradient_problem(StiffGrid, StiffGrid(), settings, times)
        return problem, scenarios(solve(StiffGrid, StiffGrid(), settings, times, x, k), x, k)
    kind = Tracking if batch.name == "tanh" else Rectified
    model = kind.build(jax.random.PRNGKey(batch.seed))
    phase = lambda: np.stack(
        [np.exp(rng.uniform(-2, 4 if explicit else 25, batch.count)), rng.normal(0, 1, batch.count)], axis=1
    )
    return steady_scenarios(model, settings, [0.3, 2.0], phase(), phase())


def test_no_correct_gradient_is_refuted_in_thousands_of_runs(capsys: pytest.CaptureFixture[str]):
    false, solved = [], 0
    for batch in BATCHES:
        problem, recorded = drawn(batch)
        table = gradient_table(problem, recorded)
        verdict = table["verdict"][recorded.ok]
        count = Counter(VERDICTS[v] for v in verdict.ravel())
        why = Counter(REASONS[r] for r in table["reason"][recorded.ok].ravel())
        with capsys.disabled():
            print(f"\n  {batch}: {np.sum(recorded.ok)} solved, {dict(count)}, {dict(why)}", end="")
        solved += int(np.sum(recorded.ok))
        # The explicit solver runs out of steps where it is stiff.
        assert np.mean(recorded.ok) > (0.7 if batch.solver == "Tsit5" else 0.99), batch
        assert np.mean(verdict == VERDICTS.index("verified")) > 0.9, batch
        for i, m, j in np.argwhere(table["verdict"] == VERDICTS.index("refuted")):
            row = {name: table[name][i, j] for name in ("fd", "fd_error", "scale")}
            own = {name: table[name][i, m, j] for name in ("ad", "ad_error")}
            false.append((batch, int(i), METHODS[m], problem.labels[j], own | row))
    assert solved >= 10_000 / SHARE
    assert not false, f"{len(false)} false refutations, the first: {false[:5]}"


def test_no_correct_gradient_of_a_fast_exchange_is_refuted(capsys: pytest.CaptureFixture[str]):
    """Its fast direction lies across the states: rounding in the stages' matrices reaches the slow one."""
    rng = np.random.Generator(np.random.PCG64(9))
    k = np.exp(rng.uniform(np.log([1, 1, 0.1, 1e-3]), np.log([1e8, 1e8, 10, 0.1]), (200, 4)))
    model, times = textbook.Compartments(), [0.01, 1.0, 10.0]
    settings, x = options(methods=list(METHODS), wrt=["dynamic"]), np.tile([1.0, 0.5, -0.25], (200, 1))
    recorded = scenarios(solve(textbook.Compartments, model, settings, times, x, k), x, k)
    assert np.all(recorded.ok)
    table = gradient_table(gradient_problem(textbook.Compartments, model, settings, times), recorded)
    count = Counter(VERDICTS[v] for v in table["verdict"].ravel())
    with capsys.disabled():
        print(f"\n  {dict(count)}", end="")
    assert count["refuted"] == 0, dict(count)
    assert count["verified"] > 0.9 * table["verdict"].size
