"""An archived study computed anew: what it was made in, where it runs, and the run itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrograd.archive import CONFIG
from retrograd.job import ONE_THREAD
from retrograd.packing import attributes, other_source
from retrograd.references import config_of, given_files

# Where studies are computed anew, each in a folder of its own, which is a working directory as any other.
REPRODUCTIONS = Path("results", "reproductions")
# Stands in it once a run has come to its comparison: the next one starts from nothing.
FINISHED = ".finished"
REFERENCE = "reference.zip"


def told(archived: Path, root: Path, present: Mapping[str, Any]) -> list[str]:
    """Returns what differs between an unpacked archive and here, before anything is computed, a line each.

    - `present`: the environment here, as `provenance.environment` gives it.
    """
    files = sorted(archived.glob("results/*/*/dynamics.nc"))
    if not files:
        return ["the archive holds no results of simulations"]
    there = attributes(files[0])["environment"]
    # Precision is the variant's, the number of threads the rule's.
    keys = [key for key in there if key not in ("precision", "threads")]
    pairs = {key: [_text(side.get(key)) for side in (present, there)] for key in keys}
    out = [f"environment: {key} is {a} here, {b} in the archive" for key, (a, b) in pairs.items() if a != b]
    if other := other_source(archived, root):
        out.append(
            f"code: {len(other)} of the workflow's files are not those of the archive, such as {other[0]}; the present "
            "ones compute"
        )
    return out or ["environment and code are those of the archive"]


def _text(value: Any) -> str:
    words = value if isinstance(value, list) else str(value).split()
    # Every job of one thread sets this flag itself.
    return " ".join(w for w in words if w != ONE_THREAD) or "none"


def prepared(archived: Path, archive: Path, digest: str) -> Path:
    """Returns a working directory that holds what the archived study was given, and none of its results.

    One that a run was broken off in is gone on with.
    """
    study = config_of(archived)
    folder = REPRODUCTIONS / f"{study['study']}-{digest[:8]}"
    if (folder / FINISHED).exists():
        shutil.rmtree(folder)
    for name in ("config/variants.yaml", *given_files(study, archived).values()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (archived / name).is_file():
            shutil.copyfile(archived / name, target)
    # As JSON: in YAML Snakemake runs what stands behind `__use_yte__`.
    (folder / CONFIG).write_text(json.dumps(study, default=str, indent=1), encoding="utf-8")
    shutil.copyfile(archive, folder / REFERENCE)
    return folder


def run(folder: Path, root: Path, cores: int, surroundings: Mapping[str, str]) -> int:
    """Runs the study in its working directory by the present workflow, up to its comparison; returns the exit code."""
    # -P: no file of the study is a module, whatever it is called.
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    command += ["--workflow-profile", str(root / "workflow" / "profiles" / "default")]
    command += ["--configfile", CONFIG, "--cores", str(cores), "--keep-going", "all", "compare"]
    command += ["--config", f"reference={REFERENCE}"]
    return subprocess.run(command, cwd=folder, env=dict(surroundings), check=False).returncode
