"""Models in other people's formats as plug-ins: written once, read as any other.

The file that is written depends on nothing but the file that is read and on this code, so that a cache by content is
safe, and two machines write the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrograd.errors import RetrogradError
from retrograd.optional import need, package_of
from retrograd.provenance import canonical, code_digest, file_digest, text_digest
from retrograd.scenarios import PHASES, read_scenarios
from retrograd.whole import whole

CLASS_NAME = "Imported"
PLUGIN, VALUES, SCENARIOS = "model.py", "values.json", "scenarios.tsv"
_MODULES = {"sbml": ("libsbml", "sympy"), "antimony": ("antimony", "libsbml", "sympy")}
_TITLES = {"sbml": "A model in SBML", "antimony": "A model in Antimony"}


@dataclass(frozen=True)
class ImportedModel:
    """A plug-in that was written for a file of another format.

    - `plugin`, `class_name`: as a study names them.
    - `states`, `parameters`: names, in order.
    - `values`: of the parameters to which the file gives a value.
    - `fixed_starts`: states whose start decides over constants or other starts, with the names of these: a table must
      not set such a start, for they would not follow, but for other starts that it sets as well.
    """

    plugin: Path
    class_name: str
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    values: dict[str, float]
    fixed_starts: dict[str, tuple[str, ...]]


def import_model(kind: str, path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> ImportedModel:
    """Writes `model.py` and `values.json` for a model file, unless they are there already, and returns what they say.

    - `kind`: sbml or antimony.
    - `folder`: where they are written.

    Raises RetrogradError for a file that cannot be imported; nothing is written then.
    """
    need(_TITLES[kind], *_MODULES[kind])
    path, folder = Path(path), Path(folder)
    if not path.is_file():
        raise RetrogradError(f"{path}: cannot be read (no such file).")
    # Antimony may import other files: what counts is the SBML that it makes of all of them.
    text = None
    if kind == "antimony":
        from retrograd.sbml_import import antimony_to_sbml

        text = antimony_to_sbml(path)
    digest = file_digest(path)
    key = _key(kind, path.name, digest, text)
    kept = _kept(folder, key)
    if kept is None:
        kept = _write(path, folder, key, digest, text)
    return ImportedModel(
        folder / PLUGIN,
        CLASS_NAME,
        tuple(kept["states"]),
        tuple(kept["parameters"]),
        kept["values"],
        {name: tuple(names) for name, names in kept["fixed_starts"].items()},
    )


def _key(kind: str, name: str, digest: str, text: str | None) -> str:
    code = code_digest(Path(__file__))
    versions = {module: importlib.metadata.version(package_of(module)) for module in _MODULES[kind]}
    made = None if text is None else text_digest(text)
    return text_digest(canonical({"name": name, "file": digest, "made": made, "code": code, "libraries": versions}))


def _kept(folder: Path, key: str) -> dict[str, Any] | None:
    """Returns what `values.json` says if it belongs to the key, and the plug-in beside it to it; else None."""
    try:
        said = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        good = said["key"] == key and said["plugin_sha256"] == file_digest(folder / PLUGIN)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if good else None


def _write(path: Path, folder: Path, key: str, digest: str, text: str | None) -> dict[str, Any]:
    from retrograd.model_source import plugin_source
    from retrograd.sbml_import import read_sbml, read_text
    from retrograd.symbolic import names_in, symbol

    model = read_sbml(path) if text is None else read_text(text, str(path), path.stem)
    source = plugin_source(model, CLASS_NAME, path.name, digest)
    # With other starts as names of their own, what is left of them in one is what it depends on.
    fixed: dict[str, list[str]] = {}
    for name in (*model.derived, *model.states):
        others = {state: symbol(state) for state in model.states if state != name}
        start = model.at_start(others, names=[name])[name]
        for state in sorted(names_in(start) & model.states.keys()):
            fixed.setdefault(state, []).append(name)
    said = {
        "key": key,
        "plugin_sha256": text_digest(source),
        "source": path.name,
        "sha256": digest,
        "name": model.name,
        "time_unit": model.time_unit,
        "states": list(model.states),
        "parameters": list(model.parameters),
        "units": {**model.states, **model.parameters},
        "values": model.values,
        "fixed_starts": fixed,
    }
    _put(folder / PLUGIN, source)
    _put(folder / VALUES, json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return said


def _put(path: Path, text: str) -> None:
    with whole(path) as place:
        place.write_text(text, encoding="utf-8", newline="\n")


def complete_scenarios(
    model: ImportedModel, table: str | os.PathLike[str] | None, folder: str | os.PathLike[str]
) -> Path:
    """Writes `scenarios.tsv`: the user's table with a column for every parameter; returns its path.

    A parameter without a column, or with one for one phase only, takes the file's value. Columns `x0:STATE` and
    `NAME@PHASE` stay as they are.

    - `table`: the user's; None for one scenario, `default`, that is the file as it stands.

    Raises RetrogradError for a table that is none, and for a parameter that neither it nor the file gives a value.
    """
    ids, columns, rows = ("default",), (), ((),)
    if table is not None:
        read = read_scenarios(Path(table), parameters=model.parameters, states=model.states)
        ids, columns, rows = read.ids, read.columns, read.rows
    where = str(table) if table is not None else str(model.plugin)
    problems = []
    for state, names in model.fixed_starts.items():
        left = [name for name in names if f"x0:{name}" not in columns]
        if f"x0:{state}" in columns and left:
            problems.append(
                f"{where}: found the column x0:{state}, but {', '.join(left)} of the model would not follow: "
                "the file computes that from this start"
            )
    added = []
    for name in model.parameters:
        if name in columns or all(f"{name}@{phase}" in columns for phase in PHASES):
            continue
        if name in model.values:
            added.append(name)
        elif not any(f"{name}@{phase}" in columns for phase in PHASES):
            problems.append(f"{where}: found no column for {name}, to which the file gives no value: wanted one")
    if problems:
        raise RetrogradError("\n  ".join(["The scenarios cannot be completed:", *problems]))
    lines = ["\t".join(["scenario", *columns, *added])]
    end = [repr(float(model.values[name])) for name in added]
    for name, row in zip(ids, rows, strict=True):
        lines.append("\t".join([_cell(name), *(repr(float(value)) for value in row), *end]))
    path = Path(folder) / SCENARIOS
    _put(path, "\n".join(lines) + "\n")
    return path


def _cell(text: str) -> str:
    # What would be a comment, or lose its quotes, is put in quotes.
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if text.startswith("#") or '"' in text else text
