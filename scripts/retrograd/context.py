"""What each stage begins with: the weighted model, the chunk's scenarios as arrays, the variant's field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrograd.api import Model
from retrograd.plugins import Field, build_structure, load_class, vector_field
from retrograd.scenarios import Table
from retrograd.weights import read_model


@dataclass
class Chunk:
    """Some scenarios of a study: arrays with one row each."""

    ids: list[str]
    k_dynamic: np.ndarray  # (scenario, parameter)
    k_steady: np.ndarray  # (scenario, parameter); with `start: initial_state` a copy of k_dynamic
    x0: np.ndarray  # (scenario, state), NaN where the table gives none


def load_model(plugin: str, class_name: str, model_file: str) -> tuple[type[Model], Model]:
    """Returns the model's class, and the model with the exported weights, checked."""
    cls = load_class(plugin, class_name)
    return cls, read_model(model_file, cls, build_structure(cls))


def load_chunk(text: str, cls: type[Model], start: str) -> Chunk:
    """Returns a chunk from its JSON (`ids`, `columns`, `rows`), as the Snakefile passes it."""
    raw = json.loads(text)
    table = Table(tuple(raw["ids"]), tuple(raw["columns"]), tuple(tuple(map(float, r)) for r in raw["rows"]))
    names, states = list(cls.parameters), list(cls.states)
    shape = (len(table.ids), len(names))
    dynamic = np.array(table.values("dynamic", names), float).reshape(shape)
    steady = dynamic
    if start == "steady_state":
        steady = np.array(table.values("steady", names), float).reshape(shape)
    x0 = np.array(table.starts(states), float).reshape(len(table.ids), len(states))
    return Chunk(list(table.ids), dynamic, steady, x0)


def field_of(cls: type[Model], settings: Mapping[str, Any]) -> Field:
    """Returns the vector field of a variant: its formulation, with its guard."""
    guard = settings["guard"]
    return vector_field(cls, settings["formulation"], None if guard in (None, "none") else guard)


def units_of(cls: type[Model]) -> dict[str, Any]:
    """Returns the units that fill the schema's braces."""
    return {"state": list(cls.states.values()), "time": cls.time_unit}
