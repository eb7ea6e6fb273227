"""What every rule script starts with: threads and float width, the log, how a rule ends, progress."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from retrograd import job as job_module
from retrograd.errors import RetrogradError
from retrograd.job import Progress, Stopwatch, job, prepare_jax, single
from retrograd.provenance import file_digest

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) (.*)$")


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what a job sets in its process: the logger, the environment."""
    log = job_module.log
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    monkeypatch.setattr(os, "environ", os.environ.copy())
    yield
    for handler in log.handlers:
        if handler not in handlers:
            handler.close()
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


def snakemake(log: str | None, *, threads: int = 1, wildcards: dict[str, str] | None = None, **settings: Any) -> Any:
    """Returns what Snakemake puts into a script's namespace, as far as a job reads it."""
    return SimpleNamespace(
        params=SimpleNamespace(settings=json.dumps(settings), code="c" * 64),
        log=[log] if log else [],
        threads=threads,
        rule="dynamics_chunk",
        wildcards=wildcards or {},
        input=[],
    )


def lines(path: Path) -> list[tuple[str, str]]:
    """Returns level and text of each line of a log file; what follows a line without a time belongs to it."""
    out: list[tuple[str, str]] = []
    for line in path.read_text().splitlines():
        found = LINE.match(line)
        if found:
            out.append((found[1], found[2]))
        else:
            out[-1] = (out[-1][0], f"{out[-1][1]}\n{line}")
    return out


# -- how a rule ends ----------------------------------------------------------------------------------


def test_a_rule_that_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "logs" / "deep" / "rule.log"
    with job(snakemake(str(path), wildcards={"variant": "naive", "chunk": "3"}, rtol=1e-6)) as run:
        job_module.log.warning("look here")
    assert run.settings == {"rtol": 1e-6}
    assert [level for level, _ in lines(path)] == ["INFO", "WARNING", "INFO"]
    texts = [text for _, text in lines(path)]
    assert texts[:2] == ["dynamics_chunk variant=naive chunk=3: start", "look here"]
    assert re.fullmatch(r"dynamics_chunk variant=naive chunk=3: done in \d+\.\d s", texts[2])
    assert capsys.readouterr().err == path.read_text()


def test_a_problem_of_the_users_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rule.log"
    with pytest.raises(SystemExit) as caught, job(snakemake(str(path), wildcards={"variant": "naive"})):
        raise RetrogradError("weights.eqx is gone: put it back.")
    assert caught.value.code == 1
    assert lines(path)[-1] == ("ERROR", "dynamics_chunk variant=naive: weights.eqx is gone: put it back.")
    assert "Traceback" not in path.read_text()
    assert "done" not in path.read_text()
    assert capsys.readouterr().err == path.read_text()


def test_a_bug_leaves_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rule.log"
    with pytest.raises(SystemExit) as caught, job(snakemake(str(path))):
        raise ZeroDivisionError("of ours")
    assert caught.value.code == 1
    level, text = lines(path)[-1]
    assert level == "ERROR"
    assert "dynamics_chunk : stopped by a bug, or by the model's code" in text
    assert "Traceback (most recent call last)" in text
    assert 'raise ZeroDivisionError("of ours")' in text
    assert text.splitlines()[-1] == "ZeroDivisionError: of ours"
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_input_from_the_future_is_dated_now(tmp_path: Path):
    later, earlier = tmp_path / "later.nc", tmp_path / "earlier.nc"
    for path, date in ((later, time.time() + 1e6), (earlier, 1e9)):
        path.touch()
        os.utime(path, (date, date))
    given = snakemake(None)
    given.input += [str(later), str(earlier), str(tmp_path / "gone.nc")]
    with job(given):
        pass
    assert abs(later.stat().st_mtime - time.time()) < 100
    assert earlier.stat().st_mtime == 1e9


def test_a_cause_of_the_users_problem_is_left_out(tmp_path: Path):
    path = tmp_path / "rule.log"
    with pytest.raises(SystemExit), job(snakemake(str(path))):
        raise RetrogradError("no parameter k9") from KeyError("k9")
    assert "KeyError" not in path.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_goes_through(error: type[BaseException], tmp_path: Path):
    path = tmp_path / "rule.log"
    with pytest.raises(error), job(snakemake(str(path))):
        raise error
    assert "bug" not in path.read_text()


def test_without_a_log_file(capsys: pytest.CaptureFixture[str]):
    with job(snakemake(None)):
        pass
    assert "dynamics_chunk : start" in capsys.readouterr().err


def test_a_log_is_begun_anew(tmp_path: Path):
    path = tmp_path / "rule.log"
    path.write_text("of the run before\n")
    with job(snakemake(str(path))):
        pass
    assert len(lines(path)) == 2
    assert not job_module.log.propagate


def test_where_the_package_comes_from_can_be_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(job_module.log, "debug", lambda *args: seen.append(args))
    with job(snakemake(str(tmp_path / "rule.log"))):
        pass
    assert seen == [("package retrograd from %s", str(ROOT / "scripts" / "retrograd" / "__init__.py"))]


def test_provenance(tmp_path: Path):
    file = tmp_path / "some" / "weights.eqx"
    file.parent.mkdir()
    file.write_bytes(b"abc")
    with job(snakemake(None, precision="float64", rtol=1e-6)) as run:
        run.digest("weights", str(file))
        origin = run.provenance()
    assert origin.config == {"precision": "float64", "rtol": 1e-6}
    assert origin.inputs == {"weights": file_digest(file)}
    assert origin.code_digest == "c" * 64
    assert (origin.environment["precision"], origin.environment["threads"]) == ("float64", 1)


def test_packages_from_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Snakemake puts the host's site-packages behind the job's own: a missing package would come from there."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(RetrogradError, match=rf"package jax was found at .*, wanted below {tmp_path}"):
        job_module._one_place_for_packages()


def test_packages_from_elsewhere_are_one_sentence_in_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    path = tmp_path / "rule.log"
    with pytest.raises((SystemExit, RetrogradError)), job(snakemake(str(path))):
        pass
    assert "package jax was found at" in path.read_text()


# -- JAX ----------------------------------------------------------------------------------------------

SHOW = """
import json, os, sys
from retrograd.job import prepare_jax
before = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
prepare_jax(sys.argv[1], int(sys.argv[2]), "portable" in sys.argv)
import jax, jax.numpy as jnp
jax.block_until_ready(jnp.ones((300, 300)) @ jnp.ones((300, 300)))
out = {name: os.environ.get(name) for name in
       ("EQX_ON_ERROR", "JAX_ENABLE_X64", "JAX_PLATFORMS", "NPROC", "XLA_FLAGS")}
out |= {"before": before, "dtype": str(jnp.zeros(()).dtype), "x64": jax.config.jax_enable_x64}
if before is not None:
    tasks = os.listdir("/proc/self/task")
    out["after"] = [sorted(os.sched_getaffinity(int(t))) for t in tasks]
    names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in tasks]
    out["pool"] = sum(name == "tf_XLAEigen" for name in names)
print(json.dumps(out))
"""


def prepared(precision: str, threads: int, *mode: str, **env: str) -> dict[str, Any]:
    """Returns what `prepare_jax` made of a fresh process, in `portable` mode or in none."""
    names = ("EQX_ON_ERROR", "JAX_ENABLE_X64", "JAX_PLATFORMS", "NPROC", "XLA_FLAGS", "OMP_NUM_THREADS")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    command = [sys.executable, "-c", SHOW, precision, str(threads), *mode]
    paths = {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(command, env=clean | paths | env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


PLAIN = """
import sys
from types import SimpleNamespace
from retrograd.job import job
resources = SimpleNamespace(get=lambda name: None)
params = SimpleNamespace(settings='{"precision": "float64"}', code="c", get=lambda name, default=None: default)
rule = SimpleNamespace(rule="r", log=[], input=[], wildcards={}, threads=1, params=params, resources=resources)
with job(rule, computes=sys.argv[1] == "computes") as run:
    print("jax" in sys.modules, run.provenance().environment["device_kind"])
"""


@pytest.mark.parametrize(("how", "told"), [("computes", "True cpu"), ("plain", "False none")])
def test_jobs_that_compute_nothing_start_no_jax(how: str, told: str):
    """JAX takes 1.5 s to start, which a study would wait for in each of its joins, its summary and its report."""
    paths = {"PYTHONPATH": str(ROOT / "scripts"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PLAIN, how]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told


def test_one_thread_and_float64():
    found = prepared("float64", 1)
    assert found["EQX_ON_ERROR"] == "off"
    assert (found["JAX_ENABLE_X64"], found["x64"], found["dtype"]) == ("1", True, "float64")
    assert found["JAX_PLATFORMS"] == "cpu"
    assert found["NPROC"] == "1"
    assert found["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    if found["before"] is not None:
        # The threads may move again, or all jobs of a machine would share its first processor.
        assert all(cpus == found["before"] for cpus in found["after"])
        assert found["pool"] == 1


def test_two_threads_and_float32():
    found = prepared("float32", 2, XLA_FLAGS="--xla_cpu_enable_fast_math=false", JAX_PLATFORMS="")
    assert (found["JAX_ENABLE_X64"], found["x64"], found["dtype"]) == ("0", False, "float32")
    assert found["JAX_PLATFORMS"] == ""
    assert found["NPROC"] == "2"
    assert found["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
    if found["before"] is not None:
        assert all(cpus == found["before"] for cpus in found["after"])
        assert 1 <= found["pool"] <= 2


def test_flags_of_the_users_are_kept():
    found = prepared("float64", 1, XLA_FLAGS="--xla_cpu_enable_fast_math=false", EQX_ON_ERROR="nan", JAX_ENABLE_X64="0")
    assert found["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_cpu_multi_thread_eigen=false"
    assert (found["EQX_ON_ERROR"], found["dtype"]) == ("off", "float64")
    chosen = prepared("float64", 1, XLA_FLAGS="--xla_cpu_multi_thread_eigen=true")
    assert chosen["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=true"


def test_portable():
    found = prepared("float64", 1, "portable", XLA_FLAGS="--xla_cpu_prefer_vector_width=512", JAX_PLATFORMS="")
    # The last of two flags of one name counts.
    assert found["XLA_FLAGS"].split()[-1] == "--xla_cpu_prefer_vector_width=128"
    assert found["JAX_PLATFORMS"] == "cpu"
    assert found["pool"] == 1 if found["before"] is not None else True


def test_in_a_process_that_has_jax():
    try:
        prepare_jax("float32")
        assert not jax.config.jax_enable_x64
        assert os.environ["JAX_ENABLE_X64"] == "0"
    finally:
        prepare_jax("float64")
    assert jax.config.jax_enable_x64


def test_the_tests_run_as_the_jobs_do():
    import equinox as eqx

    assert jax.config.jax_enable_x64
    assert eqx.error_if(jax.numpy.ones(()), True, "never seen") == 1


# -- small helpers ------------------------------------------------------------------------------------


class NamedList(list):
    """Stands for Snakemake's list of files, which is no plain list."""


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (None, None),
        ("a.nc", "a.nc"),
        ("", ""),
        ([], None),
        (NamedList(), None),
        (["a.nc"], "a.nc"),
        (NamedList(["a.nc"]), "a.nc"),
        (("a.nc", "b.nc"), "a.nc"),
        ([Path("x/a.nc")], "x/a.nc"),
    ],
)
def test_single(files: Any, wanted: str | None):
    assert single(files) == wanted


def test_stopwatch(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_module.log, "propagate", True)
    with caplog.at_level(logging.INFO, "retrograd"):
        watch = Stopwatch()
        watch.lap("compile")
        watch.lap("run")
    assert [re.sub(r"\d+\.\d\d s", "TIME", line) for line in caplog.messages] == ["compile: TIME", "run: TIME"]


class Screen(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def advanced(total: int, steps: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: Any, tty: bool) -> Screen:
    screen = Screen(tty)
    monkeypatch.setattr(job_module.log, "propagate", True)
    monkeypatch.setattr(sys, "stderr", screen)
    with caplog.at_level(logging.INFO, "retrograd"):
        progress = Progress("simulations", total)
        for count in steps:
            progress.advance(count)
    return screen


@pytest.mark.parametrize(
    ("total", "steps"),
    [
        (1000, [1] * 1000),
        (1000, [7] * 142 + [6]),
        (1000, [1000]),
        (3, [1] * 3),
        (1, [1]),
        (4, [0, 1, 0, 3]),
        (6, [5, 1]),
    ],
    ids=lambda v: str(len(v)) if isinstance(v, list) else str(v),
)
def test_progress_in_a_file_is_a_few_lines(total: int, steps: list[int], caplog, monkeypatch: pytest.MonkeyPatch):
    screen = advanced(total, steps, caplog, monkeypatch, tty=False)
    assert screen.getvalue() == ""
    assert 1 <= len(caplog.messages) <= 5
    assert caplog.messages[-1] == f"simulations: {total} of {total} scenarios"
    counts = [int(m.split()[1]) for m in caplog.messages]
    assert counts == sorted(set(counts))


def test_progress_on_a_terminal_is_one_line(caplog, monkeypatch: pytest.MonkeyPatch):
    screen = advanced(10, [1] * 10, caplog, monkeypatch, tty=True)
    text = screen.getvalue()
    assert caplog.messages == []
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count("\r") == 10
    assert f"simulations [{'#' * 15:<30}] 5/10" in text
    assert f"simulations [{'#' * 30}] 10/10" in text


@pytest.mark.parametrize("tty", [True, False])
def test_progress_over_nothing(tty: bool, caplog, monkeypatch: pytest.MonkeyPatch):
    screen = advanced(0, [0], caplog, monkeypatch, tty)
    assert "0/0" in screen.getvalue() if tty else caplog.messages == ["simulations: 0 of 0 scenarios"]
