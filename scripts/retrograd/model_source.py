"""The text of a plug-in file from a model's formulas.

The same formulas give the same bytes. What is written is meant to be read: rates of reactions and assignments keep
their names as local variables, and so do the messages of a diagnosis, which quote the source.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy as sp
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean, BooleanFalse, BooleanTrue

from retrograd.errors import RetrogradError
from retrograd.symbolic import TIME, Symbolic, names_in, symbol

# How tightly Python binds what stands in a text: comparisons less so than the bitwise operators.
_COMPARE, _OR, _XOR, _AND, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(9)
WIDTH = 120
# Ratios of whole numbers up to here are written as ratios.
_READABLE = 1000

_CALLS = {
    sp.exp: "jnp.exp",
    sp.log: "jnp.log",
    sp.Abs: "jnp.abs",
    sp.sign: "jnp.sign",
    sp.floor: "jnp.floor",
    sp.ceiling: "jnp.ceil",
    sp.sin: "jnp.sin",
    sp.cos: "jnp.cos",
    sp.tan: "jnp.tan",
    sp.asin: "jnp.arcsin",
    sp.acos: "jnp.arccos",
    sp.atan: "jnp.arctan",
    sp.sinh: "jnp.sinh",
    sp.cosh: "jnp.cosh",
    sp.tanh: "jnp.tanh",
    sp.asinh: "jnp.arcsinh",
    sp.acosh: "jnp.arccosh",
    sp.atanh: "jnp.arctanh",
}
# One over what, and what of one over the argument.
_RECIPROCAL = {sp.sec: sp.cos, sp.csc: sp.sin, sp.cot: sp.tan, sp.sech: sp.cosh, sp.csch: sp.sinh, sp.coth: sp.tanh}
_OF_RECIPROCAL = {
    sp.asec: sp.acos,
    sp.acsc: sp.asin,
    sp.acot: sp.atan,
    sp.asech: sp.acosh,
    sp.acsch: sp.asinh,
    sp.acoth: sp.atanh,
}
_RELATIONS = {sp.Eq: "==", sp.Ne: "!=", sp.Lt: "<", sp.Le: "<=", sp.Gt: ">", sp.Ge: ">="}

# Functions that are infinite or undefined somewhere, and an argument at which they are not. In the branch of a `where`
# that is not taken, their derivative would be 0 times infinity, which is no number.
_SAFE: dict[Any, float] = {
    sp.log: 1.0,
    sp.exp: 0.0,
    sp.sinh: 0.0,
    sp.cosh: 0.0,
    sp.tan: 0.0,
    sp.asin: 0.0,
    sp.acos: 0.0,
    sp.acosh: 2.0,
    sp.atanh: 0.0,
    **dict.fromkeys(_RECIPROCAL, 1.0),
    **dict.fromkeys((sp.asec, sp.acsc, sp.acoth), 2.0),
    **dict.fromkeys((sp.acot, sp.asech, sp.acsch), 0.5),
}


def python_of(
    expr: sp.Basic, names: Mapping[str, str] | None = None, functions: Mapping[str, str] | None = None
) -> str:
    """Returns a formula as Python source that evaluates it with jax.numpy.

    - `names`: name of a symbol to the text that stands for it; one without stands for itself, `TIME` for t.
    - `functions`: name of a sympy function that is not one of mathematics to the text of what is called.
    """
    return _Printer(names or {}, functions or {}).text(expr)[0]


class _Printer:
    def __init__(self, names: Mapping[str, str], functions: Mapping[str, str]) -> None:
        self.names, self.functions = names, functions
        self.branch: tuple[Any, ...] = ()  # conditions under which what is written is used

    def text(self, expr: Any) -> tuple[str, int]:
        """Returns source and how tightly it binds."""
        if isinstance(expr, sp.Symbol):
            return self.names.get(expr.name, "t" if expr == TIME else expr.name), _ATOM
        if isinstance(expr, BooleanTrue | BooleanFalse):
            return str(bool(expr)), _ATOM
        if isinstance(expr, Boolean | Relational):
            return self._boolean(expr)
        if not expr.free_symbols and not expr.atoms(sp.core.function.AppliedUndef):
            return self._constant(expr)
        if isinstance(expr, sp.Add):
            return self._sum(expr)
        if isinstance(expr, sp.Mul):
            return self._product(expr)
        if isinstance(expr, sp.Pow):
            return self._power(expr.base, expr.exp)
        if isinstance(expr, sp.Piecewise):
            return self._piecewise(expr)
        if isinstance(expr, sp.Max | sp.Min):
            return self._extreme(expr)
        return self._call(expr)

    def at(self, expr: Any, binding: int) -> str:
        """Returns source, in parentheses where it binds less tightly than wanted."""
        text, own = self.text(expr)
        return text if own >= binding else f"({text})"

    def _constant(self, expr: Any) -> tuple[str, int]:
        if isinstance(expr, sp.Rational) and not expr.is_Integer and max(abs(expr.p), expr.q) <= _READABLE:
            return f"{float(expr.p)!r} / {float(expr.q)!r}", _PRODUCT
        special = {sp.pi: "jnp.pi", sp.E: "jnp.e", sp.oo: "jnp.inf", -sp.oo: "-jnp.inf", sp.nan: "jnp.nan"}
        if expr in special:
            text = special[expr]
            return text, _SIGN if text[0] == "-" else _ATOM
        try:
            value = float(expr if expr.is_Number else sp.N(expr, 25))
        except (TypeError, ValueError, OverflowError):
            value = math.inf
        if not math.isfinite(value):
            # A whole number may have millions of digits.
            shown = sp.N(expr, 6) if expr.is_Number else expr
            raise RetrogradError(
                f"found the constant {shown}, which is no real number that float64 can hold; mend the formula."
            )
        return repr(value), _SIGN if math.copysign(1, value) < 0 else _ATOM

    def _sum(self, expr: sp.Add) -> tuple[str, int]:
        terms: list[Any] = list(expr.as_ordered_terms())
        minus = [bool(_negative(term)) for term in terms]
        # What is added first, so that no text begins with a sign if it can be helped.
        ordered = [(t, m) for m in (False, True) for t, own in zip(terms, minus, strict=True) if own == m]
        out = ""
        for term, negative in ordered:
            text = self.at(-term if negative else term, _PRODUCT)
            out += (" - " if out else "-") + text if negative else (" + " if out else "") + text
        return out, _SUM

    def _product(self, expr: sp.Mul) -> tuple[str, int]:
        number, rest = expr.as_coeff_Mul()
        if _negative(number):
            return f"-{self.at(-expr, _PRODUCT)}", _SUM
        above: list[Any] = []
        below: list[Any] = []
        if isinstance(number, sp.Rational) and max(number.p, number.q) <= _READABLE:
            above += [sp.Integer(number.p)] if number.p != 1 else []
            below += [sp.Integer(number.q)] if number.q != 1 else []
        elif number != 1:
            above.append(number)
        for factor in sp.Mul.make_args(rest) if not isinstance(rest, sp.Mul) else rest.as_ordered_factors():
            base, exponent = factor.as_base_exp() if isinstance(factor, sp.Pow) else (factor, sp.S.One)
            if exponent.is_Rational and exponent < 0:
                below.append(sp.Pow(base, -exponent, evaluate=False) if exponent != -1 else base)
            else:
                above.append(factor)
        top = " * ".join(self.at(f, _SIGN) for f in above) or "1.0"
        if not below:
            return top, _PRODUCT
        under = [self._denominator(f) for f in below]
        return f"{top} / {under[0]}" if len(under) == 1 else f"{top} / ({' * '.join(under)})", _PRODUCT

    def _denominator(self, factor: Any) -> str:
        return self._guarded(factor, _SIGN + 1, 1.0)

    def _guarded(self, expr: Any, binding: int, safe: float) -> str:
        """Returns source of what must not be at the edge of a domain, replaced where its branch is not taken."""
        if not self.branch or not expr.free_symbols:
            return self.at(expr, binding)
        loose = len(self.branch) == 1
        taken = " & ".join(self._condition(c, _COMPARE if loose else _AND) for c in self.branch)
        return f"jnp.where({taken}, {self.text(expr)[0]}, {safe!r})"

    def _power(self, base: Any, exponent: Any) -> tuple[str, int]:
        if exponent.is_Float and float(exponent).is_integer():
            exponent = sp.Integer(int(exponent))
        if exponent.is_Integer:
            # A whole number of Python's: a product, whose derivative at 0 is finite.
            if exponent < 0:
                below = base if exponent == -1 else sp.Pow(base, -exponent, evaluate=False)
                return f"1.0 / {self._denominator(below)}", _PRODUCT
            return f"{self.at(base, _ATOM)}**{int(exponent)}", _POWER
        if exponent == sp.Rational(1, 2):
            return f"jnp.sqrt({self._guarded(base, _COMPARE, 1.0)})", _ATOM
        if exponent == sp.Rational(-1, 2):
            return f"1.0 / jnp.sqrt({self._guarded(base, _COMPARE, 1.0)})", _PRODUCT
        left = self._guarded(base, _ATOM, 1.0)
        # A number to a large power overflows.
        power = self.at(exponent, _ATOM) if base.free_symbols else self._guarded(exponent, _ATOM, 1.0)
        return f"{left}**{power}", _POWER

    def _piecewise(self, expr: sp.Piecewise) -> tuple[str, int]:
        outer = self.branch
        pieces: list[Any] = list(expr.args)
        head = ""
        tail = ""
        before: list[Any] = []  # that the branches above were not taken
        for value, condition in pieces:
            self.branch = (*outer, *before, *([] if condition == sp.true else [condition]))
            text = self.text(value)[0]
            if condition == sp.true:
                head += text
                break
            head += f"jnp.where({self._condition(condition, _COMPARE)}, {text}, "
            tail += ")"
            before.append(sp.Not(condition, evaluate=False))
        else:
            head += "jnp.nan"
        self.branch = outer
        return head + tail, _ATOM

    def _condition(self, condition: Any, binding: int) -> str:
        """Returns source of a condition. Nothing is guarded in it, for it has no derivative."""
        outer, self.branch = self.branch, ()
        text = self.at(condition, binding)
        self.branch = outer
        return text

    def _extreme(self, expr: Any) -> tuple[str, int]:
        name = "jnp.maximum" if isinstance(expr, sp.Max) else "jnp.minimum"
        args = [self.text(a)[0] for a in sorted(expr.args, key=sp.default_sort_key)]
        out = args[-1]
        for arg in reversed(args[:-1]):
            out = f"{name}({arg}, {out})"
        return out, _ATOM

    def _boolean(self, expr: Any) -> tuple[str, int]:
        for kind, sign in _RELATIONS.items():
            if isinstance(expr, kind):
                return f"{self.at(expr.lhs, _SUM)} {sign} {self.at(expr.rhs, _SUM)}", _COMPARE
        args = sorted(expr.args, key=sp.default_sort_key)
        if isinstance(expr, sp.Not):
            return f"~{self.at(expr.args[0], _SIGN)}", _SIGN
        for kind, sign, binding in ((sp.And, "&", _AND), (sp.Or, "|", _OR), (sp.Xor, "^", _XOR)):
            if isinstance(expr, kind):
                return f" {sign} ".join(self.at(a, binding + 1) for a in args), binding
        if isinstance(expr, sp.ITE):
            condition, yes, no = expr.args
            return f"jnp.where({self.text(condition)[0]}, {self.text(yes)[0]}, {self.text(no)[0]})", _ATOM
        raise RetrogradError(
            f"found {type(expr).__name__} in a formula, wanted comparisons joined by and, or, not, xor"
        )

    def _call(self, expr: Any) -> tuple[str, int]:
        kind = expr.func
        name = getattr(kind, "__name__", str(kind))
        if name in self.functions:
            return f"{self.functions[name]}({', '.join(self.text(a)[0] for a in expr.args)})", _ATOM
        if len(expr.args) == 1:
            arg = expr.args[0]
            if kind in _RECIPROCAL:
                inner = self._guarded(arg, _COMPARE, _SAFE[kind])
                return f"1.0 / {_CALLS[_RECIPROCAL[kind]]}({inner})", _PRODUCT
            if kind in _OF_RECIPROCAL:
                inner = self._guarded(arg, _SIGN + 1, _SAFE[kind])
                return f"{_CALLS[_OF_RECIPROCAL[kind]]}(1.0 / {inner})", _ATOM
            if kind in _CALLS:
                inner = self._guarded(arg, _COMPARE, _SAFE[kind]) if kind in _SAFE else self.text(arg)[0]
                return f"{_CALLS[kind]}({inner})", _ATOM
        raise RetrogradError(f"found the function {name} in a formula, which cannot be written for JAX.")


def _negative(expr: Any) -> bool:
    return bool(expr.as_coeff_Mul()[0].is_negative)


def is_dangerous(expr: sp.Basic) -> bool:
    """Tells whether a formula has parts that are infinite or undefined for some arguments."""
    for part in sp.preorder_traversal(expr):
        if isinstance(part, sp.Pow) and part.free_symbols and not (part.exp.is_Integer and part.exp > 0):
            return True
        if part.func in _SAFE and part.free_symbols:
            return True
    return False


# -- the plug-in ----------------------------------------------------------------------------------------

_RESERVED = {
    *("self", "t", "x", "k", "jax", "jnp", "Model", "annotations", "dict"),
    # Of problems in PEtab.
    *("eqx", "held", "layers", "likelihood", "noise", "times", "value"),
}


def local_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Returns for each name a Python variable: itself where that will do, else a text made of it.

    - `taken`: variables that none may have.
    """
    names = list(names)
    used = {*taken, *_RESERVED}
    out: dict[str, str] = {}
    plain = {n for n in names if _is_plain(n) and n not in used}
    for name in names:
        text = name
        if name not in plain:
            text = re.sub("^_+", "_", re.sub(r"[^A-Za-z0-9_]", "_", name))
            text = text if re.match(r"[A-Za-z_]", text) else f"_{text}"
            while text in used or text in plain or not _is_plain(text):
                # Two underscores in front are none that Python leaves alone.
                text = f"{text}_" if text.strip("_") else f"v{text}"
        used.add(text)
        out[name] = text
    return out


def _is_plain(name: str) -> bool:
    # ASCII alone: Python takes some letters for others. Two underscores in front would be changed within a class.
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)) and not keyword.iskeyword(name) and name[:2] != "__"


def plugin_source(
    model: Symbolic,
    class_name: str = "Imported",
    source: str = "",
    digest: str = "",
    functions: Mapping[str, str] | None = None,
) -> str:
    """Returns the text of a plug-in file.

    - `source`, `digest`: name and sha256 of the file that the model was read from, for the first line.
    - `functions`: as in `python_of`.

    Raises RetrogradError for what a plug-in cannot say.
    """
    return PluginWriter(model, class_name, source, digest, functions or {}).text()


class PluginWriter:
    """Writes a model as a plug-in; arguments as those of `plugin_source`."""

    def __init__(
        self, model: Symbolic, class_name: str, source: str, digest: str, functions: Mapping[str, str]
    ) -> None:
        self.model, self.class_name, self.source, self.digest = model, class_name, source, digest
        self.functions = functions
        named = [*model.states, *model.parameters, *model.derived, *model.expressions]
        self.names = local_names(named)
        self.rate_names = local_names([f"d_{s}" for s in model.states], self.names.values())
        self._check()
        # Derived constants as functions of the parameters, whatever they were computed from at the start.
        start = model.at_start(keep_derived=True, names=model.derived)
        self.derived = {name: start[name] for name in model.derived}
        self.used = {name: names_in(expr) for name, expr in {**self.derived, **model.expressions}.items()}

    def _check(self) -> None:
        model, problems = self.model, []
        if not model.states:
            problems.append("found no state, nothing that changes in time: wanted at least one")
        missing = [name for name in model.states if name not in model.initial]
        if missing:
            problems.append(f"found no start of {', '.join(missing)}, wanted an initial value or an initial assignment")
        # Of ids only the first; other formats may have more.
        bad = lambda name: (
            name == "scenario" or "@" in name or name.startswith("x0:") or name != name.strip() or not name
        )
        problems += [
            f"found the parameter {name!r}, wanted a name that can head a column of the scenario table: rename it"
            for name in model.parameters
            if bad(name)
        ]
        known = {*model.states, *model.parameters, *model.derived, *model.expressions}
        for formulas in (model.rates, model.initial, model.derived, model.expressions):
            for name, expr in formulas.items():
                if unknown := sorted(names_in(expr) - known):
                    what = ", ".join(unknown)
                    problems.append(f"found {what} in the formula of {name}, which the model does not have")
        if problems:
            what = self.source or model.name
            raise RetrogradError("\n  ".join([f"{what}: cannot be written as a plug-in:", *problems]))

    def text(self) -> str:
        """Returns the whole file."""
        model = self.model
        origin = f" from {self.source}" if self.source else ""
        digest = f"\n\nsha256 of that file: {self.digest}" if self.digest else ""
        head = (
            f'"""The model {plain_text(model.name)}: written by Retrograd{plain_text(origin)}. '
            f'Do not edit: import it anew.{digest}\n"""'
            if digest
            else f'"""The model {plain_text(model.name)}: written by Retrograd{plain_text(origin)}. Do not edit."""'
        )
        own = [f'class {self.class_name}(Model):\n    """{plain_text(model.name)}."""', "\n".join(self.attributes())]
        body = "\n\n".join([*own, *map("\n".join, self.methods())])
        return "\n\n".join([head, *self.imports()]) + "\n\n\n" + "\n\n\n".join([*self.definitions(), body]) + "\n"

    def imports(self) -> list[str]:
        """Returns the file's imports, each group a text."""
        return [
            "from __future__ import annotations",
            "import jax\nimport jax.numpy as jnp",
            "from retrograd.api import Model",
        ]

    def definitions(self) -> list[str]:
        """Returns what stands in front of the class, each definition a text."""
        return []

    def attributes(self) -> list[str]:
        """Returns the lines of the class's attributes."""
        return [
            *mapping_lines("states", self.model.states),
            *mapping_lines("parameters", self.model.parameters),
            f"    time_unit = {quoted(self.model.time_unit)}",
            "    # Formulas have one form; both names make every built-in variant applicable.",
            '    formulations = {"naive": "vector_field", "stable": "vector_field"}',
        ]

    def methods(self) -> list[list[str]]:
        """Returns the lines of each method."""
        methods = [self._vector_field(), self._initial_state(), self._initial_guess()]
        return [*methods, self._invariants()] if self.model.invariants else methods

    def rates(self, ends: Sequence[str]) -> list[str]:
        """Returns the lines that end the vector field.

        - `ends`: the variables of the rates.
        """
        return stack_lines(ends)

    def totals(self, texts: Sequence[str]) -> list[str]:
        """Returns the lines that end the conserved quantities, whose formulas are given as Python."""
        return stack_lines(texts)

    def write(self, expr: sp.Basic) -> str:
        return python_of(expr, self.names, self.functions)

    def assign(self, name: str, expr: sp.Basic, used: set[str]) -> str:
        """Returns the line that computes a name; `used` are the names that other formulas use."""
        try:
            text = self.write(expr)
        except RetrogradError as error:
            raise RetrogradError(f"{self.source or self.model.name}: {name}: {error}") from error
        # An array wherever others compute with it: Python's own division by 0 stops, and its `~` of a bool is a number.
        if name in used and not expr.free_symbols:
            text = f"jnp.asarray({text})"
        return f"        {self.names[name]} = {text}"

    def needed(self, exprs: Iterable[sp.Basic]) -> set[str]:
        """Returns the names that formulas use, directly or through derived constants and expressions."""
        found: set[str] = set()
        todo = sorted(set().union(*map(names_in, exprs)))
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo.extend(self.used.get(name, ()))
        return found

    def _careful(self, expr: Any) -> Any:
        """Returns a formula in whose branches stands what other names may be infinite: there it can be guarded."""
        if not isinstance(expr, sp.Basic) or not expr.has(sp.Piecewise):
            return expr
        inner = {**self.derived, **{name: self.model.resolve(e) for name, e in self.model.expressions.items()}}
        dangerous = {symbol(name): formula for name, formula in inner.items() if is_dangerous(formula)}

        def walk(part: Any) -> Any:
            if isinstance(part, sp.Piecewise):
                pieces: list[Any] = list(part.args)
                pairs = [(value.xreplace(dangerous), condition) for value, condition in pieces]
                return sp.Piecewise(*pairs)
            if not part.args:
                return part
            return part.func(*map(walk, part.args))

        return walk(expr) if dangerous else expr

    def _vector_field(self) -> list[str]:
        model, names = self.model, self.names
        expressions = {name: self._careful(expr) for name, expr in model.expressions.items()}
        rates = {name: self._careful(expr) for name, expr in model.rates.items()}
        self.used |= {name: names_in(expr) for name, expr in expressions.items()}
        needed = self.needed(rates.values())
        lines = [
            "    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:",
            '        """Returns dx/dt, shape (state,), in the states\' units per time unit.',
            "",
            "        - `t`: time. `x`: state, shape (state,). `k`: parameters, scalars.",
            '        """',
            *unpack_lines([names[s] for s in model.states], "x"),
            *self.parameter_lines(needed),
        ]
        formulas = {**self.derived, **expressions}
        lines += [self.assign(name, expr, needed) for name, expr in formulas.items() if name in needed]
        ends = []
        for state, rate in rates.items():
            variable = self.rate_names[f"d_{state}"]
            try:
                lines.append(f"        {variable} = {self.write(rate)}")
            except RetrogradError as error:
                raise RetrogradError(f"{self.source or self.model.name}: rate of {state}: {error}") from error
            ends.append(variable)
        return [*lines, *self.rates(ends)]

    def _initial_state(self) -> list[str]:
        model, names = self.model, self.names
        # At the start, states, derived constants and expressions are all computed, each once.
        formulas = {**model.derived, **model.initial, **model.expressions}
        formulas = {name: self._careful(formulas[name]) for name in model.start_order}
        needed = set(model.states)
        for name in reversed(model.start_order):
            if name in needed:
                needed |= names_in(formulas[name])
        formulas = {name: formulas[name].xreplace({TIME: sp.S.Zero}) for name in model.start_order if name in needed}
        used: set[str] = set().union(*map(names_in, formulas.values()))
        lines = [
            "    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:",
            '        """Returns the start of the dynamics, shape (state,).',
            "",
            "        - `k`: parameters, scalars.",
            '        """',
            *self.parameter_lines(needed),
        ]
        lines += [self.assign(name, expr, used) for name, expr in formulas.items()]
        return [*lines, *stack_lines([names[s] for s in model.states])]

    def _initial_guess(self) -> list[str]:
        return [
            "    def initial_guess(self, k: dict[str, jax.Array]) -> jax.Array:",
            '        """Returns the same: what is conserved keeps its value there."""',
            "        return self.initial_state(k)",
        ]

    def _invariants(self) -> list[str]:
        names = self.names
        totals = [sp.Add(*(w * symbol(state) for state, w in v.items())) for v in self.model.invariants]
        needed = self.needed(totals)
        lines = [
            "    def invariants(self, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:",
            '        """Returns the amounts that no reaction changes, shape (invariant,).',
            "",
            "        - `x`: state, shape (state,). `k`: parameters, scalars.",
            '        """',
            *unpack_lines([names[s] for s in self.model.states], "x"),
            *self.parameter_lines(needed),
        ]
        # A rule may give a compartment a size that does not change.
        formulas = {**self.derived, **self.model.expressions}
        lines += [self.assign(name, expr, needed) for name, expr in formulas.items() if name in needed]
        return [*lines, *self.totals([self.write(total) for total in totals])]

    def parameter_lines(self, needed: set[str]) -> list[str]:
        return [f"        {self.names[name]} = k[{quoted(name)}]" for name in self.model.parameters if name in needed]


def plain_text(text: str) -> str:
    """Returns a text that can stand in a docstring."""
    return text.replace("\\", "/").replace('"', "'").replace("\n", " ")


def quoted(text: str) -> str:
    quoted = repr(text)
    return f'"{quoted[1:-1]}"' if quoted[0] == "'" and '"' not in quoted else quoted


def mapping_lines(name: str, items: Mapping[str, str]) -> list[str]:
    if not items:
        return [f"    {name} = {{}}"]
    return [f"    {name} = {{", *(f"        {quoted(a)}: {quoted(b)}," for a, b in items.items()), "    }"]


def unpack_lines(variables: Sequence[str], source: str) -> list[str]:
    line = f"        {', '.join(variables)}{',' if len(variables) == 1 else ''} = {source}"
    if len(line) <= WIDTH:
        return [line]
    return ["        (", *(f"            {v}," for v in variables), f"        ) = {source}"]


def stack_lines(items: Sequence[str]) -> list[str]:
    """Returns lines that return an array of these texts."""
    line = f"        return jnp.stack([{', '.join(items)}])"
    if len(line) <= WIDTH:
        return [line]
    return [
        "        return jnp.stack(",
        "            [",
        *(f"                {i}," for i in items),
        "            ]",
        "        )",
    ]
