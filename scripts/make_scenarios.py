"""Writes the scenario files of the three models under config/models. No random numbers: same bytes anywhere.

    python scripts/make_scenarios.py
    python scripts/make_scenarios.py --scale 100_000

The second one writes scale.tsv only, which is too large to be kept: that of config/studies/scale.yaml.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

SCENARIOS = Path(__file__).resolve().parent.parent / "config" / "scenarios"

# k2 and k4 in the steady and in the dynamic phase. The regulator's levels span both flat ends of the
# promoter: at -8 it is unrepressed, at 3 only the leak is left.
SWITCHES = {
    "derepress": {"k2@steady": 0.0, "k2@dynamic": 0.0, "k4@steady": 3.0, "k4@dynamic": -8.0},
    "repress": {"k2@steady": 0.0, "k2@dynamic": 0.0, "k4@steady": -8.0, "k4@dynamic": 3.0},
    "knockdown": {"k2@steady": 0.0, "k2@dynamic": 2.0, "k4@steady": 0.5, "k4@dynamic": 0.5},
    "both": {"k2@steady": 1.5, "k2@dynamic": -0.5, "k4@steady": 1.0, "k4@dynamic": -1.0},
}

TEXTBOOK = (0.04, 3.0e7, 1.0e4)

# Factors on the textbook constants k1, k2, k3.
ROBERTSON = {
    "textbook": (1.0, 1.0, 1.0),
    "k1_x0.1": (0.1, 1.0, 1.0),
    "k1_x10": (10.0, 1.0, 1.0),
    "k2_x0.01": (1.0, 0.01, 1.0),
    "k2_x100": (1.0, 100.0, 1.0),
    "k3_x0.01": (1.0, 1.0, 0.01),
    "k3_x100": (1.0, 1.0, 100.0),
    "all_x0.1": (0.1, 0.1, 0.1),
    "all_x10": (10.0, 10.0, 10.0),
    "mild": (1.0, 0.01, 0.01),
    "stiff": (1.0, 1.0e3, 100.0),
    "stiff_slow": (0.01, 1.0e3, 10.0),
}


def turnover() -> tuple[list[str], list[dict[str, str]]]:
    """Returns comments and rows: 4 rates of the target, 6 of the regulator, 4 switches."""
    comments = [
        "Turnover model (config/models/turnover.py): from mild to very stiff.",
        "k1, k3: ln of the turnover rates of target and regulator in 1/s, shared by both phases.",
        "k2: ln of the cut in the target's production. k4: ln of the regulator's level over its K_d.",
        "derepress: the regulator vanishes. repress: it appears. knockdown: production is cut alone.",
        "both: the cut turns into a boost while the regulator falls.",
    ]
    rows = []
    for k1, k3, (name, levels) in product((-5, 2, 8, 15), (-5, 0, 5, 10, 15, 20), SWITCHES.items()):
        row = {"scenario": f"k1={k1:+03d}_k3={k3:+03d}_{name}", "k1": str(k1), "k3": str(k3)}
        rows.append(row | {column: str(value) for column, value in levels.items()})
    return comments, rows


def atlas() -> tuple[list[str], list[dict[str, str]]]:
    """Returns comments and rows: 5 rates of the target, 6 of the regulator, both switched."""
    comments = [
        "Turnover model (config/models/turnover.py): a map over both turnover rates, from mild to very stiff.",
        "k1, k3: ln of the turnover rates of target and regulator in 1/s, shared by both phases.",
        "k2, k4: as under `both` in turnover.tsv.",
    ]
    rows = []
    for k1, k3 in product((-5, 0, 5, 10, 15), (-5, 0, 5, 10, 15, 20)):
        row = {"scenario": f"k1={k1:+03d}_k3={k3:+03d}", "k1": str(k1), "k3": str(k3)}
        rows.append(row | {column: str(value) for column, value in SWITCHES["both"].items()})
    return comments, rows


def stiff_grid() -> tuple[list[str], list[dict[str, str]]]:
    """Returns comments and rows: 5 rates of the target, 6 of the regulator, 3 levels of p2."""
    comments = [
        "Stiff grid (config/models/stiff_grid.py): the turnover system with f = p2 - x1, no network.",
        "k1, k3: ln of the turnover rates of target and regulator in 1/s.",
    ]
    rows = []
    for k1, k3, p2 in product((-5, 0, 5, 10, 15), (-5, 0, 5, 10, 15, 20), (-10, 0, 10)):
        name = f"k1={k1:+03d}_k3={k3:+03d}_p2={p2:+03d}"
        values = {"p2": str(p2), "k1": str(k1), "k2": "0", "k3": str(k3), "k4": "-3.2617188"}
        rows.append({"scenario": name} | values)
    return comments, rows


def robertson() -> tuple[list[str], list[dict[str, str]]]:
    """Returns comments and rows: the textbook constants and eleven variations by powers of ten."""
    comments = [
        "Robertson's kinetics (config/models/robertson.py): k1, k2, k3 in 1/s.",
        "Names say the factor on the textbook constants 0.04, 3e7, 1e4.",
    ]
    rows = []
    for name, factors in ROBERTSON.items():
        values = [f"{value * factor:.6g}" for value, factor in zip(TEXTBOOK, factors, strict=True)]
        rows.append({"scenario": name} | dict(zip(("k1", "k2", "k3"), values, strict=True)))
    return comments, rows


def speed() -> tuple[list[str], list[dict[str, str]]]:
    """Returns comments and rows: 256 points spread evenly over both turnover rates, under each switch in turn."""
    comments = [
        "Turnover model (config/models/turnover.py): 256 mixed stiffnesses, on which speed is compared.",
        "k1, k3: ln of the turnover rates of target and regulator in 1/s. k2, k4: as in turnover.tsv.",
    ]
    rows, levels = [], list(SWITCHES.values())
    for i in range(256):
        k1, k3 = (-5 + width * share for width, share in zip((20, 25), spread(i, 0.7549, 0.5698), strict=True))
        row = {"scenario": f"s{i:03d}", "k1": f"{k1:.3f}", "k3": f"{k3:.3f}"}
        rows.append(row | {column: str(value) for column, value in levels[i % len(levels)].items()})
    return comments, rows


def scale(count: int) -> tuple[list[str], list[dict[str, str]]]:
    """Returns comments and rows: `count` points spread evenly over both turnover rates, none very stiff."""
    comments = [
        f"Stiff grid (config/models/stiff_grid.py): {count} mild points, to see what a large study costs.",
        "k1, k3: ln of the turnover rates of target and regulator in 1/s.",
    ]
    rows = []
    for i in range(count):
        k1, k3 = (-5 + 10 * share for share in spread(i, 0.7548776662, 0.5698402910))
        values = {"p2": "0", "k1": f"{k1:.4f}", "k2": "0", "k3": f"{k3:.4f}", "k4": "-3.2617188"}
        rows.append({"scenario": f"s{i:06d}"} | values)
    return comments, rows


def spread(i: int, *steps: float) -> tuple[float, ...]:
    """Returns the i-th point of an additive recurrence in the unit square.

    - `steps`: powers of the plastic number's inverse, with which the points fill it evenly.
    """
    return tuple((0.5 + (i + 1) * step) % 1 for step in steps)


def table(comments: list[str], rows: list[dict[str, str]]) -> str:
    """Returns the text of a scenario file.

    - `comments`: lines above the header, without the mark.
    - `rows`: column to value, the same columns in each.
    """
    lines = [f"# {comment}" for comment in comments]
    lines += ["# Written by scripts/make_scenarios.py.", "\t".join(rows[0])]
    lines += ["\t".join(row.values()) for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description="Write the scenario files.")
    parser.add_argument("--out", type=Path, default=SCENARIOS, help="the folder to write to")
    parser.add_argument("--scale", type=int, help="write scale.tsv only, with so many scenarios")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    made = {make.__name__: make for make in (turnover, atlas, speed, stiff_grid, robertson)}
    if given.scale:
        made = {"scale": lambda: scale(given.scale)}
    for name, make in made.items():
        (given.out / f"{name}.tsv").write_text(table(*make()), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
