"""Results in Python: one file, or a study's folder as a tree, with labels as indexes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from retrograd import store
from retrograd.errors import RetrogradError
from retrograd.provenance import file_digest
from retrograd.schema import STAGES
from retrograd.settings import RESERVED
from retrograd.whole import seal_holds

FILES = (*STAGES, "fit")
# Nodes beside the variants', and their files in the study's folder.
NODES = {
    "summary": "summary.nc",
    "effects": "effects.nc",
    "comparison": "comparison/comparison.nc",
    "model": "model.nc",
}
# Bytes up to which a variable is read at once.
_SMALL = 1 << 20


class Runs(xr.DataTree):
    """The results of a study, a tree that prints as an overview: in full, each node's variables take hundreds of lines.

    In notebooks it is shown as any DataTree.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        if not self.children:
            return super().__repr__()
        rows = list(_rows(self))
        width = max(len(row) for row, _ in rows)
        lines = [f"<retrograd.Runs {self.name or self.path!r}>"]
        lines += [f"{row:<{width}}  {told}".rstrip() for row, told in rows]
        lines += [f"{key}: {self.attrs[key]}" for key in ("folder", "missing", "left_out") if key in self.attrs]
        return "\n".join(lines)

    __str__ = __repr__


def _rows(node: xr.DataTree, before: str = "") -> Iterator[tuple[str, str]]:
    *others, last = node.children.values()
    for child in (*others, last):
        end = child is last
        ds = child.to_dataset(inherit=False)
        # Each axis of each array of weights is a dimension.
        sizes = ", ".join(f"{dim} {size}" for dim, size in ds.sizes.items()) if len(ds.sizes) < 9 else ""
        count = f"{len(ds.data_vars)} variable{'s' if len(ds.data_vars) > 1 else ''}" if ds.data_vars else ""
        yield f"{before}{'└── ' if end else '├── '}{child.name}", "; ".join(filter(None, (sizes, count)))
        if child.children:
            yield from _rows(child, before + ("    " if end else "│   "))


def open_results(path: str | os.PathLike[str]) -> xr.Dataset | Runs:
    """Returns results with their labels as indexes, so that `.sel(scenario="s01")` works; no file stays open.

    - `path`: a netCDF file that Retrograd wrote: its Dataset, of `model.nc` that of the root group. Or the folder of a
      study: a DataTree with `summary`, `model` with `model/weights`, `effects` and `comparison` where the study has
      them, and `VARIANT/STAGE` for each stage of each variant, of which variables that are large are read from the file
      when they are used. Where a variant is named as one of those nodes, the node is called as its file: `summary.nc`.

    Of a study that is not finished the tree has what is there, and the attribute `missing` names the other files. Files
    of variants that the study does not list any more are passed over and named in `left_out`. Raises RetrogradError
    where nothing is there, and where a file was damaged or is not of the same run as the others.
    """
    path = Path(path)
    if path.is_dir():
        return _study(path)
    if not path.exists():
        raise RetrogradError(
            f"found nothing at {path}, wanted a netCDF file or the folder of a study's results. {_compute()}"
        )
    if seal_holds(path) is False:
        raise RetrogradError(f"{path} was damaged or changed: its sha256 is not the one that stands at its end.")
    return _labelled(xr.load_dataset(path, engine="netcdf4", decode_times=False))


def words(codes: xr.DataArray) -> xr.DataArray:
    """Returns codes, such as those of `outcome`, `status` and `cause`, as the words that they stand for.

    Raises RetrogradError where a variable holds no codes, or lost what says their meanings.
    """
    named = codes.attrs.get("flag_meanings")
    if named is None:
        raise RetrogradError(
            f"{codes.name}: found no flag_meanings, wanted a variable of codes such as outcome, status or cause, with "
            "its attributes: choose from it after its codes are words."
        )
    values, meanings = np.atleast_1d(codes.attrs["flag_values"]), np.array(named.split())
    if unknown := set(np.unique(codes.values)) - set(values):
        raise RetrogradError(f"{codes.name}: found the codes {sorted(map(int, unknown))}, wanted {values.tolist()}.")
    attrs = {key: value for key, value in codes.attrs.items() if key not in ("flag_values", "flag_meanings")}
    out = codes.copy(data=meanings[np.searchsorted(values, codes.values)])
    out.attrs = attrs
    return out


def _labelled(ds: xr.Dataset) -> xr.Dataset:
    swap = {dim: ds[f"{dim}_name"] for dim in ds.dims if f"{dim}_name" in ds.coords}
    ds = ds.drop_vars([f"{dim}_name" for dim in swap])
    return ds.assign_coords({dim: (dim, np.asarray(v.values, dtype=str), v.attrs) for dim, v in swap.items()})


# --- a study's folder -----------------------------------------------------------------------------


def _study(folder: Path) -> Runs:
    found = {node: folder / file for node, file in NODES.items() if (folder / file).is_file()}
    there = {
        sub.name: [stage for stage in FILES if (sub / f"{stage}.nc").is_file()]
        for sub in sorted(folder.iterdir())
        if sub.is_dir() and sub.name.casefold() not in RESERVED
    }
    there = {name: stages for name, stages in there.items() if stages}
    if not there and "summary" not in found:
        raise RetrogradError(f"found no results of a study in {folder}, {_wanted(folder)} {_compute()}")
    parts, wanted = dict[str, xr.Dataset](), dict[str, str]()
    if "model" in found:
        parts |= _model(found["model"])
        said = store.origin(parts["model"].attrs)
        wanted = {"model": file_digest(found["model"])} | {name: said[name] for name in ("plugin",) if name in said}
    listed, steady = list(there), any("steady_state" in stages for stages in there.values())
    if "summary" in found:
        parts["summary"] = _open(found["summary"], "summary")
        listed = [str(v) for v in parts["summary"]["variant"].values]
        steady = store.config_of(parts["summary"])["start"] == "steady_state"
    has_fit = any("fit" in there.get(name, ()) for name in listed)
    stages = [s for s in FILES if (s != "steady_state" or steady) and (s != "fit" or has_fit)]
    missing = [NODES[node] for node in ("model", "summary") if node not in found]
    digests = dict[str, str]()
    for variant in listed:
        known = wanted | {"variant": variant}
        for stage in stages:
            if stage not in there.get(variant, ()):
                missing.append(f"{variant}/{stage}.nc")
                continue
            path = folder / variant / f"{stage}.nc"
            parts[f"{variant}/{stage}"] = _open(path, stage, known)
            known[stage] = digests[f"{variant}/{stage}"] = file_digest(path)
    if "summary" in found:
        store.check_origin(parts["summary"].attrs, found["summary"], "summary", digests)
    if "effects" in found:
        summed = {"summary": file_digest(found["summary"])} if "summary" in found else {}
        parts["effects"] = _open(found["effects"], "effects", summed)
    if "comparison" in found:
        parts["comparison"] = _open(found["comparison"], "comparison")
    return _tree(folder, parts, listed, missing, [name for name in there if name not in listed])


def _tree(
    folder: Path, parts: Mapping[str, xr.Dataset], variants: Sequence[str], missing: Sequence[str], other: Sequence[str]
) -> Runs:
    order = ["summary", "effects", "comparison", "model", "model/weights"]
    order = [*(name for name in order if name in parts), *(name for name in parts if name not in order)]
    # A variant keeps its name; what it would hide takes its file's, which no variant may have.
    renamed = {node: file for node, file in NODES.items() if node in variants}
    renamed |= {f"{node}/weights": f"{file}/weights" for node, file in renamed.items()}
    nodes = {renamed.get(name, name): parts[name] for name in order}
    told = next((p for name, p in parts.items() if name == "summary" or _of_variant(name)), None)
    study = store.config_of(told).get("study", folder.name) if told is not None else folder.name
    attrs: dict[str, Any] = {"study": study, "folder": str(folder)}
    attrs |= {"missing": ", ".join(missing)} if missing else {}
    attrs |= {"left_out": ", ".join(other)} if other else {}
    return Runs.from_dict({"/": xr.Dataset(attrs=attrs), **nodes}, name=study)


def _of_variant(name: str) -> bool:
    return name.rpartition("/")[2] in FILES


def _model(path: Path) -> dict[str, xr.Dataset]:
    stamp = _stamp(path)
    root = _open(path, "model")
    with xr.open_datatree(path, engine="netcdf4", decode_times=False, cache=False) as tree:
        if "weights" not in tree.children:
            return {"model": root}
        weights = tree.children["weights"].to_dataset(inherit=False)
        return {"model": root, "model/weights": _kept(weights, path, stamp, "weights")}


def _open(path: Path, kind: str, wanted: Mapping[str, str] = {}) -> xr.Dataset:
    stamp = _stamp(path)
    store.check_bytes(path, kind)
    with xr.open_dataset(path, engine="netcdf4", decode_times=False, cache=False) as ds:
        store.check_origin(ds.attrs, path, kind, wanted)
        return _labelled(_kept(ds, path, stamp))


def _wanted(folder: Path) -> str:
    studies = sorted(sub.name for sub in folder.iterdir() if (sub / "summary.nc").is_file())
    return (
        f"wanted one of its studies: {', '.join(studies)}." if studies else "wanted model.nc, summary.nc and folders."
    )


def _compute() -> str:
    return (
        "`snakemake --cores all --workflow-profile workflow/profiles/default --configfile STUDY.yaml` computes a study "
        "into results/<study>."
    )


# --- what stays in the file -----------------------------------------------------------------------


def _stamp(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _kept(ds: xr.Dataset, path: Path, stamp: tuple[int, int, int], group: str | None = None) -> xr.Dataset:
    """Returns a dataset of an open file for when it is closed: of its variables the large ones are read when used."""
    later = dict[str, xr.Variable]()
    for name, var in ds.variables.items():
        large = bool(set(store.LARGE) & set(var.dims))
        if name in ds.coords or not (large or var.nbytes > _SMALL):
            var.load()
            continue
        data: Any = indexing.LazilyIndexedArray(_InFile(path, stamp, group, str(name), var))
        data = indexing.CopyOnWriteArray(data)
        # Figures ask for the same values of a variable over and over; those over steps are too many to be kept.
        later[str(name)] = xr.Variable(var.dims, data if large else indexing.MemoryCachedArray(data), var.attrs)
    ds = ds.assign(later)
    ds.set_close(None)
    return ds.drop_encoding()


class _InFile(BackendArray):
    """A variable that stays in its file, which is open only while some of it is read.

    xarray's own way keeps files open, and where there are many opens them again by name: after a rerun that would be
    another file.
    """

    def __init__(
        self, path: Path, stamp: tuple[int, int, int], group: str | None, name: str, like: xr.Variable
    ) -> None:
        self.path, self.stamp, self.group, self.name = path.absolute(), stamp, group, name
        self.shape, self.dtype = like.shape, like.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        if not self.path.is_file() or _stamp(self.path) != self.stamp:
            raise RetrogradError(
                f"{self.path} was removed or written anew since it was opened: open the results again."
            )
        options: dict[str, Any] = {"engine": "netcdf4", "decode_times": False, "cache": False}
        with xr.open_dataset(self.path, group=self.group, **options) as ds:
            return np.asarray(ds.variables[self.name][key].values)
