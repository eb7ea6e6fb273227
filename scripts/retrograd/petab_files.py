"""The files of a PEtab problem: which there are, and their tables, formulas parsed.

Tables are read by the `petab` library, problems of version 1 after its conversion to version 2. The extension for
networks is read here: the library's own reader wants PyTorch.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from retrograd.errors import RetrogradError
from retrograd.messages import show

# Both names of the extension that are in use.
SCIML = ("sciml", "petab_sciml")
_NUMBERS = {"time", "measurement"}
FOLDERS = "abcdef"
_TABLES = ("parameter", "measurement", "observable", "condition", "experiment", "mapping")
# Keys of a problem's file in version 1 with the names of files that count.
_TABLES_V1 = ("sbml_files", "measurement_files", "observable_files", "condition_files", "mapping_files")


@dataclass(frozen=True)
class NetworkFile:
    """A network of a problem.

    - `path`: of its description.
    - `static`: whether it is evaluated before the simulation; else inputs may change in time.
    """

    path: Path
    static: bool


@dataclass
class Problem:
    """A PEtab problem, version 2.

    - `name`: of its file, without the ending.
    - `follows`: whether starts that the model computes follow the conditions' changes: so in version 1. In version 2 a
      condition changes what the model started with.
    - `tables`: the library's `Problem` without networks.
    - `model`: path of the SBML file.
    - `mapping`: PEtab id to model id.
    - `networks`, `hybridization`: by id, and target to formula, None for an array of a file.
    - `arrays`: paths of array files.
    - `network_parameters`: rows of the parameter table that are of networks: id, nominal value, whether estimated.
    """

    name: str
    follows: bool
    tables: Any
    model: Path
    mapping: dict[str, str] = field(default_factory=dict)
    networks: dict[str, NetworkFile] = field(default_factory=dict)
    hybridization: dict[str, Any] = field(default_factory=dict)
    arrays: list[Path] = field(default_factory=list)
    network_parameters: dict[str, tuple[float | None, bool]] = field(default_factory=dict)


def problem_files(path: str | os.PathLike[str]) -> list[Path]:
    """Returns the problem's file and every other one that it names, in order; raises RetrogradError for one missing."""
    path = Path(path)
    raw = _read_yaml(path)
    try:
        names = [name for name in _names(raw) if isinstance(name, str)]
    except (AttributeError, TypeError) as error:
        raise RetrogradError(f"{path}: found another structure than that of a PEtab problem: {error}.") from error
    files = [path, *dict.fromkeys(path.parent / name for name in names)]
    # In version 1 the library copies files to where they lie by these names, seen from a folder that is FOLDERS deep.
    astray = [name for name in names if os.path.isabs(name) or os.path.normpath(name).count("..") > len(FOLDERS)]
    if astray:
        told = f"{len(FOLDERS)} folders above it at most"
        raise RetrogradError(f"{path}: found the file {show(astray[0])}, wanted a path relative to this file, {told}.")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise RetrogradError(f"{path}: found no file {', '.join(missing)}, which it names.")
    return files


def _names(raw: Mapping[str, Any]) -> Iterator[Any]:
    yield from _listed(raw.get("parameter_file"))
    for problem in raw.get("problems") or ():
        for key in _TABLES_V1:
            yield from _listed(problem.get(key))
    for key in _TABLES:
        yield from _listed(raw.get(f"{key}_files"))
    for model in (raw.get("model_files") or {}).values():
        yield model.get("location")
    extension = _extension(raw)
    for key in ("hybridization_files", "array_files"):
        yield from _listed(extension.get(key))
    for network in (extension.get("neural_networks") or {}).values():
        yield network.get("location")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _extension(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    extensions = raw.get("extensions") or {}
    return next((extensions[name] for name in SCIML if name in extensions), {}) or {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            raw = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RetrogradError(f"{path} is no readable YAML file: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict) or "format_version" not in raw:
        raise RetrogradError(f"{path}: found no format_version, wanted the file of a PEtab problem.")
    return raw


def read_problem(path: str | os.PathLike[str]) -> Problem:
    """Returns a problem with its tables; raises RetrogradError where they cannot be read or are not supported."""
    path = Path(path)
    raw = _read_yaml(path)
    problem_files(path)
    version = str(raw["format_version"]).split(".")[0]
    try:
        if version == "1":
            return _version_1(path)
        if version == "2":
            return _version_2(path, raw, follows=False)
    except (RetrogradError, KeyboardInterrupt):
        raise
    except Exception as error:
        # What the library says of problems that it cannot read, whatever its kind.
        raise RetrogradError(f"{path}: cannot be read: {_one_line(error)}") from error
    raise RetrogradError(f"{path}: found PEtab version {raw['format_version']}, wanted 1 or 2.")


def _version_1(path: Path) -> Problem:
    from petab.v2.petab1to2 import petab1to2

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # It warns that scales of parameters and tables for plots are left out: neither changes a likelihood.
        warnings.simplefilter("ignore")
        logging.getLogger("petab").setLevel(logging.ERROR)
        # It copies files to where they lie beside each other: deep enough for paths that go up a few folders.
        made = Path(folder, *FOLDERS, path.name)
        for file in problem_files(path):
            (made.parent / os.path.relpath(file, path.parent)).parent.mkdir(parents=True, exist_ok=True)
        petab1to2(str(path), output_dir=made.parent)
        problem = _version_2(made, _read_yaml(made), follows=True)
        # That of the user: the folder goes.
        problem.model = path.parent / os.path.relpath(problem.model, made.parent)
    return problem


def _version_2(path: Path, raw: Mapping[str, Any], *, follows: bool) -> Problem:
    import pandas as pd
    from petab.v2 import core

    problems = []
    models = raw.get("model_files") or {}
    if len(models) != 1:
        problems.append(f"found {len(models)} models, wanted one")
    for name, model in models.items():
        if str(model.get("language")).lower() != "sbml":
            problems.append(f"model {name}: found the language {model.get('language')}, wanted sbml")
    others = [name for name in raw.get("extensions") or {} if name not in SCIML]
    problems += [f"extension {name}: is not supported" for name in others]
    extension = _extension(raw)
    networks: dict[str, NetworkFile] = {}
    for name, entry in (extension.get("neural_networks") or {}).items():
        if str(entry.get("format")).lower() != "yaml":
            problems.append(f"network {name}: found the format {entry.get('format')}, wanted yaml")
        static = entry.get("static", entry.get("pre_initialization"))
        networks[name] = NetworkFile(path.parent / entry["location"], bool(static))
    if problems:
        raise RetrogradError("\n  ".join([f"{path}: cannot be imported:", *problems]))

    def table(kind: Any, key: str, edit: Any = None) -> list[Any]:
        out = []
        for name in _listed(raw.get(f"{key}_files")):
            try:
                # As text: an id may look like a number, a truth value or a gap.
                rows = pd.read_csv(path.parent / name, sep="\t", dtype=str, keep_default_na=False, na_values=[""])
                for column in _NUMBERS & set(rows.columns):
                    rows[column] = pd.to_numeric(rows[column], errors="coerce" if edit else "raise")
                out.append(kind.from_df(rows if edit is None else edit(rows)))
            except Exception as error:
                raise RetrogradError(f"{path.parent / name}: cannot be read: {_one_line(error)}") from error
        return out

    mapping: dict[str, str] = {}
    for name in _listed(raw.get("mapping_files")):
        rows = _rows(path.parent / name)
        mapping |= {row["petabEntityId"]: row["modelEntityId"] for row in rows if row.get("modelEntityId")}
    of_networks: dict[str, tuple[float | None, bool]] = {}

    def without_networks(rows: Any) -> Any:
        mine = [_is_of(mapping.get(str(name), str(name)), networks, "parameters") for name in rows["parameterId"]]
        for _, row in rows[mine].iterrows():
            estimated = str(row["estimate"]).strip().lower() in ("true", "1")
            of_networks[row["parameterId"]] = _number(row.get("nominalValue")), estimated
        return rows[[not m for m in mine]]

    tables = core.Problem(
        parameter_tables=table(core.ParameterTable, "parameter", without_networks),
        measurement_tables=table(core.MeasurementTable, "measurement"),
        observable_tables=table(core.ObservableTable, "observable"),
        condition_tables=table(core.ConditionTable, "condition"),
        experiment_tables=table(core.ExperimentTable, "experiment"),
    )
    hybridization: dict[str, Any] = {}
    for name in _listed(extension.get("hybridization_files")):
        for row in _rows(path.parent / name):
            value = row.get("targetValue") or "array"
            hybridization[row["targetId"]] = None if value == "array" else _formula(value)
    model = path.parent / next(iter(models.values()))["location"]
    arrays = [path.parent / name for name in _listed(extension.get("array_files"))]
    return Problem(path.stem, follows, tables, model, mapping, networks, hybridization, arrays, of_networks)


def _one_line(error: Exception) -> str:
    # Of the library's checks all but the address of their documentation.
    lines = [line.strip() for line in str(error).splitlines() if "For further information" not in line]
    return f"{type(error).__name__}: {'; '.join(filter(None, lines))}"


def _is_of(model_id: str, networks: Mapping[str, Any], part: str) -> bool:
    name, _, rest = model_id.partition(".")
    return name in networks and rest.startswith(part)


def _number(value: Any) -> float | None:
    """Returns a finite number of a table, None for anything else: `array`, or an empty cell."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return [dict(row) for row in csv.DictReader(file, delimiter="\t")]


def _formula(text: str) -> Any:
    from petab.v1.math import sympify_petab

    return sympify_petab(text)
