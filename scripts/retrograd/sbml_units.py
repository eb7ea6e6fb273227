"""Units of SBML as text that UDUNITS reads."""

from __future__ import annotations

import math
from typing import Any

import libsbml as sbml

_NAMES = {
    "ampere": "A",
    "becquerel": "Bq",
    "candela": "cd",
    "coulomb": "C",
    "farad": "F",
    "gram": "g",
    "gray": "Gy",
    "henry": "H",
    "hertz": "Hz",
    "joule": "J",
    "katal": "kat",
    "kelvin": "K",
    "kilogram": "kg",
    "liter": "L",
    "litre": "L",
    "lumen": "lm",
    "lux": "lx",
    "meter": "m",
    "metre": "m",
    "mole": "mol",
    "newton": "N",
    "ohm": "ohm",
    "pascal": "Pa",
    "radian": "rad",
    "second": "s",
    "siemens": "S",
    "sievert": "Sv",
    "steradian": "sr",
    "tesla": "T",
    "volt": "V",
    "watt": "W",
    "weber": "Wb",
}
# Numbers of things have no unit.
_PLAIN = {"dimensionless", "item"}


def unit_text(definition: Any) -> str:
    """Returns a libsbml.UnitDefinition as UDUNITS text, such as `0.001 mol L-1`; `1` where there is none.

    `1` too for what UDUNITS cannot say: powers that are no whole numbers, kinds of unit that it does not have.
    """
    if definition is None:
        return "1"
    factor, powers = 1.0, dict[str, float]()
    for i in range(definition.getNumUnits()):
        unit = definition.getUnit(i)
        kind = sbml.UnitKind_toString(unit.getKind())
        exponent = unit.getExponentAsDouble()
        if math.isnan(exponent) or (kind not in _NAMES and kind not in _PLAIN):
            return "1"
        factor *= (unit.getMultiplier() * 10.0 ** unit.getScale()) ** exponent
        if kind in _NAMES:
            powers[_NAMES[kind]] = powers.get(_NAMES[kind], 0.0) + exponent
    powers = {name: p for name, p in powers.items() if p}
    if any(not p.is_integer() for p in powers.values()) or not 0 < factor < float("inf"):
        return "1"
    # 12 digits: powers of ten that were multiplied are off in the last ones.
    words = [] if abs(factor - 1) < 1e-12 else [f"{factor:.12g}"]
    words += [name if p == 1 else f"{name}{int(p)}" for name, p in powers.items()]
    return " ".join(words) or "1"


def time_unit(model: Any) -> str:
    """Returns the unit of model time; that of Level 1 and 2 is the second where the file says nothing else."""
    if model.getLevel() < 3:
        definition = model.getUnitDefinition("time")
        return "s" if definition is None else unit_text(definition)
    name = model.getTimeUnits()
    if not name:
        return "1"
    definition = model.getUnitDefinition(name)
    if definition is not None:
        return unit_text(definition)
    return "1" if name in _PLAIN else _NAMES.get(name, "1")
