"""How long a solve and a gradient take, compilation left out. Times belong to a machine: no result depends on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from retrograd import peers
from retrograd.gradients import GradientProblem, Scenarios

# Calls that are timed, and the time [s] after which no further one begins.
REPEATS, LONG = 5, 3.0


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Returns what a call returns, and how long it takes [s]: the median of several calls after one that compiles."""
    value, seconds = call(*arguments), []
    while len(seconds) < REPEATS and sum(seconds) < LONG:
        begun = time.perf_counter()
        value = call(*arguments)
        seconds.append(time.perf_counter() - begun)
    return value, float(np.median(seconds))


def derivatives(name: str, problem: GradientProblem, data: Scenarios) -> np.ndarray:
    """Returns a method's derivatives, (scenario, wrt), formed as somebody would who wants nothing else.

    - `name`: one of `settings.BENCHMARK_METHODS`; all but `checkpoint`, `backsolve` and `fd_free` start from the
      recorded steps.
    """
    if name.startswith("checkpoint"):
        return problem.columns_of(peers.checkpoint(problem, data, together=True)[0])
    if name == "backsolve":
        return peers.backsolve_at(problem, data, problem.options["controller"]["rtol"])
    if name == "fd_free":
        return peers.free_differences(problem, data)[0]
    found, stages = problem.replay(data)
    if name == "forward":
        return problem.tangents(data, stages, found["rows"])
    if name == "fd":
        return problem.differences(data, found, stages)["fd"]
    return problem.columns_of(found)
