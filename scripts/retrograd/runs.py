"""Two runs of a variant, read for a comparison: files, models, and the scenarios that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from retrograd import store
from retrograd.context import Chunk
from retrograd.dynamics import Record
from retrograd.errors import RetrogradError
from retrograd.gradients import load_records
from retrograd.packing import attributes
from retrograd.whole import seal_holds


@dataclass(frozen=True)
class Run:
    """One run's files of a variant.

    - `files`: stage -> its file.
    - `model`: the root of `model.nc`; `weights`: pytree path -> array.
    - `said`: file -> what it says of its origin, with the digest of what stands in it now as `content`.
    """

    files: Mapping[str, xr.Dataset]
    model: xr.Dataset
    weights: Mapping[str, np.ndarray]
    said: Mapping[str, Mapping[str, Any]]

    @property
    def scenarios(self) -> list[str]:
        return store.labels(self.files["dynamics"], "scenario")

    @property
    def weights_sha256(self) -> str:
        return str(self.model.attrs["weights_sha256"])


@dataclass(frozen=True)
class Side:
    """One run, as it is compared.

    - `rows`: of each scenario that both runs have, its place in the files.
    """

    run: Run
    rows: np.ndarray

    @property
    def files(self) -> Mapping[str, xr.Dataset]:
        return self.run.files

    def of(self, stage: str, name: str) -> np.ndarray:
        """Returns a variable's values, scenarios first."""
        return self.files[stage][name].values[self.rows]

    @cached_property
    def records(self) -> list[Record]:
        found = load_records(self.files["dynamics"])
        return [found[i] for i in self.rows]

    def good(self, stage: str) -> np.ndarray:
        """Returns which scenarios came through a stage, shape (scenario,)."""
        return self.of(stage, "status") == 0

    def column(self, dim: str, labels: Sequence[str]) -> list[int]:
        """Returns the places of labels along a dimension of the gradients' file."""
        known = labels_of(self.files["gradients"], dim)
        return [known.index(label) for label in labels]


def labels_of(ds: xr.Dataset, dim: str) -> list[str]:
    """Returns the labels along a dimension; one without entries has none in the file."""
    return store.labels(ds, dim) if f"{dim}_name" in ds.coords else []


def units_of(ds: xr.Dataset) -> dict[str, str]:
    """Returns the units of time, and of each state and parameter, by what they are of, from the dynamics' file."""
    out = {"time": str(ds["model_time"].attrs["units"])}
    for dim, name in (("state", "x"), ("parameter", "k")):
        labels = labels_of(ds, dim)
        each = f"{dim}_units"
        units = ds[each].values if each in ds.coords else [ds[name].attrs.get("units", "")] * len(labels)
        out |= {f"{dim} {label}": str(unit) for label, unit in zip(labels, units, strict=True)}
    return out


def read_run(folder: Path, variant: str, stages: Sequence[str], wanted: Mapping[str, str] | None = None) -> Run:
    """Returns a run's files of a variant; raises RetrogradError where one is missing or is not what it should be.

    - `wanted`: as for `store.read`, of a run of this working directory. None: of somebody else's run, which may have
      been changed on purpose; what its files say of themselves is compared then.
    """
    paths = {stage: folder / variant / f"{stage}.nc" for stage in stages}
    if missing := [str(path) for path in (folder / "model.nc", *paths.values()) if not path.is_file()]:
        raise RetrogradError(
            f"found no {', no '.join(missing)}: the run is not finished, or it is one of another model."
        )
    if wanted is not None:
        store.check_bytes(folder / "model.nc", "model")
        for stage, path in paths.items():
            store.check_bytes(path, stage)
    named = {"model.nc": folder / "model.nc"} | {f"{stage}.nc": path for stage, path in paths.items()}
    said = {name: _said(path) for name, path in named.items()}
    with xr.open_datatree(folder / "model.nc", engine="netcdf4", decode_times=False) as tree:
        tree.load()
        root = tree.to_dataset()
        group = tree["/weights"].to_dataset() if "weights" in tree.children else xr.Dataset()
    weights = {str(v.attrs["path"]): v.values.astype(v.attrs["dtype"]) for v in group.data_vars.values()}
    if wanted is None:
        files = {stage: store.read(path, stage, foreign=True) for stage, path in paths.items()}
    else:
        files = store.read_stages(folder / variant, stages, wanted={**wanted, "variant": variant})
    return Run(files, root, weights, said)


def _said(path: Path) -> dict[str, Any]:
    try:
        if seal_holds(path) is False:
            raise RetrogradError("its sha256 is not the one that stands at its end")
        return attributes(path) | {"content": store.content_digest_of(path)}
    except Exception as error:
        # Of a damaged file netCDF4 and xarray raise what they happen to stumble over.
        raise RetrogradError(
            f"{path} cannot be read as a result ({type(error).__name__}: {error}): it was damaged or cut short. Get "
            "that run's files again, or compute it anew."
        ) from error


def both_sides(here: Run, there: Run) -> tuple[Side, Side]:
    """Returns two runs with the scenarios that both have, in the order of the first.

    Raises RetrogradError where they are of models with other states or parameters, or have no scenario in common.
    """
    for what in ("state", "parameter"):
        mine, theirs = (labels_of(run.files["dynamics"], what) for run in (here, there))
        if mine != theirs:
            raise RetrogradError(
                f"the reference has the {what}s {', '.join(theirs)}, this run has {', '.join(mine)}: they are of "
                "different models, so there is nothing to compare. Give the reference run of this study."
            )
    common = [name for name in here.scenarios if name in set(there.scenarios)]
    if not common:
        raise RetrogradError(
            f"the reference's scenarios ({', '.join(there.scenarios[:5])}, …) and this run's "
            f"({', '.join(here.scenarios[:5])}, …) have no name in common: give the reference run of this study."
        )
    sides = []
    for run in (here, there):
        place = {name: i for i, name in enumerate(run.scenarios)}
        sides.append(Side(run, np.array([place[name] for name in common])))
    return sides[0], sides[1]


def chunk_of_both(chunk: Chunk, side: Side) -> Chunk:
    """Returns the scenarios of a study that both runs have."""
    place = {name: i for i, name in enumerate(chunk.ids)}
    return chunk.take(np.array([place[side.run.scenarios[i]] for i in side.rows]))


def shapes(weights: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's arrays: what is the same where two fit each other."""
    return {name: array.shape for name, array in weights.items()}
