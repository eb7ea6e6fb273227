"""The benchmark of gradient error against cost: that it measures what it says; its times are nobody's concern here."""

from __future__ import annotations

import numpy as np
import pytest
from problems import StiffGrid, grid, options

from retrograd import figures, work_precision
from retrograd.context import Chunk
from retrograd.schema import WORK_PRECISION
from retrograd.store import build

pytestmark = pytest.mark.slow


@pytest.mark.exhaustive
def test_errors_fall_with_the_tolerance():
    k = grid()[[0, 40, 70]]
    chunk = Chunk(["mild", "stiff", "stiffer"], k, k, np.full((3, 2), np.nan))
    methods = ["replay", "fd", "checkpoint"]
    benchmark = {"methods": methods, "tolerances": [1e-4, 1e-7]}
    settings = options(find=None, save_times=[1.0, 10.0], wrt=["dynamic"]) | {"benchmark": benchmark}
    told: list[str] = []
    table = work_precision.measure(StiffGrid, StiffGrid(), settings, chunk, told.append)
    assert told[0] == "reference" and len(told) == 7
    error = table["error"]
    assert np.all(table["reference_error"] < 1e-8)
    assert np.all(np.isfinite(error[:2])) and np.all(error[:2, 1] < np.maximum(error[:2, 0], 1e-12))
    # The same steps: the difference is the derivative of what replay differentiates.
    np.testing.assert_allclose(error[0], error[1], rtol=1e-2, atol=1e-9)
    assert np.all(table["seconds"] > 0) and np.all(table["seconds"][:2] >= table["solve_seconds"][:2])
    labels = {"scenario": chunk.ids, "method": methods, "tolerance": ["1e-4", "1e-7"]}
    dataset = build(WORK_PRECISION, table, labels)
    first, second = (figures.draw_work_precision(dataset) for _ in range(2))
    assert first == second
    assert b"checkpoint" in first["svg"] and first["png"].startswith(b"\x89PNG")
