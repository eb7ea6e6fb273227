"""Speed and accuracy beside others: each contestant in a process of its own, called in turns.

A process of its own shows what a contestant needs from a cold start, compilation and memory included; turns let all of
them see the same machine. Times are processor time of one thread, so that what else runs there counts little.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import retrograd
from retrograd.errors import RetrogradError

PARTS = ("solve", "gradient")
# Absolute tolerance over relative tolerance, as in `recommended`.
ABSOLUTE = 1e-2
# Scenarios of which SciPy gives a reference, some seconds each.
REFERENCES = 12
# Of the reference; its error is told from a hundredth of it.
REFERENCE_RTOL = 1e-9
# A contestant whose calls took longer than this in all [s] is not called again at that tolerance.
PATIENCE = 300.0
# Calls shorter than this [s] are made twice, and the second one counts.
BRIEF = 5.0


@dataclass
class Task:
    """What a contestant is given."""

    name: str
    plugin: str
    class_name: str
    model_file: str
    options: dict[str, Any]
    rtol: float
    x: np.ndarray  # (scenario, state)
    k: np.ndarray  # (scenario, parameter)

    def text(self) -> str:
        """Returns it as JSON, whose numbers are exact."""
        return json.dumps({**asdict(self), "x": self.x.tolist(), "k": self.k.tolist()})

    @staticmethod
    def read(text: str) -> Task:
        """Returns the task that `text` gave."""
        given = json.loads(text)
        return Task(**{**given, "x": np.array(given["x"]), "k": np.array(given["k"])})


def missing(peers: Sequence[str]) -> list[str]:
    """Returns those of some peers whose packages are not there."""
    return [name for name in peers if name == "casadi" and find_spec("casadi") is None]


# -- the contestant's process --------------------------------------------------------------------------


def serve(task_file: str) -> None:
    """Answers what comes by standard input, a part's name a line, with a line of JSON; a contestant's whole process."""
    from retrograd.job import prepare_jax

    task = Task.read(Path(task_file).read_text())
    answers, sys.stdout = sys.stdout, sys.stderr
    prepare_jax("float64")
    from retrograd.contestants import CONTESTANTS
    from retrograd.context import load_model

    cls, model = load_model(task.plugin, task.class_name, task.model_file)
    contestant = CONTESTANTS[task.name](cls, model, task.options, task.rtol, ABSOLUTE * task.rtol)
    tell = lambda **told: print(json.dumps(told), file=answers, flush=True)
    compiled = _watch_compiler()
    tell(seconds=time.process_time())
    for line in sys.stdin:
        part = line.strip()
        compiled.clear()
        begun = time.process_time()
        value = getattr(contestant, part)(task.x, task.k)
        seconds = time.process_time() - begun
        np.savez(f"{task_file}.{part}.npz", *([] if value is None else value if isinstance(value, tuple) else [value]))
        tell(seconds=seconds, compile=sum(compiled), memory=_peak_memory())


def _watch_compiler() -> list[float]:
    # By the clock: tracing, lowering and compilation, as jax tells them of each function.
    from jax import monitoring

    seconds: list[float] = []
    stages = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if event.rpartition("/")[2] in stages:
            seconds.append(duration_secs)

    monitoring.register_event_duration_secs_listener(heard)
    return seconds


def _peak_memory() -> int:
    # On Linux a process inherits the peak of the one that started it, as `getrusage` tells it; its own is told here.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    # macOS counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Process:
    """A contestant's process, from outside."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.file = folder / f"{task.name}.{task.rtol:g}"
        self.file.write_text(task.text())
        scripts = str(Path(retrograd.__file__).parents[1])
        # Compiled programs of other processes would hide what the compiler costs.
        surroundings = {**os.environ, "PYTHONPATH": scripts, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        command = [sys.executable, "-c", "import sys; from retrograd.speed import serve; serve(sys.argv[1])"]
        pipe = subprocess.PIPE
        # Its chatter stays with it: SUNDIALS tells of every step that fails.
        self.said = Path(f"{self.file}.log")
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [*command, str(self.file)], env=surroundings, stdin=pipe, stdout=pipe, stderr=said, text=True
            )
        self.start = self._answer()["seconds"]
        self.memory, self.compile = np.nan, np.nan

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *about: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            last = "\n".join(self.said.read_text().splitlines()[-20:])
            raise RetrogradError(f"benchmark: the process of {self.file.name} ended, saying\n{last}")
        return json.loads(line)

    def call(self, part: str) -> float:
        """Returns the processor time that a part took, and keeps what came out for `value`."""
        assert self.process.stdin is not None
        print(part, file=self.process.stdin, flush=True)
        told = self._answer()
        self.memory, self.compile = told["memory"], told["compile"]
        return told["seconds"]

    def value(self, part: str) -> list[np.ndarray]:
        """Returns the arrays that a part's last call gave; none where the contestant has no such part."""
        with np.load(f"{self.file}.{part}.npz", allow_pickle=False) as given:
            return list(given.values())


# -- the measurement -----------------------------------------------------------------------------------


def measure(
    plugin: str,
    class_name: str,
    model_file: str,
    options: Mapping[str, Any],
    x: np.ndarray,
    k: np.ndarray,
    tell: Callable[[str], object],
) -> dict[str, np.ndarray]:
    """Returns the variables of `speed.nc`.

    - `options`: of the gradients' stage of a variant, and `benchmark`. The variant's own tolerances are replaced.
    - `x`, `k`: starts and parameters of the dynamic phase, shape (scenario, state) and (scenario, parameter).
    - `tell`: called with what has just been measured.
    """
    from retrograd.context import load_model

    about = options["benchmark"]
    peers, tolerances, rounds = about["peers"], about["tolerances"], about["rounds"]
    cls, model = load_model(plugin, class_name, model_file)
    wanted = references(cls, model, options, x, k)
    tell("references")
    shape, total = (len(peers), len(tolerances)), len(x)
    out = {
        "seconds": np.full((*shape, len(PARTS), rounds), np.nan),
        **{name: np.full((*shape, len(PARTS)), np.nan) for name in ("cold_seconds", "compile_seconds")},
        **{name: np.full(shape, np.nan) for name in ("start_seconds", "memory", "solved", "gradient_finite")},
        "solve_error": np.full((*shape, total), np.nan),
        "gradient_error": np.full((*shape, total), np.nan),
        "reference_error": wanted.error,
    }
    there = [name for name in peers if name not in missing(peers)]
    for t, rtol in enumerate(tolerances):
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            running, slopes = {}, {}
            for name in there:
                task = Task(name, plugin, class_name, model_file, dict(options), rtol, x, k)
                p = peers.index(name)
                process = running[name] = stack.enter_context(Process(task, Path(folder)))
                out["start_seconds"][p, t] = process.start
                out["cold_seconds"][p, t, 0] = process.call("solve")
                out["compile_seconds"][p, t, 0] = process.compile
                (rows,) = process.value("solve")
                out["solved"][p, t] = np.mean(np.all(np.isfinite(rows), axis=(1, 2)))
                out["solve_error"][p, t] = wanted.of_states(rows)
                seconds = process.call("gradient")
                slopes[name] = process.value("gradient")
                if slopes[name]:
                    out["cold_seconds"][p, t, 1] = seconds
                    out["compile_seconds"][p, t, 1] = process.compile
                    finite = [np.all(np.isfinite(g), axis=1) for g in slopes[name]]
                    out["gradient_finite"][p, t] = np.mean(finite[0] & finite[1])
                    out["gradient_error"][p, t] = wanted.of_gradient(*slopes[name])
                tell(f"{name} at {rtol:g}, cold")
            spent = dict.fromkeys(there, 0.0)
            for r in range(rounds):
                for name in there:
                    if spent[name] > PATIENCE:
                        continue
                    p, process = peers.index(name), running[name]
                    for part in PARTS if slopes[name] else PARTS[:1]:
                        seconds = process.call(part)
                        if seconds < BRIEF:
                            # Systems take memory away from a process that waits: the first call gets it back.
                            seconds = process.call(part)
                        out["seconds"][p, t, PARTS.index(part), r] = seconds / total
                        spent[name] += seconds
                    out["memory"][p, t] = process.memory
                tell(f"round {r + 1} of {rounds} at {rtol:g}")
    return out


@dataclass
class References:
    """What SciPy gives at tight tolerances.

    - `rows`: states, shape (scenario, time, state).
    - `slopes`: derivatives, shape (scenario, wrt); NaN where there is none.
    - `scale`: sizes of what they are taken by, likewise.
    - `error`: of these, relative to the largest, shape (scenario,).
    """

    rows: np.ndarray
    slopes: np.ndarray
    scale: np.ndarray
    problem: Any
    error: np.ndarray = field(init=False)

    def of_states(self, rows: np.ndarray) -> np.ndarray:
        """Returns the largest distance of a state from the reference, relative to its largest value, (scenario,)."""
        with np.errstate(all="ignore"):
            size = np.max(np.abs(self.rows), axis=1, keepdims=True)
            return np.max(np.abs(rows - self.rows) / size, axis=(1, 2))

    def of_gradient(self, by_k: np.ndarray, by_weights: np.ndarray) -> np.ndarray:
        """Returns the largest distance of a derivative from the reference, relative to the largest, (scenario,)."""
        found = self.problem.columns_of({"dynamic": by_k, "network": by_weights})
        return self.relative(found - self.slopes)

    def relative(self, apart: np.ndarray) -> np.ndarray:
        """Returns the size of errors of the derivatives (scenario, wrt), likewise."""
        with np.errstate(all="ignore"):
            return np.max(np.abs(apart) * self.scale, axis=1) / np.max(np.abs(self.slopes) * self.scale, axis=1)


def references(cls: Any, model: Any, options: Mapping[str, Any], x: np.ndarray, k: np.ndarray) -> References:
    """Returns the references; the gradient's of some scenarios, evenly spread."""
    from retrograd.context import field_of
    from retrograd.gradients import GradientProblem, Scenarios
    from retrograd.reference import Reference
    from retrograd.results import spread

    # By k and the weights of the dynamic phase; its start is given.
    gradient = {**options["gradient"], "wrt": ["dynamic", "network"], "methods": ["replay"]}
    problem = GradientProblem(
        cls, field_of(cls, options), model, {**options, "gradient": gradient}, options["save_times"], None
    )
    total = len(x)
    data = Scenarios(
        k_dynamic=k,
        k_steady=k,
        x0=x,
        x_start=x,
        steps=[np.zeros(0)] * total,
        step_x=[np.zeros((0, problem.n))] * total,
        ok=np.ones(total, bool),
        x_rest=None,
        conserved=None,
    )
    rows = np.full((total, len(problem.times), problem.n), np.nan)
    reference, slopes, uncertain = Reference(problem), *np.full((2, total, len(problem.columns)), np.nan)
    for i in spread(np.arange(total), REFERENCES):
        _, rough = reference.from_given(x[i], k[i], REFERENCE_RTOL)
        rows[i], slopes[i] = reference.from_given(x[i], k[i], REFERENCE_RTOL / 100)
        uncertain[i] = slopes[i] - rough
    out = References(rows, slopes, problem.scales(data), problem)
    out.error = out.relative(uncertain)
    return out


def ratios(measured: xr.Dataset, to: str) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """Returns how many times the time of one peer the others took: median, least and most over the rounds.

    - `measured`: what `speed.nc` holds.
    - `to`: the peer that they are compared with.

    By peer, tolerance and part; of those that were measured.
    """
    names, tolerances, parts = (
        [str(v) for v in measured[f"{dim}_name"].values] for dim in ("peer", "tolerance", "part")
    )
    seconds = measured["seconds"].values
    out = {}
    for p, peer in enumerate(names):
        for t, tolerance in enumerate(tolerances):
            for q, part in enumerate(parts):
                # Of one round, in which both saw the same machine.
                each = seconds[p, t, q] / seconds[names.index(to), t, q]
                each = each[np.isfinite(each)]
                if peer != to and len(each):
                    out[peer, tolerance, part] = float(np.median(each)), float(np.min(each)), float(np.max(each))
    return out


def at_their_accuracy(measured: xr.Dataset, to: str) -> dict[tuple[str, str, str], tuple[float, str]]:
    """Returns how many times the time of one peer the others took, where it is as accurate as they are, and where.

    - `measured`, `to`: as in `ratios`.

    Of the peer's tolerances the one with the least time counts, among those with an error not above the other's in the
    median and in nine of ten scenarios. By the other's name, tolerance and part; of those where there is such a one.
    """
    names, tolerances = ([str(v) for v in measured[f"{dim}_name"].values] for dim in ("peer", "tolerance"))
    own, out = names.index(to), {}
    for q, part in enumerate(PARTS):
        seconds, errors = measured["seconds"].values[:, :, q], measured[f"{part}_error"].values
        with warnings.catch_warnings():
            # Of what was not measured.
            warnings.simplefilter("ignore", RuntimeWarning)
            time_, sizes = np.nanmedian(seconds, axis=-1), np.nanquantile(errors, (0.5, 0.9), axis=-1)
        for p, peer in enumerate(names):
            for t, tolerance in enumerate(tolerances):
                as_good = np.flatnonzero(np.all(sizes[:, own] <= sizes[:, p, t, None], axis=0))
                if peer != to and len(as_good) and np.isfinite(time_[p, t]):
                    best = as_good[np.argmin(time_[own, as_good])]
                    out[peer, tolerance, part] = float(time_[p, t] / time_[own, best]), tolerances[best]
    return out


def told(measured: xr.Dataset) -> list[str]:
    """Returns what was measured, a line a peer, tolerance and part."""
    names = [str(v) for v in measured["peer_name"].values]
    own = "retrograd" in names
    beside = ratios(measured, "retrograd") if own else {}
    alike = at_their_accuracy(measured, "retrograd") if own else {}
    lines = []
    for p, peer in enumerate(names):
        for t, tolerance in enumerate(map(str, measured["tolerance_name"].values)):
            for q, part in enumerate(PARTS):
                seconds = measured["seconds"].values[p, t, q]
                if not np.isfinite(seconds).any():
                    continue
                share = measured["solved" if part == "solve" else "gradient_finite"].values[p, t]
                error = measured[f"{part}_error"].values[p, t]
                error = f"{np.nanmedian(error):.1e}" if np.isfinite(error).any() else "unknown"
                times, fair = beside.get((peer, tolerance, part)), alike.get((peer, tolerance, part))
                lines.append(
                    f"{peer}, {part} at {tolerance}: {1e3 * np.nanmedian(seconds):.3g} ms a scenario"
                    + (f", {times[0]:.3g} times retrograd's ({times[1]:.3g} to {times[2]:.3g})" if times else "")
                    + (f", at its accuracy {fair[0]:.3g} times (retrograd at {fair[1]})" if fair else "")
                    + f"; median error {error}; {100 * share:.0f} % of the scenarios; first call "
                    f"{measured['cold_seconds'].values[p, t, q]:.3g} s, jax's compiler by the clock "
                    f"{measured['compile_seconds'].values[p, t, q]:.3g} s"
                )
    return lines
