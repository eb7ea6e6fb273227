"""What the report's page says in words: outcomes, causes with what to try, settings, a variant's verdict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from retrograd.pages import number
from retrograd.rescue import dotted
from retrograd.results import Results, Treated
from retrograd.schema import CAUSES, OUTCOMES

# An outcome after a count, in singular and plural.
_COUNTED = {
    "forward_failed": ("forward solve failed", "forward solves failed"),
    "gradient_nonfinite": ("gradient not finite", "gradients not finite"),
    "gradient_refuted": ("gradient refuted by its check", "gradients refuted by their check"),
    "inconclusive": ("check inconclusive", "checks inconclusive"),
    "steady_state_failed": ("steady state not found", "steady states not found"),
}

OUTCOME_MEANING = {
    "verified": "every derivative agrees with its finite difference within their error bounds",
    "forward_failed": "the simulation did not reach the last save time",
    "gradient_nonfinite": "the simulation is fine, its gradient holds NaN",
    "gradient_refuted": "a finite derivative differs from its finite difference beyond both error bounds",
    "inconclusive": "the check's own error bound is too wide to tell",
    "steady_state_failed": "no steady state to start from was found, or it is unstable",
}

# Signs beside the words of the scenario table, which has little room.
SHORT = {
    "verified": ("✓", "verified"),
    "forward_failed": ("✕", "forward failed"),
    "gradient_nonfinite": ("∅", "not finite"),
    "gradient_refuted": ("≠", "refuted"),
    "inconclusive": ("?", "inconclusive"),
    "steady_state_failed": ("⌀", "no steady state"),
}

CAUSE_WORDS = {
    "none": ("nothing failed", ""),
    "steady_state_not_found": (
        "no steady state was found",
        "Give a first guess: columns x0:STATE in the scenario table, or the model's initial_guess. "
        "Raise steady_state.max_steps, or try steady_state.method: integrate. "
        "Check by hand that the model does rest under the parameters of the steady phase.",
    ),
    "steady_state_unstable": (
        "the steady state found is unstable",
        "The Jacobian has an eigenvalue with positive real part: the system would leave this state. "
        "Start from another guess, or give the start yourself with start: initial_state.",
    ),
    "steady_state_overflow": (
        "the search for the steady state met values that are not finite",
        "Start from a guess where the rates are finite (x0:STATE, initial_guess), use precision: float64 and a stable "
        "formulation, or put a guard on the states.",
    ),
    "steady_state_not_isolated": (
        "there is no single steady state, but a family of them",
        "A quantity is conserved that the search did not find: declare it in the model's invariants, or begin "
        "with start: initial_state.",
    ),
    "nonfinite_rate": (
        "rates of change were not finite",
        "exp overflows at 88 in float32 and at 709 in float64: use precision: float64, a stable formulation, "
        "nonlinear.method: newton, or a guard on the states.",
    ),
    "nonfinite_jacobian": (
        "rates were finite, their derivative by the state was not",
        "Some functions have an infinite slope where they are finite, such as sqrt at 0: write the expression that is "
        "named so that it has one, or keep the state away with a guard.",
    ),
    "state_overflow": (
        "a step took the state beyond what floating point holds",
        "The rates are finite and huge. Use a smaller first step (controller.dt0), nonlinear.method: newton, or a "
        "guard on the states.",
    ),
    "inner_solve_failed": (
        "the implicit equations of a step could not be solved",
        "The inner iteration of a stage (Newton or chord) did not converge in the batch. Where it converges when the "
        "same step is repeated on its own, success depends on rounding, thus on the batch's vector width and the "
        "machine. Use nonlinear.method: newton, then a smaller first step (controller.dt0) or another solver.",
    ),
    "step_size_collapsed": (
        "the step size shrank below what the arithmetic resolves",
        "Use precision: float64 and a formulation that does not cancel; loosen controller.atol where a "
        "state's size allows it. "
        "A singularity of the model itself shows in the same way: look at the state named here.",
    ),
    "steps_limited": (
        "the attempts ran out (max_steps) because dtmax keeps steps short",
        "Take dtmax away: the controller shortens steps where the error asks for it. Else give max_steps the last save "
        "time over dtmax at least.",
    ),
    "steps_exhausted_stiff": (
        "the attempts ran out (max_steps) on a stiff problem",
        "Use an implicit solver with nonlinear.method: newton, which often cuts the attempts tenfold; then a stable "
        "formulation; raise max_steps last.",
    ),
    "steps_exhausted_oscillating": (
        "the attempts ran out (max_steps) while a state oscillated",
        "Each turn takes its steps: raise max_steps, use a solver of higher order (Kvaerno5, Dopri8), loosen rtol, or "
        "end earlier.",
    ),
    "steps_exhausted": (
        "the attempts ran out (max_steps)",
        "First nonlinear.method: newton, which often cuts the attempts tenfold; then a stable formulation; "
        "raise max_steps last.",
    ),
    "rejected_step_overflowed": (
        "the gradient ran backwards through a rejected step that had overflowed",
        "Use gradient: replay, which differentiates the accepted steps only, or put a guard on the states, which keeps "
        "rejected steps finite (in float32 with x_max below 88, where exp overflows). Where it happened at time 0, a "
        "smaller first step (controller.dt0) may do. Neither float64 nor a stable formulation cures it.",
    ),
    "gradient_unfinished": (
        "the gradient's own solve did not reach the end, where the recorded one did",
        "Use gradient: replay, which differentiates the recorded steps, or nonlinear.method: newton, under which "
        "rounding decides less; then precision: float64; raise max_steps last.",
    ),
    "nonfinite_gradient": (
        "the gradient was not finite although the simulation was",
        "Look at the expression that is named: its slope is infinite or undefined there, such as that of sqrt at 0. "
        "Where none is named, use gradient: replay.",
    ),
    "gradient_differs": (
        "the gradient differs from its finite differences",
        "Compare the methods in the table of gradients: if replay is verified where another is refuted, "
        "the fault is the method's, such as inner solves that are too loose (nonlinear.rtol). If replay is "
        "refuted too, look in the model for "
        "kinks, branches or stop_gradient.",
    ),
    "kink": (
        "the slopes to both sides differ",
        "There is no derivative at this point, only one to each side: relu, abs, max, a clip or a guard has its corner "
        "there. Move the parameter, or smooth the corner.",
    ),
    "check_too_coarse": (
        "the finite differences were too noisy to judge",
        "Rounding sets the bound: use precision: float64. There, look for a loss that hardly depends on the "
        "parameter, or one with kinks.",
    ),
}


# Of verdicts whose code is no word.
VERDICT_WORDS = {"nonfinite": "not finite"}

# Of derivatives that are not verified.
REASON_WORDS = {
    "differs": "differ from FD",
    "derivative_nonfinite": "not finite",
    "kink": "at a kink",
    "no_difference": "without FD",
    "bound_too_wide": "bounds too wide",
}


def verdict(results: Results, treated: Treated) -> str:
    """Returns what became of a variant's scenarios, in one sentence without the variant's name."""
    codes = results.outcome[results.index(treated)]
    good, total = int((codes == 0).sum()), len(codes)
    sentence = f"{good} of {total} gradient{'' if total == 1 else 's'} verified"
    rest = []
    for code, name in enumerate(OUTCOMES):
        count = int((codes == code).sum())
        if name != "verified" and count:
            rest.append(f"{count} {_COUNTED[name][count != 1]}")
    return f"{sentence}{'; ' if rest else ''}{', '.join(rest)}."


METHOD_WORDS = {
    "replay": "adjoint of the recorded steps, walked backwards; adaptive steps are not taken again",
    "forward": "tangent of the recorded steps, walked forwards",
    "checkpoint": "diffrax’s default, backwards through an adaptive solve of its own, rejected attempts included",
    "backsolve": "diffrax’s continuous adjoint, an ODE solved backwards in time",
}


def lead(results: Results) -> str:
    """Returns what the study found, in one sentence."""
    best, total = results.best, len(results.scenarios)
    told = f"{best.name} verifies {results.verified(best)} of {total} gradients"
    attempts = results.attempts[results.index(best)]
    told += (
        f", in {number(float(np.median(attempts)), 3)} attempted steps a scenario (median)" if attempts.any() else ""
    )
    others = [results.verified(v) for v in results.variants if v is not best]
    if not others:
        return f"{told}."
    low, high = min(others), max(others)
    many = "the other variant" if len(others) == 1 else f"the {len(others)} other variants"
    return f"{told}; {many} verif{'ies' if len(others) == 1 else 'y'} {low if low == high else f'{low} to {high}'}."


def wrt_words(results: Results) -> list[str]:
    """Returns what the names of derivatives mean, for those that a study has."""
    wrt, out = results.best.wrt, []
    if any(name.endswith("@steady") for name in wrt):
        out.append("@steady is a parameter before the switch, which sets the start; @dynamic the same one after it")
    drawn = [name for name in wrt if name.startswith("network[")]
    if drawn:
        asked = results.settings["study"].get("gradient", {})
        out.append(
            f"{drawn[0]}{f' to {drawn[-1]}' if len(drawn) > 1 else ''} go along random directions in all weights "
            f"of the network together (seed {asked.get('seed', 0)}), not along single ones"
        )
    return out


# Causes of an attempt without an error estimate: where they name a state, its value at the attempt's end is not finite.
_LOST = frozenset(("nonfinite_rate", "nonfinite_jacobian", "state_overflow", "inner_solve_failed"))


def worst_state(results: Results, treated: Treated, s: int) -> tuple[str, str] | None:
    """Returns a state of a simulation that failed, and why it is that one; None where the files tell none.

    Of an attempt's error estimate the files hold the norm alone, so which state had the largest is not known.
    """
    i, summary = results.index(treated), results.summary
    if OUTCOMES[results.outcome[i, s]] != "forward_failed":
        return None
    state = int(summary["cause_state"].values[i, s])
    if not 0 <= state < len(treated.states):
        _, x = treated.record(s)
        with np.errstate(all="ignore"):
            moved = np.abs(x[-1] - x[-2]) / (1 + np.abs(x[-1])) if len(x) > 1 else np.array([np.nan])
        if not np.isfinite(moved).any():
            return None
        state = int(np.nanargmax(moved))
        lost = False
    else:
        lost = CAUSES[summary["cause"].values[i, s]] in _LOST
    if lost and not treated.dynamics["attempt_finite"][treated.attempts(s)].values.all():
        return treated.states[state], "the first that is not finite in the attempt that is told"
    return treated.states[state], "moved most in the last accepted step, which need not be why it failed"


def _setting_words(key: str, value: Any) -> str:
    """Returns what a setting does, in words."""
    if isinstance(value, float):
        value = number(value, 3)
    yes = {
        "formulation": f"the model's formulation “{value}”",
        "precision": f"{value} arithmetic",
        "solver": f"the solver {value}",
        "max_steps": f"at most {value} attempts",
        "gradient": f"gradients judged by “{value}”",
        "controller.rtol": f"relative tolerance {value}",
        "controller.atol": f"absolute tolerance {value}",
        "controller.dtmax": f"steps of at most {value}",
        "controller.dt0": f"a first step of {value}",
        "steady_state.rtol": f"relative tolerance {value} for the steady state",
        "steady_state.atol": f"absolute tolerance {value} for the steady state",
        "steady_state.max_steps": f"at most {value} iterations for the steady state",
    }
    if key == "guard":
        if not value:
            return "no bound on the states"
        bound, fill = number(value["x_max"], 3), number(value["dx_fill"])
        return f"states bounded to ±{bound} in the rates, and {fill} in place of rates that are not finite"
    if key == "nonlinear.method":
        what = {
            "chord": "chord iteration (one Jacobian a stage)",
            "newton": "full Newton iteration (a new Jacobian each time)",
        }
        return f"{what.get(value, value)} inside implicit steps"
    if key == "steady_state.method":
        what = {"root": "the steady state by root finding", "integrate": "the steady state by integration"}
        return what.get(value, str(value))
    if key == "rescue":
        return f"where it fails, other tries one by one ({value})" if value else "no other try where it fails"
    if key == "segments":
        return f"solved in {len(value)} segments" if value else "solved in one go"
    if key.startswith("nonlinear."):
        return f"inner {key[10:]} {value}" if value is not None else f"inner {key[10:]} as the controller's"
    if value is None:
        return f"{key} left free"
    return yes.get(key, f"{key} = {value}")


def _flat(treated: Treated) -> dict[str, Any]:
    """Returns a variant's settings under dotted keys."""
    out: dict[str, Any] = {}
    for stage in treated.settings.values():
        # `find` repeats the settings of the steady state for the gradients.
        told = {k: v for k, v in stage.items() if k not in ("save_times", "start", "gradient", "find", "rescue")}
        out |= dotted({k: v for k, v in told.items() if k != "steady_state" or v is not None})
    rungs = [rung["name"] for rung in treated.settings.get("dynamics", {}).get("rescue") or []]
    return {**out, "gradient": treated.method, "rescue": ", ".join(rungs)}


_ORDER = (
    "precision",
    "formulation",
    "guard",
    "solver",
    "nonlinear.method",
    "controller.rtol",
    "controller.atol",
)


def _settings_in_order(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=lambda k: (_ORDER.index(k) if k in _ORDER else len(_ORDER), k))


def describe(results: Results) -> list[dict[str, Any]]:
    """Returns each variant in words: one in full, first, and of the others what differs from it."""
    base = next((v for v in results.shown if v.name == "recommended"), results.best)
    wanted = _flat(base)
    out = []
    for treated in sorted(results.shown, key=lambda v: v is not base):
        own = _flat(treated)
        if treated is base:
            told = [
                *_ORDER,
                "max_steps",
                *(["steady_state.method"] if treated.steady is not None else []),
                "gradient",
                "rescue",
            ]
            points = [_setting_words(k, own[k]) for k in told if k in own]
        else:
            changed = [k for k in _settings_in_order(own) if own[k] != wanted.get(k)]
            points = [_setting_words(k, own[k]) + _instead_of(k, wanted.get(k)) for k in changed]
        out.append({"name": treated.name, "base": treated is base, "points": points or ["the same settings"]})
    return out


def _instead_of(key: str, value: Any) -> str:
    """Returns a bracket with the value that another variant has; of what is there or not, none is needed."""
    if key in ("guard", "rescue"):
        return ""
    if key == "segments":
        return f" (not {len(value)} segments)" if value else " (not in one go)"
    if isinstance(value, float):
        value = number(value, 3)
    return f" (not {'left free' if value is None else value})"
