"""What every rule script starts with: log file and screen, one thread, float width, environment guard."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

import retrograd
from retrograd.devices import on_gpu
from retrograd.errors import RetrogradError
from retrograd.messages import printable
from retrograd.provenance import cpu_features, environment, file_digest, processor, text_digest
from retrograd.store import Provenance, read

log = logging.getLogger("retrograd")

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# 128 bits are what every aarch64 processor has; wider vectors sum in another order.
PORTABLE_FLAGS = "--xla_cpu_prefer_vector_width=128"


@dataclass
class Job:
    """One running rule: its settings and what its outputs will say about their origin.

    - `known`: sha256 of what the study is given and this job does not read itself, by name.
    """

    name: str
    settings: dict[str, Any]
    code_digest: str
    precision: str | None
    threads: int
    inputs: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def digest(self, name: str, path: str) -> None:
        """Records the sha256 of an input under a name that is free of folders."""
        self.inputs[name] = file_digest(path)

    @property
    def wanted(self) -> dict[str, str]:
        """What a file that this job reads must say of its origin, as far as it says it."""
        named = {name: self.settings[name] for name in ("study", "variant") if name in self.settings}
        return {**self.known, **self.inputs, **named}

    def read(self, name: str, path: str, kind: str, lazily: tuple[str, ...] = (), **wanted: str) -> xr.Dataset:
        """Returns an input as `store.read` does, which must be of this job's run, and records its sha256.

        - `wanted`: what it must say beside `Job.wanted`.
        """
        found = read(path, kind, lazily, self.wanted | wanted)
        self.digest(name, path)
        return found

    def provenance(self) -> Provenance:
        return Provenance(
            config=self.settings,
            inputs=self.inputs,
            code_digest=self.code_digest,
            environment=environment(self.precision, self.threads),
        )


@contextmanager
def job(snakemake: Any, *, computes: bool = True) -> Iterator[Job]:
    """Prepares a rule's process; yields the `Job`; logs how it ended, with the traceback in the log file.

    Reads `snakemake.params.settings` (canonical JSON), `snakemake.params.code` and the log path.

    - `computes`: whether the job needs JAX, which takes 1.5 s to start.
    """
    settings = json.loads(snakemake.params.settings)
    precision = settings.get("precision")
    _log_to(snakemake.log[0] if snakemake.log else None)
    _none_from_the_future(snakemake.input)
    started = time.perf_counter()
    wildcards = " ".join(f"{k}={v}" for k, v in snakemake.wildcards.items())
    log.info("%s %s: start", snakemake.rule, wildcards)
    try:
        _one_place_for_packages()
        if computes:
            _keep_compiled()
            if on_gpu() and not snakemake.resources.get("gpu"):
                # A job that owns the card takes its memory, and another one would find none.
                os.environ["JAX_PLATFORMS"] = "cpu"
            prepare_jax(precision or "float64", snakemake.threads, settings.get("portable", False))
        log.debug("package retrograd from %s", retrograd.__file__)
        known = dict(getattr(snakemake.params, "known", {}))
        yield Job(snakemake.rule, settings, snakemake.params.code, precision, snakemake.threads, known=known)
    except RetrogradError as error:
        # The traceback would hide the sentence that says what to do.
        log.error("%s %s: %s", snakemake.rule, wildcards, printable(str(error)))
        sys.exit(1)
    except Exception:
        log.exception("%s %s: stopped by a bug, or by the model's code", snakemake.rule, wildcards)
        sys.exit(1)
    log.info("%s %s: done in %.1f s", snakemake.rule, wildcards, time.perf_counter() - started)


def _none_from_the_future(files: Iterable[str]) -> None:
    """Dates inputs no later than now: after a clock was set back Snakemake would refuse each output as older."""
    for file in files:
        # A date that may not be set is told by Snakemake.
        with suppress(OSError):
            if os.stat(file).st_mtime > time.time():
                os.utime(file)


def _log_to(path: str | None) -> None:
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, mode="w"))
    for handler in handlers:
        handler.setFormatter(formatter)
    log.handlers = handlers
    log.setLevel(logging.INFO)
    log.propagate = False


def _one_place_for_packages() -> None:
    """Refuses packages from outside this Python: Snakemake puts the host's site-packages behind the job's own."""
    from importlib.util import find_spec

    prefix = Path(sys.prefix).resolve()
    for name in ("jax", "xarray", "netCDF4"):
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or prefix not in origin.parents:
            raise RetrogradError(
                f"package {name} was found at {origin}, wanted below {prefix}: the environment of this rule "
                "lacks it. Install envs/requirements.txt there (`make`), or run snakemake from its .venv."
            )


def _keep_compiled() -> None:
    """Lets jobs that compile the same program share what comes out, below `.snakemake`, one folder a processor.

    Measured on a study of variants that differ in controller and inner iteration: half the time of a job. An entry
    holds machine code and its checksum; one that cannot be read is compiled anew.
    """
    folder = Path(".snakemake", "retrograd", "compiled", text_digest(processor())[:16])
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder.absolute()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def prepare_jax(precision: str, threads: int = 1, portable: bool = False) -> None:
    """Sets up this process for JAX: float width, thread count, errors as NaN in the lane they belong to.

    - `portable`: the same bits on x86-64 and aarch64; see `portable.py`.

    Must run before jax is first imported. XLA sizes its thread pool by the processor affinity at start; several
    threads can change results from run to run (jax issue 39741).
    """
    if portable and platform.machine() in ("x86_64", "AMD64") and "fma" not in cpu_features():
        raise RetrogradError("portable: true wants a processor with fused multiply-add, which this one does not have.")
    # With `nan`, one scenario's failed linear solve would turn every lane of the batch into NaN.
    os.environ["EQX_ON_ERROR"] = "off"
    os.environ["JAX_ENABLE_X64"] = "1" if precision == "float64" else "0"
    os.environ["JAX_PLATFORMS"] = "cpu" if portable else os.environ.get("JAX_PLATFORMS", "cpu")
    os.environ["NPROC"] = str(threads)
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1 and "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()
    flags = os.environ.get("XLA_FLAGS", "")
    if portable and PORTABLE_FLAGS not in flags:
        # Behind the user's: of two flags of one name the last counts.
        os.environ["XLA_FLAGS"] = f"{flags} {PORTABLE_FLAGS}".strip()
    _start_jax(precision, threads)
    if portable:
        from retrograd.portable import install

        install()


def _start_jax(precision: str, threads: int) -> None:
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_enable_x64", precision == "float64")
        return
    if not hasattr(os, "sched_setaffinity"):
        _find_devices()
        return
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(everywhere)[:threads]))
    try:
        _find_devices()
    finally:
        # The pool keeps its size; its threads may move again, or all jobs would share the first processors.
        for thread in os.listdir("/proc/self/task"):
            try:
                os.sched_setaffinity(int(thread), everywhere)
            except OSError:
                continue


def _find_devices() -> None:
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        # Of a platform whose plug-in is missing jax says nothing at all.
        raise RetrogradError(
            f"JAX_PLATFORMS is {os.environ['JAX_PLATFORMS']}, and jax finds no such device. Install jax's plug-in for "
            "it (`make run CUDA=12` or `CUDA=13`), or unset JAX_PLATFORMS to compute on the processor."
        ) from None


def single(files: Any) -> str | None:
    """Returns the one file of a named input that may be empty: Snakemake hands over a list then."""
    if files is None or isinstance(files, str):
        return files
    paths = list(files)
    return str(paths[0]) if paths else None


class Stopwatch:
    """Logs how long each part of a job took: compile and run time apart."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def lap(self, what: str) -> float:
        now = time.perf_counter()
        taken, self.started = now - self.started, now
        log.info("%s: %.2f s", what, taken)
        return taken


def tell_rescue(rung: str, tried: int, rescued: int) -> None:
    """Logs what a rung of the rescue ladder was worth."""
    log.info("rescue %s: %d of %d scenarios", rung, rescued, tried)


class Progress:
    """Counts what is done: a bar on a terminal, a plain line every fifth elsewhere."""

    def __init__(self, what: str, total: int, unit: str = "scenarios") -> None:
        self.what, self.total, self.unit, self.done, self.shown = what, total, unit, 0, 0

    def advance(self, count: int) -> None:
        self.done += count
        if sys.stderr.isatty():
            filled = 30 * self.done // max(self.total, 1)
            end = "\n" if self.done >= self.total else ""
            print(
                f"\r{self.what} [{'#' * filled:<30}] {self.done}/{self.total}",
                end=end,
                file=sys.stderr,
                flush=True,
            )
        elif self.done >= self.total or self.done - self.shown >= self.total / 5:
            log.info("%s: %d of %d %s", self.what, self.done, self.total, self.unit)
            self.shown = self.done
