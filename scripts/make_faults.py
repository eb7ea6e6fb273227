"""Hurts runs of a small study in every way that is known, and counts what came of it (no rule; `make faults`).

    python scripts/make_faults.py --minutes 15 --out results/faults.md

Runs are killed, starved and robbed of their files at random points of the DAG, several in a row; one plain rerun must
then finish with the bytes of an undisturbed run. Result files are damaged bit by bit, cut short and exchanged, and the
readers of the jobs must refuse each of them. Nothing of the library is changed for it: what strikes a job comes
into its process as `sitecustomize`, by PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from retrograd.provenance import file_digest
from retrograd.schema import STAGES

ROOT = Path(__file__).resolve().parents[1]

PLUGIN = '''\
"""Two substances that follow an inflow, one of them fast: linear, and quickly computed."""

import jax.numpy as jnp
from retrograd.api import Model


class Small(Model):
    states = {"a": "1", "b": "1"}
    parameters = {"fast": "s-1", "slow": "s-1", "inflow": "1"}
    time_unit = "s"

    def vector_field(self, t, x, k):
        return jnp.stack([k["fast"] * (x[1] - x[0]), k["slow"] * (k["inflow"] - x[1])])
'''
SCENARIOS = "scenario\tfast\tslow\tinflow\nmild\t2.0\t0.5\t1.0\nstiff\t1000.0\t0.5\t2.0\n"
CONFIG = """\
study: small
model: {plugin: small.py, class: Small, weights: null}
scenarios: small.tsv
start: steady_state
save_times: [1.0, 2.0]
variants: [recommended]
chunk_size: 1
gradient: {methods: [replay], wrt: [dynamic], directions: 0, seed: 0}
"""

# In the order in which they are made.
KINDS_OF_FILES = ("model", *STAGES, "summary", "report")

# What a job's process begins with. It strikes one job of a run, the one of number `job`, and says so in a file.
HOOK = """\
import json, os, resource, signal, sys, threading, time


def begin():
    fault = json.loads(os.environ["RETROGRAD_FAULT"])
    place = fault["place"]
    if fault.get("slow"):
        slow = ("open", "os.rename", "os.remove", "os.mkdir", "os.scandir", "os.listdir", "os.utime")
        sys.addaudithook(lambda event, args: time.sleep(fault["slow"]) if event in slow else None)
        return
    number = 0
    while True:
        try:
            os.close(os.open(f"{place}/job{number}", os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            number += 1
    if number != fault["job"]:
        return

    def said():
        open(f"{place}/struck", "w").close()

    for name, bound in fault.get("limits", {}).items():
        if name == "RLIMIT_AS":
            bound += int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(getattr(resource, name), (bound, bound))
        said()
    if "point" not in fault:
        return

    def strike(delay):
        time.sleep(delay)
        said()
        if "lost" in fault:
            os.makedirs(f"{place}/lost")
            os.chdir(f"{place}/lost")
            os.rmdir(f"{place}/lost")
        else:
            os.kill(os.getpid(), fault["signal"])

    def soon(delay):
        threading.Thread(target=strike, args=(delay,), daemon=True).start()

    def hook(event, args):
        # The file's place is looked for leftovers, it is written, opened to be sealed, and gets its name.
        path = str(args[0]) if args else ""
        if fault["point"] == "writing" and event == "os.scandir" and "/results/" in os.path.abspath(path) + "/":
            soon(fault["delay"])
        elif path.endswith(".tmp") and event == {"sealing": "open", "naming": "os.rename"}.get(fault["point"]):
            strike(0.0)

    if fault["point"] == "moment":
        soon(fault["delay"])
    else:
        sys.addaudithook(hook)


if "RETROGRAD_FAULT" in os.environ and any(".snakemake/scripts/" in a for a in sys.orig_argv):
    begin()
"""


@dataclass
class Row:
    """What came of one kind of damage."""

    tried: int = 0
    stopped: int = 0  # runs that failed, or readers that refused
    bad: int = 0  # what must stay 0: wrong bytes, leftovers, reruns that fail, damage that was not seen
    examples: list[str] = field(default_factory=list)

    def add(self, *, stopped: bool, bad: list[str]) -> None:
        self.tried += 1
        self.stopped += stopped
        self.bad += bool(bad)
        self.examples += bad


class Table:
    """Rows by what was done, filled by several threads."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.lock = threading.Lock()

    def add(self, what: str, *, stopped: bool, bad: list[str]) -> None:
        with self.lock:
            self.rows.setdefault(what, Row()).add(stopped=stopped, bad=bad)
        for line in bad:
            print(f"BAD: {what}: {line}", file=sys.stderr, flush=True)

    def text(self) -> str:
        lines = [
            "| what was done | times | runs or readers that stopped at it | went wrong |",
            "| --- | --- | --- | --- |",
        ]
        lines += [f"| {what} | {row.tried} | {row.stopped} | {row.bad} |" for what, row in self.rows.items()]
        return "\n".join(lines) + "\n"


class Study:
    """A study in a working directory of its own, outside of the repository."""

    def __init__(self, folder: Path, name: str = "small", scenarios: str = SCENARIOS, more: str = "") -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "small.py").write_text(PLUGIN)
        (folder / f"{name}.tsv").write_text(scenarios)
        (folder / f"{name}.yaml").write_text(
            CONFIG.replace("small\n", f"{name}\n").replace("small.tsv", f"{name}.tsv") + more
        )

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def command(self, *arguments: str, cores: int = 1) -> list[str]:
        fixed = ["--snakefile", str(ROOT / "Snakefile"), "--cores", str(cores)]
        profile = ["--workflow-profile", str(ROOT / "workflow/profiles/default")]
        return [sys.executable, "-m", "snakemake", *fixed, *profile, *arguments, "--configfile", f"{self.name}.yaml"]

    def start(
        self, *arguments: str, fault: Mapping[str, object] | None = None, cores: int = 1
    ) -> subprocess.Popen[str]:
        surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "EQX_", "PYTEST_"))}
        surroundings.pop("PYTHONPATH", None)
        if fault is not None:
            surroundings |= {"PYTHONPATH": str(fault["place"]), "RETROGRAD_FAULT": json.dumps(fault)}
        # Into a file: a job that outlives Snakemake would hold a pipe open.
        with open(self.folder / "said.txt", "w") as said:
            return subprocess.Popen(
                self.command(*arguments, cores=cores),
                cwd=self.folder,
                env=surroundings,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, *arguments: str, cores: int = 1) -> tuple[int, str]:
        code = self.start(*arguments, cores=cores).wait()
        return code, (self.folder / "said.txt").read_text()

    def lend(self, other: Study) -> None:
        """Gives another one the programs that were compiled here: what is tested is not the compiler."""
        shutil.copytree(self.folder / ".snakemake/retrograd", other.folder / ".snakemake/retrograd")

    def files(self) -> dict[str, str]:
        """Returns the sha256 of each result by its name; logs have times in them."""
        found = (p for p in self.results.rglob("*") if p.is_file() and "logs" not in p.parts)
        return {p.relative_to(self.folder).as_posix(): file_digest(p) for p in found}

    def temporary(self, *, scripts: bool = True) -> list[str]:
        """Returns what a run that is over must not leave behind.

        - `scripts`: Snakemake's copies of scripts too, which stay where it was killed itself.
        """
        own = [p for top in (self.results, self.folder / ".snakemake/retrograd") for p in top.rglob(".*.tmp")]
        names = ("locks", "incomplete", *(["scripts"] if scripts else []))
        own += [p for name in names for p in (self.folder / ".snakemake" / name).rglob("*")]
        return [p.relative_to(self.folder).as_posix() for p in own if p.is_file()]


# -- faults ---------------------------------------------------------------------------------------------------------


def mounts() -> bool:
    """Returns whether this process may mount: root outside of most containers."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextlib.contextmanager
def small_disk(study: Study, room: int) -> Iterator[None]:
    """Puts the results on a file system of their own with that many bytes left."""
    kept = study.folder / "kept"
    study.results.mkdir(exist_ok=True)
    study.results.rename(kept)
    study.results.mkdir()
    # A page for each file and folder, which tmpfs counts.
    used = sum(-(-p.stat().st_size // 4096) * 4096 for p in kept.rglob("*"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={used + room}", "tmpfs", study.results], check=True)
    try:
        shutil.copytree(kept, study.results, dirs_exist_ok=True)
        yield
    finally:
        shutil.rmtree(kept)
        shutil.copytree(study.results, kept)
        _unmount(study.results)
        study.results.rmdir()
        kept.rename(study.results)


def _unmount(path: Path) -> None:
    while subprocess.run(["umount", path], capture_output=True).returncode:
        time.sleep(0.2)


class Faults:
    """Runs of one study, each hurt in another way, with a plain rerun after every few of them."""

    KINDS = (
        *("SIGKILL to a job", "SIGTERM to a job", "out of memory (RLIMIT_AS)", "file size limit (RLIMIT_FSIZE)"),
        *("disk full (tmpfs)", "results read-only (bind mount)", "clock jumps", "results folder away for a while"),
        *("a job's working directory lost", "SIGTERM to Snakemake", "working directory away for a while, --unlock"),
        *("SIGKILL to Snakemake and its jobs, --unlock", "SIGKILL to Snakemake alone, --unlock"),
    )

    def __init__(self, table: Table, undisturbed: Study, folder: Path, seed: int) -> None:
        self.table, self.folder = table, folder
        self.expected = undisturbed.files()
        self.random = random.Random(seed)
        self.left: list[str] = []
        self.study = Study(folder / "study")
        undisturbed.lend(self.study)
        self.kinds = [k for k in self.KINDS if mounts() or ("mount" not in k and "tmpfs" not in k)]

    def round(self, count: int, until: float) -> None:
        """Hurts some runs in a row, then looks whether one plain rerun mends it all."""
        hurt = []
        while len(hurt) < count and time.monotonic() < until:
            # Each of them, before one comes again.
            self.left = self.left or self.random.sample(self.kinds, len(self.kinds))
            kind = self.left.pop()
            if not self.missing():
                remove(self.study, self.random.choice(KINDS_OF_FILES))
            struck, stopped = self.strike(kind)
            bad = self.not_whole()
            if struck:
                hurt.append(kind)
                self.table.add(kind, stopped=stopped, bad=bad)
        code, said = self.study.run()
        bad = [] if code == 0 else [f"rerun after {hurt} failed: {said[-2000:]}"]
        if code == 0:
            found = self.study.files()
            other = [name for name in self.expected if found.get(name) != self.expected[name]]
            left = found.keys() - self.expected.keys()
            left |= {*self.study.temporary(scripts=not any("--unlock" in kind for kind in hurt))}
            bad += [f"{name} is not as undisturbed, after {hurt}" for name in other]
            bad += [f"{name} was left, after {hurt}" for name in sorted(left)]
            shutil.rmtree(self.study.folder / ".snakemake/scripts", ignore_errors=True)
        self.table.add("one plain rerun after some of these", stopped=code != 0, bad=bad)
        print(f"{len(hurt)} runs hurt, then one rerun", file=sys.stderr, flush=True)

    def not_whole(self) -> list[str]:
        """Returns result files that stand under their name and are not those of an undisturbed run."""
        found = {n: d for n, d in self.study.files().items() if n.endswith(".nc") and not Path(n).name.startswith(".")}
        return [f"{name} is there and not whole" for name, digest in found.items() if self.expected.get(name) != digest]

    def missing(self) -> list[str]:
        """Returns the result files that are yet to be made, in an order in which they can be."""
        made_late = lambda name: (KINDS_OF_FILES.index(kind_of(name)), "chunks" not in name)
        wanted = [name for name in self.expected if name.endswith((".nc", ".html"))]
        return sorted((name for name in wanted if not (self.study.folder / name).exists()), key=made_late)

    def strike(self, kind: str) -> tuple[bool, bool]:
        """Runs a part of the study and does something to it.

        Returns whether it was done, and whether the run stopped at it.
        """
        place = Path(tempfile.mkdtemp(dir=self.folder))
        (place / "sitecustomize.py").write_text(HOOK)
        # Of the jobs of this run, which goes on where the one before it was stopped.
        job = self.random.choice((0, 0, 1))
        fault: dict[str, object] = {"place": str(place), "job": job}
        outside: Callable[[subprocess.Popen[str]], None] | None = None
        around: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        study = self.study
        # What the next jobs make: a run that goes on after its fault would else take a minute.
        targets = self.missing()[: job + 1]
        if kind.endswith("to a job"):
            fault |= {"signal": getattr(signal, kind.split()[0])}
            fault |= {"point": self.random.choice(("moment", "writing", "sealing", "naming"))}
            fault |= {"delay": self.random.uniform(0, 3.0 if fault["point"] == "moment" else 0.01)}
        elif kind == "a job's working directory lost":
            fault |= {"lost": True, "point": "moment", "delay": self.random.uniform(0, 3.0)}
        elif "RLIMIT_AS" in kind:
            fault |= {"limits": {"RLIMIT_AS": self.random.randrange(50 << 20, 700 << 20)}}
        elif "RLIMIT_FSIZE" in kind:
            fault |= {"limits": {"RLIMIT_FSIZE": self.random.randrange(0, 60_000)}}
        elif "tmpfs" in kind:
            around = small_disk(study, self.random.randrange(0, 80_000))
        else:
            outside = self.outside(kind)
        with around:
            process = study.start(*targets, fault=fault)
            struck = "tmpfs" in kind
            if outside:
                # From when the first job of the run has begun.
                while process.poll() is None and not (place / "job0").exists():
                    time.sleep(0.05)
                try:
                    process.wait(self.random.uniform(0.0, 4.0))
                    struck = False
                except subprocess.TimeoutExpired:
                    outside(process)
                    struck = True
            code = process.wait()
        self.undo(kind)
        struck = struck or (place / "struck").exists()
        if "--unlock" in kind and struck:
            study.run("--unlock")
        shutil.rmtree(place, ignore_errors=True)
        return struck, code != 0

    def outside(self, kind: str) -> Callable[[subprocess.Popen[str]], None]:
        study, away = self.study, self.folder / "away"

        def jump(_: object) -> None:
            by = self.random.choice((-1, 1)) * self.random.uniform(60, 86400 * 400)
            for path in study.results.rglob("*"):
                with contextlib.suppress(OSError):
                    then = path.stat().st_mtime + by
                    os.utime(path, (then, then))

        def read_only(_: object) -> None:
            study.results.mkdir(exist_ok=True)
            subprocess.run(["mount", "--bind", study.results, study.results], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", study.results], check=True)

        return {
            "results read-only (bind mount)": read_only,
            "clock jumps": jump,
            "results folder away for a while": lambda _: study.results.exists() and study.results.rename(away),
            "working directory away for a while, --unlock": lambda _: study.folder.rename(away),
            "SIGTERM to Snakemake": lambda process: process.terminate(),
            "SIGKILL to Snakemake and its jobs, --unlock": lambda process: os.killpg(process.pid, signal.SIGKILL),
            "SIGKILL to Snakemake alone, --unlock": lambda process: process.kill(),
        }[kind]

    def undo(self, kind: str) -> None:
        study, away = self.study, self.folder / "away"
        if f" {study.results} " in Path("/proc/mounts").read_text():
            _unmount(study.results)
        if away.exists():
            # What was written where the share should have been lies under it once it is back.
            back = study.results if "results" in kind else study.folder
            if back.exists():
                shutil.rmtree(back)
            away.rename(back)


# -- damaged files --------------------------------------------------------------------------------------------------


def readers(study: Study) -> dict[str, Callable[[Path], object]]:
    """Returns the jobs' own way of reading each result file."""
    from retrograd import context, store
    from retrograd.job import prepare_jax

    prepare_jax("float64")
    plugin = str(study.folder / "small.py")
    wanted = {"plugin": file_digest(plugin)}
    out: dict[str, Callable[[Path], object]] = {}
    for name in study.files():
        if name.endswith("/model.nc"):
            out[name] = lambda path: context.load_model(plugin, "Small", str(path), wanted)
        elif name.endswith(".nc"):
            kind = kind_of(name)
            out[name] = lambda path, kind=kind: store.read(path, kind, wanted=wanted)
    return out


def kind_of(name: str) -> str:
    """Returns the kind of a result file by its name."""
    path = Path(name)
    if "chunks" in name:
        return path.parts[-3]
    return path.stem if path.suffix == ".nc" else path.parent.name


def remove(study: Study, kind: str) -> None:
    """Removes the results of this kind and of all that are made after it: the next run goes on from there."""
    gone = KINDS_OF_FILES[KINDS_OF_FILES.index(kind) :]
    for path in sorted(study.results.rglob("*")):
        if path.is_file() and "logs" not in path.parts and kind_of(path.as_posix()) in gone:
            path.unlink()


def damage(table: Table, study: Study, folder: Path, seed: int, flips: int) -> None:
    """Reads files with one bit flipped, cut short, or of an older schema: each must be refused, with what to do."""
    from retrograd.errors import RetrogradError
    from retrograd.schema import SCHEMAS

    chosen, every = random.Random(seed), readers(study)
    names = sorted(every)

    def judged(name: str, what: str, content: bytes, detail: str, why: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        try:
            every[name](path)
        except RetrogradError as error:
            text = str(error)
            told = str(path) in text and f"--forcerun {path}" in text and "Rule " in text and why in text
            table.add(what, stopped=True, bad=[] if told else [f"{name}, {detail}: {text}"])
        else:
            table.add(what, stopped=False, bad=[f"{name}, {detail}: was read"])

    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(study.folder / name, path)
        every[name](path)
    for _ in range(flips):
        name = chosen.choice(names)
        content = bytearray((study.folder / name).read_bytes())
        bit = chosen.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        judged(name, "one bit of a result file flipped", bytes(content), f"bit {bit}", "cannot be read")
    for _ in range(flips // 5):
        name = chosen.choice(names)
        content = (study.folder / name).read_bytes()
        length = chosen.randrange(len(content))
        judged(name, "a result file cut short", content[:length], f"to {length} bytes", "cannot be read")
    for name in names:
        # The readers of the next version, which find this one's files.
        kind = kind_of(name)
        present = SCHEMAS[kind]
        SCHEMAS[kind] = replace(present, version=present.version + 1)
        why = f"has schema '{present.tag}', wanted '{SCHEMAS[kind].tag}'"
        judged(name, "a result file of an older schema", (study.folder / name).read_bytes(), "older", why)
        SCHEMAS[kind] = present


def exchange(table: Table, undisturbed: Study, other: Study, folder: Path, chosen: random.Random, until: float) -> None:
    """Runs the study with a file of another study, or of another chunk, in the place of one of its own: six pairs."""
    names, theirs = undisturbed.files(), other.files()
    pairs = []
    for name in sorted(n for n in names if n.endswith(".nc")):
        place = Path(name)
        alike = [n for n in theirs if Path(n).name == place.name and Path(n).parts[2:-2] == place.parts[2:-2]]
        beside = [n for n in names if n != name and Path(n).parent == place.parent and "chunks" in n]
        pairs += [(name, other.folder / n) for n in alike[:1]] + [(name, undisturbed.folder / n) for n in beside[:1]]
    # The same study has the same model.
    pairs = [(name, source) for name, source in pairs if file_digest(source) != names[name]]
    for name, source in chosen.sample(pairs, min(6, len(pairs))):
        if time.monotonic() > until:
            return
        study = Study(folder)
        shutil.copytree(undisturbed.folder, study.folder, dirs_exist_ok=True)
        shutil.copyfile(source, study.folder / name)
        code, said = study.run()
        refused = code != 0 and f"{name} is not of this run" in said and f"--forcerun {name}" in said
        table.add("a result file exchanged", stopped=code != 0, bad=[] if refused else [f"{name}: {said[-1500:]}"])
        shutil.rmtree(folder)


# -- side by side ---------------------------------------------------------------------------------------------------


def side_by_side(table: Table, study: Study, expected: Mapping[str, str]) -> str:
    """Runs with eight cores, whatever the machine has, and starts a second run on the same results: it must not begin.

    Returns what threads and processor time the jobs took.
    """
    shutil.rmtree(study.results)
    process = study.start(cores=8)
    while process.poll() is None and not any((study.folder / ".snakemake/locks").glob("*")):
        time.sleep(0.05)
    second = subprocess.Popen(
        study.command(), cwd=study.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen: dict[int, tuple[int, float]] = {}
    ratio, together = 0.0, 0
    began: dict[int, float] = {}
    tick = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        now, alive = time.monotonic(), 0
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if ".snakemake/scripts/" not in (entry / "cmdline").read_text() or os.readlink(entry / "cwd") != str(
                    study.folder
                ):
                    continue
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                pid, used = int(entry.name), (int(fields[11]) + int(fields[12])) / tick
                began.setdefault(pid, now - used)
                seen[pid] = max(seen.get(pid, (0, 0.0))[0], int(fields[17])), used
                if now - began[pid] > 1:
                    ratio = max(ratio, used / (now - began[pid]))
                alive += 1
        together = max(together, alive)
        time.sleep(0.1)
    said, _ = second.communicate()
    refused = second.returncode != 0 and "lock" in said
    same = process.returncode == 0 and study.files() == expected and not study.temporary()
    bad = [] if refused and same else [f"second {second.returncode}, first {process.returncode}: {said[-1500:]}"]
    table.add("two runs at once on one results folder", stopped=refused, bad=bad)
    busy = max((threads for threads, _ in seen.values()), default=0)
    bad = [] if same and ratio < 1.2 else [f"returned {process.returncode}, processor time {ratio:.2f} of the clock's"]
    table.add("--cores 8", stopped=False, bad=bad)
    return (
        f"With --cores 8, {together} of {len(seen)} jobs ran side by side; the busiest used {ratio:.2f} processors "
        f"(threads of any kind in a job, most of them asleep: up to {busy})."
    )


def slow_files(table: Table, study: Study, expected: Mapping[str, str], folder: Path) -> None:
    """Runs the gradients and what follows with 5 ms more for each access to a file in the jobs, as at a far server."""
    remove(study, "gradients")
    place = folder / "slow"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HOOK)
    code = study.start(fault={"place": str(place), "slow": 0.005}).wait()
    same = code == 0 and study.files() == expected and not study.temporary()
    bad = [] if same else [(study.folder / "said.txt").read_text()[-1500:]]
    table.add("slow metadata from the gradients on: 5 ms a call", stopped=code != 0, bad=bad)


def main() -> None:
    parser = argparse.ArgumentParser(description="Hurts runs of a small study and counts what came of it.")
    parser.add_argument("--minutes", type=float, default=15, help="when it is over, whatever is done by then")
    parser.add_argument("--runs", type=int, default=120, help="runs to hurt")
    parser.add_argument("--flips", type=int, default=3000, help="bits to flip, one at a time")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="studies side by side")
    parser.add_argument("--seed", type=int, default=0, help="of what is hurt, and where")
    parser.add_argument("--out", type=Path, help="where the table is written besides")
    given = parser.parse_args()
    began = time.monotonic()
    table = Table()
    # Core files of thousands of killed processes are of no use.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="retrograd-faults-") as name:
        folder = Path(name).resolve()
        undisturbed, spare = Study(folder / "undisturbed"), Study(folder / "spare")
        other = Study(folder / "other", "other", SCENARIOS.replace("2.0", "2.5"))
        code, said = undisturbed.run(cores=2)
        if code:
            sys.exit(f"The undisturbed run failed:\n{said}")
        expected = undisturbed.files()
        # What is begun by then takes a rerun of the study more, beside others.
        until = began + 60 * given.minutes - 1.25 * (time.monotonic() - began)
        shutil.copytree(undisturbed.folder, spare.folder, dirs_exist_ok=True)
        parties = [Faults(table, undisturbed, folder / f"worker{i}", given.seed + i) for i in range(given.workers)]

        def party(faults: Faults) -> None:
            while time.monotonic() < until:
                done = sum(row.tried for what, row in table.rows.items() if what in Faults.KINDS)
                if done >= given.runs:
                    return
                faults.round(min(25, given.runs - done), until)

        def others() -> str:
            damage(table, undisturbed, folder / "damaged", given.seed, given.flips)
            threads = side_by_side(table, spare, expected)
            undisturbed.lend(other)
            other.run("results/other/summary.nc")
            exchange(table, undisturbed, other, folder / "exchanged", random.Random(given.seed), until)
            slow_files(table, spare, expected, folder)
            return threads

        with ThreadPoolExecutor() as pool:
            beside, *done = pool.submit(others), *(pool.submit(party, p) for p in parties)
            for future in done:
                future.result()
            threads = beside.result()
    hurt = sum(row.tried for what, row in table.rows.items() if what in Faults.KINDS)
    wrong = sum(row.bad for row in table.rows.values())
    text = (
        f"{table.text()}\nRuns that were hurt: {hurt}. Went wrong: {wrong}. {threads} "
        f"{(time.monotonic() - began) / 60:.1f} minutes.\n"
    )
    print(text)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
