"""Published problems in PEtab through Snakemake: what suites and AMICI expect, and from a problem to an archive."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pipeline
import pytest
import yaml

pytest.importorskip("petab", reason="the extra petab is not installed: it needs Python 3.12")

import xarray as xr

import retrograd
from retrograd.weight_formats import parameter_arrays

SHARED = Path(__file__).parents[3] / "shared" / "cases"
CASES = [
    *("petab_v2/0004", "sciml/004", "bench/Boehm_JProteomeRes2014"),
    *(
        pytest.param(case, marks=pytest.mark.exhaustive)
        for case in (
            *(f"petab_v2/{n}" for n in ("0001", "0002", "0009", "0017")),
            *(f"sciml/{n}" for n in ("001", "002", "023", "036")),
        )
    ),
]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there: it holds the cases"),
]


def problem_of(folder: Path) -> Path:
    found = [*folder.glob("petab/problem.yaml"), *folder.glob("_????.yaml"), *folder.glob("Boehm*.yaml")]
    assert len(found) == 1, found
    return found[0]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def expected(folder: Path) -> tuple[float, dict[str, float], list[float]]:
    """Returns a case's llh, its gradient by mechanistic parameters, and its simulations."""
    told: dict[str, Any] = {}
    for name in ("solutions.yaml", "expected.yaml", "amici_gradient.yaml", f"_{folder.name}_solution.yaml"):
        if (folder / name).exists():
            told |= {key: value for key, value in yaml.safe_load((folder / name).read_text()).items() if key != "case"}
    llh = told.get("llh_recomputed", told.get("llh"))
    gradient = told.get("gradient_at_nominal_linear_scale") or told.get("gradient_lin_scale")
    if gradient is None:
        gradient = {row["parameterId"]: float(row["value"]) for row in rows(folder / "grad_mech.tsv")}
    (simulations,) = [*folder.glob("*simulations.tsv"), *folder.glob("expected_simulatedData_*.tsv")]
    assert llh is not None
    return llh, gradient, [float(row["simulation"]) for row in rows(simulations)]


@pytest.mark.parametrize("case", CASES)
def test_a_case_of_the_suites(case: str, tmp_path: Path):
    folder = SHARED / case
    llh, gradient, simulations = expected(folder)
    study = {"study": "case", "model": {"petab": str(problem_of(folder))}, "gradient": {"methods": ["replay"]}}
    (tmp_path / "case.yaml").write_text(yaml.safe_dump(study))
    snakefile = ("--snakefile", pipeline.ROOT / "Snakefile")
    run = pipeline.snakemake(
        pipeline.ROOT, "results/case/precise/fit.nc", *snakefile, "--configfile", "case.yaml", cwd=tmp_path
    )
    assert run.returncode == 0, run.stdout
    fit = retrograd.open_results(tmp_path / "results/case/precise/fit.nc").isel(sample=0).sel({"method": "replay"})
    assert int(fit["verdict"]) == 0
    assert float(fit["llh"]) == pytest.approx(llh, rel=1e-6)
    # Of the real problem the expected simulations have twelve digits, and are of a less exact solve.
    np.testing.assert_allclose(fit["simulation"].values, simulations, rtol=1e-6, atol=1e-9)
    # A relu that a trajectory crosses leaves three digits.
    rtol = 1e-3 if case == "sciml/036" else 1e-6
    assert {str(name) for name in fit["parameter"].values} == set(gradient)
    for name, value in gradient.items():
        found = float(fit["gradient"].sel({"parameter": name}))
        bar = float(fit["gradient_error"].sel({"parameter": name}))
        assert found == pytest.approx(value, rel=rtol, abs=bar), name
    networks = list(folder.glob("grad_net*.hdf5"))
    if networks:
        of_weights(tmp_path / "results/case/model.nc", fit["gradient_network"].values, networks[0], rtol)


def of_weights(model_file: Path, gradient: np.ndarray, wanted: Path, rtol: float) -> None:
    """Checks the gradient by all weights; frozen arrays have none, and are empty in the suite."""
    arrays = {name: a for name, a in parameter_arrays(str(wanted)).items() if a.size}
    start = 0
    with xr.open_datatree(model_file, engine="netcdf4") as model:
        paths = [v.attrs["path"].lstrip(".").replace(".", "/") for v in model["weights"].data_vars.values()]
    for path in filter(arrays.__contains__, paths):
        array = arrays.pop(path)
        found = gradient[start : start + array.size].reshape(array.shape)
        np.testing.assert_allclose(found, array, rtol=rtol, atol=rtol * np.abs(array).max())
        start += array.size
    assert not arrays and start == len(gradient)


def test_from_a_problem_to_an_archive_and_back(tmp_path_factory: pytest.TempPathFactory):
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("problem"))
    shutil.copytree(SHARED / "sciml/036/petab", repository / "mine")
    # The config that the README shows.
    (repository / "mine.yaml").write_text("study: mine\nmodel: {petab: mine/problem.yaml}\nvariants: [recommended]\n")
    run = pipeline.snakemake(repository, "archive", "--configfile", "mine.yaml")
    assert run.returncode == 0, run.stdout
    archive = repository / "results/archives/mine.zip"
    with zipfile.ZipFile(archive) as held:
        names = {name.removeprefix("mine/mine/") for name in held.namelist() if "petab" not in name}
        listed = held.namelist()
    assert any(n.endswith("net6_input1.hdf5") for n in names) and any(n.endswith("lv.xml") for n in names)
    assert any(n.endswith("recommended/fit.nc") for n in listed)
    assert any(n.endswith("recommended/simulations.tsv") for n in listed)
    told = ("--config", f"archive={archive}")
    verified = pipeline.snakemake(repository, "verify", "--configfile", "mine.yaml", *told)
    assert verified.returncode == 0, verified.stdout
    # Elsewhere, and without the problem: the archive holds all of it.
    shutil.rmtree(repository / "mine")
    again = pipeline.snakemake(repository, "reproduce", *told, "trust_plugin=true")
    assert again.returncode == 0, again.stdout
    assert "identical" in again.stdout
