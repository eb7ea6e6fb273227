"""The figures of the report, drawn where you want them: `retrograd.plot.trajectories("results/turnover")`.

Each function draws one figure, of the name that it has in the report, and takes

- `results`: the folder of a study, or what `retrograd.open_results` gave of it.
- `figure`: an empty matplotlib Figure or SubFigure to draw on. None: a new Figure, of the report's size.
- `ax`: Axes of a grid (`plt.subplots`), in whose place the figure is drawn; they are removed.
- `variants`, `scenarios`: names of those to draw, in that order. None: all, of which the figure chooses as the report
  does. The best variant, under which some figures are drawn, is the one that verifies most scenarios of all.

It returns the Figure or SubFigure that it drew on. A new Figure shows itself in notebooks. Nothing here touches pyplot
or your settings of matplotlib; a figure without a layout gets the constrained one, without which legends have no room.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from retrograd import atlas_figures, figures, fit_figures
from retrograd.drawing import styled
from retrograd.errors import RetrogradError
from retrograd.opening import open_results
from retrograd.results import Results, of_tree

_FIGURES = {**figures.FIGURES, **atlas_figures.FIGURES, **fit_figures.FIGURES}
# What is of all scenarios together, and of all variants of a design.
_OF_ALL_SCENARIOS = ("waterfall", "effects", "fit", "time_courses")
_OF_ALL_VARIANTS = ("waterfall", "effects")

Source = str | os.PathLike[str] | xr.DataTree | Results


class _Shown(Figure):
    """A Figure that shows itself in a notebook, where others do only once pyplot was imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with styled():
            self.savefig(file, format="png", dpi=self.dpi)
        return file.getvalue()


class Plot(Protocol):
    """A function of this module."""

    def __call__(
        self,
        results: Source,
        figure: Figure | SubFigure | None = None,
        ax: Axes | None = None,
        *,
        variants: Sequence[str] | None = None,
        scenarios: Sequence[str] | None = None,
    ) -> Figure | SubFigure: ...


def _plot(name: str) -> Plot:
    def draw(
        results: Source,
        figure: Figure | SubFigure | None = None,
        ax: Axes | None = None,
        *,
        variants: Sequence[str] | None = None,
        scenarios: Sequence[str] | None = None,
    ) -> Figure | SubFigure:
        for key, given, refused in (
            ("scenarios", scenarios, _OF_ALL_SCENARIOS),
            ("variants", variants, _OF_ALL_VARIANTS),
        ):
            if given is not None and name in refused:
                raise RetrogradError(f"{name}: found {key}, wanted none: it is of all {key} together.")
        chosen = _results(results).narrowed(variants, scenarios)
        more: dict[str, Any] = {}
        if name == "trajectories" and scenarios is not None:
            more["chosen"] = _recorded(chosen)
        with styled():
            place = _place(figure, ax) or _Shown(figsize=_FIGURES[name].size(chosen))
            _FIGURES[name].draw(chosen, place, **more)
            for axes in place.get_axes():
                # Ticks are made when they are drawn, which is not here: those to come are like the first.
                axes.xaxis.get_major_ticks(1)
                axes.yaxis.get_major_ticks(1)
        return place

    told = (_FIGURES[name].draw.__doc__ or "").partition("\n")[0]
    draw.__doc__ = f"{told}\n\nArguments, and what is returned: see the help of retrograd.plot."
    draw.__name__ = draw.__qualname__ = name
    return draw


def _results(source: Source) -> Results:
    if isinstance(source, Results):
        return source
    opened = source if isinstance(source, xr.DataTree) else None
    if isinstance(source, str | os.PathLike) and Path(source).exists() and not Path(source).is_dir():
        raise RetrogradError(f"found the file {source}, wanted the folder of a study's results.")
    if isinstance(source, str | os.PathLike):
        opened = open_results(source)
    if not isinstance(opened, xr.DataTree):
        raise RetrogradError(
            f"found a {type(source).__name__}, wanted the folder of a study's results, or what retrograd.open_results "
            "gave of it."
        )
    return of_tree(opened)


def _recorded(results: Results) -> list[int]:
    count = results.best.dynamics["step_count"].values
    if (count == 0).any():
        names = ", ".join(results.scenarios[s] for s in np.flatnonzero(count == 0))
        raise RetrogradError(
            f"scenarios: found {names}, without an accepted step under {results.best.name}: leave them out, or name "
            "another variant."
        )
    return list(range(len(count)))


def _place(figure: Figure | SubFigure | None, ax: Axes | None) -> Figure | SubFigure | None:
    if figure is None and ax is None:
        return None
    if figure is not None and ax is not None:
        raise RetrogradError("found figure and ax, wanted one of them.")
    place = figure
    if ax is not None:
        if not isinstance(ax, Axes):
            raise RetrogradError(f"ax: found a {type(ax).__name__}, wanted one Axes, such as axes[0, 1] of a grid.")
        place, spec = ax.get_figure(), ax.get_subplotspec()
        if place is None or spec is None:
            raise RetrogradError("ax: found Axes outside of a grid, wanted those of subplots, or give figure=.")
        ax.remove()
        place = place.add_subfigure(spec)
    if not isinstance(place, Figure | SubFigure):
        raise RetrogradError(f"figure: found a {type(place).__name__}, wanted a Figure or a SubFigure of matplotlib.")
    if place.get_axes():
        raise RetrogradError("figure: found axes in it, wanted an empty one: give ax=, or a SubFigure.")
    root = place.get_figure(root=True)
    if root is not None and root.get_layout_engine() is None:
        root.set_layout_engine("constrained")
    return place


outcomes = _plot("outcomes")
trajectories = _plot("trajectories")
steps = _plot("steps")
attempts = _plot("attempts")
gradient_errors = _plot("gradient_errors")
dot_product = _plot("dot_product")
difference_sweep = _plot("difference_sweep")
outcome_maps = _plot("outcome_maps")
stiffness = _plot("stiffness")
cause_sets = _plot("cause_sets")
waterfall = _plot("waterfall")
effects = _plot("effects")
evaluation_order = _plot("evaluation_order")
fit = _plot("fit")
time_courses = _plot("time_courses")

# Made of the table above, so that none is left out.
__all__ = [*_FIGURES]  # pyright: ignore[reportUnsupportedDunderAll]
