"""Simulations held against measurements: what each parameter sample's experiments say together.

A scenario is one experiment under one parameter sample. Its loss is the negative log-likelihood of the experiment's
measurements, so that the sum over the experiments, with the sign turned, is the log-likelihood of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from retrograd import store
from retrograd.api import Model
from retrograd.batches import LANES, batched, float_type
from retrograd.certificates import WORST_FIRST
from retrograd.context import units_of
from retrograd.errors import RetrogradError
from retrograd.jumps import row_times
from retrograd.plugins import asked, parameter_dict
from retrograd.schema import FIT, FIT_STATUS, VERDICTS
from retrograd.simulations import NOMINAL

COMPLETE, FAILED, MISSING = range(len(FIT_STATUS))
# Bytes of a variable that are read at a time: gradients by weights take kilobytes and more a scenario.
_PIECE = 1 << 26


def fit(cls: type[Model], model: Model, dynamics: xr.Dataset, gradients: xr.Dataset) -> xr.Dataset:
    """Returns the dataset of `fit.nc`.

    - `dynamics`, `gradients`: of one variant; variables over scenarios may stay in their files.
    """
    if not cls.measurements:
        raise RetrogradError(
            f"{cls.__name__} has no measurements, though its class body names them: leave `measurements` out of it, "
            "or fill it."
        )
    ids = store.labels(dynamics, "scenario")
    pieces = list(_pieces(cls, model, dynamics))
    samples, of_sample, has = _assign(cls, ids, [rows for rows, _, _ in pieces])
    table = _values(cls, len(samples), of_sample, pieces)
    table |= _sums(cls, len(samples), of_sample, has, gradients)
    names, _ = _parameters(cls, gradients)
    return store.build(
        FIT,
        table,
        {
            "sample": samples,
            "method": store.labels(gradients, "method"),
            # A dimension without entries has no labels: netCDF has no empty list of texts.
            **({"parameter": names} if names else {}),
        },
        units=units_of(cls) | {"parameter": [cls.parameters[name] for name in names]},
    )


def _pieces(
    cls: type[Model], model: Model, dynamics: xr.Dataset
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields of each scenario which measurements are its own, what was simulated and the noise, each (row,)."""
    saved = dynamics["model_time"].values
    times = jnp.asarray(row_times(cls.jump_times, saved, float_type()))

    def one(model: Model, x: jax.Array, k: jax.Array) -> tuple[jax.Array, ...]:
        found = asked(cls, "fitted", model.fitted, times, x, parameter_dict(cls, k))
        if len(found) != 3:
            raise RetrogradError(f"{cls.__name__}.fitted returned {len(found)} arrays, wanted rows, simulation, noise.")
        rows, simulation, noise = map(jnp.asarray, found)
        if rows.ndim != 1 or not simulation.shape == noise.shape == rows.shape:
            shapes = ", ".join(str(v.shape) for v in (rows, simulation, noise))
            raise RetrogradError(f"{cls.__name__}.fitted returned shapes {shapes}, wanted (row,) three times.")
        if not jnp.issubdtype(rows.dtype, jnp.integer):
            raise RetrogradError(f"{cls.__name__}.fitted returned rows of type {rows.dtype}, wanted whole numbers.")
        return rows, simulation.astype(x.dtype), noise.astype(x.dtype)

    call = eqx.filter_jit(jax.vmap(one, in_axes=(None, 0, 0)))
    size = LANES * max(1, _rows_of_a_piece(dynamics["x"]) // LANES)
    for part in _slices(dynamics.sizes["scenario"], size):
        for rows, *values in zip(
            *batched(call, model, dynamics["x"][part].values, dynamics["k"][part].values), strict=True
        ):
            own = rows != -1
            yield rows[own], *(v[own] for v in values)


def _rows_of_a_piece(variable: xr.DataArray) -> int:
    return max(1, _PIECE // max(1, math.prod(variable.shape[1:]) * variable.dtype.itemsize))


def _slices(total: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def _assign(
    cls: type[Model], ids: Sequence[str], rows: Sequence[np.ndarray]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the samples' names in order, each scenario's sample (scenario,), and what is there, (sample,).

    - `rows`: of each scenario which measurements are its own. One that has none is of no sample: -1.

    What is there counts the experiments of a sample that the study has as scenarios.
    """
    experiments = list(map(str, cls.measurements["experiment"]))
    samples: dict[str, int] = {}
    of_sample = np.full(len(ids), -1)
    taken: dict[tuple[str, str], str] = {}
    for s, (name, mine) in enumerate(zip(ids, rows, strict=True)):
        if not len(mine):
            continue
        if mine.min() < 0 or mine.max() >= len(experiments) or len(np.unique(mine)) < len(mine):
            raise RetrogradError(
                f"{cls.__name__}.fitted gave scenario {name!r} the measurements {mine.tolist()[:10]}, wanted each at "
                f"most once, from 0 to {len(experiments) - 1}, and -1 for padding."
            )
        own = {experiments[row] for row in mine}
        if len(own) > 1:
            raise RetrogradError(
                f"{cls.__name__}.fitted gave scenario {name!r} measurements of the experiments "
                f"{', '.join(sorted(own)[:5])}, wanted those of one experiment."
            )
        (experiment,) = own
        sample = NOMINAL if name == experiment else name.removesuffix(f":{experiment}")
        if sample == name or not sample:
            raise RetrogradError(
                f"Scenario {name!r} has measurements of the experiment {experiment!r}, wanted the id {experiment!r} or "
                f"'SAMPLE:{experiment}': rename it in the scenario table."
            )
        other = taken.setdefault((sample, experiment), name)
        if other != name:
            raise RetrogradError(
                f"Scenarios {other!r} and {name!r} are both the experiment {experiment!r} of the sample {sample!r}: "
                "rename one of them in the scenario table."
            )
        of_sample[s] = samples.setdefault(sample, len(samples))
    if not samples:
        raise RetrogradError(
            f"{cls.__name__}.fitted gave no scenario a measurement, wanted indices into `measurements` in its rows."
        )
    return list(samples), of_sample, np.bincount(of_sample[of_sample >= 0], minlength=len(samples))


def _values(
    cls: type[Model],
    n_samples: int,
    of_sample: np.ndarray,
    pieces: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """Returns the variables over measurements."""
    measured = np.array(cls.measurements["measurement"], float)
    simulation, noise = np.full((2, n_samples, len(measured)), np.nan)
    for sample, (rows, simulated, scale) in zip(of_sample, pieces, strict=True):
        simulation[sample, rows], noise[sample, rows] = simulated, scale
    with np.errstate(all="ignore"):
        residual = (measured - simulation) / noise
    return {
        "observable_name": list(map(str, cls.measurements["observable"])),
        "experiment_name": list(map(str, cls.measurements["experiment"])),
        "measurement_time": np.array(cls.measurements["time"], float),
        "measured": measured,
        "simulation": simulation,
        "noise": noise,
        "residual": residual,
    }


def _parameters(cls: type[Model], gradients: xr.Dataset) -> tuple[list[str], np.ndarray]:
    """Returns the parameters that derivatives are taken by, and which of them each wrt is, -1 for weights, (wrt,)."""
    labels = store.labels(gradients, "wrt") if "wrt_name" in gradients else []
    heads = [label.rpartition("@")[0] for label in labels]
    names = [name for name in cls.parameters if name in heads]
    return names, np.array([names.index(head) if head else -1 for head in heads], int)


def _sums(
    cls: type[Model], n_samples: int, of_sample: np.ndarray, has: np.ndarray, gradients: xr.Dataset
) -> dict[str, Any]:
    """Returns the variables over samples alone: sums over their experiments, in the order of the scenarios.

    - `has`: as `_assign` counts.
    """
    rows = np.flatnonzero(of_sample >= 0)
    owner = of_sample[rows]
    loss = gradients["loss"].values[rows]
    done = np.bincount(owner[np.isfinite(loss)], minlength=n_samples)
    wanted = len(set(cls.measurements["experiment"]))
    status = np.where(has < wanted, MISSING, np.where(done < wanted, FAILED, COMPLETE))
    # NaN from the start where an experiment is missing: it stays.
    start = np.where(status == MISSING, np.nan, 0.0)
    names, parameter = _parameters(cls, gradients)
    methods = gradients.sizes["method"]
    out = {name: start.copy() for name in ("llh", "llh_error")}
    sizes = {"gradient": len(names), "gradient_error": len(names), "gradient_network": gradients.sizes["weight"]}
    for name, size in sizes.items():
        out[name] = np.broadcast_to(start[:, None, None], (n_samples, methods, size)).copy()
    np.subtract.at(out["llh"], owner, loss)
    np.add.at(out["llh_error"], owner, gradients["loss_error"].values[rows])
    ad, bar = gradients["ad"].values[rows], gradients["ad_error"].values[rows]
    bar = bar + gradients["ode_error"].values[rows][:, None]
    for j in np.flatnonzero(parameter >= 0):
        np.subtract.at(out["gradient"][:, :, parameter[j]], owner, ad[:, :, j])
        np.add.at(out["gradient_error"][:, :, parameter[j]], owner, bar[:, :, j])
    network = gradients["gradient_network"]
    for part in _slices(len(of_sample), _rows_of_a_piece(network)):
        mine = of_sample[part]
        np.subtract.at(out["gradient_network"], mine[mine >= 0], network[part].values[mine >= 0])
    # The place of each verdict on the way from the best to the worst.
    better_first = np.array(WORST_FIRST[::-1])
    rank = np.argsort(better_first)
    worst = np.zeros((n_samples, methods), int)
    worst[status == MISSING] = rank[VERDICTS.index("skipped")]
    np.maximum.at(worst, owner, rank[gradients["status"].values[rows]])
    return out | {"status": status, "n_experiments": done, "verdict": better_first[worst]}
