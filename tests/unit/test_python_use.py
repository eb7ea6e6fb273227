"""Results from Python: a study's folder as a tree, the report's figures on given axes, codes as words."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import netCDF4
import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.figure import Figure, SubFigure
from sealing import seal_again

import retrograd
from retrograd import drawing, opening, plot, report, store
from retrograd.errors import RetrogradError
from retrograd.provenance import file_digest
from retrograd.results import Results, load, of_tree
from retrograd.schema import COMPARISON, EFFECTS, FIT, MODEL

ROOT = Path(__file__).parents[2]
STAGES = ("steady_state", "dynamics", "gradients")
THREE = {"naive32": ["verified"] * 7} | synthetic.MIXED


def weighed(variants: list[str], scenarios: list[str]) -> xr.Dataset:
    """Returns what the remedies of a study of one factor are worth."""
    return store.build(
        EFFECTS,
        {
            "level": np.arange(len(variants))[:, None] - 1,
            "level_name": [[""]] + [["on"]] * (len(variants) - 1),
            "verified": np.linspace(0, 1, len(variants)),
            "attempts": np.full(len(variants), 10.0),
            "seconds": np.full(len(variants), 1e-3),
            "value": np.array([[0.5], [0.4], [0.3]]),
            "low": np.array([[0.2], [0.3], [0.2]]),
            "high": np.array([[0.8], [0.5], [0.4]]),
            "effect_kind": [0],
            "cure_size": np.zeros(len(scenarios)),
            "cure": [""] * len(scenarios),
            "waterfall_verified": [1, 7],
        },
        {
            "variant": variants,
            "factor": ["guard"],
            "measure": ["verified", "attempts", "seconds"],
            "effect": ["guard: on"],
            "scenario": scenarios,
            "waterfall": ["naive", "+ on"],
        },
    )


def closed(results: Results) -> Results:
    """Reads a study and closes its files: HDF5 may crash where one is opened again while it is open."""
    for variant in results.variants:
        for ds in (variant.steady, variant.dynamics, variant.gradients, variant.fit):
            if ds is not None:
                ds.load().close()
    return results


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """A study with effects and measurements, in its folder and as the report's rule has it."""
    folder = tmp_path_factory.mktemp("python") / "tiny"
    results = closed(synthetic.study(folder, THREE))
    for variant in THREE:
        config = {"study": "tiny", "variant": variant, "class": "Tiny"}
        fit = synthetic.measured(2, 2, 1)
        store.write(fit, folder / variant / "fit.nc", FIT, store.Provenance(config))
    effects = weighed(list(THREE), results.scenarios)
    store.write(effects, folder / "effects.nc", EFFECTS, store.Provenance({"study": "tiny"}))
    settings = {**results.settings, "stages": [*STAGES, "fit"]}
    nc = [str(folder / f"{name}.nc") for name in ("model", "summary", "effects")]
    loaded = closed(load(folder, settings, nc[0], nc[1], None, nc[2]))
    return folder, Results(
        loaded.settings, loaded.summary, loaded.model, loaded.variants, results.table, loaded.effects
    )


@pytest.fixture(scope="module")
def runs(made: tuple[Path, Results]) -> opening.Runs:
    found = retrograd.open_results(made[0])
    assert isinstance(found, opening.Runs)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of a test's own."""
    closed(synthetic.study(tmp_path / "tiny", synthetic.MIXED))
    return tmp_path / "tiny"


def text_of(figure: Figure | SubFigure) -> list[str]:
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text()]


# -- the tree --------------------------------------------------------------------------------------


def test_a_folder_gives_a_tree_of_variants_and_stages(made: tuple[Path, Results], runs: xr.DataTree):
    assert isinstance(runs, xr.DataTree)
    assert list(runs.children) == ["summary", "effects", "model", *THREE]
    for variant in THREE:
        assert list(runs[variant].children) == [*STAGES, "fit"]
    assert runs.attrs == {"study": "tiny", "folder": str(made[0])}
    assert runs.name == "tiny"
    # Coordinates of a parent would have to be those of all its children.
    assert not runs.coords and not any(runs[variant].coords for variant in THREE)


def test_labels_are_indexes_in_every_node(made: tuple[Path, Results], runs: xr.DataTree):
    value = runs["naive/dynamics"]["x"].sel(scenario="s03", state="x1", model_time=1.0)
    assert float(value) == float(made[1].variants[-1].dynamics["x"].values[3, 1, 1])
    nodes = [node for node in runs.subtree if node.has_data]
    assert len(nodes) == 3 + 4 * len(THREE)
    for node in nodes:
        labelled = [d for d in node.dims if d not in ("step", "attempt", "measurement", "selftest", "weight")]
        assert set(labelled) <= set(node.indexes)
        assert not [name for name in node.coords if str(name).endswith("_name")]
        for name, var in {**node.data_vars, **node.coords}.items():
            assert var.attrs["long_name"], name
    assert runs["naive/dynamics"]["x"].attrs["units"] == "1"


def test_a_node_is_its_file(made: tuple[Path, Results], runs: xr.DataTree):
    for node, file in {"summary": "summary.nc", "naive/gradients": "naive/gradients.nc"}.items():
        assert runs[node].to_dataset().identical(retrograd.open_results(made[0] / file))


def test_the_weights_stand_below_the_model(folder: Path):
    root = xr.load_dataset(folder / "model.nc", engine="netcdf4", decode_times=False)
    leaf = xr.Dataset({"leaf0": (("a", "b"), np.arange(6.0).reshape(2, 3), {"long_name": "w", "units": "1"})})
    store.write(xr.DataTree.from_dict({"/": root, "/weights": leaf}), folder / "model.nc", MODEL, store.Provenance())
    with pytest.raises(
        RetrogradError, match=r"recommended/steady_state\.nc is not of this run: it was computed from model"
    ):
        retrograd.open_results(folder)
    # Of which a study that is under way has nothing else yet.
    for variant in synthetic.MIXED:
        for stage in ("dynamics", "gradients"):
            (folder / variant / f"{stage}.nc").unlink()
        with netCDF4.Dataset(folder / variant / "steady_state.nc", "r+") as file:
            named = json.loads(file.retrograd_inputs) | {"model": file_digest(folder / "model.nc")}
            file.retrograd_inputs = json.dumps(named)
        seal_again(folder / variant / "steady_state.nc")
    (folder / "summary.nc").unlink()
    found = retrograd.open_results(folder)
    assert found["model/weights/leaf0"].values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["model"].indexes["state"].tolist() == ["x0", "x1"]


def test_a_comparison_is_a_node(folder: Path):
    compared = store.build(COMPARISON, {"variant_verdict": [0, 4]}, {"variant": list(synthetic.MIXED)})
    store.write(compared, folder / "comparison/comparison.nc", COMPARISON, store.Provenance())
    verdict = retrograd.open_results(folder)["comparison"]["variant_verdict"]
    assert retrograd.words(verdict).sel(variant="naive").item() == "different"


def test_variants_keep_names_that_nodes_have(tmp_path: Path):
    names = ("summary", "model", "weights")
    closed(synthetic.study(tmp_path, dict.fromkeys(names, ["verified"] * 3)))
    found = retrograd.open_results(tmp_path)
    assert list(found.children) == ["summary.nc", "model.nc", *names]
    assert found["summary/dynamics"].sizes["scenario"] == 3
    assert found["summary.nc"]["outcome"].shape == (3, 3)
    assert plot.outcomes(found).get_axes()


# -- how it prints ---------------------------------------------------------------------------------


def test_a_study_prints_on_a_page(tmp_path: Path):
    five = [f"variant{i}" for i in range(5)]
    closed(synthetic.study(tmp_path, dict.fromkeys(five, ["verified"] * 7)))
    runs = retrograd.open_results(tmp_path)
    lines = repr(runs).splitlines()
    assert str(runs) == repr(runs)
    assert len(lines) < 40 and max(map(len, lines[:-1])) < 110
    assert lines[0] == "<retrograd.Runs 'tiny'>"
    assert re.fullmatch(r"├── summary +variant 5, scenario 7; \d+ variables", lines[1])
    assert any(re.fullmatch(r"│   ├── dynamics +scenario 7, .*step \d+, attempt \d+; \d+ variables", s) for s in lines)
    assert "<xarray.DataTree 'dynamics'>" in repr(runs["variant0/dynamics"])


def test_a_study_shows_in_a_notebook(runs: xr.DataTree):
    html = runs._repr_html_()
    for words in ("naive32", "gradients", "state at the save times", "forward_failed gradient_nonfinite"):
        assert words in html


# -- what stays in the files -----------------------------------------------------------------------


def open_files(folder: Path) -> list[str]:
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return [path for path in map(os.path.realpath, links) if path.startswith(str(folder))]


def test_steps_are_read_when_they_are_used_and_no_file_stays_open(folder: Path):
    with retrograd.open_results(folder) as found:
        dynamics = found["naive/dynamics"]
        assert not dynamics["step_x"].variable._in_memory
        assert dynamics["x"].variable._in_memory
        whole = retrograd.open_results(folder / "naive/dynamics.nc")["step_x"]
        for part in (slice(2, 9, 3), [5, 1, 1], 4):
            assert np.array_equal(dynamics["step_x"][part].values, whole[part].values)
        assert float(dynamics["step_x"].sel(state="x1")[3]) == float(whole[3, 1])
        assert dynamics["step_x"].equals(whole)
        assert not dynamics["step_x"].variable._in_memory
        assert not open_files(folder)
    assert not open_files(folder)


def test_what_is_large_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    small = retrograd.open_results(folder)
    monkeypatch.setattr(opening, "_SMALL", 0)
    found = retrograd.open_results(folder)
    assert not found["naive/gradients"]["ad"].variable._in_memory
    assert found["naive/gradients"].equals(small["naive/gradients"])
    assert found["naive/gradients"]["ad"].variable._in_memory
    found["naive/gradients"]["ad"][0] = 7.0
    assert (found["naive/gradients"]["ad"].values[0] == 7.0).all()


def test_a_file_that_was_made_anew_is_not_read_as_the_old_one(folder: Path):
    found = retrograd.open_results(folder)
    closed(synthetic.study(folder, {name: ends[::-1] for name, ends in synthetic.MIXED.items()}))
    with pytest.raises(RetrogradError, match=r"naive/dynamics\.nc was removed or written anew.*open the results again"):
        found["naive/dynamics"]["step_x"].load()
    assert retrograd.open_results(folder)["naive/dynamics"]["step_x"].load().size


# -- what is not there -----------------------------------------------------------------------------


def test_a_path_without_results_is_told(folder: Path, tmp_path: Path):
    with pytest.raises(RetrogradError, match=r"found nothing at .*nowhere, wanted .*snakemake --cores all"):
        retrograd.open_results(tmp_path / "nowhere")
    with pytest.raises(RetrogradError, match=r"found no results of a study in .*, wanted one of its studies: tiny\."):
        retrograd.open_results(tmp_path)
    (tmp_path / "empty/logs").mkdir(parents=True)
    with pytest.raises(RetrogradError, match=r"found no results of a study in .*empty, wanted model\.nc.*--configfile"):
        retrograd.open_results(tmp_path / "empty")


def test_what_is_missing_is_named(folder: Path):
    shutil.rmtree(folder / "naive")
    found = retrograd.open_results(folder)
    missing = ", ".join(f"naive/{stage}.nc" for stage in STAGES)
    assert list(found.children) == ["summary", "model", "recommended"]
    assert found.attrs["missing"] == missing
    assert f"missing: {missing}" in repr(found)
    drawn = text_of(plot.outcomes(found))
    assert "recommended" in drawn and "naive" not in drawn
    (folder / "recommended/gradients.nc").unlink()
    with pytest.raises(RetrogradError, match=r"no variant with all of its stages.*missing.*gradients\.nc"):
        plot.outcomes(folder)


def test_a_study_under_way_opens(folder: Path):
    for file in ("summary.nc", "naive/gradients.nc"):
        (folder / file).unlink()
    found = retrograd.open_results(folder)
    assert list(found.children) == ["model", "naive", "recommended"]
    assert found.attrs["missing"] == "summary.nc, naive/gradients.nc"
    assert found.attrs["study"] == "tiny"
    with pytest.raises(RetrogradError, match=r"found no summary in the tree.*missing from the folder: summary\.nc"):
        plot.outcomes(found)


def test_variants_that_the_study_lists_no_more_are_left_out(folder: Path):
    shutil.copytree(folder / "naive", folder / "former")
    found = retrograd.open_results(folder)
    assert "former" not in found.children
    assert found.attrs["left_out"] == "former"


def test_damaged_and_foreign_files_are_refused(folder: Path):
    path = folder / "naive/dynamics.nc"
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    with pytest.raises(RetrogradError, match=r"naive/dynamics\.nc cannot be read: its bytes.*--forcerun"):
        retrograd.open_results(folder)
    path.write_bytes(content)
    with netCDF4.Dataset(path, "r+") as file:
        file.retrograd_version = "0"
    seal_again(path)
    with pytest.raises(RetrogradError, match=r"naive/gradients\.nc is not of this run: it was computed from dynamics"):
        retrograd.open_results(folder)
    (folder / "naive/gradients.nc").unlink()
    with pytest.raises(RetrogradError, match=r"summary\.nc is not of this run: it was computed from naive/dynamics"):
        retrograd.open_results(folder)


# -- words -----------------------------------------------------------------------------------------


def test_codes_become_words(runs: xr.DataTree):
    told = retrograd.words(runs["summary"]["outcome"])
    assert told.sel(variant="naive").values.tolist() == synthetic.MIXED["naive"]
    assert told.attrs == {"long_name": "outcome under the variant's own gradient method"}
    assert str(retrograd.words(runs["naive/dynamics"]["status"].sel(scenario="s01"))[()].values) == "max_steps_reached"
    assert "flag_meanings" in runs["summary"]["outcome"].attrs
    with pytest.raises(RetrogradError, match="loss: found no flag_meanings, wanted a variable of codes"):
        retrograd.words(runs["naive/gradients"]["loss"])
    with pytest.raises(RetrogradError, match=r"outcome: found the codes \[-1, 9\], wanted \[0, 1, 2, 3, 4, 5\]"):
        retrograd.words(runs["summary"]["outcome"].copy(data=np.resize([9, -1, 0], (3, 7))))


# -- figures ---------------------------------------------------------------------------------------


def test_every_figure_of_the_report_has_its_function():
    assert set(plot.__all__) == set(report.FIGURES)
    for name in report.FIGURES:
        function = getattr(retrograd.plot, name)
        assert function.__name__ == name
        assert function.__doc__.startswith("Draws")


@pytest.mark.parametrize("name", report.FIGURES)
def test_a_figure_is_that_of_the_report(name: str, made: tuple[Path, Results], runs: xr.DataTree):
    size = report.FIGURES[name].size(made[1])
    wanted = drawing.render(report.FIGURES[name], made[1], ["png"])
    function = getattr(plot, name)
    assert drawing.files(lambda figure: function(runs, figure), size, ["png"]) == wanted
    alone = function(made[1])
    assert tuple(alone.get_size_inches()) == size
    assert len(alone.get_axes()) > 0
    assert alone.get_layout_engine() is not None


@pytest.mark.parametrize("name", report.FIGURES)
def test_a_figure_takes_the_place_of_axes(name: str, runs: xr.DataTree):
    figure = Figure(figsize=(16, 8))
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1])
    before = dict(mpl.rcParams)
    place = getattr(plot, name)(runs, ax=right)
    assert dict(mpl.rcParams) == before
    assert isinstance(place, SubFigure)
    assert right not in figure.axes and figure.axes[0] is left and set(place.axes) < set(figure.axes)
    figure.draw_without_rendering()
    edges = [figure.transFigure.inverted().transform(ax.bbox).ravel() for ax in place.axes]
    # To the right of the other axes, and inside the figure.
    assert min(x for x, *_ in edges) >= left.get_position().x1 - 1e-6
    assert max(x for *_, x, _ in edges) <= 1
    assert all(ax.get_figure() is place for ax in place.axes)


def test_legends_have_room_beside_other_axes(runs: xr.DataTree):
    figure = Figure(figsize=(10, 10))
    grid = figure.subplots(2, 2)
    place = plot.outcomes(runs, ax=grid[1, 1])
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    legend = place.legends[0].get_window_extent(renderer)
    assert not legend.overlaps(place.axes[0].get_window_extent(renderer))
    assert not any(legend.overlaps(ax.get_tightbbox(renderer)) for ax in grid.flat[:3])


def test_figures_and_their_parts_are_drawn_on(made: tuple[Path, Results]):
    figure = Figure(layout="compressed")
    left, right = figure.subfigures(1, 2)
    engine = figure.get_layout_engine()
    assert plot.steps(made[0], left) is left
    assert plot.stiffness(str(made[0]), figure=right) is right
    assert figure.get_layout_engine() is engine
    plain = Figure()
    assert plot.attempts(made[0], plain) is plain
    with pytest.raises(RetrogradError, match=r"figure: found axes in it, wanted an empty one: give ax="):
        plot.attempts(made[0], plain)


def test_wrong_places_are_told(made: tuple[Path, Results], runs: xr.DataTree):
    figure = Figure()
    grid = figure.subplots(1, 2)
    for place, message in (
        ({"figure": figure, "ax": grid[0]}, "found figure and ax, wanted one of them"),
        ({"ax": grid}, r"ax: found a ndarray, wanted one Axes"),
        ({"ax": figure.add_axes((0, 0, 1, 1))}, "ax: found Axes outside of a grid"),
        ({"figure": "here"}, "figure: found a str, wanted a Figure"),
    ):
        with pytest.raises(RetrogradError, match=message):
            plot.outcomes(runs, **place)
    assert grid[0] in figure.axes
    with pytest.raises(RetrogradError, match=r"found the file .*summary\.nc, wanted the folder"):
        plot.outcomes(made[0] / "summary.nc")
    with pytest.raises(RetrogradError, match="found a Dataset, wanted the folder of a study's results"):
        plot.outcomes(runs["summary"].to_dataset())
    with pytest.raises(RetrogradError, match="found nothing at nowhere"):
        plot.outcomes("nowhere")


def test_a_new_figure_shows_itself(runs: xr.DataTree):
    figure: Any = plot.outcomes(runs)
    png = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == tuple(int(v) for v in figure.get_size_inches() * figure.dpi)


def test_ticks_keep_the_style_outside_of_it(runs: xr.DataTree):
    with mpl.rc_context({"xtick.labelsize": 30.0}):
        figure = plot.attempts(runs)
        figure.set_size_inches(20, 5)
        figure.draw_without_rendering()
    assert {label.get_size() for label in figure.axes[0].get_xticklabels()} == {8.0}


# -- what is drawn ---------------------------------------------------------------------------------


def test_scenarios_are_chosen_by_name(runs: xr.DataTree):
    figure = plot.trajectories(runs, scenarios=["s05", "s01"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["s05", "s01"]
    best = of_tree(runs).best.name
    assert best == "recommended"
    heads = [ax.get_title(loc="left").splitlines()[0] for ax in plot.steps(runs, scenarios=["s02", "s00"]).axes[:2]]
    assert heads == ["easier: s00", "harder: s02"]
    axes = plot.outcomes(runs, scenarios=["s00", "s01", "s02"]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(THREE)
    assert axes.get_xlim() == (0.0, 3.0)


def test_the_best_variant_is_that_of_all_scenarios(tmp_path: Path):
    closed(
        synthetic.study(
            tmp_path, {"good": ["verified"] * 5 + ["forward_failed"], "bad": ["forward_failed"] * 5 + ["verified"]}
        )
    )
    figure = plot.trajectories(tmp_path, scenarios=["s05"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["s05 (failed at ✕)"]
    figure = plot.trajectories(tmp_path, scenarios=["s05"], variants=["bad"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["s05"]


def test_variants_are_chosen_by_name(runs: xr.DataTree):
    labels = lambda figure: [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels(plot.attempts(runs, variants=["naive32", "naive"])) == ["naive32", "naive"]
    assert labels(plot.attempts(runs, variants=("naive",))) == ["naive"]


def test_names_that_are_not_there_are_told(runs: xr.DataTree):
    with pytest.raises(RetrogradError, match="variants: found other, wanted some of naive32, recommended, naive"):
        plot.outcomes(runs, variants=["naive", "other"])
    with pytest.raises(RetrogradError, match="scenarios: found s99, wanted some of s00, s01"):
        plot.outcomes(runs, scenarios="s99")
    with pytest.raises(RetrogradError, match="scenarios: found none, wanted at least one name"):
        plot.outcomes(runs, scenarios=[])
    with pytest.raises(RetrogradError, match="scenarios: found s06, without an accepted step under naive"):
        plot.trajectories(runs, variants=["naive"], scenarios=["s00", "s06"])
    for name in ("waterfall", "effects", "fit", "time_courses"):
        with pytest.raises(RetrogradError, match=f"{name}: found scenarios, wanted none"):
            getattr(plot, name)(runs, scenarios=["s00"])
    with pytest.raises(RetrogradError, match="waterfall: found variants, wanted none"):
        plot.waterfall(runs, variants=["naive"])


def test_chosen_scenarios_keep_their_steps(made: tuple[Path, Results]):
    for source in (made[1], of_tree(retrograd.open_results(made[0]))):
        chosen = source.narrowed(["naive"], ["s04", "s01"])
        (mine,), whole = chosen.variants, next(v for v in source.variants if v.name == "naive")
        assert chosen.scenarios == ["s04", "s01"] and chosen.outcome.shape == (1, 2)
        assert chosen.table is not None and chosen.table.ids == ("s04", "s01")
        assert chosen.table.rows == ((1.0, 1.0), (1.0, 0.0))
        for row, s in enumerate((4, 1)):
            for name, own, all_ in (
                ("step_x", mine.steps(row), whole.steps(s)),
                ("attempt_end", mine.attempts(row), whole.attempts(s)),
            ):
                assert own.stop > own.start
                assert np.array_equal(mine.dynamics[name].values[own], whole.dynamics[name].values[all_])


def test_a_tree_with_scenarios_cut_away_is_refused(runs: xr.DataTree):
    cut = runs.copy()
    for variant in THREE:
        cut[variant]["dynamics"] = xr.DataTree(runs[variant]["dynamics"].to_dataset().sel(scenario=["s00", "s01"]))
    with pytest.raises(RetrogradError, match=r"dynamics: found \d+ steps for scenarios that have \d+.*scenarios=\["):
        plot.trajectories(cut)


def test_phases_that_differ_have_columns_of_their_own(folder: Path):
    results = of_tree(retrograd.open_results(folder))
    assert results.table is not None and results.table.columns == ("k1", "k2")
    tree = retrograd.open_results(folder)
    for variant in synthetic.MIXED:
        tree[f"{variant}/steady_state"]["k"][:, 0] = 5.0
    table = of_tree(tree).table
    assert table is not None and table.columns == ("k1@steady", "k1@dynamic", "k2")
    assert table.rows[4] == (5.0, 1.0, 1.0)


# -- light to import -------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, retrograd; print({'xarray', 'matplotlib', 'numpy', 'netCDF4'} & set(sys.modules)); "
        "retrograd.plot.steps; print({'matplotlib.pyplot', 'jax', 'jinja2'} & set(sys.modules), dir(retrograd)[-1])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "set()", "words"]
    with pytest.raises(AttributeError, match="'retrograd' has no attribute 'opens'"):
        retrograd.opens  # noqa: B018


def test_rules_do_not_depend_on_how_results_are_opened():
    from retrograd.provenance import code_files

    for script in (ROOT / "scripts").glob("*.py"):
        assert not {"opening.py", "plot.py"} & {path.name for path in code_files(script)}, script


# -- the documents ---------------------------------------------------------------------------------


def test_the_reference_runs_to_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "config/README.md").read_text(encoding="utf-8")
    section = text.partition("\n### From Python\n")[2].partition("\n### ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    table = (ROOT / "config/scenarios/turnover.tsv").read_text(encoding="utf-8")
    rows = [line.partition("\t")[0] for line in table.splitlines() if line and not line.startswith("#")]
    closed(synthetic.study(tmp_path / "results/turnover", synthetic.MIXED, ids=rows[1:8], name="turnover"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    names["plt"].close(names["figure"])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "|AD − FD|" in (tmp_path / "errors.svg").read_text(encoding="utf-8")
