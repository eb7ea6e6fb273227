"""Where two runs diverge first, and why: by replays with one difference removed at a time.

A replay on the reference's steps has removed the choice of steps already. The reference's weights, parameters and
formulation are numbers and names, and can be put in the place of this run's; its plug-in is code, and is not run. What
none of them explains is left to the plug-in, to Retrograd's code or to the environment, whichever differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrograd.agreement import DIFFERENT, IDENTICAL, NOT_COMPARED, PARTS, Weighed, counted, unmeasured
from retrograd.comparing import MOST_TRIED, Comparison
from retrograd.ensemble import starts
from retrograd.runs import Side, shapes
from retrograd.weights import with_arrays

# Settings that a replay depends on beside the steps, and those that ask for other results and change no step.
_REPLAYED = ("formulation", "guard", "solver")
_ASKED = ("gradient", "save_times")
# Quantities over states.
_OF_STATES = ("model.selftest", "steady_state.x_guess", "steady_state.x", "dynamics.x_start", "dynamics.x")
# Where a solve or a search begins: what it is called, and the plug-in's member that says it.
_BEGINNINGS = {
    "steady_state.x_guess": ("first guesses of the steady state", "initial_guess"),
    "dynamics.x_start": ("starts of the dynamics", "initial_state"),
}
# Quantities that are no results but what results are computed from.
_COPIED = {
    "study.scenarios": "the scenarios",
    "study.files": "files and what they say of themselves",
    "study.units": "units",
    "model.weights": "the network's weights",
    "steady_state.parameters": "parameters of the steady phase",
    "dynamics.parameters": "parameters of the dynamic phase",
}
Found = Mapping[tuple[str, str], Weighed]


def first_divergence(comparison: Comparison, found: Found) -> dict[str, Any]:
    """Returns the variables `first_*`: of what is different, or else of what is not equal to the bit."""
    out: dict[str, Any] = {
        "first_stage": "",
        "first_scenario": -1,
        "first_step": -1,
        "first_time": np.nan,
        "first_state": "",
    }
    values = [(key[1], w) for key, w in counted(found).items() if not key[1].endswith(".settings")]
    worst = DIFFERENT if any(w.verdict == DIFFERENT for _, w in values) else None
    diverges = lambda code: code == worst if worst is not None else code not in (IDENTICAL, NOT_COMPARED)
    for stage in PARTS:
        named = [(name, w) for name, w in values if name.split(".")[0] == stage and diverges(w.verdict)]
        if not named:
            continue
        here, of_states = [w for _, w in named], [w for name, w in named if name in _OF_STATES]
        out["first_stage"] = stage
        scenarios = np.flatnonzero(np.any([[diverges(c) for c in w.scenario] for w in here], axis=0))
        if not len(scenarios):
            # Of the model itself: its self-test.
            out["first_state"] = _state(comparison, diverges, [w.codes for w in of_states])
            return out
        row = int(scenarios[0])
        out["first_scenario"] = row
        steps = found.get(("replayed", "dynamics.step_x"))
        if stage == "dynamics" and steps is not None:
            mine = np.flatnonzero(comparison.step_owner == row)
            apart = np.array([_are(diverges, line) for line in steps.codes[mine]]).reshape(len(mine), -1)
            at = np.flatnonzero(apart.any(axis=1))
            if len(at):
                step = int(comparison.step_number[mine[at[0]]])
                out["first_step"] = step
                out["first_time"] = float(comparison.there.records[row].step_time[step])
                out["first_state"] = comparison.states[int(np.argmax(apart[at[0]]))]
                return out
        own = [w.codes[row] for w in of_states if diverges(int(w.scenario[row]))]
        out["first_state"] = _state(comparison, diverges, own)
        return out
    return out


def _state(comparison: Comparison, diverges: Callable[[int], bool], tables: Sequence[np.ndarray]) -> str:
    """Returns the first state that diverges in tables of codes (..., state), empty where there is none."""
    for codes in tables:
        apart = [state for line in codes.reshape(-1, codes.shape[-1]) for state in np.flatnonzero(_are(diverges, line))]
        if apart:
            return comparison.states[apart[0]]
    return ""


def _are(diverges: Callable[[int], bool], codes: np.ndarray) -> np.ndarray:
    return np.array([diverges(int(code)) for code in codes], bool)


def reason(comparison: Comparison, found: Found, items: Sequence[Mapping[str, Any]]) -> str:
    """Returns the likely reason of what is not equal, in a sentence.

    - `items`: what differs in what both runs were made of (`origins.differences`).
    """
    values = {key: w for key, w in counted(found).items() if not key[1].endswith(".settings")}
    verdicts = [w.verdict for w in values.values()]
    if all(v in (IDENTICAL, NOT_COMPARED) for v in verdicts):
        left = f"; only one run has {', '.join(comparison.left_out)}" if comparison.left_out else ""
        return f"no value differs{left}"
    names = lambda origin: [i["name"] for i in items if i["origin"] == origin]
    environment = names("environment")
    elsewhere = f"the environment ({', '.join(environment)})" if environment else ""
    if DIFFERENT not in [w.verdict for w in found.values()]:
        made = ", ".join(filter(None, [elsewhere, "Retrograd's code" if names("code") else ""]))
        return f"rounding: {made or 'the same computation, whose rounding is not the same from run to run'}"
    parts = []
    if found_exchanged := exchanged(comparison):
        parts.append(found_exchanged)
    copied = _copied(found)
    begun = [] if copied else _begun(comparison, found, names("inputs"))
    parts += [*copied, *begun]
    replayed, asked, settings = _apart(comparison)
    computed = {key: w for key, w in values.items() if key[1] not in _COPIED}
    if DIFFERENT in [w.verdict for (kind, _), w in computed.items() if kind == "replayed"]:
        parts.append(_traced(comparison, names))
        parts += [f"settings differ: {', '.join(settings)}"] if settings else []
    else:
        explained = bool(begun or asked) or "study.files" in [
            n for (_, n), w in values.items() if w.verdict == DIFFERENT
        ]
        if settings or (DIFFERENT in [w.verdict for w in computed.values()] and not explained):
            chosen = f"settings that choose them differ: {', '.join(settings)}" if settings else elsewhere
            parts.append(
                "on the reference's steps only rounding is left, so it is the choice of steps"
                + (f": {chosen}" if chosen else "")
            )
        if replayed:
            parts.append(
                f"settings differ, which on the reference's steps changes rounding only: {', '.join(replayed)}"
            )
    if asked:
        parts.append(f"other results were asked for: {', '.join(asked)}")
    none = "no value that is computed differs by more than rounding or the choice of steps explain"
    return "; ".join(filter(None, parts)) or none


def _apart(comparison: Comparison) -> tuple[list[str], list[str], list[str]]:
    """Returns the settings that differ: those of a replay, those that ask for other results, and all others."""
    c = comparison
    apart = dict.fromkeys(key for stage in c.here.files for key in c.settings(stage)[1])
    rescued = any(np.any(s.of(stage, "rung")) for s in (c.here, c.there) for stage in s.files if stage != "gradients")
    out: tuple[list[str], list[str], list[str]] = [], [], []
    for key in apart:
        first = key.removeprefix("find.").split(".")[0]
        # A ladder that nobody went up changed nothing.
        if first != "rescue" or rescued:
            out[0 if first in _REPLAYED else 1 if first in _ASKED else 2].append(key)
    return out


def _begun(comparison: Comparison, found: Found, inputs: Sequence[str]) -> list[str]:
    """Returns sentences on other starts and first guesses, where nothing that they are computed from is another one."""
    out = []
    rest = found.get(("free", "steady_state.x"))
    for name, (words, said_by) in _BEGINNINGS.items():
        w = found.get(("free", name))
        if w is None or w.verdict != DIFFERENT:
            continue
        columns = ["columns x0:STATE of the scenario table"] if "scenarios" in inputs else []
        if name == "dynamics.x_start" and rest is not None:
            if rest.verdict == DIFFERENT:
                # Another steady state is another start.
                continue
            said_by, columns = "start_of_dynamics", []
        by = ([f"the plug-in's {said_by}"] if "plugin" in inputs else []) + columns
        out.append(f"{words} differ ({w.values['where']})" + (f": {' or '.join(by)}" if by else ""))
    return out


def _copied(found: Found) -> list[str]:
    out = []
    for name, words in _COPIED.items():
        w = found.get(("free", name))
        if w is not None and w.verdict == DIFFERENT:
            count = w.values["n_values"] - w.values["n_equal"]
            such = "" if name.startswith("study.") else f"{count} of them, such as "
            out.append(f"{words} differ ({such}{w.values['where']})")
    return out


def exchanged(comparison: Comparison) -> str:
    """Returns which two scenarios have each other's parameters, empty where none have."""
    mine, theirs = (_parameters(s) for s in (comparison.here, comparison.there))
    rows = np.flatnonzero(np.any(mine != theirs, axis=1))
    # By what each scenario has here and there: no search through all pairs of a large study.
    pairs = {(tuple(mine[i]), tuple(theirs[i])): i for i in rows}
    for i in rows:
        j = pairs.get((tuple(theirs[i]), tuple(mine[i])))
        if j is not None:
            return f"scenarios {comparison.chunk.ids[i]} and {comparison.chunk.ids[j]} are exchanged"
    return ""


def _parameters(side: Side) -> np.ndarray:
    stages = [s for s in ("steady_state", "dynamics") if s in side.files]
    return np.concatenate([side.of(s, "k") for s in stages], axis=1)


def _traced(comparison: Comparison, names: Callable[[str], list[str]]) -> str:
    """Returns what a replay with one difference less is like: the sentence on what is left beside rounding."""
    differs = {
        "weights": _weights_differ(comparison),
        "parameters": bool(np.any(_parameters(comparison.here) != _parameters(comparison.there))),
    }
    theirs = comparison.their_options
    settings = {k: theirs[k] for k in _REPLAYED if theirs[k] != comparison.options[k]}
    differs |= dict.fromkeys(settings, True)
    can = [name for name, there in differs.items() if there]
    words = {"weights": "the reference's weights", "parameters": "the reference's parameters"}
    words |= {k: f"the reference's {k} ({v})" for k, v in settings.items()}
    for name in can:
        if excess(comparison, [name], settings) <= 1:
            return f"with {words[name]} the replay differs by rounding only"
    if len(can) > 1 and excess(comparison, can, settings) <= 1:
        return f"with {' and '.join(words[n] for n in can)} the replay differs by rounding only"
    left = []
    if "plugin" in names("inputs"):
        left.append("the plug-in (its vector field, residual_scale, start_of_dynamics or loss)")
    if not left and names("code"):
        left.append("Retrograd's code")
    if not left and names("environment"):
        left.append(f"the environment ({', '.join(names('environment'))})")
    tried = f"also with {' and '.join(words[n] for n in can)} " if can else ""
    return (
        f"{tried}on the reference's steps more than rounding is left: {' or '.join(left) or 'values that were changed'}"
    )


def _weights_differ(comparison: Comparison) -> bool:
    a, b = comparison.here.run.weights, comparison.there.run.weights
    return shapes(a) == shapes(b) and any(not np.array_equal(a[n], b[n]) for n in a)


def excess(comparison: Comparison, removed: Sequence[str], settings: Mapping[str, Any]) -> float:
    """Returns the largest difference of a replay from the reference over what rounding explains.

    - `removed`: what is taken from the reference: weights, parameters, or names of `settings`.
    """
    c = comparison
    rows = np.flatnonzero(c.chosen)
    with np.errstate(all="ignore"):
        apart = np.abs(c.values["x"] - c.there.of("dynamics", "x")[:, c.at_there])
        ratio = apart / (c.limit("x") + 1e-300)
        worst = np.max(np.where(np.isnan(ratio), np.inf, ratio), axis=(1, 2), initial=0)
    rows = rows[np.argsort(-worst[rows], kind="stable")][:MOST_TRIED]
    model = with_arrays(c.model, c.there.run.weights) if "weights" in removed else c.model
    options = {**c.options, **{k: settings[k] for k in removed if k in settings}}
    k_dynamic, k_steady = c.chunk.k_dynamic, c.chunk.k_steady
    if "parameters" in removed:
        k_dynamic = c.there.of("dynamics", "k")
        k_steady = c.there.of("steady_state", "k") if "steady_state" in c.there.files else k_dynamic
    most = 0.0
    for part, rungs in c.groups(rows):
        problem = c.problem(rungs, model, options)
        data = c.recorded(part, k_dynamic, k_steady)
        found, _ = problem.replay(data)
        pairs = [(found["rows"][:, c.at_here], c.there.of("dynamics", "x")[part][:, c.at_there], "x")]
        if c.same_times:
            pairs.append((found["loss"], c.there.of("gradients", "loss")[part], "loss"))
        if problem.steady is not None:
            begun = starts(problem, model, data)
            pairs.append((begun["steady_x"], c.there.of("steady_state", "x")[part], "steady_x"))
            pairs.append((begun["x_start"], c.there.of("dynamics", "x_start")[part], "x_start"))
        for mine, theirs, name in pairs:
            slack = c.inner(theirs, part) if name == "x" else 0
            with np.errstate(all="ignore"):
                ratio = np.abs(mine - theirs) / (c.limit(name)[part] + slack + unmeasured(theirs, c.dtype))
            most = max(most, float(np.nanmax(np.where(np.isnan(mine) & np.isnan(theirs), 0, ratio), initial=0)))
    return most
