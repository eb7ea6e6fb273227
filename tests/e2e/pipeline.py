"""A tiny study in a copy of the repository, and Snakemake run on it: shared by tests/e2e and tests/rules."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]

STATES = ("a", "T")
PARAMETERS = ("fast", "slow", "inflow")
TIMES = (0.5, 1.0, 4.0)  # the first one is not 0
WEIGHT, BIAS = 0.01, 0.25

PLUGIN = '''\
"""Heat that flows in, and a substance that follows it fast: linear, so that all of it has a closed form."""

import equinox as eqx
import jax.numpy as jnp
from retrograd.api import Model


class Tiny(Model):
    states = {"a": "mol m-3", "T": "K"}
    parameters = {"fast": "min-1", "slow": "min-1", "inflow": "K"}
    time_unit = "min"
    network: eqx.nn.Linear

    @classmethod
    def build(cls, key):
        return cls(network=eqx.nn.Linear(1, 1, key=key))

    def vector_field(self, t, x, k):
        level = self.network(x[1:])[0]
        return jnp.stack([k["fast"] * (level - x[0]), k["slow"] * (k["inflow"] - x[1])])

    def initial_guess(self, k):
        # No guess, no steady state: a scenario asks for that with an inflow of -1.
        return jnp.array([1.0, 300.0]) / jnp.where(k["inflow"] < 0, jnp.nan, 1.0)

    def loss(self, times, x, k):
        return jnp.sum(x[:, 0] ** 2) + jnp.sum(((x[:, 1] - 300.0) / 10.0) ** 2)
'''

SCENARIOS = """\
# Mild, stiff, very stiff.
scenario\tfast\tslow\tinflow\tinflow@steady
mild\t2.0\t0.5\t310.0\t300.0
stiff\t1.0e3\t0.5\t310.0\t305.0
very stiff\t1.0e6\t0.7\t290.0\t301.0
"""

# The keys of a variant as the contract lists them, none more.
CONFIG = """\
study: tiny
model:
  plugin: models/tiny.py
  class: Tiny
  weights: models/tiny.safetensors
scenarios: tiny.tsv
start: steady_state
save_times: [0.5, 1.0, 4.0]
variants: [own]
chunk_size: 2
gradient:
  methods: [replay]
  wrt: [dynamic, steady, network]
  directions: 1
  seed: 0
strict: false
define_variants:
  own:
    precision: float64
    formulation: stable
    guard: none
    steady_state: {method: root, rtol: 1.0e-10, atol: 1.0e-10, max_steps: 256}
    solver: Kvaerno5
    nonlinear: {method: newton, rtol: null, atol: null}
    controller: {rtol: 1.0e-6, atol: 1.0e-8, pcoeff: 0.0, icoeff: 1.0, dcoeff: 0.0, dtmax: null, dt0: null}
    segments: null
    max_steps: 16384
"""


def copy_repository(to: Path) -> Path:
    """Returns a copy of the working tree: what git tracks, and what is new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, to / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return to


def write_study(folder: Path) -> Path:
    """Writes plug-in, weights, scenarios and config of the tiny study into a folder; returns the config."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "models/tiny.py").write_text(PLUGIN)
    (folder / "tiny.tsv").write_text(SCENARIOS)
    (folder / "tiny.yaml").write_text(CONFIG)
    write_weights(folder / "models/tiny.safetensors", WEIGHT)
    return folder / "tiny.yaml"


def write_weights(path: Path, weight: float) -> None:
    """Writes the network of the tiny study: level = weight * T + BIAS."""
    save_file({"network.weight": np.array([[weight]]), "network.bias": np.array([BIAS])}, path)


def snakemake(
    repository: Path,
    *arguments: str | Path,
    cwd: Path | None = None,
    pythonpath: Path | None = None,
    surroundings: Mapping[str, str] | None = None,
    umask: int = -1,
) -> subprocess.CompletedProcess[str]:
    """Runs Snakemake on one core, by default in the copy of the repository; its stdout holds stderr too.

    - `surroundings`: environment variables that are changed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "EQX_", "PYTEST_"))}
    environment.pop("PYTHONPATH", None)
    if pythonpath:
        environment["PYTHONPATH"] = str(pythonpath)
    environment |= surroundings or {}
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *map(str, arguments)],
        cwd=cwd or repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=umask,
    )


def somebody(home: Path) -> dict[str, str]:
    """Returns the environment variables of another user, elsewhere."""
    return {"HOME": str(home), "USER": "somebody", "LANG": "tr_TR.UTF-8", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}


_JOB = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):\n((?:    .*\n)*)", re.MULTILINE)


def planned(repository: Path, config: str = "tiny.yaml", *, profile: bool = True) -> set[str]:
    """Returns the jobs of a dry run: a rule's name, with the chunk if it has one.

    - `profile`: with the repository's own profile, as `make run` does.
    """
    with_profile = ["--workflow-profile", "workflow/profiles/default"] if profile else []
    run = snakemake(repository, "--dry-run", *with_profile, "--configfile", config)
    assert run.returncode == 0, run.stdout
    jobs = set()
    for rule, details in _JOB.findall(run.stdout):
        chunk = re.search(r"wildcards:.*\bchunk=(\d+)", details)
        jobs.add(f"{rule} {chunk[1]}" if chunk else rule)
    assert jobs or "Nothing to be done" in run.stdout, run.stdout
    return jobs - {"all"}


_finished: list[Path] = []


def finished(tmp_path_factory) -> Path:
    """Returns a copy of the repository with the tiny study run in it: once a session, so treat it as read-only."""
    if not _finished:
        repository = copy_repository(tmp_path_factory.mktemp("finished"))
        config = write_study(repository)
        run = snakemake(repository, "--configfile", config.name)
        assert run.returncode == 0, run.stdout
        _finished.append(repository)
    return _finished[0]
