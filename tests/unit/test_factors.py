"""Factorial designs: which runs they have, which variants they become, and what is wrong with them."""

from __future__ import annotations

import copy
import itertools
import math
import os
from pathlib import Path
from typing import Any

import pytest

from retrograd.factors import defining_words, fractional, resolution
from retrograd.loading import load_study
from retrograd.messages import ConfigError
from retrograd.provenance import canonical
from retrograd.study import Study, stage_options

BUILT_IN = Path(__file__).parents[2] / "config" / "variants.yaml"

PLUGIN = """
from retrograd.api import Model

class Decay(Model):
    states = {"x": "1"}
    parameters = {"k": "s-1"}
    formulations = {"stable": "vector_field", "naive": "plain"}

    def vector_field(self, t, x, k): ...
    def plain(self, t, x, k): ...
"""
LEVELS: dict[str, Any] = {
    "arithmetic": {
        "float32": {"precision": "float32", "controller": {"rtol": 1e-4, "atol": 1e-5}},
        "float64": {"precision": "float64"},
    },
    "formulation": ["naive", "stable"],
    "guard": {"open": "none", "bounded": {"x_max": 100.0, "dx_fill": 1e30}},
    "controller": {"integral": {"icoeff": 1.0}, "pi": {"pcoeff": 0.4, "icoeff": 0.3}, "short": {"dtmax": 1e-4}},
    "max_steps": [4096, 16384],
    "gradient": ["checkpoint", "replay"],
}
CONFIG: dict[str, Any] = {
    "study": "decay",
    "model": {"plugin": "model.py", "class": "Decay"},
    "scenarios": "s.tsv",
    "save_times": [1.0],
    "variants": ["recommended"],
    "factors": {"base": "naive", "levels": LEVELS},
}


@pytest.fixture(autouse=True, scope="module")
def _inside(tmp_path_factory: pytest.TempPathFactory):
    folder, before = tmp_path_factory.mktemp("factors"), Path.cwd()
    (folder / "model.py").write_text(PLUGIN)
    (folder / "s.tsv").write_text("scenario\tk\na\t1\n")
    os.chdir(folder)
    yield
    os.chdir(before)


def load(**factors: Any) -> Study:
    config = copy.deepcopy(CONFIG)
    config["factors"] |= factors
    return load_study(config, BUILT_IN)


def problems(**factors: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(**factors)
    return caught.value.problems


# --- designs -----------------------------------------------------------------


# From table 12.15 of Box, Hunter and Hunter, Statistics for Experimenters (1978): factors, fraction, resolution.
@pytest.mark.parametrize(
    ("factors", "fraction", "wanted"),
    [
        *((3, 2, 3), (4, 2, 4), (5, 2, 5), (5, 4, 3), (6, 2, 6), (6, 4, 4), (6, 8, 3), (7, 2, 7), (7, 4, 4)),
        *((7, 8, 4), (7, 16, 3), (8, 4, 5), (8, 8, 4), (8, 16, 4), (9, 4, 6), (9, 8, 4), (9, 16, 4), (10, 16, 4)),
    ],
)
def test_resolution_is_the_highest_there_is(factors: int, fraction: int, wanted: int):
    assert resolution(factors, fraction) == wanted


@pytest.mark.parametrize(
    ("sizes", "fraction"), [([2] * 5, 2), ([2, 3, 2, 2, 2], 2), ([2] * 6, 4), ([2] * 8, 16), ([3], 1)]
)
def test_runs_are_balanced(sizes: list[int], fraction: int):
    shared = [i for i, size in enumerate(sizes) if size == 2]
    runs = fractional(sizes, fraction, shared)
    assert len(set(runs)) == len(runs) == math.prod(sizes) // fraction
    assert runs == sorted(runs)
    apart = 2 if fraction == 1 else resolution(len(shared), fraction) - 1
    # Orthogonal array of strength resolution - 1: every combination of so many factors is met equally often.
    for chosen in itertools.combinations(range(len(sizes)), min(apart, 3, len(sizes))):
        met = [tuple(run[i] for i in chosen) for run in runs]
        combinations = list(itertools.product(*(range(sizes[i]) for i in chosen)))
        assert {met.count(c) for c in combinations} == {len(runs) // len(combinations)}


def test_words_of_more_than_there_are_factors():
    assert defining_words(3, 2) == [(0, 1, 2)]
    with pytest.raises(ValueError, match="power of 2"):
        defining_words(2, 4)


# --- variants ----------------------------------------------------------------


def test_every_combination_is_a_variant_with_the_names_of_its_levels():
    study = load()
    assert len(study.variants) == 1 + 2 * 2 * 2 * 3 * 2 * 2 == len(set(study.variants))
    assert study.variants[0] == "recommended"
    assert study.variants[1] == "float32-naive-open-integral-max_steps4096-checkpoint"
    name = "float32-stable-bounded-pi-max_steps16384-replay"
    assert study.cells[name] == {
        "arithmetic": "float32",
        "formulation": "stable",
        "guard": "bounded",
        "controller": "pi",
        "max_steps": "max_steps16384",
        "gradient": "replay",
    }
    made = study.variant(name)
    assert (made.precision, made.formulation, made.max_steps, made.gradient) == ("float32", "stable", 16384, "replay")
    assert made.guard is not None and made.guard.x_max == 100.0
    # Two factors change the controller, each its own keys of it.
    assert (made.controller.rtol, made.controller.pcoeff, made.controller.icoeff) == (1e-4, 0.4, 0.3)
    # What no factor changes is the base's.
    assert made.nonlinear.method == "chord" and made.rescue == ()


def test_a_fraction_of_them():
    study = load(fraction=4)
    assert len(study.cells) == 24
    counts = [list(c.values()).count("float32") for c in study.cells.values()]
    assert sum(counts) == 12
    # Whose verdict counts costs nothing: it is crossed in full.
    others = [tuple(v for f, v in c.items() if f != "gradient") for c in study.cells.values()]
    assert len(set(others)) == 12


def test_shared_work_is_done_once():
    study = load()
    count = lambda stage: len({canonical(stage_options(study, name, stage)) for name in study.cells})
    # Neither the gradient's method nor the controller matters to the steady state; budgets of steps do not either.
    assert (count("steady_state"), count("dynamics"), count("gradients")) == (8, 48, 48)


def test_a_study_without_factors_has_no_cells():
    config = {key: value for key, value in CONFIG.items() if key != "factors"}
    assert load_study(config, BUILT_IN).cells == {}


# --- what is wrong -----------------------------------------------------------


def test_all_problems_of_the_levels_at_once():
    found = problems(
        base="naiv",
    )
    assert found == (
        "factors.base: found 'naiv', wanted one of naive32, naive, stable, guarded, recommended, fast, precise; "
        "did you mean 'naive'?",
    )
    levels = {
        "formulation": ["naive", "stabel"],
        "controler": ["a", "b"],
        "guard": {"open": "none", "naive": {"x_max": -1.0, "dx_fill": 0.0}},
        "gradient": ["replay", "forward"],
        "inner": {"newton": {"nonlinear": {"methd": "newton"}}, "chord": {}},
    }
    found = problems(levels=levels)
    assert found == (
        "factors.levels.formulation.stabel: found the formulation 'stabel', wanted one of the model's: "
        "one of stable, naive; did you mean 'stable'?",
        "factors.levels.controler.a: found 'a', wanted a mapping of settings, since controler is no key of a "
        "variant; did you mean 'controller'?",
        "factors.levels.controler.b: found 'b', wanted a mapping of settings, since controler is no key of a "
        "variant; did you mean 'controller'?",
        "factors.levels.guard: found the level 'naive', which formulation has too, wanted names used once",
        "factors.levels.guard.naive.guard.x_max: found -1.0, wanted a finite number above 0",
        "factors.levels.gradient.forward: found the gradient 'forward', wanted one of this study's gradient.methods: "
        "one of replay, checkpoint",
        "factors.levels.inner.newton.nonlinear.methd: found an unknown key (value 'newton'), wanted method, rtol, "
        "atol; did you mean 'method'?",
    )


@pytest.mark.parametrize(
    ("factors", "line"),
    [
        ({"fraction": 3}, "factors.fraction: found 3, wanted one of 1, 2, 4, 8, 16"),
        (
            {"fraction": 4, "levels": {"formulation": ["naive", "stable"], "gradient": ["replay", "checkpoint"]}},
            "factors.fraction: found 4 with 1 factors of two levels, which share it, wanted at most "
            "2^(their number - 1), and at most 10 of them",
        ),
        ({"levels": {}}, "factors.levels: found no factor, wanted one at least"),
        (
            {"levels": {"formulation": ["naive"]}},
            'factors.levels.formulation: found ["naive"], wanted at least two levels',
        ),
        (
            {"levels": {"guard": [None, 1]}},
            "factors.levels.guard[0]: found null, wanted a text or a number; anything else needs a name: {name: value}",
        ),
        (
            {"levels": {"formulation": "naive"}},
            "factors.levels.formulation: found 'naive', wanted a mapping of names to values, or a list of values",
        ),
        (
            {"levels": {"max_steps": list(range(1, 5000))}},
            "factors: found 4999 variants, wanted at most 4096",
        ),
    ],
)
def test_one_problem(factors: dict[str, Any], line: str):
    assert line in problems(**factors)
