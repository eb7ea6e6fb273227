"""Writes envs/wheels.txt: file name and sha256 of every wheel of the locks for the platforms that are supported.

So a test can say, without an index, that each platform finds a wheel for each package.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from locks import PLATFORMS, PYTHONS
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

TABLE = Path(__file__).parent / "wheels.txt"
HEAD = "# Wheels of the locks on the supported platforms: sha256 and name. Written by `make lock`.\n"
# The oldest systems: glibc 2.28 is that of Debian 10 and RHEL 8, macOS 14 the oldest that scipy's wheels run on.
GLIBC, MACOS = (2, 28), (14, 0)


def fits(tag: Tag, platform: str, python: str) -> bool:
    """Returns whether a wheel with this tag installs on a platform, under a version of CPython."""
    minor = int(python.partition(".")[2])
    if tag.interpreter.startswith("py"):
        language = tag.interpreter in ("py3", "py2.py3", *(f"py3{m}" for m in range(minor + 1)))
        language = language and tag.abi == "none"
    elif not tag.interpreter.startswith("cp3"):
        language = False
    elif tag.abi == "abi3":
        language = int(tag.interpreter.removeprefix("cp3")) <= minor
    else:
        language = tag.interpreter == f"cp3{minor}" and tag.abi in ("none", f"cp3{minor}")
    return language and _runs(tag.platform, platform)


def _runs(tag: str, platform: str) -> bool:
    if tag == "any":
        return True
    system, _, machine = platform.partition("-")
    old = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
    kind, *rest = tag.split("_", 1)
    if system == "macos":
        if kind != "macosx":
            return False
        major, minor, what = rest[0].split("_", 2)
        return what in (machine, "universal2") and (int(major), int(minor)) <= MACOS
    if kind in old:
        return rest[0] == machine
    if kind != "manylinux":
        return False
    major, minor, what = rest[0].split("_", 2)
    return what == machine and (int(major), int(minor)) <= GLIBC


def tags(name: str) -> frozenset[Tag]:
    """Returns the tags of a wheel, from its file name."""
    return parse_wheel_filename(name)[3]


def table() -> dict[str, str]:
    """Returns the written table: sha256 -> file name."""
    lines = (line.split() for line in TABLE.read_text().splitlines() if not line.startswith("#"))
    return dict(lines)


def main(files: list[str]) -> None:
    """Writes the table from what uv resolved, as pylock files."""
    found: dict[str, str] = {}
    for file in files:
        for package in tomllib.loads(Path(file).read_text())["packages"]:
            for wheel in package.get("wheels", []):
                name = wheel.get("name") or wheel["url"].rsplit("/", 1)[-1]
                places = [(p, v) for p in PLATFORMS for v in PYTHONS]
                if any(fits(tag, *place) for tag in tags(name) for place in places):
                    found[name] = wheel["hashes"]["sha256"]
    TABLE.write_text(HEAD + "".join(f"{found[name]}  {name}\n" for name in sorted(found)))


if __name__ == "__main__":
    main(sys.argv[1:])
