"""A model's rates as formulas: JAX's program of the vector field on SymPy's symbols, printed as LaTeX.

Networks stay whole: each is a function by the name of its field. What has no formula that a person would read is left
to the model's own text.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jax.core import ShapedArray
from jax.extend import core
from sympy.printing.latex import LatexPrinter

from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.scalar_program import Operations, each, run

# What fits on a page: states, operations of JAX's program, and of one rate's formula.
MOST_RATES = 60
MOST_OPERATIONS = 3000
MOST_TERMS = 150
# Characters of a model's own text.
MOST_TEXT = 10_000
# Arguments of a network that are written out.
MOST_ARGUMENTS = 4


# --- networks -------------------------------------------------------------------------------------

_network = core.Primitive("named_network")
_network.multiple_results = True


@_network.def_abstract_eval
def _(*_: Any, name: str, results: tuple[tuple[tuple[int, ...], str], ...]) -> list[Any]:
    return [ShapedArray(shape, np.dtype(dtype)) for shape, dtype in results]


class _Named(eqx.Module):
    """Stands for a network: a call is one operation of the program."""

    network: Any
    name: str = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wanted, tree = jax.tree.flatten(eqx.filter_eval_shape(self.network, *args, **kwargs))
        arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves((args, kwargs)) if eqx.is_array_like(leaf)]
        results = tuple((tuple(a.shape), str(a.dtype)) for a in wanted)
        return jax.tree.unflatten(tree, _network.bind(*arrays, name=self.name, results=results))


def _networks(model: Model, change: Callable[[str, Any], Any]) -> Model:
    """Returns the model with a function of name and network in the place of each of its networks."""

    def is_network(node: Any) -> bool:
        return node is not model and isinstance(node, eqx.Module) and callable(node)

    def changed(path: Any, node: Any) -> Any:
        return change(re.sub(r"\W+", "_", jax.tree_util.keystr(path)).strip("_"), node) if is_network(node) else node

    return jax.tree_util.tree_map_with_path(changed, model, is_leaf=is_network)


def networks(model: Model) -> dict[str, str]:
    """Returns each network of a model in words, by its name: its kind, widths, activation and number of weights."""
    told: dict[str, str] = {}

    def tell(name: str, network: Any) -> Any:
        arrays = [leaf for leaf in jax.tree.leaves(network) if eqx.is_array(leaf)]
        parts = [type(network).__name__]
        matrices = [a.shape for a in arrays if a.ndim == 2]
        # As equinox has them, (out, in): a chain where each takes what the one before gives.
        if matrices and all(a[0] == b[1] for a, b in itertools.pairwise(matrices)):
            parts.append(" → ".join(map(str, [matrices[0][1], *(out for out, _ in matrices)])))
        if activation := getattr(getattr(network, "activation", None), "__name__", ""):
            parts.append(activation)
        told[name] = ", ".join([*parts, f"{sum(a.size for a in arrays)} weights"])
        return network

    _networks(model, tell)
    return told


def _call(*inputs: np.ndarray, name: str, results: Any) -> list[np.ndarray]:
    arguments = [_scalar(v) for v in np.concatenate([np.ravel(a) for a in inputs])] if inputs else []
    if len(arguments) > MOST_ARGUMENTS:
        arguments = [*arguments[: MOST_ARGUMENTS - 1], sp.Symbol("...")]
    outputs, count = [], sum(int(np.prod(shape)) for shape, _ in results)
    for shape, _ in results:
        array = np.empty(int(np.prod(shape)), object)
        for i in range(len(array)):
            number = "" if count == 1 else str(sum(map(len, outputs)) + i + 1)
            array[i] = sp.Function(name + number)(*arguments)
        outputs.append(array)
    return [array.reshape(shape) for array, (shape, _) in zip(outputs, results, strict=True)]


# --- operations -----------------------------------------------------------------------------------


def _scalar(value: Any) -> Any:
    """Returns a number as a person would write it: whole ones whole, others with as many digits as they have."""
    if isinstance(value, sp.Basic):
        return value
    if isinstance(value, bool | np.bool_):
        return sp.true if value else sp.false
    if isinstance(value, float) and not value.is_integer():
        return sp.Float(f"{value:.6g}")
    return sp.sympify(int(value) if isinstance(value, float) and np.isfinite(value) else value)


def _of(function: Callable[..., Any], arguments: int = 1) -> Callable[..., Any]:
    return each(lambda *values: function(*map(_scalar, values)), arguments)


def _select(which: np.ndarray, *cases: np.ndarray, **_: Any) -> np.ndarray:
    if len(cases) != 2:
        raise RetrogradError("found a choice between more than two cases, wanted one between two")

    def chosen(condition: Any, no: Any, yes: Any) -> Any:
        return sp.Piecewise((_scalar(yes), _scalar(condition)), (_scalar(no), True))

    return each(chosen, 3)(which, *cases)


_OPERATIONS: Operations = {
    "named_network": _call,
    **{name: _of(getattr(sp, name)) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh")},
    **{name: _of(getattr(sp, name)) for name in ("exp", "log", "sqrt", "sign", "floor", "erf")},
    "abs": _of(sp.Abs),
    "add": _of(lambda a, b: a + b, 2),
    "sub": _of(lambda a, b: a - b, 2),
    "mul": _of(lambda a, b: a * b, 2),
    "div": _of(lambda a, b: a / b, 2),
    "ceil": _of(sp.ceiling),
    "expm1": _of(lambda x: sp.exp(x) - 1),
    "log1p": _of(lambda x: sp.log(1 + x)),
    "logistic": _of(lambda x: 1 / (1 + sp.exp(-x))),
    "max": _of(sp.Max, 2),
    "min": _of(sp.Min, 2),
    "pow": _of(sp.Pow, 2),
    "eq": _of(sp.Eq, 2),
    "ne": _of(sp.Ne, 2),
    "lt": _of(sp.Lt, 2),
    "gt": _of(sp.Gt, 2),
    "le": _of(sp.Le, 2),
    "ge": _of(sp.Ge, 2),
    "and": _of(sp.And, 2),
    "or": _of(sp.Or, 2),
    "not": _of(sp.Not),
    "select_n": _select,
}
# Functions that JAX writes in a way that does not overflow, which is not how they are read.
_CALLED: Operations = {
    "softplus": _of(lambda x: sp.log(1 + sp.exp(x))),
    "logaddexp": _of(lambda a, b: sp.log(sp.exp(a) + sp.exp(b)), 2),
    "silu": _of(lambda x: x / (1 + sp.exp(-x))),
    "relu": _of(lambda x: sp.Max(0, x)),
}


# --- formulas -------------------------------------------------------------------------------------


def equations(model: Model) -> list[str]:
    """Returns each state's equation in LaTeX, an empty text where there is none that one would read.

    Numbers are rounded to six digits.
    """
    n = len(type(model).states)
    try:
        return _equations(model) if n <= MOST_RATES else [""] * n
    except Exception:
        # A model may do in its field whatever JAX can trace: its formulas are a service, and no reason to stop.
        return [""] * n


def _equations(model: Model) -> list[str]:
    states, parameters = list(type(model).states), list(type(model).parameters)
    named = _networks(model, lambda name, network: _Named(network, name))
    program = jax.make_jaxpr(lambda t, x, k: named.vector_field(t, x, dict(zip(parameters, k, strict=True))))(
        0.0, np.zeros(len(states)), [0.0] * len(parameters)
    )
    if _size(program.jaxpr) > MOST_OPERATIONS:
        return [""] * len(states)
    names = ["t", *states, *parameters]
    # Of a state and a parameter of one name, as of t, the symbols must differ.
    symbols = [sp.Symbol(f"{name}#{i}", real=True) for i, name in enumerate(names)]
    x = np.empty(len(states), object)
    x[:] = symbols[1 : 1 + len(states)]
    found = run(program, [symbols[0], x, *symbols[1 + len(states) :]], _OPERATIONS, _CALLED)[0]
    printed = {s: tex_name(name) for s, name in zip(symbols, names, strict=True)} | {sp.Symbol("..."): r"\ldots"}
    return [
        _printed(name, _scalar(rate), printed)
        for name, rate in zip(states, np.broadcast_to(found, len(states)), strict=True)
    ]


class _Printer(LatexPrinter):
    def _hprint_Function(self, func: str) -> str:
        return super()._hprint_Function(func) if hasattr(sp, func) else tex_name(func)


def _printed(state: str, rate: sp.Basic, names: dict[sp.Symbol, str]) -> str:
    if sum(1 for _ in sp.preorder_traversal(rate)) > MOST_TERMS:
        return ""
    right = _Printer({"symbol_names": names, "full_prec": False}).doprint(rate)
    return rf"\frac{{\mathrm{{d}} {tex_name(state)}}}{{\mathrm{{d}} t}} = {right}"


def _size(program: core.Jaxpr) -> int:
    inner = (getattr(v, "jaxpr", v) for e in program.eqns for v in e.params.values())
    return len(program.eqns) + sum(_size(j) for j in inner if hasattr(j, "eqns"))


def tex_name(name: str) -> str:
    r"""Returns a name in LaTeX: what follows the first `_`, or digits at its end, as an index.

    Single letters and Greek ones are italic, words upright: `k_{1}`, `\text{uptake}`.
    """
    base, _, index = name.partition("_")
    if not index and (found := re.fullmatch(r"([^\W\d_]+)(\d+)", base)):
        base, index = found.groups()
    return _tex_word(base) + (f"_{{{_tex_word(index)}}}" if index else "") if base else _tex_word(name)


_GREEK = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"),
        *("xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta"),
        *("Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"),
    )
)


def _tex_word(word: str) -> str:
    if word in _GREEK:
        return f"\\{word}"
    if re.fullmatch(r"[A-Za-z]|\d+", word):
        return word
    return r"\text{" + re.sub(r"([_%&#$^{}\\~])", lambda m: "\\_" if m[1] == "_" else " ", word) + "}"


def text_of(method: Callable[..., Any]) -> str:
    """Returns a method as its author wrote it, without its docstring; empty where that is no page to read."""
    try:
        text = _without_docstring(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return ""
    return text if len(text) <= MOST_TEXT else ""


def _without_docstring(source: str) -> str:
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    first, lines = function.body[0], source.splitlines()
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines)


def description_of(cls: type[Model]) -> str:
    """Returns a model's docstring; empty where it has none of its own."""
    own = vars(cls).get("__doc__") or ""
    # Dataclasses without one get their signature.
    return "" if own.startswith(f"{cls.__name__}(") else inspect.cleandoc(own)[:MOST_TEXT]
