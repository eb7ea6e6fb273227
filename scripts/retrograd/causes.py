"""Why a scenario failed: found by taking recorded attempts again, one alone, and not guessed from statuses.

Each stage says it of its own failures, under the variant's own settings: a rung of the ladder that failed too adds
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrograd.api import Model
from retrograd.context import field_of
from retrograd.dynamics import DT_MIN, KVAERNO5, NONFINITE, SKIPPED, SUCCESSFUL, Record, longest_steps
from retrograd.jumps import jumps_of
from retrograd.linalg import tolerance
from retrograd.nonfinite import NonFinite
from retrograd.schema import CAUSES, STEADY_STATUS
from retrograd.trace import Attempt, Diagnosis, Finding, SingleSteps, vector

# Attempts at the end of a record that decide what stopped it, and units in the last place of t in a collapsed step.
TAIL, ULPS = 10, 16
# Accepted steps in which an oscillation is looked for, and changes of direction that make one.
RECENT, REVERSALS = 2000, 6
# Spectral radius times step beyond which an explicit step is kept short by stability and not by accuracy.
STABILITY = 1.0
# Fastest rate times the time to be covered from which a problem counts as stiff.
STIFF = 1e3
# Scaled residual below which a state counts as close to rest, and iterates of Newton's method that are looked through.
ALMOST, NEWTON_ITERATES = 1e-6, 50


@dataclass
class Cause:
    """What stopped a scenario."""

    name: str = "none"  # one of CAUSES
    time: float = np.nan
    state: int = -1
    term: int = -1
    text: str = ""


def table(causes: Sequence[Any], term: bool = True) -> dict[str, Any]:
    """Returns the variables of a diagnosis, each of the shape of the causes: a list, or a list of lists.

    - `term`: whether the stage has derivatives to name.
    """

    def every(get: Callable[[Cause], Any]) -> list[Any]:
        return [[get(c) for c in row] if isinstance(row, list) else get(row) for row in causes]

    out = {
        "cause": np.array(every(lambda c: CAUSES.index(c.name)), np.int8),
        "cause_time": np.array(every(lambda c: c.time), float),
        "cause_state": np.array(every(lambda c: c.state), np.int32),
        "cause_term": np.array(every(lambda c: c.term), np.int32),
        "cause_text": np.array(every(lambda c: c.text), object),
    }
    return {name: values for name, values in out.items() if term or name != "cause_term"}


def place(origin: NonFinite | None) -> str:
    """Returns where a value that is not finite came from; of the file its name only, which no machine changes."""
    if origin is None:
        return ""
    lines = str(origin).replace(origin.file, Path(origin.file).name) if origin.file else str(origin)
    return "; ".join(lines.split("\n"))


def told(finding: Finding) -> str:
    """Returns a finding as one sentence."""
    where = place(finding.origin)
    return f"{finding.sentence}{': ' if where else ''}{where}"


# What a finding of an attempt that gave no error estimate is called.
_OF_ATTEMPT = {
    "rates": "nonfinite_rate",
    "jacobian": "nonfinite_jacobian",
    "iterate": "state_overflow",
    "matrix": "inner_solve_failed",
    "iteration": "inner_solve_failed",
    "": "inner_solve_failed",
}


# -- dynamics ---------------------------------------------------------------------------------------------


def of_dynamics(
    cls: type[Model],
    model: Model,
    options: Mapping[str, Any],
    records: Sequence[Record],
    x_start: np.ndarray,
    k: np.ndarray,
) -> list[Cause]:
    """Returns the causes of simulations that did not reach the last save time.

    - `options`: of the dynamics' stage.
    - `x_start`, `k`: shape (scenario, state) and (scenario, parameter).
    """
    causes = [Cause() for _ in records]
    failed = [i for i, r in enumerate(records) if r.status not in (SUCCESSFUL, SKIPPED)]
    if failed:
        look = _Forward(cls, model, options)
        for i in failed:
            causes[i] = look(records[i], x_start[i], k[i])
    return causes


class _Forward:
    def __init__(self, cls: type[Model], model: Model, options: Mapping[str, Any]) -> None:
        field = field_of(cls, options)
        self.jumps = jumps_of(field)
        self.options, self.n, self.states = options, len(cls.states), list(cls.states)
        self.steps = SingleSteps(field, model, options, self.n)
        self.diagnosis = Diagnosis(field, model, options, np.zeros(len(cls.parameters)))
        self.explicit = self.diagnosis.tableau.explicit
        self.stop = options["save_times"][-1]

    def __call__(self, record: Record, x_start: np.ndarray, k: np.ndarray) -> Cause:
        diagnosis = self.diagnosis.of(k)
        t = float(record.step_time[-1]) if len(record.step_time) else 0.0
        x = record.step_x[-1] if len(record.step_x) else x_start
        if not len(record.end):
            finding = diagnosis.rates(0.0, x_start)
            said = told(finding) if finding else "the first step has no finite end"
            return Cause(_OF_ATTEMPT[finding.kind if finding else ""], 0.0, text=f"At the start, {said}")
        jump_times = () if self.jumps is None else self.jumps.before(np.inf, diagnosis.dtype)
        if record.status == NONFINITE and record.start[-1] in jump_times:
            said = f"At t = {t:.6g}, x = {vector(x)}, the model's jump gives no finite state"
            return Cause("state_overflow", time=t, text=said)
        lost = np.flatnonzero(~np.isfinite(record.error))
        h = float(record.end[-1] - record.start[-1])
        cause = Cause(time=t, state=self._moves_most(record, x_start))
        collapsed = record.status == DT_MIN or h <= ULPS * float(np.finfo(diagnosis.dtype).eps) * t
        often = not np.isfinite(record.error[-TAIL:]).any() or 2 * len(lost) > len(record.end)
        if len(lost) and (often or collapsed or record.status == NONFINITE):
            overflow = self._without_estimate(record, diagnosis, lost, x_start, k)
            # A step that shrinks to nothing meets no convergence either: only what overflows in it is its cause.
            if not collapsed or overflow.name != "inner_solve_failed":
                return overflow
        if collapsed:
            cause.name = "step_size_collapsed"
            _, _, jac = diagnosis.look(t, x)
            cause.text = (
                f"At t = {t:.6g}, x = {vector(x)}, the step shrank to {h:.3g}, next to what t can resolve; "
                f"the fastest rate there is {_fastest(jac):.3g}"
            )
        elif record.status == NONFINITE:
            cause.name, cause.text = "state_overflow", f"From t = {t:.6g}, x = {vector(x)} no further step is finite"
        else:
            cause.name, cause.text = self._used_up(record, diagnosis, t, x)
        return cause

    def _without_estimate(
        self, record: Record, diagnosis: Diagnosis, lost: np.ndarray, x_start: np.ndarray, k: np.ndarray
    ) -> Cause:
        attempt = self.steps.attempt(*began(record, int(lost[-1]), x_start), k)
        finding = diagnosis(attempt)
        said = (
            f"{len(lost)} of {len(record.end)} attempts gave no error estimate; the last one, {when(attempt)}: "
            f"{told(finding)}"
        )
        bad = ~np.isfinite(attempt.end)
        return Cause(_OF_ATTEMPT[finding.kind], attempt.t0, int(np.argmax(bad)) if bad.any() else -1, text=said)

    def _moves_most(self, record: Record, x_start: np.ndarray) -> int:
        rows = np.concatenate([x_start[None], record.step_x.reshape(-1, self.n)])
        if len(rows) < 2:
            return -1
        with np.errstate(all="ignore"):
            return int(np.argmax(np.abs(rows[-1] - rows[-2]) / (1 + np.abs(rows[-1]))))

    def _used_up(self, record: Record, diagnosis: Diagnosis, t: float, x: np.ndarray) -> tuple[str, str]:
        """Returns which way the budget of attempts went, and a sentence with the numbers that say so."""
        count = len(record.end)
        length = (record.end - record.start)[record.accepted]
        if not len(length):
            return "steps_exhausted", f"None of {count} attempts was accepted, each with an error above the tolerance"
        h = float(np.median(length[-RECENT:]))
        reached = f"{count} attempts, {len(length)} of them accepted, reached t = {t:.6g} of {self.stop:.6g}"
        ends, limits = longest_steps(self.options)
        longest = limits[np.searchsorted(ends, t, side="right")]
        if h > 0.9 * longest:
            needed = f"{self.stop / longest:.3g} steps at least"
            return (
                "steps_limited",
                f"{reached}: steps are as long as dtmax = {longest:.3g} allows, so it takes {needed}",
            )
        _, _, jac = diagnosis.look(t, x)
        fastest = _fastest(jac)
        rates = f"the fastest rate there is {fastest:.3g}, the steps {h:.3g} in the median"
        if self.explicit and h * fastest > STABILITY:
            return "steps_exhausted_stiff", f"{reached}; {rates}: stability holds an explicit solver's steps short"
        turns, state = self._reversals(record)
        if turns >= REVERSALS:
            where = f"{self.states[state]} turned {turns} times in the last {min(len(length), RECENT)} steps"
            return "steps_exhausted_oscillating", f"{reached}: {where}, and every turn takes steps of its own"
        if fastest * (self.stop - t) > STIFF:
            rejected = count - len(length)
            return "steps_exhausted_stiff", f"{reached}; {rates}, and {rejected} attempts were rejected"
        return "steps_exhausted", f"{reached}; {rates}: accuracy takes so many steps"

    def _reversals(self, record: Record) -> tuple[int, int]:
        """Returns how often a state changed its direction in recent steps, and which state did so most often."""
        x = record.step_x.reshape(-1, self.n)[-RECENT:]
        if len(x) < 3:
            return 0, -1
        counts = []
        for values in x.T:
            moved = np.diff(values)
            # What is within the tolerance is no movement.
            moved = moved[np.abs(moved) > tolerance(self.options["controller"], values[1:])]
            counts.append(int(np.sum(moved[1:] * moved[:-1] < 0)))
        return max(counts), int(np.argmax(counts))


def began(record: Record, number: int, x_start: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Returns start, end and first state of a recorded attempt: all that it takes to take it again."""
    before = int(np.sum(record.accepted[:number]))
    return float(record.start[number]), float(record.end[number]), record.step_x[before - 1] if before else x_start


def when(attempt: Attempt) -> str:
    """Returns where an attempt began, and its step."""
    return f"from t = {attempt.t0:.6g} with step {attempt.t1 - attempt.t0:.3g}"


def _fastest(jac: np.ndarray) -> float:
    return float(np.max(np.abs(np.linalg.eigvals(jac)))) if np.all(np.isfinite(jac)) else np.nan


# -- steady states ----------------------------------------------------------------------------------------


def of_steady_states(
    cls: type[Model], model: Model, options: Mapping[str, Any], found: Any, k: np.ndarray
) -> list[Cause]:
    """Returns the causes of searches that found no stable steady state.

    - `options`: of the steady states' stage.
    - `found`: as `SteadyProblem.find` returned it.
    - `k`: shape (scenario, parameter).
    """
    causes = [Cause() for _ in found.status]
    failed = [i for i, s in enumerate(found.status) if STEADY_STATUS[s] != "converged"]
    if not failed:
        return causes
    field = field_of(cls, options)
    diagnosis = Diagnosis(field, model, {**options, **KVAERNO5}, np.zeros(k.shape[1]))
    for i in failed:
        here, status = diagnosis.of(k[i]), STEADY_STATUS[found.status[i]]
        guess, x, residual = found.x_guess[i], found.x[i], found.residual_norm[i]
        if not np.all(np.isfinite(guess)):
            causes[i] = Cause("steady_state_overflow", text=f"The first guess is not finite: {vector(guess)}")
        elif status == "unstable":
            growth = f"{found.max_real_eigenvalue[i]:.3g}"
            said = f"At x = {vector(x)} an eigenvalue of the Jacobian has the real part {growth}, above 0"
            causes[i] = Cause("steady_state_unstable", text=said)
        elif said := _overflow(here, guess):
            causes[i] = Cause("steady_state_overflow", text=said)
        elif residual < ALMOST and _flat_directions(here, x) > found.n_conserved[i]:
            said = f"At x = {vector(x)} the Jacobian is singular: no single state is at rest there, but a whole family"
            causes[i] = Cause("steady_state_not_isolated", text=said)
        else:
            rest = f"the closest was x = {vector(x)}, with a scaled residual of {residual:.3g}"
            said = f"{status}: no root and no rest from the guess {vector(guess)}; {rest}"
            causes[i] = Cause("steady_state_not_found", text=said)
    return causes


def _overflow(diagnosis: Diagnosis, guess: np.ndarray) -> str:
    """Returns what Newton's method from the guess meets that is not finite, empty where all of it is."""
    x = guess
    for iteration in range(NEWTON_ITERATES):
        where = f"Newton's iterate {iteration}" if iteration else "the guess"
        finding, rate, jac = diagnosis.look(0.0, x)
        if finding is not None:
            return f"At {where}, x = {vector(x)}, {told(finding)}"
        step, *_ = np.linalg.lstsq(jac, rate, rcond=None)
        x = x - step
        if not np.all(np.isfinite(x)):
            return f"From {where} Newton's step overflows, although rates and Jacobian are finite there"
        if np.max(np.abs(step) / (1 + np.abs(x))) < 1e-8:
            return ""
    return ""


def _flat_directions(diagnosis: Diagnosis, x: np.ndarray) -> int:
    _, _, jac = diagnosis.look(0.0, x)
    # Rows first: rates of many magnitudes are no singularity.
    rows = np.max(np.abs(jac), axis=1, keepdims=True)
    values = np.linalg.svd(jac / np.where(rows > 0, rows, 1), compute_uv=False)
    return int(np.sum(values <= 100 * len(x) * np.finfo(diagnosis.dtype).eps * values[0]))
