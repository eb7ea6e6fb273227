"""Retrograd: record the steps of a stiff solve once, replay them for gradients with a certificate."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The Snakefile imports this package on every parse: xarray, half a second, waits for its first use.
    if name == "open_results":
        from retrograd.store import open_results

        return open_results
    raise AttributeError(f"module 'retrograd' has no attribute {name!r}")
