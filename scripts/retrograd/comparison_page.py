"""The page of a comparison: its verdict, what the runs were made of, and how far each quantity is apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from retrograd import __version__, store
from retrograd.agreement import DIFFERENT, IDENTICAL, NOT_COMPARED
from retrograd.comparison import overall
from retrograd.pages import pages
from retrograd.schema import AGREEMENT, KINDS, ORIGINS

# Of each verdict: its words, those in a table, and what it says.
WORDS = {
    "identical": ("identical to the bit", "identical", "Every value that was compared is the same to the last bit."),
    "equivalent_rounding": (
        "equivalent (within rounding)",
        "rounding",
        "What differs is within what rounding does to the values, by perturbed replays.",
    ),
    "equivalent_solver_error": (
        "equivalent (within solver error)",
        "solver error",
        "What differs is within what the solver’s tolerance leaves open, by replays on steps half as long.",
    ),
    "not_comparable": (
        "not comparable pointwise",
        "not comparable",
        "Rounding, or the choice of steps, can change these values as much as they are large: that they agree or not "
        "says nothing.",
    ),
    "different": (
        "different",
        "different",
        "Something differs by more than rounding and the choice of steps explain, or went in differently.",
    ),
    "not_compared": ("not compared", "not compared", "Nothing was there to be compared."),
}


def in_words(code: int) -> tuple[str, str, str]:
    """Returns a verdict's words, those in a table, and what it says."""
    return WORDS[AGREEMENT[code]]


def page(study: str, ds: xr.Dataset, digest: str) -> str:
    """Returns the comparison as one HTML page.

    - `ds`: `comparison.nc`.
    - `digest`: of the reference.
    """
    verdict = overall(ds)
    variants = variant_rows(ds)
    return (
        pages()
        .get_template("comparison.html.j2")
        .render(
            version=__version__,
            study=study,
            digest=digest,
            verdict=in_words(verdict)[0],
            meaning=in_words(verdict)[2],
            bad=verdict == DIFFERENT,
            items=item_rows(ds),
            variants=variants,
        )
    )


def told(ds: xr.Dataset | None) -> dict[str, Any] | None:
    """Returns what the report says of a comparison: its verdict, and a row for each variant; None without one."""
    if ds is None:
        return None
    verdict = overall(ds)
    words = {"verdict": in_words(verdict)[0], "meaning": in_words(verdict)[2], "bad": verdict == DIFFERENT}
    return words | {"variants": variant_rows(ds), "differing": item_rows(ds)}


def item_rows(ds: xr.Dataset) -> list[dict[str, str]]:
    """Returns what differs in what the runs were made of, one row each."""
    if "item_name" not in ds.coords:
        return []
    return [
        {
            "origin": ORIGINS[int(ds["item_origin"].values[i])],
            "name": name,
            "here": str(ds["item_here"].values[i]),
            "there": str(ds["item_there"].values[i]),
            "variants": str(ds["item_variants"].values[i]),
        }
        for i, name in enumerate(store.labels(ds, "item"))
    ]


def variant_rows(ds: xr.Dataset) -> list[dict[str, Any]]:
    """Returns the verdict on each variant, with a row for each of its quantities."""
    out = []
    for v, name in enumerate(store.labels(ds, "variant")):
        code = int(ds["variant_verdict"].values[v])
        quantities = []
        for q, quantity in enumerate(store.labels(ds, "quantity")):
            for k, kind in enumerate(KINDS):
                at = (v, k, q)
                found = int(ds["verdict"].values[at])
                if found == NOT_COMPARED:
                    continue
                row = {n: ds[n].values[at] for n in _MEASURES}
                quantities.append(
                    {"name": quantity, "kind": kind, "short": in_words(found)[1]}
                    | {"bad": found == DIFFERENT, "same": found == IDENTICAL}
                    | row
                )
        out.append(
            {
                "name": name,
                "verdict": in_words(code)[0],
                "bad": code == DIFFERENT,
                "reason": str(ds["reason"].values[v]),
                "first": first_in_words(ds, v),
                "n_replayed": int(ds["n_replayed"].values[v]),
                "quantities": quantities,
            }
        )
    return out


_MEASURES = (
    *("n_values", "n_equal", "max_ulp", "max_relative", "max_tolerance", "over_rounding", "over_limit"),
    *("detection_limit", "where"),
)


def first_in_words(ds: xr.Dataset, variant: int) -> str:
    """Returns where a variant diverges first, empty where it does not."""
    value = lambda name: ds[name].values[variant]
    stage = str(value("first_stage"))
    if not stage:
        return ""
    parts = [stage]
    if (row := int(value("first_scenario"))) >= 0:
        parts.append(f"scenario {store.labels(ds, 'scenario')[row]}")
    if (step := int(value("first_step"))) >= 0:
        parts.append(f"step {step} (t = {float(value('first_time')):.6g})")
    if state := str(value("first_state")):
        parts.append(f"state {state}")
    return ", ".join(parts)


def lines(ds: xr.Dataset) -> list[str]:
    """Returns the verdict for the terminal: what differs first, then each variant, then each difference."""
    out = [f"verdict: {in_words(overall(ds))[0]}"]
    for item in item_rows(ds):
        short = lambda text: text if len(text) <= 60 else f"{text[:12]}…" if _is_digest(text) else f"{text[:57]}…"
        out.append(f"{item['origin']}: {item['name']} is {short(item['here'])} here, {short(item['there'])} there")
    for row in variant_rows(ds):
        first = f", first in {row['first']}" if row["first"] else ""
        out.append(f"{row['name']}: {row['verdict']}{first}; {row['reason']}")
        for quantity in row["quantities"]:
            if quantity["bad"]:
                over = quantity["over_limit"]
                by = f" by {over:.3g} times its limit" if np.isfinite(over) else ""
                out.append(f"  {quantity['kind']} {quantity['name']} is different{by}: {quantity['where']}")
    return out


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
