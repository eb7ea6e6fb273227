"""SBML written down briefly, for tests: elements as keyword arguments, formulas as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAMESPACES = {
    (1, 1): "http://www.sbml.org/sbml/level1",
    (1, 2): "http://www.sbml.org/sbml/level1",
    (2, 1): "http://www.sbml.org/sbml/level2",
    (2, 4): "http://www.sbml.org/sbml/level2/version4",
    (3, 1): "http://www.sbml.org/sbml/level3/version1/core",
    (3, 2): "http://www.sbml.org/sbml/level3/version2/core",
}


def math(formula: str) -> str:
    """Returns a formula of libsbml's Level 3 text as MathML."""
    import libsbml

    tree = libsbml.parseL3Formula(formula)
    assert tree is not None, libsbml.getLastParseL3Error()
    return libsbml.writeMathMLToString(tree).partition("?>")[2]


def element(tag: str, inside: str = "", **attributes: object) -> str:
    """Returns an element; True and False are written as XML has them, None leaves an attribute out."""
    text = {name: str(v).lower() if isinstance(v, bool) else str(v) for name, v in attributes.items() if v is not None}
    pairs = " ".join(f'{name}="{value}"' for name, value in text.items())
    return f"<{tag} {pairs}>{inside}</{tag}>"


def listed(tag: str, items: Sequence[str]) -> str:
    return f"<listOf{tag}>{''.join(items)}</listOf{tag}>" if items else ""


def compartment(id: str, size: float | None = 1, constant: bool = True, **more: object) -> str:
    return element("compartment", id=id, size=size, spatialDimensions=more.pop("dim", 3), constant=constant, **more)


def species(
    id: str,
    compartment: str = "C",
    *,
    amount: float | None = None,
    conc: float | None = None,
    is_amount: bool = False,
    boundary: bool = False,
    constant: bool = False,
    **more: object,
) -> str:
    return element(
        "species",
        id=id,
        compartment=compartment,
        initialAmount=amount,
        initialConcentration=conc,
        hasOnlySubstanceUnits=is_amount,
        boundaryCondition=boundary,
        constant=constant,
        **more,
    )


def parameter(id: str, value: float | str | None = 1, constant: bool = True, **more: object) -> str:
    return element("parameter", id=id, value=value, constant=constant, **more)


def assign(name: str, formula: str) -> str:
    return element("initialAssignment", math(formula), symbol=name)


def rule(name: str, formula: str) -> str:
    return element("assignmentRule", math(formula), variable=name)


def rate(name: str, formula: str) -> str:
    return element("rateRule", math(formula), variable=name)


def function(id: str, formula: str) -> str:
    return element("functionDefinition", math(formula), id=id)


def reference(name: str, stoichiometry: float | str | None = 1, id: str | None = None) -> str:
    return element("speciesReference", id=id, species=name, stoichiometry=stoichiometry, constant=True)


def reaction(
    id: str,
    reactants: Mapping[str, float] | Sequence[str],
    products: Mapping[str, float] | Sequence[str],
    law: str | None,
    local: Mapping[str, float] | None = None,
    **more: object,
) -> str:
    """- `reactants`, `products`: species and stoichiometry, or elements."""
    sides = [
        [reference(n, v) for n, v in side.items()] if isinstance(side, Mapping) else list(side)
        for side in (reactants, products)
    ]
    inside = listed("Reactants", sides[0]) + listed("Products", sides[1])
    if law is not None:
        local_list = [element("localParameter", id=n, value=v) for n, v in (local or {}).items()]
        inside += element("kineticLaw", math(law) + listed("LocalParameters", local_list))
    return element("reaction", inside, id=id, reversible=False, fast=more.pop("fast", False), **more)


def sbml(
    *,
    compartments: Sequence[str] = (),
    species: Sequence[str] = (),
    parameters: Sequence[str] = (),
    starts: Sequence[str] = (),
    rules: Sequence[str] = (),
    reactions: Sequence[str] = (),
    functions: Sequence[str] = (),
    units: Sequence[str] = (),
    events: Sequence[str] = (),
    constraints: Sequence[str] = (),
    level: int = 3,
    version: int = 1,
    head: str = "",
    **model: object,
) -> str:
    """- `head`: attributes of the outermost element beyond level and version."""
    inside = "".join(
        [
            listed("FunctionDefinitions", functions),
            listed("UnitDefinitions", units),
            listed("Compartments", compartments or [compartment("C")]),
            listed("Species", species),
            listed("Parameters", parameters),
            listed("InitialAssignments", starts),
            listed("Rules", rules),
            listed("Constraints", constraints),
            listed("Reactions", reactions),
            listed("Events", events),
        ]
    )
    start = f'<sbml xmlns="{NAMESPACES[level, version]}" level="{level}" version="{version}" {head}>'
    return f"{start}{element('model', inside, **{'id': 'm', **model})}</sbml>"
