"""What two runs were made of: each difference told once, under what it is a difference in."""

from __future__ import annotations

import copy

from retrograd.origins import differences, flat, setting_pairs

FILE = {
    "inputs": {"plugin": "a" * 64, "scenarios": "b" * 64, "model": "c" * 64},
    "config": {"study": "s", "variant": "v", "controller": {"rtol": 1e-6, "atol": 1e-8}, "guard": None},
    "code_digest": "d" * 64,
    "environment": {"jax": "0.11.2", "precision": "float64", "cpu_features": ["avx", "fma"]},
    "content": "e" * 64,
    "content_sha256": "e" * 64,
}
RUN = {"dynamics.nc": FILE, "gradients.nc": copy.deepcopy(FILE)}


def told(change, weights=("w", "w")) -> list[tuple[str, str, str, str]]:
    there = copy.deepcopy(RUN)
    change(there)
    return [(i["origin"], i["name"], i["here"], i["there"]) for i in differences([RUN, there], weights)]


def test_the_same_run_has_none():
    assert told(lambda there: None) == []


def test_a_setting_in_two_files_is_told_once_and_names_are_none():
    def change(there):
        for about in there.values():
            about["config"]["controller"]["rtol"] = 1e-5
            about["config"]["study"] = "other"

    assert told(change) == [("config", "controller.rtol", "1e-06", "1e-05")]


def test_a_setting_that_only_one_has():
    assert told(lambda there: there["gradients.nc"]["config"].update(more=1)) == [("config", "more", "none", "1")]


def test_inputs_code_and_environment():
    def change(there):
        there["dynamics.nc"]["inputs"]["plugin"] = "f" * 64
        there["dynamics.nc"]["inputs"]["model"] = "f" * 64
        there["dynamics.nc"]["code_digest"] = "g" * 64
        there["dynamics.nc"]["environment"]["cpu_features"] = ["avx"]
        there["dynamics.nc"]["environment"]["precision"] = "float32"

    assert told(change) == [
        ("inputs", "plugin", "a" * 64, "f" * 64),
        ("code", "code of dynamics", "d" * 64, "g" * 64),
        ("environment", "cpu_features", "avx fma", "avx"),
    ]


def test_weights_are_told_by_their_digest():
    assert told(lambda there: None, ("w", "x")) == [("inputs", "weights", "w", "x")]


def test_a_file_that_was_changed_comes_first():
    def change(there):
        there["dynamics.nc"]["content"] = "0" * 64
        there["dynamics.nc"]["inputs"]["plugin"] = "f" * 64

    assert told(change)[0] == ("integrity", "dynamics.nc", "as written", "changed")


def test_flat():
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
    assert setting_pairs({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}) == {"a.b": (1, 2), "a.c": (None, 3)}
