"""Rescue, all derivations side by side and their error bars, through the whole DAG, on the tiny study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pipeline
import pytest
from test_pipeline import exact_gradient, loss, phases, result, trajectory

import retrograd

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

METHODS = ["replay", "forward", "checkpoint", "backsolve"]


@pytest.fixture(scope="module")
def rescued(tmp_path_factory) -> Path:
    """The tiny study with too few steps for most scenarios, a ladder, and everything that can be derived."""
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("rescued"))
    config = pipeline.write_study(repository)
    text = config.read_text().replace("methods: [replay]", f"methods: [{', '.join(METHODS)}]\n  reference: 2")
    text = text.replace("  seed: 0\n", "  seed: 0\n  free_differences: 2\n")
    config.write_text(
        text.replace("max_steps: 16384", "max_steps: 8\n    rescue: [other_start, {name: ten, max_steps: 150}]")
    )
    run = pipeline.snakemake(repository, "--configfile", config.name)
    assert run.returncode == 0, run.stdout
    return repository


def test_the_rung_that_solved_a_scenario_is_told_in_each_file(rescued: Path):
    dynamics, summary = (retrograd.open_results(result(rescued, kind)) for kind in ("dynamics", "summary"))
    rung = dynamics.rung.values
    assert 2 in rung and set(rung) <= {0, 2}
    assert [str(v) for v in dynamics.rung_name.values] == [{0: "none", 2: "ten"}[r] for r in rung]
    assert dynamics.rung.attrs["flag_meanings"] == "none other_start ten"
    assert np.array_equal(dynamics.num_accepted + dynamics.num_rejected > 8, rung == 2)
    assert np.all(dynamics.status == 0)
    np.testing.assert_array_equal(summary.rung.values[0], rung)
    assert np.all(summary.steady_state_rung == 0)
    assert np.all(summary.outcome == 0)
    page = (rescued / "results/tiny/report/index.html").read_text()
    assert "(rescued by ten)" in page


def test_all_derivations_agree_within_their_error_bars(rescued: Path):
    ds = retrograd.open_results(result(rescued, "gradients"))
    assert list(ds.method.values) == METHODS
    assert np.all(ds.verdict.sel({"method": METHODS[:3]}) == 0)
    replay, forward = (ds.ad.sel({"method": name}).values * ds.scale.values for name in ("replay", "forward"))
    assert np.max(np.abs(replay - forward)) <= 1e-12 * np.max(np.abs(replay))
    for name in ("fd_free", "reference"):
        value, error = ds[name].values, ds[f"{name}_error"].values
        # Chunks of two scenarios and of one, of which two each were asked for.
        assert np.all(np.isfinite(value))
        bar = error + ds.ode_error.values + ds.ad_error.sel({"method": "replay"}).values
        assert np.all(np.abs(value - ds.ad.sel({"method": "replay"}).values) <= bar), name
    # Of the smallest derivatives the bars are too wide to tell.
    words = ds.reference_verdict.attrs["flag_meanings"].split(" ")
    verdicts = [words[v] for v in ds.reference_verdict.values.ravel()]
    assert "refuted" not in verdicts and verdicts.count("verified") > 0.8 * len(verdicts)


def test_states_loss_and_derivatives_are_the_odes_within_the_stated_bars(rescued: Path):
    ds, dynamics = (retrograd.open_results(result(rescued, kind)) for kind in ("gradients", "dynamics"))
    for name, (k, k_steady) in phases().items():
        found = ds.sel(scenario=name)
        x = trajectory(k, k_steady, pipeline.WEIGHT, pipeline.BIAS, np.array(pipeline.TIMES))
        assert np.all(np.abs(dynamics.x.sel(scenario=name) - x) <= found.x_error)
        assert abs(float(found.loss) - loss(k, k_steady)) <= float(found.loss_error)
        exact = exact_gradient(k, k_steady)
        for w in ds.wrt.values:
            if w in exact:
                off = abs(float(found.ad.sel({"method": "replay", "wrt": w})) - exact[w])
                assert off <= float(found.ode_error.sel(wrt=w)), (name, w)


def test_what_backsolve_gets_wrong_is_refuted(rescued: Path):
    """Backwards in time its states leave the solution where that decays fast."""
    ds = retrograd.open_results(result(rescued, "gradients")).sel({"method": "backsolve"})
    words = ds.verdict.attrs["flag_meanings"].split(" ")
    seen = set()
    for name, (k, k_steady) in phases().items():
        for w, exact in exact_gradient(k, k_steady).items():
            if w in ds.wrt.values:
                found = ds.sel({"scenario": name, "wrt": w})
                verdict = words[int(found.verdict)]
                off = abs(float(found.ad) - exact)
                if verdict == "refuted":
                    assert off > float(found.ode_error), (name, w)
                elif verdict == "verified":
                    assert off <= float(found.ad_error) + float(found.ode_error), (name, w)
                seen.add(verdict)
    assert {"verified", "refuted"} <= seen
