"""Writes envs/retrograd*.yaml, for conda users and `snakemake --sdm conda`: every package of a lock, pinned."""

from __future__ import annotations

from locks import FOLDER, PLATFORMS, locked

PYTHON = "3.12"
LOCKS = {
    "retrograd.yaml": "requirements.txt",
    "retrograd-cuda12.yaml": "requirements-cuda12.txt",
    "retrograd-cuda13.yaml": "requirements-cuda13.txt",
}
HEAD = f"""\
# For conda and `snakemake --sdm conda`; `make` needs no conda. Written by `make lock` from %s.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python ={PYTHON}
  - pip
  - pip:
"""


def text(lock: str) -> str:
    """Returns the environment of a lock: pip's packages, since jax and its plug-ins are built for pip first."""
    wanted: dict[str, dict[str, set[str]]] = {}
    for platform in PLATFORMS:
        for name, pin in locked(lock, platform, PYTHON).items():
            wanted.setdefault(name, {}).setdefault(pin.version, set()).add(platform)
    lines = [
        f"      - {name}=={version}{_marker(platforms)}\n"
        for name, versions in sorted(wanted.items())
        for version, platforms in versions.items()
    ]
    return HEAD % lock + "".join(lines)


def _marker(platforms: set[str]) -> str:
    """Returns the marker, with a semicolon before it, that holds on these platforms only."""
    if platforms == set(PLATFORMS):
        return ""
    if platforms == {p for p in PLATFORMS if p.startswith("linux")}:
        return " ; sys_platform == 'linux'"
    each = (
        " and ".join(f"{k} == '{PLATFORMS[p][k]}'" for k in ("sys_platform", "platform_machine")) for p in platforms
    )
    return " ; " + " or ".join(sorted(each))


if __name__ == "__main__":
    for name, lock in LOCKS.items():
        (FOLDER / name).write_text(text(lock))
