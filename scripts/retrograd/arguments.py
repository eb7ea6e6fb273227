"""What `snakemake COMMAND --config KEY=VALUE` asks for: found among what there is, or a message.

The Snakefile imports this on every parse: standard library and yaml only.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from retrograd.messages import guess, show

# Names that a message lists before it says how many there are.
_LISTED = 8


def asked_for(key: str, given: Mapping[str, Any], options: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the option that a `--config` argument means, and what is wrong where it means none.

    - `given`: the arguments as Snakemake read them: `17`, `True` and `a: b` are no texts by then.
    """
    listed = ", ".join(map(repr, options[:_LISTED]))
    wanted = f"one of {listed}" if len(options) <= _LISTED else f"one of {len(options)}, such as {listed}"
    value = given.get(key)
    if value is None:
        return None, [f"{key}: found nothing, wanted {wanted}"]
    same = [option for option in options if option == value or _reads_as(option, value)]
    if len(same) == 1:
        return same[0], []
    if same:
        text = f"found {show(value)}, which is how Snakemake reads each of {', '.join(map(repr, same))}"
        return None, [f"{key}: {text}; give all but one of them another name"]
    return None, [f"{key}: found {show(value)}, wanted {wanted}{guess(str(value), options)}"]


def _reads_as(text: str, value: Any) -> bool:
    """Returns whether Snakemake 9 makes this value of a text on its command line."""
    stripped = text.strip("'\"")
    if stripped in ("True", "False"):
        return value is (stripped == "True")
    for number in (int, float):
        try:
            read = number(stripped)
        except ValueError:
            continue
        return type(value) is number and value == read
    try:
        return value == yaml.load(stripped, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return value == stripped


def headline(command: str, problems: Sequence[str], example: Mapping[str, str]) -> str:
    """Returns the message for a command that lacks what it needs.

    - `example`: arguments that would do.
    """
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    given = " ".join(shlex.quote(f"{key}={value}") for key, value in example.items())
    lines = [
        f"snakemake {command} cannot run: {count}.",
        *problems,
        f"For example: snakemake {command} --config {given}",
    ]
    return "\n  ".join(lines)
