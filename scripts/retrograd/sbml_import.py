"""SBML and Antimony as a `Symbolic`.

What is not supported is refused by name, all of a file in one message; nothing of it is approximated. Files of Level 1
to 3 are read as they are: libsbml's conversion between levels drops what the other level has no place for.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.parsers import expat

import sympy as sp

from retrograd.errors import RetrogradError
from retrograd.messages import capped
from retrograd.optional import need
from retrograd.symbolic import TIME, Symbolic, assembled, left_null_space, names_in, symbol

# Packages without a bearing on what is computed. l3v2extendedmath brings mathematics that is read anyway, distrib
# uncertainties, which are descriptions, and random functions, which are refused where mathematics calls them.
_HARMLESS = {"layout", "render", "groups", "l3v2extendedmath", "distrib"}

# Elements within elements: a formula of a hundred operations in a row is a hundred deep in some files.
DEEPEST = 1000


def read_sbml(source: str | os.PathLike[str]) -> Symbolic:
    """Returns the model of an SBML file, or of SBML text, which begins with `<`.

    Raises RetrogradError with everything that cannot be imported.
    """
    if isinstance(source, str) and source.lstrip().startswith("<"):
        return read_text(source, "SBML text", "model")
    path = Path(source)
    # As bytes would be better, but libsbml takes text only, and reads a declaration of another encoding from it.
    return read_text(_decoded(path, "utf-8-sig", "SBML"), str(path), path.stem)


def _decoded(path: str | os.PathLike[str], encoding: str, kind: str) -> str:
    try:
        return Path(path).read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise RetrogradError(
            f"{path}: found a byte that is not UTF-8 ({error.reason}), wanted {kind} in UTF-8."
        ) from error
    except OSError as error:
        raise RetrogradError(f"{path}: cannot be read ({error.strerror}).") from error


def read_antimony(path: str | os.PathLike[str]) -> Symbolic:
    """Returns the model of an Antimony file: that of the SBML which Antimony makes of it."""
    return read_text(antimony_to_sbml(path), str(path), Path(path).stem)


def antimony_to_sbml(path: str | os.PathLike[str]) -> str:
    """Returns the SBML of an Antimony file's main model, with its submodels put in."""
    need("A model in Antimony", "antimony")
    import antimony

    # What antimony quotes of other text its own binding cannot give back.
    _decoded(path, "utf-8", "Antimony")
    antimony.clearPreviousLoads()
    try:
        if antimony.loadAntimonyFile(str(path)) < 0:
            raise RetrogradError(f"{path}: found no valid Antimony: {_one_line(antimony.getLastError() or '')}")
        return antimony.getSBMLString(antimony.getMainModuleName() or "") or ""
    finally:
        antimony.clearPreviousLoads()


def read_text(text: str, where: str, name: str) -> Symbolic:
    """Returns the model of SBML text.

    - `where`: what messages call it.
    - `name`: of the model where the text gives it none.
    """
    need("A model in SBML", "libsbml")
    import libsbml as sbml

    check_xml(text, where)
    document = sbml.readSBMLFromString(text)
    invalid = _errors(sbml, document)
    model = document.getModel()
    problems = _packages(document)
    if not invalid and model is None:
        invalid = ["found no model"]
    if not invalid:
        # Units are for people, and terms of an ontology too: neither changes a number.
        for category in (
            sbml.LIBSBML_CAT_UNITS_CONSISTENCY,
            sbml.LIBSBML_CAT_SBO_CONSISTENCY,
            sbml.LIBSBML_CAT_MODELING_PRACTICE,
        ):
            document.setConsistencyChecks(category, False)
        document.checkConsistency()
        invalid = _errors(sbml, document)
        try:
            reader = _Reader(model, name)
            problems += reader.problems
            if not problems and not invalid:
                return reader.symbolic()
        except TypeError as error:
            # What sympy says of numbers that are not real where it compares them: formulas were put into each other.
            problems.append(f"found a formula that has no real value: {error}")
        except RecursionError:
            problems.append("found a formula that is nested too deeply, wanted one in fewer steps")
        except Exception:
            # Of a file that is not valid nothing can be relied on: what libsbml says of it has to do.
            if not invalid:
                raise
    lines = capped(list(dict.fromkeys([*problems, *invalid])))
    raise RetrogradError("\n  ".join([f"{where}: cannot be imported:", *lines]))


def check_xml(text: str, where: str) -> None:
    """Raises RetrogradError for text that no reader of SBML should see.

    A document type can define entities that grow without end or name other files, and SBML has none. Of elements that
    are nested without end libsbml runs out of stack, which ends this process without a word.
    """
    depth = 0

    def start(name: str, attributes: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise RetrogradError(f"{where}: found elements nested more than {DEEPEST} deep, wanted fewer.")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: Any) -> None:
        raise RetrogradError(f"{where}: found a document type (<!DOCTYPE), wanted SBML, which has none: take it out.")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, doctype
    try:
        parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise RetrogradError(
            f"{where}: cannot be imported:\n  line {error.lineno}: found no well-formed XML: {reason}"
        ) from error


def _errors(sbml: Any, document: Any) -> list[str]:
    out = []
    for i in range(document.getNumErrors()):
        error = document.getError(i)
        # Species that a law names without declaring them as modifiers: what is meant is as clear.
        if error.getSeverity() >= sbml.LIBSBML_SEV_ERROR and error.getErrorId() != sbml.UndeclaredSpeciesRef:
            # First what the specification says, then a reference to it, then what is wrong here.
            rule, _, here = error.getMessage().partition("Reference: ")
            here = here.partition("\n")[2]
            out.append(f"line {error.getLine()}: {error.getShortMessage()}: {_one_line(here) or _one_line(rule)}")
    return out


def _packages(document: Any) -> list[str]:
    """Returns a line for each package that is not supported."""
    names = [document.getPlugin(i).getPackageName() for i in range(document.getNumPlugins())]
    unused = {"comp": _is_flat, "fbc": _has_no_fluxes}
    bad = [name for name in names if name not in _HARMLESS and not (name in unused and unused[name](document))]
    return [f"package {name}: is not supported" for name in bad]


def _is_flat(document: Any) -> bool:
    """Tells whether a file that declares the package comp makes no use of other models."""
    declared, model = document.getPlugin("comp"), document.getModel()
    part = None if model is None else model.getPlugin("comp")
    others = declared.getNumModelDefinitions() + declared.getNumExternalModelDefinitions()
    return not others and (part is None or not part.getNumSubmodels())


def _has_no_fluxes(document: Any) -> bool:
    """Tells whether a file uses the package fbc for charges and formulas of molecules alone, not to find fluxes."""
    model = document.getModel()
    part = None if model is None else model.getPlugin("fbc")
    if part is None:
        return True
    bounded = (r.getPlugin("fbc") for r in _listed(model, "Reactions"))
    bounds = any(p is not None and (p.isSetLowerFluxBound() or p.isSetUpperFluxBound()) for p in bounded)
    return not (part.getNumObjectives() or part.getNumFluxBounds() or bounds)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:397]}..."


def _listed(parent: Any, what: str) -> list[Any]:
    """Returns the children of one kind, such as `Species` or `Reactions`; libsbml's plurals are as irregular."""
    singular = what if what == "Species" else what.removesuffix("s")
    count = getattr(parent, f"getNum{what}")()
    return [getattr(parent, f"get{singular}")(i) for i in range(count)]


class _Reader:
    """One model's parts, and what is wrong with them."""

    def __init__(self, model: Any, name: str) -> None:
        # Only here: without the library, this module is to be importable still.
        from retrograd import sbml_math, sbml_units

        self.math_module, self.units = sbml_math, sbml_units.Units(model)
        self.model, self.level = model, model.getLevel()
        self.name = model.getId() or name
        self.problems: list[str] = []
        self.states: dict[str, str] = {}
        self.rates: dict[str, sp.Expr] = {}
        self.initial: dict[str, sp.Expr] = {}
        self.parameters: dict[str, str] = {}
        self.values: dict[str, float] = {}
        self.derived: dict[str, sp.Expr] = {}
        self.expressions: dict[str, sp.Expr] = {}
        self.concentrations: dict[str, str] = {}
        self.reacting: list[str] = []  # species that reactions change
        self._refuse_constructs()
        self._read_names()
        self._read_rules()
        self._read_compartments_and_parameters()
        self._read_reactions()
        self._read_species()
        if not self.problems:
            self._order()
        if not self.problems:
            self._rates_of_species()

    def complain(self, text: str) -> None:
        self.problems.append(text)

    # -- what is there ------------------------------------------------------------------------------

    def _refuse_constructs(self) -> None:
        for i, event in enumerate(_listed(self.model, "Events")):
            self.complain(f"event {event.getId() or f'number {i + 1}'}: events are not supported")
        for i, rule in enumerate(_listed(self.model, "Rules")):
            if rule.isAlgebraic():
                self.complain(f"algebraic rule number {i + 1}: algebraic rules are not supported")
        for reaction in _listed(self.model, "Reactions"):
            if reaction.isSetFast() and reaction.getFast():
                self.complain(f"reaction {reaction.getId()}: fast reactions are not supported")

    def _read_names(self) -> None:
        model = self.model
        self.compartments = {c.getId(): c for c in _listed(model, "Compartments")}
        self.species = {s.getId(): s for s in _listed(model, "Species")}
        self.reactions = {r.getId(): r for r in _listed(model, "Reactions")}
        self.globals = {p.getId(): p for p in _listed(model, "Parameters")}
        self.rules = {r.getVariable(): r for r in _listed(model, "Rules") if not r.isAlgebraic()}
        starts = _listed(model, "InitialAssignments")
        self.assigned = {a.getSymbol(): a for a in starts}
        # References to species are named things only where something sets them; else they are numbers.
        references = [
            r for v in self.reactions.values() for r in [*_listed(v, "Reactants"), *_listed(v, "Products")] if r.getId()
        ]
        self.references = {r.getId(): r for r in references if r.getId() in {*self.rules, *self.assigned}}
        constants = {
            r.getId(): self.math_module.number(r.getStoichiometry())
            for r in references
            if r.getId() not in self.references and r.isSetStoichiometry()
        }
        sized = {name for name, c in self.compartments.items() if self._is_sized(name, c)}
        known = {*sized, *self.species, *self.reactions, *self.globals, *self.references}
        functions = {f.getId(): f.getMath() for f in _listed(model, "FunctionDefinitions") if f.isSetMath()}
        self.translate = self.math_module.Translator(known, functions, constants)
        self.known = known

    def math(self, what: str, tree: Any, local: dict[str, sp.Expr] | None = None) -> sp.Expr:
        """Returns mathematics of the file, NaN where it is refused, which is recorded.

        - `what`: whose it is.
        """
        try:
            return self.translate(tree, local)
        except self.math_module.Refused as refused:
            self.complain(f"{what}: {refused}")
            return sp.nan

    # -- rules and constants ------------------------------------------------------------------------

    def _read_rules(self) -> None:
        self.rate_rules: dict[str, sp.Expr] = {}
        for name, rule in self.rules.items():
            kind = "rate" if rule.isRate() else "assignment"
            expr = self.math(f"{kind} rule of {name}", rule.getMath())
            (self.rate_rules if rule.isRate() else self.expressions)[name] = expr
        self.starts = {n: self.math(f"initial assignment of {n}", a.getMath()) for n, a in self.assigned.items()}

    def _place(self, name: str, unit: str, value: float | sp.Expr | None) -> None:
        """Sorts a name without reactions: a state, an expression, a derived constant or a parameter.

        - `value`: of the file, None where it has none.
        """
        if name in self.expressions:
            return
        start = self.starts.get(name, value)
        if isinstance(start, float) and not math.isfinite(start):
            # NaN says that there is no value; infinity is one, but none that a table of numbers can have.
            start = None if math.isnan(start) else self.math_module.number(start)
        if name in self.rate_rules:
            self._add_state(name, unit, self.rate_rules[name], start)
        elif isinstance(start, sp.Expr):
            self.derived[name] = start
        else:
            self.parameters[name] = unit
            if start is not None:
                self.values[name] = start

    def _add_state(self, name: str, unit: str, rate: sp.Expr, start: float | sp.Expr | None) -> None:
        self.states[name] = unit
        self.rates[name] = rate
        if start is not None:
            self.initial[name] = start if isinstance(start, sp.Expr) else self.math_module.number(start)

    def _read_compartments_and_parameters(self) -> None:
        for name, parameter in self.globals.items():
            self._place(name, self.units.parameter(parameter), parameter.getValue() if parameter.isSetValue() else None)
        for name, c in self.compartments.items():
            if self._is_sized(name, c):
                # The default of Level 1 is 1.
                value = c.getSize() if c.isSetSize() or self.level == 1 else None
                self._place(name, self.units.compartment(c), value)
        for name, reference in self.references.items():
            value = reference.getStoichiometry() if reference.isSetStoichiometry() else None
            self._place(name, "1", value)

    def _is_sized(self, name: str, compartment: Any) -> bool:
        """Tells whether a compartment has a size, known or not; a point has one only where the file gives it one."""
        return compartment.isSetSize() or self._has_size(compartment) or name in {*self.rules, *self.assigned}

    def _has_size(self, compartment: Any) -> bool:
        return compartment.getSpatialDimensionsAsDouble() != 0

    # -- reactions ------------------------------------------------------------------------------------

    def _read_reactions(self) -> None:
        self.flux: dict[str, sp.Expr] = {}  # of each species, in units of extent
        self.numbers: dict[tuple[str, str, sp.Expr], sp.Rational] = {}  # the stoichiometric matrix, see `_invariants`
        taken = set(self.known) | {p.getId() for r in self.reactions.values() for p in self._local(r)}
        for name, reaction in self.reactions.items():
            law = reaction.getKineticLaw()
            if law is None or not law.isSetMath():
                self.complain(f"reaction {name}: has no kinetic law")
                continue
            local: dict[str, sp.Expr] = {}
            for parameter in self._local(reaction):
                new = f"{name}_{parameter.getId()}"
                while new in taken:
                    new += "_"
                taken.add(new)
                local[parameter.getId()] = symbol(new)
                value = parameter.getValue() if parameter.isSetValue() else None
                self._place(new, self.units.parameter(parameter), value)
            self.expressions[name] = self.math(f"reaction {name}", law.getMath(), local)
            for sign, side in ((-1, "Reactants"), (1, "Products")):
                for reference in _listed(reaction, side):
                    self._participate(name, reference, sign)

    def _local(self, reaction: Any) -> list[Any]:
        law = reaction.getKineticLaw()
        if law is None:
            return []
        return _listed(law, "LocalParameters") if self.level > 2 else _listed(law, "Parameters")

    def _participate(self, reaction: str, reference: Any, sign: int) -> None:
        species = reference.getSpecies()
        exact: Any = sp.Rational(sign)
        factor: Any
        if reference.getId() in self.references:
            factor = symbol(reference.getId())
        elif reference.isSetStoichiometryMath():
            factor = self.math(f"stoichiometry of {species} in {reaction}", reference.getStoichiometryMath().getMath())
        elif self.level > 2 and not reference.isSetStoichiometry():
            self.complain(f"reaction {reaction}: {species} has no stoichiometry")
            return
        else:
            number = reference.getStoichiometry()
            exact *= sp.Rational(repr(number)) / (reference.getDenominator() if self.level == 1 else 1)
            # One tenth is written 0.1, but one third of Level 1 is a ratio.
            factor = exact * sign if exact.q == 1 or self.level == 1 else sp.Float(number)
        if factor.is_Number:
            column = (species, reaction, sp.S.One)
        else:
            column, exact = (species, reaction, factor), sp.Rational(sign)
        self.numbers[column] = self.numbers.get(column, sp.S.Zero) + exact
        self.flux[species] = self.flux.get(species, sp.S.Zero) + sign * factor * symbol(reaction)

    # -- species --------------------------------------------------------------------------------------

    def _read_species(self) -> None:
        for name, species in self.species.items():
            where = species.getCompartment()
            if where not in self.compartments:
                self.complain(f"species {name}: its compartment {where!r} is not defined")
                continue
            is_amount = species.getHasOnlySubstanceUnits() or not self._has_size(self.compartments[where])
            unit = self.units.species(species, self.compartments[where], is_amount)
            if not is_amount:
                self.concentrations[name] = where
            value: float | sp.Expr | None = None
            if species.isSetInitialAmount():
                value = species.getInitialAmount()
                value = value if is_amount else self.math_module.number(value) / symbol(where)
            elif species.isSetInitialConcentration():
                value = species.getInitialConcentration()
                value = self.math_module.number(value) * symbol(where) if is_amount else value
            fixed = species.getBoundaryCondition() or species.getConstant()
            if fixed and not is_amount and name not in self.rules and self._may_vary(where):
                # Its amount is fixed, its concentration is not.
                self._add_state(name, unit, sp.S.Zero, self.starts.get(name, value))
            elif fixed or name in self.rules:
                self._place(name, unit, value)
            else:
                self.reacting.append(name)
                self._add_state(name, unit, sp.S.Zero, self.starts.get(name, value))

    def _may_vary(self, compartment: str) -> bool:
        return compartment in self.rules

    def _factor(self, name: str) -> sp.Expr:
        """Returns what turns extent of reactions into amount of a species."""
        species = self.species[name]
        for holder in (species, self.model):
            if self.level > 2 and holder.isSetConversionFactor():
                return symbol(holder.getConversionFactor())
        return sp.S.One

    # -- together ---------------------------------------------------------------------------------------

    def _order(self) -> None:
        try:
            self.draft = assembled(
                Symbolic(
                    self.name,
                    self.units.time(),
                    self.states,
                    self.rates,
                    self.initial,
                    self.parameters,
                    self.values,
                    self.derived,
                    self.expressions,
                    concentrations=self.concentrations,
                )
            )
        except RetrogradError as error:
            self.complain(str(error))

    def _rates_of_species(self) -> None:
        resolved = self.draft.resolve
        speed: dict[str, sp.Expr] = {}  # of compartments that vary, in terms of rates that need them not
        for c in sorted({self.concentrations[s] for s in self._by_reactions() if s in self.concentrations}):
            if c in self.rate_rules:
                speed[c] = self.rate_rules[c]
            elif c in self.expressions:
                size = resolved(self.expressions[c])
                if (names_in(size) & self.states.keys()) or TIME in size.free_symbols:
                    speed[c] = self._speed(c, size)
        for name in self._by_reactions():
            amount = self._factor(name) * self.flux.get(name, sp.S.Zero) if name in self.reacting else sp.S.Zero
            c = self.concentrations.get(name)
            rate = amount if c is None else amount / symbol(c)
            if c in speed:
                rate -= symbol(name) * speed[c] / symbol(c)
            self.rates[name] = rate
        self.varying = set(speed)

    def _by_reactions(self) -> list[str]:
        """Returns the species that are states without a rate rule."""
        return [name for name in self.states if name in self.species and name not in self.rate_rules]

    def _speed(self, compartment: str, size: sp.Expr) -> sp.Expr:
        """Returns d/dt of a compartment that an assignment rule sizes, by the chain rule."""
        if size.has(sp.Piecewise, sp.floor, sp.ceiling, sp.sign, sp.Max, sp.Min):
            self.complain(
                f"assignment rule of {compartment}: a size that jumps or bends is not supported, "
                "since the concentrations there would have to jump with it"
            )
            return sp.nan
        total = sp.diff(size, TIME)
        for name in sorted(names_in(size) & self.states.keys()):
            if name in self.species and name not in self.rate_rules:
                if name in self.concentrations:
                    self.complain(
                        f"assignment rule of {compartment}: a size that depends on the concentration {name} "
                        "is not supported"
                    )
                rate = self._factor(name) * self.flux.get(name, sp.S.Zero) if name in self.reacting else sp.S.Zero
            else:
                rate = self.rate_rules[name]
            total += sp.diff(size, symbol(name)) * rate
        return total

    def _invariants(self) -> list[dict[str, sp.Expr]]:
        """Returns the combinations of amounts that no reaction changes, as combinations of states.

        A stoichiometry that is no number gets a column of its own, so that what is kept is kept whatever its value.
        """
        rows = [s for s in self.reacting if s in self.states and self.concentrations.get(s) not in self.varying]
        columns: dict[tuple[str, sp.Expr], dict[str, sp.Rational]] = {}
        for (species, reaction, factor), number in self.numbers.items():
            if species in rows:
                columns.setdefault((reaction, factor), {})[species] = number
        matrix = sp.zeros(len(rows), len(columns))
        for j, column in enumerate(columns.values()):
            for species, number in column.items():
                matrix[rows.index(species), j] = number
        out = []
        for vector in left_null_space(matrix) if rows else []:
            found = {}
            for name, weight in zip(rows, vector, strict=True):
                if weight:
                    c = self.concentrations.get(name)
                    found[name] = weight * (sp.S.One if c is None else symbol(c)) / self._factor(name)
            out.append(found)
        return out

    def symbolic(self) -> Symbolic:
        """Returns the model of a file without problems."""
        # A size that is not given is none to ask for where nothing depends on it.
        formulas = [*self.rates.values(), *self.initial.values(), *self.derived.values(), *self.expressions.values()]
        used = set().union(self.values, *map(names_in, formulas))
        parameters = {n: unit for n, unit in self.parameters.items() if n in used or n not in self.compartments}
        return assembled(replace(self.draft, rates=self.rates, parameters=parameters, invariants=self._invariants()))
