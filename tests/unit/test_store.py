"""Result files: what is written comes back, the same bytes every time, whole or not at all."""

from __future__ import annotations

import ast
import datetime
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cf_units
import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sealing import seal_again

import retrograd
from retrograd import store
from retrograd.errors import RetrogradError
from retrograd.opening import open_results
from retrograd.schema import DYNAMICS, SCHEMAS, STEADY_STATE, Schema
from retrograd.store import Provenance, build, content_digest, content_digest_of, join, read, write

ROOT = Path(__file__).parents[2]
KINDS = sorted(SCHEMAS)
CHUNKED = ("steady_state", "dynamics", "gradients")
LABELLED = ("scenario", "state", "parameter", "selftest", "method", "wrt", "width", "variant", "tolerance")
LABELLED += ("part", "peer", "factor", "measure", "effect", "waterfall", "kind", "quantity", "item", "sample")
# netCDF's texts end at a NUL; lone surrogates have no UTF-8.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
ORIGIN = Provenance(
    {"rtol": 1e-6, "model": {"class": "Tiny"}},
    {"plugin": "a" * 64, "model": "b" * 64},
    "c" * 64,
    {"jax": "0.11.2", "threads": 1},
)
UNITS = {"state": ["1", "1"], "time": "s"}
MIXED = {"state": ["mol m-3", "1"], "time": "min"}


def labels_of(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    out = {d: [f"{d}{i}" for i in range(n)] for d, n in sizes.items() if d in LABELLED}
    return out | {"state_2": out.get("state", [])}


def values_of(schema: Schema, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Returns random values for every variable of a schema; ragged ones agree with their counts."""
    sizes = dict(sizes)
    counts = {}
    for name, var in schema.variables.items():
        if var.sample_dimension:
            counts[name] = rng.integers(0, 4, sizes["scenario"])
            sizes[var.sample_dimension] = int(counts[name].sum())
    out = {}
    for name, var in schema.variables.items():
        shape = tuple(sizes[d] for d in var.dims)
        if var.sample_dimension:
            out[name] = counts[name]
        elif var.flags:
            out[name] = rng.integers(0, len(var.flags), shape)
        elif var.dtype == "str":
            out[name] = np.array([f"name {i}" for i in range(int(np.prod(shape)))], object).reshape(shape)
        elif var.dtype == "float64":
            out[name] = rng.standard_normal(shape) * 10.0 ** rng.integers(-300, 300, shape)
            out[name][rng.random(shape) < 0.2] = np.nan
        else:
            out[name] = rng.integers(0, 2, shape)
    return out


SIZES = {"scenario": 4, "state": 2, "state_2": 2, "parameter": 3, "selftest": 2, "method": 2, "wrt": 3, "width": 4}
SIZES |= {"weight": 5, "variant": 2, "model_time": 3, "tolerance": 2, "peer": 2, "round": 3}
SIZES |= {"part": 2, "factor": 3, "measure": 3, "effect": 4, "waterfall": 2, "kind": 2}
SIZES |= {"quantity": 3, "item": 2, "sample": 2, "measurement": 4}


def dataset(kind: str, *, seed: int = 0, units: Mapping[str, Any] = UNITS, **sizes: int) -> xr.Dataset:
    sizes = SIZES | sizes
    schema = SCHEMAS[kind]
    times = {"model_time": (np.linspace(0, 1, sizes["model_time"]), str(units["time"]), "model time")}
    return build(
        schema,
        values_of(schema, sizes, np.random.Generator(np.random.PCG64(seed))),
        labels_of(sizes),
        units=units,
        coords=times if kind == "dynamics" else None,
    )


def assert_same(found: xr.Dataset, wanted: xr.Dataset) -> None:
    """Asserts that names, dimensions, types, values and attributes of variables are those of another dataset."""
    assert set(found.variables) == set(wanted.variables)
    assert set(found.coords) == set(wanted.coords)
    for name, var in wanted.variables.items():
        other = found.variables[name]
        assert other.dims == var.dims, name
        assert other.shape == var.shape, name
        if var.dtype.kind in "OUST":
            assert [str(v) for v in other.values.ravel()] == [str(v) for v in var.values.ravel()], name
        else:
            assert other.dtype == var.dtype, name
            assert other.values.tobytes() == var.values.tobytes(), name
        assert json.dumps(_plain(other.attrs)) == json.dumps(_plain(var.attrs)), name


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    # netCDF has no attribute of one number that is not a scalar too.
    return {
        str(k): np.ravel(v).tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in sorted(attrs.items())
    }


# -- round trips --------------------------------------------------------------------------------------


@st.composite
def datasets(draw: st.DrawFn, kind: str) -> xr.Dataset:
    """Draws a file of one kind: sizes, labels, values, units."""
    schema = SCHEMAS[kind]
    dims = sorted({d for var in schema.variables.values() for d in var.dims} - {"state_2", "step", "attempt"})
    sizes = {d: draw(st.integers(0 if d in ("scenario", "wrt", "weight", "parameter") else 1, 3)) for d in dims}
    labels = {
        d: draw(st.lists(TEXTS, min_size=sizes[d], max_size=sizes[d], unique=True)) for d in dims if d in LABELLED
    }
    sizes["state_2"] = sizes.get("state", 0)
    labels["state_2"] = labels.get("state", [])
    values = values_of(schema, sizes, np.random.Generator(np.random.PCG64(draw(st.integers(0, 99)))))
    name = draw(st.sampled_from([n for n, v in schema.variables.items() if v.dtype == "float64"]))
    values[name] = draw(hnp.arrays(np.float64, np.shape(values[name]), elements=st.floats(allow_infinity=False)))
    unit = st.sampled_from(["1", "mol m-3", "kg", "µm"])
    units = {
        "state": draw(st.lists(unit, min_size=sizes.get("state", 1), max_size=sizes.get("state", 1))),
        "time": draw(st.sampled_from(["s", "min", "1"])),
    }
    times = np.arange(sizes.get("model_time", 0), dtype=float)
    coords = {"model_time": (times, units["time"], "model time")} if "model_time" in sizes else None
    for array in values.values():
        if np.asarray(array).dtype.kind == "f":
            # The bits of a NaN carry no meaning: ours are all the same.
            array[np.isnan(array)] = np.nan
    return build(schema, values, labels, units=units, coords=coords)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_round_trip(kind: str, data: st.DataObject, tmp_path: Path):
    wanted = data.draw(datasets(kind))
    path = tmp_path / "r.nc"
    write(wanted, path, SCHEMAS[kind], ORIGIN)
    found = read(path, kind)
    assert_same(found, wanted)
    assert content_digest(found) == found.attrs["retrograd_content_sha256"]
    again = tmp_path / "again.nc"
    write(found.drop_attrs(deep=False), again, SCHEMAS[kind], ORIGIN)
    assert again.read_bytes() == path.read_bytes()
    assert_units(path)


def assert_units(path: Path) -> None:
    """Asserts on the raw file what CF wants of every variable."""
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        assert file.data_model == "NETCDF4"
        assert not file.groups
        for name, var in file.variables.items():
            assert var.long_name, name
            if np.dtype(var.dtype if var.dtype is not str else "O").kind == "f":
                if "units" not in var.ncattrs():
                    assert "state" in var.dimensions and "state_units" in file.variables, name
                else:
                    cf_units.Unit(var.units)
            is_index = name in file.dimensions
            is_coordinate = is_index or name == "state_units" or name.endswith("_name")
            if is_coordinate or var.dtype is str or var.dtype.kind == "i":
                assert "_FillValue" not in var.ncattrs(), name
            else:
                assert np.isnan(var.getncattr("_FillValue")), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_contract_says_of_every_file(kind: str, tmp_path: Path):
    path = tmp_path / f"{kind}.nc"
    write(dataset(kind), path, SCHEMAS[kind], ORIGIN, title_of="study tiny")
    assert_units(path)
    schema = SCHEMAS[kind]
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        for dim in file.dimensions:
            if dim in LABELLED:
                assert file[dim].dtype == np.int32
                assert file[dim][:].tolist() == list(range(len(file.dimensions[dim])))
                assert file[f"{dim}_name"].dimensions == (dim,)
                assert list(file[f"{dim}_name"][:]) == [f"{dim}{i}" for i in range(SIZES[dim])]
        for name, var in schema.variables.items():
            assert file[name].dimensions == var.dims
            assert file[name].dtype == np.dtype(var.dtype)
            if var.flags:
                assert file[name].dtype == np.int8
                assert file[name].flag_values.dtype == np.int8
                assert np.ravel(file[name].flag_values).tolist() == list(range(len(var.flags)))
                assert file[name].flag_meanings.split(" ") == list(var.flags)
            assert getattr(file[name], "sample_dimension", "") == var.sample_dimension
        if kind == "dynamics":
            assert file["model_time"].units == "s"
            assert file["step_count"].sample_dimension == "step"
            assert file["attempt_count"].sample_dimension == "attempt"
        attrs = {name: file.getncattr(name) for name in file.ncattrs()}
    assert attrs["Conventions"] == "CF-1.11, ACDD-1.3"
    assert attrs["title"] == f"{schema.title}: study tiny"
    assert attrs["retrograd_schema"] == f"{kind}/{schema.version}"
    assert attrs["retrograd_version"] == retrograd.__version__
    assert attrs["retrograd_code_digest"] == ORIGIN.code_digest
    assert json.loads(attrs["retrograd_config"]) == ORIGIN.config
    assert json.loads(attrs["retrograd_inputs"]) == ORIGIN.inputs
    assert json.loads(attrs["retrograd_environment"]) == ORIGIN.environment
    assert re.fullmatch("[0-9a-f]{64}", attrs["retrograd_content_sha256"])
    assert {"summary", "keywords", "source", "history", "references", "license", "institution"} <= set(attrs)
    assert all(attrs.values())


def test_the_statuses_are_those_of_the_contract():
    """Their order gives their numbers: a change breaks every file that exists."""
    flags = {(kind, name): " ".join(v.flags) for kind in KINDS for name, v in SCHEMAS[kind].variables.items()}
    verdicts = "verified refuted inconclusive nonfinite skipped"
    assert flags["steady_state", "status"] == "converged max_steps_reached nonfinite unstable not_a_root invalid"
    assert flags["steady_state", "method"] == "root integrate"
    assert flags["dynamics", "status"] == "successful max_steps_reached dt_min_reached nonfinite skipped"
    assert flags["gradients", "verdict"] == flags["gradients", "status"] == verdicts
    assert flags["summary", "outcome"] == (
        "verified forward_failed gradient_nonfinite gradient_refuted inconclusive steady_state_failed"
    )


def test_large_arrays_are_compressed_and_come_back(tmp_path: Path):
    wanted = dataset("gradients", scenario=40, weight=2500)
    path = tmp_path / "g.nc"
    write(wanted, path, SCHEMAS["gradients"], ORIGIN)
    assert_same(read(path, "gradients"), wanted)
    with netCDF4.Dataset(path) as file:
        assert file["gradient_network"].filters()["zlib"]
        assert not file["loss"].filters()["zlib"]


# -- build --------------------------------------------------------------------------------------------


def test_build_refuses_unknown_variables():
    with pytest.raises(KeyError, match="speed"):
        build(DYNAMICS, {"speed": [1.0]}, {"scenario": ["s"]})


@pytest.mark.parametrize("kind", KINDS)
def test_build_takes_some_of_the_variables(kind: str):
    for name in SCHEMAS[kind].variables:
        whole = dataset(kind)
        ds = build(SCHEMAS[kind], {name: whole[name].values}, labels_of(SIZES), units=UNITS)
        assert list(ds.data_vars) == [name]
        assert {d for d in LABELLED if d in ds.coords} == set(ds[name].dims) & set(LABELLED)


def test_build_refuses_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="conflicting sizes"):
        build(STEADY_STATE, {"residual_norm": np.zeros(3)}, {"scenario": ["a", "b"]})


def test_build_refuses_another_number_of_dimensions():
    with pytest.raises(ValueError, match="Variable 'x'"):
        build(STEADY_STATE, {"x": np.zeros(3)}, {"scenario": ["a", "b", "c"], "state": ["x"]})


@given(hnp.arrays(np.float64, (3,), elements=st.floats()))
def test_infinite_values_become_nan(values: np.ndarray):
    ds = build(STEADY_STATE, {"residual_norm": values}, {"scenario": ["a", "b", "c"]})
    found = ds["residual_norm"].values
    assert np.array_equal(np.isfinite(values), np.isfinite(found))
    assert np.all(np.isnan(found[~np.isfinite(values)]))
    assert np.array_equal(found[np.isfinite(values)], values[np.isfinite(values)])


def test_build_leaves_the_callers_array_alone():
    values = np.array([1.0, np.inf])
    ds = build(STEADY_STATE, {"residual_norm": values}, {"scenario": ["a", "b"]})
    ds["residual_norm"].values[0] = 5
    assert values.tolist() == [1.0, np.inf]


def test_float32_is_widened_exactly():
    values = np.array([0.1, 1e-30], np.float32)
    ds = build(STEADY_STATE, {"residual_norm": values}, {"scenario": ["a", "b"]})
    assert ds["residual_norm"].dtype == np.float64
    assert ds["residual_norm"].values.tolist() == [float(v) for v in values]


def test_states_of_one_unit():
    ds = dataset("dynamics", units={"state": ["mol m-3", "mol m-3"], "time": "h"})
    assert ds["x"].attrs["units"] == ds["step_x"].attrs["units"] == "mol m-3"
    assert "state_units" not in ds
    assert ds["step_time"].attrs["units"] == ds["model_time"].attrs["units"] == "h"


def test_states_of_several_units(tmp_path: Path):
    path = tmp_path / "d.nc"
    write(dataset("dynamics", units=MIXED), path, DYNAMICS, ORIGIN)
    ds = read(path, "dynamics")
    assert ds.coords["state_units"].dims == ("state",)
    assert ds["state_units"].values.tolist() == ["mol m-3", "1"]
    for name in ("x", "x_start", "step_x"):
        assert "units" not in ds[name].attrs
        assert "state_units" in ds[name].attrs["comment"]
    assert_units(path)


@pytest.mark.parametrize("unit", ["s", "min", "h", "1"])
def test_rates_are_per_unit_of_time(unit: str):
    ds = dataset("steady_state", units={"state": ["1", "1"], "time": unit})
    assert cf_units.Unit(ds["max_real_eigenvalue"].attrs["units"]) == cf_units.Unit(unit) ** -1


def test_dimensions_without_entries(tmp_path: Path):
    path = tmp_path / "g.nc"
    ds = dataset("gradients", wrt=0, weight=0)
    write(ds, path, SCHEMAS["gradients"], ORIGIN)
    found = read(path, "gradients")
    assert found.sizes["wrt"] == 0
    assert store.labels(found, "wrt") == []
    assert_same(found, ds)
    assert open_results(path)["fd"].shape == (SIZES["scenario"], 0)


# -- write: whole or not at all -----------------------------------------------------------------------


def test_a_variable_without_units_or_name_is_refused(tmp_path: Path):
    path = tmp_path / "d.nc"
    ds = dataset("dynamics")
    del ds["step_time"].attrs["units"]
    del ds["num_accepted"].attrs["long_name"]
    with pytest.raises(RetrogradError, match=r"dynamics/\d: no units or no long_name on .*schema\.py") as caught:
        write(ds, path, DYNAMICS, ORIGIN)
    assert "step_time" in str(caught.value) and "num_accepted" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x", "step_time"])
def test_state_units_excuse_no_other_variable(name: str, tmp_path: Path):
    ds = dataset("dynamics", units=MIXED)
    ds[name].attrs.pop("units", None)
    if name == "x":
        write(ds, tmp_path / "d.nc", DYNAMICS, ORIGIN)
    else:
        with pytest.raises(RetrogradError, match=name):
            write(ds, tmp_path / "d.nc", DYNAMICS, ORIGIN)


def broken(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def half_written(self: Any, path: Path, **kwargs: Any) -> None:
    Path(path).write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    broken()


def interrupted(self: Any, path: Path, **kwargs: Any) -> None:
    Path(path).write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    raise KeyboardInterrupt


FAILURES = [
    (xr.Dataset, "to_netcdf", half_written, OSError),
    (xr.Dataset, "to_netcdf", interrupted, KeyboardInterrupt),
    (os, "fsync", broken, OSError),
    (os, "replace", broken, OSError),
]


@pytest.mark.parametrize(("owner", "name", "instead", "error"), FAILURES, ids=["half", "ctrl-c", "fsync", "replace"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_write_leaves_nothing_behind(
    owner: Any, name: str, instead: Any, error: type[BaseException], exists: bool, tmp_path: Path, monkeypatch
):
    path = tmp_path / "d.nc"
    if exists:
        write(dataset("dynamics"), path, DYNAMICS, ORIGIN)
    before = path.read_bytes() if exists else None
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, instead)
        with pytest.raises(error):
            write(dataset("dynamics", seed=1), path, DYNAMICS, ORIGIN)
    assert [p.name for p in tmp_path.iterdir()] == (["d.nc"] if exists else [])
    if exists:
        assert path.read_bytes() == before
    write(dataset("dynamics", seed=1), path, DYNAMICS, ORIGIN)
    assert_same(read(path, "dynamics"), dataset("dynamics", seed=1))


def test_nothing_under_the_name_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "deep" / "er" / "d.nc"
    seen = []
    real = os.replace

    def watched(source: Any, target: Any) -> None:
        seen.append((path.exists(), Path(source).parent == path.parent, Path(source).name.startswith(".")))
        read(source, "dynamics")
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write(dataset("dynamics"), path, DYNAMICS, ORIGIN)
    assert seen == [(False, True, True)]
    assert [p.name for p in path.parent.iterdir()] == ["d.nc"]


def test_the_file_can_be_read_by_colleagues(tmp_path: Path):
    path, plain = tmp_path / "d.nc", tmp_path / "plain"
    write(dataset("dynamics"), path, DYNAMICS, ORIGIN)
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_write_leaves_the_dataset_alone(tmp_path: Path):
    ds = dataset("dynamics")
    before = ds.copy(deep=True)
    write(ds, tmp_path / "d.nc", DYNAMICS, ORIGIN)
    xr.testing.assert_identical(ds, before)


def test_an_open_dataset_does_not_keep_the_file_from_being_replaced(tmp_path: Path):
    path = tmp_path / "d.nc"
    write(dataset("dynamics"), path, DYNAMICS, ORIGIN)
    held = (read(path, "dynamics"), open_results(path))
    write(dataset("dynamics", seed=1), path, DYNAMICS, ORIGIN)
    assert_same(held[0], dataset("dynamics"))
    assert_same(read(path, "dynamics"), dataset("dynamics", seed=1))


# -- the same bytes -----------------------------------------------------------------------------------

ELSEWHERE = """
import sys
sys.path[:0] = sys.argv[3:]
import test_store as t
t.write(t.dataset(sys.argv[2], units=t.MIXED), sys.argv[1], t.SCHEMAS[sys.argv[2]], t.ORIGIN)
"""


@pytest.mark.parametrize("kind", ["dynamics"])
def test_the_same_bytes_in_another_process_at_another_time(kind: str, tmp_path: Path):
    path = tmp_path / "one.nc"
    write(dataset(kind, units=MIXED), path, SCHEMAS[kind], ORIGIN)
    time.sleep(1.1)  # HDF5's own times have whole seconds
    other = tmp_path / "elsewhere" / "two.nc"
    places = [ROOT / "scripts", Path(__file__).parent, Path(__file__).parents[1]]
    command = [sys.executable, "-c", ELSEWHERE, str(other), kind, *map(str, places)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}, cwd=tmp_path, check=True)
    assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_twice(kind: str, tmp_path: Path):
    paths = [tmp_path / "a.nc", tmp_path / "b" / "a.nc"]
    for path in paths:
        write(dataset(kind), path, SCHEMAS[kind], ORIGIN)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    write(dataset(kind, seed=1), paths[1], SCHEMAS[kind], ORIGIN)
    assert paths[0].read_bytes() != paths[1].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_no_place_no_host_no_time(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A name that random bytes do not spell.
    monkeypatch.setattr(socket, "gethostname", lambda: "a-host-of-one's-own")
    path = tmp_path / "file.nc"
    write(dataset(kind), path, SCHEMAS[kind], ORIGIN)
    content = path.read_bytes()
    now = datetime.datetime.now(datetime.UTC)
    for word in (
        str(tmp_path),
        str(ROOT),
        str(Path.home()) + "/",
        sys.prefix,
        "a-host-of-one's-own",
        path.name,
        "/tmp",
    ):
        assert word.encode() not in content, word
    for word in (f"{now:%Y-%m-%d}", f"{now:%Y%m%d}", f"{now:%d %b}", f"{now:%b %d}", f".{os.getpid()}.tmp"):
        assert word.encode() not in content, word
    for pattern in (rb"\d\d:\d\d:\d\d", rb"\d{4}-\d\d-\d\d"):
        assert not re.search(pattern, content), pattern
    os_host = os.uname().nodename.encode()
    if len(os_host) > 3:
        assert os_host not in content


# -- the content's digest -----------------------------------------------------------------------------


def permuted(ds: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """Returns the same content in another order, layout, byte order and encoding."""
    names = [str(n) for n in rng.permutation(list(ds.variables))]
    out = {}
    for name in names:
        var = ds.variables[name]
        values = var.values
        if values.dtype.kind in "fi":
            values = np.asfortranarray(values).astype(values.dtype.newbyteorder(rng.choice(["<", ">"])))
        attrs = dict(reversed(var.attrs.items()))
        out[name] = xr.Variable(var.dims, values, attrs, encoding={"_FillValue": 0, "zlib": True})
    result = xr.Dataset({n: v for n, v in out.items() if n not in ds.coords})
    result = result.assign_coords({n: v for n, v in out.items() if n in ds.coords})
    attrs = {**ds.attrs, "retrograd_environment": "another machine", "retrograd_content_sha256": "0"}
    return result.assign_attrs(dict(reversed(attrs.items())))


def change_value(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    name = draw(st.sampled_from([n for n, v in ds.variables.items() if v.size and v.dtype.kind in "fi"]))
    var = ds.variables[name]
    values = var.values.copy()
    i = draw(st.integers(0, values.size - 1))
    flat = values.reshape(-1)
    if values.dtype.kind == "i":
        flat[i] += 1
    else:
        flat[i] = 0.0 if np.isnan(flat[i]) else draw(st.sampled_from([np.nextafter(flat[i], np.inf), np.nan]))
    return ds.assign({name: (var.dims, values, var.attrs)})


def change_label(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    name = draw(st.sampled_from([n for n, v in ds.variables.items() if v.size and v.dtype.kind in "OUST"]))
    var = ds.variables[name]
    values = np.array(var.values, dtype=object)
    i = draw(st.integers(0, values.size - 1))
    values.flat[i] = draw(TEXTS.filter(lambda text: text != values.flat[i]))
    changed = {name: (var.dims, values, var.attrs)}
    return ds.assign_coords(changed) if name in ds.coords else ds.assign(changed)


def change_attribute(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    name = draw(st.sampled_from(list(ds.variables)))
    ds = ds.copy(deep=True)
    ds.variables[name].attrs[draw(st.sampled_from(["long_name", "units", "comment", "new"]))] = "changed"
    return ds


def change_file_attribute(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    return ds.assign_attrs({draw(st.sampled_from(["title", "retrograd_config", "retrograd_inputs", "x"])): "changed"})


def change_name(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    return ds.rename_vars({draw(st.sampled_from(list(ds.data_vars))): "renamed"})


def change_dimension(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    names = [n for n, v in ds.variables.items() if v.dims]
    var = ds.variables[draw(st.sampled_from(names))]
    dim = draw(st.sampled_from(list(var.dims)))
    return ds.drop_indexes(dim, errors="ignore").rename_dims({dim: "renamed"})


def drop_variable(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    return ds.drop_vars(draw(st.sampled_from(list(ds.data_vars))))


def drop_row(ds: xr.Dataset, draw: Any) -> xr.Dataset:
    dim = draw(st.sampled_from([d for d, n in ds.sizes.items() if n]))
    return ds.isel({dim: slice(0, -1)})


CHANGES = [change_value, change_label, change_attribute, change_file_attribute, change_name, change_dimension]
CHANGES += [drop_variable, drop_row]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_the_digest_changes_iff_the_content_does(change: Any, data: st.DataObject):
    kind = data.draw(st.sampled_from(KINDS))
    ds = dataset(kind, units=MIXED).assign_attrs(title="t", retrograd_config="{}", retrograd_environment="{}")
    digest = content_digest(ds)
    rng = np.random.Generator(np.random.PCG64(data.draw(st.integers(0, 999))))
    assert content_digest(permuted(ds, rng)) == digest
    changed = change(ds, data.draw)
    assume(not changed.identical(ds))
    assert content_digest(changed) != digest
    assert content_digest(permuted(changed, rng)) == content_digest(changed)


def test_the_digest_is_pinned():
    """Files that exist carry it: a change of its definition must be seen, and comes with new schema versions."""
    ds = build(STEADY_STATE, {"residual_norm": [1.0, np.nan], "status": [0, 2]}, {"scenario": ["s1", "µ"]})
    assert content_digest(ds) == "4ce30b1c42628e3a512f4ff07c936a0e34298a7280ab8dd8d20a079e360cb89a"


def test_the_digest_sees_groups():
    leaf = lambda v: xr.Dataset({"a": ("n", np.array([v]), {"units": "1"})})
    trees = [
        xr.DataTree.from_dict({"/": leaf(1.0), "/weights": leaf(2.0)}),
        xr.DataTree.from_dict({"/": leaf(2.0), "/weights": leaf(1.0)}),
        xr.DataTree.from_dict({"/": leaf(1.0), "/other": leaf(2.0)}),
        xr.DataTree.from_dict({"/": leaf(1.0)}),
    ]
    digests = [content_digest(tree) for tree in trees]
    assert len(set(digests)) == len(trees)
    assert content_digest(leaf(1.0)) == digests[3]


def test_the_environment_changes_the_file_but_not_the_digest(tmp_path: Path):
    paths = [tmp_path / "a.nc", tmp_path / "b.nc", tmp_path / "c.nc"]
    origins = [
        ORIGIN,
        Provenance(ORIGIN.config, ORIGIN.inputs, ORIGIN.code_digest, {"jax": "9"}),
        Provenance({"rtol": 1e-7}, ORIGIN.inputs, ORIGIN.code_digest, ORIGIN.environment),
    ]
    for path, origin in zip(paths, origins, strict=True):
        write(dataset("dynamics"), path, DYNAMICS, origin)
    digests = [read(path, "dynamics").attrs["retrograd_content_sha256"] for path in paths]
    assert digests[0] == digests[1] != digests[2]
    assert paths[0].read_bytes() != paths[1].read_bytes()


# -- read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0, 1, 8, 0.1, 0.5, 0.9, -1])
def test_a_truncated_file(kind: str, part: float, tmp_path: Path):
    path = tmp_path / "file.nc"
    write(dataset(kind), path, SCHEMAS[kind], ORIGIN)
    content = path.read_bytes()
    path.write_bytes(content[: part if isinstance(part, int) else int(part * len(content))])
    assert_refused(path, kind, "cannot be read")


def assert_refused(path: Path, kind: str, text: str) -> None:
    rule = SCHEMAS[kind].rule
    with pytest.raises(RetrogradError, match=text) as caught:
        read(path, kind)
    assert str(path) in str(caught.value)
    assert f"Rule {rule} makes it: `snakemake --cores 1 --forcerun {path}`" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_file(kind: str, tmp_path: Path):
    assert_refused(tmp_path / "none.nc", kind, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"not a netCDF file\n" * 100, b"CDF\x01 and no more", bytes(range(256)) * 40])
def test_a_foreign_file(content: bytes, tmp_path: Path):
    path = tmp_path / "file.nc"
    path.write_bytes(content)
    assert_refused(path, "dynamics", "cannot be read")


def test_somebody_elses_netcdf(tmp_path: Path):
    path = tmp_path / "file.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.title = "ocean"
    assert_refused(path, "dynamics", "does not end with the sha256 of its bytes")
    seal_again(path)
    assert_refused(path, "dynamics", "has schema None, wanted 'dynamics/1'")


@pytest.mark.parametrize("other", ["dynamics/0", "dynamics/2", "dynamics", "steady_state/1", ""])
def test_another_schema(other: str, tmp_path: Path):
    path = tmp_path / "file.nc"
    write(dataset("dynamics"), path, DYNAMICS, ORIGIN)
    with netCDF4.Dataset(path, "r+") as file:
        file.retrograd_schema = other
    seal_again(path)
    assert_refused(path, "dynamics", f"has schema {other!r}, wanted 'dynamics/1'")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_stage(kind: str, tmp_path: Path):
    path = tmp_path / "file.nc"
    write(dataset(kind), path, SCHEMAS[kind], ORIGIN)
    for other in KINDS:
        if other != kind:
            assert_refused(path, other, f"has schema '{kind}/1', wanted '{other}/1'")


def test_a_folder(tmp_path: Path):
    assert_refused(tmp_path, "dynamics", "cannot be read")


def test_helpers(tmp_path: Path):
    path = tmp_path / "file.nc"
    write(dataset("dynamics"), path, DYNAMICS, ORIGIN)
    ds = read(path, "dynamics")
    assert store.config_of(ds) == ORIGIN.config
    assert store.labels(ds, "scenario") == ["scenario0", "scenario1", "scenario2", "scenario3"]
    offsets = store.ragged(ds, "step_count")
    assert offsets[0] == 0 and offsets[-1] == ds.sizes["step"]
    assert np.array_equal(np.diff(offsets), ds["step_count"].values)


# -- open_results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_open_results_selects_by_label(kind: str, tmp_path: Path):
    path = tmp_path / "file.nc"
    wanted = dataset(kind)
    write(wanted, path, SCHEMAS[kind], ORIGIN)
    ds = retrograd.open_results(path)
    for dim in set(ds.dims) & set(LABELLED):
        assert f"{dim}_name" not in ds
        for i in range(SIZES[dim]):
            assert ds.sel({dim: f"{dim}{i}"}).drop_vars(dim).equals(ds.isel({dim: i}).drop_vars(dim))
        with pytest.raises(KeyError):
            ds.sel({dim: "nobody"})
    for name in wanted.data_vars:
        assert np.array_equal(ds[name].values, wanted[name].values, equal_nan=wanted[name].dtype.kind == "f")
    assert ds.attrs["retrograd_schema"] == SCHEMAS[kind].tag


def test_open_results_with_labels_of_any_text(tmp_path: Path):
    path = tmp_path / "file.nc"
    names = ["1", "µ ü", "a/b", " ", "nan", "日本"]
    values = np.arange(6.0)
    write(build(STEADY_STATE, {"residual_norm": values}, {"scenario": names}), path, STEADY_STATE, ORIGIN)
    ds = open_results(str(path))
    assert [float(ds["residual_norm"].sel(scenario=name)) for name in names] == values.tolist()


def test_open_results_selects_by_time(tmp_path: Path):
    path = tmp_path / "file.nc"
    write(dataset("dynamics"), path, DYNAMICS, ORIGIN)
    ds = open_results(path)
    assert ds["x"].sel(model_time=0.5, state="state1").shape == (4,)
    assert ds["model_time"].dtype == np.float64


# -- chunks -------------------------------------------------------------------------------------------


def chunk(ds: xr.Dataset, start: int, stop: int) -> xr.Dataset:
    """Returns some scenarios of a file as a chunk's job builds them: indexes from 0, ragged arrays cut."""
    schema = SCHEMAS["dynamics" if "step" in ds.dims else "gradients" if "ad" in ds else "steady_state"]
    cut = {"scenario": slice(start, stop)}
    for dim in ("step", "attempt"):
        if dim in ds.dims:
            offsets = store.ragged(ds, f"{dim}_count")
            cut[dim] = slice(int(offsets[start]), int(offsets[stop]))
    part = ds.isel(cut)
    names = {d: store.labels(part, d) for d in map(str, part.dims) if f"{d}_name" in part.coords}
    coords = {"model_time": (ds["model_time"].values, MIXED["time"], "model time")} if "model_time" in ds else None
    return build(schema, {str(n): part[n].values for n in part.data_vars}, names, units=MIXED, coords=coords)


@pytest.mark.parametrize("kind", CHUNKED)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_chunks_make_the_whole(kind: str, data: st.DataObject, tmp_path: Path):
    total = data.draw(st.integers(1, 7))
    edges = data.draw(st.lists(st.integers(0, total), max_size=3))
    whole = dataset(kind, seed=data.draw(st.integers(0, 99)), units=MIXED, scenario=total)
    bounds = [0, *sorted(edges), total]
    parts = []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        path = tmp_path / f"part{i}.nc"
        write(chunk(whole, start, stop), path, SCHEMAS[kind], ORIGIN, title_of=f"part {i}")
        parts.append(path)
    paths = [tmp_path / "whole.nc", tmp_path / "joined.nc"]
    write(whole, paths[0], SCHEMAS[kind], ORIGIN, title_of="all")
    join(parts, paths[1], kind, ORIGIN, title_of="all")
    assert_same(read(paths[1], kind), whole)
    one, other = (read(path, kind) for path in paths)
    assert list(one.attrs.items()) == list(other.attrs.items())
    assert content_digest_of(paths[1]) == one.attrs["retrograd_content_sha256"]
    with netCDF4.Dataset(paths[0]) as one, netCDF4.Dataset(paths[1]) as other:
        assert {n: v.__dict__.keys() for n, v in one.variables.items()} == {
            n: v.__dict__.keys() for n, v in other.variables.items()
        }
        assert {n: v.filters() for n, v in one.variables.items()} == {
            n: v.filters() for n, v in other.variables.items()
        }


def test_large_chunks_are_joined_compressed_and_digested_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = dataset("steady_state", units=MIXED, scenario=70_000)
    parts = [tmp_path / f"{i}.nc" for i in range(3)]
    for part, (start, stop) in zip(parts, [(0, 30_000), (30_000, 30_001), (30_001, 70_000)], strict=True):
        write(chunk(whole, start, stop), part, STEADY_STATE, ORIGIN)
    write(whole, tmp_path / "whole.nc", STEADY_STATE, ORIGIN)
    monkeypatch.setattr(store, "_PIECE", 10_000)
    join(parts, tmp_path / "joined.nc", "steady_state", ORIGIN)
    assert_same(read(tmp_path / "joined.nc", "steady_state"), whole)
    digests = {content_digest_of(tmp_path / f"{name}.nc") for name in ("whole", "joined")}
    assert digests == {read(tmp_path / "joined.nc", "steady_state").attrs["retrograd_content_sha256"]}
    with netCDF4.Dataset(tmp_path / "joined.nc") as file:
        assert file["x"].filters()["zlib"]


def joined(tmp_path: Path, kind: str, *parts: xr.Dataset) -> None:
    """Writes chunks and joins them."""
    paths = [tmp_path / f"{i}.nc" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        write(part, path, SCHEMAS[kind], ORIGIN)
    join(paths, tmp_path / "joined.nc", kind, ORIGIN)


def test_chunks_of_different_studies_are_refused(tmp_path: Path):
    first = dataset("dynamics", units=MIXED)
    other = first.assign_coords(model_time=first["model_time"] * 2)
    with pytest.raises(RetrogradError, match="chunks disagree in model_time"):
        joined(tmp_path, "dynamics", first, other)
    fewer = first.drop_vars("num_rejected")
    for parts in ([first, fewer], [fewer, first]):
        with pytest.raises(RetrogradError, match="chunks differ in their variables"):
            joined(tmp_path, "dynamics", *parts)
    assert not (tmp_path / "joined.nc").exists()


def test_chunks_of_different_states_are_refused(tmp_path: Path):
    first = dataset("steady_state")
    names = first["state_name"].copy(data=["other", "names"])
    with pytest.raises(RetrogradError, match="chunks disagree in state_name"):
        joined(tmp_path, "steady_state", first, first.assign_coords(state_name=names))


# -- one writer ---------------------------------------------------------------------------------------


def calls_of(path: Path, name: str) -> list[ast.Call]:
    """Returns the calls of a method of that name in a file."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    return [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == name]


def test_nothing_else_writes_netcdf():
    writers = {"to_netcdf", "to_zarr", "save_mfdataset", "to_pickle"}
    found = []
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            name = getattr(node, "attr", getattr(node, "id", ""))
            if name in writers:
                found.append((path.name, name))
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                libraries = {n.partition(".")[0] for n in names} & {"netCDF4", "h5netcdf", "h5py"}
                # Weights come in HDF5 files, which are opened for reading alone.
                reads = libraries == {"h5py"} and path.name == "weight_formats.py"
                assert not libraries or path.name == "store.py" or reads, path
        if path.name == "weight_formats.py":
            modes = [n.args[1:] for n in calls_of(path, "File")]
            assert modes and all([ast.literal_eval(a) for a in args] == ["r"] for args in modes)
    assert set(found) == {("store.py", "to_netcdf")}
    for path in [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:
        assert "to_netcdf" not in path.read_text(), path


def test_copies_of_a_file_stay_readable(tmp_path: Path):
    """As an archive is unpacked elsewhere."""
    path, other = tmp_path / "a.nc", tmp_path / "other" / "name.nc"
    write(dataset("summary"), path, SCHEMAS["summary"], ORIGIN)
    other.parent.mkdir()
    shutil.move(path, other)
    assert_same(read(other, "summary"), dataset("summary"))
