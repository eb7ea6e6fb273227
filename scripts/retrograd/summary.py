"""One outcome and one cause for every variant and scenario, from the stages' files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from retrograd import store
from retrograd.schema import CAUSES, DYNAMICS_STATUS, OUTCOMES, STEADY_STATUS, SUMMARY, VERDICTS


def summarize(folder: str, variants: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """Returns the dataset of `summary.nc`.

    - `folder`: the study's results.
    - `variants`: of each its `name` and `gradient`, the method whose verdict decides the outcome.
    """
    rows = [_one(Path(folder) / v["name"], v["gradient"]) for v in variants]
    first = rows[0]
    names = [n for n in SUMMARY.variables if n in first]
    return store.build(
        SUMMARY,
        {name: np.stack([row[name] for row in rows]) for name in names},
        {"variant": [v["name"] for v in variants], "scenario": first["ids"], "method": first["methods"]},
        units={"time": first["time_unit"]},
    )


def _one(folder: Path, method: str) -> dict[str, Any]:
    dynamics = store.read(folder / "dynamics.nc", "dynamics")
    gradients = store.read(folder / "gradients.nc", "gradients")
    steady_file = folder / "steady_state.nc"
    steady = store.read(steady_file, "steady_state") if steady_file.exists() else None
    methods = store.labels(gradients, "method")
    status = gradients["status"].values
    decisive = status[:, methods.index(method)]
    ids = store.labels(dynamics, "scenario")
    total = len(ids)
    outcome = np.array([_OUTCOME_OF[VERDICTS[code]] for code in decisive], np.int8)
    dynamics_status = dynamics["status"].values
    outcome[dynamics_status != 0] = OUTCOMES.index("forward_failed")
    if steady is not None:
        outcome[steady["status"].values != 0] = OUTCOMES.index("steady_state_failed")
    ad, fd = gradients["ad"].values, gradients["fd"].values
    with np.errstate(all="ignore"):
        size = np.max(np.abs(fd), axis=1, initial=0, where=np.isfinite(fd))
        difference = np.max(np.abs(ad - fd[:, None, :]), axis=2, initial=0) / size[:, None]
        scale = gradients["scale"].values
        error = np.max(gradients["ode_error"].values * scale, axis=1, initial=0)
        digits = -np.log10(error / np.max(np.abs(fd) * scale, axis=1, initial=0))
    row: dict[str, Any] = {
        "ids": ids,
        "methods": methods,
        "time_unit": dynamics["model_time"].attrs["units"],
        "outcome": outcome,
        "status": status,
        "dynamics_status": dynamics_status,
        "rung": dynamics["rung"].values,
        "ode_digits": digits,
        "num_accepted": dynamics["num_accepted"].values,
        "num_rejected": dynamics["num_rejected"].values,
        "loss": gradients["loss"].values,
        "max_relative_error": np.where(np.all(np.isfinite(ad), axis=2), difference, np.nan),
        "cause": np.zeros(total, np.int8),
        "cause_time": np.full(total, np.nan),
        "cause_state": np.full(total, -1, np.int32),
        "cause_term": np.full(total, -1, np.int32),
    }
    if steady is not None:
        row["steady_state_status"] = steady["status"].values
        row["steady_state_rung"] = steady["rung"].values
    _causes(row, dynamics, steady, gradients, methods.index(method))
    return row


_OUTCOME_OF = {
    "verified": OUTCOMES.index("verified"),
    "refuted": OUTCOMES.index("gradient_refuted"),
    "inconclusive": OUTCOMES.index("inconclusive"),
    "nonfinite": OUTCOMES.index("gradient_nonfinite"),
    # Simulated, and then nothing to differentiate by: a study without parameters of its own in `wrt`.
    "skipped": OUTCOMES.index("inconclusive"),
}


def _causes(
    row: dict[str, Any], dynamics: xr.Dataset, steady: xr.Dataset | None, gradients: xr.Dataset, m: int
) -> None:
    """Fills cause, cause_time, cause_state and cause_term from what was recorded."""
    attempts = store.ragged(dynamics, "attempt_count")
    steps = store.ragged(dynamics, "step_count")
    finite = dynamics["attempt_finite"].values.astype(bool)
    start = dynamics["attempt_start"].values
    step_time, step_x = dynamics["step_time"].values, dynamics["step_x"].values
    verdict, ad, fd = gradients["verdict"].values[:, m], gradients["ad"].values[:, m], gradients["fd"].values
    for i, code in enumerate(row["outcome"]):
        outcome = OUTCOMES[code]
        cause = "none"
        if outcome == "steady_state_failed":
            assert steady is not None
            found = STEADY_STATUS[steady["status"].values[i]]
            cause = "steady_state_unstable" if found == "unstable" else "steady_state_not_found"
        elif outcome == "forward_failed":
            mine = slice(attempts[i], attempts[i + 1])
            status = DYNAMICS_STATUS[row["dynamics_status"][i]]
            times = step_time[steps[i] : steps[i + 1]]
            row["cause_time"][i] = times[-1] if len(times) else 0.0
            last = step_x[steps[i] : steps[i + 1]]
            if len(last) > 1:
                # Where the last accepted step moved most, for its size.
                move = np.abs(last[-1] - last[-2]) / (1 + np.abs(last[-1]))
                row["cause_state"][i] = int(np.argmax(move))
            # No attempt at the end of the record had an error estimate: not the budget is the cause.
            tail = finite[mine][-10:]
            if status == "nonfinite":
                cause = "nonfinite_rate"
            elif len(tail) and not tail.any():
                cause = "inner_solve_failed"
            elif status == "dt_min_reached":
                cause = "step_size_collapsed"
            else:
                cause = "steps_exhausted"
        elif outcome == "gradient_nonfinite":
            cause = "nonfinite_gradient"
            row["cause_term"][i] = int(np.argmax(~np.isfinite(ad[i])))
            overflowed = np.flatnonzero(~finite[attempts[i] : attempts[i + 1]])
            if len(overflowed):
                # A rejected attempt that overflowed: the backward pass runs through it and meets NaN there.
                row["cause_time"][i] = start[attempts[i] + overflowed[-1]]
        elif outcome in ("gradient_refuted", "inconclusive"):
            cause = "gradient_differs" if outcome == "gradient_refuted" else "check_too_coarse"
            wanted = VERDICTS.index("refuted" if outcome == "gradient_refuted" else "inconclusive")
            with np.errstate(invalid="ignore"):
                gap = np.where(verdict[i] == wanted, np.abs(ad[i] - fd[i]), -1.0)
            row["cause_term"][i] = int(np.argmax(np.where(np.isnan(gap), np.inf, gap))) if len(gap) else -1
        row["cause"][i] = CAUSES.index(cause)
