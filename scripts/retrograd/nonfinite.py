"""Where a value that is not finite comes from: a function's jaxpr, evaluated equation by equation on given numbers.

Each value that is not finite carries the equation that made it: one whose operands were all finite. What is told is
the origin of what reaches the function's result, so that an overflow on the side of a `where` that was not taken, or
one that a division turns into 0, is not blamed. Evaluated one by one, operations may differ in the last digits from the
compiled function.
"""

from __future__ import annotations

import inspect
import linecache
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# The primitives of JAX 0.10 and 0.11 that do nothing but run another jaxpr, and the parameter that holds it. One that
# is missing here is taken as one operation: the line is right still, what is inside remains unseen.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_INSTALLED = tuple(
    {
        *(str(Path(sysconfig.get_paths()[name])) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(str(Path(str(package.__file__)).parent) for package in (jax, eqx)),
        __file__,
        "<frozen",
    }
)


@dataclass(frozen=True)
class NonFinite:
    """The origin of a value that is not finite."""

    kind: str  # equation, argument or constant
    value: str  # nan, inf or -inf
    argument: str = ""  # of an argument its name, and the path to the leaf
    primitive: str = ""  # of the equation
    file: str = ""  # of the user's source, outside of installed packages; empty where there is none
    line: int = 0
    function: str = ""
    text: str = ""  # the source line
    expression: str = ""  # the part of the source that the equation stands for
    inside: tuple[str, ...] = ()  # functions, branches and iterations around the equation, outermost first
    operands: tuple[np.ndarray, ...] = ()
    output: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __str__(self) -> str:
        if self.kind == "argument":
            return f"{self.value} came in with the argument {self.argument}"
        if self.kind == "constant":
            said = f"{self.value} is a constant of the source, taken up by {self.primitive}"
        else:
            said = f"{self.primitive} of {', '.join(map(short, self.operands))} gave {short(self.output)}"
        place = f"{self.file}:{self.line}, in {self.function}: {self.expression}" if self.file else "no source line"
        return "\n".join([said, f"at {place}", *([f"within {', '.join(self.inside)}"] if self.inside else [])])


def short(value: np.ndarray) -> str:
    """Returns an array as text on one line: all of up to 8 values, else shape and range."""
    if value.size <= 8:
        return np.array2string(value, max_line_width=1000, separator=", ", formatter={"float_kind": "{:.8g}".format})
    if value.dtype.kind not in "fiu":
        return f"{value.dtype}{list(value.shape)}"
    finite = value[np.isfinite(value)]
    between = f"{finite.min():.3g} to {finite.max():.3g}" if finite.size else "none finite"
    lost = value.size - finite.size
    return f"{value.dtype}{list(value.shape)} ({between}{f', {lost} not finite' if lost and finite.size else ''})"


def first_nonfinite(function: Callable[..., Any], *args: Any) -> NonFinite | None:
    """Returns the origin of what is not finite in `function(*args)`, the first one; None where all of it is finite.

    - `function`: traceable by JAX; returns arrays.
    - `args`: arrays, numbers, or pytrees such as a model, whose array leaves are traced and whose other leaves are not.
    """
    # Numbers would be folded by Python, and leave no equation.
    args = tuple(jnp.asarray(a) if isinstance(a, float | np.ndarray | np.generic) else a for a in args)
    leaves, structure = jax.tree_util.tree_flatten_with_path(args)
    traced = [i for i, (_, leaf) in enumerate(leaves) if eqx.is_array(leaf) or isinstance(leaf, np.ndarray)]
    values = [leaf for _, leaf in leaves]

    def flat(*arrays: Any) -> Any:
        full = list(values)
        for i, array in zip(traced, arrays, strict=True):
            full[i] = array
        return function(*jax.tree_util.tree_unflatten(structure, full))

    arrays = [values[i] for i in traced]
    closed = jax.make_jaxpr(flat)(*arrays)
    names = _argument_names(function, len(args))
    cells = []
    for i, array in zip(traced, arrays, strict=True):
        path = leaves[i][0]
        name = names[path[0].idx] + jax.tree_util.keystr(path[1:])
        cells.append(_Cell(array, None if _finite(array) else _Origin(0, NonFinite("argument", _kind(array), name))))
    results = _Interpreter().run(closed, cells, _Place())
    found = _earliest([cell for cell in results if not _finite(cell.value)])
    return None if found is None else found.what


def _argument_names(function: Callable[..., Any], count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in positional][:count]
    return [*names, *(f"number {i + 1}" for i in range(len(names), count))]


# -- values and where they come from --------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    order: int  # in which origins were met; arguments come first
    what: NonFinite


@dataclass(frozen=True)
class _Cell:
    value: Any
    origin: _Origin | None = None  # of a value that is not finite; None for a constant that nothing has taken up yet


@dataclass(frozen=True)
class _Place:
    """What surrounds an equation: the frames and the source of the equation that runs its jaxpr."""

    frames: tuple[tuple[Any, int], ...] = ()
    source: NonFinite | None = None
    inside: tuple[str, ...] = ()
    # Whether the jaxpr's own frames name the right source whoever ran it: it was traced from a function of the user's.
    is_users: bool = True


def _bad(value: Any) -> np.ndarray:
    """Returns where a value is not finite; nowhere in types that are always finite."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
        return np.zeros(np.shape(value), bool)
    return ~np.isfinite(np.asarray(value))


def _finite(value: Any) -> bool:
    return not np.any(_bad(value))


def _kind(value: Any) -> str:
    array = np.asarray(value)
    if np.any(np.isnan(array)):
        return "nan"
    return "inf" if np.any(array == np.inf) else "-inf"


def _earliest(cells: Sequence[_Cell]) -> _Origin | None:
    origins = [cell.origin for cell in cells if cell.origin is not None]
    # A constant that is not finite was meant by whoever wrote it: where something else went wrong too, that is told.
    return min(origins, key=lambda o: (o.what.kind == "constant", o.order), default=None)


def _frames(equation: Any) -> tuple[tuple[Any, int], ...]:
    """Returns (code, offset) of the frames outside of installed packages, innermost first."""
    traceback = equation.source_info.traceback
    if traceback is None:
        return ()
    codes, offsets = traceback.raw_frames()
    pairs = zip(codes, offsets, strict=True)
    return tuple((code, offset) for code, offset in pairs if not code.co_filename.startswith(_INSTALLED))


def _source(frame: tuple[Any, int]) -> NonFinite:
    """Returns a NonFinite with nothing but its place in the source filled in."""
    code, offset = frame
    line, end_line, column, end_column = list(code.co_positions())[offset // 2]
    line = line or code.co_firstlineno
    lines = [linecache.getline(code.co_filename, n) for n in range(line, (end_line or line) + 1)]
    text = lines[0].strip()
    expression = text
    if column is not None and end_column is not None and all(lines):
        # Columns count bytes. The end is cut first: on one line, it counts from the same start.
        lines[-1] = lines[-1].encode()[:end_column].decode()
        lines[0] = lines[0].encode()[column:].decode()
        expression = " ".join(" ".join(lines).split())
    return NonFinite(
        "", "", file=code.co_filename, line=line, function=code.co_qualname, text=text, expression=expression
    )


class _Interpreter:
    def __init__(self) -> None:
        self.met = 0

    def run(self, jaxpr: Any, args: Sequence[_Cell], place: _Place) -> list[_Cell]:
        """Returns the results of a jaxpr, closed or not."""
        body = getattr(jaxpr, "jaxpr", jaxpr)
        cells = dict(zip(body.constvars, map(_Cell, getattr(jaxpr, "consts", ())), strict=True))
        cells.update(zip(body.invars, args, strict=True))
        read = lambda v: _Cell(v.val) if isinstance(v, core.Literal) else cells[v]
        for equation in body.eqns:
            operands = [read(v) for v in equation.invars]
            cells.update(zip(equation.outvars, self._equation(equation, operands, place), strict=True))
        return [read(v) for v in body.outvars]

    def _equation(self, equation: Any, operands: list[_Cell], place: _Place) -> list[_Cell]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            jaxpr = params[_CALLS[name]]
            called = jaxpr.debug_info.func_name
            return self.run(jaxpr, operands, self._within(equation, jaxpr, place, called))
        if name == "cond":
            branch = int(np.clip(int(operands[0].value), 0, len(params["branches"]) - 1))
            jaxpr = params["branches"][branch]
            return self.run(jaxpr, operands[1:], self._within(equation, jaxpr, place, f"branch {branch} of cond"))
        if name == "while":
            return self._while(equation, operands, place)
        if name == "scan":
            return self._scan(equation, operands, place)
        return self._leaf(equation, operands, place)

    def _place_of(self, equation: Any, place: _Place) -> tuple[tuple[tuple[Any, int], ...], NonFinite | None]:
        frames = _frames(equation)
        # JAX traces a function once and keeps its jaxpr: the frames behind the function are those of its first caller,
        # which may be another line than the one that runs it here.
        fresh = frames[len(frames) - len(place.frames) :] == place.frames
        if frames and (fresh or place.is_users):
            return frames, _source(frames[0])
        return place.frames, place.source

    def _within(self, equation: Any, jaxpr: Any, place: _Place, what: str) -> _Place:
        frames, source = self._place_of(equation, place)
        body = getattr(jaxpr, "jaxpr", jaxpr)
        file = body.debug_info.func_filename
        is_users = file is not None and not file.startswith(_INSTALLED)
        return _Place(frames, source, (*place.inside, what), is_users)

    def _leaf(self, equation: Any, operands: list[_Cell], place: _Place) -> list[_Cell]:
        params = equation.primitive.get_bind_params(equation.params)
        out = equation.primitive.bind(*(cell.value for cell in operands), **params)
        values = out if equation.primitive.multiple_results else [out]
        return [_Cell(v, None if _finite(v) else self._origin(equation, operands, v, place)) for v in values]

    def _origin(self, equation: Any, operands: list[_Cell], value: Any, place: _Place) -> _Origin:
        if equation.primitive.name == "select_n":
            which = np.asarray(operands[0].value).astype(int)
            cases = enumerate(operands[1:])
            causes = [cell for i, cell in cases if np.any(_bad(cell.value) & (which == i))]
        else:
            causes = [cell for cell in operands if not _finite(cell.value)]
        inherited = _earliest(causes)
        if inherited is not None:
            return inherited
        self.met += 1
        _, source = self._place_of(equation, place)
        what = replace(
            source or NonFinite("", ""),
            kind="constant" if causes else "equation",
            value=_kind(value),
            primitive=equation.primitive.name,
            inside=place.inside,
            operands=tuple(np.asarray(cell.value) for cell in operands),
            output=np.asarray(value),
        )
        return _Origin(self.met, what)

    def _while(self, equation: Any, operands: list[_Cell], place: _Place) -> list[_Cell]:
        params = equation.params
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        for_cond, for_body, carry = operands[:first], operands[first:second], operands[second:]
        around = self._within(equation, params["cond_jaxpr"], place, "the condition of while_loop")
        iteration = 0
        while bool(self.run(params["cond_jaxpr"], [*for_cond, *carry], around)[0].value):
            iteration += 1
            what = f"iteration {iteration} of while_loop"
            inner = self._within(equation, params["body_jaxpr"], place, what)
            carry = self.run(params["body_jaxpr"], [*for_body, *carry], inner)
        return carry

    def _scan(self, equation: Any, operands: list[_Cell], place: _Place) -> list[_Cell]:
        params, body = equation.params, getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])
        # How the parameters tell constants, carry, xs and ys apart changed in JAX 0.11; that xs and ys have one axis
        # more outside than inside did not.
        longer = lambda outer, inner: sum(o.aval.ndim > i.aval.ndim for o, i in zip(outer, inner, strict=True))
        n_carry = len(body.outvars) - longer(equation.outvars, body.outvars)
        n_consts = len(body.invars) - longer(equation.invars, body.invars) - n_carry
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        xs = operands[n_consts + n_carry :]
        rows: list[list[_Cell]] = []
        order = range(params["length"])
        for count, i in enumerate(reversed(order) if params["reverse"] else order, start=1):
            inner = self._within(equation, params["jaxpr"], place, f"iteration {count} of scan")
            row = [replace(cell, value=cell.value[i]) for cell in xs]
            out = self.run(params["jaxpr"], [*consts, *carry, *row], inner)
            carry = out[:n_carry]
            rows.append(out[n_carry:])
        if params["reverse"]:
            rows.reverse()
        stacked = []
        for j, var in enumerate(equation.outvars[n_carry:]):
            cells = [row[j] for row in rows]
            value = jnp.stack([cell.value for cell in cells]) if cells else jnp.zeros(var.aval.shape, var.aval.dtype)
            stacked.append(_Cell(value, _earliest([cell for cell in cells if not _finite(cell.value)])))
        return [*carry, *stacked]
