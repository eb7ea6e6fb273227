"""The whole DAG on a tiny study: what the contract says about commands, exit codes and files."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pipeline
import pytest

import retrograd

pytestmark = pytest.mark.e2e

STAGES = ("steady_state", "dynamics", "gradients")

FLAGS = {
    ("steady_state", "status"): "converged max_steps_reached nonfinite unstable not_a_root invalid",
    ("steady_state", "method"): "root integrate",
    ("dynamics", "status"): "successful max_steps_reached dt_min_reached nonfinite skipped",
    ("gradients", "verdict"): "verified refuted inconclusive nonfinite skipped",
    ("gradients", "status"): "verified refuted inconclusive nonfinite skipped",
    ("summary", "outcome"): (
        "verified forward_failed gradient_nonfinite gradient_refuted inconclusive steady_state_failed"
    ),
}

DIMENSIONS = {
    "steady_state": {
        "x": ("scenario", "state"),
        **dict.fromkeys(("residual_norm", "status", "method", "iterations", "max_real_eigenvalue"), ("scenario",)),
    },
    "dynamics": {
        "x": ("scenario", "model_time", "state"),
        "model_time": ("model_time",),
        "step_x": ("step", "state"),
        "step_time": ("step",),
        **dict.fromkeys(("status", "num_accepted", "num_rejected", "step_count", "attempt_count"), ("scenario",)),
        **{f"attempt_{name}": ("attempt",) for name in ("start", "end", "accepted", "error", "finite")},
    },
    "gradients": {
        "wrt_name": ("wrt",),
        "loss": ("scenario",),
        "ad": ("scenario", "method", "wrt"),
        **dict.fromkeys(("fd", "fd_error", "fd_step"), ("scenario", "wrt")),
        "verdict": ("scenario", "method", "wrt"),
        "gradient_network": ("scenario", "method", "weight"),
        "status": ("scenario", "method"),
    },
    "summary": dict.fromkeys(("outcome", "cause", "cause_time", "cause_state", "cause_term"), ("variant", "scenario")),
}


def result(repository: Path, kind: str) -> Path:
    """Returns the file of a kind of results of the tiny study."""
    return repository / "results/tiny" / (f"own/{kind}.nc" if kind in STAGES else f"{kind}.nc")


def written(repository: Path) -> dict[str, bytes]:
    """Returns the contents of every netCDF file and of the report, by path below results/tiny."""
    folder = repository / "results/tiny"
    files = [*folder.rglob("*.nc"), *(folder / "report").iterdir()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def trajectory(k, k_steady, weight, bias, times):
    """Returns the closed-form solution from the steady state, shape (time, 2); complex arguments are fine."""
    start = k_steady["inflow"]
    slow, fast, inflow = k["slow"], k["fast"], k["inflow"]
    temperature = inflow + (start - inflow) * np.exp(-slow * times)
    forced = weight * (start - inflow) * fast / (fast - slow)
    rest = weight * start + bias - (weight * inflow + bias) - forced
    a = weight * inflow + bias + forced * np.exp(-slow * times) + rest * np.exp(-fast * times)
    return np.stack([a, temperature], axis=1)


def phases() -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Returns the parameters of the dynamic and of the steady phase of every scenario."""
    found = {}
    for line in pipeline.SCENARIOS.splitlines()[2:]:
        name, *cells = line.split("\t")
        fast, slow, inflow, steady = map(float, cells)
        found[name] = {"fast": fast, "slow": slow, "inflow": inflow}, {"fast": fast, "slow": slow, "inflow": steady}
    return found


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do(finished_run):
    before = written(finished_run)
    run = pipeline.snakemake(finished_run, "--configfile", "tiny.yaml")
    assert run.returncode == 0, run.stdout
    assert "Nothing to be done" in run.stdout
    assert written(finished_run) == before


def loss(k, k_steady, weight: complex = pipeline.WEIGHT, bias: complex = pipeline.BIAS) -> Any:
    """Returns the closed-form loss; complex arguments are fine."""
    x = trajectory(k, k_steady, weight, bias, np.array(pipeline.TIMES))
    return np.sum(x[:, 0] ** 2) + np.sum(((x[:, 1] - 300) / 10) ** 2)


def exact_gradient(k, k_steady) -> dict[str, float]:
    """Returns the derivatives of the closed-form loss, to rounding: imaginary parts after a tiny imaginary step."""
    step = 1e-30j
    values = {f"{p}@dynamic": loss({**k, p: k[p] + step}, k_steady) for p in k}
    values |= {f"{p}@steady": loss(k, {**k_steady, p: k_steady[p] + step}) for p in k}
    values["weight"] = loss(k, k_steady, weight=pipeline.WEIGHT + step)
    values["bias"] = loss(k, k_steady, bias=pipeline.BIAS + step)
    return {name: value.imag / step.imag for name, value in values.items()}


def test_trajectories_and_gradients_are_those_of_the_closed_form(finished_run):
    dynamics = retrograd.open_results(result(finished_run, "dynamics"))
    gradients = retrograd.open_results(result(finished_run, "gradients"))
    for name, (k, k_steady) in phases().items():
        x = trajectory(k, k_steady, pipeline.WEIGHT, pipeline.BIAS, np.array(pipeline.TIMES))
        np.testing.assert_allclose(dynamics.x.sel(scenario=name), x, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradients.loss.sel(scenario=name), loss(k, k_steady), rtol=1e-4)
        exact = exact_gradient(k, k_steady)
        found = gradients.sel({"scenario": name, "method": "replay"})
        np.testing.assert_allclose(found.gradient_network, [exact.pop("weight"), exact.pop("bias")], rtol=1e-4)
        assert set(gradients.wrt.values) == {*exact, "network[0]"}
        # Some derivatives are next to nothing: what they do to the loss is compared with the largest effect.
        size = {w: abs((k if w.endswith("@dynamic") else k_steady)[w.partition("@")[0]]) for w in exact}
        largest = max(abs(exact[w]) * size[w] for w in exact)
        for w, value in exact.items():
            difference = abs(float(found.ad.sel(wrt=w)) - value)
            assert difference <= max(1e-4 * abs(value), 1e-5 * largest / size[w]), (name, w)
    assert np.all(gradients.verdict == 0) and np.all(gradients.status == 0)


@pytest.mark.parametrize("kind", list(DIMENSIONS))
def test_a_file_holds_what_the_contract_names(finished_run, kind):
    with netCDF4.Dataset(result(finished_run, kind)) as ds:
        assert ds.data_model == "NETCDF4" and not ds.groups
        for name, dimensions in DIMENSIONS[kind].items():
            assert ds[name].dimensions == dimensions, name
        for (of, name), meanings in FLAGS.items():
            if of == kind:
                assert ds[name].dtype == np.int8, name
                assert ds[name].flag_meanings == meanings, name
                assert list(np.atleast_1d(ds[name].flag_values)) == list(range(len(meanings.split()))), name
        for dimension in ds.dimensions:
            if f"{dimension}_name" in ds.variables:
                assert ds[dimension].dtype == np.int32, dimension
                assert "_FillValue" not in ds[dimension].ncattrs(), dimension
        for name, variable in ds.variables.items():
            if variable.dtype is not str and variable.dtype.kind == "f":
                assert not np.any(np.isinf(np.ma.getdata(variable[:]))), name


@pytest.mark.parametrize("kind", ["model", *DIMENSIONS])
def test_a_file_says_where_it_comes_from(finished_run, kind):
    path = result(finished_run, kind)
    with netCDF4.Dataset(path) as ds:
        assert ds.Conventions == "CF-1.11, ACDD-1.3"
        assert re.fullmatch(rf"{kind}/\d+", ds.retrograd_schema)
        assert ds.retrograd_version == retrograd.__version__
        config = json.loads(ds.retrograd_config)
        assert ds.retrograd_config == json.dumps(config, sort_keys=True, separators=(",", ":"))
        inputs = json.loads(ds.retrograd_inputs)
        environment = json.loads(ds.retrograd_environment)
        for digest in (*inputs.values(), ds.retrograd_content_sha256, ds.retrograd_code_digest):
            assert re.fullmatch("[0-9a-f]{64}", digest)
    packages = {"jax", "jaxlib", "diffrax", "equinox", "optimistix", "lineax", "numpy"}
    assert packages | {"python", "precision", "platform", "machine", "threads"} <= set(environment)
    content = path.read_bytes()
    for folder in (finished_run, pipeline.ROOT, Path(sys.prefix)):
        assert str(folder).encode() not in content
    if kind in ("model", "dynamics"):
        assert {"plugin", "weights" if kind == "model" else "scenarios"} <= set(inputs)


def test_steps_and_attempts_are_ragged_arrays_that_agree(finished_run):
    with netCDF4.Dataset(result(finished_run, "dynamics")) as ds:
        assert ds["step_count"].sample_dimension == "step"
        assert ds["attempt_count"].sample_dimension == "attempt"
        assert ds["model_time"].units == "min"
        steps, attempts = ds["step_count"][:], ds["attempt_count"][:]
        assert np.array_equal(steps, ds["num_accepted"][:])
        assert np.array_equal(attempts, ds["num_accepted"][:] + ds["num_rejected"][:])
        accepted = ds["attempt_accepted"][:] == 1
        assert np.array_equal(ds["attempt_end"][:][accepted], ds["step_time"][:])
        ends = np.cumsum(steps)
        for i, (first, last) in enumerate(zip(ends - steps, ends, strict=True)):
            times, x = ds["step_time"][first:last], ds["step_x"][first:last]
            assert times[0] > 0 and np.all(np.diff(times) > 0)
            at = np.flatnonzero(np.isin(times, pipeline.TIMES))
            assert np.array_equal(times[at], pipeline.TIMES), "a save time is no end of a step"
            assert np.array_equal(x[at], ds["x"][i])


def test_open_results_is_indexed_by_labels(finished_run):
    for kind in DIMENSIONS:
        ds = retrograd.open_results(str(result(finished_run, kind)))
        assert list(ds.scenario.values) == list(phases())
        assert "scenario" not in ds.sel(scenario="very stiff").dims
    assert float(retrograd.open_results(result(finished_run, "dynamics")).x.sel(state="T").min()) > 280


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() == "aarch64", reason="the lock has no compliance-checker for aarch64")
def test_every_netcdf_file_is_cf_compliant(finished_run, tmp_path):
    files = sorted((finished_run / "results/tiny").rglob("*.nc"))
    assert len(files) == 11  # the model, 2 chunks and 1 result file a stage, the summary
    checker = [Path(sys.executable).with_name("compliance-checker"), "--test=cf:1.11", "--criteria=strict"]
    command = [*checker, "--format=json_new", f"--output={tmp_path}/found.json", *map(str, files)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(files), run.stderr
    messages = {
        f"{file}: {check['name']}": check["msgs"]
        for file, tests in found.items()
        for level in ("high_priorities", "medium_priorities", "low_priorities")
        for check in tests["cf:1.11"][level]
        if check["msgs"]
    }
    assert not messages
    assert run.returncode == 0, run.stdout


def test_the_report_stands_alone(finished_run):
    folder = finished_run / "results/tiny/report"
    page = (folder / "index.html").read_text()
    outside = re.findall(r'(?:src|href)="((?:https?:)?//[^"]*)"', page)
    assert not [link for link in outside if f'src="{link}"' in page]
    assert not re.search(r"<link[^>]+href=\"(?!data:|#)", page)
    assert str(finished_run) not in page
    for link in re.findall(r'(?:src|href)="([^"#:]+)"', page):
        assert (folder / link).is_file(), link
    assert len(list(folder.glob("*.svg"))) == len(list(folder.glob("*.png"))) > 0


@pytest.mark.slow
def test_another_folder_user_and_number_of_cores_give_the_same_bytes(finished_run, tmp_path):
    repository = pipeline.copy_repository(tmp_path / "else where")
    work = tmp_path / "wörk"
    config = pipeline.write_study(work)
    # Nothing but the study is in the working directory: the workflow lies elsewhere. The last `--cores` counts.
    for cores in ("8", "2"):
        run = pipeline.snakemake(
            repository,
            *("--snakefile", repository / "Snakefile", "--directory", work, "--cores", cores, "--forceall"),
            *("--configfile", config),
            cwd=tmp_path,
            surroundings=pipeline.somebody(tmp_path),
            umask=0o077,
        )
        assert run.returncode == 0, run.stdout
        assert results_in(repository) == []
        first, second = written(finished_run), written(work)
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == [], cores


@pytest.fixture(scope="module")
def failing_run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The tiny study backwards, two scenarios that fail in it, one chunk, strict, its plug-in elsewhere."""
    folder = tmp_path_factory.mktemp("failing")
    repository = pipeline.copy_repository(folder / "repository")
    config = pipeline.write_study(repository)
    plugin = folder / "outside" / "tiny.py"
    plugin.parent.mkdir()
    (repository / "models/tiny.py").rename(plugin)
    rows = [line.split("\t") for line in pipeline.SCENARIOS.splitlines()[1:]]
    table = [[*row, "slow@dynamic" if row[0] == "scenario" else row[2]] for row in rows]
    table.insert(2, ["no start", "2.0", "0.5", "310.0", "-1.0", "0.5"])
    table.insert(1, ["blows up", "2.0", "0.5", "310.0", "300.0", "-2.0e3"])
    (repository / "tiny.tsv").write_text("".join("\t".join(row) + "\n" for row in (table[0], *table[:0:-1])))
    text = config.read_text().replace("chunk_size: 2", "chunk_size: 64").replace("strict: false", "strict: true")
    config.write_text(text.replace("models/tiny.py", str(plugin)))
    return repository, pipeline.snakemake(repository, "--configfile", config.name)


@pytest.mark.slow
def test_strict_fails_after_the_report_and_names_the_scenarios(failing_run):
    repository, run = failing_run
    assert (repository / "results/tiny/report/index.html").is_file(), run.stdout
    assert run.returncode == 1
    (line,) = [line for line in run.stdout.splitlines() if "of 5:" in line and "own" in line]
    assert "no start" in line and "blows up" in line
    assert not any(name in line for name in phases())


@pytest.mark.slow
def test_failing_scenarios_stay_in_every_file_with_a_status(failing_run):
    repository, run = failing_run
    assert result(repository, "summary").is_file(), run.stdout
    data = {kind: retrograd.open_results(result(repository, kind)) for kind in DIMENSIONS}
    for ds in data.values():
        assert list(ds.scenario.values) == ["very stiff", "stiff", "no start", "mild", "blows up"]
    status = {kind: [int(v) for v in np.ravel(data[kind].status)] for kind in STAGES}
    assert [s != 0 for s in status["steady_state"]] == [False, False, True, False, False]
    assert [s != 0 for s in status["dynamics"]] == [False, False, True, False, True]
    assert status["dynamics"][2] == 4  # skipped
    assert status["gradients"] == [0, 0, 4, 0, 4]
    # forward_failed, steady_state_failed
    assert [int(v) for v in np.ravel(data["summary"].outcome)] == [0, 0, 5, 0, 1]
    lost = data["gradients"].sel(scenario=["blows up", "no start"])
    for name in ("loss", "ad", "fd", "fd_error", "fd_step", "gradient_network"):
        assert np.all(np.isnan(lost[name])), name
    assert np.all(np.isnan(data["dynamics"].x.sel(scenario="no start")))


@pytest.mark.slow
def test_neither_chunks_nor_order_nor_failing_neighbours_change_a_bit(finished_run, failing_run):
    repository, run = failing_run
    assert result(repository, "summary").is_file(), run.stdout
    compared = 0
    for kind in STAGES:
        apart, together = (retrograd.open_results(result(r, kind)) for r in (finished_run, repository))
        for name, variable in apart.data_vars.items():
            if "scenario" in variable.dims:
                for scenario in phases():
                    one, other = (ds[name].sel(scenario=scenario).values for ds in (apart, together))
                    # Texts are as wide as the longest of their file.
                    same = one == other if one.dtype.kind == "U" else one.tobytes() == other.tobytes()
                    assert np.all(same), (kind, name, scenario)
                    compared += 1
    for count, along in (("step_count", "step"), ("attempt_count", "attempt")):
        apart, together = (retrograd.open_results(result(r, "dynamics")) for r in (finished_run, repository))
        for name, variable in apart.data_vars.items():
            if along in variable.dims:
                for scenario in phases():
                    one, other = (piece(ds, name, count, scenario) for ds in (apart, together))
                    assert one.tobytes() == other.tobytes(), (name, scenario)
                    compared += 1
    assert compared > 60


def piece(ds, name, count, scenario):
    """Returns one scenario's values of a ragged variable."""
    ends = np.cumsum(ds[count].values)
    i = list(ds.scenario.values).index(scenario)
    return ds[name].values[ends[i] - ds[count].values[i] : ends[i]]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A copy of the repository with the tiny study, not run."""
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("fresh"))
    pipeline.write_study(repository)
    return repository


def results_in(repository: Path) -> list[str]:
    """Returns what is under results/, the repository's own README aside."""
    return sorted(path.name for path in (repository / "results").glob("*") if path.name != "README.md")


def test_a_bad_config_gives_one_message_and_writes_nothing(fresh):
    text = pipeline.CONFIG.replace("chunk_size: 2", "chunk_sise: 2").replace("directions: 1", "directions: many")
    text = text.replace("scenarios: tiny.tsv", "scenarios: bad.tsv").replace("[0.5, 1.0, 4.0]", "[1.0, 0.5, 4.0]")
    (fresh / "bad.yaml").write_text(text.replace("variants: [own]", "variants: [own, recomended]"))
    rows = pipeline.SCENARIOS.splitlines()
    (fresh / "bad.tsv").write_text("\n".join([*rows, rows[-1].replace("0.7", "inf")]) + "\n")
    run = pipeline.snakemake(fresh, "--configfile", "bad.yaml")
    assert run.returncode != 0
    message = run.stdout
    assert message.count("The study cannot run") == 1
    for word in ("chunk_sise", "chunk_size", "gradient.directions", "'many'", "save_times", "recomended"):
        assert word in message
    for word in ("'recommended'", "very stiff", "inf"):
        assert word in message
    assert "Traceback" not in message
    assert results_in(fresh) == []


def test_lint_is_clean(fresh):
    run = pipeline.snakemake(fresh, "--lint", "--configfile", "tiny.yaml")
    assert run.returncode == 0 and "Congratulations" in run.stdout, run.stdout


def test_a_dry_run_imports_neither_jax_nor_the_plugin(fresh, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'jax', 'jaxlib', 'equinox', 'diffrax', 'xarray', 'matplotlib'}:\n"
        "            raise RuntimeError(f'a parse of the Snakefile imports {name}')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    run = pipeline.snakemake(fresh, "--dry-run", "--configfile", "tiny.yaml", pythonpath=tmp_path)
    assert run.returncode == 0, run.stdout
    assert results_in(fresh) == []
    # The trap itself works.
    command = [sys.executable, "-c", "import jax"]
    trapped = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "a parse of the Snakefile" in trapped.stderr


@pytest.mark.slow
def test_snakemakes_own_report(finished_run, tmp_path):
    target = tmp_path / "report.zip"
    run = pipeline.snakemake(finished_run, "--configfile", "tiny.yaml", "--report", target)
    assert run.returncode == 0, run.stdout
    with zipfile.ZipFile(target) as packed:
        inside = {Path(name).name: packed.read(name) for name in packed.namelist()}
    # Our page as it stands, and each figure.
    page = (finished_run / "results/tiny/report/index.html").read_bytes()
    assert page in inside.values()
    assert len([name for name in inside if name.endswith(".svg")]) >= 10
