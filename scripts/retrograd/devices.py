"""Which device a study computes on. Parsed with the Snakefile: standard library only."""

from __future__ import annotations

import os


def on_gpu() -> bool:
    """Returns whether `JAX_PLATFORMS` asks for a GPU first."""
    return os.environ.get("JAX_PLATFORMS", "").split(",")[0].strip() in ("cuda", "gpu", "rocm")
