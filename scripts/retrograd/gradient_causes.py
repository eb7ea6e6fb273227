"""Why a gradient is not verified: found on the way back, and in recorded attempts taken again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retrograd.causes import Cause, taken_again, told, when
from retrograd.dynamics import Record
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.schema import REASONS, VERDICTS
from retrograd.trace import Diagnosis, SingleSteps, walk_back

# Rejected attempts, from either end, that are taken again in search of one that broke a gradient.
LOOKED_AT = 200


def of_gradients(
    problem: GradientProblem, data: Scenarios, records: Sequence[Record], table: Mapping[str, np.ndarray]
) -> list[list[Cause]]:
    """Returns the causes of gradients that are not verified, scenario by scenario, of each method.

    - `data`: the recorded scenarios; those that are not `ok` have no gradient, and no cause here.
    - `records`: their attempts.
    - `table`: as `gradient_table` returned it.
    """
    out = [[Cause() for _ in problem.methods] for _ in records]
    backward: _Backward | None = None
    for i, m in np.argwhere(data.ok[:, None] & (table["status"] != VERDICTS.index("verified"))):
        status = VERDICTS[table["status"][i, m]]
        if status == "nonfinite":
            backward = backward or _Backward(problem)
            one = data.take(np.array([i]))
            out[i][m] = backward(
                problem.methods[m], one, records[i], table["ad"][i, m], float(table["solve_end"][i, m])
            )
        elif status in ("refuted", "inconclusive"):
            out[i][m] = _judged(problem, status, {name: table[name][i] for name in _JUDGED}, m)
    return out


_JUDGED = ("ad", "ad_error", "fd", "fd_error", "fd_left", "fd_right", "verdict", "reason")


def _judged(problem: GradientProblem, status: str, row: Mapping[str, np.ndarray], m: int) -> Cause:
    ad, fd = row["ad"][m], row["fd"]
    bound = row["fd_error"] + row["ad_error"][m]
    mine = row["verdict"][m] == VERDICTS.index(status)
    with np.errstate(invalid="ignore"):
        gap = np.where(mine, np.abs(ad - fd) if status == "refuted" else bound, -1.0)
    j = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    name = problem.labels[j]
    numbers = f"d loss / d {name} = {ad[j]:.8g} by {problem.methods[m]}, {fd[j]:.8g} by differences"
    if status == "refuted":
        off = f"{abs(ad[j] - fd[j]):.2g} apart, where the error bars allow {bound[j]:.2g}"
        return Cause("gradient_differs", term=j, text=f"{numbers}: {off}")
    kinks = np.flatnonzero(mine & (row["reason"][m] == REASONS.index("kink")))
    if len(kinks):
        j = int(kinks[0])
        sides = f"{row['fd_left'][j]:.6g} to the left and {row['fd_right'][j]:.6g} to the right"
        return Cause("kink", term=j, text=f"The slope of the loss along {problem.labels[j]} is {sides}")
    return Cause("check_too_coarse", term=j, text=f"{numbers}, known to {bound[j]:.2g} only")


class _Backward:
    def __init__(self, problem: GradientProblem) -> None:
        self.problem = problem
        settings = {**problem.options, "save_times": list(problem.times)}
        self.steps = SingleSteps(problem.field, problem.model, settings, problem.n)
        self.diagnosis = Diagnosis(problem.field, problem.model, settings, np.zeros(len(problem.cls.parameters)))

    def __call__(self, method: str, data: Scenarios, record: Record, ad: np.ndarray, reached: float) -> Cause:
        """Returns why a derivative of the one scenario in `data` is not finite.

        - `reached`: model time that the method's own solve got to, NaN where it makes none.
        """
        term, k = int(np.argmax(~np.isfinite(ad))), data.k_dynamic[0]
        lost = np.flatnonzero(~np.isfinite(record.error))
        if method == "checkpoint" and len(lost):
            # The last ones are what the way back meets first, and the first step is the boldest. One whose stages are
            # finite lets it pass.
            order = np.concatenate([lost[-LOOKED_AT:][::-1], lost[:-LOOKED_AT][:LOOKED_AT]])
            taken = taken_again(self.steps, record, order, data.x_start[0], k)
            attempt = next((a for a in taken if not np.all(np.isfinite(a.stages))), None)
            if attempt is not None:
                said = (
                    f"{len(lost)} rejected attempts gave no error estimate, and the way back runs through them; one "
                    f"with stages that are not finite, {when(attempt)}: {told(self.diagnosis.of(k)(attempt))}"
                )
                return Cause("rejected_step_overflowed", attempt.t0, term=term, text=said)
        problem = self.problem
        if reached < problem.times[-1]:
            said = (
                f"{method} solves anew, and its own solve ended at t = {reached:.6g} of {problem.times[-1]:.6g}: "
                f"{problem.options['max_steps']} attempts were used up, where the recorded solve took "
                f"{len(record.end)}; what rounding decides came out otherwise"
            )
            return Cause("gradient_unfinished", reached, term=term, text=said)
        replayed, stages = problem.replay(data)
        steps = np.asarray(data.steps[0], problem.dtype)
        injected = problem.injected(steps, replayed["loss_slope"][0])
        model, options = problem.model, problem.options
        visits, finding = walk_back(problem.field, model, options, k, steps, stages[0], injected)
        if finding is None:
            said = f"{problem.labels[term]} has no finite derivative by {method}"
            if method in ("replay", "forward"):
                said += ", although every cotangent on the recorded steps is finite"
            else:
                said += "; by replay of the accepted steps every cotangent is finite"
            return Cause("nonfinite_gradient", term=term, text=said)
        at = next(v for v in visits if not np.all(np.isfinite(v.at_start)))
        said = f"on the way back from t = {at.t1:.6g} to {at.t0:.6g}, {told(finding)}"
        return Cause("nonfinite_gradient", at.t0, term=term, text=said)
