"""What can be seen of a plug-in without importing it: its syntax tree.

Every parse of the Snakefile looks at the plug-in, and running it would start JAX.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrograd.messages import one_of, show
from retrograd.scenarios import wrong_label

_DEFAULT_FORMULATIONS = {"stable": "vector_field"}
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Plugin:
    """What the syntax tree of a plug-in shows; None where it takes running the code to know."""

    states: tuple[str, ...] | None = None
    parameters: tuple[str, ...] | None = None
    formulations: tuple[str, ...] | None = None
    has_initial_state: bool | None = None
    # Only those that a class body in this file shows.
    has_measurements: bool = False


def look_at_plugin(path: str, class_name: str) -> tuple[Plugin, list[str]]:
    """Returns what a plug-in file declares, and the problems that show without running it."""
    try:
        return _look(path, class_name)
    except (RecursionError, MemoryError):
        return Plugin(), [f"{path}: found code that is nested too deeply to be read, wanted a Python file"]


def _look(path: str, class_name: str) -> tuple[Plugin, list[str]]:
    try:
        source = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        text = f"{path}: line {error.lineno or 1}: found a syntax error ({error.msg}), wanted a Python file"
        return Plugin(), [text]
    except (OSError, ValueError) as error:
        return Plugin(), [f"{path}: cannot be read as Python ({error})"]
    classes: dict[str, ast.ClassDef] = {}
    elsewhere: set[str] = set()  # names that imports and assignments bind
    for node in _top_level(tree):
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.alias):
            elsewhere.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            elsewhere.add(node.id)
    if class_name in classes:
        return _ClassReader(path, class_name, classes, tree).read()
    if class_name in elsewhere or "*" in elsewhere:
        return Plugin(), []
    wanted = one_of(class_name, list(classes))
    return Plugin(), [f"model.class: found {class_name!r}, wanted a class of {path}: {wanted}"]


def _top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Yields every node outside functions and classes, those themselves included, in the file's order."""
    todo: list[ast.AST] = list(reversed(tree.body))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, _Definition):
            todo.extend(reversed(list(ast.iter_child_nodes(node))))


def _mentions(stmt: ast.stmt, name: str) -> bool:
    """Tells whether a statement of a class body defines a name, or uses it in any other way."""
    if isinstance(stmt, _Definition):
        return stmt.name == name
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(stmt))


def _bound(stmt: ast.stmt, name: str) -> ast.expr | None:
    """Returns what `name = ...` or `name: type = ...` binds a name to, None for other statements."""
    if isinstance(stmt, ast.Assign) and len(stmt.targets) == 1:
        target = stmt.targets[0]
    elif isinstance(stmt, ast.AnnAssign):
        target = stmt.target
    else:
        return None
    return stmt.value if isinstance(target, ast.Name) and target.id == name else None


class _ClassReader:
    def __init__(self, path: str, class_name: str, classes: dict[str, ast.ClassDef], tree: ast.Module) -> None:
        self.where, self.tree = f"{path}: class {class_name}", tree
        self.problems: list[str] = []
        self.line: list[ast.ClassDef] = []  # the class and its bases in this file, nearest first
        self.complete = True  # whether all other bases are retrograd's Model
        self.is_model = False
        models = {
            alias.asname or alias.name
            for node in _top_level(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retrograd")
            for alias in node.names
            if alias.name == "Model"
        }
        todo = [classes[class_name]]
        while todo:
            cls = todo.pop(0)
            if cls in self.line:
                continue
            self.line.append(cls)
            # Decorators, metaclasses and class keywords can add anything.
            self.complete &= not cls.decorator_list and not cls.keywords
            for base in cls.bases:
                text = ast.unparse(base)
                if text in classes:
                    todo.append(classes[text])
                elif text in models or text.endswith("api.Model"):
                    self.is_model = True
                else:
                    self.complete = False

    def read(self) -> tuple[Plugin, list[str]]:
        if self.complete and not self.is_model:
            return Plugin(), [f"{self.where}: found no base class, wanted a subclass of retrograd.api.Model"]
        states = self._names("states", {})
        parameters = self._names("parameters", {})
        formulations = self._names("formulations", _DEFAULT_FORMULATIONS)
        for name, found in (("states", states), ("formulations", formulations)):
            if found == ():
                self._complain(f"found no {name}, wanted at least one, as {name} = {{'name': ...}}")
        for what, names in (("state", states), ("parameter", parameters), ("formulation", formulations)):
            for name in names or ():
                # Of parameters without a name the next lines tell.
                if (name or what != "parameter") and (why := wrong_label(name)):
                    self._complain(f"found the {what} {show(name)}, wanted a name {why}")
        for name in parameters or ():
            if name in ("", "scenario") or "@" in name or name.startswith("x0:") or name != name.strip():
                self._complain(
                    f"found the parameter {name!r}, wanted a name that can head a column: "
                    "not `scenario`, no @, no x0: in front"
                )
        self._check_estimated(parameters)
        self._check_methods()
        # Bases in other files may have the method.
        has_initial_state = self._has("initial_state") or (False if self.complete else None)
        shown = (states or None, parameters, formulations or None, has_initial_state)
        return Plugin(*shown, has_measurements=self._has_measurements()), self.problems

    def _complain(self, text: str) -> None:
        self.problems.append(f"{self.where}: {text}")

    def _has(self, name: str) -> bool:
        return any(_mentions(stmt, name) for cls in self.line for stmt in cls.body)

    def _has_measurements(self) -> bool:
        for cls in self.line:
            values = [_bound(stmt, "measurements") for stmt in cls.body if _mentions(stmt, "measurements")]
            if values:
                return not (isinstance(values[-1], ast.Dict) and not values[-1].keys)
        return False

    def _literal(self, name: str, default: dict[str, str] | None) -> Any:
        """Returns the literal that a class attribute is bound to, or its default; None for no literal."""
        # `Model.parameters["k9"] = ...` after the class: no longer what the body says.
        if any(isinstance(node, ast.Attribute) and node.attr == name for node in _top_level(self.tree)):
            return None
        for cls in self.line:
            if cls.decorator_list or cls.keywords:
                return None
            values = [_bound(stmt, name) for stmt in cls.body if _mentions(stmt, name)]
            if values:
                last = values[-1]
                if last is None or None in values:
                    return None
                try:
                    return ast.literal_eval(last)
                except (ValueError, TypeError, SyntaxError):
                    return None
        return default if self.complete else None

    def _names(self, name: str, default: dict[str, str]) -> tuple[str, ...] | None:
        value = self._literal(name, default)
        if value is None:
            return None
        if isinstance(value, dict) and all(isinstance(part, str) for item in value.items() for part in item):
            return tuple(value)
        self._complain(f"found {name} = {show(value)}, wanted a dict of text to text")
        return None

    def _check_estimated(self, parameters: tuple[str, ...] | None) -> None:
        estimated = self._literal("estimated", None)
        if estimated is None:
            return
        if not isinstance(estimated, tuple) or not all(isinstance(name, str) for name in estimated):
            self._complain(f"found estimated = {show(estimated)}, wanted None or a tuple of parameters")
        elif parameters is not None:
            for name in estimated:
                if name not in parameters:
                    self._complain(f"found {name!r} in estimated, wanted a parameter: {one_of(name, parameters)}")

    def _check_methods(self) -> None:
        formulations = self._literal("formulations", _DEFAULT_FORMULATIONS)
        if not self.complete or not isinstance(formulations, dict):
            return
        for name, method in formulations.items():
            if isinstance(method, str) and not self._has(method):
                self._complain(f"found no method {method!r}, wanted one for the formulation {name!r}")
