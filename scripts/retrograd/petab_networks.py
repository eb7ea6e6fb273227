"""The networks of a PEtab-SciML problem: what goes in, what comes out, their arrays, and which of these are frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy as sp

from retrograd.errors import RetrogradError
from retrograd.network_import import Network, buffers, field_names, problems, read_network
from retrograd.petab_files import Problem
from retrograd.symbolic import symbol
from retrograd.weight_formats import array_inputs, parameter_arrays

_PLACE = re.compile(r"(inputs|outputs)\[(\d+)\](?:\[([\d, ]+)\]|((?:\[\d+\])+))?")


@dataclass
class Called:
    """A network as a model calls it.

    - `id`, `network`: its id and what it is made of.
    - `inputs`: of each argument the ids of its numbers, or the id of the array that stands for all of them.
    - `outputs`: PEtab id to which output, and the index in it.
    - `static`: whether it is evaluated before the simulation.
    """

    id: str
    network: Network
    inputs: list[list[str] | str]
    outputs: dict[str, tuple[int, tuple[int, ...]]]
    static: bool

    @property
    def arguments(self) -> list[str]:
        """The ids of all numbers that go in, in order."""
        return [name for argument in self.inputs if not isinstance(argument, str) for name in argument]

    @property
    def arrays(self) -> list[str]:
        """The ids of all arrays that go in, in order."""
        return [argument for argument in self.inputs if isinstance(argument, str)]


def function_of(output: str) -> str:
    """Returns the name of the function that stands for an output of a network in formulas."""
    return f"(net) {output}"


@dataclass
class Networks:
    """All networks of a problem.

    - `inputs`: ids of numbers that go into one.
    - `outputs`: id to formula, a call of a function of all inputs and, last, the number of the phase.
    - `frozen`: paths in the model of arrays that are not estimated.
    - `weights`: arrays by name, `net1.layer1.weight`.
    - `given`: arrays that go in, by id, then by condition (`0`: all).
    """

    problem: Problem
    period: str
    called: list[Called] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: dict[str, sp.Expr] = field(default_factory=dict)
    static_inputs: set[str] = field(default_factory=set)
    static_outputs: set[str] = field(default_factory=set)
    frozen: list[str] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    given: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        stored: dict[str, np.ndarray] = {}
        if self.problem.networks:
            for path in self.problem.arrays:
                stored |= parameter_arrays(str(path))
                for name, arrays in array_inputs(str(path)).items():
                    self.given.setdefault(name, {}).update(arrays)
        for name, file in self.problem.networks.items():
            try:
                network = read_network(str(file.path))
            except RetrogradError as error:
                self.problems.append(f"network {name}: {error}")
                continue
            self.problems += [f"network {name}: {text}" for text in problems(network)]
            if not self.problems:
                self._connect(name, network, file.static)
                self._arrays(name, network, stored)

    def has(self, petab_id: str) -> bool:
        """Tells whether a PEtab id is that of a part of a network."""
        return self.problem.mapping.get(petab_id, "").partition(".")[0] in self.problem.networks

    def is_array(self, petab_id: str) -> bool:
        """Tells whether a PEtab id is that of an array that goes into a network."""
        return any(petab_id in called.arrays for called in self.called)

    def _connect(self, name: str, network: Network, static: bool) -> None:
        arguments: dict[int, dict[int, str] | str] = {}
        outputs: dict[str, tuple[int, tuple[int, ...]]] = {}
        for petab_id, model_id in self.problem.mapping.items():
            owner, _, part = model_id.partition(".")
            if owner != name or part.startswith("parameters"):
                continue
            match = _PLACE.fullmatch(part)
            if match is None:
                self.problems.append(f"mapping of {petab_id}: found {model_id!r}, wanted {name}.inputs[0][0] or alike")
                continue
            number = int(match[2])
            index = tuple(map(int, re.findall(r"\d+", match[3] or match[4] or "")))
            if match[1] == "outputs":
                made = network.nodes[-1].args[0]
                if number >= (len(made) if isinstance(made, list) else 1):
                    self.problems.append(f"mapping of {petab_id}: found {model_id!r}, more than the network has")
                outputs[petab_id] = (number, index)
            elif not index:
                arguments[number] = petab_id
            elif len(index) > 1 or isinstance(arguments.get(number), str):
                self.problems.append(f"mapping of {petab_id}: found {model_id!r}: numbers of a vector are supported")
            else:
                into = arguments.setdefault(number, {})
                assert isinstance(into, dict)
                into |= dict.fromkeys(index, petab_id)
        wanted = len(network.inputs)
        # An input without a mapping is known by its own name where a file gives it an array.
        for number, own in enumerate(network.inputs):
            if number not in arguments and own in self.given:
                arguments[number] = own
        inputs: list[list[str] | str] = []
        for number in range(wanted):
            found = arguments.get(number)
            if found is None or (isinstance(found, dict) and sorted(found) != list(range(len(found)))):
                self.problems.append(f"network {name}: not all of its input {number} is mapped")
            elif isinstance(found, str):
                if found not in self.given and network.inputs[number] in self.given:
                    self.given[found] = self.given[network.inputs[number]]
                if found not in self.given:
                    self.problems.append(f"network {name}: found no array for its input {found}")
                inputs.append(found)
            else:
                inputs.append([found[i] for i in sorted(found)])
        called = Called(name, network, inputs, outputs, static)
        self.called.append(called)
        self.inputs += called.arguments
        for output in outputs:
            args = [symbol(a) for a in called.arguments]
            self.outputs[output] = sp.Function(function_of(output), real=True)(*args, symbol(self.period))
        if static:
            self.static_inputs |= set(called.arguments)
            self.static_outputs |= set(outputs)

    def which_array(self, name: str, conditions: Sequence[str]) -> int | None:
        """Returns which of the arrays of an input is that of an experiment with these first conditions."""
        order = list(self.given[name])
        return next((order.index(c) for c in ("0", *conditions) if c in order), None)

    def missing_arrays(self, experiments: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        """Returns what is wrong with the arrays that go in, for experiments: name and first conditions."""
        out = []
        for name in dict.fromkeys(a for called in self.called for a in called.arrays):
            shapes = {array.shape for array in self.given[name].values()}
            if len(shapes) > 1:
                told = ", ".join(map(str, sorted(shapes)))
                out.append(f"array {name}: found the shapes {told}, wanted one for all conditions")
            out += [
                f"experiment {experiment}: found no array {name} for its first condition"
                for experiment, conditions in experiments
                if self.which_array(name, conditions) is None
            ]
        return out

    def _arrays(self, name: str, network: Network, stored: dict[str, np.ndarray]) -> None:
        """Reads a network's arrays and tells which are frozen: what is said of a part goes before what of the whole."""
        fields = field_names(network)
        told: dict[tuple[str, ...], tuple[float | None, bool]] = {}
        for petab_id, said in self.problem.network_parameters.items():
            owner, _, part = self.problem.mapping.get(petab_id, petab_id).partition(".")
            if owner != name:
                continue
            match = re.fullmatch(r"parameters(?:\[(\w+)\](?:\.(\w+))?)?", part)
            if match is None:
                self.problems.append(f"parameter {petab_id}: found {owner}.{part}, wanted a network, layer or array")
                continue
            told[tuple(filter(None, match.groups()))] = said
        mine = {key.partition("/")[2]: array for key, array in stored.items() if key.partition("/")[0] == name}
        for key, array in mine.items():
            layer, _, own = key.partition("/")
            if layer not in fields:
                continue
            numbers = [told[p][0] for p in ((layer, own), (layer,), ()) if p in told and told[p][0] is not None]
            path = f"{name}.{fields[layer]}.{own}"
            self.weights[path] = np.full_like(array, numbers[0]) if numbers else array
            estimated = next((told[p][1] for p in ((layer, own), (layer,), ()) if p in told), True)
            if not estimated:
                self.frozen.append(path)
        for place in told:
            if not any(place == tuple(key.split("/"))[: len(place)] for key in mine):
                self.problems.append(f"parameters of {name}: found no array of {'.'.join(place)}")
        self.frozen += [f"{name}.{path}" for path in buffers(network) if f"{name}.{path}" not in self.frozen]
        if not mine and fields:
            self.problems.append(f"network {name}: found no array of it in {_listed(self.problem.arrays)}")


def _listed(paths: Sequence[Any]) -> str:
    return ", ".join(str(p.name) for p in paths) or "any file, since the problem names none"
