"""Arguments of commands, as Snakemake's own parser hands them over."""

from __future__ import annotations

import shlex

import pytest
from snakemake.cli import parse_config

from retrograd.arguments import asked_for, headline

IDS = [
    *(
        "mild",
        "very stiff",
        "k1=-05_k3=+20",
        "a/b",
        "éé",
        'x\'s "y"',
        "'quoted'",
        "# 1",
        "a: b",
        "[1, 2]",
        "{a",
        "null",
    ),
    *("17", "1e3", "True", "false", "007", "2.50", "1_000", "0x10", "2024-01-01", "nan", "1 "),
]


@pytest.mark.parametrize("name", [i for i in IDS if i not in ("# 1", "nan")])
def test_an_id_is_found_as_it_stands_on_the_command_line(name):
    assert asked_for("scenario", parse_config([f"scenario={name}"]), IDS) == (name, [])


def test_ids_that_read_alike_are_told():
    found, problems = asked_for("scenario", parse_config(["scenario=1"]), ["01", "1", "1.0"])
    assert found is None
    (problem,) = problems
    assert "found 1, which is how Snakemake reads each of '01', '1';" in problem
    # 1 is neither True nor 1.0.
    assert asked_for("scenario", parse_config(["scenario=1"]), ["True", "1.0", "1"]) == ("1", [])
    assert asked_for("scenario", parse_config(["scenario=True"]), ["True", "1.0", "1"]) == ("True", [])
    assert asked_for("scenario", parse_config(["scenario=1.0"]), ["True", "1.0", "1"]) == ("1.0", [])


def test_a_mistake_is_told_with_a_guess():
    assert asked_for("variant", {"variant": "recomended"}, ["naive", "recommended"]) == (
        None,
        ["variant: found 'recomended', wanted one of 'naive', 'recommended'; did you mean 'recommended'?"],
    )
    assert asked_for("variant", {}, ["naive"]) == (None, ["variant: found nothing, wanted one of 'naive'"])
    assert asked_for("variant", parse_config(["variant="]), ["naive"])[0] is None
    many = [f"s{i:02}" for i in range(40)]
    (problem,) = asked_for("scenario", {"scenario": 3}, many)[1]
    assert problem.startswith("scenario: found 3, wanted one of 40, such as 's00', 's01'")
    assert "s39" not in problem


def test_the_headline_ends_in_a_command_that_would_do():
    text = headline("debug", ["a: b", "c: d"], {"scenario": "very stiff", "variant": "own"})
    lines = text.split("\n  ")
    assert lines[0] == "snakemake debug cannot run: 2 problems."
    command = shlex.split(lines[-1].removeprefix("For example: "))
    assert command[:3] == ["snakemake", "debug", "--config"]
    assert parse_config(command[3:]) == {"scenario": "very stiff", "variant": "own"}
