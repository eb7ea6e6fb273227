"""Retrograd: record the steps of a stiff solve once, replay them for gradients with a certificate."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# What users get from here, and the module that has it.
_OFFERED = {"open_results": "opening", "words": "opening", "plot": "plot"}


def __getattr__(name: str) -> Any:
    # The Snakefile imports this package on every parse: xarray, half a second, waits for its first use. By name, since
    # what is imported by a statement counts as code of every rule: figures would rerun simulations.
    if name not in _OFFERED:
        raise AttributeError(f"module 'retrograd' has no attribute {name!r}")
    module = import_module(f"retrograd.{_OFFERED[name]}")
    return module if name == _OFFERED[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})
