"""The table of simulated values in the layout of PEtab, which follows from `fit.nc`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from retrograd import store

# The sample of a study that has one alone, whose scenarios go by the names of their experiments.
NOMINAL = "nominal"


def simulation_lines(ds: xr.Dataset) -> Iterator[str]:
    """Yields the lines of the table, one sample after the other; with one alone, none is named.

    - `ds`: what `fit.nc` holds.
    """
    samples = store.labels(ds, "sample")
    lead = [f"{name}\t" if len(samples) > 1 else "" for name in samples]
    # A measurement at rest has the time inf, which no result file may hold.
    times = np.nan_to_num(ds["measurement_time"].values, nan=np.inf).tolist()
    rows = [
        f"{observable}\t{experiment}\t{time!r}\t"
        for observable, experiment, time in zip(
            ds["observable_name"].values, ds["experiment_name"].values, times, strict=True
        )
    ]
    yield ("sample\t" if len(samples) > 1 else "") + "observableId\texperimentId\ttime\tsimulation\n"
    for s, first in enumerate(lead):
        for row, value in zip(rows, ds["simulation"][s].values.tolist(), strict=True):
            yield f"{first}{row}{value!r}\n"
