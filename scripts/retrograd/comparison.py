"""The file of a comparison: one variant's part of it, and the parts joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from retrograd import store
from retrograd.agreement import NOT_COMPARED, PARTS, Weighed, nothing_compared, verdict_of, worst_of
from retrograd.schema import COMPARISON, KINDS, ORIGINS

# A page shows what was compared without JAX, which is a second of each report.
if TYPE_CHECKING:
    from retrograd.comparing import Comparison


def part_of(
    variant: str,
    comparison: Comparison,
    found: Mapping[tuple[str, str], Weighed],
    first: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    time_unit: str,
) -> xr.Dataset:
    """Returns a variant's part of `comparison.nc`.

    - `first`: the variables `first_*` and `reason`.
    - `items`: as `origins.differences` gives them.
    """
    scenarios = comparison.here.run.scenarios
    quantities = list(dict.fromkeys(name for _, name in found))
    shape = (1, len(KINDS), len(quantities))
    values: dict[str, Any] = {
        name: np.full(shape, value, object if isinstance(value, str) else type(value))
        for name, value in nothing_compared().items()
    }
    by_scenario = np.full((*shape, len(scenarios)), NOT_COMPARED, np.int8)
    for (kind, quantity), weighed in found.items():
        at = (0, KINDS.index(kind), quantities.index(quantity))
        for name, value in weighed.values.items():
            values[name][at] = value
        if values["where_scenario"][at] >= 0:
            values["where_scenario"][at] = comparison.here.rows[values["where_scenario"][at]]
        by_scenario[at][comparison.here.rows] = weighed.scenario
    first = dict(first)
    if first["first_scenario"] >= 0:
        first["first_scenario"] = comparison.here.rows[first["first_scenario"]]
    return store.build(
        COMPARISON,
        {
            **values,
            "scenario_verdict": by_scenario,
            "variant_verdict": [verdict_of(found)],
            "n_replayed": [int(comparison.chosen.sum())],
            **{name: np.array([value], object if isinstance(value, str) else None) for name, value in first.items()},
            "item_origin": [ORIGINS.index(i["origin"]) for i in items],
            "item_here": [i["here"] for i in items],
            "item_there": [i["there"] for i in items],
            "item_variants": [variant for _ in items],
        },
        {
            "variant": [variant],
            "kind": list(KINDS),
            "quantity": quantities,
            "scenario": scenarios,
            "item": [i["name"] for i in items],
        },
        units={"time": time_unit},
    )


def joined(parts: Sequence[xr.Dataset], settings: Mapping[str, Any]) -> xr.Dataset:
    """Returns the parts of all variants as one; what differs in the same way in several is told once.

    - `settings`: `variants` of this run, `variants_there` of the reference.
    """
    quantities: dict[str, None] = {}
    for part in parts:
        quantities |= dict.fromkeys(store.labels(part, "quantity"))
    ordered = _in_order(list(quantities))
    scenarios = store.labels(parts[0], "scenario")
    values: dict[str, list[Any]] = {}
    empty = nothing_compared() | {"scenario_verdict": NOT_COMPARED}
    for part in parts:
        at = [ordered.index(q) for q in store.labels(part, "quantity")]
        for name, var in COMPARISON.variables.items():
            if name.startswith("item_"):
                continue
            array = part[name].values[0]
            if "quantity" in var.dims:
                full = np.full((len(KINDS), len(ordered), *array.shape[2:]), empty[name], array.dtype)
                full[:, at] = array
                array = full
            values.setdefault(name, []).append(array)
    items: dict[tuple[Any, ...], list[str]] = {}
    variants = [store.labels(part, "variant")[0] for part in parts]
    for variant, part in zip(variants, parts, strict=True):
        for i, name in enumerate(store.labels(part, "item") if "item_name" in part.coords else []):
            key = (
                int(part["item_origin"][i]),
                name,
                str(part["item_here"].values[i]),
                str(part["item_there"].values[i]),
            )
            items.setdefault(key, []).append(variant)
    mine, theirs = (set(settings[name]) for name in ("variants", "variants_there"))
    if mine != theirs:
        only = [", ".join(sorted(own)) or "none more" for own in (mine - theirs, theirs - mine)]
        items[ORIGINS.index("config"), "variants", *only] = variants
    listed = sorted(items, key=lambda key: key[0])
    told = lambda key: "all" if len(items[key]) == len(variants) else ", ".join(items[key])
    return store.build(
        COMPARISON,
        {name: np.stack(rows) for name, rows in values.items()}
        | {
            "item_origin": [key[0] for key in listed],
            "item_here": [key[2] for key in listed],
            "item_there": [key[3] for key in listed],
            "item_variants": [told(key) for key in listed],
        },
        {
            "variant": variants,
            "kind": list(KINDS),
            "quantity": ordered,
            "scenario": scenarios,
            "item": [key[1] for key in listed],
        },
        units={"time": str(parts[0]["first_time"].attrs["units"])},
    )


def _in_order(quantities: list[str]) -> list[str]:
    return sorted(quantities, key=lambda q: PARTS.index(q.split(".")[0]))


def overall(ds: xr.Dataset) -> int:
    """Returns the worst verdict of a comparison."""
    return int(worst_of(ds["variant_verdict"].values))
