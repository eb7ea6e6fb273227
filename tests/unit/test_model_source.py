"""Formulas as Python: values, derivatives, names, and plug-ins against closed forms and SciPy."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import sympy as sp
from sbml_files import assign, compartment, parameter, rate, reaction, reference, rule, sbml, species

from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.imported import complete_scenarios, import_model
from retrograd.model_source import is_dangerous, local_names, plugin_source, python_of
from retrograd.optional import need
from retrograd.plugin_source import look_at_plugin
from retrograd.plugins import build_structure, load_class
from retrograd.sbml_import import read_sbml
from retrograd.scenarios import read_scenarios
from retrograd.symbolic import TIME, Symbolic, symbol

need("the tests of the importer", "libsbml")

CASES = Path(os.environ.get("RETROGRAD_CASES", Path(__file__).parents[3] / "shared" / "cases"))
a, b, c, t = (symbol(n) for n in "abct")


def run(text: str, **values: Any) -> Any:
    return eval(text, {"jnp": jnp}, {name: jnp.asarray(v) for name, v in values.items()})


# -- formulas -------------------------------------------------------------------------------------------

SOURCE = {
    "sum": (a - b + 2 * c, "a + 2.0 * c - b"),
    "negative sum": (-a - b, "-a - b"),
    "product": (-2 * a * b / (3 * c), "-2.0 * a * b / (3.0 * c)"),
    "ratio": (sp.Rational(1, 3) * a, "a / 3.0"),
    "sum in a product": (a * (b + c) / (a + b), "a * (b + c) / (a + b)"),
    "two below": (1 / (a * b**2), "1.0 / (a * b**2)"),
    "whole power": (a**3, "a**3"),
    "float power": (a ** sp.Float(2.0), "a**2"),
    "negative power": (a**-2, "1.0 / a**2"),
    "power of a sum": ((a + b) ** 2, "(a + b)**2"),
    "power of a power": (sp.Pow(a**b, c, evaluate=False), "(a**b)**c"),
    "negative base": ((-a) ** b, "(-a)**b"),
    "root": (sp.sqrt(a), "jnp.sqrt(a)"),
    "one over a root": (b / sp.sqrt(a), "b / jnp.sqrt(a)"),
    "third root": (a ** sp.Rational(1, 3), "a**(1.0 / 3.0)"),
    "odd power": (a ** sp.Float(2.5), "a**2.5"),
    "symbolic power": (2**a + a**b, "2.0**a + a**b"),
    "numbers": (a + sp.Float(1.25e-7), "a + 1.25e-07"),
    "constants": (a * sp.pi + sp.E, "jnp.pi * a + jnp.e"),
    "constant formula": (a + sp.sqrt(2), f"a + {math.sqrt(2)!r}"),
    "third": (a + sp.Rational(1, 3), "a + 1.0 / 3.0"),
    "odd ratio": (a + sp.Rational(1, 3333), f"a + {1 / 3333!r}"),
    "infinity": (sp.Max(a, -sp.oo, evaluate=False), "jnp.maximum(-jnp.inf, a)"),
    "extremes": (sp.Max(a, b, 0) + sp.Min(a, b), "jnp.maximum(0.0, jnp.maximum(a, b)) + jnp.minimum(a, b)"),
    "time": (TIME * a, "t * a"),
    "functions": (sp.exp(-a) + sp.log(b) + sp.Abs(c), "jnp.log(b) + jnp.abs(c) + jnp.exp(-a)"),
    "reciprocal": (sp.sec(a) * b, "b * (1.0 / jnp.cos(a))"),
    "inverse": (sp.acoth(a + b), "jnp.arctanh(1.0 / (a + b))"),
    "piecewise": (sp.Piecewise((a, b < c), (2, True)), "jnp.where(b < c, a, 2.0)"),
    "undefined": (sp.Piecewise((a, b < c)), "jnp.where(b < c, a, jnp.nan)"),
    "logic": (
        sp.Piecewise((1, (a < b) & ((b <= c) | sp.Ne(a, c))), (0, True)),
        "jnp.where(((b <= c) | (a != c)) & (a < b), 1.0, 0.0)",
    ),
}


@pytest.mark.parametrize("name", SOURCE)
def test_source(name: str):
    expr, text = SOURCE[name]
    assert python_of(expr) == text
    values = {"a": 0.7, "b": 0.4, "c": 1.9, "t": 3.0}
    numbers = {symbol(n): sp.Float(v, 30) for n, v in values.items()} | {TIME: sp.Float(3)}
    wanted = complex(sp.N(expr.xreplace(numbers), 20))
    if wanted.imag:
        wanted = math.nan
    assert complex(run(text, **values)) == pytest.approx(wanted, rel=1e-14, nan_ok=True)


def test_every_function_has_its_value():
    words = "exp log Abs sign floor ceiling sin cos tan asin acos atan sinh cosh tanh asinh atanh"
    more = "sec csc cot sech csch coth acot asech acsch"
    unary = dict.fromkeys(f"{words} {more}".split(), 0.3)
    unary |= dict.fromkeys(["acosh", "asec", "acsc", "acoth"], 1.7)
    for name, at in unary.items():
        expr = getattr(sp, name)(a)
        wanted = float(sp.N(expr.xreplace({a: sp.Float(at, 30)}), 20))
        assert float(run(python_of(expr), a=at)) == pytest.approx(wanted, rel=1e-14), name
        # In a branch that is taken what is guarded is the same.
        guarded = python_of(sp.Piecewise((expr, b > 0), (0, True)))
        assert float(run(guarded, a=at, b=1.0)) == pytest.approx(wanted, rel=1e-14), name


def test_names_and_functions():
    net = sp.Function("net")
    text = python_of(b + 2 * net(a, sp.Integer(3)), {"a": "a_", "b": 'k["b"]'}, {"net": "self.net"})
    assert text == 'k["b"] + 2.0 * self.net(a_, 3.0)'
    assert python_of(net(sp.Integer(3)), functions={"net": "self.net"}) == "self.net(3.0)"
    with pytest.raises(RetrogradError, match="found the function net in a formula, which cannot be written for JAX"):
        python_of(net(a))


@pytest.mark.parametrize("expr", [sp.I * a, sp.zoo + a, sp.log(-1) * a, a + sp.Integer(10) ** 400])
def test_constants_that_are_no_numbers(expr: sp.Expr):
    with pytest.raises(RetrogradError, match="no real number that float64 can hold"):
        python_of(expr)


# -- derivatives ----------------------------------------------------------------------------------------

UNDEFINED = {
    "logarithm": (a * sp.log(a), a > 0, 0.0),
    "ratio": (1 / a, sp.Ne(a, 0), 0.0),
    "root": (sp.sqrt(a), a > 0, 0.0),
    "one over a root": (1 / sp.sqrt(a), a > 0, 0.0),
    "odd power": (a ** sp.Float(0.3), a > 0, 0.0),
    "symbolic power": (a**b, a > 0, 0.0),
    "overflow": (sp.exp(1000 * a), a < 0, 5.0),
    "power that overflows": (10 ** (1000 * a), a < 0, 5.0),
    "outside": (sp.acos(a), a < 1, 3.0),
    "nested": (sp.Piecewise((sp.log(a - 1), a > 1), (0, True)) / a, a > 0, 0.0),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_a_branch_that_is_not_taken_leaves_the_derivative_alone(name: str):
    expr, condition, at = UNDEFINED[name]
    text = python_of(sp.Piecewise((expr, condition), (3 * a, True)))
    assert is_dangerous(expr)
    for mode in (jax.grad, jax.jacfwd):
        assert float(mode(lambda x: run(text, a=x, b=0.5))(at)) == 3.0
    # The same in the last branch.
    text = python_of(sp.Piecewise((3 * a, sp.Not(condition)), (expr, True)))
    assert float(jax.grad(lambda x: run(text, a=x, b=0.5))(at)) == 3.0
    inside = 1.5 if at == 0 else -0.001 if at == 5 else 0.5
    numeric = sp.lambdify([a, b], sp.diff(expr, a), "mpmath")(inside, 0.5)
    assert float(jax.grad(lambda x: run(text, a=x, b=0.5))(inside)) == pytest.approx(float(numeric), rel=1e-12)


def test_conditions_are_not_guarded():
    # A guard takes the place of an argument where its branch is not taken: in a condition that would change the choice.
    expr = sp.Piecewise((1, a <= 0), (2, sp.log(a) > -1), (3, True))
    text = python_of(expr)
    assert [float(run(text, a=x)) for x in (-1.0, 0.1, 0.5)] == [1.0, 3.0, 2.0]


def test_powers_have_finite_derivatives_at_0():
    text = python_of(a**2 + a ** sp.Float(3.0) + a)
    assert float(jax.grad(lambda x: run(text, a=x))(0.0)) == 1.0
    # That of a Hill term with its exponent a parameter, in either.
    text = python_of(a**b / (c**b + a**b))
    slope = jax.grad(lambda x, n: run(text, a=x, b=n, c=0.5), argnums=(0, 1))(0.0, 2.0)
    assert [float(s) for s in slope] == [0.0, 0.0]


# -- names ----------------------------------------------------------------------------------------------


def test_local_names():
    names = ["A", "lambda", "x", "k", "t", "self", "jnp", "x_", "__A", "2b", "a-b", "a_b", "é", "None", "A_"]
    found = local_names(names, ["A_"])
    assert found == {
        "A": "A",
        "lambda": "lambda_",
        "x": "x__",
        "k": "k_",
        "t": "t_",
        "self": "self_",
        "jnp": "jnp_",
        "x_": "x_",
        "__A": "_A",
        "2b": "_2b",
        "a-b": "a_b_",
        "a_b": "a_b",
        "é": "_",
        "None": "None_",
        "A_": "A__",
    }
    assert len(set(found.values())) == len(found)
    assert all(v.isidentifier() and v.isascii() and not v.startswith("__") for v in found.values())


# -- plug-ins -------------------------------------------------------------------------------------------


def load(model: Symbolic, folder: Path, **more: Any) -> tuple[Model, dict[str, jax.Array]]:
    """Returns the model of a plug-in that is written and read again, and the file's values."""
    path = folder / "model.py"
    path.write_text(plugin_source(model, **more))
    plugin, problems = look_at_plugin(str(path), "Imported")
    assert problems == []
    assert plugin.states == tuple(model.states)
    assert plugin.has_initial_state
    return build_structure(load_class(str(path), "Imported")), {n: jnp.asarray(v) for n, v in model.values.items()}


def simulate(model: Model, k: dict[str, jax.Array], times: list[float]) -> np.ndarray:
    """Returns the states at times from 0 on, shape (time, state): SciPy's, to the tolerance of 1e-11."""
    field = jax.jit(lambda t, x: model.vector_field(t, x, k))
    start = np.asarray(model.initial_state(k), float)
    span = (0.0, times[-1])
    rates = lambda t, x: np.asarray(field(t, x))
    return scipy.integrate.solve_ivp(rates, span, start, "DOP853", times, rtol=1e-11, atol=1e-13).y.T


TIMES = [0.5, 1.0, 2.0, 4.0]


def test_a_decay(tmp_path: Path):
    text = sbml(
        compartments=[compartment("C", 2), compartment("D", 0.5)],
        species=[species("A", conc=3), species("B", "D", amount=1)],
        parameters=[parameter("k", 0.7)],
        reactions=[reaction("J", {"A": 1}, {"B": 2}, "k*A*C")],
    )
    model, k = load(read_sbml(text), tmp_path)
    gone = 3 * np.exp(-0.7 * np.array(TIMES))
    # 2 mol a mol, from a volume of 2 into one of 0.5.
    wanted = np.stack([gone, 2 + 2 * (3 - gone) * 2 / 0.5], axis=1)
    np.testing.assert_allclose(simulate(model, k, TIMES), wanted, rtol=1e-9)
    kept = [np.asarray(model.invariants(jnp.asarray(x), k)) for x in wanted]
    np.testing.assert_allclose(kept, np.broadcast_to(kept[0], (4, 1)), rtol=1e-13)
    assert np.array_equal(model.initial_guess(k), [3, 2])


def test_a_compartment_that_grows(tmp_path: Path):
    text = sbml(
        compartments=[compartment("C", 2, constant=False)],
        species=[species("A", conc=3), species("S", conc=5, boundary=True)],
        parameters=[parameter("k", 0.7)],
        rules=[rate("C", "0.25")],
        reactions=[reaction("J", {"A": 1}, {}, "k*A*C")],
    )
    model, k = load(read_sbml(text), tmp_path)
    volume = 2 + 0.25 * np.array(TIMES)
    wanted = np.stack([volume, 6 * np.exp(-0.7 * np.array(TIMES)) / volume, 10 / volume], axis=1)
    np.testing.assert_allclose(simulate(model, k, TIMES), wanted, rtol=1e-9)


def test_the_results_of_the_semantic_test_suite_for_01198(tmp_path: Path):
    """A species and its compartment under rate rules; numbers of case 01198 of the SBML test suite, in amounts."""
    text = sbml(
        compartments=[compartment("C1", 0.5, constant=False)],
        species=[species("S1", "C1", conc=0, boundary=True)],
        parameters=[parameter("x", None, constant=False)],
        rules=[rate("S1", "0.4"), rate("C1", "0.2"), rule("x", "S1")],
    )
    model, k = load(read_sbml(text), tmp_path)
    volume, concentration = simulate(model, k, [0.1, 0.5, 1.0]).T
    np.testing.assert_allclose(volume, [0.52, 0.6, 0.7], rtol=1e-9)
    np.testing.assert_allclose(concentration * volume, [0.0208, 0.12, 0.28], rtol=1e-9)
    np.testing.assert_allclose(concentration, [0.04, 0.2, 0.4], rtol=1e-9)


def test_the_results_of_the_semantic_test_suite_for_01122(tmp_path: Path):
    """A boundary species in a compartment that grows keeps its amount; case 01122, whose results start with 5."""
    text = sbml(
        compartments=[compartment("comp", 5, constant=False)],
        species=[species("S1", "comp", amount=1), species("S3", "comp", amount=4, boundary=True)],
        rules=[rate("comp", "1")],
        reactions=[reaction("J", {"S1": 1}, {}, "S3/10")],
    )
    model, k = load(read_sbml(text), tmp_path)
    volume, s1, s3 = simulate(model, k, [0.6, 3.0]).T
    np.testing.assert_allclose(volume, [5.6, 8.0], rtol=1e-9)
    np.testing.assert_allclose(s1 * volume, [0.954668526, 0.811998548], rtol=1e-9)
    np.testing.assert_allclose(s3 * volume, [4.0, 4.0], rtol=1e-9)


def _references(side: str) -> list[str]:
    """Returns references from text such as `A:id:2`."""
    return [reference(name, value, id) for name, id, value in (part.split(":") for part in side.split())]


def _suite(case: str) -> str:
    """Returns a model that means the same as one of the semantic test suite's, from the suite's own description."""
    grown = {"rules": [rate("C", "1")], "compartments": [compartment("C", 1, constant=False)]}
    if case == "01117":
        return sbml(species=[species("S1", conc=1, boundary=True, constant=True)], **grown)
    if case == "01223":
        rules = [rate("S1", "1"), rule("C", "1*time + 2")]
        sizes = [compartment("C", None, constant=False)]
        return sbml(compartments=sizes, species=[species("S1", amount=1.2, is_amount=True, boundary=True)], rules=rules)
    # Several references to one species, with numbers that are assigned, constant or not.
    sides, law, rates = {
        "01439": (("", "A:n1:2 A:n2:1"), "1", {}),
        "01449": (("A:n1:2 A:n2:1", ""), "-1", {"n1": "1", "n2": "-1"}),
        "01453": (("A:n1:2 B:n2:2", "A:n3:1 B:n4:1"), "-1", dict.fromkeys(["n1", "n2", "n3", "n4"], "1")),
    }[case]
    text = sbml(
        species=[species("A", conc=1), species("B", conc=1)],
        rules=[rate(name, formula) for name, formula in rates.items()],
        reactions=[reaction("J0", _references(sides[0]), _references(sides[1]), law)],
    )
    return re.sub(r'(<speciesReference [^>]*)constant="true"', r'\1constant="false"', text)


SUITE = {
    "01117": {"C": lambda t: 1 + t, "S1": lambda t: 1 / (1 + t)},
    "01223": {"S1": lambda t: 1.2 + t},
    "01439": {"A": lambda t: 1 + 3 * t, "B": lambda t: 1 + 0 * t},
    "01449": {"A": lambda t: 1 + 3 * t, "B": lambda t: 1 + 0 * t},
    "01453": {"A": lambda t: 1 + t, "B": lambda t: 1 + t},
}


@pytest.mark.parametrize("case", SUITE)
def test_kinds_of_the_semantic_test_suite(case: str, tmp_path: Path):
    read = read_sbml(_suite(case))
    model, k = load(read, tmp_path)
    found = dict(zip(read.states, simulate(model, k, TIMES).T, strict=True))
    for name, wanted in SUITE[case].items():
        np.testing.assert_allclose(found[name], wanted(np.array(TIMES)), rtol=1e-9)


def test_derived_constants_do_not_follow_the_state(tmp_path: Path):
    text = sbml(
        species=[species("A"), species("B", amount=0)],
        parameters=[parameter("k", 0.3), parameter("p", None), parameter("u", None, constant=False), parameter("n", 2)],
        starts=[assign("A", "2*n"), assign("p", "k*A + u")],
        rules=[rule("u", "1 + A + time")],
        reactions=[reaction("J", {"A": 1}, {"B": 1}, "p*A/10 + 0*u")],
    )
    model, k = load(read_sbml(text), tmp_path)
    # p = 0.3 * 4 + 5 for good.
    wanted = 4 * np.exp(-0.62 * np.array(TIMES))
    np.testing.assert_allclose(simulate(model, k, TIMES)[:, 0], wanted, rtol=1e-9)
    slope = jax.jacfwd(lambda n: model.vector_field(jnp.asarray(0.0), jnp.array([1.0, 0.0]), k | {"n": n}))(2.0)
    np.testing.assert_allclose(slope, [-0.26, 0.26], rtol=1e-12)


def test_starts_at_0_in_formulas_of_the_start(tmp_path: Path):
    """Python's own numbers would stop at 1 / 0, and take the complement of a bool for a number."""
    text = sbml(
        species=[species("A", conc=0), species("B")],
        parameters=[parameter("q", None)],
        starts=[assign("q", "piecewise(2, A <= 0, 1/A)"), assign("B", "piecewise(1/A, !(A <= 0), q)")],
        reactions=[reaction("J", {"B": 1}, {"A": 1}, "q*B")],
    )
    model, k = load(read_sbml(text), tmp_path)
    assert np.array_equal(model.initial_state(k), [0, 2])
    assert np.array_equal(model.vector_field(jnp.asarray(0.0), jnp.array([0.0, 1.0]), k), [2, -2])


def test_what_is_infinite_behind_a_name_is_guarded_too(tmp_path: Path):
    text = sbml(
        species=[species("A", conc=1), species("B", conc=0)],
        parameters=[parameter("z", 0), parameter("d", None), *(parameter(n, None, constant=False) for n in "wuv")],
        starts=[assign("d", "1/z")],
        rules=[rule("w", "1/B"), rule("u", "piecewise(0, B <= 0, w)"), rule("v", "piecewise(d, z > 0, 2)")],
        reactions=[reaction("J", {"A": 1}, {"B": 1}, "A*v + u*B")],
    )
    model, k = load(read_sbml(text), tmp_path)
    field = lambda x, z: model.vector_field(jnp.asarray(0.0), x, k | {"z": z})
    jac, to_z = jax.jacrev(field, argnums=(0, 1))(jnp.array([1.0, 0.0]), jnp.asarray(0.0))
    assert np.array_equal(jac, [[-2, 0], [2, 0]])
    assert np.array_equal(to_z, [0, 0])


def test_names_that_clash(tmp_path: Path):
    text = sbml(
        species=[species(n, conc=i + 1) for i, n in enumerate(["x", "k", "t", "self", "A", "d_A"])],
        parameters=[parameter("jnp", 0.3), parameter("lambda", 0.2), parameter("__A", 0.5), parameter("x_", 2)],
        reactions=[
            reaction("J", {"x": 1}, {"k": 1}, "jnp * x * __A * x_"),
            reaction("jax", {"t": 1, "d_A": 1}, {"self": 1, "A": 1}, "t * self * k"),
        ],
    )
    read = read_sbml(text)
    model, k = load(read, tmp_path)
    assert "lambda" in type(model).parameters
    found = model.vector_field(jnp.asarray(0.0), jnp.arange(1.0, 7.0), k)
    first, second = 0.3 * 1 * 0.5 * 2, 3 * 4 * 2
    np.testing.assert_allclose(found, [-first, first, -second, second, second, -second], rtol=1e-14)


def test_a_parameter_that_cannot_head_a_column():
    text = sbml(species=[species("A", conc=1)], parameters=[parameter("scenario")])
    with pytest.raises(RetrogradError, match="found the parameter 'scenario'"):
        plugin_source(read_sbml(text))


def test_models_that_are_no_plugins():
    with pytest.raises(RetrogradError, match="found no state"):
        plugin_source(read_sbml(sbml(parameters=[parameter("k")])))
    text = sbml(species=[species("A"), species("B")])
    with pytest.raises(RetrogradError, match=r"m.xml: cannot be written as a plug-in:\n  found no start of A, B"):
        plugin_source(read_sbml(text), source="m.xml")
    model = replace(read_sbml(sbml(species=[species("A", conc=1)])), rates={"A": symbol("b") * symbol("c")})
    with pytest.raises(RetrogradError, match="found b, c in the formula of A, which the model does not have"):
        plugin_source(model)
    text = sbml(
        species=[species("A", conc=1, boundary=True)],
        parameters=[parameter("q", None, constant=False)],
        rules=[rule("q", "sqrt(-1)*A"), rate("A", "q")],
    )
    with pytest.raises(RetrogradError, match=r"m.xml: q: found the constant I"):
        plugin_source(read_sbml(text), source="m.xml")


def test_functions_of_a_network(tmp_path: Path):
    model = Symbolic(
        name="net",
        time_unit="s",
        states={"A": "1"},
        rates={"A": sp.Function("net1")(symbol("A"), symbol("k1"))},
        initial={"A": sp.Integer(1)},
        parameters={"k1": "1"},
        values={"k1": 2.0},
        start_order=("A",),
    )
    loaded, k = load(model, tmp_path, functions={"net1": "(lambda u, v: u * v)"})
    assert float(loaded.vector_field(jnp.asarray(0.0), jnp.array([3.0]), k)[0]) == 6.0


MODELS = [
    *sorted(CASES.glob("petab_v2/*/_model.xml")),
    *sorted(CASES.glob("sciml/*/petab/lv.xml")),
    *sorted(CASES.glob("bench/*/model*.xml")),
]


@pytest.mark.skipif(not MODELS, reason=f"{CASES} has no models")
@pytest.mark.parametrize("path", MODELS, ids=lambda p: str(p.relative_to(CASES)))
def test_models_of_others(path: Path, tmp_path: Path):
    found = import_model("sbml", path, tmp_path)
    model = build_structure(load_class(str(found.plugin), found.class_name))
    k = {n: jnp.asarray(v) for n, v in found.values.items()}
    read = read_sbml(path)
    assert found.states == tuple(read.states) and set(found.values) == set(found.parameters)
    x = model.initial_state(k)
    start = {
        name: expr.xreplace({symbol(n): sp.Float(v) for n, v in found.values.items()})
        for name, expr in read.at_start().items()
    }
    np.testing.assert_allclose(x, [float(start[n]) for n in found.states], rtol=1e-13)
    x = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, len(found.states)))
    numbers = {symbol(n): sp.Float(float(v)) for n, v in [*found.values.items(), *zip(found.states, x, strict=True)]}
    wanted = [float(read.resolve(e).xreplace({**numbers, TIME: sp.Float(0.7)})) for e in read.rates.values()]
    np.testing.assert_allclose(model.vector_field(jnp.asarray(0.7), x, k), wanted, rtol=1e-12, atol=1e-12)
    assert model.invariants(x, k).shape == (len(read.invariants),)
    # What is kept is kept along the rates, whatever the state.
    for total in jax.jacfwd(lambda x: model.invariants(x, k))(x):
        terms = np.asarray(total) * np.asarray(wanted)
        assert abs(terms.sum()) <= 1e-12 * np.abs(terms).sum()


# -- import_model ---------------------------------------------------------------------------------------


def text_of(**more: Any) -> str:
    parts: dict[str, Any] = {
        "species": [species("A", conc=3), species("B", conc=0)],
        "parameters": [parameter("k", 0.7), parameter("q", 0.1)],
        "reactions": [reaction("J", {"A": 1}, {"B": 2}, "k*A*q")],
    }
    return sbml(**{**parts, **more})


def test_an_import_is_kept_until_something_changes(tmp_path: Path):
    source, folder = tmp_path / "m.xml", tmp_path / "out"
    source.write_text(text_of())
    first = import_model("sbml", source, folder)
    assert first.plugin == folder / "model.py"
    assert first.values == {"k": 0.7, "q": 0.1, "C": 1.0}
    text = first.plugin.read_bytes()
    assert b"from m.xml" in text and str(tmp_path).encode() not in text
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(before) == {"model.py", "values.json"}
    assert import_model("sbml", source, folder) == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    # The same bytes anew.
    other = tmp_path / "other"
    import_model("sbml", source, other)
    for name in before:
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    first.plugin.write_text("edited")
    import_model("sbml", source, folder)
    assert first.plugin.read_bytes() == text
    source.write_text(text_of(parameters=[parameter("k", 0.8), parameter("q", 0.1)]))
    assert import_model("sbml", source, folder).values["k"] == 0.8
    assert first.plugin.read_bytes() != text


def test_a_refused_file_writes_nothing(tmp_path: Path):
    source, folder = tmp_path / "m.xml", tmp_path / "out"
    source.write_text(text_of(reactions=[reaction("J", {"A": 1}, {}, None)]))
    with pytest.raises(RetrogradError, match="reaction J: has no kinetic law"):
        import_model("sbml", source, folder)
    assert not folder.exists()
    with pytest.raises(RetrogradError, match=r"none.xml: cannot be read \(no such file\)"):
        import_model("sbml", tmp_path / "none.xml", folder)


def test_an_import_of_antimony(tmp_path: Path):
    pytest.importorskip("antimony", reason="the extra petab is not installed: no Antimony")
    part, source = tmp_path / "part.ant", tmp_path / "m.ant"
    part.write_text("model part(S)\n species S\n J: S -> ; 0.5*S\nend\n")
    source.write_text('import "part.ant"\nmodel *m()\n species X = 2\n p: part(X)\nend\n')
    found = import_model("antimony", source, tmp_path / "out")
    assert found.states == ("X",)
    before = found.plugin.read_bytes()
    # What it imports counts as well.
    part.write_text("model part(S)\n species S\n J: S -> ; 0.75*S\nend\n")
    import_model("antimony", source, tmp_path / "out")
    assert found.plugin.read_bytes() != before
    assert b"0.75" in found.plugin.read_bytes()


def test_a_table_is_completed(tmp_path: Path):
    source, table = tmp_path / "m.xml", tmp_path / "s.tsv"
    source.write_text(
        text_of(parameters=[parameter("k", 0.7), parameter("q", 0.1), parameter("p", 1e-30), parameter("r", 2)])
    )
    model = import_model("sbml", source, tmp_path / "out")
    table.write_text(
        '# mine\nscenario\tr@steady\tk\tx0:A\tq@dynamic\tq@steady\ns 1\t1\t2e0\t3\t4\t5\n"#2"\t1\t.5\t3\t4\t5\n'
    )
    path = complete_scenarios(model, table, tmp_path / "out")
    assert path.read_text() == (
        "scenario\tr@steady\tk\tx0:A\tq@dynamic\tq@steady\tp\tr\tC\n"
        "s 1\t1.0\t2.0\t3.0\t4.0\t5.0\t1e-30\t2.0\t1.0\n"
        '"#2"\t1.0\t0.5\t3.0\t4.0\t5.0\t1e-30\t2.0\t1.0\n'
    )
    read = read_scenarios(path, parameters=model.parameters, states=model.states, start="steady_state")
    assert read.ids == ("s 1", "#2")
    alone = complete_scenarios(model, None, tmp_path / "alone")
    assert alone.read_text() == "scenario\tk\tq\tp\tr\tC\ndefault\t0.7\t0.1\t1e-30\t2.0\t1.0\n"


def test_starts_that_follow_each_other(tmp_path: Path):
    source, table = tmp_path / "m.xml", tmp_path / "s.tsv"
    source.write_text(text_of(starts=[assign("B", "2*A")]))
    model = import_model("sbml", source, tmp_path / "out")
    assert model.fixed_starts == {"A": ("B",)}
    table.write_text("scenario\tx0:A\na\t1\n")
    with pytest.raises(RetrogradError, match="found the column x0:A, but B of the model would not follow"):
        complete_scenarios(model, table, tmp_path / "out")
    table.write_text("scenario\tx0:A\tx0:B\na\t1\t5\n")
    text = complete_scenarios(model, table, tmp_path / "out").read_text()
    assert text == "scenario\tx0:A\tx0:B\tk\tq\tC\na\t1.0\t5.0\t0.7\t0.1\t1.0\n"


def test_a_table_that_cannot_be_completed(tmp_path: Path):
    source, table = tmp_path / "m.xml", tmp_path / "s.tsv"
    source.write_text(
        text_of(parameters=[parameter("k"), parameter("q", None), parameter("z", None)], starts=[assign("z", "2*A")])
    )
    model = import_model("sbml", source, tmp_path / "out")
    assert model.fixed_starts == {"A": ("z",)}
    table.write_text("scenario\tx0:A\na\t1\n")
    with pytest.raises(RetrogradError) as caught:
        complete_scenarios(model, table, tmp_path / "out")
    assert str(caught.value).splitlines() == [
        "The scenarios cannot be completed:",
        f"  {table}: found the column x0:A, but z of the model would not follow: "
        "the file computes that from this start",
        f"  {table}: found no column for q, to which the file gives no value: wanted one",
    ]
    table.write_text("scenario\tkk\na\t1\n")
    with pytest.raises(RetrogradError, match="found no parameter 'kk' in the model"):
        complete_scenarios(model, table, tmp_path / "out")
    assert not (tmp_path / "out" / "scenarios.tsv").exists()
    assert json.loads((tmp_path / "out" / "values.json").read_text())["states"] == ["A", "B"]


def test_names_of_underscores_alone():
    assert local_names(["_", "__", "___"]) == {"_": "_", "__": "v_", "___": "v__"}
