"""What the pipeline costs: a study as jobs, cold, against its numerics alone in one warm process.

    python scripts/make_scenarios.py --scale 10_000
    python scripts/measure_overhead.py --configfile config/studies/scale.yaml --cores 2
    python scripts/measure_overhead.py --configfile config/config.yaml --cores 2

The study runs in a copy of this folder, with no results and nothing compiled. Then one process, of one thread, forms
the same steady states, solves, gradients and checks, all scenarios of a work at once, without files, when all of it has
been compiled. What it takes for the first 32 scenarios is tracing for the most part and is taken off: the numerics are
what the others cost, times their share. Prints times by the clock, the ratio, and the processor time of the study.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrograd.plan import Plan

FEW = 32
ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".git", ".venv", ".snakemake", "results", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__")


def main() -> None:
    """Measures, and prints a line a time."""
    parser = argparse.ArgumentParser(description="Measure what jobs, files and DAG add to the numerics of a study.")
    parser.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), help="the study's config")
    parser.add_argument("--cores", type=int, default=2, help="cores for the jobs")
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.warm:
        print(json.dumps(warm(given.configfile)))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "study")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        study = seconds_of([sys.executable, "-m", "snakemake", "--cores", str(given.cores)], given.configfile, copy)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"study as jobs, cold, {given.cores} cores: {study:.1f} s, processor {used.ru_utime + used.ru_stime:.1f} s"
        )
        command = [sys.executable, str(copy / "scripts" / Path(__file__).name), "--warm", "--configfile"]
        out = subprocess.run([*command, given.configfile], cwd=copy, check=True, capture_output=True, text=True).stdout
        first, few, every, count = json.loads(out.splitlines()[-1])
        alone = (every - few) * count / (count - FEW)
        print(f"one process: {first:.1f} s with compilation, {every:.1f} s warm, of it {few:.1f} s for {FEW} scenarios")
        print(f"numerics alone: {alone:.1f} s; ratio: {study / alone:.2f}, to the warm process {study / every:.2f}")


def seconds_of(command: list[str], config: Path, folder: Path) -> float:
    """Returns how long a study takes by the clock [s]."""
    begun = time.perf_counter()
    done = subprocess.run([*command, "--configfile", config], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the study did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return time.perf_counter() - begun


def warm(config: Path) -> list[float]:
    """Returns times of the numerics of a study by the clock [s], and the number of its scenarios.

    First of all scenarios with compilation, then of the first few and of all without.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(".snakemake/warm").absolute()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    import yaml

    from retrograd.job import prepare_jax
    from retrograd.plan import Plan

    # Before anything imports jax.
    prepare_jax("float64")
    plan = Plan(yaml.safe_load(config.read_text(encoding="utf-8")), ROOT)
    times, total = [], len(plan.study.table.ids)
    for count in (total, FEW, FEW, total):
        begun, done = time.perf_counter(), {}
        for variant in plan.variants:
            numerics(plan, variant, count, done)
        times.append(time.perf_counter() - begun)
    return [times[0], *times[2:], total]


def numerics(plan: Plan, variant: str, count: int, done: dict[str, Any]) -> None:
    """Computes what the jobs of a variant compute, all scenarios at once.

    - `count`: of the first so many scenarios.
    - `done`: work -> what came of it, for the variants that share it.
    """
    import numpy as np

    from retrograd import causes, context
    from retrograd.find_stage import find_steady_states
    from retrograd.gradient_stage import form_gradients, gradient_problem
    from retrograd.gradients import from_records
    from retrograd.job import prepare_jax
    from retrograd.plugins import build_structure, load_class
    from retrograd.solve_stage import simulate, stiffness_ratios
    from retrograd.starts import starts_of
    from retrograd.weights import load_into

    study, quiet = plan.study, lambda *_: None
    options = {stage: json.loads(plan.works[plan.work(variant, stage)].settings) for stage in plan.stages}
    prepare_jax(options["dynamics"]["precision"])
    cls = load_class(str(study.model.plugin), study.model.class_)
    weights = str(study.model.weights) if study.model.weights else None
    model = load_into(build_structure(cls), weights, study.model.weight_names)
    chunk = context.chunk_of(study.table, cls, study.start).take(np.arange(count))

    def once(stage: str, compute: Callable[[], Any]) -> Any:
        work = plan.work(variant, stage)
        if work not in done:
            done[work] = compute()
        return done[work]

    found, rest_rung = None, np.zeros(len(chunk.ids), int)
    if "steady_state" in plan.stages:
        mine = options["steady_state"]

        def find() -> Any:
            states, rung = find_steady_states(cls, model, mine, chunk.k_steady, chunk.x0, quiet)
            causes.of_steady_states(cls, model, mine, states, chunk.k_steady)
            return states, rung

        found, rest_rung = once("steady_state", find)
    at_rest = None if found is None else (found.status, found.x)
    start = starts_of(cls, model, chunk.k_dynamic, chunk.x0, at_rest)

    def solve() -> Any:
        mine = options["dynamics"]
        records, rung = simulate(cls, model, mine, start, chunk.k_dynamic, quiet)
        causes.of_dynamics(cls, model, mine, records, start, chunk.k_dynamic)
        stiffness_ratios(cls, model, mine, records, start, chunk.k_dynamic)
        return records, rung

    def differentiate() -> Any:
        mine = options["gradients"]
        at_rest = (None, None) if found is None else (found.x, found.conserved_basis)
        recorded = from_records(chunk, start, records, *at_rest)
        problem = gradient_problem(cls, model, mine)
        return form_gradients(cls, model, mine, problem, recorded, records, (rest_rung, rung))

    records, rung = once("dynamics", solve)
    once("gradients", differentiate)


if __name__ == "__main__":
    main()
