"""One outcome and one cause for every variant and scenario, from the stages' files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from retrograd import store
from retrograd.schema import OUTCOMES, SUMMARY, VERDICTS, stages_of


def summarize(folder: str, settings: Mapping[str, Any]) -> xr.Dataset:
    """Returns the dataset of `summary.nc`; raises RetrogradError where the files are not of one study.

    - `folder`: the study's results.
    - `settings`: as `Plan.summary_settings` gives them: of each variant its `name` and `gradient`, the method whose
      verdict decides the outcome.
    """
    variants, stages = settings["variants"], stages_of(settings["start"])
    read, wanted = [], {"study": settings["study"]}
    for v in variants:
        read.append(store.read_stages(Path(folder) / v["name"], stages, store.LARGE, wanted | {"variant": v["name"]}))
        said = store.origin(read[-1]["dynamics"].attrs)
        wanted |= {name: said[name] for name in ("model", "plugin", "scenarios") if name in said}
    rows = [_one(files, v["gradient"]) for files, v in zip(read, variants, strict=True)]
    first = rows[0]
    names = [n for n in SUMMARY.variables if n in first]
    return store.build(
        SUMMARY,
        {name: np.stack([row[name] for row in rows]) for name in names},
        {"variant": [v["name"] for v in variants], "scenario": first["ids"], "method": first["methods"]},
        units={"time": first["time_unit"]},
    )


def _one(files: Mapping[str, xr.Dataset], method: str) -> dict[str, Any]:
    dynamics, gradients, steady = files["dynamics"], files["gradients"], files.get("steady_state")
    methods = store.labels(gradients, "method")
    status = gradients["status"].values
    decisive = status[:, methods.index(method)]
    ids = store.labels(dynamics, "scenario")
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
    """Fills in the diagnosis of the stage that failed; of the gradients that of one method."""
    outcome = row["outcome"]
    for name in ("cause", "cause_time", "cause_state", "cause_term", "cause_text"):
        of_gradients = gradients[name].values[:, m]
        values = np.where(outcome == OUTCOMES.index("verified"), _NONE[name], of_gradients)
        for stage, failed in ((dynamics, "forward_failed"), (steady, "steady_state_failed")):
            if stage is not None and name in stage:
                values = np.where(outcome == OUTCOMES.index(failed), stage[name].values, values)
        row[name] = values


_NONE = {"cause": 0, "cause_time": np.nan, "cause_state": -1, "cause_term": -1, "cause_text": ""}
