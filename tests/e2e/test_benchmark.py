"""`snakemake benchmark` on the tiny study: that it measures all it was asked for, in files of its own.

How long things take is not tested: these machines are shared.
"""

from __future__ import annotations

import re

import numpy as np
import pipeline
import pytest

from retrograd import open_results

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECTION = """\
benchmark:
  scenarios: 2
  methods: [replay, checkpoint_newton, fd_free]
  tolerances: [1.0e-3, 1.0e-6]
  peers: [retrograd, diffrax_loop, casadi, scipy]
  rounds: 2
"""


def test_error_and_time_of_each_method(tmp_path_factory):
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("benchmark"))
    config = pipeline.write_study(repository)
    config.write_text(config.read_text() + SECTION)
    run = pipeline.snakemake(repository, "benchmark", "--configfile", config.name)
    assert run.returncode == 0, run.stdout
    folder = repository / "results/tiny/benchmarks"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{name}.{form}" for name in ("speed", "work_precision") for form in ("nc", "png", "svg")
    ]
    found = open_results(folder / "work_precision.nc")
    assert list(found["method"].values) == ["replay", "checkpoint_newton", "fd_free"]
    assert list(found["tolerance"].values) == ["0.001", "1e-06"]
    # Spread over the table: its first and its last.
    assert list(found["scenario"].values) == ["mild", "very stiff"]
    error = found["error"].transpose("method", "tolerance", "scenario").values
    assert np.all(found["seconds"] > 0) and np.all(found["reference_error"] < 1e-6)
    assert np.all(error[:2, 1] < 1e-4) and np.all(error[:2, 1] < error[:2, 0])
    beside = open_results(folder / "speed.nc")
    assert list(beside["peer"].values) == ["retrograd", "diffrax_loop", "casadi", "scipy"]
    timed = beside["seconds"].transpose("peer", "tolerance", "part", "round").values
    assert np.all(timed[:3] > 0) and np.all(timed[3, :, 0] > 0)
    # SciPy has no gradient.
    assert np.all(np.isnan(timed[3, :, 1])) and np.all(np.isnan(beside["gradient_error"].sel(peer="scipy")))
    assert np.all(beside["memory"] > 1e7) and np.all(beside["start_seconds"] > 0)
    assert np.all(beside["solved"] == 1) and np.all(beside["gradient_finite"].sel(peer=["retrograd", "casadi"]) == 1)
    # One problem for all: each comes closer to the reference with a finer tolerance.
    for name in ("solve_error", "gradient_error"):
        error = beside[name].transpose("tolerance", "peer", "scenario").values[:, : 4 if name == "solve_error" else 3]
        assert np.all(error[1] < 1e-4) and np.all(np.max(error[1], axis=1) < np.max(error[0], axis=1)), name
    log = (repository / "results/tiny/logs/speed.log").read_text()
    assert re.search(r"casadi, gradient at 1e-06: .* ms a scenario, .* times retrograd's", log)
    # No other target sees these files, and none is made on the way.
    assert sorted(p.name for p in (repository / "results/tiny").iterdir()) == ["benchmarks", "logs", "model.nc"]
    assert "benchmark" not in pipeline.planned(repository)
