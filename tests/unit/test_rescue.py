"""The rescue ladder: what each rung changes, lane by lane, and what is no rescue."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, StiffGrid, grid, options

from retrograd import study
from retrograd.api import Model
from retrograd.dynamics import Integrator
from retrograd.find_stage import find_steady_states
from retrograd.plugins import vector_field
from retrograd.rescue import RUNGS, ladder, rung_names, rungs
from retrograd.schema import DYNAMICS_STATUS, STEADY_STATUS
from retrograd.settings import Variant
from retrograd.solve_stage import simulate

TIMES = [1.0, 10.0]


def staged(variant: dict[str, Any], stage: str, times: list[float] = TIMES) -> dict[str, Any]:
    """Returns a stage's settings of a variant, with its ladder, as the study makes them."""
    own = Variant.model_validate(variant)
    keys = study._STEADY_KEYS if stage == "find" else study._DYNAMICS_KEYS
    settings = own.model_dump(mode="json")
    rescue = study._rescue(settings, own.rungs(times[-1]), keys)
    return {**study._of_stage(settings, keys), "rescue": rescue, "save_times": times}


def run(cls, model, variant, start, k, times=TIMES):
    told: list[tuple[str, int, int]] = []
    records, rung = simulate(cls, model, staged(variant, "solve", times), start, k, lambda *a: told.append(a))
    return records, rung, told


def test_the_built_in_rungs_change_what_their_names_say():
    base = Variant.model_validate({"rescue": list(RUNGS)}).model_dump(mode="json")
    found = {name: {k: v for k, v in s.items() if v != base[k]} for name, s in ladder(base, 100.0)}
    for settings in found.values():
        settings.pop("rescue", None)
    controller, steady = base["controller"], base["steady_state"]
    assert found["full_newton"] == {}
    assert found["more_steps"] == {"max_steps": 16 * 16384, "steady_state": {**steady, "max_steps": 4096}}
    assert found["small_first_step"] == {"controller": {**controller, "dt0": 1e-10}}
    assert found["other_solver"] == {"solver": "Kvaerno3"}
    stages = found["short_steps"]["segments"]
    assert stages[0] == {"until": pytest.approx(1e-4), "dtmax": pytest.approx(5e-6)}
    assert (len(stages), stages[-1]) == (7, {"until": 100.0, "dtmax": 5.0})
    assert found["bounded_state"] == {"guard": {"x_max": 500.0, "dx_fill": 1e30}}
    assert found["other_start"] == {"steady_state": {**steady, "starts": 16}}
    near = lambda part, **changes: pytest.approx({**part, **changes}, rel=1e-12)
    off = {key: value for key, value in controller.items() if value is not None}
    tolerances = lambda name: {k: v for k, v in found[name]["controller"].items() if v is not None}
    assert tolerances("tighter_tolerances") == near(off, rtol=1e-8, atol=1e-10)
    assert tolerances("looser_tolerances") == near(off, rtol=1e-4, atol=1e-6)
    assert {**found["looser_tolerances"]["steady_state"], "method": 0} == near(steady, rtol=1e-8, atol=1e-8, method=0)


def test_only_rungs_that_change_a_stage_are_tried_there():
    variant = {"rescue": ["other_start", "more_steps", {"name": "own", "solver": "Kvaerno4"}]}
    solve = staged(variant, "solve")
    assert [number for number, _ in rungs(solve)] == [2, 3]
    assert rung_names(solve) == ["none", "other_start", "more_steps", "own"]
    assert next(s for n, s in rungs(solve) if n == 3)["solver"] == "Kvaerno4"


@pytest.mark.slow
def test_who_fails_is_rescued_and_nobody_else_changes():
    k = grid()[::10]
    start = np.tile(START, (len(k), 1))
    own = {"max_steps": 90, "rescue": [{"name": "fewer", "max_steps": 80}, "more_steps"]}
    records, rung, told = run(StiffGrid, StiffGrid(), own, start, k)
    plain, none, _ = run(StiffGrid, StiffGrid(), {"max_steps": 90}, start, k)
    failed = np.array([r.status != 0 for r in plain])
    assert 0 < failed.sum() < len(k) and not none.any()
    np.testing.assert_array_equal(rung, np.where(failed, 2, 0))
    assert told == [("fewer", failed.sum(), 0), ("more_steps", failed.sum(), failed.sum())]
    settings = options(max_steps=16 * 90)
    alone = Integrator(vector_field(StiffGrid, "stable", None), StiffGrid(), settings, TIMES, 2).run(start, k)
    for i, record in enumerate(records):
        wanted = alone[i] if failed[i] else plain[i]
        assert record.status == 0
        assert record.step_time.tobytes() == wanted.step_time.tobytes()
        assert record.step_x.tobytes() == wanted.step_x.tobytes()


class BlowsUp(Model):
    """x' = a x^2 is infinite at t = 1 / (a x0)."""

    states = {"x": "1"}
    parameters = {"a": "s-1"}

    def vector_field(self, t, x, k):
        return k["a"] * x**2


@pytest.mark.slow
def test_what_no_rung_rescues_keeps_its_first_failure():
    k, start = np.array([[1.0], [-1.0]]), np.array([[0.5], [0.5]])
    every = {"rescue": list(RUNGS)}
    records, rung, told = run(BlowsUp, BlowsUp(), every, start, k)
    plain, _, _ = run(BlowsUp, BlowsUp(), {}, start, k)
    assert [DYNAMICS_STATUS[r.status] for r in plain][1] == "successful"
    assert plain[0].status != 0
    assert rung.tolist() == [0, 0]
    assert {name for name, _, _ in told} == set(RUNGS) - {"full_newton", "other_start"}
    for a, b in zip(records, plain, strict=True):
        assert a.status == b.status
        for name in ("step_time", "step_x", "start", "end", "accepted"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


class Overflows(Model):
    """Its rate overflows a little off the solution, where the first attempt at a long step looks."""

    states = {"x": "1"}
    parameters = {"a": "s-1"}

    def vector_field(self, t, x, k):
        return -k["a"] * x * jnp.exp(jnp.exp(x * x))


def test_a_bound_that_acts_on_the_solution_is_no_rescue():
    # Below the bound nothing is changed: the same solution. Above it, it is another model.
    start, k = np.array([[1.0], [3.0]]), np.array([[1e-2], [1e-2]])
    own = {"guard": "none", "rescue": [{"name": "bound", "guard": {"x_max": 2.0, "dx_fill": 0.0}}]}
    records, rung, told = run(Overflows, Overflows(), own, start, k)
    assert records[0].status == 0 and rung[0] == 0
    # exp(exp(9)) is infinite: no solution without the bound, and none that counts with it.
    assert DYNAMICS_STATUS[records[1].status] == "nonfinite" and rung[1] == 0
    assert told == [("bound", 1, 0)]


class TwoRoots(Model):
    """x' = a - x^2: sqrt(a) is stable, -sqrt(a) is not, and far below it x runs away."""

    states = {"x": "1"}
    parameters = {"a": "s-1", "guess": "1"}

    def vector_field(self, t, x, k):
        return k["a"] - x**2

    def initial_guess(self, k):
        return k["guess"][None]


@pytest.mark.slow
def test_another_start_finds_the_root_that_the_guess_does_not_lead_to():
    k = np.array([[4.0, -9.0], [4.0, 3.0], [-1.0, 0.0]])
    x0 = np.full((3, 1), np.nan)
    told: list[Any] = []
    find = lambda rescue: find_steady_states(
        TwoRoots, TwoRoots(), staged({"rescue": rescue}, "find"), k, x0, lambda *a: told.append(a)
    )
    plain, none = find([])
    assert [STEADY_STATUS[s] for s in plain.status[:2]] == ["unstable", "converged"]
    assert not none.any() and plain.status[2] != 0
    found, rung = find(["more_steps", "other_start"])
    assert rung.tolist() == [2, 0, 0]
    np.testing.assert_allclose(found.x[:2, 0], [2.0, 2.0], rtol=1e-12)
    # No root is none whatever the start, and keeps what was said of it first.
    assert found.status[2] == plain.status[2]
    assert told == [("more_steps", 2, 0), ("other_start", 2, 1)]
