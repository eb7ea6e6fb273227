"""What the figures share: colours, text, logarithmic axes, and how a figure becomes a file or part of a page.

Nothing here touches pyplot or global settings, so that the figures serve a notebook too. Colours are of Okabe and
Ito's palette, and no meaning hangs on colour alone: hatches, markers and labels carry it too.
"""

from __future__ import annotations

import io
import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from retrograd.schema import OUTCOMES

if TYPE_CHECKING:
    from retrograd.results import Results

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
GREY = "#6b6b6b"

# What an outcome looks like: its words, its colour, its hatch.
OUTCOME_STYLE = {
    "verified": ("verified", GREEN, ""),
    "forward_failed": ("forward solve failed", VERMILION, "////"),
    "gradient_nonfinite": ("gradient not finite", ORANGE, "xxxx"),
    "gradient_refuted": ("gradient refuted", PURPLE, "||||"),
    "inconclusive": ("check inconclusive", SKY, "\\\\\\\\"),
    "steady_state_failed": ("no steady state", "#b8b8b8", "----"),
}

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    # Text stays text: it can be searched and read out, and the page is smaller.
    "svg.fonttype": "none",
    "svg.hashsalt": "retrograd",
    "path.simplify": True,
}

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# --- what a figure is made of ---------------------------------------------------------------------


def literal(text: str, most: int = 60) -> str:
    """Returns a name as matplotlib draws it letter for letter; long ones lose their middle."""
    text = "".join(c if c.isprintable() else "�" for c in text)
    if len(text) > most:
        half = (most - 1) // 2
        text = f"{text[:half]}…{text[len(text) - (most - 1 - half) :]}"
    return text.replace("$", r"\$")


def superscript(exponent: int) -> str:
    """Returns a whole number in raised digits."""
    return str(exponent).translate(_SUPERSCRIPT)


def power(value: float, _: Any = None) -> str:
    """Returns `10⁻³` for powers of ten and nothing for other numbers: no mathtext, so text stays text."""
    if not value > 0:
        return ""
    exponent = round(math.log10(value))
    if not math.isclose(value, 10.0**exponent, rel_tol=1e-6):
        return ""
    return {0: "1", 1: "10"}.get(exponent, "10" + superscript(exponent))


def log_axis(axis: XAxis | YAxis, values: Iterable[float] | np.ndarray, ticks: int = 6) -> tuple[float, float]:
    """Makes an axis logarithmic over whole decades around the values; returns its limits."""
    array = np.asarray(list(values) if not isinstance(values, np.ndarray) else values, float)
    array = array[np.isfinite(array) & (array > 0)]
    low, high = (float(array.min()), float(array.max())) if array.size else (0.1, 1.0)
    # Beyond these, powers of ten are no normal floats any more.
    bottom = int(np.clip(np.floor(np.log10(low)), -300, 300))
    top = max(int(np.clip(np.ceil(np.log10(high)), -300, 300)), bottom + 1)
    limits = (10.0**bottom * 0.8, 10.0**top * 1.25)
    if isinstance(axis, XAxis):
        axis.axes.set_xscale("log")
        axis.axes.set_xlim(*limits)
    else:
        axis.axes.set_yscale("log")
        axis.axes.set_ylim(*limits)
    axis.set_major_locator(LogLocator(numticks=ticks))
    axis.set_major_formatter(FuncFormatter(power))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    return limits


def present_outcomes(results: Results) -> list[int]:
    """Returns the codes of the outcomes that occur."""
    return [code for code in range(len(OUTCOMES)) if (results.outcome == code).any()]


def outcome_patches(results: Results) -> list[Patch]:
    """Returns the handles of a legend of these outcomes."""
    patches = []
    for code in present_outcomes(results):
        words, colour, hatch = OUTCOME_STYLE[OUTCOMES[code]]
        patches.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=words))
    return patches


def empty(figure: FigureBase, why: str) -> None:
    axes = figure.subplots()
    axes.axis("off")
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, transform=axes.transAxes)


def say(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, fontsize=8, transform=axes.transAxes)


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """How one figure is made: its function, and its size in inches."""

    draw: Callable[[Results, FigureBase], None]
    size: Callable[[Results], tuple[float, float]]


def render(drawing: Drawing, results: Results, formats: Sequence[str] = ("svg", "png")) -> dict[str, bytes]:
    """Returns a figure as SVG, as PNG at 150 dpi or both, by format; the same results give the same bytes."""
    return files(lambda figure: drawing.draw(results, figure), drawing.size(results), formats)


@contextmanager
def styled() -> Iterator[None]:
    """Draws in the report's style; whose session it is keeps its own settings."""
    # Not even for a while the backend: nothing sets it back.
    style: Any = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"} | _STYLE
    with mpl.rc_context(style), warnings.catch_warnings():
        # Names may hold letters that the PNG's font lacks; the SVG shows them in the reader's own.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        # A figure whose names are too long for its size is drawn all the same.
        warnings.filterwarnings("ignore", message=".*constrained_layout not applied.*")
        yield


def files(draw: Callable[[Figure], None], size: tuple[float, float], formats: Sequence[str]) -> dict[str, bytes]:
    out = {}
    with styled():
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        draw(figure)
        # The layout is found once, for both formats.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for form in formats:
            none = ("Software",) if form == "png" else ("Date", "Creator", "Format", "Type")
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=150, metadata=dict.fromkeys(none))
            out[form] = file.getvalue()
    return out


def inline(svg: bytes, name: str, label: str) -> str:
    """Returns an SVG for inside an HTML page: unique ids, no style that leaks, a label for screen readers."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        for key, value in list(node.attrib.items()):
            del node.attrib[key]
            key = key.rpartition("}")[2]
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href" and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            node.attrib[key] = value.replace("url(#", f"url(#{name}-")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label, "class": "plot"}
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)
