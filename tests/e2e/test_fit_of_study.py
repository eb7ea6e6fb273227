"""A model with measurements, from its plug-in to an archive: against closed forms, and a table that was changed."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import measured
import numpy as np
import pipeline
import pytest

import retrograd
from retrograd import archive, packing
from retrograd.archive import MANIFEST, METADATA, Archive
from retrograd.inspection import inspect

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONFIG = """\
study: approach
model: {plugin: approach.py, class: Approach}
scenarios: approach.tsv
save_times: [0.0, 0.5, 1.0, 2.0, 4.0]
variants: [recommended]
chunk_size: 3
gradient: {methods: [replay, forward]}
"""
FIT = "results/approach/recommended/fit.nc"
TABLE = "results/approach/recommended/simulations.tsv"
FIGURES = [f"results/approach/report/{name}.{form}" for name in ("fit", "time_courses") for form in ("svg", "png")]


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the study run in it and archived."""
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("fit"))
    (repository / "approach.py").write_text(measured.PLUGIN)
    (repository / "approach.tsv").write_text(measured.scenarios())
    (repository / "approach.yaml").write_text(CONFIG)
    run = pipeline.snakemake(repository, "archive", "--configfile", "approach.yaml")
    assert run.returncode == 0, run.stdout
    return repository


def test_likelihood_and_gradient_are_those_of_the_closed_form(archived: Path):
    ds = retrograd.open_results(archived / FIT)
    assert ds.attrs["retrograd_schema"] == "fit/1"
    assert list(ds["sample"].values) == list(measured.SAMPLES)
    assert list(ds["parameter"].values) == list(measured.PARAMETERS)
    assert np.all(ds["status"].values == 0) and np.all(ds["verdict"].values == 0)
    for sample, p in measured.SAMPLES.items():
        own = ds.sel({"sample": sample})
        assert abs(own["llh"] - float(measured.llh(p))) <= own["llh_error"]
        for name in measured.PARAMETERS:
            found = own.sel({"parameter": name})
            assert np.all(np.abs(found["gradient"] - measured.slope(p, name)) <= found["gradient_error"]), name
            assert np.all(found["gradient_error"] <= 1e-3 * max(1.0, abs(measured.slope(p, name)))), name
        wanted = [[float(v) for v in measured.simulated(p, row)] for row in range(len(measured.MEASUREMENTS))]
        np.testing.assert_allclose(np.stack([own["simulation"], own["noise"]], axis=1), wanted, rtol=1e-5)


def test_the_table_is_that_of_petab(archived: Path):
    ds = retrograd.open_results(archived / FIT)
    with open(archived / TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["sample", "observableId", "experimentId", "time", "simulation"]
    assert len(rows) == ds["simulation"].size
    np.testing.assert_array_equal([float(row["simulation"]) for row in rows], ds["simulation"].values.ravel())


def test_the_report_shows_it(archived: Path):
    page = (archived / "results/approach/report/index.html").read_text(encoding="utf-8")
    assert "Simulated against measured" in page
    assert all((archived / name).stat().st_size > 1000 for name in FIGURES)


def test_the_archive_holds_it_and_says_how_it_was_made(archived: Path):
    made = archived / "results/archives/approach.zip"
    with zipfile.ZipFile(made) as held:
        assert {FIT, TABLE, *FIGURES, "scripts/fit.py", "workflow/rules/fit.smk"} <= set(held.namelist())
        graph = json.loads(held.read(METADATA))["@graph"]
    (job,) = (entity for entity in graph if entity["@id"] == "#job/recommended/fit")
    assert {entry["@id"] for entry in job["result"]} == {FIT, TABLE}
    run = pipeline.snakemake(archived, "verify", "--configfile", "approach.yaml", "--config", f"archive={made}")
    assert run.returncode == 0, run.stdout
    assert "summary: 2 looked at, nothing wrong" in run.stdout


@pytest.mark.parametrize("change", ["another value", "no text", "taken away"])
def test_a_table_that_is_not_that_of_the_fit_is_found(archived: Path, change: str, tmp_path: Path):
    with Archive(archived / "results/archives/approach.zip") as opened:
        opened.unpack(tmp_path / "there")
    table = tmp_path / "there" / TABLE
    if change == "another value":
        text = table.read_text()
        table.write_text(text[:-2] + ("1" if text[-2] == "0" else "0") + "\n")
    elif change == "no text":
        table.write_bytes(b"\xff\xfe\n")
    else:
        table.unlink()
    # Manifest and metadata follow the change.
    files = {p.relative_to(tmp_path / "there").as_posix(): p for p in (tmp_path / "there").rglob("*") if p.is_file()}
    files.pop(MANIFEST)
    crate = json.loads(files[METADATA].read_text())
    crate["@graph"] = [e for e in crate["@graph"] if e["@id"] != TABLE or table.exists()]
    for entity in crate["@graph"]:
        if entity["@id"] == TABLE:
            entity["sha256"] = archive.file_facts(table)[1]
    files[METADATA].write_text(json.dumps(crate))
    archive.write(tmp_path / "bad.zip", files)
    assert {f.file for f in inspect(tmp_path / "bad.zip", pipeline.ROOT).findings} == {TABLE}


@pytest.mark.exhaustive
def test_computed_anew_it_is_the_same(archived: Path):
    made = archived / "results/archives/approach.zip"
    run = pipeline.snakemake(
        archived, "reproduce", "--configfile", "approach.yaml", "--config", f"archive={made}", "trust_plugin=true"
    )
    assert run.returncode == 0, run.stdout
    (again,) = (archived / "results/reproductions").glob("approach-*")
    for name in (FIT, TABLE):
        assert (again / name).read_bytes() == (archived / name).read_bytes()
    assert packing.beside(FIT) == [TABLE]


@pytest.mark.exhaustive
def test_a_failed_scenario_is_a_result(archived: Path):
    (archived / "failed.yaml").write_text(CONFIG.replace("study: approach", "study: failed").replace(".tsv", "2.tsv"))
    # No steady state without a rate.
    text = measured.scenarios().replace("second:high\t0.5", "second:high\t0.0")
    assert "\t0.0\t" in text
    (archived / "approach2.tsv").write_text(text)
    run = pipeline.snakemake(archived, "--configfile", "failed.yaml")
    assert run.returncode == 0, run.stdout
    ds = retrograd.open_results(archived / "results/failed/recommended/fit.nc")
    assert np.isfinite(ds["llh"].values[0]) and np.isnan(ds["llh"].values[1])
    assert ds["status"].values.tolist() == [0, 1]
    page = (archived / "results/failed/report/index.html").read_text(encoding="utf-8")
    assert "experiment failed" in page
