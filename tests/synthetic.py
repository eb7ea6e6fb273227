"""A small study of any outcomes, written as the rules write it: files that plots and pages are made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from retrograd import store
from retrograd.provenance import file_digest
from retrograd.results import Results, load
from retrograd.scenarios import Table
from retrograd.schema import (
    CAUSES,
    DYNAMICS,
    FIT,
    GRADIENTS,
    MODEL,
    OUTCOMES,
    REASONS,
    STEADY_STATE,
    SUMMARY,
    VERDICTS,
    Schema,
)

VERDICT_OF = {
    "verified": "verified",
    "gradient_nonfinite": "nonfinite",
    "gradient_refuted": "refuted",
    "inconclusive": "inconclusive",
}
REASON_OF = {
    "verified": "agrees",
    "gradient_nonfinite": "derivative_nonfinite",
    "gradient_refuted": "differs",
    "inconclusive": "kink",
}
CAUSE_OF = {
    "verified": "none",
    "forward_failed": "steps_exhausted",
    "gradient_nonfinite": "nonfinite_gradient",
    "gradient_refuted": "gradient_differs",
    "inconclusive": "check_too_coarse",
    "steady_state_failed": "steady_state_not_found",
}


def variant_settings(precision: str = "float64", steady: bool = True) -> dict[str, Any]:
    dynamics = {
        "precision": precision,
        "formulation": "stable",
        "guard": None,
        "solver": "Kvaerno5",
        "nonlinear": {"method": "newton", "rtol": None, "atol": None},
        "controller": {"rtol": 1e-6, "atol": 1e-8, "dtmax": None},
        "segments": None,
        "max_steps": 64,
        "save_times": [0.0, 1.0, 2.0],
        "start": "steady_state" if steady else "initial_state",
    }
    stages = {"dynamics": dynamics, "gradients": dynamics | {"steady_state": None, "gradient": {}}}
    return stages | ({"steady_state": {"steady_state": {"method": "root", "rtol": 1e-10}}} if steady else {})


def study(
    folder: Path,
    outcomes: dict[str, list[str]],
    *,
    ids: list[str] | None = None,
    wrt: tuple[str, ...] = ("k1@dynamic", "k1@steady", "network[0]"),
    methods: tuple[str, ...] = ("replay", "forward", "checkpoint"),
    steady: bool = True,
    name: str = "tiny",
    states: tuple[str, ...] = ("x0", "x1"),
    units: tuple[str, ...] = ("1", "1"),
) -> Results:
    """Writes a study's files with the outcomes asked for, by variant; returns them as the rule loads them."""
    rng = np.random.default_rng(0)
    total, n = len(next(iter(outcomes.values()))), len(states)
    table = tuple((float(i % 3), float(i // 3)) for i in range(total))
    ids = ids or [f"s{i:02d}" for i in range(total)]
    times = [0.0, 1.0, 2.0]
    model_time = {"model_time": (times, "s", "model time")}
    ds = store.build(
        MODEL,
        {
            "selftest_input": np.zeros((1, n)),
            # Of the second state the formula is too long.
            "equation": [
                rf"\frac{{\mathrm{{d}} y_{{{i}}}}}{{\mathrm{{d}} t}} = - k_{{1}} y_{{{i}}}" * (i != 1) for i in range(n)
            ],
        },
        {"selftest": ["t0"], "state": list(states), "parameter": ["k1"]},
    )
    ds.attrs |= {"n_weights": 17, "model_class": "Tiny", "parameters": json.dumps({"k1": "1"})}
    ds.attrs |= {"description": "A model for tests.\n\nIt decays.", "vector_field": "return -k1 * x <here>"}
    ds.attrs |= {"networks": json.dumps({"f": "MLP, 2 → 4 → 1, tanh, 17 weights"}), "structure": "Tiny()"}
    ds.attrs |= {"weights_sha256": "d" * 64}
    store.write(ds, folder / "model.nc", MODEL, store.Provenance())
    named = {"plugin": "a" * 64, "model": file_digest(folder / "model.nc"), "scenarios": "b" * 64}
    stages = dict[str, str]()
    rows: list[dict[str, np.ndarray]] = []
    for variant, ends in outcomes.items():
        solved = np.array([e not in ("forward_failed", "steady_state_failed") for e in ends])
        simulated = np.array([e != "steady_state_failed" for e in ends])
        counts = np.where(simulated, 4 + np.arange(total) % 5, 0)
        rejected = np.where(simulated, np.arange(total) % 3, 0)
        step_time, starts, stops, accepted = [], [], [], []
        for count, no in zip(counts, rejected, strict=True):
            edges = np.concatenate([[0.0], np.geomspace(1e-6, 2.0, count)]) if count else np.zeros(1)
            step_time += list(edges[1:])
            starts += [*edges[:-1], *([edges[-2]] * no if count else [])]
            stops += [*edges[1:], *([edges[-1]] * no if count else [])]
            accepted += [1] * int(count) + [0] * int(no if count else 0)
        x = np.where(solved[:, None, None], rng.standard_normal((total, 3, n)), np.nan)
        finite = np.array(accepted, int)
        ds = store.build(
            DYNAMICS,
            {
                "k": table,
                "x": x,
                "x_start": np.where(simulated[:, None], 1.0, np.nan) * np.ones(n),
                "status": np.where(solved, 0, np.where(simulated, 1, 4)),
                "rung_name": np.array(["none"] * (total - 1) + ["more_steps"], object),
                "num_accepted": counts,
                "num_rejected": rejected,
                "step_count": counts,
                "step_time": step_time,
                "step_x": rng.standard_normal((len(step_time), n)),
                "attempt_count": counts + rejected,
                "attempt_start": starts,
                "attempt_end": stops,
                "attempt_accepted": accepted,
                "attempt_error": np.where(finite == 1, 0.5, np.nan),
                "attempt_finite": finite,
            },
            {"scenario": ids, "state": list(states), "parameter": ["k1", "k2"]},
            units={"state": list(units), "time": "s"},
            coords=model_time,
        )
        values = {
            "k": table,
            "x": np.ones((total, n)),
            "residual_norm": np.full(total, 1e-15),
            "status": np.where(simulated, 0, 2),
            "method": np.zeros(total),
            "rung_name": np.array(["none"] * total, object),
            "iterations": np.full(total, 5),
            "max_real_eigenvalue": np.full(total, -1.0),
        }
        found = store.build(
            STEADY_STATE,
            values,
            {"scenario": ids, "state": list(states), "parameter": ["k1", "k2"]},
            units={"state": list(units), "time": "s"},
        )
        settings, before = variant_settings(steady=steady), dict[str, str]()

        def keep(ds: xr.Dataset, schema: Schema, variant: str = variant, settings=settings, before=before) -> None:
            """Writes a stage, which names its settings and the stages before it."""
            config = {"study": name, "variant": variant, "class": "Tiny", **settings[schema.name]}
            here = store.Provenance(config, named | before, "c" * 64, {"jax": "1", "threads": 1})
            store.write(ds, folder / variant / f"{schema.name}.nc", schema, here)
            before[schema.name] = file_digest(folder / variant / f"{schema.name}.nc")
            stages[f"{variant}/{schema.name}"] = before[schema.name]

        if steady:
            keep(found, STEADY_STATE)
        keep(ds, DYNAMICS)
        shape = (total, len(methods), len(wrt))
        fd = np.where(solved[:, None], 1.0 + np.arange(len(wrt)), np.nan)
        fd[:, 1:2] = np.where(solved[:, None], 0.0, np.nan)
        codes = np.array([VERDICTS.index(VERDICT_OF.get(e, "skipped")) for e in ends], np.int8)
        broken = np.array([e == "gradient_nonfinite" for e in ends])
        off = np.array([1e-3 if e == "gradient_refuted" else 0.0 for e in ends])
        ad = np.where(broken[:, None, None], np.nan, fd[:, None, :] + off[:, None, None]) * np.ones(shape)
        width = np.where(solved[:, None, None], 0.03 / 4.0 ** np.arange(8), np.nan) * np.ones((total, len(wrt), 8))
        ds = store.build(
            GRADIENTS,
            {
                "loss": np.where(solved, 1.0, np.nan),
                "ad": ad,
                "ad_error": np.where(solved[:, None, None], 1e-12, np.nan) * np.ones(shape),
                "ode_error": np.where(np.isfinite(fd), 1e-4, np.nan),
                # One scenario, one derivative of which lies off.
                "reference": np.where(np.arange(total)[:, None] == 0, fd + 5e-5 + (np.arange(len(wrt)) == 2), np.nan),
                "reference_error": np.where(np.arange(total)[:, None] == 0, 1e-6, np.nan) * np.ones(fd.shape),
                "fd_free": np.full(fd.shape, np.nan),
                "fd_free_error": np.full(fd.shape, np.nan),
                "fd": fd,
                "fd_error": np.where(np.isfinite(fd), 1e-9, np.nan),
                "fd_step": np.where(np.isfinite(fd), 1e-3, np.nan),
                "fd_sweep_width": width,
                "fd_sweep": fd[:, :, None] + width**2,
                "verdict": codes[:, None, None] * np.ones(shape, np.int8),
                "reason": np.array([REASONS.index(REASON_OF.get(e, "not_formed")) for e in ends])[:, None, None]
                * np.ones(shape, np.int8),
                "status": codes[:, None] * np.ones((total, len(methods)), np.int8),
            },
            {
                "scenario": ids,
                "method": list(methods),
                "width": [f"width{i}" for i in range(8)],
                # A dimension without entries has no labels: netCDF has no empty list of texts.
                **({"wrt": list(wrt)} if wrt else {}),
            },
        )
        keep(ds, GRADIENTS)
        rows.append(
            {
                "outcome": np.array([OUTCOMES.index(e) for e in ends]),
                "rung": np.where(np.arange(total) == total - 1, 1, 0),
                "steady_state_rung": np.zeros(total),
                "ode_digits": np.where(solved, 4.5, np.nan),
                "num_accepted": counts,
                "num_rejected": rejected,
                "cause": np.array([CAUSES.index(CAUSE_OF[e]) for e in ends]),
                "cause_time": np.where(solved, np.nan, 0.5),
                "cause_state": np.where(solved, -1, 0),
                "cause_term": np.full(total, -1),
                "cause_text": np.where(solved, "", "as told by the stage").astype(object),
            }
        )
    ds = store.build(
        SUMMARY,
        {key: np.stack([row[key] for row in rows]) for key in rows[0]},
        {"variant": list(outcomes), "scenario": ids},
        units={"time": "s"},
    )
    config = {
        "study": name,
        "start": "steady_state" if steady else "initial_state",
        "variants": [{"name": v, "gradient": methods[0]} for v in outcomes],
    }
    store.write(ds, folder / "summary.nc", SUMMARY, store.Provenance(config, stages))
    settings = {
        "study": {
            "study": name,
            "model": {"plugin": "/home/someone/models/tiny.py", "class": "Tiny", "weights": None},
            "scenarios": "/home/someone/tiny.tsv",
        },
        # In the order of canonical JSON, as the rule gets it.
        "resolved": {v: variant_settings(steady=steady) for v in sorted(outcomes)},
        "gradient_of": dict.fromkeys(outcomes, methods[0]),
        "stages": [*(["steady_state"] if steady else []), "dynamics", "gradients"],
    }
    results = load(folder, settings, str(folder / "model.nc"), str(folder / "summary.nc"))
    # Not by a file: names of scenarios that a table would refuse are tested too.
    return dataclasses.replace(results, table=Table(tuple(ids), ("k1", "k2"), table))


MIXED = {
    "recommended": ["verified"] * 7,
    "naive": [
        "verified",
        "forward_failed",
        "forward_failed",
        "gradient_nonfinite",
        "gradient_refuted",
        "inconclusive",
        "steady_state_failed",
    ],
}


def measured(observables: int, experiments: int, samples: int) -> xr.Dataset:
    """Returns a fit of much: values over decades, some not simulated, some at rest."""
    rng = np.random.default_rng(0)
    grid = [(o, e, t) for o in range(observables) for e in range(experiments) for t in (0.0, 1.0, np.nan)]
    simulation = np.array([10.0 ** (o % 4) * (1 + e) for o, e, _ in grid]) * np.ones((samples, 1))
    simulation[:, 0] = np.nan
    value = np.nan_to_num(simulation[0], nan=1.0) * np.exp(0.1 * rng.standard_normal(len(grid)))
    noise = np.abs(0.1 * simulation)
    lost = np.arange(samples) % 2 == 1
    shape = (samples, 3)
    return store.build(
        FIT,
        {
            "llh": np.where(lost, np.nan, -12.345678),
            "llh_error": np.where(lost, np.nan, 1e-3),
            "status": lost,
            "observable_name": [f"observable {o}" for o, _, _ in grid],
            "experiment_name": [f"experiment {e}" for _, e, _ in grid],
            "measurement_time": [t for *_, t in grid],
            "measured": value,
            "simulation": simulation,
            "noise": noise,
            "residual": (value - simulation) / noise,
            "verdict": np.full(shape, VERDICTS.index("verified")),
        },
        {"sample": [f"p{i}" for i in range(samples)], "method": ["replay", "forward", "checkpoint"]},
        units={"time": "s"},
    )
