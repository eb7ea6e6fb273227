"""The documents say what the code does: generated tables, members, attributes, links."""

from __future__ import annotations

import ast
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
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "config").rglob("*.md"), ROOT / "results/README.md", ROOT / "workflow/DECISIONS.md"]
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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, target
