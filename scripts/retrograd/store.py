"""The one writer and reader of netCDF files: atomic, byte-stable, checked against the schema."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from retrograd import __version__
from retrograd.errors import RetrogradError
from retrograd.provenance import canonical, file_digest
from retrograd.schema import SCHEMAS, Schema, Variable
from retrograd.whole import seal_holds, to_rebuild, whole

_VOLATILE = ("retrograd_content_sha256", "retrograd_environment")
# Dimensions whose entries have units of their own.
_WITH_UNITS = ("state", "parameter")
# Along these the chunks of a study follow each other.
JOINED: tuple[str, ...] = ("scenario", "step", "attempt")
# Bytes of a variable that are read at a time.
_PIECE = 1 << 24
# Below this size compression costs more bytes than it saves.
_COMPRESS_FROM = 1 << 20


@dataclass(frozen=True)
class Provenance:
    """What a file depends on, as it is written into its global attributes."""

    config: dict[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # name -> sha256
    code_digest: str = ""
    environment: dict[str, Any] = field(default_factory=dict)


class _Digest:
    """The sha256 of contents that come piece by piece: names, dimensions, values and attributes.

    Values are hashed little-endian and in C order, so that it is the same under every library version, byte order and
    compression. Environment and encoding do not enter.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def group(self, path: str, attrs: Mapping[str, Any]) -> None:
        kept = {k: _plain(v) for k, v in attrs.items() if k not in _VOLATILE}
        self._sha.update(f"group {path} {canonical(kept)}\n".encode())

    def variable(
        self, name: str, dims: tuple[Any, ...], shape: tuple[int, ...], attrs: Mapping[str, Any], pieces: Iterable[Any]
    ) -> None:
        """- `pieces`: arrays that make the values, joined along the first dimension."""
        kept = {k: _plain(v) for k, v in attrs.items() if k != "_FillValue"}
        self._sha.update(f"{name} {dims} {shape} {canonical(kept)}\n".encode())
        texts = 0
        for piece in pieces:
            if piece.dtype.kind in "OUST":
                listed = canonical(np.asarray(piece, dtype=object).ravel().tolist())[1:-1]
                self._sha.update(f"{',' if texts and listed else '' if texts else '['}{listed}".encode())
                texts += 1
            else:
                values = np.ascontiguousarray(piece)
                self._sha.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        self._sha.update(b"]" if texts else b"")

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def content_digest(tree: xr.Dataset | xr.DataTree) -> str:
    """Returns a sha256 of names, dimensions, values and attributes; environment and encoding do not enter."""
    digest = _Digest()
    nodes = tree.subtree if isinstance(tree, xr.DataTree) else [xr.DataTree(tree)]
    for node in sorted(nodes, key=lambda n: n.path):
        ds = node.to_dataset(inherit=False)
        digest.group(node.path, ds.attrs)
        for name in sorted(map(str, ds.variables)):
            var = ds.variables[name]
            digest.variable(name, var.dims, var.shape, var.attrs, [var.values])
    return digest.hexdigest()


def content_digest_of(path: str | os.PathLike[str]) -> str:
    """Returns the `content_digest` of a written file, computed from what stands in it."""
    with xr.open_datatree(path, engine="netcdf4", decode_times=False) as tree:
        return content_digest(tree)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # An attribute of one number is read back as a scalar.
        return value.item() if value.size == 1 else value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def build(
    schema: Schema,
    values: Mapping[str, Any],
    labels: Mapping[str, list[str]],
    *,
    units: Mapping[str, Any] | None = None,
    coords: Mapping[str, tuple[Any, str, str]] | None = None,
    flags: Mapping[str, Sequence[str]] | None = None,
) -> xr.Dataset:
    """Returns a dataset with the schema's dimensions, types and attributes.

    - `values`: variable name to array; variables of the schema may be left out, others are refused.
    - `labels`: dimension to its labels; each gets an int32 index coordinate and `<dimension>_name`.
    - `units`: fills `{state}`, `{parameter}`, `{time}` and `{per_time}`. `state` is the list of the states' units:
      where they differ, a variable over states carries no unit and `state_units` does; `parameter` likewise.
    - `coords`: further numeric coordinates, dimension to (values, units, long_name).
    - `flags`: meanings of a variable's codes where these are the study's and not the schema's.
    """
    fill = dict(units or {})
    listed = {dim: list(fill.get(dim, ["1"])) for dim in _WITH_UNITS}
    data: dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]] = {}
    for name, value in values.items():
        var = schema.variables[name]
        if flags and name in flags:
            var = replace(var, flags=tuple(flags[name]))
        array = _text(value) if var.dtype == "str" else np.asarray(value, dtype=var.dtype)
        if array.dtype.kind == "f":
            # A value that was not computed is NaN, never inf: readers cannot tell an infinite pad from a result.
            array = np.where(np.isfinite(array), array, np.nan)
        data[name] = (var.dims, array, _attributes(var, fill, listed))
    coordinates: dict[str, Any] = {}
    used = {d for dims, _, _ in data.values() for d in dims}
    # In an order of their own: it decides the file's bytes.
    for dim, names in sorted(labels.items()):
        if dim not in used:
            continue
        coordinates[dim] = (
            (dim,),
            np.arange(len(names), dtype=np.int32),
            {"long_name": f"index of the {dim}", "units": "1"},
        )
        coordinates[f"{dim}_name"] = (
            (dim,),
            _text(names),
            {"long_name": schema.labels.get(dim, f"name of the {dim}")},
        )
    for dim, found in listed.items():
        if len(set(found)) > 1 and dim in used:
            coordinates[f"{dim}_units"] = (
                (dim,),
                np.asarray(found, dtype=object),
                {"long_name": f"unit of the {dim}"},
            )
    for dim, (array, unit, long_name) in (coords or {}).items():
        coordinates[dim] = (
            (dim,),
            np.asarray(array, dtype=np.float64),
            {"units": unit, "long_name": long_name},
        )
    return xr.Dataset(data, coords=coordinates)


def _text(values: Any) -> np.ndarray:
    # Where there are none, no type can be inferred from them.
    return np.asarray(values, dtype=object if np.size(values) else "U1")


def _attributes(var: Variable, fill: Mapping[str, Any], listed: Mapping[str, list[str]]) -> dict[str, Any]:
    attrs: dict[str, Any] = {"long_name": var.long_name}
    if var.flags:
        attrs["flag_values"] = np.arange(len(var.flags), dtype=np.int8)
        attrs["flag_meanings"] = " ".join(var.flags)
    elif var.dtype == "str":
        pass
    elif (dim := var.units.strip("{}")) in listed:
        if len(set(listed[dim])) > 1:
            attrs["comment"] = f"units differ by {dim} and stand in {dim}_units"
        else:
            attrs["units"] = next(iter(listed[dim]), "1")
    else:
        unit = fill.get("time", "s")
        per_time = f"({unit})-1"
        attrs["units"] = var.units.format(time=unit, per_time=per_time)
    if var.sample_dimension:
        attrs["sample_dimension"] = var.sample_dimension
    if var.comment:
        attrs["comment"] = var.comment
    return attrs


def write(
    tree: xr.Dataset | xr.DataTree,
    path: str | os.PathLike[str],
    schema: Schema,
    provenance: Provenance,
    *,
    title_of: str = "",
) -> None:
    """Writes a netCDF file atomically, with every global attribute that the contract names.

    The file appears under its name only when it is whole: netCDF4 leaves valid, openable partial files when it
    is killed. Behind it stands a digest of its bytes.
    """
    is_tree = isinstance(tree, xr.DataTree)
    root = tree.to_dataset(inherit=False) if is_tree else tree
    _refuse_incomplete(root, schema)
    attrs = _global_attributes(schema, provenance, title_of, root.attrs)
    if is_tree:
        tree = tree.copy(deep=False)
        tree.attrs = attrs
    else:
        # What was read remembers its empty dimensions, in a set: their order would differ from run to run.
        tree = tree.drop_encoding().assign_attrs(attrs)
    tree.attrs["retrograd_content_sha256"] = content_digest(tree)
    with whole(path, sealed=True) as temporary:
        if isinstance(tree, xr.DataTree):
            encoding = {node.path: _encoding(node.to_dataset(inherit=False)) for node in tree.subtree}
            tree.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=encoding)
        else:
            tree.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=_encoding(tree))


def _global_attributes(schema: Schema, provenance: Provenance, title_of: str, own: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.11, ACDD-1.3",
        "title": f"{schema.title}{': ' if title_of else ''}{title_of}",
        "summary": schema.summary,
        "keywords": "ordinary differential equations, stiff, gradient, reproducibility",
        "institution": "unknown",
        "source": f"Retrograd {__version__}, rule {schema.rule}",
        "history": f"written by rule {schema.rule} of Retrograd {__version__}",
        "references": "see CITATION.cff of Retrograd",
        "comment": "free of wall-clock times, host names and absolute paths: the same computation gives the same bytes",
        "license": "the licence of the study; Retrograd claims none",
        **own,
        "retrograd_schema": schema.tag,
        "retrograd_version": __version__,
        "retrograd_code_digest": provenance.code_digest,
        "retrograd_config": canonical(provenance.config),
        "retrograd_inputs": canonical(dict(provenance.inputs)),
        "retrograd_environment": canonical(provenance.environment),
    }


def _refuse_incomplete(ds: xr.Dataset, schema: Schema) -> None:
    bare = [
        str(name)
        for name, var in ds.variables.items()
        if "long_name" not in var.attrs
        or (
            var.dtype.kind == "f"
            and "units" not in var.attrs
            and not any(dim in var.dims and f"{dim}_units" in ds.coords for dim in _WITH_UNITS)
        )
    ]
    if bare:
        raise RetrogradError(f"{schema.tag}: no units or no long_name on {', '.join(bare)}: add them to schema.py.")


def _encoding(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for name, var in ds.variables.items():
        options: dict[str, Any] = {"_FillValue": None}
        if var.dtype.kind == "f" and name not in ds.coords:
            options["_FillValue"] = np.nan
        options |= _compression(var.dtype, var.shape)
        if var.dtype.kind == "O":
            options["dtype"] = str
        encoding[str(name)] = options
    return encoding


def _compression(dtype: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    width = np.dtype(dtype).itemsize
    if np.dtype(dtype).kind not in "if" or math.prod(shape) * width < _COMPRESS_FROM:
        return {}
    # Whole rows, a megabyte at a time: netCDF's own choice cuts across them, and chunks of a study that are joined one
    # after the other would pack each piece many times.
    rows = min(shape[0], max(1, _COMPRESS_FROM // max(1, math.prod(shape[1:]) * width)))
    return {"zlib": True, "complevel": 4, "shuffle": True, "chunksizes": (rows, *shape[1:])}


# What grows with the network and with the steps: kilobytes and more a scenario.
LARGE = ("step", "attempt", "weight")


def read(
    path: str | os.PathLike[str],
    kind: str,
    lazily: tuple[str, ...] = (),
    wanted: Mapping[str, str] = {},
    *,
    foreign: bool = False,
) -> xr.Dataset:
    """Returns one of our flat files, loaded and closed; raises RetrogradError where it is not what it should be.

    - `lazily`: dimensions whose variables stay in the file, which stays open: of them is read what is asked for, each
      time that it is.
    - `wanted`: what its `origin` must be, as far as the file says.
    - `foreign`: as for `check_bytes`.
    """
    check_bytes(path, kind, foreign=foreign)
    try:
        ds = xr.open_dataset(path, engine="netcdf4", decode_times=False, cache=False)
        for var in ds.variables.values():
            if not set(lazily) & set(var.dims):
                var.load()
        if not lazily:
            ds.close()
    except Exception as error:
        raise RetrogradError(f"{path} cannot be read ({error}). {_again(path, kind)}") from error
    check_origin(ds.attrs, path, kind, wanted)
    return ds


def read_stages(
    folder: str | os.PathLike[str], stages: Iterable[str], lazily: tuple[str, ...] = (), wanted: Mapping[str, str] = {}
) -> dict[str, xr.Dataset]:
    """Returns a variant's files by stage, each of them computed from those before it; arguments as for `read`."""
    out, known = dict[str, xr.Dataset](), dict(wanted)
    for stage in stages:
        path = Path(folder, f"{stage}.nc")
        out[stage] = read(path, stage, lazily, known)
        known[stage] = file_digest(path)
    return out


def check_bytes(path: str | os.PathLike[str], kind: str, *, foreign: bool = False) -> None:
    """Raises RetrogradError where a file does not hold the bytes that were written: before netCDF4 opens it.

    The format has no checksum of its own for names and numbers of dimensions: after one flipped bit they are others,
    or the reader ends with the process.

    - `foreign`: whether a file without a seal is taken, as somebody else's may be who changed it on purpose.
    """
    try:
        holds = seal_holds(path)
    except OSError as error:
        raise RetrogradError(f"{path} cannot be read ({error.strerror}). {_again(path, kind)}") from error
    if holds is None and not foreign:
        raise RetrogradError(
            f"{path} cannot be read: it does not end with the sha256 of its bytes, so it was cut short, or written or "
            f"changed by another program. {_again(path, kind)}"
        )
    if holds is False:
        raise RetrogradError(
            f"{path} cannot be read: its bytes are not those that were written (their sha256, which stands at its end, "
            f"is another one). {_again(path, kind)}"
        )


def origin(attrs: Mapping[Any, Any]) -> dict[str, str]:
    """Returns what a file says it was computed from: name -> sha256 of each input, `settings`, `study`, `variant`."""
    settings = json.loads(attrs["retrograd_config"])
    named = {name: settings[name] for name in ("study", "variant") if isinstance(settings.get(name), str)}
    if attrs["retrograd_schema"] == SCHEMAS["model"].tag:
        # A model without given weights names none, and is not the study's own where there are some.
        named["weights"] = ""
    return {"settings": canonical(settings), **named, **json.loads(attrs["retrograd_inputs"])}


def check_origin(attrs: Mapping[Any, Any], path: str | os.PathLike[str], kind: str, wanted: Mapping[str, str]) -> None:
    """Raises RetrogradError where a file is of another schema, or was computed from something else than `wanted`."""
    found, tag = attrs.get("retrograd_schema"), SCHEMAS[kind].tag
    if found != tag:
        raise RetrogradError(
            f"{path} has schema {found!r}, wanted {tag!r}: it was made by another version or stage. "
            f"{_again(path, kind)}"
        )
    said = origin(attrs) if wanted else {}
    if other := [name for name, value in wanted.items() if said.get(name, value) != value]:
        first = other[0]
        raise RetrogradError(
            f"{path} is not of this run: it was computed from {first} {said[first]}, wanted {wanted[first]}. "
            f"{_again(path, kind)}"
        )


def _again(path: str | os.PathLike[str], kind: str) -> str:
    # results/STUDY/chunks/STAGE/WORK/CHUNK.nc, and beside it the job's times.
    stage = Path(path).parts[-3:-2]
    of_chunk = {"chunks", "timings"} & set(Path(path).parts)
    return to_rebuild(f"{stage[0]}_chunk" if of_chunk else SCHEMAS[kind].rule, path)


def labels(ds: xr.Dataset, dim: str) -> list[str]:
    """Returns the labels along a dimension."""
    return [str(v) for v in ds[f"{dim}_name"].values]


def config_of(ds: xr.Dataset) -> dict[str, Any]:
    """Returns the settings that a file was computed with."""
    return json.loads(ds.attrs["retrograd_config"])


def ragged(ds: xr.Dataset, count: str) -> np.ndarray:
    """Returns offsets, shape (scenario + 1,), of a CF contiguous ragged array from its count variable."""
    return np.concatenate([[0], np.cumsum(ds[count].values)]).astype(np.int64)


def join(
    parts: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    kind: str,
    provenance: Provenance,
    *,
    title_of: str = "",
) -> None:
    """Writes the chunks of a study as one file, in order: along `scenario`, and along `step` and `attempt`.

    One chunk is in memory at a time. The file is what `write` makes of all of them together. Variables without any of
    these dimensions must agree, or the parts are not of one study; raises RetrogradError where they do not.
    """
    schema, lengths = SCHEMAS[kind], dict.fromkeys(JOINED, 0)
    for part in parts:
        with read(part, kind, JOINED) as ds:
            for dim in JOINED:
                lengths[dim] += ds.sizes.get(dim, 0)
    with (
        netCDF4.Dataset(parts[0]) as first,
        whole(path, sealed=True) as temporary,
        netCDF4.Dataset(temporary, "w", format="NETCDF4") as out,
    ):
        own = {k: first.getncattr(k) for k in first.ncattrs()}
        attrs = _global_attributes(schema, provenance, title_of, {})
        # Where the digest will stand. xarray's own note on coordinates comes last.
        attrs["retrograd_content_sha256"] = "0" * 64
        out.setncatts(attrs | {k: v for k, v in own.items() if k == "coordinates"})
        for name, dim in first.dimensions.items():
            out.createDimension(name, lengths.get(name, len(dim)))
        for name, var in first.variables.items():
            shape = tuple(len(out.dimensions[dim]) for dim in var.dimensions)
            options: dict[str, Any] = {"chunk_cache": 4 * _COMPRESS_FROM}
            if var.dtype is not str:
                options |= _compression(var.dtype, shape)
            fill = getattr(var, "_FillValue", None)
            new = out.createVariable(name, var.dtype, var.dimensions, fill_value=fill, **options)
            new.setncatts({k: v for k, v in var.__dict__.items() if k != "_FillValue"})
        # NaN and texts as they stand.
        out.set_auto_maskandscale(False)
        begin = dict.fromkeys(JOINED, 0)
        for part in parts:
            with netCDF4.Dataset(part) as ds:
                ds.set_auto_maskandscale(False)
                _append(ds, out, begin)
        out.retrograd_content_sha256 = _digest_of(out)


def _append(part: netCDF4.Dataset, out: netCDF4.Dataset, begin: dict[str, int]) -> None:
    # Writes a chunk behind those before it, and moves `begin` on to where the next one goes.
    if set(part.variables) != set(out.variables):
        raise RetrogradError("chunks differ in their variables: they are not of one study; delete them and rerun.")
    first = not any(begin.values())
    for name, var in part.variables.items():
        along = var.dimensions[0] if var.dimensions and var.dimensions[0] in JOINED else None
        if name == "scenario":
            out[name][begin[name] : begin[name] + len(var)] = np.arange(begin[name], begin[name] + len(var))
        elif along:
            if len(var):
                out[name][begin[along] : begin[along] + len(var)] = var[:]
        elif first:
            out[name][:] = var[:]
        elif var.shape != out[name].shape or not np.array_equal(var[:], out[name][:], equal_nan=var.dtype is not str):
            raise RetrogradError(f"chunks disagree in {name}: they are not of the same study; delete them and rerun.")
    for dim in JOINED:
        begin[dim] += len(part.dimensions[dim]) if dim in part.dimensions else 0


def _digest_of(file: netCDF4.Dataset) -> str:
    # The `content_digest` of a flat file, some rows at a time.
    digest = _Digest()
    noted = lambda attrs: {k: v for k, v in attrs.items() if k != "coordinates"}
    digest.group("/", noted(file.__dict__))
    for name in sorted(file.variables):
        var = file[name]
        row = max(1, math.prod(var.shape[1:])) * (8 if var.dtype is str else var.dtype.itemsize)
        rows = max(1, _PIECE // row)
        pieces = (var[i : i + rows] for i in range(0, max(len(var), 1), rows)) if var.shape else (var[...],)
        digest.variable(name, var.dimensions, var.shape, noted(var.__dict__), pieces)
    return digest.hexdigest()
