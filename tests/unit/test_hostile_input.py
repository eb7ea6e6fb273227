"""Files of the hostile kind: each is taken, or refused in words; none is waited for, and nothing in one runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzzing import FUZZERS

COUNTS = {"config": 250, "scenarios": 400, "plug-in, parsed": 100, "SBML": 40, "Antimony": 40, "PEtab": 20}
NEEDS = {"weights .hdf5": "h5py", "weights .onnx": "onnx", "SBML": "libsbml", "Antimony": "antimony", "PEtab": "petab"}


@pytest.mark.parametrize("kind", FUZZERS)
def test_broken_files_are_taken_or_refused_in_words(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind], reason=f"{NEEDS[kind]}, of an extra, is not installed: no {kind}")
    monkeypatch.chdir(tmp_path)
    count = COUNTS.get(kind, 100) * int(os.environ.get("RETROGRAD_FUZZ", "1"))
    found = FUZZERS[kind](tmp_path, count, seed=0)
    assert sum(found.values()) == count
    assert found["refused"] > count // 4
