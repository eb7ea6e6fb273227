"""Numbers at the edge of float64, hostile names and a plug-in that hangs, through the whole pipeline."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pipeline
import pytest
import yaml

from retrograd import open_results
from retrograd.schema import DYNAMICS_STATUS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLUGIN = """\
import jax.numpy as jnp
from retrograd.api import Model


class Edge(Model):
    states = {"<script>alert(2)</script>": "1"}
    parameters = {"k": "1", "rest": "1"}

    def vector_field(self, t, x, k):
        return k["rest"] - jnp.exp(k["k"]) * x

    def initial_state(self, k):
        return jnp.ones(1)

    def loss(self, times, x, k):
        return jnp.sum(x)
"""
# What x is at the end, from its closed form at t = 1e12; NaN: not to be had.
SCENARIOS = {
    "k of 700": ((700.0, 0.0, 1.0), 0.0),
    "k of -700": ((-700.0, 0.0, 1.0), 1.0),
    "rate that overflows": ((710.0, 0.0, 1.0), np.nan),
    "huge k": ((-1e308, 1e-12, 0.0), 1.0),
    "denormal start": ((-700.0, 0.0, 5e-324), 5e-324),
    "denormal rest": ((0.0, 5e-324, 1.0), 0.0),
    "--><svg onload=alert(3)>": ((-1000.0, 0.0, 1.0), 1.0),
    "slow": ((np.log(1e-12), 0.0, 1.0), np.exp(-1.0)),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = pipeline.copy_repository(tmp_path_factory.mktemp("edges"))
    (folder / "edge.py").write_text(PLUGIN)
    lines = [f"{name}\t" + "\t".join(map(repr, map(float, row))) for name, (row, _) in SCENARIOS.items()]
    head = "scenario\tk\trest\tx0:<script>alert(2)</script>"
    (folder / "edge.tsv").write_text("\n".join([head, *lines]) + "\n")
    config = {
        "study": "edge",
        "model": {"plugin": "edge.py", "class": "Edge"},
        "scenarios": "edge.tsv",
        "start": "initial_state",
        "save_times": [0.0, 1e12],
        "variants": ["recommended"],
        "gradient": {"methods": ["replay"], "wrt": ["dynamic"], "directions": 0},
    }
    (folder / "edge.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_numbers_at_the_edge_have_the_right_result_or_a_status(repository: Path):
    run = pipeline.snakemake(repository, "--configfile", "edge.yaml")
    assert run.returncode == 0, run.stdout
    results = repository / "results/edge"
    ds = open_results(results / "recommended/dynamics.nc")
    gradients = open_results(results / "recommended/gradients.nc")
    for name, (_, wanted) in SCENARIOS.items():
        found, status = float(ds["x"].sel(scenario=name)[-1, 0]), DYNAMICS_STATUS[int(ds["status"].sel(scenario=name))]
        assert (status == "successful") == bool(np.isfinite(found)), (name, found, status)
        # Rates of 1e304 over a time of 1e12 need not come through; what does is right.
        assert status == "successful" or name in ("k of 700", "rate that overflows"), (name, status)
        if status == "successful":
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7), name
    for variable in (*ds.variables.values(), *gradients.variables.values()):
        assert variable.dtype.kind != "f" or not np.isinf(variable.values).any()
    page = (results / "report/index.html").read_text()
    assert "<script>alert" not in page and "<svg onload" not in page
    assert not [file for file in (results / "report").glob("*.svg") if "<script>al" in file.read_text()]


def test_a_plugin_that_hangs_ends_the_run_and_leaves_no_part_of_a_result(repository: Path):
    (repository / "edge.py").write_text(PLUGIN.replace("        return jnp.sum(x)", "        while True: pass"))
    patience = {"RETROGRAD_PATIENCE": "20"}
    run = pipeline.snakemake(repository, "--configfile", "edge.yaml", surroundings=dict(os.environ) | patience)
    assert run.returncode != 0
    assert "Tracing Edge.loss has taken more than 20 s and was ended. Look for a loop of Python in it" in run.stdout
    assert "Traceback" not in run.stdout
    assert not list((repository / "results/edge/chunks/gradients").rglob("*.nc"))
