"""Formats and libraries that only some studies need, and the extras of `pyproject.toml` that bring them."""

from __future__ import annotations

from importlib.util import find_spec

from retrograd.errors import RetrogradError

# Formats of weights: all but the first two need an extra.
WEIGHT_SUFFIXES = (".eqx", ".safetensors", ".pt", ".pth", ".hdf5", ".h5", ".onnx")
# Module to the name of its package and to the extra.
_EXTRAS = {
    "antimony": ("antimony", "petab"),
    "h5py": ("h5py", "petab"),
    "libsbml": ("python-libsbml", "petab"),
    "onnx": ("onnx", "onnx"),
    "petab": ("petab", "petab"),
    "torch": ("torch", "torch"),
}


def package_of(module: str) -> str:
    """Returns the name of the package that brings a module."""
    return _EXTRAS[module][0]


def need(what: str, *modules: str) -> None:
    """Raises RetrogradError, in one sentence, where modules are not installed: to be called before their import.

    - `what`: what needs them, the subject of that sentence.
    - `modules`: of those above, all of one extra.
    """
    missing = [name for name in modules if _is_missing(name)]
    if missing:
        packages, extra = " and ".join(map(package_of, missing)), _EXTRAS[missing[0]][1]
        verb = "is" if len(missing) == 1 else "are"
        raise RetrogradError(
            f"{what} needs {packages}, which {verb} not installed: `make run EXTRAS={extra} CONFIG=STUDY.yaml` "
            f"installs the extra and runs that study, pip install '.[{extra}]' installs it alone."
        )


def _is_missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ValueError:
        # A module that was put out of reach on purpose has no spec.
        return True
