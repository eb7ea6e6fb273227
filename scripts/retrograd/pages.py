"""What the HTML pages share: numbers as they are read, templates, and how a page becomes a file."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any

import jinja2
import numpy as np

from retrograd.drawing import superscript
from retrograd.whole import whole


def number(value: Any, digits: int = 2) -> str:
    """Returns a number as it is read: `0.0012`, `3.4 × 10⁻⁹`; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if value < 0:
        return f"−{number(-value, digits)}"
    if float(value).is_integer() and value < 1e5:
        return str(int(value))
    text = f"{float(value):.{digits - 1}e}"
    mantissa, _, exponent = text.partition("e")
    if digits > 2 and "." in mantissa:
        # More digits are asked for where a value was set by hand: zeros say nothing there.
        mantissa = mantissa.rstrip("0").rstrip(".")
    power = int(exponent)
    if -3 <= power < 4:
        return f"{float(text):.{max(digits - 1 - power, 0)}f}"
    if set(mantissa) <= set("10."):
        return f"10{superscript(power)}"
    return f"{mantissa}\u00a0×\u00a010{superscript(power)}"


def shown_path(path: str | None) -> str | None:
    """Returns a path without the folders of one machine: relative ones as they are, of others the name."""
    return path if path is None or not PurePath(path).is_absolute() else PurePath(path).name


def pages() -> jinja2.Environment:
    """Returns what fills in the templates beside this module; every text in them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that it appears under its name only when it is whole."""
    with whole(path) as temporary:
        temporary.write_bytes(content)
