"""Why a gradient is not verified: found on the way back, and in recorded attempts taken again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.causes import Cause, began, told, when
from retrograd.dynamics import Record, make_solver
from retrograd.gradients import GradientProblem, Scenarios
from retrograd.nonfinite import first_nonfinite
from retrograd.plugins import Field
from retrograd.schema import REASONS, VERDICTS
from retrograd.trace import Attempt, Diagnosis, Finding, SingleSteps, walk_back

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
        self._zero_back = _zero_back(problem.field, settings, self.diagnosis.tableau.a.astype(problem.dtype))

    def __call__(self, method: str, data: Scenarios, record: Record, ad: np.ndarray, reached: float) -> Cause:
        """Returns why a derivative of the one scenario in `data` is not finite.

        - `reached`: model time that the method's own solve got to, NaN where it makes none.
        """
        term, k = int(np.argmax(~np.isfinite(ad))), data.k_dynamic[0]
        if method == "checkpoint":
            found = self._broken(data, record)
            if found is not None:
                attempt, finding = found
                said = (
                    f"{len(record.end) - record.num_accepted} attempts were rejected, and the way back runs through "
                    f"them; one that turns a cotangent of 0 into NaN, {when(attempt)}: {told(finding)}"
                )
                return Cause("rejected_step_overflowed", attempt.t0, term=term, text=said)
        problem = self.problem
        if reached < problem.times[-1]:
            said = (
                f"{method} solves anew, and its own solve ended at t = {reached:.6g} of {problem.times[-1]:.6g}: "
                f"{problem.options['max_steps']} attempts were used up, where the recorded solve took {len(record.end)}"
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

    def _broken(self, data: Scenarios, record: Record) -> tuple[Attempt, Finding] | None:
        """Returns a rejected attempt of the one scenario in `data` that turns a cotangent of 0 into NaN, and why.

        Taken by diffrax's own step, which `checkpoint` differentiates, from a recorded start. An attempt that merely
        did not converge lets the cotangent pass.
        """
        k = jnp.asarray(data.k_dynamic[0], self.problem.dtype)
        rejected = np.flatnonzero(~record.accepted.astype(bool))
        # The last ones are what the way back meets first, and the first step is the boldest.
        order = np.concatenate([rejected[-LOOKED_AT:][::-1], rejected[:-LOOKED_AT][:LOOKED_AT]])
        for number in order:
            start = began(record, int(number), data.x_start[0])
            stages, back = self._zero_back(self.problem.model, *(jnp.asarray(v, self.problem.dtype) for v in start), k)
            if not np.all(np.isfinite(back)):
                attempt = self.steps.attempt(*start, k)
                return attempt, self._why(attempt, np.asarray(stages), k)
        return None

    def _why(self, attempt: Attempt, stages: np.ndarray, k: Any) -> Finding:
        diagnosis = self.diagnosis.of(k)
        if not np.all(np.isfinite(attempt.stages)):
            return diagnosis(attempt)
        for i, stage in enumerate(stages):
            t = diagnosis.time(attempt, i)
            finding, _, _ = diagnosis.look(t, stage)
            if not np.all(np.isfinite(stage)):
                finding = Finding("it is not finite itself")
            finding = finding or self._zero_times_inf(t, stage, k)
            if finding is not None:
                finding.stage = i
                return finding
        return Finding("stages and Jacobians there are finite: an iterate on the way to them was not")

    def _zero_times_inf(self, t: Any, stage: np.ndarray, k: Any) -> Finding | None:
        """Returns what makes the derivative of the rates not finite when it is taken backwards from 0, if anything.

        A guard replaces rates that overflowed; forwards their derivative is replaced too, backwards it is 0 times inf.
        """
        model, field = self.problem.model, self.problem.field
        back = lambda model, t, x, k: jax.vjp(lambda x: field(model, t, x, k), x)[1](jnp.zeros_like(x))[0]
        place = (jnp.asarray(t), jnp.asarray(stage, self.problem.dtype), k)
        if np.all(np.isfinite(back(model, *place))):
            return None
        said = "rates and Jacobian there are finite, their derivative taken backwards from 0 is not"
        return Finding(said, "jacobian", origin=first_nonfinite(back, model, *place))


def _zero_back(field: Field, options: Mapping[str, Any], tableau: np.ndarray) -> Callable[..., Any]:
    """Returns diffrax's step, taken backwards with a cotangent of 0, compiled.

    (model, t0, t1, x, k) -> its stages (stage, state), and the cotangent of x and k, (state + parameter,).
    """
    a = tableau[:, :, None]
    solver, term = make_solver(options), diffrax.ODETerm(lambda t, x, args: field(args[0], jnp.asarray(t), x, args[1]))

    def step(x, k, model, t0, t1):
        args = (model, k)
        state = solver.init(term, t0, t1, x, args)
        end, _, dense, _, _ = solver.step(term, t0, t1, x, args, state, False)
        return end, x + jnp.sum(jnp.where(a == 0, 0, a * dense["k"]), axis=1)

    def back(model, t0, t1, x, k):
        end, pull, stages = jax.vjp(lambda x, k: step(x, k, model, t0, t1), x, k, has_aux=True)
        return stages, jnp.concatenate(pull(jnp.zeros_like(end)))

    return eqx.filter_jit(back)
