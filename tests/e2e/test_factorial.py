"""A study with factors: that shared work is done once, that remedies are weighed, and that the page ends in advice."""

from __future__ import annotations

import re

import numpy as np
import pipeline
import pytest

from retrograd import open_results

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECTION = """\
factors:
  base: own
  levels:
    controller: {plain: {rtol: 1.0e-6}, fine: {rtol: 1.0e-8, atol: 1.0e-10}}
    gradient: [checkpoint, replay]
"""
CELLS = ["plain-checkpoint", "plain-replay", "fine-checkpoint", "fine-replay"]


def test_remedies_are_weighed_and_shared_work_is_done_once(tmp_path_factory):
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("factorial"))
    config = pipeline.write_study(repository)
    text = config.read_text().replace("methods: [replay]", "methods: [replay, checkpoint]")
    config.write_text(text.replace("chunk_size: 2", "chunk_size: 64") + SECTION)
    run = pipeline.snakemake(repository, "--configfile", config.name)
    assert run.returncode == 0, run.stdout
    folder = repository / "results/tiny"
    # `own` is the cell plain-replay by another name; fine steps start from the same steady state.
    works = {
        stage: len(list((folder / "chunks" / stage).iterdir())) for stage in ("steady_state", "dynamics", "gradients")
    }
    assert works == {"steady_state": 1, "dynamics": 2, "gradients": 2}
    found = open_results(folder / "effects.nc")
    assert list(found["variant"].values) == ["own", *CELLS]
    assert found["level_name"].values.tolist()[2] == ["plain", "replay"] and found["level"].values[0].tolist() == [
        -1,
        -1,
    ]
    # diffrax's own solve may stop at rest: rounding times rate exceeds the fine tolerance there.
    assert np.all(found["verified"].sel(variant=["own", "plain-replay", "fine-replay"]) == 1)
    assert np.all(found["seconds"] > 0)
    assert list(found["effect"].values) == [
        "controller: fine",
        "gradient: replay",
        "controller: fine × gradient: replay",
        "own: the same (against plain-replay)",
    ]
    attempts = found.sel(measure="attempts")
    assert float(attempts["value"].sel(effect="controller: fine")) > 1
    # What two variants share is the same to the bit.
    assert float(attempts["value"].sel(effect="gradient: replay")) == 1
    assert found["cure_size"].values.tolist() == [0, 0, 0]
    names = {path.stem for path in (folder / "report").glob("*.svg")}
    assert {"waterfall", "effects", "outcome_maps", "stiffness", "cause_sets", "evaluation_order"} <= names
    page = (folder / "report/index.html").read_text(encoding="utf-8")
    assert re.findall(r'<section aria-labelledby="(\w+)"', page)[-1] == "advice"
    ratio = open_results(folder / "own/dynamics.nc")["stiffness_ratio"]
    # fast over slow: both are rates of the linear model, and above one over the last save time.
    assert np.allclose(ratio.sel(scenario=["mild", "stiff"]), [2.0 / 0.5, 1e3 / 0.5], rtol=1e-6)
    assert pipeline.planned(repository) == set()
