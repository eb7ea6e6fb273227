"""A model as formulas: what readers of SBML and PEtab make, and what `model_source` writes as a plug-in.

Names of the file are sympy symbols, all real. A formula may name anything of the model; nothing is substituted until
`at_start` or `resolve` is asked to, so that a condition which sets a parameter, the size of a compartment or the start
of a state takes effect wherever that name is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import sympy as sp
from sympy.core.relational import Relational
from sympy.functions.elementary.miscellaneous import MinMaxBase
from sympy.polys.matrices import DomainMatrix

from retrograd.errors import RetrogradError

# Model time. No id of a file can be called so.
TIME = sp.Symbol("(time)", real=True)


def put_in(expr: Any, formulas: Mapping[Any, Any]) -> Any:
    """Returns a formula with others in the place of its symbols, none of them changed by another one."""
    return expr.xreplace(formulas)


def symbol(name: str) -> sp.Symbol:
    """Returns the symbol of a name of the file."""
    return sp.Symbol(name, real=True)


@dataclass(frozen=True)
class Symbolic:
    """A model dx/dt = f(t, x; k).

    - `name`: of the model, or of its file.
    - `time_unit`: UDUNITS text.
    - `states`: name to unit.
    - `rates`: of each state its rate, in terms of states, parameters, derived, expressions and `TIME`.
    - `initial`: of each state its start, in terms of the same, all of them at the start. A state that the file gives no
      start is missing here.
    - `parameters`: name to unit of every constant that can be set.
    - `values`: their values in the file, where it has one.
    - `derived`: constants that are computed once, at the start; in order of evaluation but for starts of states.
    - `expressions`: what is computed from time and states at every moment, rates of reactions too; in order.
    - `start_order`: the names of `derived`, `initial` and `expressions`, in the order of evaluation at the start.
    - `invariants`: coefficients of linear combinations of states that the reactions keep; a basis of those that follow
      from stoichiometry alone.
    - `switches`: times at which rates jump or bend, in terms of constants.
    - `conditions`: what makes rates jump or bend at its zeros where that depends on states, or on time in a way that
      was not solved for; a call of floor or ceiling stands for its jumps.
    - `concentrations`: species whose symbol is a concentration, and their compartment; others are amounts.
    """

    name: str
    time_unit: str
    states: dict[str, str]
    rates: dict[str, sp.Expr]
    initial: dict[str, sp.Expr]
    parameters: dict[str, str]
    values: dict[str, float]
    derived: dict[str, sp.Expr] = field(default_factory=dict)
    expressions: dict[str, sp.Expr] = field(default_factory=dict)
    start_order: tuple[str, ...] = ()
    invariants: list[dict[str, sp.Expr]] = field(default_factory=list)
    switches: list[sp.Expr] = field(default_factory=list)
    conditions: list[sp.Expr] = field(default_factory=list)
    concentrations: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _resolved(self) -> dict[sp.Basic, sp.Expr]:
        found: dict[sp.Basic, sp.Expr] = {}
        for name, expr in self.expressions.items():
            found[symbol(name)] = put_in(expr, found)
        return found

    def resolve(self, expr: sp.Expr) -> sp.Expr:
        """Returns a formula in terms of states, parameters, derived and `TIME` alone."""
        return put_in(expr, self._resolved)

    def at_start(
        self,
        overrides: Mapping[str, sp.Expr] | None = None,
        time: sp.Expr = sp.S.Zero,
        keep_derived: bool = False,
        names: Iterable[str] | None = None,
    ) -> dict[str, sp.Expr]:
        """Returns what states, derived constants and expressions are at the start, in terms of parameters.

        - `overrides`: what to put for names of the model, parameters too; what these formulas name is left as it is.
        - `time`: of the start.
        - `keep_derived`: whether derived constants stay symbols where others use them.
        - `names`: of what; states and derived constants by default. What these need is returned too.

        Raises RetrogradError where something has no value there.
        """
        overrides = overrides or {}
        needed = {*self.states, *self.derived} if names is None else set(names)
        formulas = {**self.expressions, **self.derived, **self.initial, **overrides}
        for name in reversed(self.start_order):
            if name in needed and name not in overrides:
                needed |= names_in(formulas[name])
        put: dict[sp.Basic, sp.Expr] = {TIME: time, **{symbol(name): expr for name, expr in overrides.items()}}
        # States without a start of their own may have been given one.
        out = {name: overrides[name] for name in self.states if name in overrides and name in needed}
        for name in self.start_order:
            if name not in needed or name in out:
                continue
            try:
                out[name] = overrides[name] if name in overrides else put_in(formulas[name], put)
            except TypeError as error:
                # What sympy says of a comparison with the logarithm of 0, for one.
                raise RetrogradError(f"found no value of {name} at the start: {error}.") from error
            if not (keep_derived and name in self.derived):
                put[symbol(name)] = out[name]
        return out


def names_in(expr: sp.Basic) -> set[str]:
    """Returns the names that a formula uses, time aside."""
    return {s.name for s in expr.free_symbols if isinstance(s, sp.Symbol) and s != TIME}


def in_order(formulas: Mapping[str, sp.Basic], what: str) -> list[str]:
    """Returns the names of formulas so that each comes after those that it uses, else as they stand.

    Raises RetrogradError where some depend on each other.
    - `what`: what the formulas are, for the message.
    """
    needs = {name: sorted(names_in(expr) & formulas.keys()) for name, expr in formulas.items()}
    order: list[str] = []
    done: set[str] = set()
    for first in formulas:
        # Depth first without recursion: chains may be longer than Python's stack.
        path: dict[str, list[str]] = {first: list(needs[first])} if first not in done else {}
        while path:
            name = next(reversed(path))
            todo = path[name]
            if not todo:
                del path[name]
                done.add(name)
                order.append(name)
                continue
            follower = todo.pop(0)
            if follower in path:
                names = list(path)
                circle = [*names[names.index(follower) :], follower]
                raise RetrogradError(f"{what} depend on each other: {' -> '.join(circle)}")
            if follower not in done:
                path[follower] = list(needs[follower])
    return order


def assembled(model: Symbolic) -> Symbolic:
    """Returns a model with its formulas in order of evaluation and its switches found.

    To be called after formulas were put in or taken out by `dataclasses.replace`, such as an expression of a network in
    the place of a parameter. Invariants are left as they are: they follow from stoichiometry, not from rates.

    Raises RetrogradError where formulas depend on each other.
    """
    formulas = model.expressions
    expressions = {name: formulas[name] for name in in_order(formulas, "assignment rules and reactions")}
    starts = {**model.derived, **model.initial, **expressions}
    order = tuple(in_order(starts, "starts"))
    derived = {name: model.derived[name] for name in order if name in model.derived}
    model = replace(model, expressions=expressions, derived=derived, start_order=order)
    switches, conditions = find_switches(map(model.resolve, model.rates.values()), model.states)
    return replace(model, switches=switches, conditions=conditions)


# -- conserved quantities -------------------------------------------------------------------------------


def left_null_space(matrix: Any) -> list[list[Any]]:
    """Returns a basis of the row vectors y with y S = 0, in whole numbers without a common factor.

    - `matrix`: rational numbers, shape (species, reaction).
    """
    rows, columns = matrix.shape
    if not columns:
        return [[sp.Integer(int(i == j)) for j in range(rows)] for i in range(rows)]
    basis = []
    for vector in DomainMatrix.from_Matrix(matrix.T).convert_to(sp.QQ).nullspace().to_Matrix().tolist():
        entries: list[Any] = [sp.Rational(v) for v in vector]
        whole = sp.ilcm(1, *(v.q for v in entries))
        entries = [v * whole for v in entries]
        entries = [v / sp.igcd(0, *(v.p for v in entries)) for v in entries]
        first = next(v for v in entries if v)
        basis.append([v if first > 0 else -v for v in entries])
    return basis


# -- where right-hand sides jump or bend ----------------------------------------------------------------


def find_switches(exprs: Iterable[sp.Basic], states: Iterable[str]) -> tuple[list[sp.Expr], list[sp.Expr]]:
    """Returns `switches` and `conditions` of formulas, as `Symbolic` has them, sorted.

    - `exprs`: formulas in terms of states, constants and `TIME`: resolved ones.
    """
    moving = {symbol(name) for name in states} | {TIME}
    edges: set[Any] = set()
    part: Any
    for expr in exprs:
        for part in sp.preorder_traversal(expr):
            if isinstance(part, Relational):
                lhs, rhs = cast("tuple[Any, Any]", part.args)
                edges.add(lhs - rhs)
            elif isinstance(part, MinMaxBase):
                args: list[Any] = list(part.args)
                edges |= {a - b for i, a in enumerate(args) for b in args[:i]}
            elif isinstance(part, sp.Abs | sp.sign):
                edges.add(part.args[0])
            elif isinstance(part, sp.floor | sp.ceiling):
                edges.add(part)
    switches: set[sp.Expr] = set()
    conditions: set[sp.Expr] = set()
    for edge in edges:
        if not edge.free_symbols & moving:
            continue
        when = _linear_root(edge) if edge.free_symbols & moving == {TIME} else None
        if when is None:
            # Both signs of a difference have the same zeros.
            conditions.add(-edge if edge.could_extract_minus_sign() else edge)
        else:
            switches.add(when)
    key = sp.default_sort_key
    return sorted(switches, key=key), sorted(conditions, key=key)


def _linear_root(expr: sp.Expr) -> sp.Expr | None:
    """Returns the time at which an expression linear in time is zero, None for others."""
    if expr.has(sp.floor, sp.ceiling, sp.Piecewise, MinMaxBase, sp.Abs, sp.sign):
        return None
    slope = sp.diff(expr, TIME)
    if TIME in slope.free_symbols or slope == 0:
        return None
    return sp.simplify(-put_in(expr, {TIME: sp.S.Zero}) / slope)
