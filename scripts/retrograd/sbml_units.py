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


# What Level 1 and 2 take where a file says nothing.
_DEFAULTS = {
    "substance": {"mol": 1.0},
    "volume": {"L": 1.0},
    "area": {"m": 2.0},
    "length": {"m": 1.0},
    "time": {"s": 1.0},
}
_SIZES = {3: "volume", 2: "area", 1: "length"}

# A factor and the powers of units; None where a file says nothing, or what UDUNITS cannot say.
_Unit = tuple[float, dict[str, float]] | None


class Units:
    """The units of one model, from what the file declares.

    libsbml can tell them too, but works them out of formulas where they are not declared, without end in a circle.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.level = model, model.getLevel()

    def time(self) -> str:
        """Returns the unit of model time."""
        return _text(self._named("time" if self.level < 3 else self.model.getTimeUnits()))

    def parameter(self, parameter: Any) -> str:
        """Returns the unit of a parameter, global or local."""
        return _text(self._named(parameter.getUnits()))

    def compartment(self, compartment: Any) -> str:
        """Returns the unit of a compartment's size."""
        return _text(self._size(compartment))

    def species(self, species: Any, compartment: Any, is_amount: bool) -> str:
        """Returns the unit of a species: of its amount, or of its amount by the size of its compartment."""
        default = "substance" if self.level < 3 else self.model.getSubstanceUnits()
        amount = self._named(species.getSubstanceUnits() or default)
        size = self._named(species.getSpatialSizeUnits()) or self._size(compartment)
        if is_amount:
            return _text(amount)
        if amount is None or size is None:
            return "1"
        powers = dict(amount[1])
        for name, power in size[1].items():
            powers[name] = powers.get(name, 0.0) - power
        return _text((amount[0] / size[0], powers))

    def _size(self, compartment: Any) -> _Unit:
        kind = _SIZES.get(compartment.getSpatialDimensionsAsDouble(), "")
        if self.level > 2:
            kind = getattr(self.model, f"get{kind.title()}Units")() if kind else ""
        return self._named(compartment.getUnits() or kind)

    def _named(self, name: str) -> _Unit:
        definition = self.model.getUnitDefinition(name) if name else None
        if definition is not None:
            return _defined(definition)
        if name in _PLAIN:
            return 1.0, {}
        if name in _NAMES:
            return 1.0, {_NAMES[name]: 1.0}
        return (1.0, _DEFAULTS[name]) if self.level < 3 and name in _DEFAULTS else None


def _defined(definition: Any) -> _Unit:
    factor, powers = 1.0, dict[str, float]()
    for i in range(definition.getNumUnits()):
        unit = definition.getUnit(i)
        kind = sbml.UnitKind_toString(unit.getKind())
        exponent = unit.getExponentAsDouble()
        # A unit with an offset, as of temperature in Level 2 Version 1, is no multiple of another one.
        if math.isnan(exponent) or (kind not in _NAMES and kind not in _PLAIN) or unit.getOffset():
            return None
        factor *= (unit.getMultiplier() * 10.0 ** unit.getScale()) ** exponent
        if kind in _NAMES:
            powers[_NAMES[kind]] = powers.get(_NAMES[kind], 0.0) + exponent
    return factor, powers


def _text(unit: _Unit) -> str:
    """Returns a unit as UDUNITS text, such as `0.001 mol L-1`; `1` too for what UDUNITS cannot say."""
    if unit is None:
        return "1"
    factor, powers = unit[0], {name: p for name, p in unit[1].items() if p}
    if any(not p.is_integer() for p in powers.values()) or not 0 < factor < math.inf:
        return "1"
    # 12 digits: powers of ten that were multiplied are off in the last ones.
    words = [] if abs(factor - 1) < 1e-12 else [f"{factor:.12g}"]
    words += [name if p == 1 else f"{name}{int(p)}" for name, p in powers.items()]
    return " ".join(words) or "1"
