"""Results do not depend on the cut: the same bits for a scenario whatever job it is in, and whoever is beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from problems import ROOT

from retrograd import causes, context
from retrograd.api import Model
from retrograd.batches import lanes_of
from retrograd.find_stage import find_steady_states
from retrograd.gradient_stage import form_gradients, gradient_problem
from retrograd.gradients import from_records
from retrograd.plan import Plan
from retrograd.plugins import build_structure, load_class
from retrograd.replay import BLOCK, Replayer
from retrograd.scenarios import automatic_size, chunks
from retrograd.solve_stage import simulate, stiffness_ratios
from retrograd.weights import load_into


class Stages:
    """The stages of the default study under a variant, on any of its scenarios."""

    def __init__(self, variant: str) -> None:
        plan = Plan(yaml.safe_load(Path("config/config.yaml").read_text()) | {"variants": [variant]}, ROOT)
        given = plan.study.model
        self.cls = load_class(given.plugin, given.class_)
        self.model = load_into(build_structure(self.cls), given.weights)
        self.chunk = context.chunk_of(plan.study.table, self.cls, plan.study.start)
        self.options = {stage: plan._options[variant][stage] for stage in plan.stages}
        # Compiled once: what a job compiles does not depend on its chunk.
        self.problem = gradient_problem(self.cls, self.model, self.options["gradients"])

    def results(self, rows: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """Returns what the stages' files hold, name to one entry for each of the rows, from one job on them."""
        cls, model, chunk = self.cls, self.model, self.chunk.take(np.asarray(rows))
        options, quiet = self.options, lambda *told: None
        found, steady_rung = find_steady_states(cls, model, options["steady_state"], chunk.k_steady, chunk.x0, quiet)
        start = np.where((found.status == 0)[:, None], found.x, np.nan)
        records, rung = simulate(cls, model, options["dynamics"], start, chunk.k_dynamic, quiet)
        data = from_records(chunk, start, records, found.x, found.conserved_basis)
        why = causes.of_dynamics(cls, model, options["dynamics"], records, start, chunk.k_dynamic)
        of_steady = causes.of_steady_states(cls, model, options["steady_state"], found, chunk.k_steady)
        tables = {
            "steady_state": dataclasses.asdict(found) | {"rung": steady_rung} | causes.table(of_steady, term=False),
            "dynamics": {
                **{f.name: [getattr(r, f.name) for r in records] for f in dataclasses.fields(records[0])},
                "rung": rung,
                "stiffness": stiffness_ratios(cls, model, options["dynamics"], records, start, chunk.k_dynamic),
                **causes.table(why, term=False),
            },
            "gradients": form_gradients(
                cls, model, options["gradients"], self.problem, data, records, (steady_rung, rung)
            ),
        }
        return {f"{stage}: {name}": list(v) for stage, table in tables.items() for name, v in table.items()}


def same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype.kind == "f":
        # As they are written: NaN has no sign.
        one, other = (np.where(np.isfinite(v), v, np.nan) for v in (one, other))
    return bool(np.all(one == other)) if one.dtype.kind in "OU" else one.tobytes() == other.tobytes()


@pytest.fixture
def _at_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["recommended", pytest.param("fast", marks=pytest.mark.exhaustive)])
@pytest.mark.usefixtures("_at_root")
def test_neither_chunk_size_nor_order_changes_a_bit(variant: str):
    stages = Stages(variant)
    count = 70
    whole = stages.results(range(count))
    assert set(np.ravel(whole["gradients: status"])) >= {0, 3}, "wanted failures among the scenarios"
    rng = np.random.default_rng(4)
    # Of small sizes some jobs: all of them would trace the same programs seventy times.
    jobs = {"order": [rng.permutation(count)]}
    for size in (1, 7, 64, 1000, automatic_size(count, 3, network=True)):
        cut = chunks(count, size)
        parts = [np.arange(*cut[i]) for i in rng.permutation(len(cut))[:2]]
        # One chunk of all is what the others are compared with.
        jobs[f"chunk_size {size}"] = [rows for rows in parts if len(rows) < count]
    differ = {
        (what, name, int(row))
        for what, parts in jobs.items()
        for rows in parts
        for name, values in stages.results(rows).items()
        for row, value in zip(rows, values, strict=True)
        if not same(whole[name][row], value)
    }
    assert differ == set()


@pytest.mark.parametrize("variant", ["recommended", pytest.param("fast", marks=pytest.mark.exhaustive)])
@pytest.mark.usefixtures("_at_root")
def test_the_place_in_a_batch_changes_no_bit(variant: str):
    # A product of a network with all rows of a batch rounds those at the end of a tile otherwise, once it is large.
    stages = Stages(variant)
    problem, cls = stages.problem, stages.cls
    replayer: Replayer = problem.replayer
    rng = np.random.default_rng(0)
    lanes = 32
    k = rng.normal(size=(lanes, len(cls.parameters)))
    stages_at = rng.normal(size=(BLOCK, lanes, replayer.kept, 2))
    t0 = np.sort(rng.uniform(size=(BLOCK, lanes)), axis=0)
    t1 = t0 + 0.1
    phi = rng.normal(size=(BLOCK, lanes, replayer.tableau.stages, 2))
    lam = rng.normal(size=(BLOCK, lanes, 2))
    dk, _, dw = problem.moves()
    order = rng.permutation(lanes)

    def formed(o: np.ndarray) -> dict[str, np.ndarray]:
        at = (t0[:, o], t1[:, o])
        zeros = jnp.zeros((lanes, k.shape[1])), jnp.zeros((lanes, problem.weights))
        here = (problem.model, *at, k[o], stages_at[:, o])
        by_k, by_weights = replayer._paired(*here, phi[:, o], *zeros)
        jacobians = replayer._jacobians(*here, np.zeros((2, 2)))
        sources = replayer._sources(problem.model, dw, *at, k[o], dk, stages_at[:, o])
        back = replayer._backward(*here, jacobians, lam[:, o], lam[0, o], *zeros)
        moved = np.repeat(lam[0, o][:, None], len(dw), axis=1)
        by_step = {
            "inverses": replayer._inverse(*here) if replayer.guesses else (),
            "jacobians": jacobians,
            "sources": sources,
            "cotangents": back[1],
            "tangents": replayer._tangent(*here, jacobians, sources, moved)[1],
        }
        found = {
            f"{name} {i}": np.moveaxis(np.asarray(v), 1, 0)
            for name, values in by_step.items()
            for i, v in enumerate(jax.tree_util.tree_leaves(values))
        }
        rows = {"gradient by k": by_k, "gradient by weights": by_weights, "lam": back[0], "k": back[2], "w": back[3]}
        return found | {name: np.asarray(v) for name, v in rows.items()}

    here, there = formed(np.arange(lanes)), formed(order)
    assert [name for name in here if not np.array_equal(here[name][order], there[name])] == []


class Rod(Model):
    """A chain of 120 cells, for which there are fewer lanes."""

    states = {f"u{i}": "1" for i in range(120)}
    parameters = {"flow": "s-1", "loss": "s-1"}

    def vector_field(self, t: Any, x: Any, k: Any) -> Any:
        padded = jnp.concatenate([x[:1], x, x[-1:]])
        return (k["flow"] * (padded[2:] - 2 * x + padded[:-2]) - k["loss"] * x).at[0].add(1.0)


def test_models_of_many_states_have_fewer_lanes():
    assert [lanes_of(n, 1024) for n in (1, 10, 50, 100, 500, 10_000)] == [1024, 1024, 64, 16, 1, 1]
    options = {"solver": "Kvaerno5", "controller": {"rtol": 1e-6, "atol": 1e-8}}
    field = lambda model, t, x, k: model.vector_field(t, x, dict(zip(Rod.parameters, k, strict=True)))
    replayer = Replayer(field, options, 120)
    assert replayer.lanes == replayer.wide == 16
    rng = np.random.default_rng(0)
    count = 20
    x, k = rng.normal(size=(count, 120)), rng.uniform(1, 100, (count, 2))
    steps = [np.cumsum(rng.uniform(0.01, 0.1, size)) for size in rng.integers(1, 6, count)]

    def formed(rows: np.ndarray) -> list[np.ndarray]:
        mine = [steps[i] for i in rows]
        ends, stages = replayer.forward(Rod(), x[rows], k[rows], mine)
        injected = [np.ones_like(end) for end in ends]
        near = replayer.linearise(Rod(), k[rows], mine, stages)
        beside, _ = replayer.perturbed(Rod(), x[rows] + 1e-3, k[rows], np.arange(len(rows)), near)
        by_x, by_k, _ = replayer.backward(Rod(), k[rows], mine, stages, injected, 0)
        return [np.concatenate([v.ravel() for v in of]) for of in zip(ends, beside, by_x, by_k, strict=True)]

    whole, some = formed(np.arange(count)), np.array([17, 3, 8])
    assert all(same(whole[row], found) for row, found in zip(some, formed(some), strict=True))
    assert all(np.isfinite(row).all() for row in whole)


@pytest.mark.usefixtures("_at_root")
def test_portions_of_the_check_hold_what_fits():
    replayer: Replayer = Stages("recommended").problem.replayer
    each = BLOCK * replayer.tableau.stages * 4 * 8
    most = (1 << 28) // each
    blocks = (most + 1, 1, most // 2, most // 2, 1, most // 2)
    steps = [np.arange(n * BLOCK, dtype=float) for n in blocks]
    # The first one alone is too large, and has its own portion all the same.
    assert [rows.tolist() for rows in replayer.portions(steps)] == [[1, 4], [2, 3], [5], [0]]
