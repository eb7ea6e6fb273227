"""The report in a real browser: nothing fails or is fetched, what it promises works, and everybody can use it."""

from __future__ import annotations

import base64
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from synthetic import study

from retrograd import details, report
from retrograd.results import Results
from retrograd.schema import OUTCOMES

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was looked at in no browser"),
]
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright, of envs/requirements-dev.txt, is not installed"
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe, likewise, is not installed")

FIGURES = [name for name in report.FIGURES if name not in ("waterfall", "effects", "fit", "time_courses")]
HOSTILE = "<img src=x onerror=alert(1)></script>"
WIDE, PHONE = {"width": 1400, "height": 1000}, {"width": 400, "height": 800}


def page_of(results: Results, folder: Path) -> Path:
    folder.mkdir()
    report.make(results, str(folder / "index.html"), [str(folder / f"{name}.svg") for name in FIGURES], [])
    return folder / "index.html"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    ends = [*OUTCOMES, *["verified"] * 6]
    names = [HOSTILE, *(f"s{i:02d}" for i in range(1, 12))]
    good = ["verified"] * 11 + ["forward_failed"]
    return page_of(study(folder / "study", {"naive": ends, "recommended": good}, ids=names), folder / "report")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as p:
        # As root, where CI runs, there is no sandbox.
        started = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, path: Path) -> Iterator[Callable]:
    """Opens the page; at the end nothing must have been told on the console, and nothing asked for but the page."""
    said, asked, contexts = [], [], []

    def open_page(fragment: str = "", file: Path = path, **options):
        context = (
            browser.new_context(viewport=WIDE, **options)
            if "viewport" not in options
            else browser.new_context(**options)
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{file}{fragment}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.partition("#")[0].startswith("file://") and url.partition("#")[0].endswith(".html") for url in asked)


def shown_rows(page) -> list[str]:
    return page.eval_on_selector_all("#table tbody tr:not([hidden]) th", "cells => cells.map(c => c.textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_everybody_can_use_it(opened, viewport: dict[str, int], scheme: str):
    page = opened(viewport=viewport, color_scheme=scheme)
    violations = lambda: [
        (v["id"], [n["html"] for n in v["nodes"]]) for v in axe.Axe().run(page).response["violations"]
    ]
    assert violations() == []
    page.click("#table tbody button")
    page.wait_for_selector("dialog[open] svg.chart")
    assert violations() == []


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_screen(opened, viewport: dict[str, int]):
    page = opened(viewport=viewport)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    page.click("#table tbody button")
    dialog = "document.querySelector('dialog')"
    assert page.evaluate(f"{dialog}.scrollWidth <= {dialog}.clientWidth && {dialog}.offsetWidth <= innerWidth")


def test_on_a_phone_captions_stay_and_verdicts_come_second(opened):
    page = opened(viewport=PHONE)
    page.click("#table tbody button")
    page.select_option("#scenario-variant", label="recommended")
    moved = page.eval_on_selector_all(
        ".scroll:has(caption)",
        """all => all.filter(n => n.checkVisibility() && n.scrollWidth > n.clientWidth).map(n => {
          n.scrollLeft = 1e6;
          const [outer, inner] = [n, n.querySelector("caption span")].map(e => e.getBoundingClientRect());
          return [n.scrollLeft > 0, inner.left - outer.left, inner.right <= outer.right + 1];
        })""",
    )
    assert len(moved) > 5
    assert all(scrolled and abs(offset) <= 1 and inside for scrolled, offset, inside in moved)
    heads = page.eval_on_selector_all(
        "dialog table:last-of-type thead tr", "all => all.map(r => r.cells[1].textContent)"
    )
    assert heads[-1] == "verdict"


def test_every_figure_and_formula_is_shown(opened):
    page = opened()
    sizes = page.eval_on_selector_all(
        ".canvas svg.plot",
        "all => all.map(n => [n.getBoundingClientRect().width, n.querySelectorAll('path, text').length])",
    )
    assert len(sizes) == len(FIGURES)
    assert all(width > 400 and parts > 0 for width, parts in sizes)
    assert page.eval_on_selector_all("math", "all => all.map(n => n.getBoundingClientRect().height > 20)") == [True]


@pytest.mark.parametrize("embedded", [False, True], ids=["alone", "in a frame"])
def test_figures_are_saved_without_files_beside_the_page(opened, path: Path, tmp_path: Path, embedded: bool):
    # As `snakemake --report` holds it: as data, in a frame.
    data = base64.b64encode(path.read_bytes()).decode()
    (tmp_path / "report.html").write_text(f'<iframe src="data:text/html;charset=utf8;base64,{data}"></iframe>')
    alone = shutil.copy(path, tmp_path / "page.html")
    page = opened(file=tmp_path / "report.html" if embedded else alone)
    frame = page.frames[-1]
    frame.wait_for_selector(".files button")
    assert frame.query_selector(".files a") is None
    for form in ("svg", "png"):
        with page.expect_download() as waiting:
            # The frame is small, and what is outside of it cannot be clicked.
            frame.locator(f"button[aria-label='save steps.{form}']").evaluate("node => node.click()")
        assert waiting.value.suggested_filename == f"steps.{form}"
        content = Path(waiting.value.path()).read_bytes()
        if form == "svg":
            root, file = ET.fromstring(content), ET.parse(path.parent / "steps.svg").getroot()
            assert [root.get(key) for key in ("width", "height", "viewBox")] == [
                file.get(key) for key in ("width", "height", "viewBox")
            ]
            texts = [[n.text for n in r.iter() if n.tag.endswith("}text")] for r in (root, file)]
            assert texts[0] == texts[1] != []
        else:
            size = [int.from_bytes(content[i : i + 4], "big") for i in (16, 20)]
            wanted = [float(str(file.get(key)).removesuffix("pt")) * 150 / 72 for key in ("width", "height")]
            np.testing.assert_allclose(size, wanted, atol=1)
            assert len(content) > 10_000


def test_the_table_sorts_and_filters(opened):
    page = opened()
    order = shown_rows(page)
    attempts = lambda: [
        int(v) for v in page.eval_on_selector_all("#table tbody tr td:last-child", "all => all.map(c => c.dataset.v)")
    ]
    page.click("#table thead th:last-child button")
    assert attempts() == sorted(attempts())
    page.click("#table thead th:last-child button")
    assert attempts() == sorted(attempts(), reverse=True)
    assert page.get_attribute("#table thead th:last-child", "aria-sort") == "descending"
    page.click("#table thead th:first-child button")
    assert shown_rows(page) == order
    page.fill("#filter", "s1")
    assert shown_rows(page) == ["s10", "s11"]
    assert page.inner_text("#matches") == "2 of 12 shown"
    page.fill("#filter", "")
    page.select_option("#outcome", str(OUTCOMES.index("forward_failed")))
    assert shown_rows(page) == ["s01", "s11"]
    page.select_option("#under", label="recommended")
    assert shown_rows(page) == ["s11"]
    page.select_option("#under", label="naive")
    page.select_option("#outcome", label="not verified")
    missed = shown_rows(page)
    assert "s01" in missed and len(missed) < 12
    # The arrows of a scenario's details go through the rows that are shown.
    page.click(f"#table tbody tr:has-text('{missed[0]}') button")
    assert page.inner_text("#scenario-place") == f"1 / {len(missed)}"
    for name in [*missed[1:], missed[0]]:
        page.click("#scenario-after")
        assert page.inner_text("#scenario-name") == name


def test_a_scenario_opens_by_keyboard_and_tells_what_happened(opened):
    page = opened()
    page.focus("#table tbody tr:nth-child(2) button")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert page.inner_text("#scenario-name") == "s01"
    page.select_option("#scenario-variant", label="naive")
    text = page.inner_text("#scenario-content")
    assert "Forward solve failed: the attempts ran out (max_steps)." in text
    assert "Verified under\nrecommended" in text
    assert "State\nx0: moved most in the last accepted step" in text
    titles = page.eval_on_selector_all("dialog figcaption", "all => all.map(n => n.textContent)")
    assert titles == ["x0 over time", "x1 over time", "Steps"]
    page.select_option("#scenario-variant", label="recommended")
    titles = page.eval_on_selector_all("dialog figcaption", "all => all.map(n => n.textContent)")
    assert titles == [
        "x0 over time",
        "x1 over time",
        "Steps",
        "Finite differences (bars: bounds of their extrapolation)",
    ]
    assert "k1@dynamic\tverified\t1 ± 1\u00a0×\u00a010⁻¹²\t1 ± 1\u00a0×\u00a010⁻⁹" in page.inner_text(
        "#scenario-content"
    )
    page.click("#scenario-after")
    assert page.inner_text("#scenario-name") == "s02"
    assert page.url.endswith("#scenario=s02")
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")
    assert page.evaluate("document.activeElement.textContent") == "s01"


def test_any_derivative_can_be_chosen_by_keyboard(opened, tmp_path: Path):
    wrt = tuple(f"k{i}@dynamic" for i in range(20))
    file = page_of(study(tmp_path / "study", {"recommended": ["verified"] * 2}, wrt=wrt), tmp_path / "report")
    page = opened("#scenario=s00", file=file)
    title = lambda: page.eval_on_selector_all("dialog figcaption", "all => all.at(-1).textContent")
    assert title() == "Finite differences: the 6 with the widest bounds (bars: bounds of their extrapolation)"
    select = page.get_by_label("Finite differences by")
    assert select.locator("option").all_text_contents() == ["the 6 with the widest bounds", *wrt[:16]]
    text = page.inner_text("#scenario-content")
    assert "16 of 20 derivatives can be chosen: of more than 16 the page holds the first ones." in text
    assert "The first 16 of 20; all stand in gradients.nc." in text
    select.focus()
    page.keyboard.press("End")
    assert title() == "Finite differences by k15@dynamic (bar: bound of its extrapolation)"
    assert page.locator("dialog .key").last.inner_text() == "k15@dynamic"
    assert page.evaluate("document.activeElement.id") == "scenario-sweep"
    page.click("#scenario-after")
    assert title() == "Finite differences by k15@dynamic (bar: bound of its extrapolation)"


def test_the_steps_are_the_recorded_ones(opened, path: Path):
    results = study(path.parent.parent / "again", {"recommended": ["verified"] * 3})
    data = details.page_data(results, [])
    mine = results.best.attempts(1)
    end, start = (results.best.dynamics[f"attempt_{what}"][mine].values for what in ("end", "start"))
    drawn = data["scenarios"][1]["by"][0]["a"]
    np.testing.assert_allclose(drawn[0], end, rtol=1e-3)
    np.testing.assert_allclose(drawn[1], end - start, rtol=2e-3)
    assert drawn[2] == [0, 0, 0, 0, 0, 2]


def test_a_link_leads_to_a_scenario(opened):
    page = opened("#scenario=s05")
    assert page.inner_text("#scenario-name") == "s05"
    page.evaluate("location.hash = '#scenario=s07'")
    page.wait_for_function("document.getElementById('scenario-name').textContent === 's07'")


def test_a_hostile_name_is_text(opened):
    page = opened()
    page.click("#table tbody button")
    assert page.inner_text("#scenario-name") == HOSTILE
    assert page.query_selector("img") is None


def test_without_scripts_it_is_a_page_all_the_same(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("#table tbody tr").count() == 12
    assert not page.is_visible(".controls")
    assert not page.is_visible(".scripted")


def test_it_prints(opened):
    page = opened()
    page.emulate_media(media="print")
    assert not page.is_visible("nav")
    assert page.is_visible("#table tbody tr:last-child")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 5


def test_of_thousands_the_worst_and_a_sample_have_details(opened, tmp_path: Path):
    total = 3000
    ends = np.array(["verified"] * total, object)
    ends[::100] = "forward_failed"
    results = study(tmp_path / "study", {"recommended": list(ends), "naive": ["forward_failed"] * total})
    file = page_of(results, tmp_path / "report")
    assert file.stat().st_size < 5_000_000
    kept = details.chosen(results)
    assert len(kept) == details.MOST_PAIRS // 2
    assert set(np.flatnonzero(ends != "verified")) <= set(kept)
    page = opened(file=file)
    assert page.locator("#table tbody button").count() == len(kept)
