"""Simulations against measurements: sums over experiments and phases against closed forms, and what can be missing."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import measured
import numpy as np
import pytest
import synthetic
import test_report
import xarray as xr

from retrograd import fit as fit_module
from retrograd import fit_figures, report, store
from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.fit import fit
from retrograd.plugins import load_class
from retrograd.schema import DYNAMICS, FIT, FIT_STATUS, GRADIENTS, VERDICTS
from retrograd.simulations import simulation_lines

METHODS = ["replay", "checkpoint"]
WRT = [f"{name}@{phase}" for phase in ("dynamic", "steady") for name in ("k", "scale")] + ["network[0]"]
IDS = [f"{sample}:{name}" for sample in measured.SAMPLES for name in measured.INFLOWS]
# Of each derivative, the share of the dynamic phase.
SHARE = 0.75


@pytest.fixture(scope="module")
def approach(tmp_path_factory: pytest.TempPathFactory) -> type[Model]:
    file = tmp_path_factory.mktemp("plugin") / "approach.py"
    file.write_text(measured.PLUGIN)
    return load_class(str(file), "Approach")


def files(ids: list[str] = IDS, failed: tuple[str, ...] = (), wrt: list[str] = WRT) -> tuple[xr.Dataset, xr.Dataset]:
    """Returns what `dynamics.nc` and `gradients.nc` hold, by the closed forms; NaN of scenarios that failed."""
    k, x, loss, ad = [], [], [], []
    for scenario in ids:
        sample, _, name = scenario.rpartition(":")
        p, (before, after) = measured.SAMPLES[sample or "first"], measured.INFLOWS[name]
        lost = math.nan if scenario in failed else 1.0
        k.append([p["k"], after, p["scale"], p["sd"], measured.WHICH[name]])
        rest, start = after / p["k"], before / p["k"]
        x.append([[lost * (rest + (start - rest) * math.exp(-p["k"] * t))] for t in measured.TIMES])
        loss.append(-lost * float(measured.llh(p, only=name)))
        slopes = {part: -lost * measured.slope(p, part, name) for part in ("k", "scale")}
        of_phase = {"dynamic": SHARE, "steady": 1 - SHARE}
        row = [slopes[head] * of_phase[phase] for head, _, phase in (label.partition("@") for label in wrt) if phase]
        ad.append([row + [lost] * (len(wrt) - len(row))] * len(METHODS))
    lost = np.isnan(loss)
    codes = np.array([[VERDICTS.index("verified"), VERDICTS.index("inconclusive")]] * len(ids))
    codes[lost] = VERDICTS.index("skipped")
    shape = (len(ids), len(METHODS), len(wrt))
    dynamics = store.build(
        DYNAMICS,
        {"k": k, "x": x, "status": lost},
        {"scenario": ids, "state": ["x"], "parameter": list(measured.PARAMETERS)},
        units={"parameter": ["s-1", "s-1", "1", "1", "1"]},
        coords={"model_time": (measured.TIMES, "s", "model time")},
    )
    gradients = store.build(
        GRADIENTS,
        {
            "loss": loss,
            "loss_error": np.where(lost, np.nan, 1e-6),
            "ad": np.reshape(ad, shape),
            "ad_error": np.full(shape, 1e-9),
            "ode_error": np.full((len(ids), len(wrt)), 1e-5),
            "status": codes,
            "gradient_network": np.where(lost[:, None, None], np.nan, np.arange(3.0)) * np.ones((len(ids), 2, 3)),
        },
        {"scenario": ids, "method": METHODS, **({"wrt": wrt} if wrt else {})},
    )
    return dynamics, gradients


def test_sums_are_those_of_the_closed_forms(approach: type[Model]):
    ds = fit(approach, approach(), *files())
    assert store.labels(ds, "sample") == list(measured.SAMPLES)
    assert store.labels(ds, "parameter") == ["k", "scale"]
    assert list(ds["parameter_units"].values) == ["s-1", "1"]
    for s, p in enumerate(measured.SAMPLES.values()):
        assert ds["llh"].values[s] == pytest.approx(float(measured.llh(p)), rel=1e-14)
        for j, name in enumerate(("k", "scale")):
            np.testing.assert_allclose(ds["gradient"].values[s, :, j], measured.slope(p, name), rtol=1e-13)
        for row in range(len(measured.MEASUREMENTS)):
            value, noise = map(float, measured.simulated(p, row))
            observed = measured.MEASUREMENTS[row][3]
            found = [ds[name].values[s, row] for name in ("simulation", "noise", "residual")]
            np.testing.assert_allclose(found, [value, noise, (observed - value) / noise], rtol=1e-12)
    np.testing.assert_allclose(ds["llh_error"].values, 2e-6)
    # Two experiments and two phases.
    np.testing.assert_allclose(ds["gradient_error"].values, 4 * (1e-5 + 1e-9))
    np.testing.assert_array_equal(ds["gradient_network"].values, -2 * np.arange(3.0) * np.ones((2, 2, 3)))
    assert [VERDICTS[v] for v in ds["verdict"].values[0]] == ["verified", "inconclusive"]
    assert np.all(ds["n_experiments"].values == 2) and np.all(ds["status"].values == 0)
    columns = zip(*measured.MEASUREMENTS, strict=True)
    for name, wanted in zip(
        ("experiment_name", "observable_name", "measurement_time", "measured"), columns, strict=True
    ):
        assert ds[name].values.tolist() == list(wanted)


def test_a_failed_scenario_takes_its_sample_alone(approach: type[Model]):
    ds = fit(approach, approach(), *files(failed=("first:high",)))
    assert [FIT_STATUS[c] for c in ds["status"].values] == ["experiment_failed", "complete"]
    assert ds["n_experiments"].values.tolist() == [1, 2]
    for name in ("llh", "llh_error", "gradient", "gradient_network"):
        assert np.isnan(ds[name].values[0]).all() and np.isfinite(ds[name].values[1]).all(), name
    assert [VERDICTS[v] for v in ds["verdict"].values[0]] == ["skipped", "inconclusive"]
    own = ds["experiment_name"].values == "high"
    assert np.isnan(ds["simulation"].values[0, own]).all() and np.isfinite(ds["simulation"].values[0, ~own]).all()
    assert ds["llh"].values[1] == pytest.approx(float(measured.llh(measured.SAMPLES["second"])), rel=1e-14)


def test_a_missing_experiment_leaves_no_likelihood(approach: type[Model]):
    ds = fit(approach, approach(), *files(IDS[1:]))
    assert [FIT_STATUS[c] for c in ds["status"].values] == ["experiment_missing", "complete"]
    assert np.isnan(ds["llh"].values[0]) and np.isnan(ds["gradient"].values[0]).all()
    assert np.isnan(ds["gradient_network"].values[0]).all()
    assert [VERDICTS[v] for v in ds["verdict"].values[0]] == ["skipped", "inconclusive"]


def test_one_sample_goes_by_its_experiments(approach: type[Model]):
    ds = fit(approach, approach(), *files(["low", "high"]))
    assert store.labels(ds, "sample") == ["nominal"]
    assert ds["llh"].values == pytest.approx(float(measured.llh(measured.SAMPLES["first"])), rel=1e-14)
    assert next(simulation_lines(ds)) == "observableId\texperimentId\ttime\tsimulation\n"


def test_without_derivatives_by_parameters(approach: type[Model]):
    ds = fit(approach, approach(), *files(wrt=[]))
    assert ds["gradient"].shape == (2, 2, 0) and "parameter_name" not in ds
    assert np.isfinite(ds["llh"].values).all()


def test_pieces_change_no_bit_and_the_file_is_read_back(
    approach: type[Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, data, schema in zip(("dynamics", "gradients"), files(), (DYNAMICS, GRADIENTS), strict=True):
        store.write(data, tmp_path / f"{name}.nc", schema, store.Provenance())

    def written(name: str) -> bytes:
        with (
            store.read(tmp_path / "dynamics.nc", "dynamics", store.JOINED) as dynamics,
            store.read(tmp_path / "gradients.nc", "gradients", store.JOINED) as gradients,
        ):
            store.write(fit(approach, approach(), dynamics, gradients), tmp_path / name, FIT, store.Provenance())
        return (tmp_path / name).read_bytes()

    whole = written("fit.nc")
    monkeypatch.setattr(fit_module, "_PIECE", 1)
    monkeypatch.setattr(fit_module, "LANES", 2)
    assert written("again.nc") == whole
    ds = store.read(tmp_path / "fit.nc", "fit")
    rows = list(csv.reader(simulation_lines(ds), delimiter="\t"))
    assert rows[0] == ["sample", "observableId", "experimentId", "time", "simulation"]
    values = [float(row[-1]) for row in rows[1:]]
    np.testing.assert_array_equal(np.reshape(values, (2, -1)), ds["simulation"].values)
    assert rows[1 + len(measured.MEASUREMENTS)][:4] == ["second", "level", "low", "0.5"]


def test_a_measurement_at_rest_has_the_time_inf(approach: type[Model]):
    ds = fit(approach, approach(), *files())
    ds["measurement_time"][0] = np.nan
    assert "first\tlevel\tlow\tinf\t" in list(simulation_lines(ds))[1]


def test_names_that_fit_no_experiment_are_refused(approach: type[Model]):
    for ids, told in (
        (["low", "second:high"], None),
        (["first:low", "low"], None),
        (["first:low", "nominal:low", "low"], "'nominal:low' and 'low' are both the experiment 'low'"),
        (["mild", "high"], "Scenario 'mild' has measurements of the experiment 'low', wanted the id 'low' or"),
    ):
        dynamics, gradients = files(["low"] * len(ids))
        dynamics["scenario_name"] = ("scenario", np.array(ids, object))
        # Which experiment it is, the parameters say.
        dynamics["k"][:, -1] = [float("high" in name) for name in ids]
        if told is None:
            fit(approach, approach(), dynamics, gradients)
        else:
            with pytest.raises(RetrogradError, match=told):
                fit(approach, approach(), dynamics, gradients)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("return rows, jnp", "return rows + 9, jnp", "the measurements .*, wanted each at most once, from 0 to 6"),
        ("return rows, jnp", "return 0 * rows, jnp", "wanted each at most once"),
        ("(0, 2, 4, 1)", "(0, 2, 5, 1)", "experiments high, low, wanted those of one experiment"),
        ("return rows, jnp", "return rows + 0.0, jnp", "rows of type float64, wanted whole numbers"),
        ("return rows, jnp", "return rows[:1], jnp", r"returned shapes \(1,\), \(4,\), \(4,\), wanted \(row,\)"),
        ("return rows, jnp", "return 0 * rows - 1, jnp", "gave no scenario a measurement"),
    ],
)
def test_what_a_plugin_may_not_return(old: str, new: str, told: str, tmp_path: Path):
    assert old in measured.PLUGIN
    (tmp_path / "approach.py").write_text(measured.PLUGIN.replace(old, new))
    cls = load_class(str(tmp_path / "approach.py"), "Approach")
    with pytest.raises(RetrogradError, match=told):
        fit(cls, cls(), *files())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"time": (', '"times": (', "measurements has experiment, observable, times, measurement, wanted {} or a dict"),
        ("(0.5, 1.0, 4.0, ", "(0.5, 1.0, ", "columns of lengths .*'time': 6"),
        ("(1.9, ", "(float('inf'), ", r"measurements has inf in measurement\[0\], wanted a number"),
        ('"low", "low", "low"', '"low", 3, "low"', r"measurements has 3 in experiment\[1\], wanted text"),
        ("def fitted", "def fit", r"no method fitted\(self, times, x, k\)"),
    ],
)
def test_measurements_are_checked_when_the_plugin_is_loaded(old: str, new: str, told: str, tmp_path: Path):
    assert old in measured.PLUGIN
    (tmp_path / "approach.py").write_text(measured.PLUGIN.replace(old, new))
    with pytest.raises(RetrogradError, match=told):
        load_class(str(tmp_path / "approach.py"), "Approach")


# -- the report ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("observables", "experiments", "samples"), [(1, 1, 1), (4, 2, 3), (15, 9, 60)])
def test_the_page_has_both_figures_and_the_table(observables: int, experiments: int, samples: int, tmp_path: Path):
    results = synthetic.study(tmp_path / "r", synthetic.MIXED)
    ds = synthetic.measured(observables, experiments, samples)
    variants = tuple(dataclasses.replace(v, fit=ds) for v in results.variants)
    results = dataclasses.replace(results, variants=variants)
    made = [[str(tmp_path / f"{name}.{form}") for name in fit_figures.FIGURES] for form in ("svg", "png")]
    sizes = report.make(results, str(tmp_path / "index.html"), *made)
    assert set(sizes) == {"index.html", *(Path(path).name for form in made for path in form)}
    page = test_report.Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "Simulated against measured" in page.words
    assert f"{ds.sizes['measurement']} measurement" in page.words and "−12.3457 ± 0.0010" in page.words
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) == 2 and all(len(attrs["aria-label"] or "") > 40 for attrs in pictures)
    if samples > 1:
        assert f"this study has {samples}, and the figures show p0" in page.words
        assert "experiment failed" in page.words
    if samples > fit_figures.MOST_SAMPLES:
        assert f"The first 50 of {samples} samples" in page.words
        assert "Not drawn: observable 12, observable 13, observable 14." in page.words
        assert "The 6 experiments with most measurements are coloured, the other 3 grey." in page.words


def test_a_study_without_measurements_has_no_such_section(tmp_path: Path):
    results = synthetic.study(tmp_path / "r", synthetic.MIXED)
    made = [str(tmp_path / f"{name}.svg") for name in fit_figures.FIGURES]
    report.make(results, str(tmp_path / "index.html"), made, [])
    page = test_report.Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "Simulated against measured" not in page.words
