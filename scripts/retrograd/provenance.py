"""Digests and the environment: what a result depends on, in a form that can be compared."""

from __future__ import annotations

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

    Imports inside functions count too, so that a change in the report's code does not rerun simulations.
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
        todo.extend(_imported(path.read_bytes(), package))
    return sorted(seen)


# What imports, at the beginning of a line as the formatter puts it. Syntax trees of the whole package took a second at
# each start of Snakemake, twice in every job of a cluster. A line of a text that reads like an import may add a module,
# at worst a needless rerun; none is missed.
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b(\s*\([^)]*\)|[^\n]*)|import[ \t]+([^\n]*))", re.MULTILINE
)
_NO_NAME = re.compile(r"#.*|\bas\s+\w+")


@cache
def _imported(source: bytes, package: Path) -> tuple[Path, ...]:
    """Returns the files of the package that a module imports, by its content: many rules use the same ones."""
    names: set[str] = set()
    for module, members, modules in _IMPORT.findall(source.decode()):
        listed = re.findall(r"[\w.]+", _NO_NAME.sub("", members or modules))
        names |= {module, *(f"{module}.{name}" for name in listed)} if module else {*listed}
    found = set()
    for name in names:
        head, _, rest = name.partition(".")
        if head == PACKAGE:
            target = package.joinpath(*rest.split(".")) if rest else package
            found |= {package / "__init__.py", target.with_suffix(".py"), target / "__init__.py"}
    return tuple(p for p in found if p.is_file())


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
    # Neither device nor flags move what is computed without JAX: summaries and joins are the same on all of them.
    device, flags = "none", ""
    if "jax" in sys.modules:
        import jax

        device, flags = jax.devices()[0].device_kind, os.environ.get("XLA_FLAGS", "")
    return {
        "python": platform.python_version(),
        **packages,
        "precision": precision or "none",
        "platform": platform.system(),
        "machine": platform.machine(),
        "device_kind": device,
        "cpu_features": cpu_features(),
        "xla_flags": flags,
        "threads": threads,
    }
