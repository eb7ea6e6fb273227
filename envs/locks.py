"""The locks read: which versions and hashes they pin for a platform and a version of Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")
# Environment markers of each supported platform, as pip evaluates them.
PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    "linux-aarch64": {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux"},
    "macos-arm64": {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
}


@dataclass(frozen=True)
class Pin:
    """One entry of a lock."""

    name: str
    version: str
    marker: str
    hashes: frozenset[str]


def pins(lock: str) -> list[Pin]:
    """Returns all entries of a lock, such as `requirements.txt`."""
    found = []
    for block in re.split(r"\n(?=\S)", (FOLDER / lock).read_text()):
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;([^\\\n]*))?", block)
        if match:
            hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
            found.append(Pin(canonicalize_name(match[1]), match[2], (match[3] or "").strip(), hashes))
    return found


def applies(marker: str, platform: str, python: str) -> bool:
    """Returns whether a requirement with this marker counts on a platform, under a version of CPython."""
    surroundings = {
        **PLATFORMS[platform],
        "python_version": python,
        "python_full_version": f"{python}.0",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    return not marker or Marker(marker).evaluate(surroundings)


def locked(lock: str, platform: str, python: str) -> dict[str, Pin]:
    """Returns what a lock installs on a platform, by name; raises ValueError where it has two versions of one."""
    found: dict[str, Pin] = {}
    for pin in pins(lock):
        if applies(pin.marker, platform, python):
            if pin.name in found:
                raise ValueError(f"{lock} has two versions of {pin.name} for Python {python} on {platform}")
            found[pin.name] = pin
    return found
