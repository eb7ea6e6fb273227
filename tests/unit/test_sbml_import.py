"""SBML as formulas: what each construct means, and what is refused by name."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy as sp
from sbml_files import (
    assign,
    compartment,
    element,
    function,
    parameter,
    rate,
    reaction,
    reference,
    rule,
    sbml,
    species,
)
from sbml_files import math as mathml

from retrograd import optional
from retrograd.errors import RetrogradError
from retrograd.optional import need
from retrograd.sbml_import import read_antimony, read_sbml
from retrograd.symbolic import TIME, Symbolic, assembled, find_switches, in_order, left_null_space, symbol

need("the tests of the importer", "libsbml")

# Beside the checkout, where there are any.
CASES = Path(os.environ.get("RETROGRAD_CASES", Path(__file__).parents[3] / "shared" / "cases"))


def names(text: str) -> list[Any]:
    return [symbol(n) for n in text.split()]


def resolved(model: Symbolic) -> dict[str, sp.Expr]:
    return {name: model.resolve(expr) for name, expr in model.rates.items()}


def equal(found: sp.Expr, wanted: sp.Expr) -> bool:
    return sp.simplify(found - wanted) == 0


def refused(text: str) -> list[str]:
    """Returns the lines of the message that a text is refused with."""
    with pytest.raises(RetrogradError) as caught:
        read_sbml(text)
    first, *lines = str(caught.value).splitlines()
    assert first == "SBML text: cannot be imported:"
    return [line.strip() for line in lines]


# -- species and compartments ---------------------------------------------------------------------------

A, B, C, k = names("A B C k")


def two(**more: Any) -> str:
    """Returns A -> 2 B in a compartment C of size 2, with the law k A."""
    parts: dict[str, Any] = {
        "compartments": [compartment("C", 2)],
        "species": [species("A", conc=3), species("B", conc=0)],
        "parameters": [parameter("k", 0.7)],
        "reactions": [reaction("J", {"A": 1}, {"B": 2}, "k*A")],
    }
    return sbml(**{**parts, **more})


def test_a_reaction_changes_concentrations_by_amount_over_size():
    model = read_sbml(two())
    assert model.name == "m"
    assert list(model.states) == ["A", "B"]
    assert model.rates == {"A": -symbol("J") / C, "B": 2 * symbol("J") / C}
    assert model.expressions == {"J": k * A}
    assert model.initial == {"A": 3, "B": 0}
    assert model.parameters == {"k": "1", "C": "1"}
    assert model.values == {"k": 0.7, "C": 2.0}
    assert model.concentrations == {"A": "C", "B": "C"}
    assert model.invariants == [{"A": 2 * C, "B": C}]
    assert model.derived == {} and model.switches == [] and model.conditions == []


def test_a_species_in_substance_units_is_an_amount():
    both = [species("A", conc=3, is_amount=True), species("B", conc=0)]
    model = read_sbml(two(species=both))
    assert resolved(model) == {"A": -k * A, "B": 2 * k * A / C}
    assert model.initial == {"A": 3 * C, "B": 0}
    assert model.concentrations == {"B": "C"}
    assert model.invariants == [{"A": 2, "B": C}]


@pytest.mark.parametrize(
    ("given", "is_amount", "start"),
    [("amount", True, 3), ("conc", True, 3 * C), ("amount", False, 3 / C), ("conc", False, 3)],
)
def test_starts_in_either_unit(given: str, is_amount: bool, start: sp.Expr):
    model = read_sbml(two(species=[species("A", is_amount=is_amount, **{given: 3}), species("B", conc=0)]))
    assert model.initial["A"] == start


def test_species_in_a_point_are_amounts():
    model = read_sbml(
        two(compartments=[compartment("C", None, dim=0)], species=[species("A", amount=3), species("B", amount=0)])
    )
    assert resolved(model) == {"A": -k * A, "B": 2 * k * A}
    assert "C" not in model.parameters


def test_a_size_that_is_left_out_has_no_value():
    model = read_sbml(two(compartments=[compartment("C", None)]))
    assert "C" in model.parameters and "C" not in model.values


def test_a_size_that_nothing_needs_is_not_asked_for():
    both = [species("A", amount=3, is_amount=True), species("B", amount=0, is_amount=True)]
    model = read_sbml(two(compartments=[compartment("C", None)], species=both))
    assert model.parameters == {"k": "1"}
    assert model.invariants == [{"A": 2, "B": 1}]


def test_the_size_of_a_point_has_no_name():
    text = two(
        compartments=[compartment("C", None, dim=0)],
        species=[species("A", amount=3), species("B", amount=0)],
        reactions=[reaction("J", {"A": 1}, {}, "k*C")],
    )
    assert refused(text)[0] == "reaction J: names 'C', which the model does not have or which has no value"


def test_two_compartments():
    model = read_sbml(
        two(
            compartments=[compartment("C", 2), compartment("D", 0.5)],
            species=[species("A", conc=3), species("B", "D", conc=0)],
        )
    )
    assert resolved(model) == {"A": -k * A / C, "B": 2 * k * A / symbol("D")}
    assert model.invariants == [{"A": 2 * C, "B": symbol("D")}]


@pytest.mark.parametrize("flags", [{"boundary": True}, {"boundary": True, "constant": True}])
def test_fixed_species_are_parameters(flags: dict[str, bool]):
    model = read_sbml(two(species=[species("A", conc=3, **flags), species("B", conc=0)]))
    assert list(model.states) == ["B"]
    assert model.values["A"] == 3
    assert model.rates == {"B": 2 * symbol("J") / C}
    assert model.invariants == []


def test_a_fixed_species_in_the_other_unit_is_derived():
    model = read_sbml(two(species=[species("A", amount=3, boundary=True), species("B", conc=0)]))
    assert model.derived == {"A": 3 / C}
    assert "A" not in model.parameters


def test_a_species_without_reactions_stays():
    model = read_sbml(two(species=[species("A", conc=3), species("B", conc=0), species("D", conc=1)]))
    assert model.rates["D"] == 0
    assert {"D": C} in model.invariants


def test_concentrations_in_a_compartment_that_grows():
    s1 = species("S", conc=1, boundary=True, constant=True)
    s2 = species("T", amount=4, boundary=True)
    s3 = species("U", amount=4, boundary=True, is_amount=True)
    model = read_sbml(
        two(
            compartments=[compartment("C", 2, constant=False)],
            rules=[rate("C", "0.1*C + k")],
            species=[species("A", conc=3), species("B", amount=0, is_amount=True), s1, s2, s3],
        )
    )
    speed = k + C / 10
    rates = resolved(model)
    assert equal(rates["C"], 0.1 * C + k)
    assert equal(rates["A"], -k * A / C - A * (0.1 * C + k) / C)
    assert rates["B"] == 2 * k * A
    for name in ("S", "T"):
        assert equal(rates[name], -symbol(name) * speed.xreplace({sp.Rational(1, 10): sp.Float(0.1)}) / C)
    assert model.values["U"] == 4
    # What is kept holds for amounts alone there.
    assert model.invariants == []


def test_a_compartment_that_a_rule_sizes():
    q = symbol("q")
    model = read_sbml(
        two(
            compartments=[compartment("C", None, constant=False)],
            parameters=[parameter("k", 0.7), parameter("q", 1, constant=False)],
            rules=[rule("C", "2 + 0.3*time + q^2"), rate("q", "-k*q")],
        )
    )
    size = 2 + 0.3 * TIME + q**2
    assert equal(resolved(model)["A"], -k * A / size - A * (0.3 - 2 * k * q**2) / size)


def test_a_compartment_that_a_rule_keeps_constant():
    model = read_sbml(two(compartments=[compartment("C", None, constant=False)], rules=[rule("C", "3*k")]))
    assert resolved(model)["A"] == -A / 3
    assert model.invariants == [{"A": 2 * C, "B": C}]


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ("piecewise(1, time < 3, 2)", "a size that jumps or bends is not supported"),
        ("1 + A", "a size that depends on the concentration A is not supported"),
    ],
)
def test_sizes_that_are_refused(size: str, what: str):
    line, *_ = refused(two(compartments=[compartment("C", None, constant=False)], rules=[rule("C", size)]))
    assert line.startswith(f"assignment rule of C: {what}")


# -- stoichiometry --------------------------------------------------------------------------------------


def test_a_species_on_both_sides_and_twice():
    model = read_sbml(
        two(reactions=[reaction("J", {"A": 1}, [reference("A", 3), reference("B"), reference("B", 0.5)], "k*A")])
    )
    assert model.rates == {"A": 2 * symbol("J") / C, "B": 1.5 * symbol("J") / C}
    assert model.invariants == [{"A": 3 * C, "B": -4 * C}]


def test_conversion_factors():
    cf, cb = names("cf cb")
    model = read_sbml(
        two(
            species=[species("A", conc=3), species("B", amount=0, is_amount=True, conversionFactor="cb")],
            parameters=[parameter("k", 0.7), parameter("cf", 2), parameter("cb", 3)],
            conversionFactor="cf",
        )
    )
    assert resolved(model) == {"A": -cf * k * A / C, "B": 2 * cb * k * A}
    assert model.invariants == [{"A": 2 * C / cf, "B": 1 / cb}]


def test_stoichiometry_that_something_sets():
    n1, n3 = names("n1 n3")
    sides = [reference("A", None, "n1")], [reference("B", None, "n2"), reference("D", 0.5, "n3")]
    model = read_sbml(
        two(
            level=3,
            version=2,
            species=[species("A", conc=3), species("B", conc=0), species("D", conc=0)],
            starts=[assign("n1", "1 + k")],
            rules=[rule("n2", "A"), rate("n3", "0.25")],
            reactions=[reaction("J", *sides, "k*A", fast=None)],
        ).replace('constant="true"', 'constant="false"')
    )
    assert resolved(model) == {"n3": 0.25, "A": -n1 * k * A / C, "B": A * k * A / C, "D": n3 * k * A / C}
    assert model.initial["n3"] == 0.5
    assert model.derived == {"n1": 1 + k}
    # No combination is kept whatever these numbers are.
    assert model.invariants == []


def test_a_number_of_a_reaction_that_mathematics_names():
    sides = [reference("A", 2, "n")], {"B": 1}
    model = read_sbml(two(level=3, version=2, reactions=[reaction("J", *sides, "k*A^n", fast=None)]))
    assert resolved(model) == {"A": -2 * k * A**2 / C, "B": k * A**2 / C}
    assert "n" not in model.parameters


def level2(law: str = "k*A", inside: str = "", stoichiometry: str = "", rules: str = "", version: int = 4) -> str:
    namespace = "http://www.sbml.org/sbml/level2" + (f"/version{version}" if version > 1 else "")
    return f"""<sbml xmlns="{namespace}" level="2" version="{version}"><model id="m">
      <listOfCompartments><compartment id="C" size="2"/></listOfCompartments>
      <listOfSpecies><species id="A" compartment="C" initialAmount="3"/>
      <species id="B" compartment="C" initialConcentration="0"/></listOfSpecies>
      <listOfParameters><parameter id="k" value="0.7"/></listOfParameters>{rules}<listOfReactions>
      <reaction id="J" reversible="false">
      <listOfReactants><speciesReference species="A">{stoichiometry}</speciesReference></listOfReactants>
      <listOfProducts><speciesReference species="B"/></listOfProducts>
      <kineticLaw>{mathml(law)}{inside}</kineticLaw></reaction></listOfReactions></model></sbml>"""


@pytest.mark.parametrize("version", [1, 4])
def test_level_2(version: int):
    stoichiometry = f"<stoichiometryMath>{mathml('2*k')}</stoichiometryMath>"
    local = '<listOfParameters><parameter id="k" value="0.9"/></listOfParameters>'
    model = read_sbml(level2(inside=local, stoichiometry=stoichiometry, version=version))
    local_k = symbol("J_k")
    assert resolved(model) == {"A": -2 * k * local_k * A / C, "B": local_k * A / C}
    assert model.values == {"k": 0.7, "C": 2.0, "J_k": 0.9}
    assert model.time_unit == "s"
    assert model.states["A"] == "mol L-1"


def test_level_1():
    text = """<sbml xmlns="http://www.sbml.org/sbml/level1" level="1" version="2"><model name="m">
      <listOfCompartments><compartment name="C" volume="2"/><compartment name="D"/></listOfCompartments>
      <listOfSpecies><species name="A" compartment="C" initialAmount="3"/>
      <species name="B" compartment="D" initialAmount="1"/>
      <species name="R" compartment="D" initialAmount="1" boundaryCondition="true"/></listOfSpecies>
      <listOfParameters><parameter name="k" value="0.3"/><parameter name="q" value="0"/></listOfParameters>
      <listOfRules><parameterRule name="q" formula="log(k) + log10(k) + sqr(k)"/>
      <speciesConcentrationRule species="R" type="rate" formula="-0.5*R"/></listOfRules>
      <listOfReactions><reaction name="J" reversible="false">
      <listOfReactants><speciesReference species="A" stoichiometry="1" denominator="3"/></listOfReactants>
      <listOfProducts><speciesReference species="B"/></listOfProducts><kineticLaw formula="k*A*w">
      <listOfParameters><parameter name="w" value="0.9"/></listOfParameters></kineticLaw></reaction>
      </listOfReactions></model></sbml>"""
    model = read_sbml(text)
    w, R, D = names("J_w R D")
    rates = resolved(model)
    assert rates["A"] == -k * A * w / C / 3 and rates["B"] == k * A * w / D
    assert equal(rates["R"], -0.5 * R)
    # `log` of Level 1 is the natural one.
    assert equal(model.expressions["q"], sp.log(k) + sp.log(k) / sp.log(10) + k**2)
    # The default of a volume is 1, one of Level 1 alone.
    assert model.values["D"] == 1.0
    assert model.initial == {"A": 3 / C, "B": 1 / D, "R": 1 / D}
    assert model.invariants == [{"A": 3 * C, "B": D}]


# -- rules, starts, functions ---------------------------------------------------------------------------


def test_assignment_rules_come_in_order():
    r, s = names("r s")
    model = read_sbml(
        two(
            parameters=[parameter("k"), *(parameter(n, None, constant=False) for n in "rst")],
            rules=[rule("r", "s + 1"), rule("s", "2*t*J"), rule("t", "A")],
        )
    )
    assert list(model.expressions) == ["J", "t", "s", "r"]
    assert model.expressions["r"] == s + 1
    assert model.resolve(r) == 1 + 2 * A * k * A
    assert model.at_start(names=["r"])["r"] == 1 + 18 * k


def test_rules_of_species():
    R = symbol("R")
    model = read_sbml(
        two(
            species=[species("A", conc=3), species("B", conc=0), species("S"), species("R", conc=1)],
            rules=[rule("S", "A + 2*B"), rate("R", "S - R")],
        )
    )
    assert list(model.states) == ["A", "B", "R"]
    assert resolved(model)["R"] == A + 2 * B - R
    assert model.invariants == [{"A": 2 * C, "B": C}]


def test_starts_follow_what_a_condition_sets():
    model = read_sbml(
        two(
            compartments=[compartment("C", None)],
            species=[species("A"), species("B", amount=5)],
            parameters=[parameter("k"), parameter("q", None), parameter("z", None), parameter("w", 4)],
            starts=[assign("C", "2*w"), assign("A", "q/C"), assign("q", "B + time"), assign("z", "J")],
        )
    )
    w = symbol("w")
    start = model.at_start()
    assert start["C"] == 2 * w
    assert start["B"] == 5 / (2 * w)
    assert start["q"] == 5 / (2 * w)
    assert start["A"] == 5 / (4 * w**2)
    assert start["z"] == 5 * k / (4 * w**2)
    assert set(model.derived) == {"C", "q", "z"}
    assert model.initial["A"] == symbol("q") / C
    assert model.at_start({"w": sp.Integer(1)})["A"] == sp.Rational(5, 4)
    assert model.at_start({"C": sp.Integer(1)})["A"] == 5
    assert model.at_start({"B": symbol("free")})["A"] == symbol("free") / (2 * w)
    assert model.at_start(time=symbol("t0"))["q"] == 5 / (2 * w) + symbol("t0")
    assert model.at_start(keep_derived=True)["A"] == symbol("q") / C
    order = model.start_order
    assert order.index("C") < order.index("B") < order.index("q") < order.index("A") < order.index("z")


def test_an_override_is_not_overridden():
    model = read_sbml(
        two(parameters=[parameter("k"), parameter("q", None)], starts=[assign("q", "2*k"), assign("A", "q")])
    )
    # What an override names is left as it is, even where that name is overridden too.
    assert model.at_start({"k": symbol("q"), "q": k})["A"] == k


def test_a_start_at_time_0_of_what_depends_on_time():
    model = read_sbml(
        two(
            parameters=[parameter("k"), parameter("u", None, constant=False), parameter("q", None)],
            rules=[rule("u", "3 + time")],
            starts=[assign("q", "u")],
        )
    )
    assert model.at_start()["q"] == 3


def test_parameters_without_a_value_and_infinite_ones():
    model = read_sbml(two(parameters=[parameter("k", None), parameter("n", "NaN"), parameter("i", "INF")]))
    assert {"k", "n"} <= model.parameters.keys()
    assert not {"k", "n"} & model.values.keys()
    assert model.derived == {"i": sp.oo}


def test_local_parameters_get_names_of_their_own():
    local = {"k": 5.0, "p": 2.0}
    model = read_sbml(
        two(
            parameters=[parameter("k"), parameter("J_p", 9)],
            reactions=[reaction("J", {"A": 1}, {}, "k*p*A", local), reaction("L", {"B": 1}, {}, "k*p*B", local)],
        ).replace("J_p*", "J_p*")
    )
    assert model.values == {"k": 1.0, "J_p": 9.0, "C": 2.0, "J_k": 5.0, "J_p_": 2.0, "L_k": 5.0, "L_p": 2.0}
    assert model.expressions["J"] == symbol("J_k") * symbol("J_p_") * A


def test_a_local_parameter_without_a_finite_value():
    text = two(reactions=[reaction("J", {"A": 1}, {}, "k*A/(1 + A/big)", {"big": math.inf})]).replace('"inf"', '"INF"')
    assert read_sbml(text).derived == {"J_big": sp.oo}


def test_functions_are_put_in():
    functions = [function("sq", "lambda(x, x^2)"), function("mm", "lambda(S, V, K, V*sq(S)/(K + sq(S)))")]
    model = read_sbml(two(functions=functions, reactions=[reaction("J", {"A": 1}, {}, "mm(sq(A), k, 2)")]))
    assert model.expressions["J"] == k * A**4 / (2 + A**4)


def test_an_id_called_time_is_not_time():
    # In libsbml's text `time` is the csymbol; as an id it has to be put in afterwards.
    law = reaction("J", {"A": 1}, {}, "k*Tempus*time")
    text = two(parameters=[parameter("Tempus"), parameter("k")], reactions=[law]).replace("Tempus", "time")
    assert read_sbml(text).expressions["J"] == k * symbol("time") * TIME


# -- mathematics ----------------------------------------------------------------------------------------

OPERATORS = {
    "2 + 3*4 - 5/4": 2 + 12 - 1.25,
    "-a^2": -0.09,
    "a^-1.5": 0.3**-1.5,
    "root(3, a)": 0.3 ** (1 / 3),
    "sqrt(a)": math.sqrt(0.3),
    "exp(a) + ln(a)": math.exp(0.3) + math.log(0.3),
    "log10(a) + log(2, a)": math.log10(0.3) + math.log(0.3) / math.log(2),
    "abs(-a) + floor(2.7*a) + ceil(2.7*a) + floor(-a)": 0.3 + 0 + 1 - 1,
    "sin(a) + cos(a) + tan(a)": math.sin(0.3) + math.cos(0.3) + math.tan(0.3),
    "sec(a) + csc(a) + cot(a)": 1 / math.cos(0.3) + 1 / math.sin(0.3) + 1 / math.tan(0.3),
    "arcsin(a) + arccos(a) + arctan(a)": math.asin(0.3) + math.acos(0.3) + math.atan(0.3),
    "arcsec(1/a) + arccsc(1/a) + arccot(1/a)": math.acos(0.3) + math.asin(0.3) + math.atan(0.3),
    "sinh(a) + cosh(a) + tanh(a)": math.sinh(0.3) + math.cosh(0.3) + math.tanh(0.3),
    "sech(a) + csch(a) + coth(a)": 1 / math.cosh(0.3) + 1 / math.sinh(0.3) + 1 / math.tanh(0.3),
    "arcsinh(a) + arccosh(1 + a) + arctanh(a)": math.asinh(0.3) + math.acosh(1.3) + math.atanh(0.3),
    "arcsech(a) + arccsch(a) + arccoth(1/a)": math.acosh(1 / 0.3) + math.asinh(1 / 0.3) + math.atanh(0.3),
    "pi + exponentiale": math.pi + math.e,
    "avogadro": 6.02214179e23,
    "max(a, 0.1, 0.2) + min(a, 0.1, 0.2)": 0.4,
    "quotient(-7, 2) + rem(-7, 2)": -3 - 1,
    "piecewise(1, a > 1, 2, a > 0.2, 3)": 2,
    "piecewise(1, a > 1)": math.nan,
    "piecewise(1, a >= 0.3 && a <= 0.3 && !(a == 0.4) && a != 0.4, 0)": 1,
    "piecewise(1, a < 0 || a > 0.2, 0)": 1,
    "piecewise(1, xor(a > 0, a > 0.1), 0) + piecewise(1, implies(a > 1, false), 0)": 1,
    "1 + (a > 0.2) + true": 3,
    "piecewise(1, a, 0)": 1,
    "1.25e-7": 1.25e-7,
    "1e23": 1e23,
    "infinity": math.inf,
}


@pytest.mark.parametrize("formula", OPERATORS)
def test_operators(formula: str):
    model = read_sbml(
        sbml(
            level=3,
            version=2,
            parameters=[parameter("a", 0.3), parameter("y", 0, constant=False)],
            rules=[rate("y", formula)],
        )
    )
    found = model.rates["y"].xreplace({symbol("a"): sp.Float(0.3)})
    found = float(sp.N(found))
    assert found == pytest.approx(OPERATORS[formula], rel=1e-14, nan_ok=True)


def test_decimal_numbers_are_exact():
    text = mathml("1.25e-7")
    assert 'type="e-notation"' in text
    model = read_sbml(sbml(parameters=[parameter("y", 0, constant=False)], rules=[rate("y", "1.25e-7 + 0*y")]))
    assert float(model.rates["y"]) == 1.25e-7


@pytest.mark.parametrize(
    ("formula", "what"),
    [
        ("delay(A, 1)", "uses delay, which is not supported"),
        ("factorial(A)", "uses factorial, which is not supported"),
        ("rateOf(A)", "uses rateOf, which is not supported"),
        ("piecewise(1, sqrt(-1) > 0, 2)", "has no real value: Invalid comparison of non-real I"),
    ],
)
def test_mathematics_that_is_refused(formula: str, what: str):
    text = two(level=3, version=2, reactions=[reaction("J", {"A": 1}, {}, f"k*{formula}", fast=None)])
    # libsbml has something to say of the last but one too.
    assert refused(text)[0] == f"reaction J: {what}"


# -- refusals -------------------------------------------------------------------------------------------

EVENT = element(
    "event",
    element("trigger", mathml("time > 1"), initialValue=True, persistent=True)
    + element("listOfEventAssignments", element("eventAssignment", mathml("1"), variable="A")),
    id="e1",
    useValuesFromTriggerTime=True,
)
ALGEBRAIC = element("algebraicRule", mathml("A - B"))


def test_everything_that_is_refused_is_in_one_message(tmp_path: Path):
    path = tmp_path / "all.xml"
    path.write_text(
        two(
            parameters=[parameter("k"), parameter("q", None, constant=False)],
            events=[EVENT],
            rules=[ALGEBRAIC, rule("q", "delay(A, k)")],
            reactions=[reaction("J", {"A": 1}, {"B": 1}, "k*A", fast=True), reaction("L", {"A": 1}, {}, None)],
        )
    )
    with pytest.raises(RetrogradError) as caught:
        read_sbml(path)
    assert str(caught.value).splitlines() == [
        f"{path}: cannot be imported:",
        "  event e1: events are not supported",
        "  algebraic rule number 1: algebraic rules are not supported",
        "  reaction J: fast reactions are not supported",
        "  assignment rule of q: uses delay, which is not supported",
        "  reaction L: has no kinetic law",
        # What libsbml itself finds comes last.
        "  line 2: The model is overdetermined: The system of equations created from an SBML model must not be "
        "overdetermined.",
    ]


def test_an_event_without_an_id():
    assert refused(two(events=[EVENT.replace('id="e1"', "")])) == ["event number 1: events are not supported"]


@pytest.mark.parametrize(
    ("package", "required"),
    [("fbc", False), ("qual", True), ("comp", True), ("multi", True)],
)
def test_packages(package: str, required: bool):
    uri = f"http://www.sbml.org/sbml/level3/version1/{package}/version1"
    head = f'xmlns:{package}="{uri}" {package}:required="{str(required).lower()}"'
    text = two(head=head)
    if package == "fbc":
        # Charges alone are no problem of fluxes.
        text = text.replace('<species id="A"', '<species fbc:charge="-1" id="A"')
        assert read_sbml(text).rates == read_sbml(two()).rates
        flux = '<fbc:fluxBound fbc:id="b" fbc:reaction="J" fbc:operation="lessEqual" fbc:value="1"/>'
        bounds = f"<fbc:listOfFluxBounds>{flux}</fbc:listOfFluxBounds></model>"
        assert "package fbc: is not supported" in refused(text.replace("</model>", bounds))
    elif package == "comp":
        # Declared, but of no use in the file.
        assert read_sbml(text).rates == read_sbml(two()).rates
        part = '<comp:listOfSubmodels><comp:submodel comp:id="s" comp:modelRef="q"/></comp:listOfSubmodels>'
        definition = '<comp:listOfModelDefinitions><comp:modelDefinition id="q"/></comp:listOfModelDefinitions>'
        text = text.replace("</model>", f"{part}</model>{definition}")
        assert "package comp: is not supported" in refused(text)
    else:
        assert f"package {package}: is not supported" in refused(text)


def test_random_functions_are_refused_by_name():
    uri = "http://www.sbml.org/sbml/level3/version1/distrib/version1"
    head = f'xmlns:distrib="{uri}" distrib:required="true"'
    assert read_sbml(two(head=head)).rates == read_sbml(two()).rates
    symbol = (
        '<csymbol encoding="text" definitionURL="http://www.sbml.org/sbml/symbols/distrib/normal"> normal </csymbol>'
    )
    law = f"<apply><plus/><ci> k </ci><apply>{symbol}<cn> 1 </cn><cn> 2 </cn></apply></apply>"
    text = two(head=head, reactions=[reaction("J", {"A": 1}, {}, "k + A")])
    start, end = text.index("<apply>"), text.rindex("</math>")
    assert refused(text[:start] + law + text[end:])[0] == "reaction J: uses normal, which is not supported"


def test_a_package_that_libsbml_does_not_know():
    head = 'xmlns:arrays="http://www.sbml.org/sbml/level3/version1/arrays/version1" arrays:required="true"'
    (line,) = refused(two(head=head))
    assert "arrays" in line


def test_a_harmless_package():
    uri = "http://www.sbml.org/sbml/level3/version1/groups/version1"
    assert read_sbml(two(head=f'xmlns:groups="{uri}" groups:required="false"')).rates


def test_circles():
    parameters = [parameter("k"), parameter("q", None, constant=False), parameter("r", None, constant=False)]
    line, *_ = refused(two(parameters=parameters, rules=[rule("q", "r + k"), rule("r", "2*q")]))
    assert line == "assignment rules and reactions depend on each other: q -> r -> q"
    functions = [function("f", "lambda(x, g(x))"), function("g", "lambda(x, f(x))")]
    line, *_ = refused(two(functions=functions, reactions=[reaction("J", {"A": 1}, {}, "f(A)")]))
    assert line == "reaction J: calls the function 'f', which calls itself"


def test_names_that_nothing_has():
    line, *_ = refused(two(reactions=[reaction("J", {"A": 1}, {}, "k*A*nothing")]))
    assert line == "reaction J: names 'nothing', which the model does not have or which has no value"
    line, *_ = refused(two(reactions=[reaction("J", {"A": 1}, {}, "f(A)")]))
    assert line == "reaction J: calls the function 'f', which the model does not define"


def test_a_reaction_without_a_number():
    text = two(reactions=[reaction("J", [reference("A", None)], {"B": 1}, "k*A")])
    assert refused(text) == ["reaction J: A has no stoichiometry"]


def test_a_constraint_changes_nothing():
    constraint = element("constraint", mathml("A > 0"))
    assert read_sbml(two(constraints=[constraint])).rates == read_sbml(two()).rates


def test_no_sbml(tmp_path: Path):
    (first, *_) = refused("<html></html>")
    assert first.startswith("line ")
    path = tmp_path / "m.xml"
    with pytest.raises(RetrogradError, match=r"m.xml: cannot be read \(No such file or directory\)"):
        read_sbml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RetrogradError, match="found a byte that is not UTF-8"):
        read_sbml(path)
    path.write_text("<sbml")
    with pytest.raises(RetrogradError, match="cannot be imported"):
        read_sbml(path)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    text = two()
    monkeypatch.setitem(sys.modules, "libsbml", None)
    with pytest.raises(RetrogradError) as caught:
        read_sbml(text)
    assert str(caught.value) == (
        "A model in SBML needs python-libsbml, which is not installed: `make run EXTRAS=petab CONFIG=STUDY.yaml` "
        "installs the extra and runs that study, pip install '.[petab]' installs it alone."
    )
    monkeypatch.setitem(sys.modules, "antimony", None)
    with pytest.raises(RetrogradError, match="X needs antimony and python-libsbml, which are not installed"):
        optional.need("X", "antimony", "libsbml")


# -- units ----------------------------------------------------------------------------------------------


def test_units():
    unit = lambda **of: element("unit", **{"scale": 0, "multiplier": 1, "exponent": 1, **of})
    units = [
        element("unitDefinition", element("listOfUnits", unit(kind="second", multiplier=60)), id="minute"),
        element("unitDefinition", element("listOfUnits", unit(kind="mole", scale=-3)), id="mmol"),
        element(
            "unitDefinition",
            element("listOfUnits", unit(kind="metre", exponent=-2) + unit(kind="gram", scale=3, exponent=0.5)),
            id="odd",
        ),
        element(
            "unitDefinition", element("listOfUnits", unit(kind="item") + unit(kind="second", exponent=-1)), id="rate"
        ),
    ]
    model = read_sbml(
        two(
            units=units,
            compartments=[compartment("C", 2, units="litre")],
            species=[
                species("A", conc=3, substanceUnits="mmol"),
                species("B", conc=0, is_amount=True, substanceUnits="item"),
            ],
            parameters=[parameter("k", units="rate"), parameter("o", units="odd"), parameter("u")],
            timeUnits="minute",
        )
    )
    assert model.time_unit == "60 s"
    assert model.states == {"A": "0.001 mol L-1", "B": "1"}
    assert model.parameters == {"k": "s-1", "o": "1", "u": "1", "C": "L"}
    assert read_sbml(two(timeUnits="second")).time_unit == "s"
    assert read_sbml(two(timeUnits="dimensionless")).time_unit == "1"
    assert read_sbml(two()).time_unit == "1"


# -- switches, circles, null spaces ---------------------------------------------------------------------


def test_switches():
    text = (
        "piecewise(1, time >= q && time < 2*q + 3, 0) + max(0, 5 - 2*u) + piecewise(1, A > 2 || k > 3, 0)"
        " + floor(time) + abs(A*time - 1)"
    )
    model = read_sbml(
        two(
            level=3,
            version=2,
            parameters=[parameter("k"), parameter("q"), parameter("u", None, constant=False)],
            rules=[rule("u", "3*time")],
            reactions=[reaction("J", {"A": 1}, {}, text, fast=None)],
        )
    )
    q = symbol("q")
    assert set(model.switches) == {q, 2 * q + 3, sp.Rational(5, 6)}
    assert set(model.conditions) == {A - 2, sp.floor(TIME), A * TIME - 1}


def test_a_difference_and_its_opposite_are_one_condition():
    found = find_switches([sp.Piecewise((1, A > B), (0, True)), sp.Piecewise((2, B > A), (0, True))], ["A", "B"])
    assert found == ([], [A - B])


def test_order_and_circles():
    formulas: dict[str, sp.Basic] = {"A": B + 1, "B": C + k, "k": sp.Integer(1)}
    assert in_order(formulas, "rules") == ["k", "B", "A"]
    with pytest.raises(RetrogradError, match="rules depend on each other: A -> B -> A"):
        in_order({"A": B, "B": A}, "rules")
    long: dict[str, sp.Basic] = {f"v{i}": symbol(f"v{i + 1}") for i in range(5000)}
    assert in_order(long, "rules")[0] == "v4999"


def test_null_spaces():
    assert left_null_space(sp.Matrix([[-1, 0], [2, sp.Rational(1, 3)], [0, 5]])) == [[30, 15, -1]]
    assert left_null_space(sp.zeros(2, 0)) == [[1, 0], [0, 1]]
    assert left_null_space(sp.Matrix([[1, 0], [0, 1]])) == []


def test_a_parameter_becomes_an_expression():
    model = read_sbml(
        two(
            parameters=[parameter("k"), parameter("q", None)],
            starts=[assign("q", "2*k")],
            reactions=[reaction("J", {"A": 1}, {"B": 2}, "q*A")],
        )
    )
    net = sp.Function("net")
    parameters = {name: unit for name, unit in model.parameters.items() if name != "k"}
    moved = assembled(replace(model, parameters=parameters, expressions={**model.expressions, "k": net(A, TIME)}))
    assert moved.at_start()["q"] == 2 * net(3, 0)
    assert moved.start_order.index("A") < moved.start_order.index("k") < moved.start_order.index("q")
    switched = assembled(replace(model, expressions={**model.expressions, "J": sp.Max(TIME - k, 0) * A}))
    assert switched.switches == [k]


# -- Antimony -------------------------------------------------------------------------------------------


def test_antimony(tmp_path: Path):
    pytest.importorskip("antimony", reason="the extra petab is not installed: no Antimony")
    path = tmp_path / "m.ant"
    path.write_text(
        "model two\n compartment C = 2\n species A in C = 3, B in C = 0\n k = 0.7\n J: A -> 2 B; k*A\nend\n"
    )
    model = read_antimony(path)
    assert model.name == "two"
    assert resolved(model) == resolved(read_sbml(two()))
    path.write_text("model two\n J: A -> 2 B; k*A*(\nend\n")
    with pytest.raises(RetrogradError, match=r"m.ant: found no valid Antimony: .*line 2"):
        read_antimony(path)
    path.write_text("model two\n A = 1; J: A -> ; A; E: at (time > 2): A = 3\nend\n")
    with pytest.raises(RetrogradError, match="event E: events are not supported"):
        read_antimony(path)
    with pytest.raises(RetrogradError, match="No such file"):
        read_antimony(tmp_path / "none.ant")


# -- files of others ------------------------------------------------------------------------------------

MODELS = [
    *sorted(CASES.glob("petab_v2/*/_model.xml")),
    *sorted(CASES.glob("sciml/*/petab/lv.xml")),
    *sorted(CASES.glob("bench/*/model*.xml")),
]


@pytest.mark.skipif(not MODELS, reason=f"{CASES} has no models")
@pytest.mark.parametrize("path", MODELS, ids=lambda p: str(p.relative_to(CASES)))
def test_rates_are_those_of_the_laws_as_written(path: Path):
    """Against libsbml's own text of the kinetic laws, in numbers: nothing of sympy is in it."""
    import libsbml

    model = read_sbml(path)
    source = libsbml.readSBML(str(path)).getModel()
    rng = np.random.default_rng(1)
    at: dict[str, Any] = {
        name: float(v) for name, v in zip(model.states, rng.uniform(0.5, 2, len(model.states)), strict=True)
    }
    at |= model.values | {"exp": math.exp, "pow": pow, "time": 0.7, "t": 0.7, "times": lambda x: x}
    run = lambda tree: eval(libsbml.formulaToL3String(tree).replace("^", "**"), {}, at)
    for i in range(source.getNumRules()):
        at[source.getRule(i).getVariable()] = run(source.getRule(i).getMath())
    wanted = dict.fromkeys(model.states, 0.0)
    for i in range(source.getNumReactions()):
        reaction = source.getReaction(i)
        law = run(reaction.getKineticLaw().getMath())
        for sign, side in ((-1, reaction.getListOfReactants()), (1, reaction.getListOfProducts())):
            for j in range(side.size()):
                item = source.getSpecies(side.get(j).getSpecies())
                size = 1.0 if item.getHasOnlySubstanceUnits() else model.values[item.getCompartment()]
                wanted[item.getId()] += sign * side.get(j).getStoichiometry() * law / size
    values = {symbol(n): sp.Float(v) for n, v in at.items() if isinstance(v, float)} | {TIME: sp.Float(0.7)}
    for name, expr in resolved(model).items():
        assert float(expr.xreplace(values)) == pytest.approx(wanted[name], rel=1e-12, abs=1e-12)


def test_the_same_in_another_process():
    text = two(
        level=3,
        version=2,
        functions=[function("p", "lambda(A, B, q, r, z, a, t, piecewise(a, A > q && B < r || t > z, 2))")],
        parameters=[parameter(n) for n in ("k", "q", "r", "zeta", "alpha")],
        reactions=[
            reaction("J", {"A": 1}, {"B": 2}, "k*A*q + max(r, A, B, zeta)*p(A, B, q, r, zeta, alpha, time)", fast=None),
            reaction("L", {"B": 2}, {"A": 1}, "k*B/(q + r + zeta + alpha*B)", fast=None),
        ],
    )
    code = (
        "import sys; from retrograd.sbml_import import read_sbml; from retrograd.model_source import plugin_source;"
        "m = read_sbml(sys.stdin.read()); print(repr(sorted(vars(m).items()))); print(plugin_source(m))"
    )
    out = []
    for seed in ("1", "2", "77"):
        path = str(Path(__file__).parents[2] / "scripts")
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": path, "PATH": ""},
        )
        out.append(run.stdout)
    assert out[0] == out[1] == out[2]
    assert json.dumps(out[0])
