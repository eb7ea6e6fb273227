"""States that are set anew after they came to rest, through the whole DAG, `compare` and `debug`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pipeline
import pytest

import retrograd
from retrograd.schema import AGREEMENT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLUGIN = '''\
"""a <=> b comes to rest, a dose is added to a, and the two exchange again."""

import jax.numpy as jnp
from retrograd.api import Model


class Dosed(Model):
    states = {"a": "1", "b": "1"}
    parameters = {"forth": "s-1", "back": "s-1", "total": "1", "dose": "1"}
    estimated = ("forth", "dose", "total")

    def vector_field(self, t, x, k):
        flux = k["forth"] * x[0] - k["back"] * x[1]
        return jnp.stack([-flux, flux])

    def initial_guess(self, k):
        return jnp.stack([k["total"], 0.0 * k["total"]])

    def start_of_dynamics(self, x, k):
        return x + jnp.stack([k["dose"] * x[1], 0.0 * x[1]])

    def loss(self, times, x, k):
        return jnp.sum(x[:, 1])
'''
SCENARIOS = """\
scenario\tforth\tback\ttotal\tdose\tforth@dynamic
mild\t1.0\t2.0\t1.5\t0.5\t3.0
stiff\t4.0\t1.0\t2.5\t2.0\t1.0e4
"""
CONFIG = """\
study: dosed
model: {plugin: dosed.py, class: Dosed}
scenarios: dosed.tsv
save_times: [0.0, 0.5, 2.0]
variants: [recommended]
gradient: {methods: [replay, forward], wrt: [dynamic, steady], reference: 2}
benchmark: {scenarios: 1, methods: [replay], tolerances: [1.0e-5], peers: [retrograd, casadi, scipy], rounds: 1}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = pipeline.copy_repository(tmp_path_factory.mktemp("dosed"))
    (folder / "dosed.py").write_text(PLUGIN)
    (folder / "dosed.tsv").write_text(SCENARIOS)
    (folder / "dosed.yaml").write_text(CONFIG)
    run = pipeline.snakemake(folder, "--configfile", "dosed.yaml")
    assert run.returncode == 0, run.stdout
    return folder


def result(repository: Path, kind: str, study: str = "dosed"):
    return retrograd.open_results(repository / f"results/{study}/recommended/{kind}.nc")


def test_the_files_tell_of_both_states(repository: Path):
    steady, dynamics, found = (result(repository, kind) for kind in ("steady_state", "dynamics", "gradients"))
    rest, start = steady.x.values, dynamics.x_start.values
    np.testing.assert_allclose(rest, [[1.0, 0.5], [0.5, 2.0]], rtol=1e-9)
    np.testing.assert_allclose(start, rest + np.array([[0.25, 0], [4.0, 0]]), rtol=1e-9)
    np.testing.assert_array_equal(dynamics.x.isel(model_time=0).values, start)
    labels = [f"{name}@{phase}" for phase in ("dynamic", "steady") for name in ("forth", "total", "dose")]
    assert list(found.wrt.values) == labels
    assert np.all(found.verdict == 0) and np.all(found.reference_verdict == 0)
    # b tends to its share of a + b at the rate forth + back, and a dose raises a + b by b at rest.
    times, b = np.array([0.0, 0.5, 2.0]), rest[:, 1:]
    forth, back = np.array([[3.0], [1e4]]), np.array([[2.0], [1.0]])
    share, left = forth / (forth + back), np.exp(-(forth + back) * times)
    ad = found.ad.sel({"method": "replay"})
    np.testing.assert_allclose(ad.sel(wrt="dose@dynamic"), np.sum(b * share * (1 - left), axis=1), rtol=1e-4)
    # All states are in proportion to the total.
    level = share * np.sum(start, axis=1, keepdims=True)
    exact = np.sum(level + (b - level) * left, axis=1) / np.array([1.5, 2.5])
    np.testing.assert_allclose(ad.sel(wrt="total@steady"), exact, rtol=1e-4)
    np.testing.assert_array_equal(ad.sel(wrt=["dose@steady", "total@dynamic"]), 0)


def compare(repository: Path, study: str, config: str):
    (repository / f"{study}.yaml").write_text(config.replace("study: dosed", f"study: {study}"))
    reference = ("--config", "reference=results/dosed")
    run = pipeline.snakemake(repository, "compare", "--configfile", f"{study}.yaml", *reference)
    ds = retrograd.open_results(repository / f"results/{study}/comparison/comparison.nc")
    table = ds["verdict"].isel(variant=0)
    verdict = lambda kind, quantity: AGREEMENT[int(table.sel(kind=kind, quantity=quantity))]
    return run, ds, verdict


def test_a_run_is_identical_to_itself(repository: Path):
    run, _, verdict = compare(repository, "dosed", CONFIG)
    assert run.returncode == 0, run.stdout
    assert "verdict: identical to the bit" in run.stdout
    for kind in ("free", "replayed"):
        assert verdict(kind, "steady_state.x") == verdict(kind, "dynamics.x_start") == "identical"
    assert verdict("replayed", "dynamics.step_x") == "identical"


@pytest.mark.exhaustive
def test_another_start_is_found_and_named(repository: Path):
    changed = PLUGIN.replace('k["dose"] * x[1],', 'k["dose"] * x[1] * (1 + 1e-7),')
    assert changed != PLUGIN
    (repository / "changed.py").write_text(changed)
    run, ds, verdict = compare(repository, "changed", CONFIG.replace("dosed.py", "changed.py"))
    assert run.returncode != 0
    assert verdict("free", "steady_state.x") == "identical"
    assert verdict("free", "dynamics.x_start") == verdict("replayed", "dynamics.x_start") == "different"
    assert (str(ds["first_stage"].values[0]), str(ds["first_state"].values[0])) == ("dynamics", "a")
    reason = str(ds["reason"].values[0])
    assert "starts of the dynamics differ (stiff, a): the plug-in's start_of_dynamics" in reason
    assert "choice of steps" not in reason


def test_a_start_that_is_off_by_less_than_the_solver_is_found_on_recorded_steps(repository: Path):
    changed = PLUGIN.replace('k["dose"] * x[1],', 'k["dose"] * x[1] * (1 + 1e-11),')
    (repository / "hardly.py").write_text(changed)
    run, _, verdict = compare(repository, "hardly", CONFIG.replace("dosed.py", "hardly.py"))
    assert run.returncode != 0
    assert verdict("replayed", "dynamics.x_start") == "different"
    assert "start_of_dynamics or loss" in run.stdout


def test_debug_begins_where_the_study_does(repository: Path):
    arguments = ("--config", "scenario=mild", "variant=recommended", "--configfile", "dosed.yaml")
    run = pipeline.snakemake(repository, "debug", *arguments)
    assert run.returncode == 0, run.stdout
    text = (repository / "results/dosed/debug/recommended/0.txt").read_text(encoding="utf-8")
    assert "\nStart: start_of_dynamics\n" in text
    start = re.search(r"^x_start = np.array\(\[(.*)\]\)", text, re.MULTILINE)
    assert start is not None
    recorded = result(repository, "dynamics").x_start.values[0]
    np.testing.assert_array_equal([float(v) for v in start[1].split(",")], recorded)


@pytest.mark.exhaustive
def test_benchmarks_begin_there(repository: Path):
    run = pipeline.snakemake(repository, "benchmark", "--configfile", "dosed.yaml")
    assert run.returncode == 0, run.stdout
    found = retrograd.open_results(repository / "results/dosed/benchmarks/work_precision.nc")
    assert np.all(found["error"] < 1e-3) and np.all(found["reference_error"] < 1e-6)
    beside = retrograd.open_results(repository / "results/dosed/benchmarks/speed.nc")
    assert np.all(beside["solve_error"] < 1e-3)
    assert np.all(beside["gradient_error"].sel(peer=["retrograd", "casadi"]) < 1e-3)
