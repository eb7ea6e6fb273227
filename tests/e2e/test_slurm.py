"""The Slurm profile on a real Slurm: the same bytes as without it, also where jobs and a node are lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pipeline
import pytest
import slurm
from test_pipeline import written

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROFILE = ("--workflow-profile", "workflow/profiles/slurm", "--configfile", "tiny.yaml")
# The plug-in's 40 s would be most of the test. It waits ten more each time that none has ended: after 6 and 22 s.
OFTEN = ("--slurm-init-seconds-before-status-checks", "6")


@pytest.fixture(scope="module")
def cluster():
    try:
        slurm.install()
    except slurm.Missing as missing:
        pytest.skip(f"the Slurm profile was not tested: {missing}")
    with slurm.running() as started:
        yield started


@pytest.fixture(scope="module")
def repository(finished_run, tmp_path_factory):
    """A copy with the tiny study, and the programs that the local run compiled, but nothing of its results."""
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("slurm"))
    pipeline.write_study(repository)
    shutil.copytree(finished_run / ".snakemake/retrograd", repository / ".snakemake/retrograd")
    return repository


def running_job(cluster: slurm.Slurm, rule: str, but: tuple[str, ...]) -> dict[str, str]:
    """Returns the first of a rule's other jobs to run, once it has come as far as its own Snakemake."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        running = [j for j in cluster.jobs() if j["state"] == "RUNNING" and j["id"] not in but]
        for job in running:
            # The batch script, its Snakemake, srun's two processes, and so on.
            if job["rule"].startswith(f"rule_{rule}_") and len(cluster.processes_of(job["id"])) > 3:
                return job
        time.sleep(0.3)
    raise AssertionError(f"no job of {rule} has started: {cluster.jobs()}\n{cluster.logs()}")


def lose(cluster: slurm.Slurm, before: tuple[str, ...]) -> dict[str, str]:
    """Loses three jobs that were not there before; returns their ids by what happened to them."""
    # Too slow for its time: frozen, it passes the limit of a minute, which Slurm looks at every half a minute.
    slow = running_job(cluster, "dynamics_chunk", before)
    for pid in cluster.processes_of(slow["id"]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    cluster.ask("scontrol", "update", f"JobId={slow['id']}", "TimeLimit=1")
    cancelled = running_job(cluster, "dynamics_chunk", (*before, slow["id"]))
    cluster.ask("scancel", cancelled["id"])
    failed = running_job(cluster, "gradients_chunk", before)
    cluster.ask("scontrol", "update", f"NodeName={failed['node']}", "State=DOWN", "Reason=test")
    return {"TIMEOUT": slow["id"], "CANCELLED": cancelled["id"], "NODE_FAIL": failed["id"]}


# The next one compares the bytes too, of a run that has lost jobs.
@pytest.mark.exhaustive
def test_a_study_is_the_same_through_slurm(cluster, repository, finished_run):
    run = pipeline.snakemake(repository, *PROFILE, *OFTEN, surroundings=cluster.surroundings)
    assert run.returncode == 0, run.stdout
    jobs = cluster.jobs()
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    # Two chunks of each stage; what takes a second runs beside Snakemake.
    assert len(jobs) == 6 and all("_chunk_" in job["rule"] for job in jobs)
    assert written(repository) == written(finished_run)


def test_lost_jobs_are_recovered_without_a_hand(cluster, repository, finished_run):
    # From the dynamics on, which bounds the test's time.
    results = repository / "results/tiny"
    for name in ("chunks/dynamics", "chunks/gradients", "report"):
        shutil.rmtree(results / name, ignore_errors=True)
    for name in ("own/dynamics.nc", "own/gradients.nc", "summary.nc"):
        (results / name).unlink(missing_ok=True)
    before = tuple(job["id"] for job in cluster.jobs())
    with ThreadPoolExecutor(1) as pool:
        losing = pool.submit(lose, cluster, before)
        run = pipeline.snakemake(repository, *PROFILE, *OFTEN, surroundings=cluster.surroundings)
        assert run.returncode == 0, run.stdout
        lost = losing.result()
    jobs = {job["id"]: job for job in cluster.jobs() if job["id"] not in before}
    assert {state: jobs[number]["state"] for state, number in lost.items()} == {state: state for state in lost}
    for number in lost.values():
        (again,) = [j for j in jobs.values() if j["rule"] == jobs[number]["rule"] and j["state"] == "COMPLETED"]
        # The limits of a second attempt: twice 2,500 MB and 1 MB for each scenario of a chunk.
        assert (again["memory"], again["minutes"]) == ("5004M", "2:00:00")
    assert {job["state"] for number, job in jobs.items() if number not in lost.values()} == {"COMPLETED"}
    assert written(repository) == written(finished_run)
