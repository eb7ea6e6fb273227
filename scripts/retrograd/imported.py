"""Models in other people's formats as plug-ins: written once, read as any other.

The file that is written depends on nothing but the file that is read and on this code, so that a cache by content is
safe, and two machines write the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrograd.errors import RetrogradError
from retrograd.messages import capped, one_of
from retrograd.optional import need, package_of
from retrograd.provenance import canonical, code_digest, file_digest, text_digest
from retrograd.scenarios import PHASES, read_scenarios
from retrograd.whole import whole

CLASS_NAME = "Imported"
PLUGIN, VALUES, SCENARIOS, WEIGHTS = "model.py", "values.json", "scenarios.tsv", "weights.safetensors"
_MODULES = {
    "sbml": ("libsbml",),
    "antimony": ("antimony", "libsbml"),
    "petab": ("petab", "libsbml", "h5py"),
}
_TITLES = {"sbml": "A model in SBML", "antimony": "A model in Antimony", "petab": "A problem in PEtab"}


@dataclass(frozen=True)
class ImportedModel:
    """A plug-in that was written for a file of another format.

    - `plugin`, `class_name`: as a study names them.
    - `states`, `parameters`: names, in order.
    - `values`: of the parameters to which the file gives a value.
    - `fixed_starts`: states whose start decides over constants or other starts, with the names of these: a table must
      not set such a start, for they would not follow, but for other starts that it sets as well.
    - `weights`: the file of its networks' arrays, None without networks.
    - `problem`: what a problem in PEtab says beside its model, None for models without measurements.
    """

    plugin: Path
    class_name: str
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    values: dict[str, float]
    fixed_starts: dict[str, tuple[str, ...]]
    weights: Path | None = None
    problem: ImportedProblem | None = None


@dataclass(frozen=True)
class ImportedProblem:
    """A parameter estimation problem: a study of it has a scenario for each experiment and sample of parameters.

    - `start`: of the study. `times`: those of measurements, from the start of their experiment.
    - `experiments`: their names.
    - `columns`: of parameters that experiments set the values in the steady and the dynamic phase, (experiment, 2).
    """

    start: str
    times: tuple[float, ...]
    experiments: tuple[str, ...]
    columns: dict[str, list[list[float]]]

    @property
    def save_times(self) -> list[float]:
        """The study's `save_times`: those of measurements, and a later one where all of these are at the start."""
        return [*self.times] if self.times[-1] > 0 else [*self.times, 1.0]


def import_model(kind: str, path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> ImportedModel:
    """Writes `model.py` and `values.json` for a model file, unless they are there already, and returns what they say.

    - `kind`: sbml, antimony or petab.
    - `folder`: where they are written.

    Raises RetrogradError for a file that cannot be imported; nothing is written then.
    """
    need(_TITLES[kind], *_MODULES[kind])
    path, folder = Path(path), Path(folder)
    if not path.is_file():
        raise RetrogradError(f"{path}: cannot be read (no such file).")
    # Antimony may import other files: what counts is the SBML that it makes of all of them.
    made = None
    if kind == "antimony":
        from retrograd.sbml_import import antimony_to_sbml

        made = antimony_to_sbml(path)
    digest = source_digest(kind, path)
    key = _key(kind, path.name, digest, made)
    kept = _kept(folder, key)
    if kept is None:
        kept = _write(kind, path, folder, key, digest, made)
    problem = kept.get("problem")
    return ImportedModel(
        folder / PLUGIN,
        CLASS_NAME,
        tuple(kept["states"]),
        tuple(kept["parameters"]),
        kept["values"],
        {name: tuple(names) for name, names in kept["fixed_starts"].items()},
        folder / WEIGHTS if kept["weights_sha256"] else None,
        None if problem is None else ImportedProblem(**{n: _frozen(v) for n, v in problem.items()}),
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def source_files(kind: str, path: str | os.PathLike[str]) -> list[Path]:
    """Returns all files that a model file consists of, itself first; raises RetrogradError for one that is missing."""
    if kind == "petab":
        from retrograd.petab_files import problem_files

        return problem_files(path)
    return [Path(path)]


def source_digest(kind: str, path: str | os.PathLike[str]) -> str:
    """Returns a digest of all files that a model file consists of."""
    files = source_files(kind, path)
    if len(files) == 1:
        return file_digest(files[0])
    return text_digest(canonical({os.path.relpath(f, Path(path).parent): file_digest(f) for f in files}))


def _key(kind: str, name: str, digest: str, made: str | None) -> str:
    code = code_digest(Path(__file__))
    libraries = [*map(package_of, _MODULES[kind]), "sympy"]
    versions = {library: importlib.metadata.version(library) for library in libraries}
    told = None if made is None else text_digest(made)
    return text_digest(canonical({"name": name, "file": digest, "made": told, "code": code, "libraries": versions}))


def _kept(folder: Path, key: str) -> dict[str, Any] | None:
    """Returns what `values.json` says if it belongs to the key, and the files beside it to it; else None."""
    try:
        said = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        good = said["key"] == key and said["plugin_sha256"] == file_digest(folder / PLUGIN)
        good &= said["weights_sha256"] in (None, file_digest(folder / WEIGHTS) if said["weights_sha256"] else None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if good else None


def _write(kind: str, path: Path, folder: Path, key: str, digest: str, text: str | None) -> dict[str, Any]:
    from retrograd.symbolic import names_in, symbol

    problem, weights, fixed = None, {}, {}
    if kind == "petab":
        from retrograd.petab_files import read_problem
        from retrograd.petab_import import import_problem
        from retrograd.petab_source import ProblemWriter

        model, fit, networks = import_problem(read_problem(path), str(path))
        writer = ProblemWriter(model, fit, networks, CLASS_NAME, path.name, digest)
        source, weights = writer.text(), writer.weights()
        problem = {
            "start": fit.start,
            "times": fit.times,
            "experiments": [e.id for e in fit.experiments],
            "columns": {name: values.tolist() for name, values in fit.columns.items()},
        }
    else:
        from retrograd.model_source import plugin_source
        from retrograd.sbml_import import read_sbml, read_text

        model = read_sbml(path) if text is None else read_text(text, str(path), path.stem)
        source = plugin_source(model, CLASS_NAME, path.name, digest)
        # With other starts as names of their own, what is left of them in one is what it depends on.
        for name in (*model.derived, *model.states):
            others = {state: symbol(state) for state in model.states if state != name}
            start = model.at_start(others, names=[name])[name]
            for state in sorted(names_in(start) & model.states.keys()):
                fixed.setdefault(state, []).append(name)
    if weights:
        _put_weights(folder / WEIGHTS, weights)
    said = {
        "key": key,
        "plugin_sha256": text_digest(source),
        "weights_sha256": file_digest(folder / WEIGHTS) if weights else None,
        "source": path.name,
        "sha256": digest,
        "name": model.name,
        "time_unit": model.time_unit,
        "states": list(model.states),
        "parameters": list(model.parameters),
        "units": {**model.states, **model.parameters},
        "values": model.values,
        "fixed_starts": fixed,
        "problem": problem,
    }
    _put(folder / PLUGIN, source)
    _put(folder / VALUES, json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return said


def _put_weights(path: Path, arrays: Mapping[str, Any]) -> None:
    from safetensors.numpy import save

    with whole(path) as place:
        place.write_bytes(save({name: arrays[name] for name in sorted(arrays)}))


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
    if model.problem is not None:
        return _experiment_scenarios(model, model.problem, table, folder)
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
    end = [model.values[name] for name in added]
    return _put_table(folder, [*columns, *added], {name: [*row, *end] for name, row in zip(ids, rows, strict=True)})


def _experiment_scenarios(
    model: ImportedModel, problem: ImportedProblem, table: str | os.PathLike[str] | None, folder: str | os.PathLike[str]
) -> Path:
    """Writes a row for every experiment and sample, named `SAMPLE:EXPERIMENT`; without a table of samples `EXPERIMENT`.

    - `table`: parameters of the problem, a row a sample; those without a column take their nominal value.
    """
    plain = [name for name in model.parameters if name not in problem.columns]
    samples: list[tuple[str, dict[str, float]]] = [("", {})]
    problems = []
    if table is not None:
        # Names are checked here: what can be a column is less than the model's parameters.
        read = read_scenarios(Path(table))
        problems += [
            f"{table}: found the column {column}, wanted a parameter that no experiment sets, of both phases: "
            f"{one_of(column, plain)}"
            for column in read.columns
            if column not in plain
        ]
        samples = [
            (f"{name}:", dict(zip(read.columns, row, strict=True)))
            for name, row in zip(read.ids, read.rows, strict=True)
        ]
    given = set(samples[0][1])
    problems += [
        f"{table or model.plugin}: found no value of {name}, neither nominal nor in a table of samples: wanted one"
        for name in plain
        if name not in model.values and name not in given
    ]
    if problems:
        raise RetrogradError("\n  ".join(["The scenarios cannot be made:", *capped(problems)]))
    phases = PHASES if problem.start == "steady_state" else PHASES[1:]
    split = {}
    for name, values in problem.columns.items():
        steady, dynamic = zip(*values, strict=True)
        if steady == dynamic or len(phases) == 1:
            split[name] = list(dynamic)
        else:
            split |= {f"{name}@steady": list(steady), f"{name}@dynamic": list(dynamic)}
    rows = {}
    for sample, values in samples:
        own_values = [values[name] if name in values else model.values[name] for name in plain]
        for i, experiment in enumerate(problem.experiments):
            rows[f"{sample}{experiment}"] = [*own_values, *(column[i] for column in split.values())]
    return _put_table(folder, [*plain, *split], rows)


def _put_table(folder: str | os.PathLike[str], columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> Path:
    """Writes a table of scenarios, id to values, and returns its path."""
    lines = ["\t".join(["scenario", *columns])]
    lines += ["\t".join([_cell(name), *(repr(float(value)) for value in row)]) for name, row in rows.items()]
    path = Path(folder) / SCENARIOS
    _put(path, "\n".join(lines) + "\n")
    return path


def _cell(text: str) -> str:
    # What would be a comment, or lose its quotes, is put in quotes.
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if text.startswith("#") or '"' in text else text
