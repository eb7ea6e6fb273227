"""A PEtab problem as a plug-in: its model, its networks and its measurements in one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

from retrograd import network_import
from retrograd.errors import RetrogradError
from retrograd.model_source import WIDTH, PluginWriter, local_names, plain_text, quoted, stack_lines, unpack_lines
from retrograd.petab_import import PICK, Fit
from retrograd.petab_networks import Called, Networks, function_of
from retrograd.symbolic import Symbolic, names_in, put_in, symbol

# What a class of models has already; `retrograd.api` itself would start JAX.
MEMBERS = (
    "build",
    "estimated",
    "exact",
    "fitted",
    "formulations",
    "frozen",
    "initial_guess",
    "initial_state",
    "invariants",
    "jump",
    "jump_times",
    "loss",
    "measurements",
    "parameters",
    "residual_scale",
    "start_of_dynamics",
    "states",
    "time_unit",
    "vector_field",
)


class ProblemWriter(PluginWriter):
    """Writes a problem; arguments as `import_problem` returns them, then as those of `plugin_source`."""

    def __init__(
        self, model: Symbolic, fit: Fit, networks: Networks, class_name: str, source: str, digest: str
    ) -> None:
        self.fit, self.networks = fit, networks
        # What placeholders stand for: numbers, which need no formula each, then formulas; one where there is nothing.
        held = list(dict.fromkeys(v for row in fit.measurements for v in row.overrides)) or [sp.S.One]
        self.numbers, self.formulas = [v for v in held if v.is_number], [v for v in held if not v.is_number]
        methods = [*(f"_{o}" for o in networks.outputs), *(f"_observable_{o.id}" for o in fit.observables)]
        self.members = local_names(methods)
        functions = {str(PICK): "likelihood.pick"}
        functions |= {function_of(o): f"self.{self.members[f'_{o}']}" for o in networks.outputs}
        self.fields = local_names([called.id for called in networks.called], MEMBERS)
        self.classes = {called.id: f"_Network{i}" for i, called in enumerate(networks.called, 1)}
        self.arrays = {name: f"array_{i}" for i, name in enumerate(self._array_names(), 1)}
        super().__init__(model, class_name, source, digest, functions)

    def _array_names(self) -> list[str]:
        return list(dict.fromkeys(name for called in self.networks.called for name in called.arrays))

    def _stacked(self, name: str) -> tuple[np.ndarray, list[int]]:
        """Returns the arrays of an input, shape (array, ...), and which of them each experiment gets."""
        which = [self.networks.which_array(name, e.conditions) or 0 for e in self.fit.experiments]
        return np.stack(list(self.networks.given[name].values())), which

    def weights(self) -> dict[str, np.ndarray]:
        """Returns the model's arrays by name."""
        out = {}
        for path, array in self.networks.weights.items():
            network, _, rest = path.partition(".")
            out[f"{self.fields[network]}.{rest}"] = array
        return out | {own: self._stacked(name)[0] for name, own in self.arrays.items()}

    # -- the file -------------------------------------------------------------------------------------

    def imports(self) -> list[str]:
        needs = network_import.header("\n".join(self._network_sources))
        own = "layers, likelihood" if "import layers" in needs else "likelihood"
        eqx = "import equinox as eqx\n" if self.networks.called else ""
        return [
            "from __future__ import annotations",
            f"{eqx}import jax\nimport jax.numpy as jnp",
            f"from retrograd import {own}\nfrom retrograd.api import Model",
        ]

    @cached_property
    def _network_sources(self) -> list[str]:
        return [network_import.source(c.network, self.classes[c.id]).rstrip("\n") for c in self.networks.called]

    def definitions(self) -> list[str]:
        m, fit = self.fit.measurements, self.fit
        place = {v: i for i, v in enumerate([*self.numbers, *self.formulas])}
        indices = [tuple(place[v] for v in row.overrides) for row in m]
        lines = [
            "_MEASUREMENTS = likelihood.Measurements(",
            *_wrapped("experiment", [row.experiment for row in m]),
            *_wrapped("observable", [row.observable for row in m]),
            *_wrapped("time", [row.time for row in m]),
            *_wrapped("value", [row.value for row in m]),
            *_wrapped("overrides", indices),
            *_wrapped("distributions", [o.distribution for o in fit.observables]),
            ")",
        ]
        if any(fit.skips):
            lines += [
                "# Of each phase, whether the steady state is the start itself, since the experiment has none.",
                *_wrapped("_SKIPS", fit.skips, 0, end=""),
            ]
        return [*self._network_sources, "\n".join(lines)]

    def attributes(self) -> list[str]:
        fit, m = self.fit, self.fit.measurements
        lines = super().attributes()
        lines += _wrapped("estimated", fit.estimated, 4, end="")
        if fit.jump_times:
            lines += _wrapped("jump_times", fit.jump_times, 4, end="")
        frozen = [*map(self._path, self.networks.frozen), *self.arrays.values()]
        if frozen:
            lines += _wrapped("frozen", frozen, 4, end="")
        columns: dict[str, Sequence[Any]] = {
            "experiment": [fit.experiments[row.experiment].id for row in m],
            "observable": [fit.observables[row.observable].id for row in m],
            "time": [row.told for row in m],
            "measurement": [row.value for row in m],
        }
        lines.append("    measurements = {")
        for name, values in columns.items():
            part = _wrapped(name, values, 8)
            lines += [part[0].replace(f"{name}=", f"{quoted(name)}: ", 1), *part[1:]]
        lines.append("    }")
        lines += [f"    {self.fields[c.id]}: {self.classes[c.id]}" for c in self.networks.called]
        lines += [f"    {own}: jax.Array" for own in self.arrays.values()]
        return lines

    def _path(self, path: str) -> str:
        network, _, rest = path.partition(".")
        return f"{self.fields[network]}.{rest}"

    def methods(self) -> list[list[str]]:
        methods = super().methods()
        if self.networks.called:
            methods.insert(0, self._build())
            for called in self.networks.called:
                methods += [self._output(called, name) for name in called.outputs]
        if self.fit.restart:
            methods.append(self._start_of_dynamics())
        if self.fit.jumps:
            methods.append(self._jump())
        methods += [self._observable(i) for i in range(len(self.fit.observables))]
        return [*methods, self._fitted(), self._loss()]

    def rates(self, ends: Sequence[str]) -> list[str]:
        lines = super().rates(ends)
        if not any(self.fit.skips):
            return lines
        rates = self._free("rates")
        return [
            lines[0].replace("return ", f"{rates} = ", 1),
            *lines[1:],
            f"        return jnp.where({self._skips()}, self.initial_state(k) - x, {rates})",
        ]

    def totals(self, texts: Sequence[str]) -> list[str]:
        lines = super().totals(texts)
        if not any(self.fit.skips):
            return lines
        totals = self._free("totals")
        return [
            lines[0].replace("return ", f"{totals} = ", 1),
            *lines[1:],
            f"        return jnp.where({self._skips()}, 0.0, {totals})",
        ]

    def _skips(self) -> str:
        return f"jnp.asarray(_SKIPS)[likelihood.number(k[{quoted(self.fit.period)}])]"

    def _free(self, name: str) -> str:
        return local_names([name], self.names.values())[name]

    # -- methods --------------------------------------------------------------------------------------

    def _build(self) -> list[str]:
        lines = [
            "    @classmethod",
            f"    def build(cls, key: jax.Array) -> {self.class_name}:",
            '        """Returns the structure; `key`: for the initialisers."""',
            f"        keys = jax.random.split(key, {len(self.networks.called)})",
            "        return cls(",
        ]
        for i, called in enumerate(self.networks.called):
            lines.append(f"            {self.fields[called.id]}={self.classes[called.id]}.build(keys[{i}]),")
        for name, own in self.arrays.items():
            lines.append(f"            {own}=jnp.zeros({self._stacked(name)[0].shape}),")
        return [*lines, "        )"]

    def _output(self, called: Called, output: str) -> list[str]:
        number, index = called.outputs[output]
        names = local_names(called.arguments, ["period"])
        args = "".join(f", {names[a]}: jax.Array" for a in called.arguments)
        inputs = []
        for argument in called.inputs:
            if isinstance(argument, str):
                _, which = self._stacked(argument)
                chosen = f"jnp.asarray({tuple(which)})[likelihood.number(period) // 2]"
                place = str(which[0]) if len(set(which)) == 1 else chosen
                inputs.append(f"self.{self.arrays[argument]}[{place}]")
            else:
                inputs.append(f"jnp.stack([{', '.join(names[a] for a in argument)}])")
        many = isinstance(called.network.nodes[-1].args[0], list)
        which = f"[{number}]" if many else ""
        return [
            f"    def {self.members[f'_{output}']}(self{args}, period: jax.Array) -> jax.Array:",
            f'        """Returns {plain_text(output)}, an output of the network {plain_text(called.id)}."""',
            *(["        del period"] if "period" not in "".join(inputs) else []),
            f"        found = self.{self.fields[called.id]}({', '.join(inputs)})",
            f"        return likelihood.entry(found{which}, {index})",
        ]

    def _given(self, formulas: Sequence[sp.Basic]) -> list[str]:
        """Returns the lines that compute what formulas need, but for states and time."""
        needed = self.needed(formulas)
        lines = self.parameter_lines(needed)
        computed = {**self.derived, **self.model.expressions}
        return lines + [self.assign(n, f, needed) for n, f in computed.items() if n in needed]

    def _start_of_dynamics(self) -> list[str]:
        lines = [
            "    def start_of_dynamics(self, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:",
            '        """Returns where the dynamics begin, shape (state,): conditions set some after the steady state.',
            "",
            "        - `x`: steady state, shape (state,). `k`: parameters of the dynamic phase, scalars.",
            '        """',
        ]
        return [*lines, *self._set_anew(self.fit.restart)]

    def _jump(self) -> list[str]:
        lines = [
            "    def jump(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:",
            '        """Returns the state after a jump, shape (state,): later conditions set some.',
            "",
            "        - `t`: time of the jump. `x`: state before it, shape (state,). `k`: parameters, scalars.",
            '        """',
        ]
        return [*lines, *self._set_anew(self.fit.jumps)]

    def _set_anew(self, formulas: Mapping[str, sp.Expr]) -> list[str]:
        """Returns the lines that compute and return a state of which some entries are given by formulas."""
        states = [self.names[s] for s in self.model.states]
        new = local_names([f"{s}_now" for s in self.model.states], self.names.values())
        lines = [*unpack_lines(states, "x"), *self._given(list(formulas.values()))]
        ends = []
        for state, own in zip(self.model.states, states, strict=True):
            variable = own
            if state in formulas:
                variable = new[f"{state}_now"]
                lines.append(f"        {variable} = {self.write(formulas[state])}")
            ends.append(variable)
        return [*lines, *stack_lines(ends)]

    def _observable(self, i: int) -> list[str]:
        o = self.fit.observables[i]
        held = {symbol(name): sp.Symbol(f"(held) {n}", real=True) for n, name in enumerate(o.placeholders)}
        value, noise = put_in(o.value, held), put_in(o.noise, held)
        self.names.update({f"(held) {n}": f"held[{n}]" for n in range(len(o.placeholders))})
        needed = self.needed([value, noise])
        states = [self.names[s] for s in self.model.states]
        lines = [
            f"    def {self.members[f'_observable_{o.id}']}(",
            "        self, k: dict[str, jax.Array], t: jax.Array, x: jax.Array, held: jax.Array",
            "    ) -> tuple[jax.Array, jax.Array]:",
            f'        """Returns {o.id} and its noise scale; `held`: what its placeholders stand for."""',
        ]
        used = names_in(value) | names_in(noise) | needed
        lines += unpack_lines(states, "x") if used & self.model.states.keys() else []
        lines += self._given([value, noise])
        try:
            texts = {name: self.write(f) for name, f in (("value", value), ("noise", noise))}
        except RetrogradError as error:
            raise RetrogradError(f"{self.source}: observable {o.id}: {error}") from error
        ends = [f"        {name} = jnp.asarray({text}, x.dtype)" for name, text in texts.items()]
        return [*lines, *ends, "        return value, noise"]

    def _fitted(self) -> list[str]:
        lines = [
            "    def fitted(",
            "        self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]",
            "    ) -> tuple[jax.Array, jax.Array, jax.Array]:",
            '        """Returns rows of the measurements, what is simulated there, and the noise scale, shape (row,).',
            "",
            "        - `times`: shape (time,). `x`: states there, shape (time, state). `k`: of the dynamic phase.",
            '        """',
            *self._given(self.formulas),
        ]
        values = self._free("values")
        # One array of all numbers: a problem may give each measurement its own noise.
        lines += _wrapped(values, [float(v) for v in self.numbers], 8, end="")
        lines.append(f"        {values} = jnp.asarray({values}, x.dtype)")
        if self.formulas:
            made = [f"                jnp.asarray({self.write(v)}, x.dtype)," for v in self.formulas]
            computed = self._free("computed")
            lines += [f"        {computed} = jnp.stack(", "            [", *made, "            ]", "        )"]
            lines.append(f"        {values} = jnp.concatenate([{values}, {computed}])")
        lines.append("        observables = [")
        for o in self.fit.observables:
            own = self.members[f"_observable_{o.id}"]
            lines.append(f"            lambda t, x, held: self.{own}(k, t, x, held),")
        number = f"likelihood.number(k[{quoted(self.fit.period)}]) // 2"
        return [*lines, "        ]", f"        return _MEASUREMENTS.fitted(times, x, {number}, {values}, observables)"]

    def _loss(self) -> list[str]:
        return [
            "    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:",
            '        """Returns the negative log-likelihood of the experiment\'s measurements."""',
            "        return _MEASUREMENTS.negative_log_likelihood(*self.fitted(times, x, k))",
        ]


def _wrapped(name: str, values: Sequence[Any], indent: int = 4, end: str = ",") -> list[str]:
    """Returns the lines of `name=(...)`, or of an assignment where nothing follows."""
    space = " " * indent
    sign = "=" if end else " = "
    texts = [quoted(v) if isinstance(v, str) else _literal(v) for v in values]
    one = f"{space}{name}{sign}({', '.join(texts)}{',' if len(texts) == 1 else ''}){end}"
    if len(one) <= WIDTH:
        return [one]
    lines, row = [f"{space}{name}{sign}("], ""
    for text in texts:
        if row and len(space) + 4 + len(row) + len(text) + 2 > WIDTH:
            lines.append(f"{space}    {row.rstrip()}")
            row = ""
        row += f"{text}, "
    return [*lines, f"{space}    {row.rstrip()}", f"{space}){end}"]


def _literal(value: Any) -> str:
    if isinstance(value, float) and value == float("inf"):
        return 'float("inf")'
    return repr(value)
