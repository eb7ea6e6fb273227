"""The config of a study: what is accepted, and the text of what is refused."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrograd.errors import RetrogradError
from retrograd.loading import load_study
from retrograd.messages import ConfigError
from retrograd.provenance import canonical
from retrograd.settings import Variant
from retrograd.study import Grid, Study, stage_options

ROOT = Path(__file__).parents[2]
BUILT_IN = ROOT / "config" / "variants.yaml"

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

SCENARIOS = """\
# a comment
scenario\tk1\tk2@steady\tk2@dynamic\tx0:y
s01\t1\t2\t3\t0.5

s02\t-1e-3\t.5\t4.\t0
"""

CONFIG: dict[str, Any] = {
    "study": "decay",
    "model": {"plugin": "model.py", "class": "Decay", "weights": "w.safetensors"},
    "scenarios": "s.tsv",
    "start": "steady_state",
    "save_times": {"start": 0.0, "stop": 10.0, "num": 21},
    "variants": ["naive", "recommended", "mine"],
    "define_variants": {
        "mine": {
            "guard": {"x_max": 10.0, "dx_fill": 0.0},
            "segments": [{"until": 1.0, "dtmax": 0.1}, {"until": 5}],
            "controller": {"rtol": 1.0e-4},
        }
    },
    "gradient": {"methods": ["replay", "checkpoint"], "directions": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the files of `CONFIG`; tests do not write to it."""
    path = tmp_path_factory.mktemp("study")
    (path / "model.py").write_text(PLUGIN)
    (path / "s.tsv").write_text(SCENARIOS)
    (path / "w.safetensors").write_bytes(b"")
    return path


@pytest.fixture(autouse=True, scope="module")
def _inside(folder: Path):
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def changed(path: str = "", value: Any = None, **top: Any) -> dict[str, Any]:
    """Returns `CONFIG` with one value, at a dotted path, or some top-level ones replaced; `...` deletes."""
    config = copy.deepcopy(CONFIG)
    for place, new in [*([(path, value)] if path else []), *top.items()]:
        *parents, last = place.split(".")
        here: Any = config
        for key in parents:
            here = here.setdefault(key, {})
        if new is ...:
            del here[last]
        else:
            here[last] = new
    return config


def load(config: dict[str, Any]) -> Study:
    return load_study(config, BUILT_IN)


def problems(config: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(config)
    return caught.value.problems


# --- what is accepted --------------------------------------------------------


def test_a_valid_study():
    config = copy.deepcopy(CONFIG)
    study = load(config)
    assert config == CONFIG
    assert study.model.class_ == "Decay"
    assert study.variants == ("naive", "recommended", "mine")
    assert (study.chunk_size, study.strict) == ("auto", False)
    assert study.gradient.wrt == ("dynamic", "steady", "network")
    assert study.table.ids == ("s01", "s02")
    assert study.variant("mine").segments is not None
    with pytest.raises(KeyError):
        study.variant("other")


def test_the_study_cannot_be_changed():
    study = load(CONFIG)
    with pytest.raises(ValidationError):
        study.start = "initial_state"
    with pytest.raises(TypeError):
        study.arguments["archive"] = "x"


@pytest.mark.parametrize(
    "path", ["config/config.yaml", "config/studies/stiff_grid.yaml", "config/studies/robertson.yaml"]
)
def test_the_studies_in_the_repository(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    study = load(yaml.safe_load(Path(path).read_text()))
    assert len(study.table.ids) > 0
    assert all(study.formulation_of(name) == study.variant(name).formulation for name in study.variants)


def test_built_in_variants_are_complete():
    built_in = yaml.safe_load(BUILT_IN.read_text())
    assert list(built_in) == ["naive32", "naive", "stable", "guarded", "recommended", "fast", "precise"]
    for settings_ in built_in.values():
        assert list(settings_) == list(Variant.model_fields)
        for key, part in settings_.items():
            if key in ("steady_state", "nonlinear", "controller"):
                default = getattr(Variant(), key)
                assert list(part) == list(type(default).model_fields)


def test_keys_left_out_are_as_in_recommended():
    built_in = yaml.safe_load(BUILT_IN.read_text())
    # But for the ladder: who writes a variant wants to see it fail.
    assert Variant.model_validate({**built_in["recommended"], "gradient": None, "rescue": []}) == Variant()


def test_every_key_says_what_it_is():
    from retrograd import study

    for name, value in vars(study).items():
        for key, field in getattr(value, "model_fields", {}).items():
            assert field.description, f"{name}.{key}"


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1.0e30", "+5", ".5", "5."])
def test_numbers_that_yaml_takes_for_texts(text: str):
    study = load(changed("define_variants.mine.controller.atol", yaml.safe_load(f"a: {text}")["a"]))
    assert study.variant("mine").controller.atol == float(text)


def test_guard_none():
    assert load(changed("define_variants.mine.guard", "none")).variant("mine").guard is None
    assert load(changed("define_variants.mine.guard", None)).variant("mine").guard is None


def test_arguments_of_commands():
    config = {**CONFIG, "archive": "a.zip", "scenario": "s01", "trust_plugin": True}
    study = load(config)
    assert study.arguments == {"archive": "a.zip", "scenario": "s01", "trust_plugin": True}
    assert "archive" in config
    assert canonical(study.model_dump(mode="json")) == canonical(load(CONFIG).model_dump(mode="json"))


def test_save_times():
    assert load(CONFIG).times()[:2] == (0.0, 0.5)
    assert load(changed(save_times=[0, "1e-3", 2.5])).times() == (0.0, 1e-3, 2.5)
    assert Grid(start=0.1, stop=0.7, num=4).times()[-1] == 0.7
    assert Grid(start=0.0, stop=3.0, num=1).times() == (3.0,)


# --- all problems, each with its path ----------------------------------------


def test_all_problems_at_once(tmp_path: Path):
    (tmp_path / "s.tsv").write_text("scenario\tk1\tk3@steady\ns01\t1\tnan\ns01\t1\t2\n")
    config = changed(
        scenarios=str(tmp_path / "s.tsv"),
        strict="yes",
        save_times=[0.0, 2.0, 1.0],
        variants=["naive", "recomended"],
        chunksize=3,
    )
    config["model"]["class"] = "Decai"
    config["model"]["weights"] = "none.safetensors"
    config["define_variants"]["mine"]["controller"]["rtol"] = True
    config["define_variants"]["mine"]["segments"][1]["dtmx"] = 1
    with pytest.raises(ConfigError) as caught:
        load(config)
    table = tmp_path / "s.tsv"
    assert isinstance(caught.value, RetrogradError)
    # Without the class the table cannot be checked against its parameters.
    assert str(caught.value).split("\n  ") == [
        "The study cannot run: 10 problems.",
        "save_times: found [0.0, 2.0, 1.0], wanted strictly increasing times; 1.0 comes after 2.0",
        "define_variants.mine.controller.rtol: found true, wanted a number above 0 and below 1",
        (
            "define_variants.mine.segments[1].dtmx: found an unknown key (value 1), wanted until, dtmax; "
            "did you mean 'dtmax'?"
        ),
        "strict: found 'yes', wanted true or false",
        (
            "chunksize: found an unknown key (value 3), wanted study, model, scenarios, start, save_times, "
            "variants, define_variants, factors, chunk_size, gradient, benchmark, publication, "
            "strict, portable; did you mean 'chunk_size'?"
        ),
        (
            "variants[1]: found 'recomended', wanted one of naive32, naive, stable, guarded, recommended, fast, "
            "precise, mine; did you mean 'recommended'?"
        ),
        ("model.weights: found no file 'none.safetensors', wanted a weights file; did you mean 'w.safetensors'?"),
        "model.class: found 'Decai', wanted a class of model.py: Decay; did you mean 'Decay'?",
        f"{table}: line 2, column k3@steady: found 'nan', wanted a finite number such as 1.5e-3",
        f"{table}: line 3, column scenario: found 's01' again (first on line 2), wanted unique ids",
    ]


def test_an_empty_config():
    found = problems({})
    assert [line.split(":")[0] for line in found] == ["study", "model", "scenarios", "save_times", "variants"]
    assert found[1] == "model: found nothing, wanted the model: plugin, class, weights"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            "study",
            2024,
            (
                "study: found 2024, wanted a name of the characters A-Z a-z 0-9 _ . - and no others, "
                "in quotes (YAML reads something else)"
            ),
        ),
        (
            "study",
            "a b",
            "study: found 'a b', wanted a name of the characters A-Z a-z 0-9 _ . - and no others",
        ),
        ("study", "..", "study: found '..', wanted a name of the characters A-Z a-z 0-9 _ . - and no others"),
        (
            "study",
            "a\n",
            "study: found 'a\\n', wanted a name of the characters A-Z a-z 0-9 _ . - and no others",
        ),
        (
            "start",
            "steady",
            "start: found 'steady', wanted one of steady_state, initial_state; did you mean 'steady_state'?",
        ),
        ("chunk_size", 0, "chunk_size: found 0, wanted auto, or a whole number from 1 to 100000"),
        ("chunk_size", True, "chunk_size: found true, wanted auto, or a whole number from 1 to 100000"),
        ("chunk_size", 6.5, "chunk_size: found 6.5, wanted auto, or a whole number from 1 to 100000"),
        ("strict", 1, "strict: found 1, wanted true or false"),
        ("portable", "x86", "portable: found 'x86', wanted true or false"),
        (
            "model",
            "model.py",
            "model: found 'model.py', wanted a mapping with the keys plugin, class, sbml, antimony, petab, weights, "
            "weight_names",
        ),
        ("model.class", ..., "model.class: found nothing, wanted name of the model class in the plug-in"),
        (
            "model.plugin",
            "modle.py",
            "model.plugin: found no file 'modle.py', wanted a Python file; did you mean 'model.py'?",
        ),
        (
            "model.plugin",
            "s.tsv",
            "model.plugin: found 's.tsv', wanted a Python file (a name that ends in .py)",
        ),
        (
            "model.weights",
            "model.py",
            "model.weights: found 'model.py', wanted a weights file (a name that ends in .eqx or .safetensors or "
            ".pt or .pth or .hdf5 or .h5 or .onnx)",
        ),
        (
            "model.weights",
            "x{a}.eqx",
            (
                "model.weights: found 'x{a}.eqx', wanted a path, relative to the working "
                "directory or absolute, without { and }"
            ),
        ),
        ("scenarios", ".", "scenarios: found '.', which is a folder, wanted a TSV file of scenarios"),
        (
            "save_times",
            10.0,
            "save_times: found 10.0, wanted a mapping with the keys start, stop, num, or a list of times",
        ),
        ("save_times", [], "save_times: found [], wanted a list with at least one time"),
        ("save_times", [0.0], "save_times: found [0.0], wanted a last time above 0"),
        ("save_times", [-1.0, 1.0], "save_times[0]: found -1.0, wanted a finite number, 0 or above"),
        ("save_times", [1.0, math.inf], "save_times[1]: found inf, wanted a finite number, 0 or above"),
        (
            "save_times.step",
            1,
            "save_times.step: found an unknown key (value 1), wanted start, stop, num; did you mean 'stop'?",
        ),
        (
            "save_times.stop",
            ...,
            "save_times.stop: found nothing, wanted last save time [time unit of the model]",
        ),
        ("variants", [], "variants: found [], wanted a list with at least one entry"),
        ("variants", "naive", "variants: found 'naive', wanted a list"),
        (
            "variants",
            ["naive", "naive"],
            ('variants: found ["naive", "naive"], wanted every entry once; \'naive\' stands there more than once'),
        ),
        (
            "define_variants",
            ["mine"],
            'define_variants: found ["mine"], wanted a mapping of names to settings',
        ),
        (
            "define_variants.naive",
            {},
            f"define_variants.naive: found the name of a built-in variant ({BUILT_IN}), wanted another name",
        ),
        (
            "define_variants.report",
            {},
            (
                "define_variants.report: found 'report', wanted another name: "
                "results/<study>/report is taken (as are benchmarks, chunks, comparison, debug, effects.nc, logs, "
                "model.nc, report, summary.nc, timings)"
            ),
        ),
        (
            "define_variants.mine",
            None,
            (
                "define_variants.mine: found null, wanted a mapping with the keys precision, "
                "formulation, guard, steady_state, solver, nonlinear, controller, segments, max_steps, "
                "rescue, gradient"
            ),
        ),
        (
            "define_variants.mine.rescue",
            ["more_step"],
            (
                "define_variants.mine.rescue[0]: found 'more_step', wanted one of full_newton, more_steps, "
                "small_first_step, other_solver, short_steps, bounded_state, other_start, tighter_tolerances, "
                "looser_tolerances; did you mean 'more_steps'?"
            ),
        ),
        (
            "define_variants.mine.rescue",
            [{"name": "own", "formulation": "stabel"}],
            (
                "define_variants.mine.rescue[0].formulation: found 'stabel', wanted a formulation of the model: "
                "one of stable, naive; did you mean 'stable'?"
            ),
        ),
        (
            "define_variants.mine.formulation",
            "stabel",
            (
                "define_variants.mine.formulation: found 'stabel', wanted "
                "a formulation of the model: one of stable, naive; did you mean 'stable'?"
            ),
        ),
        (
            "define_variants.mine.guard",
            "clip",
            ("define_variants.mine.guard: found 'clip', wanted none, or a mapping with the keys x_max, dx_fill"),
        ),
        (
            "define_variants.mine.guard.x_max",
            "1,5",
            "define_variants.mine.guard.x_max: found '1,5', wanted a finite number above 0",
        ),
        (
            "define_variants.mine.nonlinear",
            {"method": "Newton"},
            (
                "define_variants.mine.nonlinear.method: "
                "found 'Newton', wanted one of newton, chord; did you mean 'newton'?"
            ),
        ),
        (
            "define_variants.mine.segments",
            [{"until": 2}, {"until": 1}],
            (
                "define_variants.mine.segments: "
                'found [{"until": 2}, {"until": 1}], wanted strictly increasing times; 1.0 comes after 2.0'
            ),
        ),
        (
            "define_variants.mine.solver",
            "kvaerno5",
            (
                "define_variants.mine.solver: found 'kvaerno5', wanted one of "
                "Kvaerno3, Kvaerno4, Kvaerno5, Rodas5P, Tsit5, Dopri5, Dopri8, Bosh3, Heun, Midpoint, Ralston; "
                "did you mean 'Kvaerno5'?"
            ),
        ),
        (
            "define_variants.mine.solver",
            "ImplicitEuler",
            (
                "define_variants.mine.solver: found 'ImplicitEuler', wanted "
                "one of Kvaerno3, Kvaerno4, Kvaerno5, Rodas5P, Tsit5, Dopri5, Dopri8, Bosh3, Heun, Midpoint, "
                "Ralston; ImplicitEuler "
                "is refused: diffrax <= 0.7.2 ignores failed Newton solves in it (diffrax issue 753)"
            ),
        ),
        (
            "define_variants.mine.solver",
            "Euler",
            (
                "define_variants.mine.solver: found 'Euler', wanted one of Kvaerno3, "
                "Kvaerno4, Kvaerno5, Rodas5P, Tsit5, Dopri5, Dopri8, Bosh3, Heun, Midpoint, Ralston; "
                "Euler is refused: no adaptive error estimate or no Butcher tableau"
            ),
        ),
        (
            "gradient.methods",
            ["replay", "backsolv"],
            (
                "gradient.methods[1]: found 'backsolv', wanted one of replay, forward, checkpoint, backsolve; "
                "did you mean 'backsolve'?"
            ),
        ),
        (
            "gradient.metods",
            [],
            (
                "gradient.metods: found an unknown key (value []), wanted methods, wrt, directions, "
                "seed, free_differences, reference; did you mean 'methods'?"
            ),
        ),
        ("gradient.directions", -1, "gradient.directions: found -1, wanted a whole number, 0 or above"),
        (
            "archve",
            "a.zip",
            (
                "archve: found an unknown key (value 'a.zip'), wanted study, model, scenarios, start, save_times, "
                "variants, define_variants, factors, chunk_size, gradient, benchmark, publication, "
                "strict, portable; did you mean 'archive'?"
            ),
        ),
    ],
)
def test_one_problem(path: str, value: Any, line: str):
    assert line in problems(changed(path, value))


def test_one_problem_is_told_once():
    assert problems(changed("gradient.seed", "x")) == ("gradient.seed: found 'x', wanted a whole number, 0 or above",)


def test_keys_that_yaml_does_not_read_as_texts():
    config = changed()
    config[1] = 2
    config["define_variants"][2] = {}
    assert problems(config) == (
        (
            "define_variants.2: found 2, wanted a name of the characters A-Z a-z 0-9 _ . - and no others, "
            "in quotes "
            "(YAML reads something else)"
        ),
        (
            "1: found an unknown key (which is no text), wanted study, model, scenarios, start, save_times, "
            "variants, define_variants, factors, chunk_size, gradient, benchmark, publication, strict, "
            "portable"
        ),
    )


def test_names_that_differ_in_case_only():
    config = changed(variants=["Mine", "mine"], define_variants={"Mine": {}, "mine": {}})
    assert problems(config) == ("variants[1]: found 'mine' beside 'Mine', wanted more than another case",)


def test_long_lists_of_problems_are_cut():
    config = changed("define_variants.mine", {f"key{i}": i for i in range(70)})
    found = problems(config)
    assert len(found) == 51
    assert found[-1] == "... and 20 more"


def test_save_times_that_float32_cannot_tell_apart():
    config = changed(save_times=[1.0e6, 1.0e6 + 0.01], variants=["naive32", "naive"])
    assert problems(config) == (
        "variants[0]: found 'naive32' with precision float32, wanted save times apart in float32 too",
    )


def test_problems_in_the_built_in_variants(tmp_path: Path):
    path = tmp_path / "variants.yaml"
    path.write_text("naive: {solvr: Tsit5}\nrecommended: 3\nmodel.nc: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_study(CONFIG, path)
    keys = ", ".join(Variant.model_fields)
    assert caught.value.problems[:3] == (
        f"{path}: naive.solvr: found an unknown key (value 'Tsit5'), wanted {keys}; did you mean 'solver'?",
        f"{path}: recommended: found 3, wanted a mapping with the keys {keys}",
        (
            f"{path}: found the name 'model.nc', wanted another name: results/<study>/model.nc is taken "
            "(as are benchmarks, chunks, comparison, debug, effects.nc, logs, model.nc, report, summary.nc, timings)"
        ),
    )
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="found no valid YAML"):
        load_study(CONFIG, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(CONFIG, tmp_path / "none.yaml")


# Places of a valid config where a mapping stands, with the path that messages give them.
MAPPINGS = {
    "": CONFIG,
    "model": CONFIG["model"],
    "save_times": CONFIG["save_times"],
    "gradient": CONFIG["gradient"],
    "define_variants.mine": CONFIG["define_variants"]["mine"],
    "define_variants.mine.guard": CONFIG["define_variants"]["mine"]["guard"],
    "define_variants.mine.controller": CONFIG["define_variants"]["mine"]["controller"],
    "define_variants.mine.segments[1]": CONFIG["define_variants"]["mine"]["segments"][1],
}


def _mapping(config: dict[str, Any], place: str) -> dict[str, Any]:
    here: Any = config
    for key in filter(None, place.replace("[", ".").replace("]", "").split(".")):
        here = here[int(key) if isinstance(here, list) else key]
    return here


@given(place=st.sampled_from(sorted(MAPPINGS)), key=st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True))
@example(place="define_variants.mine", key="model")
@example(place="", key="controller")
@settings(deadline=None)
def test_any_unknown_key_is_named_with_its_path(place: str, key: str):
    from retrograd import study as module

    known = {n for m in vars(module).values() if hasattr(m, "model_fields") for n in (*m.model_fields, "class")}
    if key in known | set(module.ARGUMENTS) and (place, key) not in {
        ("define_variants.mine", "model"),
        ("", "controller"),
    }:
        return
    config = copy.deepcopy(CONFIG)
    _mapping(config, place)[key] = 1
    (found,) = problems(config)
    assert found.startswith(f"{place}{'.' if place else ''}{key}: found an unknown key (value 1), wanted ")


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.just(10**400)
)
_KEYS = sorted({key for mapping in MAPPINGS.values() for key in mapping})
_JUNK = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_SCALARS | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(place=st.sampled_from(sorted(MAPPINGS)), key=st.sampled_from(_KEYS), junk=_JUNK)
@example(place="", key="define_variants", junk={"\r0": None})
@example(place="model", key="plugin", junk="a\nb")
@example(place="model", key="weights", junk=300 * "x")
@settings(deadline=None)
def test_whatever_stands_in_the_config_is_accepted_or_told(place: str, key: str, junk: Any):
    config = copy.deepcopy(CONFIG)
    _mapping(config, place)[key] = junk
    found: tuple[str, ...] = ()
    try:
        load(config)
    except ConfigError as error:
        found = error.problems or ("",)
    assert all(found)
    assert all(len(line.splitlines()) == 1 for line in found)


# --- the plug-in, not imported -----------------------------------------------


def test_the_plugin_is_not_run(tmp_path: Path):
    path = tmp_path / "m.py"
    path.write_text(PLUGIN + "\nraise SystemExit('imported')\n")
    load(changed("model.plugin", str(path)))


def test_the_plugin_decides_what_the_table_needs(tmp_path: Path):
    path = tmp_path / "m.py"
    path.write_text(PLUGIN.replace('"k2": "s-1"', '"k2": "s-1", "k3": "s-1"'))
    assert problems(changed("model.plugin", str(path))) == (
        "s.tsv: found no column for parameter 'k3', wanted k3 or k3@steady and k3@dynamic",
    )


def test_without_the_class_the_table_is_read_unchecked(tmp_path: Path):
    path = tmp_path / "m.py"
    path.write_text("from elsewhere import Decay\n")
    study = load(changed("model.plugin", str(path)))
    assert study.table.values("steady", ["k2"]) == [[2.0], [0.5]]


def test_initial_state_needs_its_method(tmp_path: Path):
    path, table = tmp_path / "m.py", tmp_path / "t.tsv"
    path.write_text(PLUGIN.replace("    def initial_state(self, k): ...\n", ""))
    table.write_text("scenario\tk1\tk2\na\t1\t2\n")
    config = changed("model.plugin", str(path), start="initial_state", scenarios=str(table))
    assert problems(config) == (
        (
            "start: found 'initial_state', wanted steady_state, or a method initial_state(self, k) in the "
            "model's class, which has none"
        ),
    )
    table.write_text("scenario\tk1\tk2\tx0:x\tx0:y\na\t1\t2\t3\t4\n")
    load(config)


# --- formulations, gradient methods, stage options ---------------------------


def test_formulations_that_the_model_lacks(tmp_path: Path):
    path = tmp_path / "m.py"
    path.write_text(PLUGIN.replace('"stable": "vector_field", "naive": "plain"', '"stable": "vector_field"'))
    config = changed("model.plugin", str(path))
    study = load(config)
    assert study.formulation_of("naive") == "stable"
    assert stage_options(study, "naive", "dynamics")["formulation"] == "stable"
    config["define_variants"]["mine"]["formulation"] = "naive"
    assert problems(config) == (
        "define_variants.mine.formulation: found 'naive', wanted a formulation of the model: stable",
    )
    path.write_text(PLUGIN.replace('"stable": "vector_field", "naive": "plain"', '"paper": "plain"'))
    study = load(changed("model.plugin", str(path)))
    assert [study.formulation_of(name) for name in study.variants] == ["paper"] * 3


def test_the_default_formulation(tmp_path: Path):
    path = tmp_path / "m.py"
    path.write_text(PLUGIN.replace('    formulations = {"stable": "vector_field", "naive": "plain"}\n', ""))
    assert load(changed("model.plugin", str(path))).formulation_of("naive") == "stable"


def test_the_method_that_decides():
    config = changed("gradient.methods", ["replay"])
    study = load(config)
    # Built-in naive asks for checkpoint, which this study does not form.
    assert study.gradient_of("naive") == "replay"
    assert load(CONFIG).gradient_of("naive") == "checkpoint"
    assert load(CONFIG).gradient_of("mine") == "replay"
    config["define_variants"]["mine"]["gradient"] = "checkpoint"
    assert problems(config) == (
        ("define_variants.mine.gradient: found 'checkpoint', wanted one of this study's gradient.methods: replay"),
    )


def test_portable_is_a_setting_of_every_stage_and_none_where_it_is_off():
    on, off = load(changed("portable", True)), load(CONFIG)
    for stage in ("steady_state", "dynamics", "gradients"):
        wanted = stage_options(off, "recommended", stage) | {"portable": True}
        if stage == "gradients":
            wanted["find"] = wanted["find"] | {"portable": True}
        assert stage_options(on, "recommended", stage) == wanted
        assert "portable" not in canonical(stage_options(off, "recommended", stage))


def test_stage_options():
    study = load(CONFIG)
    guard = {"x_max": 10.0, "dx_fill": 0.0}
    steady = {"method": "root", "rtol": 1e-10, "atol": 1e-10, "max_steps": 256, "starts": 0}
    common = {"precision": "float64", "formulation": "stable", "guard": guard, "rescue": []}
    assert stage_options(study, "mine", "steady_state") == {**common, "steady_state": steady}
    dynamics = stage_options(study, "mine", "dynamics")
    assert dynamics == {
        **common,
        "solver": "Kvaerno5",
        "nonlinear": {"method": "newton", "rtol": None, "atol": None},
        "controller": {
            "rtol": 1e-4,
            "atol": 1e-8,
            "pcoeff": 0.0,
            "icoeff": 1.0,
            "dcoeff": 0.0,
            "dtmax": None,
            "dt0": None,
            "sensitivities": False,
        },
        "segments": [{"until": 1.0, "dtmax": 0.1}, {"until": 5.0, "dtmax": None}],
        "max_steps": 16384,
        "save_times": list(study.times()),
        "start": "steady_state",
    }
    assert stage_options(study, "mine", "gradients") == {
        **dynamics,
        "find": {**common, "steady_state": steady},
        "gradient": {
            "methods": ["replay", "checkpoint"],
            "wrt": ["dynamic", "steady", "network"],
            "directions": 2,
            "seed": 0,
            "free_differences": 0,
            "reference": 0,
        },
    }
    with pytest.raises(ValueError, match="stage is 'report'"):
        stage_options(study, "mine", "report")


@pytest.mark.parametrize("stage", ["steady_state", "dynamics", "gradients"])
def test_equal_variants_give_equal_options(stage: str):
    own = {
        "a": {"controller": {"rtol": 1e-5}, "gradient": "replay"},
        "b": {"controller": {"rtol": "1e-5"}, "guard": "none"},
    }
    study = load(changed(variants=["a", "b"], define_variants=own))
    a, b = (canonical(stage_options(study, name, stage)) for name in own)
    assert a == b


def test_options_without_a_steady_phase(tmp_path: Path):
    table = tmp_path / "t.tsv"
    table.write_text("scenario\tk1\tk2\na\t1\t2\n")
    config = changed(start="initial_state", scenarios=str(table))
    options = stage_options(load(config), "mine", "gradients")
    assert options["find"] is None
    assert options["gradient"]["wrt"] == ["dynamic", "network"]
    config["gradient"]["wrt"] = ["steady"]
    assert problems(config) == (
        (
            'gradient.wrt: found ["steady"], wanted dynamic or network too, since start: initial_state has '
            "no steady phase"
        ),
    )


# --- light enough for every parse of the Snakefile ---------------------------


def test_nothing_heavy_is_imported():
    code = "import sys, retrograd.loading; print({'jax', 'numpy', 'pandas', 'xarray'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_canonical_json():
    assert canonical({"b": [1, 0.1, 1e-6, None], "a": "ä"}) == '{"a":"ä","b":[1,0.1,1e-06,null]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical([math.nan])


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_canonical_json_keeps_values(value: Any):
    assert json.loads(canonical(value)) == value
