"""The account of a cluster run against sums done by hand."""

from __future__ import annotations

import sys

from problems import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from simulate_cluster import MOST_CHUNKS, Costs, simulate, text


def test_two_waves_of_jobs_by_hand():
    costs = Costs(
        scenario_seconds=2.0,
        chunk_seconds=3.0,
        job_seconds=1.0,
        jobs_per_second=10.0,
        parse_seconds=0.01,
        parses=2.0,
        result_bytes=1e6,
        join_seconds_per_gb=100.0,
    )
    # Two chunks for each two nodes, ten scenarios each.
    parts = simulate(10 * MOST_CHUNKS, MOST_CHUNKS // 2, costs)
    assert list(parts.values()) == [66.0, 198.0, 6 * (1 + 2 * 66.0), 6.0, 40.0, 660.0]


def test_the_number_of_jobs_stays_below_the_contract():
    assert "1,985 jobs" in text(10_000_000, 1000, Costs())
    assert "8 jobs" in text(1, 1000, Costs())
