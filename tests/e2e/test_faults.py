"""A sample of what `make faults` does at length: killed jobs, damaged and exchanged files, clocks, two runs at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import netCDF4
import pytest
from pipeline import snakemake
from sealing import flip, seal_again

from make_faults import HOOK

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SUMMARY = "results/tiny/summary.nc"
GRADIENTS = "results/tiny/own/gradients.nc"
TINY = ("--configfile", "tiny.yaml")


@pytest.fixture(scope="module")
def repository(finished_run, tmp_path_factory) -> Path:
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("faults") / "repository", symlinks=True)


def same(repository: Path, finished_run: Path, *names: str) -> bool:
    return all((repository / name).read_bytes() == (finished_run / name).read_bytes() for name in names)


def chunks(repository: Path, stage: str) -> list[str]:
    found = (repository / f"results/tiny/chunks/{stage}").rglob("*.nc")
    return sorted(path.relative_to(repository).as_posix() for path in found)


def temporary(repository: Path) -> list[Path]:
    return list((repository / "results").rglob(".*.tmp"))


def test_a_killed_writer_leaves_nothing_under_the_name_and_a_rerun_nothing_beside_it(
    repository, finished_run, tmp_path
):
    (repository / SUMMARY).unlink(missing_ok=True)
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    fault = {"place": str(tmp_path), "job": 0, "signal": signal.SIGKILL, "point": "sealing"}
    run = snakemake(
        repository, SUMMARY, *TINY, pythonpath=tmp_path, surroundings={"RETROGRAD_FAULT": json.dumps(fault)}
    )
    assert run.returncode != 0
    assert (tmp_path / "struck").exists()
    assert not (repository / SUMMARY).exists()
    # So it was killed when all of the file was there.
    assert len(temporary(repository)) == 1
    run = snakemake(repository, SUMMARY, *TINY)
    assert run.returncode == 0, run.stdout
    assert same(repository, finished_run, SUMMARY)
    assert temporary(repository) == []


def test_a_flipped_bit_is_found_and_the_command_that_is_told_mends_it(repository, finished_run):
    damaged, _ = chunks(repository, "steady_state")
    (repository / "results/tiny/own/steady_state.nc").unlink()
    flip(repository / damaged, 8 * 5000)
    run = snakemake(repository, "results/tiny/own/steady_state.nc", *TINY)
    assert run.returncode != 0
    assert f"{damaged} cannot be read: its bytes are not those that were written" in run.stdout
    assert f"Rule steady_state_chunk makes it: `snakemake --cores 1 --forcerun {damaged}`" in run.stdout
    run = snakemake(repository, "results/tiny/own/steady_state.nc", "--forcerun", damaged, *TINY)
    assert run.returncode == 0, run.stdout
    assert same(repository, finished_run, damaged, "results/tiny/own/steady_state.nc")


@pytest.mark.parametrize("which", ["another chunk", "another study's settings", "another model"])
def test_an_exchanged_file_is_found(which, repository, finished_run):
    first, second = chunks(repository, "dynamics")
    name, target, said = first, "results/tiny/own/dynamics.nc", "rows"
    if which == "another model":
        name, said = "results/tiny/model.nc", "weights"
        altered(repository / name, "inputs", {"weights": "0" * 64})
    elif which == "another study's settings":
        target, said = chunks(repository, "gradients")[0], "settings"
        altered(repository / name, "config", {"max_steps": 5})
    else:
        shutil.copyfile(repository / second, repository / first)
    (repository / target).unlink(missing_ok=True)
    run = snakemake(repository, target, *TINY)
    shutil.copytree(finished_run / "results", repository / "results", dirs_exist_ok=True)
    assert run.returncode != 0
    assert f"{name} is not of this run: it was computed from {said} " in run.stdout
    assert f"--forcerun {name}`" in run.stdout


def altered(path: Path, what: str, changes: dict[str, object]) -> None:
    """Makes of a file one that is whole and says that it was computed from something else."""
    with netCDF4.Dataset(path, "r+") as file:
        said = json.loads(file.getncattr(f"retrograd_{what}"))
        file.setncattr(f"retrograd_{what}", json.dumps(said | changes))
    seal_again(path)


def test_a_clock_that_was_ahead_stops_nothing(repository, finished_run):
    later = time.time() + 86400 * 300
    for path in (repository / "results").rglob("*.nc"):
        os.utime(path, (later, later))
    (repository / SUMMARY).unlink()
    run = snakemake(repository, SUMMARY, *TINY)
    assert run.returncode == 0, run.stdout
    assert same(repository, finished_run, SUMMARY)


def test_a_second_run_on_the_same_results_does_not_begin(repository, finished_run):
    (repository / SUMMARY).unlink()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", SUMMARY, *TINY]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not list((repository / ".snakemake/locks").glob("*")):
            assert first.poll() is None
            time.sleep(0.02)
        second = snakemake(repository, SUMMARY, *TINY)
        assert first.wait() == 0
    assert second.returncode != 0
    # Snakemake asks for files of jobs under way before it asks for the lock: which of the two
    # refuses depends on where the first run has got to.
    assert "Directory cannot be locked" in second.stdout or "Incomplete files" in second.stdout
    assert same(repository, finished_run, SUMMARY)
