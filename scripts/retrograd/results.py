"""The results of a study: its files loaded, and what is read off them in more than one place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from retrograd import store
from retrograd.errors import RetrogradError
from retrograd.provenance import file_digest
from retrograd.scenarios import Table, head_of, read_scenarios
from retrograd.schema import stages_of

# How many have a row of a figure or a table; what is left out is said in the captions.
MOST_VARIANTS = 24
# Of steps, attempts and gradients by weights, of all variants together, up to which they are held in memory: read by
# scenario they take ten times as long.
MOST_BYTES = 200 << 20


@dataclass(frozen=True, eq=False)
class Treated:
    """A variant's results.

    - `method`: the gradient method whose verdict decides its outcomes.
    - `settings`: what each of its stages was computed with, by stage.
    - `dynamics`, `gradients`, `steady`, `fit`: its files. Steps, attempts and gradients by weights of a large study
      are read where they are asked for: choose rows before `.values`.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    dynamics: xr.Dataset
    gradients: xr.Dataset
    steady: xr.Dataset | None = None
    fit: xr.Dataset | None = None

    @classmethod
    def of(cls, name: str, method: str, settings: Mapping[str, Any], files: Mapping[str, xr.Dataset]) -> Treated:
        """Returns a variant's results from its files by stage."""
        required = files["dynamics"], files["gradients"]
        return cls(name, method, settings, *required, files.get("steady_state"), files.get("fit"))

    @property
    def files(self) -> list[xr.Dataset]:
        """Its files, in the order of the stages."""
        return [ds for ds in (self.steady, self.dynamics, self.gradients, self.fit) if ds is not None]

    @cached_property
    def methods(self) -> list[str]:
        return store.labels(self.gradients, "method")

    @cached_property
    def wrt(self) -> list[str]:
        # A dimension without entries has no labels in the file.
        return store.labels(self.gradients, "wrt") if "wrt_name" in self.gradients else []

    @cached_property
    def states(self) -> list[str]:
        return store.labels(self.dynamics, "state")

    @cached_property
    def state_units(self) -> list[str]:
        if "state_units" in self.dynamics.coords:
            return [str(u) for u in self.dynamics["state_units"].values]
        return [str(self.dynamics["x"].attrs.get("units", "1"))] * len(self.states)

    @cached_property
    def time_unit(self) -> str:
        return str(self.dynamics["model_time"].attrs.get("units", "1"))

    @cached_property
    def size(self) -> np.ndarray:
        """The largest |fd| of each scenario, shape (scenario,); NaN where there is none."""
        fd = np.abs(self.gradients["fd"].values)
        found = np.max(fd, axis=1, initial=-1.0, where=np.isfinite(fd))
        return np.where(found >= 0, found, np.nan)

    @cached_property
    def difference(self) -> np.ndarray:
        """|ad - fd|, shape (scenario, method, wrt)."""
        return np.abs(self.gradients["ad"].values - self.gradients["fd"].values[:, None, :])

    @cached_property
    def bound(self) -> np.ndarray:
        """What |ad - fd| may be, by the two error bounds together, shape (scenario, method, wrt)."""
        own = self.gradients["ad_error"].values if "ad_error" in self.gradients else 0.0
        return self.gradients["fd_error"].values[:, None, :] + own

    @cached_property
    def offsets(self) -> dict[str, np.ndarray]:
        """Where the scenarios' parts of `step` and `attempt` begin and end, by dimension, shape (scenario + 1,)."""
        return {name: store.ragged(self.dynamics, f"{name}_count") for name in ("step", "attempt")}

    def steps(self, scenario: int) -> slice:
        """Returns where a scenario's accepted steps stand."""
        return slice(*self.offsets["step"][scenario : scenario + 2])

    def record(self, scenario: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns times, shape (step + 1,), and states, shape (step + 1, state), of a record, its start included."""
        mine, ds = self.steps(scenario), self.dynamics
        t = np.concatenate([[0.0], ds["step_time"][mine].values])
        return t, np.concatenate([ds["x_start"].values[scenario : scenario + 1], ds["step_x"][mine].values])

    def attempts(self, scenario: int) -> slice:
        """Returns where a scenario's attempts stand."""
        return slice(*self.offsets["attempt"][scenario : scenario + 2])

    def narrowed(self, rows: Sequence[int]) -> Treated:
        """Returns some scenarios of it, in the order given; measurements stay those of all."""
        cut: dict[str, Any] = {"scenario": list(rows)}
        for dim, at in self.offsets.items():
            cut[dim] = np.concatenate([np.arange(*at[row : row + 2]) for row in rows])
        return replace(
            self,
            dynamics=self.dynamics.isel(cut, missing_dims="ignore"),
            gradients=self.gradients.isel(scenario=list(rows)),
            steady=self.steady if self.steady is None else self.steady.isel(scenario=list(rows)),
        )


@dataclass(frozen=True, eq=False)
class Results:
    """A study's results: its settings as the plan resolved them, the summary, the files of each variant.

    - `table`: the scenarios' parameters, None where they were not given.
    - `effects`: what the remedies of a study with factors are worth, None of others.
    - `comparison`: with another run, None where there is none of these very files.
    - `whole`: where these are some scenarios of a study, all of it: its best variant is theirs.
    - `notes`: what the scenario table says of itself.
    """

    settings: Mapping[str, Any]
    summary: xr.Dataset
    model: xr.Dataset
    variants: tuple[Treated, ...]
    table: Table | None = None
    effects: xr.Dataset | None = None
    comparison: xr.Dataset | None = None
    whole: Results | None = None
    notes: str = ""

    @cached_property
    def study(self) -> str:
        return str(self.settings["study"]["study"])

    @cached_property
    def scenarios(self) -> list[str]:
        return store.labels(self.summary, "scenario")

    @cached_property
    def outcome(self) -> np.ndarray:
        """Codes of the outcomes, shape (variant, scenario)."""
        return self.summary["outcome"].values

    @cached_property
    def attempts(self) -> np.ndarray:
        """Accepted and rejected steps, shape (variant, scenario)."""
        return self.summary["num_accepted"].values + self.summary["num_rejected"].values

    def index(self, treated: Treated) -> int:
        """Returns a variant's row in the summary."""
        return self._rows[treated.name]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {v.name: i for i, v in enumerate(self.variants)}

    @cached_property
    def seconds(self) -> np.ndarray | None:
        """Time of solve and gradient of one scenario [s], shape (variant,); None where it was not measured."""
        return None if self.effects is None else self.effects["seconds"].values

    def is_cell(self, treated: Treated) -> bool:
        """Returns whether factors made a variant."""
        return self.effects is not None and bool((self.effects["level"].values[self.index(treated)] >= 0).all())

    @cached_property
    def shown(self) -> list[Treated]:
        """The variants that have a row where there is no room for all, in order.

        All that the study lists, the best and its contrast, and of those that factors made as many as fit,
        spread evenly from the fewest verified scenarios to the most.
        """
        if len(self.variants) <= MOST_VARIANTS:
            return list(self.variants)
        first = [v for v in self.variants if not self.is_cell(v)][: MOST_VARIANTS - 2]
        first += [v for v in (self.best, self.contrast) if v is not None and v not in first]
        rest = np.array([i for i, v in enumerate(self.variants) if v not in first])
        ranked = rest[np.argsort([self.verified(self.variants[i]) for i in rest], kind="stable")]
        chosen = {self.variants[i].name for i in spread(ranked, MOST_VARIANTS - len(first))}
        return [v for v in self.variants if v in first or v.name in chosen]

    def verified(self, treated: Treated) -> int:
        """Returns how many scenarios of a variant have a verified gradient."""
        return int((self.outcome[self.index(treated)] == 0).sum())

    @cached_property
    def best(self) -> Treated:
        """The variant that verifies most; of equals `recommended`, else the one with fewer attempts."""
        if self.whole is not None:
            return self._same(self.whole.best)

        def rank(v: Treated) -> tuple[int, bool, float]:
            attempts = self.attempts[self.index(v)]
            return (-self.verified(v), v.name != "recommended", float(np.median(attempts)))

        return min(self.variants, key=rank)

    @cached_property
    def contrast(self) -> Treated | None:
        """The variant that verifies least, of those at the best one's precision and tolerance if any."""
        if self.whole is not None:
            return self.whole.contrast and self._same(self.whole.contrast)
        others = [v for v in self.variants if v is not self.best]
        alike = [v for v in others if _accuracy(v) == _accuracy(self.best)]
        return min(alike or others, key=self.verified, default=None)

    def _same(self, treated: Treated) -> Treated:
        return self.variants[self._rows[treated.name]]

    def narrowed(self, variants: Sequence[str] | None = None, scenarios: Sequence[str] | None = None) -> Results:
        """Returns some variants and scenarios, by name, in the order given; None: all.

        Raises RetrogradError for names that are not there.
        """
        out = self
        if variants is not None:
            rows = _places("variant", variants, [v.name for v in self.variants])
            out = replace(
                self,
                summary=self.summary.isel(variant=rows),
                variants=tuple(self.variants[i] for i in rows),
                effects=self.effects if self.effects is None else self.effects.isel(variant=rows),
            )
        if scenarios is not None:
            rows = _places("scenario", scenarios, self.scenarios)
            table = out.table
            if table is not None:
                table = replace(table, ids=tuple(table.ids[i] for i in rows), rows=tuple(table.rows[i] for i in rows))
            out = replace(
                out,
                summary=out.summary.isel(scenario=rows),
                variants=tuple(v.narrowed(rows) for v in out.variants),
                table=table,
                effects=out.effects if out.effects is None else out.effects.isel(scenario=rows, missing_dims="ignore"),
                whole=out,
            )
        return out


def _places(what: str, wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if unknown := [name for name in wanted if name not in known]:
        told = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        raise RetrogradError(f"{what}s: found {', '.join(map(str, unknown))}, wanted some of {told}.")
    if not wanted:
        raise RetrogradError(f"{what}s: found none, wanted at least one name, or nothing for all.")
    return [known.index(name) for name in dict.fromkeys(wanted)]


def spread(order: np.ndarray, count: int) -> np.ndarray:
    """Returns up to `count` entries of a sequence, evenly spread, with both ends."""
    if len(order) <= count:
        return order
    return order[np.unique(np.round(np.linspace(0, len(order) - 1, count)).astype(int))]


def _accuracy(treated: Treated) -> tuple[Any, ...]:
    dynamics = treated.settings.get("dynamics", {})
    controller = dynamics.get("controller", {})
    return dynamics.get("precision"), controller.get("rtol"), controller.get("atol")


def load(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    model: str,
    summary: str,
    scenarios: str | None = None,
    effects: str | None = None,
    comparison: str | None = None,
) -> Results:
    """Returns a study's results.

    - `folder`: where the variants' folders stand.
    - `settings`: what `Plan.report_settings` gives.
    - `model`, `summary`, `scenarios`, `effects`, `comparison`: paths of `model.nc`, `summary.nc`, the scenario table,
      of a study with factors `effects.nc`, and of one that was compared `comparison.nc`.
    """
    root = store.read(model, "model")
    said = store.origin(root.attrs)
    wanted = {"model": file_digest(model), **{name: said[name] for name in ("plugin",) if name in said}}
    wanted |= {"scenarios": file_digest(scenarios)} if scenarios else {}
    variants, stages = [], dict[str, str]()
    for name, resolved in settings["resolved"].items():
        here = Path(folder) / name
        files = store.read_stages(here, settings["stages"], store.LARGE, wanted | {"variant": name})
        stages |= {f"{name}/{stage}": file_digest(here / f"{stage}.nc") for stage in files}
        variants.append(Treated.of(name, settings["gradient_of"][name], resolved, files))
    every = [var for v in variants for ds in v.files for var in ds.variables.values()]
    large = [var for var in every if set(store.LARGE) & set(var.dims)]
    if sum(var.nbytes for var in large) <= MOST_BYTES:
        for var in large:
            var.load()
    table = store.read(summary, "summary", wanted=stages)
    # Canonical JSON has sorted the variants: the summary has them in the study's order.
    order = store.labels(table, "variant")
    variants.sort(key=lambda v: order.index(v.name))
    return Results(
        settings,
        table,
        root,
        tuple(variants),
        read_scenarios(scenarios) if scenarios else None,
        store.read(effects, "effects", wanted={"summary": file_digest(summary)}) if effects else None,
        _compared(comparison, stages) if comparison else None,
        notes=head_of(scenarios) if scenarios else "",
    )


def _compared(path: str, stages: Mapping[str, str]) -> xr.Dataset | None:
    """Returns a comparison, None where it is one of files other than these, given by their digests."""
    ds = store.read(path, "comparison")
    of = {name: digest for name, digest in store.origin(ds.attrs).items() if "/" in name}
    return ds if of and of.items() <= stages.items() else None


def of_tree(tree: xr.DataTree) -> Results:
    """Returns the results that `open_results` gave as a tree, of the variants that have all stages.

    Settings of a study that only its page tells are not in it. The scenario table is made of the parameters of both
    phases. Raises RetrogradError where the tree lacks what figures are made of.
    """
    found = {name: child for name, child in tree.children.items() if child.attrs.get("retrograd_schema")}
    by_kind = {child.attrs["retrograd_schema"].partition("/")[0]: child for child in found.values()}
    if "summary" not in by_kind or "model" not in by_kind:
        lacks = ", ".join(name for name in ("summary", "model") if name not in by_kind)
        raise RetrogradError(
            f"found no {lacks} in the tree, wanted the whole of what open_results gives of a finished study; "
            f"missing from the folder: {tree.attrs.get('missing', 'nothing')}. Run the study to its end."
        )
    summary = _named(by_kind["summary"])
    config = store.config_of(summary)
    needed = set(stages_of(config["start"]))
    gradient_of = {v["name"]: v["gradient"] for v in config["variants"]}
    variants, rows = list[Treated](), list[int]()
    for row, name in enumerate(store.labels(summary, "variant")):
        stages = tree.children[name].children if name in tree.children else {}
        if not needed <= set(stages):
            continue
        files = {stage: _named(node) for stage, node in stages.items()}
        _whole_records(name, files["dynamics"])
        settings = {stage: store.config_of(ds) for stage, ds in files.items()}
        rows.append(row)
        variants.append(Treated.of(name, gradient_of[name], settings, files))
    if not variants:
        raise RetrogradError(
            "found no variant with all of its stages in the tree, wanted at least one; "
            f"missing from the folder: {tree.attrs.get('missing', 'nothing')}. Run the study to its end."
        )
    effects = _named(by_kind["effects"]).isel(variant=rows) if "effects" in by_kind else None
    summary = summary.isel(variant=rows)
    table = _table_of(variants)
    return Results({"study": config}, summary, _named(by_kind["model"]), tuple(variants), table, effects)


def _named(node: xr.DataTree) -> xr.Dataset:
    """Returns a node as its file has it: labels under `<dimension>_name`."""
    ds = node.to_dataset(inherit=False)
    labelled = [str(dim) for dim in ds.dims if dim in ds.coords and ds[dim].dtype.kind in "UO"]
    return ds.assign_coords({f"{dim}_name": (dim, ds[dim].values.astype(object)) for dim in labelled})


def _whole_records(name: str, dynamics: xr.Dataset) -> None:
    for dim in ("step", "attempt"):
        if dynamics[f"{dim}_count"].values.sum() != dynamics.sizes[dim]:
            raise RetrogradError(
                f"{name}/dynamics: found {dynamics.sizes[dim]} {dim}s for scenarios that have "
                f"{int(dynamics[f'{dim}_count'].values.sum())}, wanted all of a study's scenarios: give the tree as it "
                "was opened, and scenarios=[...] beside it."
            )


def _table_of(variants: Sequence[Treated]) -> Table | None:
    # Single precision has rounded them.
    exact = next((v for v in variants if v.settings["dynamics"].get("precision") == "float64"), variants[0])
    if "k" not in exact.dynamics:
        return None
    names, ids = store.labels(exact.dynamics, "parameter"), store.labels(exact.dynamics, "scenario")
    dynamic = exact.dynamics["k"].values
    before = dynamic if exact.steady is None or "k" not in exact.steady else exact.steady["k"].values
    columns: dict[str, np.ndarray] = {}
    for name, one, other in zip(names, before.T, dynamic.T, strict=True):
        if np.array_equal(one, other, equal_nan=True):
            columns[name] = other
        else:
            columns |= {f"{name}@steady": one, f"{name}@dynamic": other}
    values = np.stack(list(columns.values()), axis=1) if columns else np.zeros((len(ids), 0))
    return Table(tuple(ids), tuple(columns), tuple(map(tuple, values.tolist())))
