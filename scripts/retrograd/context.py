"""What each stage begins with: the weighted model, the chunk's scenarios as arrays, the variant's field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import batched
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

    def take(self, rows: np.ndarray) -> Chunk:
        """Returns some of the scenarios."""
        return Chunk([self.ids[i] for i in rows], self.k_dynamic[rows], self.k_steady[rows], self.x0[rows])


def load_model(
    plugin: str, class_name: str, model_file: str, wanted: Mapping[str, str] = {}
) -> tuple[type[Model], Model]:
    """Returns the model's class, and the model with the exported weights, checked; `wanted` as for `store.read`."""
    cls = load_class(plugin, class_name)
    return cls, read_model(model_file, cls, build_structure(cls), wanted)


def load_chunk(text: str, cls: type[Model], start: str) -> Chunk:
    """Returns a chunk from its JSON (`ids`, `columns`, `rows`), as the Snakefile passes it."""
    raw = json.loads(text)
    table = Table(tuple(raw["ids"]), tuple(raw["columns"]), tuple(tuple(map(float, r)) for r in raw["rows"]))
    return chunk_of(table, cls, start)


def chunk_of(table: Table, cls: type[Model], start: str) -> Chunk:
    """Returns the scenarios of a table as arrays."""
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
    return {
        "state": list(cls.states.values()),
        "parameter": list(cls.parameters.values()),
        "time": cls.time_unit,
    }


def within_guard(
    cls: type[Model],
    model: Model,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    k: np.ndarray,
    states: list[np.ndarray],
) -> np.ndarray:
    """Returns of which scenarios all states, arrays (step, state), are such that a rung's guard changed nothing.

    A bound that acts makes another model of it, and the solution of that one is no rescue.
    """
    guard = settings["guard"]
    if guard is None or guard == options["guard"]:
        return np.ones(len(states), bool)
    field = field_of(cls, options)
    rate = eqx.filter_jit(jax.vmap(lambda m, x, k: field(m, jnp.zeros((), x.dtype), x, k), in_axes=(None, 0, 0)))
    good = np.array([bool(np.all(np.abs(x) < guard["x_max"])) for x in states])
    for i in np.flatnonzero(good):
        if len(states[i]):
            rates = batched(rate, model, states[i], np.repeat(k[i : i + 1], len(states[i]), axis=0))
            good[i] = bool(np.all(np.isfinite(rates)))
    return good


def chunk_summary(codes: np.ndarray, names: tuple[str, ...], chunk: Chunk) -> list[str]:
    """Returns one line for each status but the first that occurs: how many scenarios, and the first ten by name."""
    lines = []
    for code in np.unique(codes[codes != 0]):
        which = [name for name, c in zip(chunk.ids, codes, strict=True) if c == code]
        lines.append(f"{names[code]}: {len(which)} scenarios: {', '.join(which[:10])}")
    return lines
