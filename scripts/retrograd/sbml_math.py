"""Mathematics of SBML, which is MathML or the formulas of Level 1, as sympy.

libsbml parses both into one kind of tree; this walks it. Booleans stand for 1 and 0 where a number is wanted, and
numbers that are not 0 for true, as Level 3 Version 2 has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import libsbml as sbml
import sympy as sp
from sympy.logic.boolalg import Boolean

from retrograd.symbolic import TIME, symbol

# Whole numbers up to here are exact in both; beyond, sympy would carry digits that float64 does not have.
_LARGEST_WHOLE = 1e15
# A power of whole numbers is worked out digit by digit below this exponent, and up to as many bits.
_LARGEST_EXPONENT, _MOST_BITS = 1000, 20_000
# Beyond it float64 has no power but 0, 1 and infinity, and sympy takes for ever to find one.
_LARGEST_POWER = 2.0**64
# Parts of a formula, with the functions that it calls put in.
_MOST_PARTS = 200_000


class Refused(Exception):
    """A construct that is not supported, in words."""


def number(value: float) -> sp.Expr:
    """Returns a number: whole ones as integers, which keep powers free of logarithms."""
    if value.is_integer() and abs(value) <= _LARGEST_WHOLE:
        return sp.Integer(int(value))
    if math.isnan(value):
        return sp.nan
    if math.isinf(value):
        return sp.oo if value > 0 else -sp.oo
    return sp.Float(value)


def as_number(expr: Any) -> sp.Expr:
    """Returns 1 and 0 for true and false."""
    if isinstance(expr, Boolean) and not isinstance(expr, sp.Symbol):
        return sp.Piecewise((sp.S.One, expr), (sp.S.Zero, True))
    return expr


def as_boolean(expr: Any) -> Any:
    """Returns whether a number is not 0."""
    if isinstance(expr, Boolean) and not isinstance(expr, sp.Symbol):
        return expr
    return sp.Ne(expr, 0)


def _power(base: sp.Expr, exponent: sp.Expr) -> sp.Expr:
    if base.is_number and exponent.is_number and abs(exponent) > _LARGEST_POWER:
        raise Refused(f"has the number {sp.N(exponent, 6)} as an exponent, which is too large")
    if base.is_Integer and exponent.is_Integer:
        power = abs(int(exponent))
        if power > _LARGEST_EXPONENT or power * int(base).bit_length() > _MOST_BITS:
            base = sp.Float(base)
    return base**exponent


def _truncated(expr: sp.Expr) -> sp.Expr:
    return sp.Piecewise((sp.floor(expr), expr >= 0), (sp.ceiling(expr), True))


def _remainder(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    return a - b * _truncated(a / b)


def _chain(relation: Callable[[sp.Expr, sp.Expr], Any]) -> Callable[..., Any]:
    return lambda *args: sp.And(*(relation(a, b) for a, b in pairwise(args)))


# By libsbml's types: the least and the largest number of arguments, None for any; and what they make.
_NUMERIC: dict[int, tuple[int, int | None, Callable[..., Any]]] = {
    sbml.AST_PLUS: (0, None, lambda *args: sp.Add(*args)),
    sbml.AST_TIMES: (0, None, lambda *args: sp.Mul(*args)),
    sbml.AST_MINUS: (1, 2, lambda a, b=None: -a if b is None else a - b),
    sbml.AST_DIVIDE: (2, 2, lambda a, b: a / b),
    sbml.AST_POWER: (2, 2, _power),
    sbml.AST_FUNCTION_POWER: (2, 2, _power),
    # The degree and the base come first.
    sbml.AST_FUNCTION_ROOT: (1, 2, lambda a, b=None: sp.sqrt(a) if b is None else b ** (1 / a)),
    sbml.AST_FUNCTION_LOG: (1, 2, lambda a, b=None: sp.log(a) / sp.log(10) if b is None else sp.log(b) / sp.log(a)),
    sbml.AST_FUNCTION_LN: (1, 1, sp.log),
    sbml.AST_FUNCTION_EXP: (1, 1, sp.exp),
    sbml.AST_FUNCTION_ABS: (1, 1, sp.Abs),
    sbml.AST_FUNCTION_FLOOR: (1, 1, sp.floor),
    sbml.AST_FUNCTION_CEILING: (1, 1, sp.ceiling),
    sbml.AST_FUNCTION_MAX: (1, None, sp.Max),
    sbml.AST_FUNCTION_MIN: (1, None, sp.Min),
    sbml.AST_FUNCTION_QUOTIENT: (2, 2, lambda a, b: _truncated(a / b)),
    sbml.AST_FUNCTION_REM: (2, 2, _remainder),
    sbml.AST_RELATIONAL_EQ: (1, None, _chain(sp.Eq)),
    sbml.AST_RELATIONAL_NEQ: (2, 2, sp.Ne),
    sbml.AST_RELATIONAL_LT: (1, None, _chain(sp.Lt)),
    sbml.AST_RELATIONAL_GT: (1, None, _chain(sp.Gt)),
    sbml.AST_RELATIONAL_LEQ: (1, None, _chain(sp.Le)),
    sbml.AST_RELATIONAL_GEQ: (1, None, _chain(sp.Ge)),
}
for _name in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "sech", "csch", "coth"):
    _NUMERIC[getattr(sbml, f"AST_FUNCTION_{_name.upper()}")] = (1, 1, getattr(sp, _name))
    _NUMERIC[getattr(sbml, f"AST_FUNCTION_ARC{_name.upper()}")] = (1, 1, getattr(sp, f"a{_name}"))
_LOGICAL: dict[int, Callable[..., Any]] = {
    sbml.AST_LOGICAL_AND: sp.And,
    sbml.AST_LOGICAL_OR: sp.Or,
    sbml.AST_LOGICAL_XOR: sp.Xor,
    sbml.AST_LOGICAL_NOT: lambda a: sp.Not(a),
    sbml.AST_LOGICAL_IMPLIES: lambda a, b: sp.Or(sp.Not(a), b),
}
_CONSTANTS = {
    sbml.AST_CONSTANT_E: sp.E,
    sbml.AST_CONSTANT_PI: sp.pi,
    sbml.AST_CONSTANT_TRUE: sp.true,
    sbml.AST_CONSTANT_FALSE: sp.false,
    sbml.AST_NAME_TIME: TIME,
}
_REFUSED = {
    sbml.AST_FUNCTION_DELAY: "delay",
    sbml.AST_FUNCTION_FACTORIAL: "factorial",
    sbml.AST_FUNCTION_RATE_OF: "rateOf",
}


class Translator:
    """Turns the trees of one model into sympy."""

    def __init__(self, known: set[str], functions: Mapping[str, Any], constants: Mapping[str, sp.Expr]) -> None:
        """- `known`: the names that have symbols.
        - `functions`: name to the tree of a function definition, a lambda.
        - `constants`: names that stand for a number.
        """
        self.known, self.functions, self.constants = known, functions, constants
        self.parts = 0

    def __call__(self, tree: Any, local: Mapping[str, sp.Expr] | None = None) -> sp.Expr:
        """Returns a tree as a number; raises Refused.

        - `local`: what names stand for that are known in this place only.
        """
        if tree is None:
            raise Refused("has no mathematics")
        self.parts = 0
        try:
            return as_number(self._walk(tree, local or {}, ()))
        except TypeError as error:
            # What sympy says of numbers that are not real where it compares them.
            raise Refused(f"has no real value: {error}") from error

    def _walk(self, tree: Any, local: Mapping[str, Any], within: tuple[str, ...]) -> Any:
        kind = tree.getType()
        self.parts += 1
        if self.parts > _MOST_PARTS:
            raise Refused(f"has more than {_MOST_PARTS} parts with the functions that it calls put in")
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind == sbml.AST_INTEGER:
            # getInteger is a C long: whole numbers beyond it are stored as reals.
            return sp.Integer(tree.getInteger())
        if kind == sbml.AST_REAL:
            return number(tree.getReal())
        if kind == sbml.AST_REAL_E:
            # As the decimal text that it is: a product with a power of ten may be off in the last digit.
            return number(float(f"{tree.getMantissa()!r}e{tree.getExponent()}"))
        if kind == sbml.AST_RATIONAL:
            return sp.Rational(tree.getNumerator(), tree.getDenominator())
        if kind == sbml.AST_NAME_AVOGADRO:
            return sp.Float(tree.getReal())
        if kind == sbml.AST_NAME:
            return self._name(tree.getName(), local, within)
        children = [tree.getChild(i) for i in range(tree.getNumChildren())]
        if kind == sbml.AST_FUNCTION:
            return self._function(tree.getName(), [self._walk(c, local, within) for c in children], within)
        if kind in _REFUSED:
            raise Refused(f"uses {_REFUSED[kind]}, which is not supported")
        if kind == sbml.AST_FUNCTION_PIECEWISE:
            return self._piecewise([self._walk(c, local, within) for c in children])
        if kind in _LOGICAL:
            return _LOGICAL[kind](*(as_boolean(self._walk(c, local, within)) for c in children))
        if kind in _NUMERIC:
            least, most, make = _NUMERIC[kind]
            if len(children) < least or (most is not None and len(children) > most):
                raise Refused(f"has {len(children)} arguments in {sbml.formulaToL3String(tree)}")
            return make(*(as_number(self._walk(c, local, within)) for c in children))
        raise Refused(f"uses {tree.getName() or sbml.formulaToL3String(tree)}, which is not supported")

    def _name(self, name: str, local: Mapping[str, Any], within: tuple[str, ...]) -> Any:
        if name in local:
            return local[name]
        if within:
            raise Refused(f"calls {within[-1]}, whose body names {name!r}, which is none of its arguments")
        if name in self.constants:
            return self.constants[name]
        if name not in self.known:
            raise Refused(f"names {name!r}, which the model does not have or which has no value")
        return symbol(name)

    def _function(self, name: str, args: list[Any], within: tuple[str, ...]) -> Any:
        if name not in self.functions:
            raise Refused(f"calls the function {name!r}, which the model does not define")
        if name in within:
            raise Refused(f"calls the function {name!r}, which calls itself")
        tree = self.functions[name]
        count = tree.getNumChildren() - 1
        if count != len(args):
            raise Refused(f"calls {name!r} with {len(args)} arguments, wanted {count}")
        inside = {tree.getChild(i).getName(): arg for i, arg in enumerate(args)}
        return self._walk(tree.getChild(count), inside, (*within, name))

    def _piecewise(self, parts: list[Any]) -> Any:
        # Value and condition in turns, and what else holds at the end, which is undefined where it is left out.
        rest = parts[-1] if len(parts) % 2 else sp.nan
        pairs = list(zip(parts[:-1:2], parts[1::2], strict=False)) if len(parts) > 1 else []
        if all(isinstance(v, Boolean) and not isinstance(v, sp.Symbol) for v in [rest, *(v for v, _ in pairs)]):
            for value, condition in reversed(pairs):
                rest = sp.ITE(as_boolean(condition), value, rest)
            return rest
        pieces = [(as_number(v), as_boolean(c)) for v, c in pairs]
        return sp.Piecewise(*pieces, (as_number(rest), True))
