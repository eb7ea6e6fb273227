"""Files that are whole: what is left of a killed writer, a full disk, and bytes that are no longer those written."""

import os
import random
import subprocess
import sys
from pathlib import Path

import netCDF4
import pytest
import xarray as xr
from sealing import flip

import retrograd
from retrograd import store
from retrograd.errors import RetrogradError
from retrograd.schema import TIMINGS
from retrograd.store import Provenance, build, read, write
from retrograd.whole import seal_holds, whole

SCRIPTS = Path(store.__file__).parents[1]
SAID = Provenance({"study": "s", "variant": "v"}, {"model": "m" * 64})


def timings(path: Path, provenance: Provenance = SAID) -> Path:
    write(build(TIMINGS, {"seconds": [1.5, 2.5]}, {"part": ["solve", "replay"]}), path, TIMINGS, provenance)
    return path


def test_a_seal_holds_until_a_byte_changes(tmp_path: Path):
    path = timings(tmp_path / "t.nc")
    assert seal_holds(path) is True
    size = path.stat().st_size
    for bit in (0, 4 * size, 8 * (size - 90), 8 * (size - 20)):
        flip(path, bit)
        assert seal_holds(path) is False
        flip(path, bit)
    content = path.read_bytes()
    path.write_bytes(content + b"\n")
    assert seal_holds(path) is None
    path.write_bytes(content[:-1])
    assert seal_holds(path) is None


def test_nothing_is_opened_before_its_bytes_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Names and numbers of dimensions have no checksum in the format, and of some flips netCDF4 does not come back."""
    path = timings(tmp_path / "t.nc")
    size, chosen = path.stat().st_size, random.Random(0)
    read(path, "timings")
    monkeypatch.setattr(xr, "open_dataset", lambda *a, **k: pytest.fail("the file was opened"))
    for bit in chosen.sample(range(8 * size), 300):
        flip(path, bit)
        with pytest.raises(RetrogradError, match="cannot be read") as caught:
            read(path, "timings")
        assert f"`snakemake --cores 1 --forcerun {path}`" in str(caught.value)
        flip(path, bit)
    content = path.read_bytes()
    for length in (0, 10, size // 2, size - 83, size - 1):
        path.write_bytes(content[:length])
        with pytest.raises(RetrogradError, match="does not end with the sha256 of its bytes, so it was cut short"):
            read(path, "timings")


def test_somebody_elses_changes_are_read_where_they_may_be(tmp_path: Path):
    path = timings(tmp_path / "t.nc")
    with netCDF4.Dataset(path, "r+") as file:
        file["seconds"][0] = 7.0
    with pytest.raises(RetrogradError, match="changed by another program"):
        read(path, "timings")
    assert read(path, "timings", foreign=True)["seconds"].values[0] == 7.0
    flip(timings(path), 9)
    with pytest.raises(RetrogradError, match="its bytes are not those that were written"):
        read(path, "timings", foreign=True)
    with pytest.raises(RetrogradError, match=r"t\.nc was damaged or changed"):
        retrograd.open_results(path)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("results/s/chunks/dynamics/0123/0.nc", "dynamics_chunk"),
        ("results/s/timings/gradients/0123/0.nc", "gradients_chunk"),
        ("results/s/v/dynamics.nc", "dynamics"),
    ],
)
def test_the_rule_that_makes_a_file_is_named(path: str, rule: str):
    with pytest.raises(RetrogradError, match=f"Rule {rule} makes it: `snakemake --cores 1 --forcerun {path}`"):
        store.check_bytes(path, "dynamics")


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"model": "n" * 64}, f"from model {'m' * 64}, wanted {'n' * 64}"),
        ({"study": "t"}, "from study s, wanted t"),
        ({"variant": "w"}, "from variant v, wanted w"),
        ({"settings": "{}"}, 'from settings {"study":"s","variant":"v"}, wanted {}'),
    ],
)
def test_a_file_of_another_run_is_refused(wanted: dict[str, str], named: str, tmp_path: Path):
    path = timings(tmp_path / "t.nc")
    read(path, "timings", wanted={"model": "m" * 64, "study": "s", "variant": "v", "plugin": "not said"})
    with pytest.raises(RetrogradError) as caught:
        read(path, "timings", wanted=wanted)
    assert f"{path} is not of this run: it was computed {named}. Rule" in str(caught.value)


def test_a_model_without_weights_is_not_the_one_of_a_study_with_some(tmp_path: Path):
    attrs = {"retrograd_schema": "model/1", "retrograd_config": "{}", "retrograd_inputs": "{}"}
    store.check_origin(attrs, "model.nc", "model", {"weights": ""})
    with pytest.raises(RetrogradError, match="not of this run"):
        store.check_origin(attrs, "model.nc", "model", {"weights": "w" * 64})


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, other = tmp_path / f".t.nc.{gone.pid}.tmp", tmp_path / f".u.nc.{gone.pid}.tmp"
    living, foreign = tmp_path / f".t.nc.{os.getppid()}.tmp", tmp_path / ".t.nc.mine.tmp"
    for path in (left, other, living, foreign):
        path.touch()
    timings(tmp_path / "t.nc")
    assert {p.name for p in tmp_path.iterdir()} == {"t.nc", other.name, living.name, foreign.name}


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from retrograd.schema import SUMMARY
from retrograd.store import Provenance, build, write
names = {"variant": ["a", "b"], "scenario": [f"s{i}" for i in range(500)]}
data = build(SUMMARY, {"loss": np.arange(1000.0).reshape(2, 500)}, names)
for bound in range(0, 200_000, 1_500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, resource.RLIM_INFINITY))
    try:
        write(data, sys.argv[2], SUMMARY, Provenance())
    except Exception as error:
        assert list(Path(sys.argv[2]).parent.iterdir()) == [], bound
        continue
    assert bound > Path(sys.argv[2]).stat().st_size > 30_000, bound
    print("written at", bound)
    break
"""


def test_a_full_disk_never_leaves_part_of_a_file(tmp_path: Path):
    """At whichever byte the disk is full: HDF5 writes some only when it closes the file."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(SCRIPTS), str(tmp_path / "s.nc")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "written at" in done.stdout
    read(tmp_path / "s.nc", "summary")
    assert seal_holds(tmp_path / "s.nc")


def test_a_seal_is_no_burden_to_other_readers(tmp_path: Path):
    path = timings(tmp_path / "t.nc")
    assert list(xr.load_dataset(path)["seconds"].values) == [1.5, 2.5]
    with netCDF4.Dataset(path) as file:
        assert file.data_model == "NETCDF4"
    assert seal_holds(path)


def test_a_file_that_is_not_sealed_has_no_bytes_added(tmp_path: Path):
    with whole(tmp_path / "a.txt") as place:
        place.write_text("text")
    assert (tmp_path / "a.txt").read_text() == "text"
    assert seal_holds(tmp_path / "a.txt") is None
