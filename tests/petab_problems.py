"""Problems in PEtab, written for tests, and what the pipeline's own stages make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import antimony
import numpy as np
import yaml

from retrograd.context import chunk_of
from retrograd.find_stage import find_steady_states
from retrograd.gradient_stage import form_gradients, gradient_problem
from retrograd.gradients import from_records
from retrograd.loading import load_study
from retrograd.plugins import build_structure, load_class
from retrograd.solve_stage import simulate
from retrograd.starts import InitialState, StartOfDynamics
from retrograd.study import stage_options
from retrograd.weights import load_into

VARIANTS = Path(__file__).parents[1] / "config" / "variants.yaml"
# A <=> B in one compartment, as the PEtab test suite has it.
CONVERSION = """model conversion
  compartment c = 1
  species A in c, B in c
  fwd: A -> B; c*k1*A
  rev: B -> A; c*k2*B
  A = a0; B = b0
  a0 = 1; b0 = 1; k1 = 0; k2 = 0
end
"""

Rows = Sequence[Mapping[str, Any]]


def sbml(text: str) -> str:
    """Returns the SBML of a model in Antimony."""
    antimony.clearPreviousLoads()
    assert antimony.loadAntimonyString(text) >= 0, antimony.getLastError()
    return antimony.getSBMLString(antimony.getMainModuleName())


def table(rows: Rows) -> str:
    """Returns rows as tab-separated values; cells that a row lacks are empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(columns), *("\t".join(str(row.get(c, "")) for c in columns) for row in rows)]
    return "\n".join(lines) + "\n"


def write_problem(folder: Path, model: str, tables: Mapping[str, Rows], extension: Mapping[str, Any] | None = None):
    """Writes a problem of version 2 and returns the path of its file.

    - `model`: in Antimony. `tables`: `parameter`, `condition`, ... to rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.xml").write_text(sbml(model))
    raw: dict[str, Any] = {
        "format_version": "2.0.0",
        "model_files": {"m": {"location": "model.xml", "language": "sbml"}},
    }
    for name, rows in tables.items():
        (folder / f"{name}s.tsv").write_text(table(rows))
        raw[f"{name}_files"] = [f"{name}s.tsv"]
    if extension is not None:
        raw["extensions"] = {"sciml": {"version": "0.1.0", "required": True, **extension}}
    path = folder / "problem.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def parameters(**values: Any) -> list[dict[str, Any]]:
    """Returns a table of parameters that are estimated; those in brackets, `(1.0,)`, are not."""
    fixed = {name: isinstance(value, tuple) for name, value in values.items()}
    return [
        {
            "parameterId": name,
            "lowerBound": 0,
            "upperBound": 100,
            "nominalValue": value[0] if fixed[name] else value,
            "estimate": "false" if fixed[name] else "true",
        }
        for name, value in values.items()
    ]


def observable(name: str, formula: str, noise: str | float = 0.5, **more: Any) -> dict[str, Any]:
    return {"observableId": name, "observableFormula": formula, "noiseFormula": noise, **more}


def measurement(name: str, experiment: str, time: float | str, value: float, **more: Any) -> dict[str, Any]:
    return {"observableId": name, "experimentId": experiment, "time": time, "measurement": value, **more}


def condition(name: str, **changes: Any) -> list[dict[str, Any]]:
    return [{"conditionId": name, "targetId": target, "targetValue": value} for target, value in changes.items()]


def experiment(name: str, *periods: tuple[float | str, str]) -> list[dict[str, Any]]:
    return [{"experimentId": name, "time": time, "conditionId": c} for time, c in periods]


@dataclass
class Evaluated:
    """What the stages make of a problem: llh, its gradient by parameter and by weight, simulations, verdicts."""

    llh: float
    gradient: dict[str, float]
    network: np.ndarray
    simulation: np.ndarray  # (measurement,)
    noise: np.ndarray
    status: np.ndarray
    scenarios: list[str]


def evaluate(path: Path, **config: Any) -> Evaluated:
    """Returns what a study of a problem gives; the working directory is the study's."""
    raw = {"study": "s", "model": {"petab": str(path)}, "gradient": {"methods": ["replay"], "directions": 1}}
    study = load_study(raw | config, VARIANTS)
    (variant,) = study.variants
    cls = load_class(study.model.plugin, study.model.class_)
    model = load_into(build_structure(cls), study.model.weights)
    chunk = chunk_of(study.table, cls, study.start)
    options = {**stage_options(study, variant, "gradients")}
    quiet = lambda *what: None
    rungs = np.zeros((2, len(chunk.ids)), int)
    rest = conserved = None
    if study.start == "steady_state":
        steady, rungs[0] = find_steady_states(cls, model, options["find"], chunk.k_steady, chunk.x0, quiet)
        rest, conserved = np.where(steady.status[:, None] == 0, steady.x, np.nan), steady.conserved_basis
        start = StartOfDynamics(cls).value(model, rest, chunk.k_dynamic)
    else:
        start = InitialState(cls).value(model, chunk.k_dynamic, chunk.x0)
    records, rungs[1] = simulate(cls, model, options, start, chunk.k_dynamic, quiet)
    problem = gradient_problem(cls, model, options)
    recorded = from_records(chunk, start, records, rest, conserved)
    found = form_gradients(cls, model, options, problem, recorded, records, (rungs[0], rungs[1]))
    gradient: dict[str, float] = {}
    for j, label in enumerate(problem.labels):
        name, _, phase = label.partition("@")
        if phase:
            gradient[name] = gradient.get(name, 0.0) - float(np.sum(found["ad"][:, 0, j]))
    simulation = np.full(len(cls.measurements["time"]), np.nan)
    noise = simulation.copy()
    saved = problem.saved([r.step_x for r in records], [r.step_time for r in records], start)
    for i in range(len(chunk.ids)):
        k = dict(zip(cls.parameters, chunk.k_dynamic[i], strict=True))
        k = {name: np.asarray(value) for name, value in k.items()}
        rows, y, s = (np.asarray(v) for v in model.fitted(problem.times, saved[i], k))
        simulation[rows[rows >= 0]], noise[rows[rows >= 0]] = y[rows >= 0], s[rows >= 0]
    return Evaluated(
        -float(np.sum(found["loss"])),
        gradient,
        -np.sum(found["gradient_network"][:, 0], axis=0),
        simulation,
        noise,
        found["status"][:, 0],
        chunk.ids,
    )
