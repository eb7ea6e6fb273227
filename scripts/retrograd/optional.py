"""Libraries that only some studies need."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from retrograd.errors import RetrogradError

# Modules and the names under which they are installed.
_PACKAGES = {"libsbml": "python-libsbml"}


def need(what: str, *modules: str) -> list[ModuleType]:
    """Returns modules; raises RetrogradError in one sentence where some are not installed.

    - `what`: what needs them, the subject of that sentence.
    """
    found, missing = [], []
    for name in modules:
        try:
            with warnings.catch_warnings():
                # SWIG's modules are announced to become invalid, by a warning on their import.
                warnings.simplefilter("ignore", DeprecationWarning)
                found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            # Only the library itself: what breaks inside of one is to be seen as it is.
            if error.name != name:
                raise
            missing.append(_PACKAGES.get(name, name))
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise RetrogradError(
            f"{what} needs {' and '.join(missing)}, which {verb} not installed: "
            "run `make run EXTRAS=petab` (or `make test`)."
        )
    return found
