"""Digests and the environment: what a result depends on, in a form that can be compared."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "retrograd"
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


def canonical(obj: Any) -> str:
    """Returns canonical JSON: sorted keys, no spaces, shortest float repr; NaN and inf raise ValueError."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


# What names the variant of a result file. No number depends on it, and chunks, which variants share, do not have it.
_NAMES = ("study", "variant", "class")


def with_names(settings: Mapping[str, Any], study: str, variant: str, class_name: str) -> dict[str, Any]:
    """Returns a stage's settings with the names of study, variant and model class."""
    return {**dict(zip(_NAMES, (study, variant, class_name), strict=True)), **settings}


def without_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as they were before `with_names`."""
    return {key: value for key, value in settings.items() if key not in _NAMES}


def text_digest(text: str) -> str:
    """Returns the sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_files(script: Path) -> list[Path]:
    """Returns a script, or a module of the package, and every module of the package that it imports, directly or not.

    Imports are read from the syntax tree, those inside functions too, so that a change in the report's code does not
    rerun simulations.
    """
    script = script.resolve()
    package = script.parent if script.parent.name == PACKAGE else script.parent / PACKAGE
    seen: dict[Path, None] = {}
    todo = [script]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen[path] = None
        todo.extend(_imported(path, package))
    return sorted(seen)


def _imported(path: Path, package: Path) -> set[Path]:
    found = set()
    for name in _import_names(path.read_bytes(), path.name):
        head, _, rest = name.partition(".")
        if head == PACKAGE:
            target = package.joinpath(*rest.split(".")) if rest else package
            found |= {package / "__init__.py", target.with_suffix(".py"), target / "__init__.py"}
    return {p for p in found if p.is_file()}


@cache
def _import_names(source: bytes, name: str) -> frozenset[str]:
    """Returns what a module imports, by content: each is parsed once, though many rules use it.

    - `name`: of the file, for the SyntaxError of what is no Python.
    """
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse(source, name)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        # Imports are statements: expressions, most of a tree, need no look.
        todo.extend(n for n in ast.iter_child_nodes(node) if isinstance(n, _STATEMENTS))
    return frozenset(names)


def code_digest(script: Path, *data: Path) -> str:
    """Returns one sha256 over the contents of a script, the package modules it uses, and data files."""
    digest = hashlib.sha256()
    for path in [*code_files(script), *(d.resolve() for d in sorted(data))]:
        digest.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


# The instruction sets that were seen to change bits: fused multiply-add and the width of vectors.
_CPU_FEATURES = ("asimd", "avx", "avx2", "avx512f", "fma", "neon", "sse4_2", "sve")


def cpu_features() -> list[str]:
    """Returns the processor's vector features that can change rounding; empty where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ["asimd", "neon"] if platform.machine() == "arm64" else []
    words = set(re.findall(r"[a-z0-9_]+", text))
    return [f for f in _CPU_FEATURES if f in words]


def processor() -> str:
    """Returns what machine code may depend on, in the words of the system."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    # Of the first of them: x86-64 has `flags`, aarch64 `Features` and `CPU part`.
    keys = ("model name", "flags", "features", "cpu part", "cpu implementer")
    lines = [line for line in text.split("\n\n")[0].splitlines() if line.partition(":")[0].strip().lower() in keys]
    return "\n".join([platform.machine(), platform.processor(), *lines])


def environment(precision: str | None = None, threads: int = 1) -> dict[str, Any]:
    """Returns what beside code, config and inputs can move a result: versions, processor, device, flags."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("jax", "jaxlib", "diffrax", "equinox", "optimistix", "lineax", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    device = "none"
    if "jax" in sys.modules:
        import jax

        device = jax.devices()[0].device_kind
    return {
        "python": platform.python_version(),
        **packages,
        "precision": precision or "none",
        "platform": platform.system(),
        "machine": platform.machine(),
        "device_kind": device,
        "cpu_features": cpu_features(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "threads": threads,
    }
