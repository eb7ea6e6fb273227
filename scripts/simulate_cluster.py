"""Says how long a study of many scenarios takes on a cluster, and which limit comes first, from measured costs.

    python scripts/simulate_cluster.py --scenarios 10_000_000 --nodes 1_000

Arithmetic and no queue: chunks run in waves of one a node, stages one after the other. config/CLUSTER.md says where the
costs come from.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields

# Chunk jobs of three stages, their three joins, summary and report stay below 2,000.
MOST_CHUNKS = 660


@dataclass(frozen=True)
class Costs:
    """What was measured on two cores, of the default study under `recommended`."""

    scenario_seconds: float = 0.205  # all stages of a warm job, gradients with their check
    chunk_seconds: float = 23.0  # the same, what does not depend on the scenarios
    job_seconds: float = 2.6  # CPU of Slurm's and Snakemake's own processes
    jobs_per_second: float = 40.0  # submitted by one Snakemake
    parse_seconds: float = 1.1e-5  # a scenario, each time that a Snakemake reads the study
    parse_bytes: float = 510.0  # memory, a scenario, of each Snakemake
    parses: float = 2.0  # a job: Slurm's batch script and its step
    metadata_bytes: float = 60.0  # a scenario and stage: its row is a parameter of its jobs
    result_bytes: float = 16_500.0  # a scenario
    join_seconds_per_gb: float = 41.0  # in one process for each stage and variant
    join_bytes: float = 200e6  # memory of a join, besides its chunk
    join_memory: float = 10.0  # times the bytes of a chunk


def simulate(scenarios: int, nodes: int, costs: Costs) -> dict[str, float]:
    """Returns the wall time of each part [s], in the order in which they follow."""
    chunks = min(MOST_CHUNKS, scenarios)
    size, waves = math.ceil(scenarios / chunks), math.ceil(chunks / nodes)
    parse = costs.parse_seconds * scenarios
    return {
        "the study is planned": parse,
        "jobs are submitted": 3 * chunks / costs.jobs_per_second,
        "jobs start and read the study": 3 * waves * (costs.job_seconds + costs.parses * parse),
        "imports and compilation": waves * costs.chunk_seconds,
        "numerics": waves * size * costs.scenario_seconds,
        "results are joined": scenarios * costs.result_bytes / 1e9 * costs.join_seconds_per_gb,
    }


def text(scenarios: int, nodes: int, costs: Costs) -> str:
    """Returns the account as lines."""
    parts, chunks = simulate(scenarios, nodes, costs), min(MOST_CHUNKS, scenarios)
    total, size = sum(parts.values()), math.ceil(scenarios / chunks)
    lines = [f"{scenarios:,} scenarios on {nodes:,} nodes: {chunks} chunks of {size:,}, {3 * chunks + 5:,} jobs"]
    lines += [f"{seconds:9,.0f} s {100 * seconds / total:4.0f} %  {part}" for part, seconds in parts.items()]
    joined = scenarios * costs.result_bytes / 1e9
    memory = (costs.join_bytes + size * costs.result_bytes * costs.join_memory) / 1e9
    lines += [
        f"{total:9,.0f} s  100 %  in all; most of it: {max(parts, key=lambda part: parts[part])}",
        f"metadata: {3 * scenarios * costs.metadata_bytes / 1e9:.1f} GB in {3 * chunks + 5:,} files",
        f"memory of each Snakemake: {scenarios * costs.parse_bytes / 1e9:.1f} GB",
        f"results: {joined:,.0f} GB; memory of a join: {memory:.1f} GB",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=10_000_000)
    parser.add_argument("--nodes", type=int, default=1000)
    for cost in fields(Costs):
        parser.add_argument(f"--{cost.name.replace('_', '-')}", type=float, default=cost.default)
    given = vars(parser.parse_args())
    print(text(given.pop("scenarios"), given.pop("nodes"), Costs(**given)))


if __name__ == "__main__":
    main()
