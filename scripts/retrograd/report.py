"""The report of a study: its results put into words and tables, and rendered as one HTML page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml
from latex2mathml.converter import convert
from markupsafe import Markup

from retrograd import __version__, atlas_figures, details, drawing, figures, fit_figures, remedies
from retrograd.comparison_page import told as comparison_told
from retrograd.pages import number, pages, shown_path, write
from retrograd.rescue import dotted
from retrograd.results import MOST_VARIANTS, Results, Treated, spread
from retrograd.schema import CAUSES, OUTCOMES, REASONS, STEADY_METHOD, STEADY_STATUS, VERDICTS

FIGURES = {**figures.FIGURES, **atlas_figures.FIGURES, **fit_figures.FIGURES}
TEMPLATE = "report.html.j2"

# Rows of the scenario table, and of the table of derivatives: a page is read, the rest is in summary.nc.
MOST_SCENARIOS = 2000
MOST_DERIVATIVES = 200
# Sentences about single scenarios under one cause.
MOST_SAID = 5


# --- words ----------------------------------------------------------------------------------------

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
_SHORT = {
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
        "The inner iteration did not converge. Use nonlinear.method: newton, then a smaller first step "
        "(controller.dt0) or another solver.",
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
        return f"where it fails, a ladder of other treatments ({value})" if value else "no ladder where it fails"
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
            points = [f"{_setting_words(k, own[k])} (not {_bare(k, wanted.get(k))})" for k in changed]
        out.append({"name": treated.name, "base": treated is base, "points": points or ["the same settings"]})
    return out


def _bare(key: str, value: Any) -> str:
    """Returns a setting's value alone, for the bracket behind another one."""
    if key == "guard":
        return "bounded" if value else "unbounded"
    if key == "rescue":
        return "a ladder" if value else "none"
    if key == "segments":
        return f"{len(value)} segments" if value else "one go"
    if isinstance(value, float):
        return number(value, 3)
    return "left free" if value is None else str(value)


# --- tables ---------------------------------------------------------------------------------------


def _largest(values: np.ndarray) -> float:
    return float(np.max(values, initial=-np.inf, where=np.isfinite(values))) if np.isfinite(values).any() else np.nan


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else np.nan


def _least(values: np.ndarray) -> float:
    return -_largest(-values)


def _rescued(results: Results, i: int) -> int:
    """Returns how many scenarios a rung of a variant's ladder solved."""
    rungs = [results.summary[name].values[i] > 0 for name in ("rung", "steady_state_rung") if name in results.summary]
    return int(np.any(rungs, axis=0).sum()) if rungs else 0


def verdict_table(results: Results) -> list[dict[str, Any]]:
    """Returns the rows of the verdict table, one a variant."""
    rows = []
    for i, treated in enumerate(results.variants):
        attempts = results.attempts[i][results.attempts[i] > 0].astype(float)
        m = treated.methods.index(treated.method)
        steady = None if treated.steady is None else int((treated.steady["status"].values != 0).sum())
        rows.append(
            {
                "name": treated.name,
                "best": treated is results.best,
                "method": treated.method,
                "counts": [int((results.outcome[i] == c).sum()) for c in range(len(OUTCOMES))],
                "median": _median(attempts),
                "most": _largest(attempts),
                "error": _largest(figures.relative(treated.difference, treated)[:, m]),
                "steady": steady,
                "rescued": _rescued(results, i),
                "digits": _least(results.summary["ode_digits"].values[i]),
                "sentence": verdict(results, treated),
            }
        )
    return rows


def method_table(results: Results) -> list[dict[str, Any]]:
    """Returns how the scenarios of each variant fared by each gradient method."""
    rows = []
    for treated in results.variants:
        status = treated.gradients["status"].values
        error = figures.relative(treated.difference, treated)
        bound = figures.relative(treated.bound, treated)
        for m, method in enumerate(treated.methods):
            rows.append(
                {
                    "name": treated.name,
                    "method": method,
                    "decides": method == treated.method,
                    "counts": [int((status[:, m] == c).sum()) for c in range(len(VERDICTS))],
                    "error": _largest(error[:, m]),
                    "bound": _median(bound[:, m]),
                    "why": _reasons(treated, m),
                }
            )
    return rows


def _reasons(treated: Treated, m: int) -> list[tuple[str, int]]:
    """Returns why derivatives by a method are not verified, and of how many, most frequent first."""
    reason = treated.gradients["reason"].values[:, m]
    counts = [(words, int((reason == REASONS.index(name)).sum())) for name, words in REASON_WORDS.items()]
    return sorted((c for c in counts if c[1]), key=lambda c: -c[1])


def independent_table(results: Results) -> list[dict[str, Any]]:
    """Returns how replay compares with derivatives that share no steps with it, one row a variant and kind.

    Distances count relative to the error bars of both and, as all in the report, to the scenario's largest |fd|.
    """
    rows = []
    for treated in results.variants:
        m = figures.reference_method(treated)
        ad = treated.gradients["ad"].values[:, m]
        bar = treated.gradients["ode_error"].values + treated.gradients["ad_error"].values[:, m]
        for name, words in (("reference", "SciPy on sensitivity equations"), ("fd_free", "differences of free solves")):
            value, error = (treated.gradients[n].values for n in (name, f"{name}_error"))
            known = np.isfinite(value)
            if known.any():
                distance = np.abs(value - ad)
                inside = known & (distance <= error + bar)
                rows.append(
                    {
                        "name": treated.name,
                        "method": treated.methods[m],
                        "words": words,
                        "scenarios": int(known.any(axis=1).sum()),
                        "derivatives": int(known.sum()),
                        "inside": int(inside.sum()),
                        "distance": _largest(figures.relative(distance, treated)),
                        "own": _median(figures.relative(error, treated)),
                    }
                )
    return rows


def derivative_table(results: Results) -> tuple[list[dict[str, Any]], int]:
    """Returns the best variant's largest error of each derivative, and how many rows are left out."""
    best = results.best
    error = figures.relative(best.difference, best)
    bound = figures.relative(best.bound, best)
    size = figures.relative(np.abs(best.gradients["fd"].values), best)
    verdicts = best.gradients["verdict"].values
    rows = []
    for j, label in enumerate(best.wrt):
        for m, method in enumerate(best.methods):
            column = error[:, m, j]
            judged = verdicts[:, m, j] != VERDICTS.index("skipped")
            row = {
                "wrt": label,
                "method": method,
                "verified": int((verdicts[:, m, j] == 0).sum()),
                "small": int(((verdicts[:, m, j] == 0) & (size[:, j] <= bound[:, m, j])).sum()),
                "judged": int(judged.sum()),
                "error": _largest(column),
                "bound": np.nan,
                "scenario": "",
                "widest": _largest(bound[:, m, j]),
            }
            if np.isfinite(column).any():
                worst = int(np.nanargmax(column))
                row |= {"bound": float(bound[worst, m, j]), "scenario": results.scenarios[worst]}
            rows.append(row)
    left_out = max(len(rows) - MOST_DERIVATIVES, 0)
    if left_out:
        keep = sorted(range(len(rows)), key=lambda r: -np.nan_to_num(rows[r]["error"], nan=-1.0))[:MOST_DERIVATIVES]
        rows = [rows[r] for r in sorted(keep)]
    return rows, left_out


def steady_table(results: Results) -> list[dict[str, Any]]:
    """Returns how the search for steady states went under each variant; empty where the study has none."""
    rows = []
    for treated in results.variants:
        if treated.steady is None:
            continue
        ds = treated.steady
        status = ds["status"].values
        counts = [(STEADY_STATUS[c].replace("_", " "), int((status == c).sum())) for c in range(len(STEADY_STATUS))]
        good = status == 0
        by = [(STEADY_METHOD[c], int((ds["method"].values[good] == c).sum())) for c in range(len(STEADY_METHOD))]

        def over(name: str, ds: xr.Dataset = ds, good: np.ndarray = good) -> float:
            return _largest(ds[name].values[good].astype(float)) if name in ds else np.nan

        rows.append(
            {
                "name": treated.name,
                "found": int(good.sum()),
                "failed": [(words, count) for words, count in counts[1:] if count],
                "methods": [(words, count) for words, count in by if count],
                "residual": over("residual_norm"),
                "iterations": over("iterations"),
                "eigenvalue": over("max_real_eigenvalue"),
                "cross_check": over("cross_check"),
            }
        )
    return rows


def failure_table(results: Results) -> list[dict[str, Any]]:
    """Returns one entry for each cause that occurred, with a row for each variant that it hit."""
    cause = results.summary["cause"].values
    time = results.summary["cause_time"].values
    out = []
    for code, name in enumerate(CAUSES):
        if name == "none" or not (cause == code).any():
            continue
        words, advice = CAUSE_WORDS[name]
        rows, said = [], []
        for i, treated in enumerate(results.variants):
            hit = np.flatnonzero(cause[i] == code)
            if len(hit):
                first = {"variant": treated.name, "scenario": results.scenarios[hit[0]]}
                said.append(first | {"text": str(results.summary["cause_text"].values[i, hit[0]])})
                when = time[i, hit][np.isfinite(time[i, hit])]
                rows.append(
                    {
                        "name": treated.name,
                        "count": len(hit),
                        "examples": [results.scenarios[s] for s in spread(hit, 3)],
                        "more": max(len(hit) - 3, 0),
                        "earliest": float(when.min()) if when.size else np.nan,
                        "latest": float(when.max()) if when.size else np.nan,
                        "where": _where(results, treated, i, hit),
                        "cure": _cure(results, treated, hit),
                    }
                )
        # Of many variants those that it hit most.
        keep = sorted(range(len(rows)), key=lambda r: -rows[r]["count"])[:MOST_VARIANTS]
        told = {"code": name, "words": words, "advice": advice, "said": [said[r] for r in keep[:MOST_SAID]]}
        out.append(told | {"rows": [rows[r] for r in sorted(keep)], "left_out": len(rows) - len(keep)})
    return out


def _where(results: Results, treated: Treated, i: int, hit: np.ndarray) -> str:
    """Returns the state or the derivative that a cause names most often."""
    for variable, names, what in (
        ("cause_term", treated.wrt, "derivative"),
        ("cause_state", treated.states, "state"),
    ):
        codes = results.summary[variable].values[i, hit]
        codes = codes[(codes >= 0) & (codes < len(names))]
        if len(codes):
            found, counts = np.unique(codes, return_counts=True)
            most = int(np.argmax(counts))
            share = "" if counts[most] == len(hit) else f" ({counts[most]} of {len(hit)})"
            return f"{what} {names[found[most]]}{share}"
    return ""


def _cure(results: Results, treated: Treated, hit: np.ndarray) -> dict[str, Any] | None:
    """Returns the other variant that verifies most of these scenarios, None where no one does."""
    best: dict[str, Any] | None = None
    for other in results.variants:
        count = int((results.outcome[results.index(other), hit] == 0).sum())
        if other is treated or not count:
            continue
        better = best is None or count > best["count"] or (count == best["count"] and other is results.best)
        if better:
            best = {"name": other.name, "count": count, "of": len(hit)}
    return best


def scenario_table(results: Results) -> tuple[list[dict[str, Any]], int]:
    """Returns one row a scenario with its outcome under each variant, and how many are left out.

    Where there are too many, those with details stay, then those that fail under the best variant, then those that
    fail under most others, then the ones with most attempts; rows stand in the order of the study.
    """
    i = results.index(results.best)
    total = len(results.scenarios)
    keep = np.arange(total)
    if total > MOST_SCENARIOS:
        failing = (results.outcome != 0).sum(axis=0)
        first = np.lexsort((-results.attempts[i], -failing, results.outcome[i] == 0))
        keep = np.sort(list(dict.fromkeys([*details.chosen(results), *first]))[:MOST_SCENARIOS])
    cause = results.summary["cause"].values
    rungs = [ds["rung_name"].values for ds in (results.best.steady, results.best.dynamics) if ds is not None]
    rows = []
    for s in keep:
        cells = []
        for v in map(results.index, results.shown):
            name = OUTCOMES[results.outcome[v, s]]
            why = CAUSE_WORDS[CAUSES[cause[v, s]]][0] if name != "verified" else ""
            cells.append(
                {
                    "code": int(results.outcome[v, s]),
                    "sign": _SHORT[name][0],
                    "words": _SHORT[name][1],
                    "why": why,
                }
            )
        rung = ", ".join(str(names[s]) for names in rungs if names[s] != "none")
        rows.append(
            {"name": results.scenarios[s], "cells": cells, "attempts": int(results.attempts[i, s]), "rung": rung}
        )
    return rows, total - len(rows)


# --- where it all comes from ----------------------------------------------------------------------


def provenance(results: Results) -> dict[str, Any]:
    """Returns inputs, environments, code and contents of all files that the report is drawn from."""
    files = []
    for treated in results.variants:
        stages = {
            "steady_state": treated.steady,
            "dynamics": treated.dynamics,
            "gradients": treated.gradients,
            "fit": treated.fit,
        }
        files += [(f"{treated.name}/{stage}.nc", stage, ds) for stage, ds in stages.items() if ds is not None]
    files += [("summary.nc", "summary", results.summary), ("model.nc", "export", results.model)]
    inputs: dict[str, dict[str, None]] = {}
    codes: dict[str, dict[str, None]] = {}
    environments: dict[str, dict[str, list[str]]] = {}
    for path, stage, ds in files:
        for name, digest in json.loads(ds.attrs.get("retrograd_inputs", "{}")).items():
            if name in ("plugin", "weights", "scenarios"):
                inputs.setdefault(name, {})[digest] = None
        codes.setdefault(stage, {})[str(ds.attrs.get("retrograd_code_digest", ""))] = None
        if stage in ("steady_state", "dynamics", "gradients"):
            for key, value in json.loads(ds.attrs.get("retrograd_environment", "{}")).items():
                text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                where = environments.setdefault(key, {}).setdefault(text, [])
                variant = path.partition("/")[0]
                if variant not in where:
                    where.append(variant)
    return {
        "inputs": [(name, list(digests)) for name, digests in sorted(inputs.items())],
        "codes": [(stage, list(digests)) for stage, digests in codes.items()],
        "environment": [(key, list(found.items())) for key, found in sorted(environments.items())],
        "files": [(path, str(ds.attrs.get("retrograd_content_sha256", ""))) for path, _, ds in files],
    }


def study_yaml(results: Results) -> str:
    """Returns the study's config as YAML, defaults written out; of absolute paths the file's name is left."""
    study = json.loads(json.dumps(results.settings["study"]))
    model = study.get("model", {})
    for holder, key in ((study, "scenarios"), (model, "plugin"), (model, "weights")):
        if holder.get(key):
            holder[key] = shown_path(holder[key])
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True, default_flow_style=None, width=88)


# --- the model, and who is to be cited ----------------------------------------------------------------

# Of MathML: what a formula may consist of.
_MATHML = frozenset(
    (
        *(
            "math",
            "mrow",
            "mi",
            "mn",
            "mo",
            "ms",
            "mtext",
            "mspace",
            "mfrac",
            "msqrt",
            "mroot",
            "msub",
            "msup",
            "msubsup",
        ),
        *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mpadded", "mphantom", "menclose", "mstyle"),
    )
)


def formula(tex: str) -> Markup | None:
    """Returns LaTeX as MathML, None where there is no formula."""
    if not tex:
        return None
    try:
        root = ET.fromstring(convert(tex, display="block"))
    except Exception:
        # A file from elsewhere may hold anything: what is no formula is left out.
        return None
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        if node.tag not in _MATHML:
            return None
        node.attrib = {key: value for key, value in node.attrib.items() if not key.startswith("on") and key != "href"}
    return Markup(ET.tostring(root, encoding="unicode"))


def model_told(results: Results) -> dict[str, Any]:
    """Returns what the page says of the model."""
    attrs, best = results.model.attrs, results.best
    formulas = [formula(str(tex)) for tex in results.model["equation"].values]
    return {
        "name": str(attrs.get("model_class", "")) or results.settings["study"]["model"].get("class", ""),
        "weights": int(attrs.get("n_weights", 0)),
        "states": list(zip(best.states, best.state_units, strict=True)),
        "parameters": list(json.loads(attrs.get("parameters", "{}")).items()),
        "formulas": [f for f in formulas if f is not None],
        "without": [name for name, f in zip(best.states, formulas, strict=False) if f is None],
        "description": str(attrs.get("description", "")),
        "text": str(attrs.get("vector_field", "")),
        "networks": json.loads(attrs.get("networks", "{}")),
        "jump_times": json.loads(attrs.get("jump_times", "[]")),
        "structure": str(attrs.get("structure", "")) if attrs.get("n_weights", 0) else "",
    }


def bibtex(results: Results) -> str:
    """Returns what to cite in BibTeX: the study where it names its authors, and the software."""
    about = results.settings.get("publication", {})
    plain = lambda text: "".join(c for c in text if c not in "{}\\")
    entries = []
    if about.get("authors"):
        fields = {
            "author": " and ".join(plain(a["name"]) for a in about["authors"]),
            "title": f"{{{plain(about.get('title') or f'{results.study}: a study made with Retrograd')}}}",
            "year": (about.get("date") or "")[:4],
            "doi": plain(about.get("doi") or ""),
        }
        entries.append(("dataset", results.study, fields))
    fields = {"author": "{The Retrograd developers}", "title": "{Retrograd}", "version": __version__}
    entries.append(("software", "retrograd", fields))
    told = lambda fields: "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items() if value)
    return "\n".join(f"@{kind}{{{key},\n{told(fields)}}}" for kind, key, fields in entries)


# --- the page -------------------------------------------------------------------------------------


def figure_labels(results: Results) -> dict[str, str]:
    """Returns what each figure shows, in a sentence for those who cannot see it."""
    best, names = results.best, results.scenarios
    shown = [v.name for v in results.shown]
    counted = "; ".join(f"{v.name}: {verdict(results, v).rstrip('.')}" for v in results.shown)
    medians = "; ".join(f"{r['name']} {number(r['median'])}" for r in verdict_table(results) if r["name"] in shown)
    drawn = ", ".join(names[s] for s in figures.shown_trajectories(results)) or "none"
    pair = " and ".join(v.name for v in (results.contrast, results.best) if v is not None)
    stepped = ", ".join(names[s] for _, s in figures.shown_steps(results)) or "none"
    panels = ", ".join(v.name for v in figures.shown_variants(results))
    paired = ", ".join(v.name for v in figures.shown_pairs(results)) or "none"
    swept = ", ".join(best.wrt[j] for j in figures.shown_sweeps(results)[0]) or "none"
    return {
        "outcomes": f"Bar chart of outcomes by variant. {counted}.",
        "trajectories": f"Line charts of the states over model time under {best.name}. Scenarios: {drawn}.",
        "steps": f"Step size over model time under {pair}. Scenarios: {stepped}.",
        "attempts": f"Attempts of every scenario by variant. Medians: {medians}.",
        "gradient_errors": f"Differences of AD and FD derivatives beside their bounds. Variants: {panels}.",
        "dot_product": f"Distance of adjoint and tangent in each scenario, by variant: {paired}.",
        "difference_sweep": f"Error of the difference quotient over its width under {best.name}: {swept}.",
    }


def page(results: Results, svgs: Mapping[str, bytes]) -> str:
    """Returns the report as one HTML page.

    - `svgs`: figures by name; those that are missing are left out.
    """
    labels = figure_labels(results) | atlas_figures.labels(results) | fit_figures.labels(results)
    environment = pages()
    environment.filters["points"] = lambda value: f"+{value}" if value > 0 else str(value).replace("-", "−")
    template = environment.get_template(TEMPLATE)
    derivatives, derivatives_left_out = derivative_table(results)
    scenarios, scenarios_left_out = scenario_table(results)
    best = results.best
    detailed = details.page_data(results, [CAUSE_WORDS[name] for name in CAUSES])
    detailed["best"] = results.shown.index(best) if best in results.shown else 0
    return template.render(
        version=__version__,
        r=results,
        best=best,
        contrast=results.contrast,
        # Our own serialisation of a parsed SVG: every text in it is escaped.
        svg={n: Markup(drawing.inline(svgs[n], n, labels[n])) if n in svgs else "" for n in FIGURES},
        outcomes=[(n, drawing.OUTCOME_STYLE[n][0], OUTCOME_MEANING[n]) for n in OUTCOMES],
        verdicts=VERDICTS,
        rows=verdict_table(results),
        shown=[v.name for v in results.shown],
        main_effects=remedies.effect_rows(results, "main"),
        interactions=remedies.effect_rows(results, "interaction"),
        beside=remedies.effect_rows(results, "beside"),
        cures=remedies.cure_rows(results),
        uncured=remedies.without_cure(results),
        advice=remedies.advice(results),
        rescued=any(_rescued(results, i) for i in range(len(results.variants))),
        described=describe(results),
        methods=method_table(results),
        independent=independent_table(results),
        derivatives=derivatives,
        derivatives_left_out=derivatives_left_out,
        steady=steady_table(results),
        failures=failure_table(results),
        scenarios=scenarios,
        scenarios_left_out=scenarios_left_out,
        model=model_told(results),
        details=Markup(_as_script(detailed)),
        n_details=len(detailed["scenarios"]),
        compared=comparison_told(results.comparison),
        bibtex=bibtex(results),
        times=[float(t) for t in best.dynamics["model_time"].values],
        trajectories=figures.shown_trajectories(results),
        stepped=figures.shown_steps(results),
        paired=figures.shown_pairs(results),
        shown_variants=figures.shown_variants(results),
        shown_wrt=len(figures.shown_wrt(best)),
        sweeps=len(figures.shown_sweeps(results)[0]),
        mapped=atlas_figures.mapped_columns(results),
        maps=len(atlas_figures.shown_maps(results)),
        maps_of=len(atlas_figures.mapped_scenarios(results)),
        stiffness_of=len(atlas_figures.plotted_scenarios(results)),
        cause_sets=len(atlas_figures.met_causes(results)),
        most_sets=atlas_figures.MOST_SETS,
        evaluated=atlas_figures.shown_evaluation(results),
        reference=best.methods[figures.reference_method(best)],
        sensitivity=_median(figures.relative(best.bound, best)[:, best.methods.index(best.method)]),
        most_states=figures.MOST_STATES,
        fit=fit_figures.told(results),
        provenance=provenance(results),
        config=study_yaml(results),
        plugin=shown_path(results.settings["study"]["model"].get("plugin")),
    )


def _as_script(data: Any) -> str:
    """Returns data as JSON for inside a script element, where nothing in it can end the element."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def make(results: Results, html: str, svg: Sequence[str], png: Sequence[str]) -> dict[str, int]:
    """Draws the figures, writes them and the page; returns the sizes of the files in bytes, by name.

    - `svg`, `png`: paths; a file's stem is the name of its figure.
    """
    sizes = {}
    svgs = {}
    wanted = {"svg": list(svg), "png": list(png)}
    for name in dict.fromkeys(Path(p).stem for p in (*svg, *png)):
        paths = {form: [p for p in found if Path(p).stem == name] for form, found in wanted.items()}
        for form, content in drawing.render(FIGURES[name], results, [form for form in paths if paths[form]]).items():
            for path in paths[form]:
                write(path, content)
                sizes[Path(path).name] = len(content)
            if form == "svg":
                svgs[name] = content
    content = page(results, svgs).encode()
    write(html, content)
    return {Path(html).name: len(content), **sizes}
