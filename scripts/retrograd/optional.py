"""Libraries that only some studies need."""

from __future__ import annotations

from importlib.util import find_spec

from retrograd.errors import RetrogradError

# Modules and the names under which they are installed, where that is another one.
_PACKAGES = {"libsbml": "python-libsbml"}


def need(what: str, *modules: str) -> None:
    """Raises RetrogradError, in one sentence, where modules are not installed: to be called before their import.

    - `what`: what needs them, the subject of that sentence.
    """
    missing = [_PACKAGES.get(name, name) for name in modules if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise RetrogradError(
            f"{what} needs {' and '.join(missing)}, which {verb} not installed: "
            "run `make run EXTRAS=petab` (or `make test`)."
        )
