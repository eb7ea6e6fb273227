"""The rescue ladder: what is tried, in order, where a steady state or a simulation fails.

A rung is a variant's settings with some of them changed. Each built-in one answers one cause of failure. Parsed with
the Snakefile: standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Settings = Mapping[str, Any]

# Beyond any state of a model that is in sensible units, with an exponential that is still finite.
X_MAX = 500.0


def _times(factor: int, s: Settings) -> int:
    return min(factor * s["max_steps"], 2**31 - 1)


def _more_steps(s: Settings, stop: float) -> dict[str, Any]:
    return {"max_steps": _times(16, s), "steady_state": {"max_steps": _times(16, s["steady_state"])}}


def _small_first_step(s: Settings, stop: float) -> dict[str, Any]:
    return {"controller": {"dt0": 1e-12 * stop}}


def _full_newton(s: Settings, stop: float) -> dict[str, Any]:
    return {"nonlinear": {"method": "newton"}}


def _other_solver(s: Settings, stop: float) -> dict[str, Any]:
    other = "Kvaerno5" if s["solver"] in ("Kvaerno3", "Rodas5P") else "Kvaerno3"
    return {"solver": other, "nonlinear": {"method": "newton"}}


def _short_steps(s: Settings, stop: float) -> dict[str, Any]:
    # Twenty steps at least in the first millionth of the time, and in each decade after it.
    ends = [stop * 10.0**-i for i in range(6, 0, -1)]
    stages = [{"until": end, "dtmax": end / 20} for end in ends] + [{"until": stop, "dtmax": stop / 20}]
    return {"segments": stages, "max_steps": _times(4, s)}


def _tighter_tolerances(s: Settings, stop: float) -> dict[str, Any]:
    c = s["controller"]
    return {"controller": {name: 1e-2 * c[name] for name in ("rtol", "atol")}, "max_steps": _times(4, s)}


def _looser_tolerances(s: Settings, stop: float) -> dict[str, Any]:
    larger = lambda part, most: {"rtol": min(100 * part["rtol"], most), "atol": 100 * part["atol"]}
    return {"controller": larger(s["controller"], 1e-2), "steady_state": larger(s["steady_state"], 1e-4)}


def _bounded_state(s: Settings, stop: float) -> dict[str, Any]:
    return {"guard": s["guard"] or {"x_max": X_MAX, "dx_fill": 1e30}}


def _other_start(s: Settings, stop: float) -> dict[str, Any]:
    return {"steady_state": {"starts": 16}}


RUNGS = {
    "full_newton": _full_newton,
    "more_steps": _more_steps,
    "small_first_step": _small_first_step,
    "other_solver": _other_solver,
    "short_steps": _short_steps,
    "bounded_state": _bounded_state,
    "other_start": _other_start,
    "tighter_tolerances": _tighter_tolerances,
    "looser_tolerances": _looser_tolerances,
}


def changed(settings: Settings, changes: Settings) -> dict[str, Any]:
    """Returns settings with changes; those of a mapping in it are changed key by key."""
    out = dict(settings)
    for key, value in changes.items():
        old = out.get(key)
        out[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def dotted(settings: Settings) -> dict[str, Any]:
    """Returns settings with those of a mapping in it under dotted keys; a guard is one setting."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        parts = isinstance(value, Mapping) and key != "guard"
        out |= {f"{key}.{part}": v for part, v in value.items()} if parts else {key: value}
    return out


def ladder(settings: Settings, stop: float) -> list[tuple[str, dict[str, Any]]]:
    """Returns name and settings of each rung of a variant, in order.

    - `settings`: the variant's, plain data; `rescue` in it holds names of built-in rungs and mappings with a name.
    - `stop`: the last save time [time unit of the model].
    """
    base = {key: value for key, value in settings.items() if key != "rescue"}
    rungs = []
    for entry in settings["rescue"]:
        if isinstance(entry, str):
            name, changes = entry, RUNGS[entry](base, stop)
        else:
            name, changes = entry["name"], {key: value for key, value in entry.items() if key != "name"}
        rungs.append((name, changed(base, changes)))
    return rungs


def rung_names(options: Settings) -> list[str]:
    """Returns the names of a stage's rungs by their number; that of 0 is `none`."""
    return ["none", *(rung["name"] for rung in options["rescue"])]


def on_rung(options: Settings, rung: int) -> dict[str, Any]:
    """Returns a stage's settings as a rung changes them."""
    return {**options, **(options["rescue"][rung - 1]["settings"] if rung else {})}


def rungs(options: Settings) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number and settings of the rungs that are something new for a stage."""
    for number, rung in enumerate(options["rescue"], 1):
        if rung["settings"] is not None:
            yield number, on_rung(options, number)
