"""The documents say what the code does: generated tables, members, attributes, links."""

from __future__ import annotations

import ast
import html
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import make_reference
from retrograd import api, store, study
from retrograd.schema import SUMMARY

ROOT = Path(__file__).parents[2]
TEXT = make_reference.REFERENCE.read_text(encoding="utf-8")
# All that are tracked: below `results/` and in hidden folders lie those of other studies and packages.
FOLDERS = ("config", "envs", "scripts", "tests", "workflow")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), ROOT / "results/README.md", *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.md"))]
)


def test_generated_tables_are_up_to_date():
    if make_reference.render(TEXT) != TEXT:
        pytest.fail(f"config/README.md differs from the code. Run: {make_reference.COMMAND}", pytrace=False)


def test_a_lost_block_is_named():
    with pytest.raises(ValueError, match="codes cause"):
        make_reference.render(TEXT.replace("<!-- generated: codes cause -->", ""))


def test_every_code_has_a_meaning():
    for name, flags in make_reference._FLAGS.items():
        assert set(make_reference.CODES[name]) == set(flags)


def test_every_member_of_the_model_is_described():
    source = ast.parse(inspect.getsource(api))
    (model,) = (node for node in source.body if isinstance(node, ast.ClassDef))
    names = {node.name for node in model.body if isinstance(node, ast.FunctionDef)}
    names |= {
        node.target.id for node in model.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    told = set(re.findall(r"^\| `(\w+)(?:\(.*?\))?` \|", TEXT, re.MULTILINE))
    assert names <= told


def test_signatures_of_the_members_are_those_of_the_model():
    for name, arguments in re.findall(r"^\| `(\w+)\(((?:self|cls).*?)\)` \|", TEXT, re.MULTILINE):
        method = inspect.getattr_static(api.Model, name)
        method = getattr(method, "__func__", method)
        assert list(inspect.signature(method).parameters) == arguments.split(", "), name


def test_every_global_attribute_is_described(tmp_path):
    values = {"outcome": np.zeros((1, 1), np.int8)}
    dataset = store.build(SUMMARY, values, {"variant": ["v"], "scenario": ["s"]})
    store.write(dataset, tmp_path / "summary.nc", SUMMARY, store.Provenance())
    missing = [name for name in xr.load_dataset(tmp_path / "summary.nc").attrs if f"`{name}`" not in TEXT]
    assert not missing


def test_arguments_of_single_commands_are_named():
    assert [name for name in study.ARGUMENTS if f"`{name}`" not in TEXT] == []


def without_blocks(text: str) -> str:
    """Returns Markdown without its blocks of code."""
    return re.sub(r"^(```|~~~).*?^\1[ \t]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> list[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    names: list[str] = []
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+?)(?: #+)?$", without_blocks(text), re.MULTILINE):
        # Of a link its words, of an entity its sign.
        shown = html.unescape(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
        name = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.append(f"{name}-{names.count(name)}" if name in names else name)
        names.append(name)
    return found


def test_anchors_are_those_of_github():
    text = "# `a_b` and [c](d)!\n```\n# no heading\n```\n## timings/&lt;x&gt;\n## What?\n## What?\n"
    assert anchors(text) == ["a_b-and-c", "timingsx", "what", "what-1"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = without_blocks(path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target
