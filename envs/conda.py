"""Writes envs/retrograd.yaml, for `snakemake --sdm conda`: the direct dependencies, pinned as in the lock."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = "3.12"
HEAD = f"""\
# For `snakemake --sdm conda`; `make` needs no conda. Written by `make lock` from pyproject.toml and requirements.txt.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python ={PYTHON}
  - pip
  - pip:
"""


def locked() -> dict[str, str]:
    """Returns the version of every package of the lock that Python 3.12 gets."""
    found = {}
    for line in (ROOT / "envs/requirements.txt").read_text().splitlines():
        match = re.match(r"([a-zA-Z0-9._-]+)==(\S+)(.*)", line)
        if match and "python_full_version < '3.12'" not in match[3]:
            found[match[1].lower()] = match[2]
    return found


def wanted() -> list[str]:
    """Returns the names of the direct dependencies, with their extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?", d) for d in project["dependencies"]]
    return sorted({name[0] for name in names if name})


def text() -> str:
    """Returns the whole file."""
    versions = locked()
    pins = [f"      - {name}=={versions[name.partition('[')[0].lower()]}\n" for name in wanted()]
    return HEAD + "".join(pins)


if __name__ == "__main__":
    (ROOT / "envs/retrograd.yaml").write_text(text())
