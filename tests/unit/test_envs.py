"""The locks: pinned by hash, free of addresses, and in step with pyproject.toml."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
from problems import ROOT

sys.path.insert(0, str(ROOT / "envs"))

import conda

LOCKS = ["requirements.txt", "requirements-dev.txt", "uv.txt"]


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_pinned_by_hash_and_name_no_host(name):
    text = (ROOT / "envs" / name).read_text()
    assert "://" not in text
    entries = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert entries
    assert all(re.match(r"[a-zA-Z0-9._-]+==\S+", line) for line in entries)
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in block for block in blocks)


def test_exact_pins_of_pyproject_stand_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "envs/requirements.txt").read_text().lower()
    pins = [d.partition(";")[0].strip() for d in project["dependencies"] if "==" in d]
    assert len(pins) >= 6
    assert [pin for pin in pins if not re.search(rf"^{re.escape(pin.lower())}\b", text, re.MULTILINE)] == []
    for name in conda.wanted():
        assert re.search(rf"^{re.escape(name.partition('[')[0].lower())}==", text, re.MULTILINE), name


def test_the_conda_file_is_the_one_that_make_lock_writes():
    assert (ROOT / "envs/retrograd.yaml").read_text() == conda.text(), "run `make lock`"
