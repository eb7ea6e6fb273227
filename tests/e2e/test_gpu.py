"""The same study on a GPU by `JAX_PLATFORMS=cuda`: where there is one, else that its absence is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pipeline
import pytest

from retrograd.devices import on_gpu

pytestmark = pytest.mark.e2e


def has_card() -> bool:
    run = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        check=False,
    )
    return run.returncode == 0


@pytest.mark.parametrize(
    ("asked", "gpu"), [("", False), ("cpu", False), ("cuda", True), ("cuda,cpu", True), ("cpu,cuda", False)]
)
def test_the_first_platform_counts(asked: str, gpu: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    assert on_gpu() is gpu


def test_a_card_that_is_not_there_is_told_in_one_sentence(tmp_path_factory):
    if has_card():
        pytest.skip("a GPU is there: nothing to tell")
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("no_gpu"))
    config = pipeline.write_study(repository)
    cuda = {"JAX_PLATFORMS": "cuda"}
    planned = pipeline.snakemake(repository, "-n", "--configfile", config.name, surroundings=cuda)
    assert planned.returncode == 0
    # The chunks' jobs own a card, no other does.
    owners = {
        rule
        for rule, resources in re.findall(r"rule (\w+):(?:\n +.*)*?\n +resources: (.*)", planned.stdout)
        if "gpu=1" in resources
    }
    assert owners == {"steady_state_chunk", "dynamics_chunk", "gradients_chunk"}
    run = pipeline.snakemake(repository, "--configfile", config.name, surroundings=cuda)
    assert run.returncode != 0
    assert "JAX_PLATFORMS is cuda, and jax finds no such device. Install jax's plug-in" in run.stdout
    # What needs no card is there.
    assert (repository / "results/tiny/model.nc").exists()


@pytest.mark.slow
def test_a_study_on_a_gpu_is_equivalent_to_that_on_the_processor(tmp_path_factory):
    if not has_card():
        pytest.skip("no GPU that jax can use: the study was not run on one")
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("gpu"))
    config = pipeline.write_study(repository)
    assert pipeline.snakemake(repository, "--configfile", config.name).returncode == 0
    other = repository / "gpu.yaml"
    other.write_text(config.read_text().replace("study: tiny", "study: gpu"))
    reference = ["--config", "reference=results/tiny"]
    cuda = {"JAX_PLATFORMS": "cuda"}
    run = pipeline.snakemake(repository, "compare", "--configfile", other.name, *reference, surroundings=cuda)
    assert run.returncode == 0, run.stdout
