"""PEtab-SciML's network YAML to the source of an equinox module: one field a layer, one line a node."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from retrograd.errors import RetrogradError
from retrograd.network_table import (
    CONTAINERS,
    DROPOUTS,
    FUNCTIONS,
    LAYERS,
    OPERATORS,
    REQUIRED,
    Refused,
    bound,
    call_text,
    short,
)

LINE = 120


@dataclass(frozen=True)
class Layer:
    """A layer of the file: its id, its type's name in `torch.nn`, its arguments there."""

    id: str
    type: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """A node of the forward graph, as `torch.fx` writes one: `args` and `kwargs` name other nodes or hold values."""

    name: str
    op: str
    target: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """A network as the file has it.

    - `inputs`: the ids of its inputs, in the order of the forward function's arguments.
    """

    name: str
    inputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    nodes: tuple[Node, ...] = field(repr=False)


# -- reading ------------------------------------------------------------------------------------------


def read_network(path: str) -> Network:
    """Returns the network of a YAML file; an error lists every key that is missing, unknown or of another type."""
    try:
        with open(path, encoding="utf-8") as file:
            raw = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RetrogradError(f"{path} is no readable YAML file: {error}.") from error
    # Early files hold a list of models, with another name for the id.
    if isinstance(raw, Mapping) and set(raw) == {"models"}:
        models = raw["models"]
        if not isinstance(models, list) or len(models) != 1:
            raise RetrogradError(f"{path}: found {_count(models)} under `models`, wanted one network a file.")
        raw = models[0]
    if not isinstance(raw, Mapping):
        raise RetrogradError(f"{path}: found {short(raw)}, wanted a network: nn_model_id, inputs, layers, forward.")
    raw = {"nn_model_id" if key == "mlmodel_id" else key: value for key, value in raw.items()}
    wrong: list[str] = []
    _keys(wrong, "the file", raw, ("nn_model_id", "inputs", "layers", "forward"), ())
    inputs = []
    for where, entry in _entries(wrong, raw, "inputs"):
        _keys(wrong, where, entry, ("input_id",), ("transform",))
        if entry.get("transform") is not None:
            wrong.append(f"{where}: transform is {short(entry['transform'])}, which is not supported; wanted null")
        inputs.append(_text(wrong, where, entry, "input_id"))
    layers = []
    for where, entry in _entries(wrong, raw, "layers"):
        _keys(wrong, where, entry, ("layer_id", "layer_type"), ("args",))
        args = _container(wrong, where, entry, "args", Mapping, {})
        layers.append(Layer(_text(wrong, where, entry, "layer_id"), _text(wrong, where, entry, "layer_type"), args))
    nodes = []
    for where, entry in _entries(wrong, raw, "forward"):
        _keys(wrong, where, entry, ("name", "op", "target"), ("args", "kwargs"))
        name, op, target = (_text(wrong, where, entry, key) for key in ("name", "op", "target"))
        args = _container(wrong, where, entry, "args", list, [])
        nodes.append(Node(name, op, target, args, _container(wrong, where, entry, "kwargs", Mapping, {})))
    name = _text(wrong, "the file", raw, "nn_model_id")
    if wrong:
        raise RetrogradError("\n  ".join([f"{path} is no network as PEtab-SciML describes one:", *wrong]))
    return Network(name, tuple(inputs), tuple(layers), tuple(nodes))


def _keys(
    wrong: list[str], where: str, entry: Mapping[str, Any], required: tuple[str, ...], other: tuple[str, ...]
) -> None:
    wrong.extend(f"{where}: {key} is missing" for key in required if key not in entry)
    known = ", ".join((*required, *other))
    wrong.extend(f"{where}: found the key {key!r}, wanted {known}" for key in entry if key not in (*required, *other))


def _entries(wrong: list[str], raw: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    value = raw.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        if key in raw:
            wrong.append(f"{key}: found {short(value)}, wanted a list of entries with keys")
        return []
    return [(f"{key}[{i}]", entry) for i, entry in enumerate(value)]


def _text(wrong: list[str], where: str, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        wrong.append(f"{where}: {key} is {short(value)}, wanted text")
    return str(value)


def _container(wrong: list[str], where: str, entry: Mapping[str, Any], key: str, kind: Any, empty: Any) -> Any:
    value = entry.get(key)
    if value is None:
        return empty
    if not isinstance(value, kind):
        wrong.append(f"{where}: {key} is {short(value)}, wanted {'a list' if kind is list else 'names and values'}")
        return empty
    return value


def _count(value: Any) -> str:
    return f"{len(value)} networks" if isinstance(value, list) else short(value)


# -- the list of problems -----------------------------------------------------------------------------


def problems(network: Network) -> list[str]:
    """Returns every layer, operation and argument that is not supported, one line each; empty: it can be imported."""
    found = [f"layer {layer.id}: {text}" for layer in network.layers for text in _layer_problems(layer)]
    for what, names in (("layer", [v.id for v in network.layers]), ("node", [n.name for n in network.nodes])):
        found += [
            f"{what} {name}: there are two of this name" for name in sorted({n for n in names if names.count(n) > 1})
        ]
    holders = sum(node.op == "placeholder" for node in network.nodes)
    if holders != len(network.inputs):
        found.append(f"inputs: {len(network.inputs)} are declared and the forward graph takes {holders}")
    outputs = [node for node in network.nodes if node.op == "output"]
    if len(outputs) != 1 or network.nodes[-1] is not outputs[0]:
        found.append(f"forward: {len(outputs)} output nodes, wanted one, as the last node")
    known: list[str] = []
    layers = {layer.id: layer for layer in network.layers}
    for node in network.nodes:
        try:
            _expression(node, known, layers, {name: name for name in known}, network)
        except Refused as refusal:
            found.append(f"node {node.name} ({node.op} {node.target}): {refusal}")
        known.append(node.name)
    return found


def _layer_problems(layer: Layer) -> list[str]:
    if layer.type in CONTAINERS:
        return []
    if layer.type not in LAYERS:
        return [f"the type {layer.type!r} is not supported; supported: {', '.join(sorted(LAYERS))}"]
    kind = LAYERS[layer.type]
    try:
        a = bound((), layer.args, kind.parameters)
        if kind.make is not None:
            kind.make(a, False)
        elif kind.call is not None:
            kind.call(a, "x")
    except Refused as refusal:
        return [f"{layer.type}: {refusal}"]
    return []


def notes(network: Network) -> list[str]:
    """Returns what a reader should know of layers that behave otherwise in training than here, one line each."""
    out = []
    for layer in network.layers:
        kind = LAYERS.get(layer.type)
        if (
            kind is not None
            and kind.note
            and (kind.make is None or kind.buffers(bound((), layer.args, kind.parameters)))
        ):
            out.append(f"layer {layer.id}: {layer.type} {kind.note}, as PyTorch does in evaluation.")
        if layer.type not in CONTAINERS and layer.id not in _called(network):
            out.append(f"layer {layer.id}: the forward function never calls it, so it and its arrays are left out.")
    return out


def buffers(network: Network, *, batch_statistics: bool = False) -> tuple[str, ...]:
    """Returns the paths of arrays that are no weights, such as `norm1.running_mean`, for a model's `frozen`.

    - `batch_statistics`: as for `source`; there are none then.
    """
    if batch_statistics:
        return ()
    fields, out = field_names(network), []
    for layer in network.layers:
        if layer.id in fields:
            kind = LAYERS[layer.type]
            names = kind.buffers(bound((), layer.args, kind.parameters))
            out += [f"{fields[layer.id]}.{name}" for name in names]
    return tuple(out)


# -- expressions --------------------------------------------------------------------------------------


def _expression(
    node: Node, known: Sequence[str], layers: Mapping[str, Layer], names: Mapping[str, str], network: Network
) -> str:
    """Returns a node's value as Python; `names`: node name to variable, of the nodes in front of it."""
    value = lambda v: _operand(v, known, names)
    if node.op == "placeholder":
        if node.args or node.kwargs:
            raise Refused("a default of an input is not supported")
        return ""
    if node.op == "output":
        if len(node.args) != 1 or node.kwargs:
            raise Refused(f"{len(node.args)} arguments, wanted one: a node or a list of nodes")
        results = node.args[0] if isinstance(node.args[0], list) else [node.args[0]]
        return ", ".join(_array(v, known, names) for v in results)
    if node.op == "call_module":
        layer = layers.get(node.target)
        if layer is None:
            raise Refused(f"there is no layer {node.target!r}")
        if layer.type not in LAYERS:
            raise Refused(f"its layer's type {layer.type!r} cannot be called")
        kind = LAYERS[layer.type]
        if len(node.args) != kind.inputs or node.kwargs:
            raise Refused(f"{len(node.args) + len(node.kwargs)} arguments, wanted {kind.inputs} of its inputs alone")
        inputs = [_array(v, known, names) for v in node.args]
        _refuse_inplace(layer.args.get("inplace", False), node, network)
        if kind.call is None:
            return call_text(f"self.{_identifier(layer.id)}", inputs)
        return kind.call(bound((), layer.args, kind.parameters), inputs[0])
    if node.op not in ("call_function", "call_method"):
        raise Refused(f"the operation {node.op!r} is not supported")
    if node.target in ("cat", "concat", "concatenate", "stack") and node.op == "call_function":
        a = bound(node.args, node.kwargs, {"tensors": REQUIRED, "dim": 0})
        if not isinstance(a["tensors"], list):
            raise Refused(f"found {short(a['tensors'])}, wanted a list of nodes")
        function = "jnp.stack" if node.target == "stack" else "jnp.concatenate"
        return f"{function}([{', '.join(_array(v, known, names) for v in a['tensors'])}], axis={a.axis('dim')})"
    if node.target in OPERATORS:
        if len(node.args) != 2 or node.kwargs:
            raise Refused(f"{len(node.args)} arguments and {short(dict(node.kwargs))}, wanted two operands alone")
        left, right = map(value, node.args)
        if node.target == "pow":
            return f"{left}**{right}" if left[0] != "-" else f"({left}) ** {right}"
        return f"{left} {OPERATORS[node.target]} {right}"
    function = FUNCTIONS.get(node.target)
    if function is None:
        raise Refused(f"it is not supported; supported: {', '.join(sorted([*FUNCTIONS, *OPERATORS, 'cat', 'stack']))}")
    # PyTorch's functions call their array `input`.
    args, kwargs = list(node.args), dict(node.kwargs)
    first = args.pop(0) if args else kwargs.pop("input", None)
    a = bound(args, kwargs, function.parameters)
    if node.target == "dropout" and a.truth("training"):
        raise Refused("training is true: it would drop at random; wanted false")
    _refuse_inplace(a.values.get("inplace", False), node, network)
    return function.expression(a, _array(first, known, names))


def _refuse_inplace(inplace: Any, node: Node, network: Network) -> None:
    # It writes over its input: the same as a new array where nobody else reads that, nor what that is a view of.
    if inplace is False:
        return
    if inplace is not True:
        raise Refused(f"inplace is {short(inplace)}, wanted true or false")
    types = {layer.id: layer.type for layer in network.layers}
    makers = {n.name: n for n in network.nodes}
    written, seen = node.args[0], set()
    while isinstance(written, str) and written in makers and written not in seen:
        seen.add(written)
        readers = [n.name for n in network.nodes if written in _flat_values([*n.args, *n.kwargs.values()])]
        if len(readers) > 1:
            raise Refused(f"inplace is true and its input is read by {', '.join(readers)}; wanted false")
        maker = makers[written]
        if types.get(maker.target, maker.target) not in VIEWS or not maker.args:
            return
        written = maker.args[0]


# What shares its input's memory in PyTorch.
VIEWS = ("flatten", "transpose", "unsqueeze", "dropout", "Flatten", "Identity", *DROPOUTS)


def _flat_values(values: Sequence[Any]) -> list[Any]:
    out = []
    for v in values:
        out += _flat_values(v) if isinstance(v, list) else [v]
    return out


def _array(value: Any, known: Sequence[str], names: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise Refused(f"found {short(value)} as an array, wanted a node in front of this one")
    return names[value]


def _operand(value: Any, known: Sequence[str], names: Mapping[str, str]) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    return _array(value, known, names)


# -- source -------------------------------------------------------------------------------------------

TAKEN = ("self", "cls", "key", "keys", "jax", "jnp", "eqx", "layers", "build", "frozen")


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    text = f"_{text}" if text[0].isdigit() else text
    # Two underscores in front would be renamed by Python inside of a class.
    text = f"n{text}" if text.startswith("__") else text
    return f"{text}_" if keyword.iskeyword(text) or text in TAKEN else text


def field_names(network: Network) -> dict[str, str]:
    """Returns layer id to field name, of the layers that hold arrays and are called.

    The name is the id, where Python allows that.
    """
    return {
        layer.id: _identifier(layer.id)
        for layer in network.layers
        if layer.type in LAYERS and LAYERS[layer.type].make is not None and layer.id in _called(network)
    }


def _called(network: Network) -> set[str]:
    return {node.target for node in network.nodes if node.op == "call_module"}


def source(network: Network, class_name: str, *, batch_statistics: bool = False) -> str:
    """Returns the network as the source of `class <class_name>(eqx.Module)`, the same text for the same file.

    The text needs `header(...)` in front of it. `build(key)` makes the structure, with PyTorch's field names and
    shapes; `__call__` takes and returns arrays as the file's forward function does. RetrogradError lists all that is
    not supported.

    - `batch_statistics`: normalise by the mean and variance of the input where the file tracks running ones, as
      PyTorch does in training.
    """
    found = problems(network)
    fields, variables = field_names(network), _variables(network)
    twice = [f"layer {n}: its name in Python is that of another" for n in _colliding(fields)]
    twice += [f"node {n}: its name in Python is that of another" for n in _colliding(variables)]
    if found or twice:
        raise RetrogradError(
            "\n  ".join([f"The network {network.name} cannot be imported:", *found, *twice])
            + "\nNothing of it was written. Support for more is welcome: CONTRIBUTING.md says how."
        )
    layers = {layer.id: layer for layer in network.layers}
    lines = [
        f"class {class_name}(eqx.Module):",
        f'    """The network {_plain_text(network.name)}: {_signature(network)}."""',
        "",
    ]
    lines += [f"    {name}: {_made(layers[id_], batch_statistics)[0]}" for id_, name in fields.items()]
    lines += [""] if fields else []
    lines += ["    @classmethod", f"    def build(cls, key: jax.Array) -> {class_name}:"]
    lines += ['        """Returns the structure; `key`: for the initialisers."""']
    keyed = [id_ for id_ in fields if not _made(layers[id_], batch_statistics)[0].endswith("Norm")]
    if keyed:
        lines.append(f"        keys = jax.random.split(key, {len(keyed)})")
    else:
        lines.append("        del key")
    made = []
    for id_, name in fields.items():
        function, args = _made(layers[id_], batch_statistics)
        args = [*args, f"key=keys[{keyed.index(id_)}]"] if id_ in keyed else args
        made += _laid_out(f"{name}={function}", args, 12, ",")
    lines += ["        return cls(", *made, "        )"] if made else ["        return cls()"]
    lines += ["", *_forward(network, variables)]
    return "\n".join(lines) + "\n"


def header(text: str) -> str:
    """Returns the imports that a text of one or more `source` needs."""
    lines = ["from __future__ import annotations", "", "import equinox as eqx", "import jax", "import jax.numpy as jnp"]
    unused = [] if "jnp." in text else ["import jax.numpy as jnp"]
    own = ["", "from retrograd import layers"] if "layers." in text else []
    return "\n".join([*(line for line in lines if line not in unused), *own]) + "\n"


def _made(layer: Layer, batch_statistics: bool) -> tuple[str, list[str]]:
    kind = LAYERS[layer.type]
    assert kind.make is not None
    return kind.make(bound((), layer.args, kind.parameters), batch_statistics)


def _plain_text(name: str) -> str:
    # A name comes from a file and must not end the docstring.
    return re.sub(r"[^\w .:-]", "_", name, flags=re.ASCII)


def _signature(network: Network) -> str:
    plural = lambda n, what: f"{n} {what}" if n == 1 else f"{n} {what}s"
    outputs = network.nodes[-1].args[0]
    many = len(outputs) if isinstance(outputs, list) else 1
    return f"{plural(len(network.inputs), 'input')}, {plural(many, 'output')}, as PEtab-SciML describes it"


def _variables(network: Network) -> dict[str, str]:
    return {node.name: _identifier(node.name) for node in network.nodes if node.op != "output"}


def _colliding(names: Mapping[str, str]) -> list[str]:
    values = list(names.values())
    return [key for key, value in names.items() if values.count(value) > 1]


def _forward(network: Network, variables: Mapping[str, str]) -> list[str]:
    layers = {layer.id: layer for layer in network.layers}
    inputs = [f"{variables[n.name]}: jax.Array" for n in network.nodes if n.op == "placeholder"]
    outputs = network.nodes[-1].args[0]
    many = isinstance(outputs, list)
    result = f"tuple[{', '.join(['jax.Array'] * len(outputs))}]" if many else "jax.Array"
    lines = _laid_out("    def __call__", ["self", *inputs], 0, f" -> {result}:")
    known: list[str] = []
    for node in network.nodes:
        text = _expression(node, known, layers, variables, network)
        known.append(node.name)
        if node.op == "output":
            lines.append(f"        return {text}{',' if many and len(outputs) == 1 else ''}")
        elif node.op != "placeholder":
            lines += _wrapped(f"{variables[node.name]} = {text}")
    return lines


def _laid_out(function: str, args: Sequence[str], indent: int, end: str) -> list[str]:
    # As ruff's formatter does: on one line, else the arguments on one line, else one a line.
    lead = " " * indent
    one = f"{lead}{function}({', '.join(args)}){end}"
    if len(one) <= LINE:
        return [one]
    outer = f"{lead}{function}("
    inner = " " * (len(outer) - len(outer.lstrip()) + 4)
    together = f"{inner}{', '.join(args)}"
    body = [together] if len(together) <= LINE else [f"{inner}{arg}," for arg in args]
    return [outer, *body, f"{' ' * (len(inner) - 4)}){end}"]


def _wrapped(statement: str) -> list[str]:
    # A statement that is one call, or short enough.
    if len(statement) + 8 <= LINE:
        return [f"        {statement}"]
    head, _, rest = statement.partition("(")
    return _laid_out(f"        {head}", _split(rest[:-1]), 0, "")


def _split(text: str) -> list[str]:
    # Arguments at the outermost level.
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    return [*out, text[start:].strip()]
