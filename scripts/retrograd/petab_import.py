"""A PEtab problem as a `Symbolic` with its experiments, observables and measurements.

An experiment is a start, with or without a steady state before it, and dynamics from there. Each of its two phases has
a number, the value of a parameter (`Fit.period`): even the steady one's, odd the dynamic one's. What conditions set is
a parameter with a value in each phase where all of these are numbers, else a formula that chooses by that number. In
the course of the dynamics conditions make states jump, and what else they set is a formula of time.

Semantics: PEtab 2.0, "Conditions table, detailed semantics": changes are evaluated on what was before them, and take
effect together; amounts stay where a compartment changes its size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sympy as sp

from retrograd.errors import RetrogradError
from retrograd.messages import capped
from retrograd.petab_files import Problem
from retrograd.petab_networks import Networks
from retrograd.sbml_import import read_sbml
from retrograd.symbolic import TIME, Symbolic, assembled, in_order, names_in, put_in, symbol

# Chooses one of its arguments by the last, a number from 0 on.
PICK = sp.Function("(pick)", real=True)
# The experiment of measurements that name none.
NO_EXPERIMENT = "default"


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    - `id`: its name in the problem, with `_inf` behind it for measurements at rest.
    - `start`: model time at which the dynamics begin.
    - `rests`: whether a steady state comes before.
    - `first`, `second`: what conditions change, target to formula, at the very start, and after the steady state.
    - `conditions`: ids of those that apply at the very start.
    - `later`: what conditions change in the course of the dynamics: times since their start, in order, with changes.
    """

    id: str
    start: float
    rests: bool
    first: dict[str, sp.Expr]
    second: dict[str, sp.Expr]
    conditions: tuple[str, ...]
    later: tuple[tuple[float, dict[str, sp.Expr]], ...] = ()

    @property
    def changes(self) -> list[dict[str, sp.Expr]]:
        """All changes, in order."""
        return [self.first, self.second, *(changes for _, changes in self.later)]


@dataclass(frozen=True)
class Observable:
    """An observable: formulas of its value and its noise scale, its distribution, and its placeholders, in order."""

    id: str
    value: sp.Expr
    noise: sp.Expr
    distribution: str
    placeholders: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """A measurement: its experiment and observable by number, time from the experiment's start, and time as told.

    - `overrides`: what stands for the observable's placeholders.
    """

    experiment: int
    observable: int
    time: float
    told: float
    value: float
    overrides: tuple[sp.Expr, ...]


@dataclass
class Fit:
    """What a problem adds to its model.

    - `period`: name of the parameter that says in which phase of which experiment a scenario is.
    - `estimated`: parameters that are estimated, in the order of their table.
    - `restart`: of states the formula of the start of the dynamics, in terms of the steady state's.
    - `columns`: of parameters that conditions set, their value in each phase, shape (experiment, 2).
    - `jumps`: of states the formula of their jumps, in terms of time and the states before.
    """

    period: str
    experiments: list[Experiment]
    observables: list[Observable]
    measurements: list[Measurement]
    estimated: tuple[str, ...] = ()
    restart: dict[str, sp.Expr] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    jumps: dict[str, sp.Expr] = field(default_factory=dict)

    @property
    def jump_times(self) -> list[float]:
        """Times since the start at which conditions change anything."""
        return sorted({time for e in self.experiments for time, _ in e.later})

    @property
    def start(self) -> str:
        """The study's `start`."""
        return "steady_state" if any(e.rests for e in self.experiments) else "initial_state"

    @property
    def times(self) -> list[float]:
        """Times from the start at which anything is measured."""
        return sorted({m.time for m in self.measurements})

    @property
    def skips(self) -> list[bool]:
        """Of each phase, whether the steady state is the start itself, since the experiment has none."""
        some = self.start == "steady_state"
        return [skip for e in self.experiments for skip in (some and not e.rests, False)]


def import_problem(problem: Problem, where: str) -> tuple[Symbolic, Fit, Networks]:
    """Returns a problem's model with everything that conditions and networks put into it.

    - `where`: what messages call the problem.

    Raises RetrogradError with everything that is not supported.
    """
    importer = _Importer(problem)
    try:
        made = importer.run()
    except RetrogradError as error:
        importer.problems.append(str(error))
        made = None
    if made is None or importer.problems:
        raise RetrogradError("\n  ".join([f"{where}: cannot be imported:", *capped(importer.problems)]))
    return made


class _Importer:
    def __init__(self, problem: Problem) -> None:
        self.problem, self.tables = problem, problem.tables
        self.problems: list[str] = []

    def run(self) -> tuple[Symbolic, Fit, Networks] | None:
        self.model = read_sbml(self.problem.model)
        self._add_state()
        taken = {*_names(self.model), *(p.id for p in self.tables.parameters), *self.problem.mapping}
        self.period, self.since = (_unused(name, taken) for name in ("period", "start_of_period"))
        self.networks = Networks(self.problem, self.period)
        self.problems += self.networks.problems
        if self.problems:
            return None
        self.conditions = {c.id: c for c in self.tables.conditions}
        self.estimated = tuple(self.name(p.id) for p in self.tables.parameters if p.estimate)
        self._refuse_twins()
        self._read_parameters()
        self._put_networks()
        experiments = self._experiments()
        self.problems += self.networks.missing_arrays([(e.id, e.conditions) for e in experiments])
        self._add_output_parameters(experiments)
        self._check_names(experiments)
        if self.problems:
            return None
        fit = Fit(self.period, experiments, self._observables(), [], self.estimated)
        fit.measurements = self._measurements(fit)
        if self.problems:
            return None
        self._apply(fit)
        return (assembled(self.model), fit, self.networks) if not self.problems else None

    def _add_state(self) -> None:
        """Gives a model of constants alone a state that stays 0: observables of constants are simulated too."""
        if not self.model.states:
            name = _unused("nothing", _names(self.model))
            self.model = replace(self.model, states={name: "1"}, rates={name: sp.S.Zero}, initial={name: sp.S.Zero})
            self.model = assembled(self.model)

    # -- parameters -----------------------------------------------------------------------------------

    def name(self, petab_id: str) -> str:
        """Returns the model's name of a PEtab id: local parameters of reactions have a dot in theirs."""
        if self.networks.has(petab_id):
            return petab_id
        return self.problem.mapping.get(petab_id, petab_id).replace(".", "_")

    def formula(self, expr: Any) -> sp.Expr:
        """Returns a formula of the problem with the model's names, and time."""
        put: dict[Any, Any] = {symbol("time"): TIME}
        for s in sp.sympify(expr).free_symbols:
            if s.name in self.problem.mapping and not self.networks.has(s.name):
                put[s] = symbol(self.name(s.name))
        return put_in(sp.sympify(expr), put)

    def _refuse_twins(self) -> None:
        for what, items in (("parameter", self.tables.parameters), ("observable", self.tables.observables)):
            ids = [item.id for item in items]
            self.problems += [f"{what} {i}: is in its table twice" for i in dict.fromkeys(ids) if ids.count(i) > 1]

    def _read_parameters(self) -> None:
        model = self.model
        parameters, values, derived = dict(model.parameters), dict(model.values), dict(model.derived)
        known = _names(model)
        for p in self.tables.parameters:
            name = self.name(p.id)
            if name != p.id and name not in known:
                self.problems.append(f"parameter {p.id}: is mapped to {name}, which is not in the model")
                continue
            if name in model.states or name in model.expressions:
                what = "a state" if name in model.states else "computed by a rule"
                self.problems.append(f"parameter {p.id}: is {what} in the model, wanted a constant")
                continue
            derived.pop(name, None)
            parameters.setdefault(name, "1")
            values.pop(name, None)
            if p.nominal_value is not None and not math.isfinite(float(p.nominal_value)):
                self.problems.append(f"parameter {p.id}: found the value {p.nominal_value}, wanted a finite number")
            elif p.nominal_value is not None:
                values[name] = float(p.nominal_value)
        self.model = replace(model, parameters=parameters, values=values, derived=derived)

    def _put_networks(self) -> None:
        """Puts networks into the model: inputs and outputs as expressions, targets of outputs as what they compute."""
        model, networks = self.model, self.networks
        expressions, derived, initial = dict(model.expressions), dict(model.derived), dict(model.initial)
        parameters, values = dict(model.parameters), dict(model.values)
        expressions |= networks.outputs
        for target, value in self.problem.hybridization.items():
            if networks.is_array(target):
                continue
            if value is None:
                self.problems.append(f"hybridization of {target}: found an array for a single number")
                continue
            name, expr = self.name(target), self.formula(value)
            if target in networks.inputs:
                if target in networks.static_inputs and (
                    TIME in expr.free_symbols or names_in(expr) & set(model.states)
                ):
                    self.problems.append(
                        f"hybridization of {target}: found {value}, which changes in time, for a network that is "
                        "evaluated before the simulation"
                    )
                expressions[target] = expr
            elif name in self.estimated:
                self.problems.append(f"hybridization of {target}: sets what the table of parameters estimates")
            elif name in model.states:
                initial[name] = expr
            elif name in model.parameters or name in model.derived:
                parameters.pop(name, None)
                values.pop(name, None)
                derived.pop(name, None)
                expressions[name] = expr
            else:
                self.problems.append(f"hybridization of {target}: found nothing of that name in the model")
        for name in networks.inputs:
            if name not in expressions and name not in parameters:
                parameters[name] = "1"
        self.model = assembled(
            replace(
                model, expressions=expressions, derived=derived, initial=initial, parameters=parameters, values=values
            )
        )

    # -- experiments ----------------------------------------------------------------------------------

    def _experiments(self) -> list[Experiment]:
        told = {e.id: e for e in self.tables.experiments}
        used = dict.fromkeys(m.experiment_id or "" for m in self.tables.measurements)
        self.number: dict[tuple[str, bool], int] = {}
        self.no_experiment = _unused(NO_EXPERIMENT, told)
        out: list[Experiment] = []
        for name in used:
            if name and name not in told:
                self.problems.append(f"experiment {name}: is measured, but not in the table of experiments")
                continue
            mine = self._experiment(name or self.no_experiment, told[name].sorted_periods if name else [])
            if mine is None:
                continue
            times = [m.time for m in self.tables.measurements if (m.experiment_id or "") == name]
            if any(map(math.isfinite, times)):
                self.number[name, False] = len(out)
                out.append(mine)
            if not all(map(math.isfinite, times)):
                self.number[name, True] = len(out)
                out.append(self._at_rest(mine, not any(map(math.isfinite, times))))
        if not out and not self.problems:
            self.problems.append("found no measurement, wanted at least one")
        return out

    def _experiment(self, name: str, periods: Sequence[Any]) -> Experiment | None:
        changes = [self._changes(name, p.condition_ids) for p in periods]
        times = [float(p.time) for p in periods]
        rests = bool(times) and times[0] == -math.inf
        dynamic = 1 if rests else 0
        if rests and len(times) < 2:
            self.problems.append(f"experiment {name}: has a steady state alone, wanted a period that begins after it")
            return None
        start = times[dynamic] if times else 0.0
        first = changes[0] if changes else {}
        second = changes[1] if rests else {}
        later = list(zip(times, changes, strict=True))[dynamic + 1 :]
        # Inputs of networks that are evaluated before the simulation are those of the first condition.
        kept = lambda targets: {t: value for t, value in targets.items() if t not in self.networks.static_inputs}
        second, later = kept(second), [(time, kept(targets)) for time, targets in later]
        for time, targets in ((-math.inf if rests else start, first), (start, second), *later):
            for target, value in targets.items():
                if TIME in value.free_symbols and not math.isfinite(time):
                    self.problems.append(f"experiment {name}: sets {target} by the time, at -inf")
                targets[target] = put_in(value, {TIME: sp.Float(time) if math.isfinite(time) else sp.S.Zero})
        ids = tuple(periods[0].condition_ids) if periods else ()
        since_start = tuple((time - start, targets) for time, targets in later if targets)
        return Experiment(name, start, rests, first, second, ids, since_start)

    def _at_rest(self, e: Experiment, alone: bool) -> Experiment:
        if (e.rests or e.later) and self.model.invariants:
            self.problems.append(
                f"experiment {e.id}: measures a steady state that follows on another one or on later changes, in a "
                "model with conserved totals, which is not supported"
            )
        # Without conserved totals a steady state does not depend on where it is approached from.
        first = dict(e.first)
        for changes in [e.second] * e.rests + [changes for _, changes in e.later]:
            before = {symbol(target): value for target, value in first.items()}
            first |= {target: put_in(value, before) for target, value in changes.items()}
        taken = [*(known.id for known in self.tables.experiments), self.no_experiment]
        name = e.id if alone else _unused(f"{e.id}_inf", taken)
        return replace(e, id=name, rests=True, first=first, second={}, later=())

    def _changes(self, experiment: str, conditions: Iterable[str]) -> dict[str, sp.Expr]:
        out: dict[str, sp.Expr] = {}
        for name in conditions:
            if name not in self.conditions:
                self.problems.append(f"experiment {experiment}: names the condition {name}, which is in no table")
                continue
            for change in self.conditions[name].changes:
                target = self.name(change.target_id)
                if target in out:
                    self.problems.append(f"experiment {experiment}: sets {change.target_id} twice at the same time")
                out[target] = self.formula(change.target_value)
        return out

    def _add_output_parameters(self, experiments: Sequence[Experiment]) -> None:
        """Makes parameters of what conditions set for observables alone."""
        tables = self.tables
        formulas = [f for o in tables.observables for f in (o.formula, o.noise_formula)]
        formulas += [f for m in tables.measurements for f in (*m.observable_parameters, *m.noise_parameters)]
        used = set().union(*(names_in(self.formula(f)) for f in formulas)) - _names(self.model)
        new = dict.fromkeys(t for e in experiments for changes in e.changes for t in changes if t in used)
        self.model = replace(self.model, parameters={**self.model.parameters, **dict.fromkeys(new, "1")})

    def _check_names(self, experiments: Sequence[Experiment]) -> None:
        known = _names(self.model)
        for e in experiments:
            for target, value in (item for changes in e.changes for item in changes.items()):
                if target in self.model.expressions:
                    self.problems.append(f"condition of {e.id}: sets {target}, which a rule of the model computes")
                elif target not in known:
                    self.problems.append(f"condition of {e.id}: sets {target}, which is not in the model")
                elif target in self.estimated:
                    self.problems.append(f"condition of {e.id}: sets {target}, which is estimated")
                for name in sorted(names_in(value) - known):
                    self.problems.append(f"condition of {e.id}: found {name} in the formula of {target}: not known")

    # -- observables and measurements -----------------------------------------------------------------

    def _observables(self) -> list[Observable]:
        tables, measured = self.tables.observables, {m.observable_id for m in self.tables.measurements}
        formulas = {o.id: self.formula(o.formula) for o in tables}
        names: dict[Any, Any] = {}
        for name in in_order(formulas, "observables"):
            names[symbol(name)] = put_in(formulas[name], names)
        known = _names(self.model)
        out = []
        for o in tables:
            if o.id not in measured:
                continue
            noise, value = put_in(self.formula(o.noise_formula), names), names[symbol(o.id)]
            used = names_in(value) | names_in(noise)
            placeholders = [s.name for s in (*o.observable_placeholders, *o.noise_placeholders)]
            placeholders = placeholders or _placeholders(o.id, used - known)
            for name in sorted(used - known - set(placeholders)):
                self.problems.append(f"observable {o.id}: found {name} in its formulas, which is not known")
            if noise.is_number and not (noise.is_finite and noise > 0):
                self.problems.append(f"observable {o.id}: found the noise {noise}, wanted a positive number")
            out.append(Observable(o.id, value, noise, str(o.noise_distribution), tuple(placeholders)))
        return out

    def _measurements(self, fit: Fit) -> list[Measurement]:
        numbers = {o.id: i for i, o in enumerate(fit.observables)}
        known = {*self.model.parameters, *self.model.derived}
        out = []
        for row, m in enumerate(self.tables.measurements, 1):
            overrides = tuple(self.formula(v) for v in (*m.observable_parameters, *m.noise_parameters))
            if m.observable_id not in numbers:
                self.problems.append(f"measurement {row}: found the observable {m.observable_id}, which is in no table")
                continue
            o, at_rest = fit.observables[numbers[m.observable_id]], not math.isfinite(m.time)
            if len(o.placeholders) != len(overrides):
                self.problems.append(
                    f"measurement {row}: found {len(overrides)} observable and noise parameters, wanted "
                    f"{len(o.placeholders)}: {', '.join(o.placeholders) or 'none'}"
                )
            for name in sorted(set().union(*map(names_in, overrides)) - known):
                self.problems.append(f"measurement {row}: found the parameter {name}, which is not known")
            if not math.isfinite(m.measurement) or (o.distribution.startswith("log-") and m.measurement <= 0):
                what = "positive number" if o.distribution.startswith("log-") else "finite number"
                self.problems.append(f"measurement {row}: found {m.measurement:g}, wanted a {what}")
            if at_rest and TIME in self.model.resolve(o.value).free_symbols | self.model.resolve(o.noise).free_symbols:
                self.problems.append(f"measurement {row}: is at rest, and {o.id} depends on time")
            number = self.number[m.experiment_id or "", at_rest]
            start = fit.experiments[number].start
            time = 0.0 if at_rest else m.time - start
            if time < 0:
                self.problems.append(f"measurement {row}: found the time {m.time:g}, before the start at {start:g}")
            out.append(Measurement(number, numbers[m.observable_id], time, m.time, float(m.measurement), overrides))
        return out

    # -- what conditions do ---------------------------------------------------------------------------

    def _apply(self, fit: Fit) -> None:
        """Puts the changes of all experiments into the model."""
        model = self.model
        if any(e.start != 0 for e in fit.experiments):
            self._shift_time(fit)
            model = self.model
        changed = dict.fromkeys(t for e in fit.experiments for changes in e.changes for t in changes)
        constants = [t for t in changed if t not in model.states]
        missing = [c for c in constants if c not in model.values and c not in model.derived]
        for c in missing:
            if not all(c in e.first for e in fit.experiments):
                self.problems.append(f"{c}: has no value in the model, and not all experiments set it")
        if self.problems:
            return
        # What the model starts with, in terms of parameters alone, before any condition.
        self.constants = constants
        self.default = {c: self._default(c) for c in constants}
        base = {symbol(c): f for c, f in self.default.items()}
        used = set().union(*(names_in(f) for e in fit.experiments for changes in e.changes for f in changes.values()))
        # Networks that are evaluated before the simulation see what their experiment's first condition sets.
        kept = {name: symbol(name) for name in self.networks.static_outputs}
        begun = model.at_start(kept, names={*model.states, *model.derived, *used} & set(model.start_order))
        before = {symbol(n): put_in(f, base) for n, f in begun.items() if n not in kept} | base
        values = self._phases(fit, before)
        if self.problems:
            return
        old = {symbol(c): self._choose([v for own in values[c] for v in (own[0], own[0])]) for c in constants}
        self._freeze(old if self.problem.follows else base, changed)
        self._set_constants(values, fit)
        self._set_starts(fit, before, values)
        self._set_restart(fit, old, values)
        for e in self._steady_with_time(fit, values):
            self.problems.append(
                f"experiment {e.id}: found rates that depend on time in the steady state that it begins "
                "with: let its condition set a stimulus to 0, or state when it begins in the table of experiments"
            )
        self._set_jumps(fit, values)
        fit.columns[self.period] = np.arange(2.0 * len(fit.experiments)).reshape(-1, 2)
        self.model = replace(self.model, parameters={**self.model.parameters, self.period: "1"})

    def _shift_time(self, fit: Fit) -> None:
        """Makes the model's time that since the start of each experiment."""
        model = self.model
        now = {TIME: TIME + symbol(self.since)}
        shifted = lambda formulas: {n: put_in(f, now) for n, f in formulas.items()}
        since = self._choose([sp.Float(e.start) for e in fit.experiments for _ in range(2)])
        self.model = assembled(
            replace(
                model,
                rates=shifted(model.rates),
                initial=shifted(model.initial),
                expressions=shifted(model.expressions),
                derived={self.since: since, **shifted(model.derived)},
            )
        )
        fit.observables = [replace(o, value=put_in(o.value, now), noise=put_in(o.noise, now)) for o in fit.observables]

    def _default(self, name: str) -> sp.Expr:
        """Returns what a constant is without conditions, in terms of parameters that none sets."""
        model = self.model
        if name not in model.derived:
            return sp.Float(model.values[name]) if name in model.values else sp.nan
        own = {symbol(n): sp.Float(model.values[n]) for n in self.constants if n in model.values}
        return put_in(model.at_start(names=[name])[name], own)

    def _phases(self, fit: Fit, before: Mapping[Any, Any]) -> dict[str, list[list[sp.Expr]]]:
        """Returns of each constant, by experiment, its formulas in both phases and after each of the later changes.

        In terms of parameters.
        """
        out: dict[str, list[list[sp.Expr]]] = {c: [] for c in self.constants}
        moving = {*self.model.states, *self.model.expressions}
        for e in fit.experiments:
            first = {c: put_in(e.first[c], before) if c in e.first else self.default[c] for c in self.constants}
            for c in self.constants:
                out[c].append([first[c]])
            for changes in e.changes[1:]:
                own = {symbol(c): out[c][-1][-1] for c in self.constants}
                for c in self.constants:
                    new = put_in(changes[c], own) if c in changes else own[symbol(c)]
                    if c in changes and (names_in(new) & moving or TIME in new.free_symbols):
                        self.problems.append(
                            f"experiment {e.id}: sets {c} by states that the simulation decides over, which is not "
                            "supported for constants"
                        )
                    out[c][-1].append(new)
        return out

    def _choose(self, values: Sequence[sp.Expr]) -> sp.Expr:
        """Returns the formula that has each of these values in its phase."""
        different = list(dict.fromkeys(values))
        if len(different) == 1:
            return different[0]
        number = symbol(self.period)
        if all(v.is_number for v in values):
            return PICK(*values, number)
        kind = PICK(*map(sp.Integer, map(different.index, values)), number)
        pieces: list[Any] = [(v, kind < i + 0.5) for i, v in enumerate(different[:-1])]
        return sp.Piecewise(*pieces, (different[-1], sp.true))

    def _freeze(self, first: Mapping[Any, Any], changed: Iterable[str]) -> None:
        """Makes starts, and constants that are computed once, independent of what conditions change."""
        model, touched = self.model, set(changed)
        formulas = {**model.expressions, **model.derived, **model.initial}
        for name in model.start_order:
            if names_in(formulas[name]) & touched and name not in touched:
                touched.add(name)
        affected = [n for n in (*model.initial, *model.derived) if names_in(formulas[n]) & touched]
        begun = model.at_start({n: symbol(n) for n in self.networks.static_outputs}, names=affected) if affected else {}
        frozen = {n: put_in(begun[n], first) for n in affected}
        initial = {n: frozen.get(n, f) for n, f in model.initial.items()}
        derived = {n: frozen.get(n, f) for n, f in model.derived.items()}
        self.model = replace(model, initial=initial, derived=derived)

    def _set_constants(self, values: Mapping[str, list[list[sp.Expr]]], fit: Fit) -> None:
        model = self.model
        parameters, derived, own = dict(model.parameters), dict(model.derived), dict(model.values)
        for name, by_experiment in values.items():
            derived.pop(name, None)
            flat = [v for phases in by_experiment for v in phases[:2]]
            if all(v.is_number for v in flat) and not _changes_later(by_experiment):
                parameters.setdefault(name, "1")
                own.pop(name, None)
                fit.columns[name] = np.array(flat, float).reshape(-1, 2)
            else:
                parameters.pop(name, None)
                own.pop(name, None)
                derived[name] = self._choose(flat)
        self.model = replace(model, parameters=parameters, derived=derived, values=own)

    def _set_starts(self, fit: Fit, before: Mapping[Any, Any], values: Mapping[str, Any]) -> None:
        """Puts what first conditions set into the starts of states."""
        initial = dict(self.model.initial)
        for name in self.model.states:
            if name not in initial and not all(name in e.first for e in fit.experiments):
                self.problems.append(f"{name}: has no start in the model, and not all experiments set it")
                continue
            formulas = []
            for i, e in enumerate(fit.experiments):
                if name in e.first:
                    formulas.append(put_in(e.first[name], before))
                    continue
                resized = self._resized(name, e.first, lambda c: self.default[c], lambda c, i=i: values[c][i][0])
                formulas.append(initial[name] * (1 if self.problem.follows else resized))
            if any(f != initial.get(name) for f in formulas):
                initial[name] = self._choose([f for f in formulas for _ in range(2)])
        self.model = replace(self.model, initial=initial)

    def _set_restart(self, fit: Fit, old: Mapping[Any, Any], values: Mapping[str, Any]) -> None:
        model = self.model
        # What conditions set is what it was in the steady phase, by `old`.
        begun = model.at_start(names=[n for n in model.derived if n not in values])
        rest = {symbol(n): f for n, f in begun.items() if n in model.derived and n not in values}
        for name in model.states:
            formulas: list[Any] = []
            for i, e in enumerate(fit.experiments):
                if name in e.second:
                    told = put_in(put_in(model.resolve(e.second[name]), rest), old)
                    if TIME in told.free_symbols:
                        # By a rule of the model that depends on time.
                        self.problems.append(f"experiment {e.id}: sets {name} by the time, after a steady state")
                    formulas.append(told)
                    continue
                resized = self._resized(name, e.second, lambda c, i=i: values[c][i][0], lambda c, i=i: values[c][i][1])
                formulas.append(symbol(name) * resized)
            if any(f != symbol(name) for f in formulas):
                fit.restart[name] = self._choose([f for f in formulas for _ in range(2)])

    def _set_jumps(self, fit: Fit, values: Mapping[str, list[list[sp.Expr]]]) -> None:
        """Puts later changes into the model: constants become formulas of time, states jump."""
        model, latest_first = self.model, sorted(fit.jump_times, reverse=True)
        for name in model.states:
            pieces: list[Any] = []
            for time in latest_first:
                formulas = [self._jump_of(name, time, i, e, values) for i, e in enumerate(fit.experiments)]
                if any(f != symbol(name) for f in formulas):
                    chosen = self._choose([f for of_one in formulas for f in (symbol(name), of_one)])
                    pieces.append((chosen, sp.Eq(TIME, sp.Float(time))))
            if pieces:
                fit.jumps[name] = sp.Piecewise(*pieces, (symbol(name), sp.true))
        derived, expressions = dict(model.derived), dict(model.expressions)
        for c in [c for c in self.constants if _changes_later(values[c])]:
            # Of each phase, what holds from a time on; at that time itself it is what was before.
            since = lambda time, c=c: self._choose(
                [
                    v
                    for own, e in zip(values[c], fit.experiments, strict=True)
                    for v in (own[0], own[1 + sum(t <= time for t, _ in e.later)])
                ]
            )
            last = derived.pop(c)
            pieces = [(last, sp.true)]
            for time in reversed(latest_first):
                if (new := since(time)) != last:
                    pieces.insert(0, (new, sp.Float(time) < TIME))
                    last = new
            expressions[c] = sp.Piecewise(*pieces)
        self.model = replace(model, derived=derived, expressions=expressions)

    def _jump_of(
        self, name: str, time: float, i: int, e: Experiment, values: Mapping[str, list[list[sp.Expr]]]
    ) -> sp.Expr:
        """Returns what a state becomes at a time in an experiment, the i-th one, in terms of the states before."""
        changes = dict(e.later).get(time, {})
        j = 1 + sum(t <= time for t, _ in e.later)
        if name in changes:
            return put_in(self.model.resolve(changes[name]), {symbol(c): values[c][i][j - 1] for c in values})
        resized = self._resized(name, changes, lambda c: values[c][i][j - 1], lambda c: values[c][i][j])
        return symbol(name) * resized

    def _resized(
        self, name: str, changes: Mapping[str, Any], was: Callable[[str], Any], now: Callable[[str], Any]
    ) -> Any:
        """Returns by what a concentration changes where its compartment does."""
        compartment = self.model.concentrations.get(name)
        if compartment is None or compartment not in changes:
            return sp.S.One
        return was(compartment) / now(compartment)

    def _steady_with_time(self, fit: Fit, values: Mapping[str, list[list[sp.Expr]]]) -> list[Experiment]:
        """Returns the experiments whose steady state is one of rates that depend on time.

        What the condition sets is put in: a stimulus whose dose is 0 there does not depend on time.
        """
        model = assembled(self.model)
        moving = [rate for rate in map(model.resolve, model.rates.values()) if TIME in rate.free_symbols]

        def moves(i: int) -> bool:
            # Whole numbers as such: sympy takes 0 and 0.0 for different values of a formula with cases.
            told = {symbol(c): _whole(by_experiment[i][0]) for c, by_experiment in values.items()}
            return any(TIME in put_in(rate, told).free_symbols for rate in moving)

        return [e for i, e in enumerate(fit.experiments) if e.rests and moves(i)]


def _whole(value: sp.Expr) -> sp.Expr:
    return sp.Integer(int(value)) if value.is_Float and float(value).is_integer() else value


def _changes_later(by_experiment: Sequence[Sequence[sp.Expr]]) -> bool:
    return any(new != phases[1] for phases in by_experiment for new in phases[2:])


def _placeholders(observable: str, names: Iterable[str]) -> list[str]:
    """Returns placeholders by their names, which told what they are before tables had a column for them."""
    pattern = re.compile(rf"(observable|noise)Parameter(\d+)_{re.escape(observable)}")
    found = [match for match in map(pattern.fullmatch, names) if match]
    return [match[0] for match in sorted(found, key=lambda m: (m[1] == "noise", int(m[2])))]


def _names(model: Symbolic) -> set[str]:
    return {*model.states, *model.parameters, *model.derived, *model.expressions}


def _unused(name: str, known: Iterable[str]) -> str:
    while name in known:
        name += "_"
    return name
