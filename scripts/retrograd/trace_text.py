"""The trace of one scenario as a text to read: what `snakemake debug` writes."""

from __future__ import annotations

import os
import pprint
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import float_type
from retrograd.context import Chunk, field_of
from retrograd.dynamics import SUCCESSFUL, Integrator
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.nonfinite import first_nonfinite
from retrograd.peers import checkpoint
from retrograd.plugins import Field, member
from retrograd.schema import DYNAMICS_STATUS, STEADY_METHOD, STEADY_STATUS
from retrograd.starts import StartOfDynamics, starts_of
from retrograd.steady import Steady, SteadyProblem
from retrograd.trace import Diagnosis, Finding, Run, solve, walk_back

WIDTH = 110


@dataclass
class Trace:
    """What `snakemake debug` writes."""

    text: str
    short: list[str]  # its first lines, for the screen


def trace(
    cls: type[Model],
    model: Model,
    chunk: Chunk,
    options: Mapping[str, Any],
    *,
    study: str,
    variant: str,
    plugin: str,
    model_file: str,
) -> Trace:
    """Returns the trace of the one scenario of a chunk.

    - `options`: the settings of the variant for all stages, as `stage_options(..., "gradients")` gives them.
    - `plugin`, `model_file`: paths, for the Python call that repeats the run.
    """
    page = _Page(list(cls.states), cls.time_unit)
    field = field_of(cls, options)
    page.header(cls, chunk, options, study, variant)
    x_start, steady, found = _start(page, cls, model, field, chunk, options)
    if x_start is None:
        return page.result()
    k = chunk.k_dynamic[0]
    run = solve(field, model, options, x_start, k)
    diagnosis = Diagnosis(field, model, options, k)
    _attempts(page, run, diagnosis)
    _batch(page, field, model, options, run, k)
    if run.status == SUCCESSFUL:
        problem = GradientProblem(cls, field, model, options, options["save_times"], steady)
        data = Scenarios(
            k_dynamic=chunk.k_dynamic,
            k_steady=chunk.k_steady,
            x0=chunk.x0,
            x_start=run.x_start[None].astype(np.float64),
            steps=[run.steps],
            step_x=[run.step_x],
            ok=np.ones(1, bool),
            x_rest=None if found is None else found.x,
            conserved=None if found is None else found.conserved_basis,
        )
        _gradient(page, problem, data, run)
    else:
        page.section("Gradient")
        page.say("None: the simulation did not reach the last save time.")
    _call(page, cls, options, run, k, plugin, model_file)
    return page.result()


class _Page:
    """Lines in order; `short` are those that the screen shows too, and the head of the text."""

    def __init__(self, states: list[str], time_unit: str) -> None:
        self.lines: list[str] = []
        self.short: list[str] = []
        self.states, self.time_unit = states, time_unit

    def section(self, title: str) -> None:
        self.lines += ["", title, "-" * len(title), ""]

    def say(self, *lines: str, indent: int = 0) -> None:
        """Adds lines as they are."""
        self.lines += [" " * indent + part for line in lines for part in line.split("\n")]

    def tell(self, text: str, indent: int = 0) -> None:
        """Adds sentences, wrapped."""
        self.lines += _wrapped(text, indent)

    def finding(self, finding: Finding, indent: int) -> None:
        self.tell(finding.sentence, indent)
        if finding.origin is not None:
            self.say(str(finding.origin), indent=indent + 4)

    def conclude(self, text: str, finding: Finding | None = None) -> None:
        """Adds to what is said in short."""
        if finding is None:
            self.short += _wrapped(text)
            return
        stage = "" if finding.stage is None else f"stage {finding.stage + 1}, "
        self.short += _wrapped(f"{text}: {stage}{finding.said}")
        if finding.origin is not None:
            self.short += [f"    {line}" for line in str(finding.origin).split("\n")]

    def result(self) -> Trace:
        title, *rest = self.lines
        head = [title, "=" * len(title), "", *self.short]
        return Trace("\n".join([*head, *rest]) + "\n", self.short)

    def header(self, cls: type[Model], chunk: Chunk, options: Mapping[str, Any], study: str, variant: str) -> None:
        self.say(f"Scenario {chunk.ids[0]} of study {study}, variant {variant}", "")
        self.tell(
            "Computed alone, unbatched. The study computes scenarios in batches, where the last digits may differ, and "
            "with them the choice of a step."
        )
        if options.get("rescue"):
            self.tell("The variant's rungs of rescue are left out: this is what its own settings do.")
        self.section("Parameters")
        phases = {"dynamic": chunk.k_dynamic[0]}
        if options["start"] == "steady_state":
            phases["steady"] = chunk.k_steady[0]
        width = max(map(len, cls.parameters), default=0)
        self.say(f"{'':{width}}" + "".join(f"{phase:>26}" for phase in phases))
        for i, (name, unit) in enumerate(cls.parameters.items()):
            self.say(f"{name:{width}}" + "".join(f"{float(row[i])!r:>26}" for row in phases.values()) + f"  [{unit}]")
        self.section("Settings of the variant")
        for key, value in options.items():
            if key not in ("find", "rescue", "save_times"):
                self.say(f"{key}: {value}")
        times = options["save_times"]
        self.say(f"save_times: {len(times)}, from {times[0]} to {times[-1]} {cls.time_unit}")


def _wrapped(text: str, indent: int = 0) -> list[str]:
    # Whatever is long and without a space, such as a path, stays whole.
    room = " " * indent
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=room,
        subsequent_indent=room,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _named(names: Sequence[str], x: np.ndarray) -> str:
    return ", ".join(f"{name} = {v:.8g}" for name, v in zip(names, x, strict=True))


def _start(
    page: _Page, cls: type[Model], model: Model, field: Field, chunk: Chunk, options: Mapping[str, Any]
) -> tuple[np.ndarray | None, SteadyProblem | None, Steady | None]:
    """Returns the start of the dynamics, None where there is none, and what the gradient needs of it."""
    dtype, n = float_type(), len(cls.states)
    if options["start"] != "steady_state":
        page.section("Start: initial_state")
        x = starts_of(cls, model, chunk.k_dynamic, chunk.x0)[0]
        page.say(_named(page.states, x))
        if np.all(np.isfinite(x)):
            return x, None, None
        page.conclude("initial_state is not finite, and the simulation is skipped.")
        origin = first_nonfinite(member(cls, "initial_state", (n,)), model, jnp.asarray(chunk.k_dynamic[0], dtype))
        page.say(str(origin or "the scenario table gives it so"), indent=4)
        return None, None, None
    page.section("Steady state")
    problem = SteadyProblem(cls, field, options["steady_state"])
    found = problem.find(model, chunk.k_steady, chunk.x0)
    status = STEADY_STATUS[int(found.status[0])]
    guess = found.x_guess[0]
    page.say(
        f"{status}, by {STEADY_METHOD[int(found.method[0])]} in {int(found.iterations[0])} iterations",
        f"first guess: {_named(page.states, guess)}",
        f"x: {_named(page.states, found.x[0])}",
        f"residual {found.residual_norm[0]:.3g}; largest real part of an eigenvalue "
        f"{found.max_real_eigenvalue[0]:.3g}; conserved quantities {int(found.n_conserved[0])}; "
        f"cross-check {found.cross_check[0]:.3g}",
    )
    k = jnp.asarray(chunk.k_steady[0], dtype)
    if not np.all(np.isfinite(guess)):
        origin = first_nonfinite(member(cls, "initial_guess", (n,)), model, k)
        page.say("The first guess is not finite:", str(origin or "the scenario table gives it so"))
    elif finding := Diagnosis(field, model, options, chunk.k_steady[0]).rates(0.0, guess):
        finding.said = f"at the first guess, {finding.said}"
        page.finding(finding, 0)
    if status != "converged":
        page.conclude(f"The search for the steady state ended as {status}, and the simulation is skipped.")
        return None, None, None
    x = starts_of(cls, model, chunk.k_dynamic, chunk.x0, (found.status, found.x))[0]
    if StartOfDynamics(cls).given:
        page.section("Start: start_of_dynamics")
        page.say(_named(page.states, x))
    if np.all(np.isfinite(x)):
        return x, problem, found
    page.conclude("start_of_dynamics is not finite, and the simulation is skipped.")
    rest, k = (jnp.asarray(row[0], dtype) for row in (found.x, chunk.k_dynamic))
    page.say(str(first_nonfinite(member(cls, "start_of_dynamics", (n,)), model, rest, k)), indent=4)
    return None, None, None


def _attempts(page: _Page, run: Run, diagnosis: Diagnosis) -> None:
    accepted = sum(a.accepted for a in run.attempts)
    lost = [i for i, a in enumerate(run.attempts) if not a.is_finite]
    page.section("Attempts")
    outcome = (
        f"Simulation: {DYNAMICS_STATUS[run.status]}; {accepted} steps accepted, "
        f"{len(run.attempts) - accepted} rejected, {len(lost)} without a finite error estimate."
    )
    page.conclude(outcome)
    tableau = diagnosis.tableau
    page.tell(outcome)
    page.tell(
        f"Each attempt goes from t to t + dt [{page.time_unit}], and has {tableau.stages} stages: number, time, "
        f"{', '.join(page.states)}. It is accepted where the error norm is below 1; else it is tried again, shorter."
    )
    if not run.attempts:
        finding = diagnosis.rates(0.0, run.x_start)
        if finding:
            finding.said = f"no attempt was made: at the start, {finding.said}"
            page.finding(finding, 0)
            page.conclude("First failure, at the start", finding)
    told = False
    for number, attempt in enumerate(run.attempts, start=1):
        verdict = "accepted" if attempt.accepted else "rejected"
        head = f"#{number:<6} t {attempt.t0:<22.15g} dt {attempt.t1 - attempt.t0:<12.6g} {verdict}"
        page.say("", f"{head}   error norm {attempt.error:.4g}")
        for i, stage in enumerate(attempt.stages):
            t = float(diagnosis.time(attempt, i))
            page.say(f"{i + 1:>3}  {t:<22.15g}" + " ".join(f"{v:>16.9g}" for v in stage), indent=4)
        if not attempt.is_finite:
            finding = diagnosis(attempt)
            page.say("no finite error estimate:", indent=4)
            page.finding(finding, 8)
            if not told:
                start = f"#{number}, from t = {attempt.t0:.6g}"
                page.conclude(f"First attempt without a finite error estimate: {start}", finding)
                told = True


def _batch(page: _Page, field: Field, model: Model, options: Mapping[str, Any], run: Run, k: np.ndarray) -> None:
    """Says whether the study, which computes scenarios in batches, sees the same attempts."""
    integrator = Integrator(field, model, options, options["save_times"], len(run.x_start))
    (record,) = integrator.run(run.x_start[None], k[None])
    page.section("The same in a batch")
    if np.array_equal(record.accepted, [a.accepted for a in run.attempts]) and record.status == run.status:
        page.say("The study, which computes scenarios in batches, accepts and rejects the same attempts.")
        return
    count = min(len(record.end), len(run.attempts))
    apart = [i for i in range(count) if record.accepted[i] != run.attempts[i].accepted]
    first = apart[0] if apart else count
    told = (
        f"In a batch, as the study computes it: {DYNAMICS_STATUS[record.status]}; {record.num_accepted} steps "
        f"accepted, {len(record.end) - record.num_accepted} rejected. The first attempt that ends otherwise is "
        f"#{first + 1}: up to there the two differ by rounding, which then decides whether an attempt is accepted."
    )
    page.conclude(told)
    page.tell(told)
    page.say("", "The batch from there on, at most 20 attempts:")
    for i in range(first, min(first + 20, len(record.end))):
        verdict = "accepted" if record.accepted[i] else "rejected"
        t, dt = record.start[i], record.end[i] - record.start[i]
        page.say(f"#{i + 1:<6} t {t:<22.15g} dt {dt:<12.6g} {verdict}   error norm {record.error[i]:.4g}")


def _gradient(page: _Page, problem: GradientProblem, data: Scenarios, run: Run) -> None:
    replayed, stages = problem.replay(data)
    times, dtype, k = problem.times, problem.dtype, data.k_dynamic[0]
    rows = replayed["rows"][0]
    loss = member(problem.cls, "loss", ())
    slope = lambda model, x, k: jax.grad(lambda x: loss(model, jnp.asarray(times), x, k))(x)
    arguments = (problem.model, jnp.asarray(rows, dtype), jnp.asarray(k, dtype))
    by_row = replayed["loss_slope"][0]
    injected = problem.injected(run.steps, by_row)
    visits, failed = walk_back(problem.field, problem.model, problem.options, k, run.steps, stages[0], injected)
    if failed is not None and not np.all(np.isfinite(by_row)):
        failed.origin = first_nonfinite(slope, *arguments)

    page.section("Gradient by replay: the way back")
    page.tell(
        "The accepted steps only, the last one first: time runs backwards here, by design. The cotangent is the "
        "derivative of the loss by the state; |.| is its largest entry, at t1 with what the loss adds there."
    )
    page.say(
        "",
        f"{'visit':>6} {'step':>6}  {'t1':>22} -> {'t0':<22} {'|cotangent| at t1':>18} {'at t0':>12}",
    )
    size = lambda v: float(np.max(np.abs(v)))
    for number, v in enumerate(visits, start=1):
        row = f"{number:>6} {v.step + 1:>6}  {v.t1:>22.15g} -> {v.t0:<22.15g} {size(v.at_end):>18.6g}"
        page.say(f"{row} {size(v.at_start):>12.6g}")
    page.say("")
    if failed is None:
        page.say("Every cotangent is finite.")
    else:
        lost = next(v for v in visits if not np.all(np.isfinite(v.at_start)))
        page.say(f"The first cotangent that is not finite: step {lost.step + 1}, on the way to t = {lost.t0:.15g}.")
        page.finding(failed, 4)
    ad = problem.columns_of(replayed)[0]
    page.say("", f"Loss {replayed['loss'][0]:.12g}. Its derivatives by replay:", "")
    page.say(*(f"{label:<28} {v:.12g}" for label, v in zip(problem.labels, ad, strict=True)), indent=4)
    finite = failed is None and bool(np.all(np.isfinite(ad)))
    page.conclude(f"Gradient by replay: {'finite' if finite else 'NOT finite'}.")
    _checkpoint(page, problem, data, run)


def _checkpoint(page: _Page, problem: GradientProblem, data: Scenarios, run: Run) -> None:
    lost = [i for i, a in enumerate(run.attempts, start=1) if not a.is_finite]
    page.section("Gradient by checkpoint: the way back of diffrax")
    page.tell(
        "diffrax differentiates its loop over attempts, the rejected ones among them, from the last to the first; to "
        "have an attempt's numbers it runs the loop forward again from the checkpoint before it, so that whoever "
        "prints t from the vector field sees it jump back, run forward a little, and jump back further. A rejected "
        "attempt takes part through its error estimate, which sets the next dt, and through a `where` that hands its "
        "state a cotangent of 0: where one of these is not finite, 0 times its derivative is NaN, and all that is "
        "visited later inherits it."
    )
    page.say("")
    page.tell(
        f"Order of the visits here: attempts #{len(run.attempts)} to #1. "
        + (
            f"Without a finite error estimate: {len(lost)}; the first that the way back meets is #{lost[-1]}, "
            f"from t = {run.attempts[lost[-1] - 1].t0:.6g}."
            if lost
            else "All of them have a finite error estimate."
        ),
    )
    if "checkpoint" not in problem.methods:
        page.say("The study does not form this gradient (gradient.methods).")
        return
    gradient, *_ = checkpoint(problem, data)
    ad = problem.columns_of(gradient)[0]
    page.say("", "Derivatives of the loss by checkpoint:", "")
    page.say(*(f"{label:<28} {v:.12g}" for label, v in zip(problem.labels, ad, strict=True)), indent=4)
    finite = bool(np.all(np.isfinite(ad)))
    page.conclude(f"Gradient by checkpoint: {'finite' if finite else 'NOT finite'}.")


_SNIPPET = """\
import sys

sys.path.insert(0, {library!r})  # relative to the folder in which snakemake ran
from retrograd.job import prepare_jax

prepare_jax({precision!r}{mode})
import numpy as np

from retrograd import context, trace

options = {options}
k = np.array({k})  # {parameters}
x_start = np.array({x_start})  # {states}
cls, model = context.load_model({plugin!r}, {class_name!r}, {model_file!r})
field = context.field_of(cls, options)

run = trace.solve(field, model, options, x_start, k)
print("status", run.status, "attempts", len(run.attempts), "final state", run.x.tolist())
# run.attempts[i].stages, .rates, .error; trace.Diagnosis(field, model, options, k)(run.attempts[i]) says what failed.
"""
_PLAIN = """\
import diffrax
import jax.numpy as jnp

from retrograd.dynamics import make_controller, make_solver

times = np.asarray(options["save_times"], jnp.zeros(()).dtype)
solution = diffrax.diffeqsolve(
    diffrax.ODETerm(lambda t, x, k: field(model, jnp.asarray(t), x, k)),
    make_solver(options),
    t0=0.0,
    t1=times[-1],
    dt0=options["controller"]["dt0"],
    y0=jnp.asarray(x_start),
    args=jnp.asarray(k),
    stepsize_controller=make_controller(options, times[times > 0]),
    saveat=diffrax.SaveAt(ts=times),
    max_steps=options["max_steps"],
    throw=False,
)
print(solution.result, solution.stats, "final state", solution.ys[-1].tolist())
"""


def _call(
    page: _Page,
    cls: type[Model],
    options: Mapping[str, Any],
    run: Run,
    k: np.ndarray,
    plugin: str,
    model_file: str,
) -> None:
    values: dict[str, Any] = {
        "library": os.path.relpath(Path(__file__).parents[1]),
        "precision": options["precision"],
        "mode": ", portable=True" if options.get("portable") else "",
        "options": pprint.pformat(dict(options), sort_dicts=False, width=110, compact=True),
        "k": k.tolist(),
        "parameters": ", ".join(cls.parameters),
        "x_start": run.x_start.tolist(),
        "states": ", ".join(cls.states),
        "plugin": plugin,
        "class_name": cls.__name__,
        "model_file": model_file,
    }
    page.section("The same in a notebook")
    page.say(
        "With Retrograd, to the bit of the attempts above:", "", "```python", _SNIPPET.format(**values) + "```", ""
    )
    if not cls.jump_times:
        page.say("Then the same with diffrax's own loop:", "", "```python", _PLAIN + "```")
