"""What is seen of a plug-in without importing it, and the text of what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrograd.plugin_source import Plugin, look_at_plugin

ROOT = Path(__file__).parents[2]

PLUGIN = """
from typing import ClassVar
from retrograd.api import Model

class Decay(Model):
    states = {"x": "1", "y": "1"}
    parameters: ClassVar[dict[str, str]] = {"k1": "s-1", "k2": "s-1"}
    formulations = {"stable": "vector_field", "naive": "plain"}

    def vector_field(self, t, x, k): ...
    def plain(self, t, x, k): ...
    def initial_state(self, k): ...
"""


def look(source: str, tmp_path: Path) -> tuple[Plugin, list[str]]:
    path = tmp_path / "m.py"
    path.write_text(source)
    plugin, problems = look_at_plugin(str(path), "Decay")
    return plugin, [line.replace(str(path), "m.py") for line in problems]


def test_a_plugin(tmp_path: Path):
    expected = Plugin(("x", "y"), ("k1", "k2"), ("stable", "naive"), has_initial_state=True)
    assert look(PLUGIN, tmp_path) == (expected, [])


def test_the_plugin_is_not_run(tmp_path: Path):
    assert look(PLUGIN + "\nraise SystemExit('imported')\n", tmp_path) == look(PLUGIN, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "models").glob("*.py")), ids=lambda p: p.stem)
def test_plugins_in_the_repository(path: Path):
    plugin, problems = look_at_plugin(str(path), path.stem.title().replace("_", ""))
    assert problems == []
    assert plugin.states
    assert plugin.parameters
    assert plugin.formulations


def test_what_is_left_out_is_as_in_the_base_class(tmp_path: Path):
    source = "from retrograd.api import Model\nclass Decay(Model):\n    states = {'x': '1'}\n"
    plugin, problems = look(source + "    def vector_field(self, t, x, k): ...\n", tmp_path)
    assert plugin == Plugin(("x",), (), ("stable",), has_initial_state=False)
    assert problems == []


def test_a_syntax_error(tmp_path: Path):
    plugin, (problem,) = look("class Decay(:\n", tmp_path)
    assert plugin == Plugin()
    assert problem.startswith("m.py: line 1: found a syntax error (")


def test_without_the_class(tmp_path: Path):
    source = "from retrograd.api import Model\nif True:\n    class Decoy(Model): ...\nclass Other: ...\n"
    assert look(source, tmp_path)[1] == [
        "model.class: found 'Decay', wanted a class of m.py: one of Decoy, Other; did you mean 'Decoy'?"
    ]


def test_a_class_that_is_no_model(tmp_path: Path):
    assert look("class Decay:\n    states = {'x': '1'}\n", tmp_path)[1] == [
        "m.py: class Decay: found no base class, wanted a subclass of retrograd.api.Model"
    ]


def test_declarations(tmp_path: Path):
    source = (
        "from retrograd import api\n"
        "class Decay(api.Model):\n"
        "    parameters = {'k1': 1}\n"
        "    formulations = {'stable': 'rate'}\n"
    )
    plugin, problems = look(source, tmp_path)
    assert problems == [
        'm.py: class Decay: found parameters = {"k1": 1}, wanted a dict of text to text',
        "m.py: class Decay: found no states, wanted at least one, as states = {'name': ...}",
        "m.py: class Decay: found no method 'rate', wanted one for the formulation 'stable'",
    ]
    # What is in order stays known, so that the study is checked against it.
    assert plugin == Plugin(None, None, ("stable",), has_initial_state=False)


@pytest.mark.parametrize("name", ["scenario", "k@steady", "x0:x", " k", ""])
def test_parameters_that_cannot_head_a_column(name: str, tmp_path: Path):
    source = PLUGIN.replace('"k2": "s-1"', f'"k2": "s-1", "{name}": "1"')
    assert look(source, tmp_path)[1] == [
        (
            f"m.py: class Decay: found the parameter {name!r}, wanted a name that can head a column: "
            "not `scenario`, no @, no x0: in front"
        )
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from elsewhere import *\n", Plugin()),
        ("from elsewhere import Decay\n", Plugin()),
        ("Decay = make()\n", Plugin()),
        ("from elsewhere import Base\nclass Decay(Base): ...\n", Plugin()),
        ("from retrograd.api import Model\n@patch\nclass Decay(Model): ...\n", Plugin()),
        (
            (
                "from retrograd.api import Model\nN = {'x': '1'}\n"
                "class Decay(Model):\n    states = N\n    parameters = N | {}\n"
                "    formulations = {n: n for n in N}\n"
            ),
            Plugin(has_initial_state=False),
        ),
        (
            (
                "from retrograd.api import Model\nclass Decay(Model):\n    states = {'x': '1'}\n"
                "    parameters = {'k': '1'}\n    parameters['k1'] = '1'\n    states |= {}\n"
                "    def vector_field(self, t, x, k): ...\n"
            ),
            Plugin(None, None, ("stable",), has_initial_state=False),
        ),
        (
            PLUGIN + "\nDecay.parameters['k9'] = '1'\n",
            Plugin(("x", "y"), None, ("stable", "naive"), has_initial_state=True),
        ),
    ],
)
def test_what_takes_running_the_plugin_is_left_open(source: str, expected: Plugin, tmp_path: Path):
    assert look(source, tmp_path) == (expected, [])


@pytest.mark.parametrize(
    ("estimated", "told"),
    [
        ("None", []),
        ("()", []),
        ("('k2', 'k1')", []),
        ("names", []),
        ("('k2', 'k_1')", ["found 'k_1' in estimated, wanted a parameter: one of k1, k2; did you mean 'k1'?"]),
        ("'k1'", ["found estimated = 'k1', wanted None or a tuple of parameters"]),
        ("['k1']", ['found estimated = ["k1"], wanted None or a tuple of parameters']),
    ],
)
def test_estimated_parameters(estimated: str, told: list[str], tmp_path: Path):
    source = PLUGIN.replace("    states", f"    estimated = {estimated}\n    states")
    assert look(source, tmp_path)[1] == [f"m.py: class Decay: {text}" for text in told]


def test_base_classes_in_the_same_file(tmp_path: Path):
    source = PLUGIN.replace("class Decay(Model)", "class Base(Model)") + (
        "\nclass Decay(Base):\n    parameters = {'k1': '1', 'k3': '1'}\n"
    )
    expected = Plugin(("x", "y"), ("k1", "k3"), ("stable", "naive"), has_initial_state=True)
    assert look(source, tmp_path) == (expected, [])


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("measurements = {'time': (1.0,)}", True),
        ("measurements = read_table()", True),
        ("measurements: ClassVar[dict] = {'time': (1.0,)}", True),
        ("measurements = {}", False),
        ("frozen = ()", False),
    ],
)
def test_measurements_are_seen(body: str, shown: bool, tmp_path: Path):
    inherits = "\nclass Base(Model):\n    {}\nclass Decay(Base): ...\n"
    for source in (PLUGIN + f"    {body}\n", "from retrograd.api import Model" + inherits.format(body)):
        assert look(source, tmp_path)[0].has_measurements == shown
