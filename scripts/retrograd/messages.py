"""How a message to the user is worded: what was found, what is wanted, a guess at what was meant."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from retrograd.errors import RetrogradError

# A table can be wrong in every cell: more lines than this per file help nobody.
MOST_LINES = 50


class ConfigError(RetrogradError):
    """Everything that is wrong with a study, found in one go.

    `str()` is the message for the user: a headline, then one line a problem, which names the path in the
    file, the value found and what is allowed.

    - `problems`: those lines.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"The study cannot run: {count}.", *self.problems]))


def show(value: Any) -> str:
    """Returns a value as it would stand in the YAML file, on one line and not too long."""
    if isinstance(value, str):
        text = repr(value)
    elif value is None or isinstance(value, bool | list | tuple | dict):
        text = json.dumps(value, default=str, skipkeys=True)
    else:
        text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def step(part: Any) -> str:
    """Returns one step of a path in a file, in quotes where it is no plain word."""
    text = str(part)
    return text if re.fullmatch(r"[\w@:+-]+", text) else repr(text)


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
