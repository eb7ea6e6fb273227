"""The scenario table: what is read, and the text of what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retrograd.messages import ConfigError
from retrograd.scenarios import Table, automatic_size, chunks, head_of, read_scenarios

ROOT = Path(__file__).parents[2]

SCENARIOS = """\
# a comment
scenario\tk1\tk2@steady\tk2@dynamic\tx0:y
s01\t1\t2\t3\t0.5

s02\t-1e-3\t.5\t4.\t0
"""


def table_problems(text: str | bytes, tmp_path: Path, **options: Any) -> list[str]:
    """Returns the problems of a table, without the file's name in front."""
    path = tmp_path / "t.tsv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        read_scenarios(path, **{"parameters": ["k1"], "states": ["x"], "start": "steady_state", **options})
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def test_chunks():
    assert chunks(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert chunks(4, 4) == [(0, 4)]
    assert chunks(0, 4) == []


def test_chunks_grow_with_the_study_and_with_nothing_else():
    # The default study is one chunk; a thousand scenarios and more with a network keep cores busy in whole rounds.
    network = {1: 128, 96: 128, 128: 128, 1000: 256, 10_000: 1280, 100_000: 1792, 1_000_000: 2560}
    assert {n: automatic_size(n, 3, network=True) for n in network} == network
    # A job on a cheap scenario is start and imports for the most part: two for ten thousand.
    plain = {1: 128, 96: 128, 1000: 1024, 10_000: 5120, 100_000: 7168, 1_000_000: 10_240}
    assert {n: automatic_size(n, 3, network=False) for n in plain} == plain


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("works", [1, 3, 15, 400])
@pytest.mark.parametrize("n", [1, 127, 5000, 123_456, 10_000_000])
def test_jobs_stay_below_two_thousand(n: int, works: int, network: bool):
    size = automatic_size(n, works, network)
    assert size % 32 == 0
    assert works * len(range(0, n, size)) < 2000
    assert size <= 10_240 or works * n / size > 1000
    assert size == 128 or size // 2 < n


def test_more_works_than_jobs_are_one_chunk_each():
    assert automatic_size(1000, 3000, network=True) >= 1000


def test_what_a_table_says_of_itself(tmp_path: Path):
    path = tmp_path / "s.tsv"
    path.write_text("\ufeff# both: at once\n#  k1: ln\nscenario\tk1\n# not this\na\t1\n", encoding="utf-8")
    assert head_of(path) == "both: at once\nk1: ln"


def test_table_values(tmp_path: Path):
    path = tmp_path / "s.tsv"
    path.write_text(SCENARIOS)
    table = read_scenarios(path, parameters=["k1", "k2"], states=["x", "y"], start="steady_state")
    assert table == Table(
        ("s01", "s02"),
        ("k1", "k2@steady", "k2@dynamic", "x0:y"),
        ((1.0, 2.0, 3.0, 0.5), (-1e-3, 0.5, 4.0, 0.0)),
    )
    assert table.values("steady", ["k2", "k1"]) == [[2.0, 1.0], [0.5, -1e-3]]
    assert table.values("dynamic", ["k2"]) == [[3.0], [4.0]]
    with pytest.raises(ConfigError, match="found no column for k3 in the dynamic phase"):
        table.values("dynamic", ["k3"])
    ((x, y), _) = table.starts(["x", "y"])
    assert math.isnan(x)
    assert y == 0.5


def test_phase_column_goes_before_the_plain_one():
    table = Table(("a",), ("k@dynamic", "k"), ((1.0, 2.0),))
    assert table.values("dynamic", ["k"]) == [[1.0]]
    assert table.values("steady", ["k"]) == [[2.0]]


def test_what_a_table_may_look_like(tmp_path: Path):
    path = tmp_path / "t.tsv"
    path.write_bytes(
        '\ufeff# comment\r\n\r\nk1\tscenario\r\n1\t<b>&"é/..\r\n#2\tskipped\r\n2\t"a ""b"""\r\n'
        '3\t"><i>\r\n\t\r\n4\tthe end'.encode()
    )
    table = read_scenarios(path, parameters=["k1"], states=[], start="steady_state")
    assert table.ids == ('<b>&"é/..', 'a "b"', '"><i>', "the end")
    assert table.rows == ((1.0,), (2.0,), (3.0,), (4.0,))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["found no header, wanted a line of column names with `scenario` among them"]),
        ("scenario\tk1\n", ["found no scenario, wanted at least one row below the header"]),
        (
            "Scenario\tk1\na\t1\n",
            [
                "line 1, column Scenario: found no parameter 'Scenario' in the model, wanted k1",
                "line 1: found no column `scenario`, wanted one with the scenarios' ids; is it 'Scenario'?",
                "line 2, column Scenario: found 'a', wanted a finite number such as 1.5e-3",
            ],
        ),
        ("scenario\tk1\tk1\na\t1\t1\n", ["line 1, column k1: found this column twice, wanted each once"]),
        ("scenario\tk1\t\na\t1\t1\n", ["line 1: found no name for column 3, wanted one for every column"]),
        ("scenario\tk1\tx0:z\na\t1\t1\n", ["line 1, column x0:z: found no state 'z' in the model, wanted x"]),
        (
            "scenario\tk1\tk1@stedy\na\t1\t1\n",
            [("line 1, column k1@stedy: found phase 'stedy', wanted one of steady, dynamic; did you mean 'steady'?")],
        ),
        ("scenario\n\na\n", ["found no column for parameter 'k1', wanted k1 or k1@steady and k1@dynamic"]),
        (
            "scenario\tk1@steady\na\t1\n",
            ["found no column for parameter 'k1' in the dynamic phase, wanted k1 or k1@dynamic"],
        ),
        (
            "scenario\tk1\n# no\na\t1\t2\nb\n",
            [
                "line 3: found a row of 3, wanted 2 cells, one a column",
                "line 4: found a row of 1, wanted 2 cells, one a column",
            ],
        ),
        (
            "scenario\tk1\na\t\nb\tinf\nc\t1e999\nd\t1_0\ne\t1,5\n",
            [
                "line 2, column k1: found an empty cell, wanted a finite number such as 1.5e-3",
                "line 3, column k1: found 'inf', wanted a finite number such as 1.5e-3",
                "line 4, column k1: found '1e999', wanted a finite number such as 1.5e-3",
                "line 5, column k1: found '1_0', wanted a finite number such as 1.5e-3",
                "line 6, column k1: found '1,5', wanted a finite number such as 1.5e-3",
            ],
        ),
        (
            "k1\tscenario\n1\ta\n1\t \n1\ta\n1\tb\x07\n1\t" + 201 * "z",
            [
                "line 3, column scenario: found an empty id, wanted a unique one",
                "line 4, column scenario: found 'a' again (first on line 2), wanted unique ids",
                "line 5, column scenario: found 'b\\x07', wanted an id without control characters and invisible marks",
                "line 6, column scenario: found an id of 201 characters, wanted at most 200",
            ],
        ),
        (
            b"scenario\tk1\n\xff\t1\n",
            ["found a byte that is not UTF-8 (invalid start byte), wanted a text file in UTF-8"],
        ),
    ],
)
def test_problems_of_a_table(text: str | bytes, lines: list[str], tmp_path: Path):
    assert table_problems(text, tmp_path) == lines


def test_steady_columns_without_a_steady_phase(tmp_path: Path):
    text = "scenario\tk1@steady\tk1@dynamic\na\t1\t1\n"
    assert table_problems(text, tmp_path, start="initial_state") == [
        ("line 1, column k1@steady: found a parameter of the steady phase, which start: initial_state does not have")
    ]


def test_parameters_that_the_model_lacks(tmp_path: Path):
    text = "scenario\tkdeg\tk_dge@dynamic\na\t1\t1\n"
    assert table_problems(text, tmp_path, parameters=["kdeg", "k_deg"]) == [
        (
            "line 1, column k_dge@dynamic: found no parameter 'k_dge' in the model, wanted one of kdeg, "
            "k_deg; did you mean 'k_deg'?"
        ),
        "found no column for parameter 'k_deg', wanted k_deg or k_deg@steady and k_deg@dynamic",
    ]


def test_many_problems_of_a_table_are_cut(tmp_path: Path):
    text = "scenario\tk1\n" + "".join(f"s{i}\tx\n" for i in range(120))
    found = table_problems(text, tmp_path)
    assert len(found) == 51
    assert found[-1] == "... and 70 more"


def test_a_table_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scenarios(tmp_path / "none.tsv")


# --- light enough for numerical jobs -----------------------------------------


def test_nothing_but_the_standard_library_is_imported():
    code = (
        "import sys; before = set(sys.modules); import retrograd.scenarios; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(new - set(sys.stdlib_module_names))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'retrograd'}"
