"""One variant of two runs: what is compared, by which limits, where it diverges first, and why.

Two comparisons. Free: both runs' results, each on the steps that it chose. Replayed: this run's model and parameters
on the steps of the reference, so that only rounding is left; what is not rounding there is traced by putting the
reference's weights, parameters, formulation in the place of this run's, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from retrograd import agreement, store
from retrograd.agreement import (
    DIFFERENT,
    IDENTICAL,
    NOT_COMPARABLE,
    NOT_COMPARED,
    PARTS,
    ROUNDING,
    Quantity,
    Weighed,
    by_owner,
    nothing_compared,
    unmeasured,
    weigh,
    worst_of,
)
from retrograd.api import Model
from retrograd.context import Chunk
from retrograd.ensemble import MARGIN, MEMBERS, replay
from retrograd.find_stage import find_steady_states
from retrograd.gradient_stage import gradient_problem
from retrograd.gradients import GradientProblem, Scenarios, largest
from retrograd.linalg import jitter, tolerance
from retrograd.origins import flat, setting_pairs
from retrograd.results import spread
from retrograd.runs import Side, labels_of, shapes, units_of
from retrograd.schema import DYNAMICS_STATUS, STEADY_STATUS, VERDICTS
from retrograd.solve_stage import simulate
from retrograd.starts import StartOfDynamics
from retrograd.weights import evaluate, n_weights

Settings = Mapping[str, Any]
Places = Callable[[tuple[int, ...]], str]

# Scenarios that are replayed: those that are furthest apart, and of the others some, evenly spread.
MOST_REPLAYED = 256
# Scenarios on which reasons are tried.
MOST_TRIED = 16
# First steps of a solve by which is told whether it is of the same model.
MOST_STEPS = 256
# Solves from changed parameters by which is told whether an outcome hangs on rounding.
TRIES = 8


class Comparison:
    """Two runs of one variant."""

    def __init__(
        self,
        cls: type[Model],
        model: Model,
        options: Settings,
        chunk: Chunk,
        here: Side,
        there: Side,
    ) -> None:
        """- `options`: of the gradients' stage of this run.
        - `chunk`: the scenarios that both runs have, with this run's parameters.
        """
        self.cls, self.model, self.options, self.chunk = cls, model, options, chunk
        self.here, self.there = here, there
        self.n = len(chunk.ids)
        self.states = list(cls.states)
        self.dtype = np.dtype(options["precision"])
        self.times, self.at_here, self.at_there = np.intersect1d(
            here.files["dynamics"]["model_time"].values,
            there.files["dynamics"]["model_time"].values,
            return_indices=True,
        )
        self.same_times = all(len(side.files["dynamics"]["model_time"]) == len(self.times) for side in (here, there))
        mine, theirs = (side.files["gradients"] for side in (here, there))
        both = lambda dim: [label for label in labels_of(theirs, dim) if label in labels_of(mine, dim)]
        self.methods, self.wrt = both("method"), both("wrt")
        self.their_options = store.config_of(there.files["gradients"])
        if options["gradient"]["seed"] != self.their_options["gradient"]["seed"]:
            # The random directions are others.
            self.wrt = [label for label in self.wrt if not label.startswith("network[")]
        # Labels of what only one run has formed, and is not compared.
        known = {*self.methods, *self.wrt}
        either = dict.fromkeys(n for dim in ("method", "wrt") for ds in (mine, theirs) for n in labels_of(ds, dim))
        self.left_out = [label for label in either if label not in known]
        self.good = {s: here.good(s) & there.good(s) for s in here.files if s != "gradients"}
        self.owner = np.arange(self.n)
        # The scenarios that are replayed. By name, arrays over all scenarios, NaN where there is no replay: what
        # replays give, what rounding can do to it, what steps half as long change. By scenario: states at the steps'
        # ends, and what rounding can do to them.
        self.chosen = np.zeros(self.n, bool)
        self.values: dict[str, np.ndarray] = {}
        self.rounding: dict[str, np.ndarray] = {}
        self.solver: dict[str, np.ndarray] = {}
        self.ends: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    # -- the whole -----------------------------------------------------------------------------------------

    def run(self) -> dict[tuple[str, str], Weighed]:
        """Returns the verdicts on all quantities: (kind, stage.name) -> verdict and measures."""
        self.chosen = self._choose()
        self._replay()
        found: dict[tuple[str, str], Weighed] = {}
        found |= {("free", name): w for name, w in self._free().items()}
        found |= {("replayed", name): w for name, w in self._on_recorded_steps().items()}
        self._add_settings(found)
        return found

    def _choose(self) -> np.ndarray:
        usable = self.there.good("dynamics") & np.all(np.isfinite(self.chunk.k_dynamic), axis=1)
        rows = np.flatnonzero(usable)
        if len(rows) > MOST_REPLAYED:
            with np.errstate(all="ignore"):
                a, b = (
                    self.here.of("dynamics", "x")[:, self.at_here],
                    self.there.of("dynamics", "x")[:, self.at_there],
                )
                apart = np.nan_to_num(np.nanmax(np.abs(a - b), axis=(1, 2)) / np.nanmax(np.abs(b), axis=(1, 2)))
            order = rows[np.argsort(-apart[rows], kind="stable")]
            half = MOST_REPLAYED // 2
            rows = np.concatenate([order[:half], spread(np.sort(order[half:]), MOST_REPLAYED - half)])
        out = np.zeros(self.n, bool)
        out[rows] = True
        return out

    # -- replays -------------------------------------------------------------------------------------------

    def _rungs(self) -> np.ndarray:
        steady = self.there.of("steady_state", "rung") if "steady_state" in self.there.files else np.zeros(self.n, int)
        return np.stack([steady, self.there.of("dynamics", "rung")], axis=1)

    def recorded(self, rows: np.ndarray, k_dynamic: np.ndarray, k_steady: np.ndarray) -> Scenarios:
        """Returns some scenarios on the steps and from the starts of the reference, under given parameters."""
        there = self.there
        steady = "steady_state" in there.files
        return Scenarios(
            k_dynamic=k_dynamic[rows],
            k_steady=k_steady[rows],
            x0=self.chunk.x0[rows],
            x_start=there.of("dynamics", "x_start")[rows],
            steps=[there.records[i].step_time for i in rows],
            step_x=[there.records[i].step_x for i in rows],
            ok=np.ones(len(rows), bool),
            x_rest=there.of("steady_state", "x")[rows] if steady else None,
            conserved=there.of("steady_state", "conserved_basis")[rows] if steady else None,
        )

    def groups(self, rows: np.ndarray) -> list[tuple[np.ndarray, tuple[int, int]]]:
        """Returns some scenarios by the rungs of the steady state and of the solve that they came from."""
        rungs = self._rungs()
        return [
            (rows[np.all(rungs[rows] == pair, axis=1)], (int(pair[0]), int(pair[1])))
            for pair in np.unique(rungs[rows], axis=0)
        ]

    def _replay(self) -> None:
        """Fills `values`, `rounding`, `solver` and `ends`."""
        labels: list[str] = []
        for rows, rungs in self.groups(np.flatnonzero(self.chosen)):
            problem = self.problem(rungs, self.model, self.options)
            labels = problem.labels
            found = replay(problem, self.recorded(rows, self.chunk.k_dynamic, self.chunk.k_steady))
            for i, row in enumerate(rows):
                self.ends[int(row)] = found.ends[i], found.ends_rounding[i]
            for target, source in (
                (self.values, found.values),
                (self.rounding, found.rounding),
                (self.solver, found.solver),
            ):
                for name, value in source.items():
                    full = target.setdefault(name, np.full((self.n, *value.shape[1:]), np.nan))
                    full[rows] = value
        if labels:
            keep = [labels.index(label) for label in self.wrt if label in labels]
            for target, name in ((self.values, "ad"), (self.rounding, "ad"), (self.solver, "ode_error")):
                target[name] = target[name][:, keep]
            at = np.searchsorted(np.asarray(self.options["save_times"]), self.times)
            for target, name in ((self.values, "x"), (self.rounding, "x"), (self.solver, "x_error")):
                target[name] = target[name][:, at]

    def problem(self, rungs: tuple[int, int], model: Model, options: Settings) -> GradientProblem:
        """Returns the gradients' stage under some settings; rungs are those of the reference's rescue ladder."""
        if rungs != (0, 0):
            find, theirs = options["find"], self.their_options
            if find is not None and theirs["find"] is not None:
                find = {**find, "rescue": theirs["find"]["rescue"]}
            options = {**options, "rescue": theirs["rescue"], "find": find}
        return gradient_problem(self.cls, model, options, *rungs)

    def limit(self, name: str) -> np.ndarray:
        """Returns what rounding can do, by the replays; 0 in scenarios that were not replayed."""
        if name not in self.rounding:
            return np.zeros(())
        value = self.rounding[name]
        return np.where(self.chosen.reshape(-1, *[1] * (value.ndim - 1)), value, 0.0)

    def inner(self, x: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Returns how far the stages of the reference's solves were from their solution, at its states.

        - `x`: shape (row, ..., state).
        - `owner`: the scenario of each row, shape (row,).
        """
        # Told by its certificates, in units of its tolerance.
        deviation = self.there.of("gradients", "replay_deviation")[owner]
        deviation = np.where(np.isfinite(deviation), deviation, 0.0)
        return deviation.reshape(-1, *[1] * (x.ndim - 1)) * tolerance(self.their_options["controller"], x)

    def unit(self, x: np.ndarray) -> np.ndarray:
        """Returns the tolerance of the solve at states."""
        return tolerance(self.options["controller"], x)

    # -- the free comparison -------------------------------------------------------------------------------

    def _free(self) -> dict[str, Weighed]:
        out = self._study() | self._models()
        if "steady_state" in self.good:
            out |= self._steady_states()
        out |= self._dynamics()
        out |= self._gradients(out)
        return out

    def _weigh(self, q: Quantity) -> Weighed:
        return weigh(q, self.n)

    def _study(self) -> dict[str, Weighed]:
        """Returns whether both runs have the same scenarios, and files that are as they were written."""
        mine, theirs = (set(side.run.scenarios) for side in (self.here, self.there))
        only = {"here": sorted(mine - theirs), "in the reference": sorted(theirs - mine)}
        where = "; ".join(f"only {side}: {', '.join(names)}" for side, names in only.items() if names)
        sides = {"here": self.here.run.said, "in the reference": self.there.run.said}
        changed = [
            f"{file} {side}"
            for side, said in sides.items()
            for file, about in said.items()
            if about["content"] != about["content_sha256"]
        ]
        files = sum(map(len, sides.values()))
        told = lambda bad, *rest: self._told(DIFFERENT if bad else IDENTICAL, *rest)
        return {
            "study.scenarios": told(where, len(mine | theirs), len(mine & theirs), where),
            "study.files": told(changed, files, files - len(changed), ", ".join(changed)),
            "study.units": self._units(),
        }

    def _units(self) -> Weighed:
        """Returns whether the model's units are the same: of equal numbers, those in other units are others."""
        mine, theirs = (units_of(side.files["dynamics"]) for side in (self.here, self.there))
        apart = [
            f"{name}: {mine.get(name)} here, {unit} there" for name, unit in theirs.items() if mine.get(name) != unit
        ]
        verdict = DIFFERENT if apart else IDENTICAL
        return self._told(verdict, len(theirs), len(theirs) - len(apart), "; ".join(apart))

    def _models(self) -> dict[str, Weighed]:
        here, there = self.here, self.there
        out = {}
        if here.run.weights or there.run.weights:
            if shapes(here.run.weights) == shapes(there.run.weights):
                names = [f"{name}[{i}]" for name, v in here.run.weights.items() for i in range(v.size)]
                flat = lambda side: np.concatenate([v.ravel() for v in side.run.weights.values()] or [np.zeros(0)])
                out["model.weights"] = self._weigh(
                    Quantity(flat(here), flat(there), place=lambda index: f"weight {names[index[0]]}")
                )
            else:
                out["model.weights"] = self._told(DIFFERENT, 1, 0, "the networks have other structures")
        if self.dtype == np.float64:
            out |= self._selftest()
        return out

    def _selftest(self) -> dict[str, Weighed]:
        mine, theirs = self.here.run.model, self.there.run.model
        same = all(np.array_equal(mine[n].values, theirs[n].values) for n in ("selftest_input", "selftest_k"))
        if not same:
            return {"model.selftest": self._told(DIFFERENT, 1, 0, "the self-tests are made at other points")}
        x, k = mine["selftest_input"].values, mine["selftest_k"].values
        there, rounding = theirs["selftest_output"].values, np.zeros_like(x)
        base = evaluate(self.model, x, k)
        for seed in range(1, MEMBERS + 1):
            moved = [v * (1 + jitter(v.shape, self.dtype, seed)) for v in (x, k)]
            rounding = np.fmax(rounding, np.abs(evaluate(self.model, *moved) - base))
        size = np.max(np.abs(there), axis=0, initial=0, where=np.isfinite(there))
        place = lambda index: f"rate of {self.states[index[1]]} at self-test point {index[0]}"
        here = mine["selftest_output"].values
        return {
            "model.selftest": self._weigh(Quantity(here, there, rounding=MARGIN * rounding, size=size, place=place))
        }

    def _names(self, axes: Sequence[Sequence[str]], owner: Sequence[int] | None = None) -> Places:
        def place(index: tuple[int, ...]) -> str:
            row = index[0] if owner is None else owner[index[0]]
            return ", ".join([self.chunk.ids[row], *(axis[i] for axis, i in zip(axes, index[1:], strict=True))])

        return place

    def _parameters(self, stage: str) -> Weighed:
        place = self._names([list(self.cls.parameters)])
        return self._weigh(Quantity(self.here.of(stage, "k"), self.there.of(stage, "k"), owner=self.owner, place=place))

    def _steady_states(self) -> dict[str, Weighed]:
        stage, here, there = "steady_state", self.here, self.there
        c = self.options["find"]["steady_state"]
        place = self._names([self.states])
        x, other = here.of(stage, "x"), there.of(stage, "x")
        unit = tolerance(c, other)
        common = {"owner": self.owner, "place": place, "dtype": self.dtype}
        guess = here.of(stage, "x_guess")
        return {
            "steady_state.parameters": self._parameters(stage),
            "steady_state.x_guess": self._weigh(
                Quantity(
                    guess,
                    there.of(stage, "x_guess"),
                    rounding=unmeasured(guess, self.dtype),
                    size=np.abs(guess),
                    **common,
                )
            ),
            "steady_state.status": self._statuses(stage),
            "steady_state.x": self._weigh(
                Quantity(
                    x,
                    other,
                    rounding=self.limit("steady_x"),
                    # Each search may end anywhere within its tolerance.
                    solver=2 * unit,
                    size=np.abs(other) + 100 * c["atol"],
                    tolerance=unit,
                    compared=self.good[stage],
                    **common,
                )
            ),
        }

    def _dynamics(self) -> dict[str, Weighed]:
        stage, here, there, good = "dynamics", self.here, self.there, self.good["dynamics"]
        c = self.options["controller"]
        errors = [side.of("gradients", "x_error")[:, at] for side, at in ((here, self.at_here), (there, self.at_there))]
        at_start = {"owner": self.owner, "place": self._names([self.states]), "dtype": self.dtype}
        start = there.of(stage, "x_start")
        weighed = self._trajectories(here.of(stage, "x")[:, self.at_here], errors[0] + errors[1], good)
        return {
            "dynamics.parameters": self._parameters(stage),
            "dynamics.x_start": self._weigh(
                Quantity(
                    here.of(stage, "x_start"),
                    start,
                    rounding=self.limit("x_start"),
                    solver=2 * self._unit_of_starts(),
                    size=np.abs(start) + 100 * c["atol"],
                    compared=good,
                    **at_start,
                )
            ),
            "dynamics.status": self._statuses(stage),
            "dynamics.steps": self._steps(weighed),
            "dynamics.x": weighed,
        }

    def _unit_of_starts(self) -> np.ndarray | float:
        """Returns what the tolerance of the steady states makes of the starts of the dynamics, (scenario, state)."""
        find = self.options["find"]
        if find is None:
            return 0.0
        rest, onset = self.there.of("steady_state", "x"), StartOfDynamics(self.cls)
        off = tolerance(find["steady_state"], rest)
        if not onset.given:
            return off
        directions = len(self.states)
        nothing = np.zeros((directions, len(self.cls.parameters))), np.zeros((directions, n_weights(self.model)))
        each = off[:, None] * np.eye(directions)
        return np.sum(np.abs(onset.tangent(self.model, rest, self.chunk.k_dynamic, each, *nothing)), axis=1)

    def _trajectories(self, x: np.ndarray, solver: np.ndarray | float, compared: np.ndarray) -> Weighed:
        """Returns the verdict on states at the save times that both runs have, of this run or of its replay."""
        other = self.there.of("dynamics", "x")[:, self.at_there]
        return self._weigh(
            Quantity(
                x,
                other,
                owner=self.owner,
                rounding=self.limit("x") + self.inner(other, self.owner),
                solver=solver,
                size=np.max(np.abs(other), axis=1, keepdims=True, initial=0) + 100 * self.options["controller"]["atol"],
                tolerance=self.unit(other),
                place=self._names([[f"t = {t:.6g}" for t in self.times], self.states]),
                compared=compared,
                dtype=self.dtype,
            )
        )

    def _steps(self, x: Weighed) -> Weighed:
        """Returns the verdict on the steps: they have no error of their own, so it is that on the states."""
        good = self.good["dynamics"]
        codes, values = np.full(self.n, NOT_COMPARED, np.int8), nothing_compared()
        relative, where = 0.0, (-1, "")
        for i in np.flatnonzero(good):
            a, b = self.here.records[i].step_time, self.there.records[i].step_time
            if len(a) == len(b) and np.array_equal(a, b):
                codes[i] = IDENTICAL
                continue
            codes[i] = ROUNDING if x.scenario[i] == IDENTICAL else x.scenario[i]
            if len(a) != len(b):
                apart, words = np.inf, f"{len(a)} steps here, {len(b)} there"
            else:
                apart = float(np.max(np.abs(a - b) / b))
                words = f"step {int(np.argmax(a != b))}"
            if apart > relative:
                relative, where = apart, (int(i), f"{self.chunk.ids[i]}: {words}")
        values |= {"n_values": int(good.sum()), "n_equal": int((codes == IDENTICAL).sum())}
        values |= {"verdict": int(worst_of(codes)) if self.n else NOT_COMPARED}
        values |= {"max_relative": relative if np.isfinite(relative) else np.nan}
        values |= {"where": where[1], "where_scenario": where[0]}
        return Weighed(values, codes, codes)

    def _gradients(self, before: Mapping[str, Weighed]) -> dict[str, Weighed]:
        stage, here, there, good = "gradients", self.here, self.there, self.good["dynamics"]
        out: dict[str, Weighed] = {}
        alone = {"owner": self.owner, "compared": good, "dtype": self.dtype}
        loss, other = here.of(stage, "loss"), there.of(stage, "loss")
        out["gradients.loss"] = self._weigh(
            Quantity(
                loss,
                other,
                rounding=self.limit("loss"),
                solver=here.of(stage, "loss_error") + there.of(stage, "loss_error"),
                size=np.abs(other),
                place=self._names([]),
                **alone,
            )
        )
        columns = [s.column("wrt", self.wrt) for s in (here, there)]
        both = lambda name: [s.of(stage, name)[..., c] for s, c in zip((here, there), columns, strict=True)]
        scale = both("scale")[1]
        ode_error = sum(both("ode_error"))
        rounding = self.limit("ad")
        place = self._names([self.wrt])
        size = self._size(both("fd")[1], scale)
        if self.wrt:
            fd, fd_error = both("fd"), both("fd_error")
            finite = np.isfinite(fd[0]) & np.isfinite(fd[1])
            # Where the check has no value on one side, it says so itself.
            fd = [np.where(finite, v, np.nan) for v in fd]
            out["gradients.fd"] = self._weigh(
                Quantity(*fd, rounding=sum(fd_error) + rounding, solver=ode_error, size=size, place=place, **alone)
            )
        places = [s.column("method", self.methods) for s in (here, there)]
        for m, method in enumerate(self.methods):
            ad, error = ([v[:, p[m]] for v, p in zip(both(name), places, strict=True)] for name in ("ad", "ad_error"))
            own = np.where(np.isfinite(sum(error)), sum(error), 0)
            if self.wrt:
                out[f"gradients.ad[{method}]"] = self._weigh(
                    Quantity(*ad, rounding=rounding, solver=ode_error + own, size=size, place=place, **alone)
                )
            network = [s.of(stage, "gradient_network")[:, p[m]] for s, p in zip((here, there), places, strict=True)]
            if network[0].shape == network[1].shape and network[0].shape[1] and np.isfinite(network[1]).any():
                out[f"gradients.network[{method}]"] = self._network(network, own, ad[1], scale, ode_error, alone)
        out["gradients.status"] = self._verdicts({**before, **out})
        return out

    def _size(self, derivatives: np.ndarray, scale: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return largest(derivatives, scale) / scale

    def _network(self, network, own, ad, scale, ode_error, alone) -> Weighed:
        # The gradient to all weights has error bars in some directions only, beside that of the replay's own.
        with np.errstate(all="ignore"):
            most = np.max(np.abs(network[1]), axis=1, keepdims=True, initial=0)
            share = np.nan_to_num(np.max(own * scale, axis=1, keepdims=True, initial=0) / largest(ad, scale))
            theirs = self.solver.get("ode_error", np.full_like(ode_error, np.nan))
            grown = np.max(ode_error / theirs, axis=1, keepdims=True, initial=1)
        solver = self.solver.get("network_error", np.full_like(network[0], np.nan))
        weights = [f"weight {i}" for i in range(network[0].shape[1])]
        return self._weigh(
            Quantity(
                *network,
                rounding=self.limit("network"),
                solver=solver * (1 + np.nan_to_num(grown, nan=2, posinf=2)) + share * most,
                size=most,
                place=self._names([weights]),
                **alone,
            )
        )

    # -- outcomes ------------------------------------------------------------------------------------------

    def _told(self, verdict: int, total: int, equal: int, where: str, codes: np.ndarray | None = None) -> Weighed:
        values = nothing_compared() | {"n_values": total, "n_equal": equal, "verdict": verdict, "where": where}
        codes = np.full(self.n, NOT_COMPARED, np.int8) if codes is None else codes
        if verdict not in (IDENTICAL, NOT_COMPARED) and (codes == verdict).any():
            values["where_scenario"] = int(np.argmax(codes == verdict))
        return Weighed(values, codes, codes)

    def _statuses(self, stage: str) -> Weighed:
        """Returns the verdict on a stage's outcomes.

        One that rounding alone brings about is no difference. Where it does not in a few tries, but what the reference
        did comes out here too, it is the same model, and how far a solve of it gets cannot be compared.
        """
        mine, theirs = (s.of(stage, "status").astype(int) for s in (self.here, self.there))
        codes = np.where(mine == theirs, IDENTICAL, DIFFERENT).astype(np.int8)
        rows = np.flatnonzero(mine != theirs)
        some = rows[:MOST_TRIED]
        if len(some):
            confirmed = self._confirmed(stage, some)
            for row, outcomes, same in zip(some, self._under_rounding(stage, some), confirmed, strict=True):
                if {int(mine[row]), int(theirs[row])} <= outcomes:
                    codes[row] = ROUNDING
                elif same:
                    codes[row] = NOT_COMPARABLE
            # What holds of those that were tried is taken to hold of the others.
            codes[rows[MOST_TRIED:]] = worst_of(codes[some])
        words = STEADY_STATUS if stage == "steady_state" else DYNAMICS_STATUS
        where = ""
        if len(rows):
            row = rows[np.argmax(codes[rows] == DIFFERENT)]
            where = f"{self.chunk.ids[row]}: {words[mine[row]]} here, {words[theirs[row]]} there"
        return self._told(int(worst_of(codes)) if self.n else NOT_COMPARED, self.n, self.n - len(rows), where, codes)

    def _under_rounding(self, stage: str, rows: np.ndarray) -> list[set[int]]:
        """Returns the outcomes of scenarios from parameters and starts that are changed by rounding."""
        every = np.repeat(rows, TRIES)
        # The first from the reference's start itself: a state may be at rest to the last bit.
        seeds = np.tile(np.arange(TRIES), len(rows))
        changed = lambda values: np.stack(
            [values[r] * (1 + jitter(values.shape[1:], self.dtype, s)) for r, s in zip(every, seeds, strict=True)]
        )
        quiet = lambda *what: None
        if stage == "steady_state":
            k, x0 = changed(self.chunk.k_steady), self.chunk.x0[every]
            found, _ = find_steady_states(self.cls, self.model, self.options["find"], k, x0, quiet)
            outcomes = found.status
        else:
            start = changed(self.there.of(stage, "x_start"))
            records, _ = simulate(self.cls, self.model, self.options, start, changed(self.chunk.k_dynamic), quiet)
            outcomes = np.array([r.status for r in records])
        return [set(outcomes[every == row].tolist()) for row in rows]

    def _confirmed(self, stage: str, rows: np.ndarray) -> np.ndarray:
        """Returns of which scenarios the reference's root is one here, or its first steps come out here too."""
        out = np.zeros(len(rows), bool)
        at = {int(row): i for i, row in enumerate(rows)}
        for part, rungs in self.groups(rows):
            problem = self.problem(rungs, self.model, self.options)
            data = self.recorded(part, self.chunk.k_dynamic, self.chunk.k_steady)
            mine = [at[int(row)] for row in part]
            if stage == "steady_state":
                x, found = self.there.of(stage, "x")[part], problem.at_rest(problem.model, data)
                out[mine] = np.all(np.abs(found - x) <= tolerance(self.options["find"]["steady_state"], x), axis=1)
                continue
            steps = [s[:MOST_STEPS] for s in data.steps]
            ends, _ = problem.replayer.forward(problem.model, data.x_start, data.k_dynamic, steps)
            for i, end, x in zip(mine, ends, data.step_x, strict=True):
                recorded = x[: len(end)]
                out[i] = len(end) > 0 and bool(np.all(np.abs(end - recorded) <= self.unit(recorded)))
        return out

    def _verdicts(self, found: Mapping[str, Weighed]) -> Weighed:
        """Returns the verdict on the certificates: they follow from values that are compared themselves."""
        places = [s.column("method", self.methods) for s in (self.here, self.there)]
        mine, theirs = (
            s.of("gradients", "status")[:, p].astype(int) for s, p in zip((self.here, self.there), places, strict=True)
        )
        changed = mine != theirs
        before = found_before(self.n, found)
        codes = np.where(changed, DIFFERENT, IDENTICAL).astype(np.int8)
        for m, method in enumerate(self.methods):
            below = [found[n].scenario for n in ("gradients.fd", f"gradients.ad[{method}]") if n in found]
            if below:
                worst = worst_of(np.stack(below, axis=1))
                # With equal values it is the error bars that differ: they are made of rounding.
                follows = np.where(np.isin(worst, (IDENTICAL, NOT_COMPARED)), ROUNDING, worst)
                # What one run has no trajectory of it cannot certify.
                follows = np.where(np.isin(before, (IDENTICAL, NOT_COMPARED)), follows, before)
                codes[:, m] = np.where(changed[:, m], follows, IDENTICAL)
        where, rows = "", np.argwhere(changed)
        if len(rows):
            row, m = rows[np.argmax(agreement.RANK[codes[tuple(rows.T)]])]
            here, there = VERDICTS[mine[row, m]], VERDICTS[theirs[row, m]]
            where = f"{self.chunk.ids[row]}, {self.methods[m]}: {here} here, {there} there"
        each = by_owner(codes, self.owner, self.n)
        verdict = int(worst_of(codes.ravel())) if codes.size else NOT_COMPARED
        return self._told(verdict, codes.size, int((~changed).sum()), where, each)

    # -- on the reference's steps --------------------------------------------------------------------------

    def _on_recorded_steps(self) -> dict[str, Weighed]:
        """Returns the verdicts on what this run makes of the reference's steps, where only rounding is left."""
        there, chosen = self.there, self.chosen
        out: dict[str, Weighed] = {}
        if not chosen.any():
            return out
        common = {"owner": self.owner, "compared": chosen, "dtype": self.dtype}
        if "steady_x" in self.values:
            other, place = there.of("steady_state", "x"), self._names([self.states])
            # Where both searches ended at the same bits, what Newton's method makes of them is no news.
            mine = self.here.of("steady_state", "x")
            same = np.all(mine == other, axis=1, keepdims=True)
            size = np.abs(other) + 100 * self.options["find"]["steady_state"]["atol"]
            out["steady_state.x"] = self._weigh(
                Quantity(
                    np.where(same, mine, self.values["steady_x"]),
                    other,
                    rounding=self.limit("steady_x"),
                    size=size,
                    place=place,
                    **common,
                )
            )
            if StartOfDynamics(self.cls).given:
                mine, other = (side.of("dynamics", "x_start") for side in (self.here, there))
                out["dynamics.x_start"] = self._weigh(
                    Quantity(
                        np.where(same, mine, self.values["x_start"]),
                        other,
                        rounding=self.limit("x_start"),
                        size=np.abs(other) + 100 * self.options["controller"]["atol"],
                        place=place,
                        **common,
                    )
                )
        out["dynamics.step_x"] = self.step_states()
        out["dynamics.x"] = self._trajectories(self.values["x"], 0.0, chosen)
        if not self.same_times:
            # Losses of other save times are other losses.
            return out
        loss = there.of("gradients", "loss")
        out["gradients.loss"] = self._weigh(
            Quantity(
                self.values["loss"],
                loss,
                rounding=self.limit("loss"),
                size=np.abs(loss),
                place=self._names([]),
                **common,
            )
        )
        if "replay" not in self.methods:
            return out
        (m,) = there.column("method", ["replay"])
        if self.wrt:
            ad, scale = (there.of("gradients", n)[..., there.column("wrt", self.wrt)] for n in ("ad", "scale"))
            out["gradients.ad[replay]"] = self._weigh(
                Quantity(
                    self.values["ad"],
                    ad[:, m],
                    rounding=self.limit("ad"),
                    size=self._size(ad[:, m], scale),
                    place=self._names([self.wrt]),
                    **common,
                )
            )
        network = there.of("gradients", "gradient_network")[:, m]
        if network.shape == self.values["network"].shape and network.shape[1]:
            out["gradients.network[replay]"] = self._weigh(
                Quantity(
                    self.values["network"],
                    network,
                    rounding=self.limit("network"),
                    size=np.max(np.abs(network), axis=1, keepdims=True, initial=0),
                    place=self._names([[f"weight {i}" for i in range(network.shape[1])]]),
                    **common,
                )
            )
        return out

    def step_states(self) -> Weighed:
        """Returns the verdict on the states at the ends of the recorded steps, one after the other."""
        rows = np.flatnonzero(self.chosen)
        lengths = [len(self.ends[int(i)][0]) for i in rows]
        owner = np.repeat(rows, lengths)
        number = np.concatenate([np.arange(n) for n in lengths] or [np.zeros(0, int)])
        join = lambda parts: np.concatenate([np.zeros((0, len(self.states))), *parts])
        here, there = join([self.ends[int(i)][0] for i in rows]), join([self.there.records[i].step_x for i in rows])
        rounding = join([self.ends[int(i)][1] for i in rows])
        size = join(
            [
                np.broadcast_to(np.max(np.abs(self.there.records[i].step_x), axis=0), (n, len(self.states)))
                for i, n in zip(rows, lengths, strict=True)
            ]
        )
        place = lambda index: f"{self.chunk.ids[owner[index[0]]]}, step {number[index[0]]}, {self.states[index[1]]}"
        out = self._weigh(
            Quantity(
                here,
                there,
                owner=owner,
                rounding=rounding + self.inner(there, owner),
                size=size + 100 * self.options["controller"]["atol"],
                tolerance=self.unit(there),
                place=place,
                dtype=self.dtype,
            )
        )
        self.step_owner, self.step_number = owner, number
        return out

    # -- settings ------------------------------------------------------------------------------------------

    def settings(self, stage: str) -> tuple[int, dict[str, tuple[Any, Any]]]:
        """Returns how many settings a stage has beside those of the stages before it, and those that differ."""
        mine, theirs = (_own_settings(s.files[stage], stage) for s in (self.here, self.there))
        return len({*flat(mine), *flat(theirs)}), setting_pairs(mine, theirs)

    def _add_settings(self, found: dict[tuple[str, str], Weighed]) -> None:
        """Adds the verdict on each stage's settings: another one is a difference where any value is another one."""
        for stage in self.here.files:
            count, apart = self.settings(stage)
            later = PARTS[PARTS.index(stage) :]
            same = all(
                w.verdict in (IDENTICAL, NOT_COMPARED) for (_, n), w in found.items() if n.split(".")[0] in later
            )
            where = "; ".join(f"{key}: {a} here, {b} there" for key, (a, b) in apart.items())
            verdict = DIFFERENT if apart and not same else IDENTICAL
            found["free", f"{stage}.settings"] = self._told(verdict, count, count - len(apart), where)


def found_before(n: int, found: Mapping[str, Weighed]) -> np.ndarray:
    """Returns the worst verdict of each scenario on the outcomes of the stages before the gradients."""
    codes = [found[f"{s}.status"].scenario for s in ("steady_state", "dynamics") if f"{s}.status" in found]
    return worst_of(np.stack([*codes, np.full(n, NOT_COMPARED, np.int8)], axis=1))


def _own_settings(ds: xr.Dataset, stage: str) -> dict[str, Any]:
    config = store.config_of(ds)
    return {"gradient": config["gradient"]} if stage == "gradients" else config
