"""The scenario table: one row a scenario, its parameters of both phases and where its dynamics start.

Numerical jobs import this too: standard library only, neither pydantic nor yaml.
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from retrograd.messages import ConfigError, capped, one_of, show, step
from retrograd.provenance import canonical

PHASES = ("steady", "dynamic")
# What texts are numbers, in tables and in the config.
NUMERAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)

_ID_HEADERS = ("scenario", "scenarios", "id", "name", "scenarioid")
_A_NUMBER = "a finite number such as 1.5e-3"


@dataclass(frozen=True)
class Table:
    """The scenarios of a study, in the order of the file.

    - `ids`: the scenarios' names, shape (scenario,).
    - `columns`: headers without the `scenario` column, shape (column,).
    - `rows`: numbers in the units of the model, shape (scenario, column).
    """

    ids: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    def values(self, phase: str, parameters: Sequence[str]) -> list[list[float]]:
        """Returns the parameters of one phase, shape (scenario, parameter); `k@phase` goes before `k`.

        - `phase`: steady or dynamic.
        - `parameters`: their names, in the order wanted. Raises ConfigError for those without a column.
        """
        where = {name: index for index, name in enumerate(self.columns)}
        index = [where.get(f"{name}@{phase}", where.get(name)) for name in parameters]
        missing = [name for name, i in zip(parameters, index, strict=True) if i is None]
        if missing:
            raise ConfigError([f"scenarios: found no column for {', '.join(missing)} in the {phase} phase"])
        return [[row[i] for i in index if i is not None] for row in self.rows]

    def part(self, start: int, stop: int) -> str:
        """Returns some scenarios as canonical JSON: `ids`, `columns`, `rows`."""
        return canonical({"ids": self.ids[start:stop], "columns": self.columns, "rows": self.rows[start:stop]})

    def starts(self, states: Sequence[str]) -> list[list[float]]:
        """Returns the `x0:STATE` columns, shape (scenario, state); NaN for states without one."""
        where = {name: index for index, name in enumerate(self.columns)}
        index = [where.get(f"x0:{name}") for name in states]
        return [[math.nan if i is None else row[i] for i in index] for row in self.rows]


# What `chunk_size: auto` makes of a study; workflow/DECISIONS.md, 40, has the reasons. Sizes are four a doubling, from
# 128 on, whole batches of 32 lanes all of them.
SIZES = [quarters << exponent for exponent in range(5, 26) for quarters in (4, 5, 6, 7)]
# What the jobs of a chunk take whatever its size [s]. By whether there is a network: what a scenario takes in all
# stages [s], and the largest chunk, so that no job is planned to take more than minutes, nor much memory.
CHUNK_SECONDS = 10.0
SCENARIO_SECONDS, LARGEST = {True: 0.09, False: 0.0044}, {True: 2560, False: 10_240}
CORES = (1, 2, 8)
MOST_JOBS = 2000


def automatic_size(n: int, works: int, network: bool) -> int:
    """Returns the scenarios of a job [1] where the config leaves it open: by their number and kind, not by the machine.

    - `n`: number of scenarios.
    - `works`: jobs on each chunk, of all stages together. All jobs on chunks together stay below 2,000.
    - `network`: whether the study has weights or their gradients, which cost most.
    """

    def seconds(size: int) -> float:
        """Time on one, two and eight cores, their product, so that none of them pays for another."""
        count = math.ceil(n / size)
        return math.prod(
            math.ceil(count / cores) * (CHUNK_SECONDS + SCENARIO_SECONDS[network] * min(size, n)) for cores in CORES
        )

    best = min((size for size in SIZES if size <= LARGEST[network]), key=seconds)
    # One chunk is as coarse as it gets.
    return next(size for size in SIZES if size >= best and (size >= n or works * math.ceil(n / size) < MOST_JOBS))


def chunks(n: int, size: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the scenarios of each job: n scenarios, at most `size` a job, in order."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def read_scenarios(
    path: str | Path,
    *,
    parameters: Sequence[str] | None = None,
    states: Sequence[str] | None = None,
    start: str | None = None,
) -> Table:
    """Returns the scenario table of a TSV file; raises ConfigError with every problem that was found in it.

    - `parameters`, `states`: the model's names, which columns are checked against; None: not checked.
    - `start`: the study's `start`, which says which phases need parameters; None: not checked.
    """
    reader = _Reader(str(path), parameters, states, start)
    table = reader.read()
    if reader.problems:
        raise ConfigError(capped(reader.problems))
    return table


def head_of(path: str | Path) -> str:
    """Returns the comments above a table's header, without their signs: what the table says of itself."""
    with open(path, encoding="utf-8-sig") as file:
        lines = takewhile(lambda line: line.startswith("#"), file)
        return "\n".join(line.removeprefix("#").strip() for line in lines)


class _Reader:
    def __init__(
        self, path: str, parameters: Sequence[str] | None, states: Sequence[str] | None, start: str | None
    ) -> None:
        self.path, self.parameters, self.states, self.start = path, parameters, states, start
        self.problems: list[str] = []

    def complain(self, text: str, line: int = 0, column: str | None = None) -> None:
        """Records a problem of the file, of one of its lines, or of one cell of that line."""
        place = f": line {line}" if line else ""
        place += f", column {step(column)}" if column is not None else ""
        self.problems.append(f"{self.path}{place}: {text}")

    def read(self) -> Table:
        try:
            with open(self.path, encoding="utf-8-sig") as file:
                return self._read_lines(_lines(file))
        except UnicodeDecodeError as error:
            self.complain(f"found a byte that is not UTF-8 ({error.reason}), wanted a text file in UTF-8")
        except OSError as error:
            self.complain(f"cannot be read ({error.strerror})")
        return Table((), (), ())

    def _read_lines(self, lines: Iterator[tuple[int, list[str]]]) -> Table:
        number, header = next(lines, (0, []))
        if not header:
            self.complain("found no header, wanted a line of column names with `scenario` among them")
            return Table((), (), ())
        id_column = self._check_header(number, header)
        first: dict[str, int] = {}  # line of an id
        ids: list[str] = []
        rows: list[tuple[float, ...]] = []
        number = 0
        for number, cells in lines:
            if len(cells) != len(header):
                self.complain(f"found a row of {len(cells)}, wanted {len(header)} cells, one a column", number)
                continue
            row = []
            for column, (name, cell) in enumerate(zip(header, cells, strict=True)):
                if column == id_column:
                    self._check_id(number, cell, first)
                    ids.append(cell)
                else:
                    row.append(self._number(number, name, cell))
            rows.append(tuple(row))
        if not number:
            self.complain("found no scenario, wanted at least one row below the header")
        columns = tuple(name for i, name in enumerate(header) if i != id_column)
        return Table(tuple(ids), columns, tuple(rows))

    def _check_header(self, line: int, header: list[str]) -> int | None:
        """Returns the index of the id column, None without one; records what is wrong with the names."""
        seen: set[str] = set()
        for position, name in enumerate(header, start=1):
            if not name:
                self.complain(f"found no name for column {position}, wanted one for every column", line)
            elif name in seen:
                self.complain("found this column twice, wanted each once", line, name)
            elif name != "scenario":
                self._check_column(line, name)
            seen.add(name)
        if "scenario" not in seen:
            near = [name for name in header if name.casefold() in _ID_HEADERS]
            hint = f"; is it {near[0]!r}?" if near else ""
            self.complain(f"found no column `scenario`, wanted one with the scenarios' ids{hint}", line)
        self._check_coverage(seen)
        return header.index("scenario") if "scenario" in seen else None

    def _check_column(self, line: int, name: str) -> None:
        if name.startswith("x0:"):
            state = name.removeprefix("x0:")
            if self.states is not None and state not in self.states:
                choices = one_of(state, self.states)
                self.complain(f"found no state {show(state)} in the model, wanted {choices}", line, name)
            return
        parameter, at, phase = name.partition("@")
        if self.parameters is not None and parameter not in self.parameters:
            choices = one_of(parameter, self.parameters)
            self.complain(f"found no parameter {show(parameter)} in the model, wanted {choices}", line, name)
        if at and phase not in PHASES:
            self.complain(f"found phase {show(phase)}, wanted {one_of(phase, PHASES)}", line, name)
        elif phase == "steady" and self.start == "initial_state":
            text = "found a parameter of the steady phase, which start: initial_state does not have"
            self.complain(text, line, name)

    def _check_coverage(self, columns: set[str]) -> None:
        if self.parameters is None or self.start is None:
            return
        phases = PHASES if self.start == "steady_state" else ("dynamic",)
        for name in self.parameters:
            missing = [p for p in phases if not columns & {name, f"{name}@{p}"}]
            if missing:
                wanted = " and ".join(step(f"{name}@{p}") for p in missing)
                which = "" if len(missing) == len(phases) else f" in the {missing[0]} phase"
                self.complain(f"found no column for parameter {name!r}{which}, wanted {step(name)} or {wanted}")

    def _check_id(self, line: int, cell: str, first: dict[str, int]) -> None:
        text = ""
        if not cell.strip():
            text = "found an empty id, wanted a unique one"
        elif len(cell) > LONGEST_LABEL:
            text = f"found an id of {len(cell)} characters, wanted at most {LONGEST_LABEL}"
        elif not is_visible(cell):
            text = f"found {show(cell)}, wanted an id without control characters and invisible marks"
        elif cell in first:
            text = f"found {show(cell)} again (first on line {first[cell]}), wanted unique ids"
        if text:
            self.complain(text, line, "scenario")
        first.setdefault(cell, line)

    def _number(self, line: int, name: str, cell: str) -> float:
        value = float(cell) if NUMERAL.fullmatch(cell) else math.nan
        if not math.isfinite(value):
            self.complain(f"found {show(cell) if cell else 'an empty cell'}, wanted {_A_NUMBER}", line, name)
        return value


# Characters of a name: of a scenario, a state, a parameter.
LONGEST_LABEL = 200


def wrong_label(name: str) -> str:
    """Returns what a state's or parameter's name has to be and is not, '' where it may stand in tables and figures."""
    if not name.strip():
        return "that is not empty"
    if len(name) > LONGEST_LABEL:
        return f"of at most {LONGEST_LABEL} characters"
    return "" if is_visible(name) else "without control characters and invisible marks"


def is_visible(name: str) -> bool:
    """Tells whether a name shows all that it is: nothing that breaks lines, turns the direction of text or is not seen.

    Line and paragraph separators break lines in browsers and logs just as control characters do. Joiners are part of
    words in some scripts, and of emoji.
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return all(c in "\u200c\u200d" or unicodedata.category(c) not in hidden for c in name)


def _lines(file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields line number, from 1, and cells of every line that is neither blank nor a comment."""
    for number, line in enumerate(file, start=1):
        line = line.rstrip("\n")
        if line.startswith("#") or not line.strip():
            continue
        cells = line.split("\t")
        if '"' in line:
            # Spreadsheets put quotes round cells. Where the quotes do not pair they belong to the text.
            with suppress(csv.Error):
                cells = next(csv.reader([line], delimiter="\t", strict=True))
        yield number, [cell.strip(" ") for cell in cells]
