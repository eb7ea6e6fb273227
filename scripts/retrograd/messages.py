"""How a message to the user is worded: what was found, what is wanted, a guess at what was meant."""

from __future__ import annotations

import difflib
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrograd.errors import RetrogradError

# A table can be wrong in every cell: more lines than this per file help nobody.
MOST_LINES = 50
# Of a config: a study of 100,000 save times is large already.
MOST_VALUES, DEEPEST = 500_000, 20


class ConfigError(RetrogradError):
    """Everything that is wrong with a study, found in one go.

    `str()` is the message for the user: a headline, then one line a problem, which names the path in the
    file, the value found and what is allowed.

    - `problems`: those lines.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(printable, problems))
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"The study cannot run: {count}.", *self.problems]))


def printable(text: str) -> str:
    """Returns a text with escapes for what would steer a terminal, or that no log takes; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def show(value: Any) -> str:
    """Returns a value as it would stand in the YAML file, on one line and not too long."""
    try:
        if isinstance(value, str):
            text = repr(value)
        elif value is None or isinstance(value, bool | list | tuple | dict):
            text = json.dumps(value, default=str, skipkeys=True)
        else:
            text = str(value)
    except ValueError:
        # Python writes no whole number of more than 4,300 digits.
        text = "a number of thousands of digits"
    return _short(text, 80)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def step(part: Any) -> str:
    """Returns one step of a path in a file, in quotes where it is no plain word."""
    text = show(part) if isinstance(part, int) and not isinstance(part, bool) else str(part)
    return _short(text if re.fullmatch(r"[\w@:+-]+", text) else repr(text), 200)


def stumbled(error: BaseException) -> str:
    """Returns what an error of somebody else's code says, on one line, and the last line of code that it came from."""
    told = " ".join(str(error).split())
    at = traceback.extract_tb(error.__traceback__, limit=-1)
    where = f" ({Path(at[0].filename).name}, line {at[0].lineno})" if at else ""
    return f"{type(error).__name__}{': ' if told else ''}{told[:300]}{where}"


def guess(value: Any, options: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest option, else nothing."""
    if not isinstance(value, str):
        return ""
    folded = {option.casefold(): option for option in options}
    near = difflib.get_close_matches(value.casefold(), list(folded), n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def one_of(value: Any, options: Sequence[str]) -> str:
    """Returns `one of a, b`, with a guess at which of them the value was meant to be."""
    listed = ", ".join(map(step, options)) if options else "nothing (there is none)"
    return f"{'one of ' if len(options) > 1 else ''}{listed}{guess(value, options)}"


def capped(lines: list[str]) -> list[str]:
    """Returns the first lines, and how many there are beyond them."""
    return lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"... and {len(lines) - MOST_LINES} more"]


def overgrown(content: Any) -> str:
    """Returns why a config is not looked at any further, '' where it is.

    A few lines of YAML stand for a billion values, where lists of aliases are aliases again, or for a list in itself.
    """
    todo, count = [(content, 0)], 0
    while todo:
        value, depth = todo.pop()
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        count += len(inside)
        if depth > DEEPEST or count > MOST_VALUES:
            return (
                f"found more than {MOST_VALUES} values, or lists and mappings more than {DEEPEST} deep, aliases (*) "
                "counted as often as they stand there, wanted fewer"
            )
        todo += [(part, depth + 1) for part in inside]
    return ""
