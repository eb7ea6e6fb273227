"""What the documents name exists: modules, functions, variables, tests. Links are asked in `test_reference.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from retrograd import schema, settings, study

ROOT = Path(__file__).parents[2]
LIBRARY = {path.stem: path for path in sorted((ROOT / "scripts/retrograd").glob("*.py"))}
METHOD, CONTRIBUTING = ROOT / "config/METHOD.md", ROOT / "CONTRIBUTING.md"
ABOUT_CODE = [METHOD, CONTRIBUTING, ROOT / "workflow/DECISIONS.md"]
WITH_COMMANDS = [*ABOUT_CODE, ROOT / "README.md", *sorted((ROOT / "config").rglob("*.md"))]
# Ends of files' names that are not ends of a module's: `fit.nc` is no member of `fit.py`.
FILES = ("nc", "smk", "md", "tsv", "yaml", "j2", "toml")


def prose(path: Path) -> str:
    """Returns a document without its blocks of code, each of its lines joined to the next."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\s+", " ", text)


def spans(path: Path) -> list[str]:
    """Returns the code in a document's lines."""
    return re.findall(r"`([^`]+)`", prose(path))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def bound(body: list[ast.stmt]) -> Iterator[str]:
    """Yields the names that statements bind where they stand."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def everywhere(path: Path) -> set[str]:
    """Returns all names that a file binds, local functions and attributes too."""
    out = set()
    for node in ast.walk(tree(path)):
        out |= set(bound([node])) if isinstance(node, ast.stmt) else set()
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            out.add(node.attr)
    return out


@cache
def classes() -> dict[str, set[str]]:
    """Returns the members of each class of the library, inherited ones too."""
    found = {n.name: n for path in LIBRARY.values() for n in tree(path).body if isinstance(n, ast.ClassDef)}

    def members(name: str) -> set[str]:
        if name not in found:
            return set()
        own = set(bound(found[name].body))
        own |= {n.attr for n in ast.walk(found[name]) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        return own.union(*(members(base.id) for base in found[name].bases if isinstance(base, ast.Name)))

    return {name: members(name) for name in found}


def missing(name: str) -> bool:
    """Returns whether a dotted name begins with a module or a class of the library, and does not lead on from there."""
    first, *rest = name.split(".")
    if first in LIBRARY and rest[0] not in set(bound(tree(LIBRARY[first]).body)):
        return True
    owner, member = (rest[0], rest[1:2]) if first in LIBRARY else (first, rest[:1])
    return owner in classes() and bool(member) and member[0] not in classes()[owner]


@pytest.mark.parametrize("path", ABOUT_CODE, ids=lambda p: p.name)
def test_files_and_functions_that_are_named_exist(path):
    folders = ("scripts", "tests", "envs", "config")
    files = {file.name for folder in folders for file in (ROOT / folder).rglob("*.py")}
    lost = [s for s in spans(path) if re.fullmatch(r"\w+\.py", s) and s not in files]
    dotted = {s for s in spans(path) if re.fullmatch(r"\w+(\.\w+)+", s) and not s.endswith(FILES) and ".py" not in s}
    lost += [s for s in sorted(dotted) if missing(s)]
    # `a`, `b` and `c` in `file.py`.
    for names, file in re.findall(r"((?:`\w+`(?:, | and )?)+) in `(\w+\.py)`", prose(path)):
        (found, *_) = [p for folder in folders for p in (ROOT / folder).rglob(file)]
        lost += [
            f"{name} in {file}"
            for name in re.findall(r"\w+", names.replace(" and ", " "))
            if name not in everywhere(found)
        ]
    assert not lost


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_tests_that_are_named_exist(path):
    for command in (s for s in spans(path) if re.search(r"\bpytest\b.* tests/", s)):
        files = [ROOT / word for word in command.split() if word.startswith("tests/")]
        assert all(file.exists() for file in files), command
        word = re.search(r"-k (\w*[a-z]\w*)", command)
        assert not word or any(word[1] in file.read_text(encoding="utf-8") for file in files), command


def test_each_module_has_its_line():
    rows = re.findall(r"^\| `(\w+)\.py` \| (.+) \|$", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(LIBRARY.keys() - {"__init__"})


def test_words_of_the_method_are_those_of_the_code():
    known = {name for s in schema.SCHEMAS.values() for name in [*s.variables, *s.labels]}
    known |= {flag for s in schema.SCHEMAS.values() for v in s.variables.values() for flag in v.flags}
    known |= {name for path in LIBRARY.values() for name in everywhere(path)}
    known |= {*settings.GRADIENT_METHODS, *settings.SOLVERS, "PIDController", "ClipStepSizeController"}
    fields = [cls.model_fields for cls in vars(settings).values() if hasattr(cls, "model_fields")]
    fields += [cls.model_fields for cls in vars(study).values() if hasattr(cls, "model_fields")]
    known |= {name for names in fields for name in names}
    known |= {"newton", "chord", "wrt"}
    unknown = [s for s in spans(METHOD) if re.fullmatch(r"\w+", s) and s not in known]
    assert not unknown


def test_each_error_bar_of_the_results_has_its_line():
    text = METHOD.read_text(encoding="utf-8").partition("## What each error bar covers")[2]
    told = re.findall(r"^\| `(\w+)` \|", text.partition("\n## ")[0], re.MULTILINE)
    bars = [name for s in (schema.GRADIENTS, schema.FIT) for name in s.variables if name.endswith("_error")]
    assert sorted(told) == sorted(bars)


def test_formulas_are_closed():
    text = re.sub(r"`[^`]+`", "", METHOD.read_text(encoding="utf-8"))
    lines = re.sub(r"^\$\$$.*?^\$\$$", "", text, flags=re.MULTILINE | re.DOTALL).split("\n")
    assert [line for line in lines if line.count("$") % 2] == []
    # Markdown takes the backslash away before these reach the formula.
    assert re.findall(r"\$[^$]*\\[_|,;{}][^$]*\$", text) == []
