"""The locks: pinned by hash, free of addresses, complete for every platform, and in step with pyproject.toml."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from problems import ROOT

sys.path.insert(0, str(ROOT / "envs"))

import conda
import locks
import wheels

PLACES = [(platform, python) for platform in locks.PLATFORMS for python in locks.PYTHONS]
# The extras of pyproject.toml that each lock holds.
LOCKS = {
    "requirements.txt": [],
    "requirements-dev.txt": ["dev"],
    "requirements-cuda12.txt": ["cuda12"],
    "requirements-cuda13.txt": ["cuda13"],
    "requirements-petab.txt": ["petab"],
    "requirements-onnx.txt": ["onnx"],
    "requirements-torch.txt": ["torch"],
}
# Pure Python that is published as source only.
SOURCE_ONLY = {"connection-pool", "petab", "sbmlmath"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wants(extra: str) -> list[str]:
    """Returns what an extra asks for, other extras of the project among it resolved."""
    found = []
    for text in project()["optional-dependencies"][extra]:
        requirement = Requirement(text)
        others = requirement.extras if requirement.name == project()["name"] else set()
        found += [d for other in sorted(others) for d in wants(other)] if others else [text]
    return found


@pytest.mark.parametrize("name", [*LOCKS, "uv.txt"])
def test_locks_are_pinned_by_hash_and_name_no_host(name):
    text = (ROOT / "envs" / name).read_text()
    assert "://" not in text
    entries = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert entries
    assert all(re.match(r"[a-zA-Z0-9._-]+==\S+", line) for line in entries)
    pins = locks.pins(name)
    assert len(pins) == len(entries)
    assert all(pin.hashes for pin in pins)


def test_no_file_of_the_environments_names_a_host():
    files = [p for p in (ROOT / "envs").iterdir() if p.is_file()]
    assert {p.name for p in files} >= {"wheels.txt", "Dockerfile", *LOCKS, *conda.LOCKS}
    assert [p.name for p in files if re.search(r"\w://|pypi|\.org\b", p.read_text())] == []


@pytest.mark.parametrize("place", PLACES, ids="-".join)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_what_pyproject_wants(lock, place):
    there = locks.locked(lock, *place)
    wanted = [*project()["dependencies"], *(d for e in LOCKS[lock] for d in wants(e))]
    asked = 0
    for text in wanted:
        requirement = Requirement(text)
        if locks.applies(str(requirement.marker or ""), *place):
            asked += 1
            pin = there.get(canonicalize_name(requirement.name))
            assert pin is not None, text
            assert requirement.specifier.contains(pin.version), (text, pin.version)
    assert asked > 15


def test_every_lock_pins_the_same_versions():
    for place in PLACES:
        run = locks.locked("requirements.txt", *place)
        for lock in LOCKS:
            other = locks.locked(lock, *place)
            assert {name: other[name].version for name in run} == {name: pin.version for name, pin in run.items()}


def test_cuda_is_for_linux_only():
    for lock, plugin in (
        ("requirements-cuda12.txt", "jax-cuda12-plugin"),
        ("requirements-cuda13.txt", "jax-cuda13-plugin"),
    ):
        for platform, python in PLACES:
            there = locks.locked(lock, platform, python)
            assert (plugin in there) == platform.startswith("linux"), (lock, platform)
            if plugin in there:
                assert there[plugin].version == there["jax"].version


@pytest.mark.parametrize("place", PLACES, ids="-".join)
@pytest.mark.parametrize("lock", [*LOCKS, "uv.txt"])
def test_every_package_has_a_wheel_for_the_platform(lock, place):
    table = wheels.table()
    there = locks.locked(lock, *place)
    assert there
    for name, pin in there.items():
        names = [table[sha] for sha in pin.hashes if sha in table]
        fitting = [n for n in names if any(wheels.fits(tag, *place) for tag in wheels.tags(n))]
        assert fitting or name in SOURCE_ONLY, f"{name} {pin.version} has no wheel for {place}: {names}"
        assert all(canonicalize_name(n.partition("-")[0]) == name for n in names)


@pytest.mark.parametrize(
    ("tag", "platform", "python", "fits"),
    [
        ("cp312-cp312-manylinux_2_28_x86_64", "linux-x86_64", "3.12", True),
        ("cp312-cp312-manylinux_2_28_x86_64", "linux-x86_64", "3.13", False),
        ("cp312-cp312-manylinux_2_28_x86_64", "linux-aarch64", "3.12", False),
        ("cp312-cp312-manylinux_2_31_x86_64", "linux-x86_64", "3.12", False),
        ("cp312-cp312-musllinux_1_2_x86_64", "linux-x86_64", "3.12", False),
        ("cp313-cp313t-manylinux_2_28_x86_64", "linux-x86_64", "3.13", False),
        ("cp311-abi3-manylinux2014_aarch64", "linux-aarch64", "3.13", True),
        ("cp313-abi3-manylinux2014_aarch64", "linux-aarch64", "3.12", False),
        ("cp312-cp312-macosx_14_0_arm64", "macos-arm64", "3.12", True),
        ("cp312-cp312-macosx_15_0_arm64", "macos-arm64", "3.12", False),
        ("cp312-cp312-macosx_11_0_x86_64", "macos-arm64", "3.12", False),
        ("cp312-cp312-macosx_10_13_universal2", "macos-arm64", "3.12", True),
        ("cp312-cp312-win_amd64", "linux-x86_64", "3.12", False),
        ("py3-none-any", "macos-arm64", "3.11", True),
        ("py3-none-manylinux_2_27_x86_64", "linux-x86_64", "3.11", True),
        ("py2-none-any", "linux-x86_64", "3.11", False),
    ],
)
def test_which_wheels_fit(tag, platform, python, fits):
    (parsed,) = wheels.tags(f"some-1.0-{tag}.whl")
    assert wheels.fits(parsed, platform, python) is fits


@pytest.mark.parametrize("name", conda.LOCKS)
def test_the_conda_files_are_those_that_make_lock_writes(name):
    assert (ROOT / "envs" / name).read_text() == conda.text(conda.LOCKS[name]), "run `make lock`"


def test_the_container_is_built_from_the_lock():
    lines = (ROOT / "envs/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    (copy,) = (s for s in steps if s[0] == "COPY")
    *sources, target = copy[1:]
    copied = {p.name for source in sources for p in ROOT.glob(source)}
    assert copied == {"uv.txt", *LOCKS}
    (run,) = (s for s in steps if s[0] == "RUN")
    used = [word for before, word in pairwise(run) if before == "-r"]
    assert used == [f"{target}uv.txt", f"{target}$LOCK"]
    assert run.count("--require-hashes") == 2
    (default,) = (s[1].partition("=")[2] for s in steps if s[0] == "ARG")
    assert default in copied
    python = next(s[1] for s in steps if s[0] == "FROM")
    assert re.search(r":(\d+\.\d+)", python)[1] in locks.PYTHONS
    assert Path("/work") == Path(next(s[1] for s in steps if s[0] == "WORKDIR"))
