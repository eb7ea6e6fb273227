"""`snakemake benchmark` on the tiny study: that it measures all it was asked for, in files of its own."""

from __future__ import annotations

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
"""


def test_error_and_time_of_each_method(tmp_path_factory):
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("benchmark"))
    config = pipeline.write_study(repository)
    config.write_text(config.read_text() + SECTION)
    run = pipeline.snakemake(repository, "benchmark", "--configfile", config.name)
    assert run.returncode == 0, run.stdout
    folder = repository / "results/tiny/benchmarks"
    assert sorted(p.name for p in folder.iterdir()) == [
        "work_precision.nc",
        "work_precision.png",
        "work_precision.svg",
    ]
    found = open_results(folder / "work_precision.nc")
    assert list(found["method"].values) == ["replay", "checkpoint_newton", "fd_free"]
    assert list(found["tolerance"].values) == ["0.001", "1e-06"]
    # Spread over the table: its first and its last.
    assert list(found["scenario"].values) == ["mild", "very stiff"]
    error = found["error"].transpose("method", "tolerance", "scenario").values
    assert np.all(found["seconds"] > 0) and np.all(found["reference_error"] < 1e-6)
    assert np.all(error[:2, 1] < 1e-4) and np.all(error[:2, 1] < error[:2, 0])
    # No other target sees these files, and none is made on the way.
    assert sorted(p.name for p in (repository / "results/tiny").iterdir()) == ["benchmarks", "logs", "model.nc"]
    assert "benchmark" not in pipeline.planned(repository)
