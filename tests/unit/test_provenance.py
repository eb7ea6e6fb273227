"""What a result depends on: canonical JSON, digests of the code that was used, the environment."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograd
from retrograd import provenance
from retrograd.provenance import canonical, code_digest, code_files, environment, file_digest, text_digest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
MODULES = sorted((ROOT / "scripts" / "retrograd").glob("*.py"))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_is_json(value: Any):
    assert json.loads(canonical(value)) == value


@given(st.dictionaries(st.text(), JSON, max_size=6), st.randoms(use_true_random=False))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any], shuffle: random.Random):
    items = list(value.items())
    shuffle.shuffle(items)
    assert canonical(dict(items)) == canonical(value)


@given(JSON, JSON)
def test_canonical_json_tells_values_apart(first: Any, second: Any):
    # Python's == takes True, 1 and 1.0 for one, JSON does not.
    assert (canonical(first) == canonical(second)) == (_tagged(first) == _tagged(second))


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tagged(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_tagged(v) for v in value]
    return (type(value).__name__, math.copysign(1, value) if isinstance(value, float) else 0, value)


def test_canonical_json_is_pinned():
    value = {"b": [1, 1.0, 1e-6, 0.1, 1e300, True, None], "a": {"é": "µ", "Z": (2,)}}
    assert canonical(value) == '{"a":{"Z":[2],"é":"µ"},"b":[1,1.0,1e-06,0.1,1e+300,true,null]}'


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float64("nan")])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"a": {"b": v}}], ids=["bare", "list", "dict"])
def test_canonical_json_refuses_what_json_cannot_hold(bad: float, wrap: Any):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(wrap(bad))


def test_canonical_json_refuses_arrays():
    with pytest.raises(TypeError):
        canonical({"a": np.zeros(2)})


def test_digests(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes("µ\r\n".encode())
    assert file_digest(path) == file_digest(str(path)) == text_digest("µ\r\n")
    assert text_digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"")
    assert file_digest(path) == hashlib.sha256().hexdigest()


# -- which code a script uses -------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Returns a copy of scripts/."""
    target = tmp_path / "scripts"
    shutil.copytree(ROOT / "scripts", target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


@cache
def found_by_python(script: Path) -> set[Path]:
    """Returns a script and the modules of the package that the standard library's finder sees in its bytecode."""
    finder = ModuleFinder(path=[str(script.parent)])
    finder.run_script(str(script))
    files = [getattr(module, "__file__", None) for module in finder.modules.values()]
    return {Path(file).resolve() for file in files if file}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_code_files_are_those_that_python_finds(script: Path):
    assert set(code_files(script)) == found_by_python(script)
    assert code_files(script) == sorted(code_files(script))


def test_code_files_follow_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "retrograd"
    package.mkdir()
    texts = {
        "__init__": "",
        "plain": "",
        "named": "from retrograd.through import x",
        "through": "def f():\n    import retrograd.inner as i",
        "inner": "",
        "attribute": "",
        "guarded": "",
        "handled": "",
        "matched": "",
        "method": "",
        "unused": "import retrograd.unused_too",
        "unused_too": "",
        "under": "import retrograd.named",  # a circle
    }
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, retrograd.plain, numpy\n"
        "from retrograd import attribute, __version__\n"
        "from os import path\n"
        "def main():\n"
        "    from retrograd.under import something\n"
        "    try:\n        if os:\n            import retrograd.guarded\n"
        "    except ImportError:\n        import retrograd.handled\n"
        "    match os:\n        case 1:\n            import retrograd.matched\n"
        "class A:\n    def m(self):\n        async def g():\n            with os as o:\n"
        "                import retrograd.method\n"
        "text = 'import retrograd.unused'\n"
    )
    wanted = {package / f"{name}.py" for name in texts if not name.startswith("unused")} | {script}
    assert set(code_files(script)) == wanted


def test_the_package_imports_itself_by_its_full_name():
    """Relative imports, imports by a computed name, and the __init__ of folders in between are not followed."""
    assert [p.parent.name for p in (ROOT / "scripts").rglob("__init__.py")] == ["retrograd"]
    for path in [*SCRIPTS, *MODULES]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path
            name = getattr(node, "id", getattr(node, "attr", ""))
            # What the package offers to users is imported by name, so that figures are no code of a rule; none uses it.
            assert name not in ("import_module", "__import__") or path.name == "__init__.py", path
            of_package = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "retrograd"
            assert not (of_package and name in retrograd._OFFERED), path
            if isinstance(node, ast.ImportFrom) and node.module == "retrograd":
                assert not {alias.name for alias in node.names} & {"open_results", "words"}, path


@cache
def unedited(script: str) -> str:
    return code_digest(ROOT / "scripts" / script)


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.stem)
def test_an_edit_changes_the_digest_of_exactly_the_scripts_that_use_it(module: Path, copied: Path):
    scripts = [copied / s.name for s in SCRIPTS]
    users = {copied / s.name for s in SCRIPTS if module in found_by_python(s)}
    before = {s: unedited(s.name) for s in scripts}
    edited = copied / "retrograd" / module.name
    text = edited.read_bytes()
    edited.write_bytes(text + b"# edited\n")
    assert {s for s in scripts if code_digest(s) != before[s]} == users
    edited.write_bytes(text)


def test_the_report_does_not_rerun_simulations(copied: Path):
    used = {p.name for p in code_files(copied / "simulate.py")}
    assert {"simulate.py", "dynamics.py", "store.py", "job.py", "plugins.py", "weights.py", "schema.py"} <= used
    assert not used & {"report.py", "results.py", "figures.py", "drawing.py", "summary.py", "gradients.py", "study.py"}


def test_the_digest_is_free_of_the_place_and_of_times(copied: Path):
    here = {s.name: code_digest(copied / s.name) for s in SCRIPTS}
    for path in copied.rglob("*.py"):
        os.utime(path, (1, 1))
    assert {s.name: code_digest(copied / s.name) for s in SCRIPTS} == here
    assert {s.name: code_digest(s) for s in SCRIPTS} == here


def test_the_digest_holds_the_script_and_data_files(copied: Path, tmp_path: Path):
    script = copied / "simulate.py"
    data = [tmp_path / "b.yaml", tmp_path / "a.j2"]
    for path in data:
        path.write_text(path.name)
    seen = [code_digest(script), code_digest(script, *data), code_digest(script, data[0])]
    assert code_digest(script, *reversed(data)) == seen[1]
    data[0].write_text("other")
    seen.append(code_digest(script, *data))
    script.write_text(script.read_text() + "\n")
    seen.append(code_digest(script, *data))
    assert len(set(seen)) == len(seen)


# -- the environment ----------------------------------------------------------------------------------

KEYS = {
    *("python", "jax", "jaxlib", "diffrax", "equinox", "optimistix", "lineax", "numpy"),
    *("precision", "platform", "machine", "device_kind", "cpu_features", "xla_flags", "threads"),
}


def test_environment():
    found = environment("float64", 1)
    assert set(found) == KEYS
    assert json.loads(canonical(found)) == found
    assert found["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "missing" not in found.values()
    assert (found["precision"], found["threads"]) == ("float64", 1)
    assert environment()["precision"] == "none"
    assert environment(threads=3)["threads"] == 3


def test_environment_carries_no_name_of_the_machine():
    import platform
    import socket

    words = set(canonical(environment("float64")).replace('"', " ").replace(",", " ").replace(":", " ").split())
    assert not words & {socket.gethostname(), platform.node()}
    assert "/" not in canonical({k: v for k, v in environment().items() if k != "xla_flags"})


def test_environment_follows_the_flags(monkeypatch: pytest.MonkeyPatch):
    import jax  # noqa: F401 (only where it is loaded are there flags)

    monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
    assert environment()["xla_flags"] == "--xla_something=1"
    monkeypatch.delenv("XLA_FLAGS")
    assert environment()["xla_flags"] == ""


def test_without_jax_the_environment_neither_starts_it_nor_holds_its_flags():
    code = (
        "import sys; from retrograd.provenance import environment; e = environment();"
        "print(e['device_kind'], 'jax' in sys.modules, e['xla_flags'] == '', e['jax'])"
    )
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "XLA_FLAGS": "--xla_cpu_max_isa=AVX"}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["none", "False", "True", environment()["jax"]]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("flags\t\t: fpu sse sse4_2 fma avx avx2 avx512f avx512_bf16\n", ["avx", "avx2", "avx512f", "fma", "sse4_2"]),
        ("Features\t: fp asimd sve2 evtstrm\n", ["asimd"]),
        ("", []),
    ],
)
def test_cpu_features(text: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "read_text", lambda self, *args, **kwargs: text)
    assert provenance.cpu_features() == wanted
