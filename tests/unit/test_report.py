"""The report: what the page says, that it stands alone, and that odd studies get one too."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import yaml
from sealing import seal_again
from synthetic import CAUSE_OF, MIXED, study

from retrograd import details, drawing, page_tables, pages, report, wording
from retrograd.errors import RetrogradError
from retrograd.provenance import file_digest
from retrograd.results import Results, load
from retrograd.schema import CAUSES, OUTCOMES
from retrograd.summary import summarize

ROOT = Path(__file__).parents[2]
OF_FACTORS = ("waterfall", "effects")
OF_FITS = ("fit", "time_courses")
NAMES = [name for name in report.FIGURES if name not in (*OF_FACTORS, *OF_FITS)]


def make(results: Results, folder: Path, pictures: bool = False) -> str:
    """Draws the figures, with their PNG files if asked for, writes the page and returns it."""
    svg, png = ([str(folder / f"{name}.{form}") for name in NAMES] for form in ("svg", "png"))
    report.make(results, str(folder / "index.html"), svg, png if pictures else [])
    return (folder / "index.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a test wants to know of a page: every tag with its attributes, ids, and text."""

    VOID = ("meta", "link", "input", "br", "path", "use")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, str, Path]:
    folder = tmp_path_factory.mktemp("mixed")
    results = study(folder, MIXED)
    return results, make(results, folder / "report", pictures=True), folder / "report"


def test_the_verdict_counts_every_outcome_in_one_sentence(mixed: tuple[Results, str, Path]) -> None:
    results, html, _ = mixed
    told = {v.name: wording.verdict(results, v) for v in results.variants}
    assert told == {
        "recommended": "7 of 7 gradients verified.",
        "naive": "1 of 7 gradients verified; 2 forward solves failed, 1 gradient not finite, "
        "1 gradient refuted by its check, "
        "1 check inconclusive, 1 steady state not found.",
    }
    for sentence in told.values():
        assert sentence in html
    assert results.best.name == "recommended"
    assert [v.name for v in results.variants] == ["recommended", "naive"]


def test_the_page_asks_nothing_of_any_network(mixed: tuple[Results, str, Path]) -> None:
    _, html, folder = mixed
    # The name of SVG, which nothing is fetched from.
    assert "http:" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    for tag, attrs in Page(html).tags:
        for key in ("src", "href", "xlink:href", "action", "data"):
            value = attrs.get(key)
            local = value is None or value.startswith(("#", "data:")) or (folder / value).is_file()
            assert local, (tag, key, value)


def test_the_page_is_well_formed(mixed: tuple[Results, str, Path]) -> None:
    page = Page(mixed[1])
    assert not page.open
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {str(attrs["href"])[1:] for _, attrs in page.tags if str(attrs.get("href", "")).startswith("#")}
    assert targets <= set(ids)
    assert ("html", {"lang": "en"}) in page.tags
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_every_figure_is_shown_and_described(mixed: tuple[Results, str, Path]) -> None:
    _, html, folder = mixed
    pictures = [attrs for tag, attrs in Page(html).tags if tag == "svg"]
    assert len(pictures) == len(NAMES)
    for attrs in pictures:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"] or "") > 40
    assert sum(tag == "figcaption" for tag, _ in Page(html).tags) == len(NAMES)
    for name in NAMES:
        png = (folder / f"{name}.png").read_bytes()
        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
        assert width <= 8 * 150
        assert height <= 5 * 150
        assert b"Software" not in png
        assert b"dc:date" not in (folder / f"{name}.svg").read_bytes()


def test_a_repeat_gives_the_same_bytes(mixed: tuple[Results, str, Path], tmp_path: Path) -> None:
    again = make(study(tmp_path, MIXED), tmp_path / "report", pictures=True)
    assert again == mixed[1]
    for path in sorted(mixed[2].iterdir()):
        assert (tmp_path / "report" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_page_names_no_folder_of_this_machine(mixed: tuple[Results, str, Path]) -> None:
    _, html, folder = mixed
    assert "/home/someone" not in html
    assert str(folder) not in html
    assert "tiny.tsv" in html


def test_causes_come_with_advice_and_with_what_cures_them(mixed: tuple[Results, str, Path]) -> None:
    results, html, _ = mixed
    words = Page(html).words
    causes = {f["code"]: f for f in page_tables.failure_table(results)}
    assert list(causes) == [c for c in CAUSES if c in set(CAUSE_OF.values()) and c != "none"]
    for cause in causes.values():
        assert cause["advice"] in words
    exhausted = causes["steps_exhausted"]["rows"]
    assert [(r["name"], r["count"], r["examples"]) for r in exhausted] == [("naive", 2, ["s01", "s02"])]
    assert exhausted[0]["cure"] == {"name": "recommended", "count": 2, "of": 2}


def test_every_code_has_words() -> None:
    assert set(wording.CAUSE_WORDS) == set(CAUSES)
    assert set(wording.OUTCOME_MEANING) == set(drawing.OUTCOME_STYLE) == set(wording.SHORT) == set(OUTCOMES)


DESCRIPTION = """Decay of x0 into x1.

- `x0`, `x1`: amounts, as fractions
  of the whole.
- `k1`: the rate
- a sentence on `k2`: none of them
* `f` and `p`: the network and its weights.

- `x0: no name`
"""


def test_the_docstring_tells_what_symbols_mean() -> None:
    whole = "amounts, as fractions of the whole."
    network = "the network and its weights."
    assert page_tables.meanings(DESCRIPTION) == {
        "x0": whole,
        "x1": whole,
        "k1": "the rate",
        "f": network,
        "p": network,
    }
    assert page_tables.meanings("") == {}


def test_the_table_of_symbols(tmp_path: Path) -> None:
    results = study(tmp_path, MIXED, units=("mol m-3", "K"))
    rows, left_out = page_tables.symbol_table(results)
    start = [("at time 0", 1.0, 1.0)]
    assert left_out == 0
    assert [(r["name"], r["role"], r["unit"], r["meaning"], r["wrt"], r["ranges"]) for r in rows] == [
        ("x0", "state", "mol m-3", "", [], start),
        ("x1", "state", "K", "", [], start),
        ("k1", "parameter", "1", "", ["k1@dynamic", "k1@steady"], [("", 0.0, 2.0)]),
    ]
    assert "The model’s description gives no meanings." in report.page(results, {})
    results.model.attrs["description"] = "- `k1`: how <fast> it is."
    results.best.steady["k"].values[:, 0] = 5.0
    assert page_tables.symbol_table(results)[0][2]["ranges"] == [
        ("steady phase", 5.0, 5.0),
        ("dynamic phase", 0.0, 2.0),
    ]
    words = Page(report.page(results, {})).words
    assert "k1 parameter 1 how <fast> it is. k1@dynamic, k1@steady steady phase: 5 ; dynamic phase: 0 to 2" in words


def test_the_sweep_of_every_derivative_is_in_the_page(tmp_path: Path) -> None:
    results = study(tmp_path, MIXED, wrt=tuple(f"k{i}@dynamic" for i in range(40)))
    data = details.page_data(results, [])
    assert (data["valleys"], data["variants"][0]["of"], len(data["variants"][0]["wrt"])) == (6, 40, 16)
    ds, size = results.best.gradients, results.best.size[1]
    valleys = {j: rest for j, *rest in data["scenarios"][1]["by"][0]["valley"]}
    assert sorted(valleys) == list(range(details.MOST_WRT))
    for j, (first, last, errors, bound) in valleys.items():
        width = ds["fd_sweep_width"].values[1, j]
        error = np.abs(ds["fd_sweep"].values[1, j] - ds["ad"].values[1, 0, j]) / size
        # Half a hundredth of a decade is 1.2 %.
        np.testing.assert_allclose(10 ** (np.linspace(first, last, len(width)) / 100), width, rtol=0.012)
        np.testing.assert_allclose(10 ** (np.array(errors) / 100), error, rtol=0.012)
        assert 10 ** (bound / 100) == pytest.approx(ds["fd_error"].values[1, j] / size, rel=0.012)


def test_of_many_steps_the_shortest_and_longest_are_drawn() -> None:
    # A thousand short steps at the start, and one long one among short ones late: by number it would be left out.
    size = np.concatenate([np.full(1000, 1e-6), np.geomspace(1e-6, 0.1, 40), np.full(1000, 1e-5)])
    size[1500] = 0.3
    end = 1e-6 + np.cumsum(size)
    # An attempt that was rejected ends later than the one after it.
    end[-1] = 0.5
    kept = details._extremes(end, size, 60)
    assert len(kept) <= 60 and np.all(np.diff(kept) > 0)
    assert {0, 1500} <= set(kept.tolist())
    assert np.max(size[kept]) == 0.3 and np.min(size[kept]) == 1e-6
    assert details._extremes(end[:50], size[:50], 60).tolist() == list(range(50))


def test_derivatives_of_which_the_ode_tells_no_digit_are_counted(tmp_path: Path) -> None:
    results = study(tmp_path, {"recommended": ["verified"] * 3})
    ds = results.best.gradients.load()
    before = page_tables.undetermined(results)
    total, left_out = before["total"], before["left_out"]
    assert before["count"] == 0 and total > 0
    ds["ode_error"][1, 0] = 2 * abs(float(ds["ad"][1, 0, 0]))
    assert page_tables.undetermined(results)["count"] == 1
    told = f"1 of {total} verified derivatives that are larger than their bounds are smaller than what"
    assert told in Page(report.page(results, {})).words
    # One that is no larger than its bounds is told of already.
    ds["fd_error"][1, 0] = 2 * abs(float(ds["fd"][1, 0]))
    results.best.__dict__.pop("bound", None)
    assert page_tables.undetermined(results) == {"count": 0, "total": total - 1, "left_out": left_out + 1}


def test_the_tables_own_words_are_told(tmp_path: Path) -> None:
    results = dataclasses.replace(study(tmp_path, MIXED), notes="derepress: the regulator <vanishes>")
    assert (
        "The table of scenarios says of itself: derepress: the regulator <vanishes>"
        in Page(report.page(results, {})).words
    )


MOVED = "moved most in the last accepted step, which need not be why it failed"


def test_a_failure_names_the_state_that_its_record_tells(tmp_path: Path) -> None:
    results = study(tmp_path, MIXED)
    naive = next(v for v in results.variants if v.name == "naive")
    naive.dynamics.load()
    i = results.index(naive)
    where = lambda: {f["code"]: f["rows"][0]["where"] for f in page_tables.failure_table(results)}
    assert wording.worst_state(results, naive, 1) == ("x0", MOVED)
    assert where()["steps_exhausted"] == f"state x0: {MOVED}"
    # Nothing is known of what has no failed simulation.
    assert [wording.worst_state(results, naive, s) for s in (0, 3, 4, 5, 6)] == [None] * 5
    # A cause that names none: from the record.
    results.summary["cause_state"].values[i] = -1
    for s, state in ((1, 1), (2, 1)):
        at = naive.steps(s).stop - 1
        naive.dynamics["step_x"].values[at - 1 : at + 1] = 0.0
        naive.dynamics["step_x"].values[at, state] = 5.0
        naive.dynamics["step_x"].values[at, 0] = np.nan
    assert wording.worst_state(results, naive, 1) == ("x1", MOVED)
    assert where()["steps_exhausted"] == f"state x1: {MOVED}"
    told = details.page_data(results, [])["scenarios"]
    at = results.shown.index(naive)
    assert [s["by"][at].get("at") for s in told] == [None, *[("x1", MOVED)] * 2, *[None] * 4]
    # One that overflowed, in an attempt that was recorded as such; the first scenario's attempts are all finite.
    results.summary["cause"].values[i] = CAUSES.index("state_overflow")
    results.summary["cause_state"].values[i] = 1
    naive.dynamics["attempt_finite"].values[naive.attempts(1)] = 1
    naive.dynamics["attempt_finite"].values[naive.attempts(2).start] = 0
    assert [wording.worst_state(results, naive, s) for s in (1, 2)] == [
        ("x1", MOVED),
        ("x1", "the first that is not finite in the attempt that is told"),
    ]


def test_the_environment_says_what_of_the_processor_is_known(tmp_path: Path) -> None:
    results = study(tmp_path, {"mine": ["verified"]})
    recorded = {"jax": "1", "machine": "x86_64", "cpu_features": ["avx", "fma"]}
    results.best.dynamics.attrs["retrograd_environment"] = json.dumps(recorded)
    words = Page(report.page(results, {})).words
    assert "processor architecture x86_64" in words
    assert "vector instructions avx, fma" in words
    assert "They do not record its model: with its name, digests would differ" in words


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    ids = [
        '<script>alert("1")</script>',
        "a$b$c & d",
        "ключ-日本-🧪",
        "x" * 200,
        'id="p" onload=go',
        "]]>",
        "{{ 7*7 }}",
    ]
    results = study(tmp_path, MIXED, ids=ids, wrt=("<b>@dynamic", "k$@steady", "network[0]"), states=("<i>x</i>", "é"))
    html = make(results, tmp_path / "report")
    page = Page(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any(tag in ("b", "i") and "x" in attrs for tag, attrs in page.tags)
    assert not any("onload" in attrs for _, attrs in page.tags)
    assert "&lt;script&gt;alert(" in html
    for name in ids:
        assert " ".join(name.split()) in page.words
    for name in NAMES:
        assert b"<script" not in (tmp_path / "report" / f"{name}.svg").read_bytes()


@pytest.mark.parametrize("end", [e for e in OUTCOMES if e != "verified"])
def test_a_study_in_which_all_failed(tmp_path: Path, end: str) -> None:
    html = make(study(tmp_path, {"naive": [end] * 5, "naive32": [end] * 5}), tmp_path / "report")
    assert "0 of 5 gradients verified; 5 " in html
    assert "no variant of this study" in html
    assert re.search(r"\b(nan|inf)\b", Page(html).words) is None


@pytest.mark.parametrize(
    "options",
    [
        {"steady": False, "wrt": ("k1@dynamic",)},
        {"wrt": ()},
        {"methods": ("checkpoint",)},
        {"states": ("x", "y"), "units": ("mol m-3", "K")},
        {"states": tuple(f"x{i}" for i in range(9)), "units": ("1",) * 9},
        {"wrt": tuple(f"k{i}@dynamic" for i in range(40))},
    ],
    ids=["initial state", "no derivatives", "one method", "mixed units", "many states", "many parameters"],
)
def test_other_shapes_of_study(tmp_path: Path, options: dict[str, Any]) -> None:
    html = make(study(tmp_path, MIXED, **options), tmp_path / "report")
    assert ("Steady states" in html) == options.get("steady", True)
    assert re.search(r"\b(nan|inf)\b", Page(html).words) is None


def test_a_single_scenario_under_a_single_variant(tmp_path: Path) -> None:
    html = make(study(tmp_path, {"mine": ["verified"]}), tmp_path / "report")
    assert "1 of 1 gradient verified." in html
    assert "Nothing failed" in html


def test_thousands_of_scenarios_are_sampled(tmp_path: Path) -> None:
    total = 3000
    ends = ["verified"] * total
    ends[2999] = "forward_failed"
    results = study(tmp_path, {"recommended": ends, "naive": ["gradient_nonfinite"] * total})
    html = make(results, tmp_path / "report")
    assert "2000 of 3000 are listed" in html
    assert "The other 1000 stand in" in html
    rows, left_out = page_tables.scenario_table(results)
    assert left_out == 1000
    assert rows[-1]["name"] == "s2999"
    assert len(html.encode()) < 5_000_000


def test_the_config_on_the_page_is_the_study(mixed: tuple[Results, str, Path]) -> None:
    told = yaml.safe_load(report.study_yaml(mixed[0]))
    assert told == {
        "study": "tiny",
        "model": {"plugin": "tiny.py", "class": "Tiny", "weights": None},
        "scenarios": "tiny.tsv",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(
            (0, "0"),
            (96, "96"),
            (0.5, "0.50"),
            (-0.0067, "−0.0067"),
            (1e-8, "10⁻⁸"),
            (float("nan"), "–"),
            (None, "–"),
        ),
        *(
            (3.4e-9, "3.4\u00a0×\u00a010⁻⁹"),
            (0.99999, "1.0"),
            (65432.1, "6.5\u00a0×\u00a010⁴"),
            (1e300, "10³⁰⁰"),
        ),
    ],
)
def test_numbers_are_written_as_they_are_read(value: float | None, text: str) -> None:
    assert pages.number(value) == text


def test_the_rule_draws_the_figures_that_exist() -> None:
    rule = (ROOT / "workflow/rules/report.smk").read_text()
    listed = re.findall(r'^    "(\w+)": "\w+",$', rule.partition("}")[0], re.MULTILINE)
    assert listed == NAMES
    for name in (*NAMES, *OF_FACTORS, *OF_FITS, "index", "workflow"):
        assert len((ROOT / f"workflow/report/{name}.rst").read_text()) > 100


def test_rungs_digits_reasons_and_independent_derivations_are_told(tmp_path: Path):
    results = study(tmp_path / "r", MIXED)
    verdicts = page_tables.verdict_table(results)
    assert [(row["name"], row["rescued"], row["digits"]) for row in verdicts] == [
        ("recommended", 1, 4.5),
        ("naive", 1, 4.5),
    ]
    why = {row["name"]: row["why"] for row in page_tables.method_table(results) if row["method"] == "replay"}
    assert why["recommended"] == []
    assert sorted(why["naive"]) == [("at a kink", 3), ("differ from FD", 3), ("not finite", 3)]
    rows = page_tables.independent_table(results)
    assert [(r["words"], r["scenarios"], r["derivatives"], r["inside"]) for r in rows] == [
        ("SciPy on sensitivity equations", 1, 3, 2)
    ] * 2
    assert rows[0]["distance"] == pytest.approx((1 + 5e-5) / 3)
    page = make(results, tmp_path / "page")
    assert page.count("(rescued by more_steps)") == 1
    assert "SciPy on sensitivity equations" in page


# -- files of one run -----------------------------------------------------------------------------------


def says(path: Path, **inputs: str) -> None:
    """Makes a file say that it was computed from something else."""
    # The results hold it open, and it can be replaced all the same.
    other = Path(shutil.copy(path, path.with_suffix(".other")))
    with netCDF4.Dataset(other, "r+") as file:
        file.retrograd_inputs = json.dumps(json.loads(file.retrograd_inputs) | inputs)
    seal_again(other)
    other.replace(path)


@pytest.mark.parametrize(
    ("file", "inputs"),
    [
        ("recommended/gradients.nc", {"dynamics": "0" * 64}),
        ("naive/dynamics.nc", {"model": "0" * 64}),
        ("summary.nc", {"naive/gradients": "0" * 64}),
    ],
)
def test_a_page_of_two_runs_is_not_written(file: str, inputs: dict[str, str], tmp_path: Path):
    results = study(tmp_path, MIXED)
    says(tmp_path / file, **inputs)
    (name,) = inputs
    with pytest.raises(RetrogradError, match=f"{file} is not of this run: it was computed from {name} 0000"):
        load(tmp_path, results.settings, str(tmp_path / "model.nc"), str(tmp_path / "summary.nc"))


def test_variants_of_two_runs_are_not_summed_up(tmp_path: Path):
    study(tmp_path, MIXED)
    variants = [{"name": name, "gradient": "replay"} for name in MIXED]
    settings = {"study": "tiny", "start": "initial_state", "variants": variants}
    for variant in MIXED:
        says(tmp_path / variant / "dynamics.nc", model=variant[0] * 64)
        says(tmp_path / variant / "gradients.nc", dynamics=file_digest(tmp_path / variant / "dynamics.nc"))
    with pytest.raises(RetrogradError, match=r"naive/dynamics\.nc is not of this run: it was computed from model nnn"):
        summarize(str(tmp_path), settings)


@pytest.mark.parametrize(
    ("value", "label"),
    [(1.0, "1"), (10.0, "10"), (1e-3, "10⁻³"), (9.9999999e-13, "10⁻¹²"), (3e-12, ""), (2e5, ""), (0.0, ""), (-1.0, "")],
)
def test_ticks_at_powers_of_ten_have_labels_and_no_others(value: float, label: str):
    assert drawing.power(value) == label
