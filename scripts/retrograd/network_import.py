"""PEtab-SciML's network YAML to the source of an equinox module: one field a layer, one line a node."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from retrograd.errors import RetrogradError

LINE = 120
REQUIRED = object()


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
        raise RetrogradError(f"{path}: found {_short(raw)}, wanted a network: nn_model_id, inputs, layers, forward.")
    raw = {"nn_model_id" if key == "mlmodel_id" else key: value for key, value in raw.items()}
    wrong: list[str] = []
    _keys(wrong, "the file", raw, ("nn_model_id", "inputs", "layers", "forward"), ())
    inputs = []
    for where, entry in _entries(wrong, raw, "inputs"):
        _keys(wrong, where, entry, ("input_id",), ("transform",))
        if entry.get("transform") is not None:
            wrong.append(f"{where}: transform is {_short(entry['transform'])}, which is not supported; wanted null")
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
            wrong.append(f"{key}: found {_short(value)}, wanted a list of entries with keys")
        return []
    return [(f"{key}[{i}]", entry) for i, entry in enumerate(value)]


def _text(wrong: list[str], where: str, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        wrong.append(f"{where}: {key} is {_short(value)}, wanted text")
    return str(value)


def _container(wrong: list[str], where: str, entry: Mapping[str, Any], key: str, kind: Any, empty: Any) -> Any:
    value = entry.get(key)
    if value is None:
        return empty
    if not isinstance(value, kind):
        wrong.append(f"{where}: {key} is {_short(value)}, wanted {'a list' if kind is list else 'names and values'}")
        return empty
    return value


def _count(value: Any) -> str:
    return f"{len(value)} networks" if isinstance(value, list) else _short(value)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (list, Mapping)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- what is supported --------------------------------------------------------------------------------


class _Refused(Exception):
    """An argument that is not supported; the text says what was found and what is wanted."""


@dataclass(frozen=True)
class _Arguments:
    """The arguments of a layer or function, by name, with defaults filled in: each checked where it is asked for."""

    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def number(self, name: str) -> str:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _Refused(f"{name} is {_short(value)}, wanted a number")
        return repr(value)

    def whole(self, name: str, least: int = 0) -> int:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _Refused(f"{name} is {_short(value)}, wanted a whole number from {least}")
        return value

    def axis(self, name: str) -> int:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise _Refused(f"{name} is {_short(value)}, wanted an axis: a whole number")
        return value

    def truth(self, name: str) -> bool:
        value = self.values[name]
        if not isinstance(value, bool):
            raise _Refused(f"{name} is {_short(value)}, wanted true or false")
        return value

    def tuple(self, name: str, dims: int, least: int = 0, none: bool = False) -> tuple[Any, ...]:
        """Returns one whole number an axis, from one for all or a list; None too where `none` allows it."""
        value = self.values[name]
        listed = [value[0]] * dims if isinstance(value, list) and len(value) == 1 else value
        listed = listed if isinstance(listed, list) else [listed] * dims
        good = lambda v: (none and v is None) or (isinstance(v, int) and not isinstance(v, bool) and v >= least)
        if len(listed) != dims or not all(map(good, listed)):
            raise _Refused(f"{name} is {_short(value)}, wanted {dims} whole numbers from {least}, or one for all axes")
        return tuple(listed)

    def only(self, name: str, *allowed: Any) -> Any:
        value = self.values[name]
        if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            raise _Refused(f"{name} is {_short(value)}, which is not supported; supported: {_either(allowed)}")
        return value


def _either(values: Sequence[Any]) -> str:
    return " or ".join(json.dumps(v) for v in values)


def _bound(
    args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Mapping[str, Any], ignored: Sequence[str] = ()
) -> _Arguments:
    """Returns arguments by name; refuses those that PyTorch's signature does not have, or that are missing."""
    names = list(parameters)
    if len(args) > len(names):
        raise _Refused(f"{len(args)} arguments given, wanted at most {len(names)} ({', '.join(names) or 'none'})")
    values = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in values:
            raise _Refused(f"{name} is given twice")
        if name not in parameters and name not in ignored:
            raise _Refused(f"the argument {name!r} is not known; known: {', '.join(names) or 'none'}")
        values[name] = value
    missing = [n for n, default in parameters.items() if default is REQUIRED and n not in values]
    if missing:
        raise _Refused(f"{', '.join(missing)} missing")
    return _Arguments({**{n: d for n, d in parameters.items() if d is not REQUIRED}, **values})


@dataclass(frozen=True)
class _LayerKind:
    """What becomes of a type of layers.

    - `parameters`: PyTorch's arguments in its order, with its defaults.
    - `make`: arguments to the constructor's name and arguments, or None where the layer has no arrays.
    - `call`: arguments and inputs to an expression, where it has none.
    - `inputs`: how many inputs it takes.
    - `buffers`: names of the arrays that are no weights, from the arguments.
    - `note`: what a reader should know of its meaning here, or nothing.
    """

    parameters: Mapping[str, Any]
    make: Callable[[_Arguments, bool], tuple[str, list[str]]] | None = None
    call: Callable[[_Arguments, str], str] | None = None
    inputs: int = 1
    buffers: Callable[[_Arguments], tuple[str, ...]] = lambda a: ()
    note: str = ""


def _plain(values: Sequence[Any]) -> str:
    inner = ", ".join(map(str, values))
    return f"({inner},)" if len(values) == 1 else f"({inner})"


def _linear(a: _Arguments, training: bool) -> tuple[str, list[str]]:
    bias = [] if a.truth("bias") else ["bias=False"]
    return "layers.Linear", [str(a.whole("in_features", 1)), str(a.whole("out_features", 1)), *bias]


def _bilinear(a: _Arguments, training: bool) -> tuple[str, list[str]]:
    sizes = [str(a.whole(n, 1)) for n in ("in1_features", "in2_features", "out_features")]
    return "layers.Bilinear", [*sizes, *([] if a.truth("bias") else ["bias=False"])]


def _conv(dims: int) -> _LayerKind:
    def make(a: _Arguments, training: bool) -> tuple[str, list[str]]:
        kernel, dilation = a.tuple("kernel_size", dims, 1), a.tuple("dilation", dims, 1)
        stride, groups = a.tuple("stride", dims, 1), a.whole("groups", 1)
        mode = a.only("padding_mode", "zeros", "reflect", "replicate", "circular")
        if a["padding"] == "valid":
            padding = [(0, 0)] * dims
        elif a["padding"] == "same":
            if set(stride) != {1}:
                raise _Refused("padding is 'same', which PyTorch has for a stride of 1 only")
            # The odd value goes to the far end.
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            padding = [(t // 2, t - t // 2) for t in total]
        else:
            padding = [(p, p) for p in a.tuple("padding", dims)]
        sizes = _channels(a, groups)
        more = [f"groups={groups}"] if groups != 1 else []
        more += [] if a.truth("bias") else ["bias=False"]
        more += [] if mode == "zeros" else [f'padding_mode="{mode}"']
        given = [f"stride={_plain(stride)}", f"padding={_plain(padding)}", f"dilation={_plain(dilation)}"]
        return "layers.Conv", [*sizes, _plain(kernel), *given, *more]

    names = {"in_channels": REQUIRED, "out_channels": REQUIRED, "kernel_size": REQUIRED, "stride": 1, "padding": 0}
    more = {"dilation": 1, "groups": 1, "bias": True, "padding_mode": "zeros"}
    return _LayerKind({**names, **more}, make)


def _channels(a: _Arguments, groups: int) -> list[str]:
    sizes = [a.whole("in_channels", 1), a.whole("out_channels", 1)]
    if any(size % groups for size in sizes):
        raise _Refused(f"groups is {groups}, which does not divide {sizes[0]} and {sizes[1]} channels")
    return [str(size) for size in sizes]


def _conv_transpose(dims: int) -> _LayerKind:
    def make(a: _Arguments, training: bool) -> tuple[str, list[str]]:
        a.only("padding_mode", "zeros")
        groups, stride, dilation = a.whole("groups", 1), a.tuple("stride", dims, 1), a.tuple("dilation", dims, 1)
        extra = a.tuple("output_padding", dims)
        if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
            raise _Refused(f"output_padding is {_short(list(extra))}, wanted less than the stride or the dilation")
        given = [f"stride={_plain(stride)}", f"padding={_plain(a.tuple('padding', dims))}"]
        given += [f"output_padding={_plain(extra)}", f"dilation={_plain(dilation)}"]
        more = [f"groups={groups}"] if groups != 1 else []
        more += [] if a.truth("bias") else ["bias=False"]
        return "layers.ConvTranspose", [*_channels(a, groups), _plain(a.tuple("kernel_size", dims, 1)), *given, *more]

    names = {"in_channels": REQUIRED, "out_channels": REQUIRED, "kernel_size": REQUIRED, "stride": 1, "padding": 0}
    more = {"output_padding": 0, "groups": 1, "bias": True, "dilation": 1, "padding_mode": "zeros"}
    return _LayerKind({**names, **more}, make)


def _strided(a: _Arguments, dims: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    # A stride that is not given is the kernel's size.
    kernel = a.tuple("kernel_size", dims, 1)
    return kernel, kernel if a["stride"] is None else a.tuple("stride", dims, 1)


def _padded(a: _Arguments, dims: int, kernel: tuple[Any, ...]) -> tuple[Any, ...]:
    padding = a.tuple("padding", dims)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise _Refused(f"padding is {_short(list(padding))}, wanted at most half of the kernel's size")
    return padding


def _max_pool(dims: int) -> _LayerKind:
    def call(a: _Arguments, x: str) -> str:
        a.only("return_indices", False)
        kernel, stride = _strided(a, dims)
        given = [kernel, stride, _padded(a, dims, kernel), a.tuple("dilation", dims, 1)]
        return _call("layers.max_pool", [x, *map(_plain, given), repr(a.truth("ceil_mode"))])

    names = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "dilation": 1}
    return _LayerKind({**names, "return_indices": False, "ceil_mode": False}, call=call)


def _avg_pool(dims: int) -> _LayerKind:
    def call(a: _Arguments, x: str) -> str:
        kernel, stride = _strided(a, dims)
        given = [x, *map(_plain, (kernel, stride, _padded(a, dims, kernel))), repr(a.truth("ceil_mode"))]
        given += [] if a.truth("count_include_pad") else ["count_include_pad=False"]
        given += [] if a["divisor_override"] is None else [f"divisor={a.whole('divisor_override', 1)}"]
        return _call("layers.avg_pool", given)

    names = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    return _LayerKind({**names, "divisor_override": None}, call=call)


def _lp_pool(dims: int) -> _LayerKind:
    def call(a: _Arguments, x: str) -> str:
        kernel, stride = _strided(a, dims)
        given = [x, a.number("norm_type"), _plain(kernel), _plain(stride), repr(a.truth("ceil_mode"))]
        return _call("layers.lp_pool", given)

    names = {"norm_type": REQUIRED, "kernel_size": REQUIRED, "stride": None, "ceil_mode": False}
    return _LayerKind(names, call=call)


def _adaptive(kind: str, dims: int) -> _LayerKind:
    def call(a: _Arguments, x: str) -> str:
        if kind == "max":
            a.only("return_indices", False)
        return _call(f"layers.adaptive_{kind}_pool", [x, _plain(a.tuple("output_size", dims, 1, none=True))])

    more = {"return_indices": False} if kind == "max" else {}
    return _LayerKind({"output_size": REQUIRED, **more}, call=call)


RUNNING = "uses the mean and variance that training left behind (running_mean, running_var)"


def _norm(kind: str, dims: int, affine: bool, running: bool) -> _LayerKind:
    def make(a: _Arguments, training: bool) -> tuple[str, list[str]]:
        running = a.truth("track_running_stats") and not training
        given = [f"dims={dims}", f"eps={a.number('eps')}", f"affine={a.truth('affine')}"]
        given += [f"bias={a.truth('bias')}", f"running={running}"]
        return f"layers.{kind}", [str(a.whole("num_features", 1)), *given]

    # How fast training forgets plays no part in evaluation.
    names = {"num_features": REQUIRED, "eps": 1e-5, "momentum": 0.1, "affine": affine, "track_running_stats": running}
    buffers = lambda a: ("running_mean", "running_var") if a.truth("track_running_stats") else ()
    return _LayerKind({**names, "bias": True}, make, buffers=buffers, note=RUNNING)


def _layer_norm(a: _Arguments, training: bool) -> tuple[str, list[str]]:
    shape = a["normalized_shape"]
    shape = a.tuple("normalized_shape", len(shape) if isinstance(shape, list) else 1, 1)
    given = [f"eps={a.number('eps')}", f"affine={a.truth('elementwise_affine')}", f"bias={a.truth('bias')}"]
    return "layers.LayerNorm", [_plain(shape), *given]


def _flat(a: _Arguments, x: str) -> str:
    start, end = a.axis("start_dim"), a.axis("end_dim")
    return f"jnp.ravel({x})" if (start, end) == (0, -1) else f"layers.flatten({x}, {start}, {end})"


def _same(a: _Arguments, x: str) -> str:
    return x


DROPOUT = _LayerKind({"p": 0.5, "inplace": False}, call=_same, note="returns its input: nothing is dropped")


@dataclass(frozen=True)
class _Function:
    """A function of one array: PyTorch's arguments behind it, and the expression for `x`."""

    parameters: Mapping[str, Any]
    expression: Callable[[_Arguments, str], str]
    # Arguments of PyTorch's own functions that change no value.
    ignored: tuple[str, ...] = ()


def _one(name: str) -> Callable[[_Arguments, str], str]:
    return lambda a, x: f"{name}({x})"


def _with(name: str, *arguments: str) -> Callable[[_Arguments, str], str]:
    return lambda a, x: _call(name, [x, *(a.number(n) for n in arguments)])


def _gelu(a: _Arguments, x: str) -> str:
    return f"jax.nn.gelu({x}, approximate={a.only('approximate', 'none', 'tanh') == 'tanh'})"


def _along(name: str) -> Callable[[_Arguments, str], str]:
    def expression(a: _Arguments, x: str) -> str:
        a.only("dtype", None)
        return f"layers.{name}({x})" if a["dim"] is None else f"jax.nn.{name}({x}, axis={a.axis('dim')})"

    return expression


def _reduced(name: str) -> Callable[[_Arguments, str], str]:
    def expression(a: _Arguments, x: str) -> str:
        axis = [] if a["dim"] is None else [f"axis={a.axis('dim')}"]
        return _call(f"jnp.{name}", [x, *axis, *(["keepdims=True"] if a.truth("keepdim") else [])])

    return expression


INPLACE = {"inplace": False}
SOFTMAX = {"dim": None, "_stacklevel": 3, "dtype": None}

FUNCTIONS: dict[str, _Function] = {
    "relu": _Function(INPLACE, _one("jax.nn.relu")),
    "relu6": _Function(INPLACE, _one("jax.nn.relu6")),
    "hardtanh": _Function({"min_val": -1.0, "max_val": 1.0, **INPLACE}, _with("layers.hardtanh", "min_val", "max_val")),
    "hardswish": _Function(INPLACE, _one("jax.nn.hard_swish")),
    "hardsigmoid": _Function(INPLACE, _one("jax.nn.hard_sigmoid")),
    "selu": _Function(INPLACE, _one("jax.nn.selu")),
    "silu": _Function(INPLACE, _one("jax.nn.silu")),
    "mish": _Function(INPLACE, _one("jax.nn.mish")),
    "elu": _Function({"alpha": 1.0, **INPLACE}, _with("jax.nn.elu", "alpha")),
    "celu": _Function({"alpha": 1.0, **INPLACE}, _with("jax.nn.celu", "alpha")),
    "leaky_relu": _Function({"negative_slope": 0.01, **INPLACE}, _with("jax.nn.leaky_relu", "negative_slope")),
    "gelu": _Function({"approximate": "none"}, _gelu),
    "tanh": _Function({}, _one("jnp.tanh")),
    "sigmoid": _Function({}, _one("jax.nn.sigmoid")),
    "logsigmoid": _Function({}, _one("jax.nn.log_sigmoid")),
    "log_sigmoid": _Function({}, _one("jax.nn.log_sigmoid")),
    "softsign": _Function({}, _one("jax.nn.soft_sign")),
    "tanhshrink": _Function({}, _one("layers.tanhshrink")),
    "softplus": _Function({"beta": 1, "threshold": 20}, _with("layers.softplus", "beta", "threshold")),
    "softmax": _Function(SOFTMAX, _along("softmax")),
    "log_softmax": _Function(SOFTMAX, _along("log_softmax")),
    "flatten": _Function({"start_dim": 0, "end_dim": -1}, _flat),
    "dropout": _Function({"p": 0.5, "training": True, **INPLACE}, _same),
    "unsqueeze": _Function({"dim": REQUIRED}, lambda a, x: f"jnp.expand_dims({x}, {a.axis('dim')})"),
    "transpose": _Function(
        {"dim0": REQUIRED, "dim1": REQUIRED}, lambda a, x: f"jnp.swapaxes({x}, {a.axis('dim0')}, {a.axis('dim1')})"
    ),
    "sum": _Function({"dim": None, "keepdim": False}, _reduced("sum")),
    "mean": _Function({"dim": None, "keepdim": False}, _reduced("mean")),
    "exp": _Function({}, _one("jnp.exp")),
    "log": _Function({}, _one("jnp.log")),
    "sqrt": _Function({}, _one("jnp.sqrt")),
    "sin": _Function({}, _one("jnp.sin")),
    "cos": _Function({}, _one("jnp.cos")),
    "abs": _Function({}, _one("jnp.abs")),
    "square": _Function({}, _one("jnp.square")),
    "neg": _Function({}, lambda a, x: f"-{x}"),
}

# Of two arrays, or of an array and a number.
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "div": "/", "pow": "**", "matmul": "@"}


def _activation(name: str, **renamed: Any) -> _LayerKind:
    function = FUNCTIONS[name]
    parameters = {n: d for n, d in {**function.parameters, **renamed}.items() if not n.startswith("_")}
    fill = lambda a: _Arguments({**function.parameters, **a.values})
    return _LayerKind(parameters, call=lambda a, x: function.expression(fill(a), x))


LAYERS: dict[str, _LayerKind] = {
    "Linear": _LayerKind({"in_features": REQUIRED, "out_features": REQUIRED, "bias": True}, _linear),
    "Bilinear": _LayerKind(
        {"in1_features": REQUIRED, "in2_features": REQUIRED, "out_features": REQUIRED, "bias": True},
        _bilinear,
        inputs=2,
    ),
    "Flatten": _LayerKind({"start_dim": 1, "end_dim": -1}, call=_flat),
    "Identity": _LayerKind({}, call=_same),
    "LayerNorm": _LayerKind(
        {"normalized_shape": REQUIRED, "eps": 1e-5, "elementwise_affine": True, "bias": True}, _layer_norm
    ),
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"), DROPOUT),
    **{f"Conv{d}d": _conv(d) for d in (1, 2, 3)},
    **{f"ConvTranspose{d}d": _conv_transpose(d) for d in (1, 2, 3)},
    **{f"MaxPool{d}d": _max_pool(d) for d in (1, 2, 3)},
    **{f"AvgPool{d}d": _avg_pool(d) for d in (1, 2, 3)},
    **{f"LPPool{d}d": _lp_pool(d) for d in (1, 2, 3)},
    **{f"AdaptiveMaxPool{d}d": _adaptive("max", d) for d in (1, 2, 3)},
    **{f"AdaptiveAvgPool{d}d": _adaptive("avg", d) for d in (1, 2, 3)},
    **{f"BatchNorm{d}d": _norm("BatchNorm", d, True, True) for d in (1, 2, 3)},
    **{f"InstanceNorm{d}d": _norm("InstanceNorm", d, False, False) for d in (1, 2, 3)},
    **{
        layer: _activation(function)
        for layer, function in {
            "ReLU": "relu",
            "ReLU6": "relu6",
            "Hardtanh": "hardtanh",
            "Hardswish": "hardswish",
            "Hardsigmoid": "hardsigmoid",
            "SELU": "selu",
            "SiLU": "silu",
            "Mish": "mish",
            "ELU": "elu",
            "CELU": "celu",
            "LeakyReLU": "leaky_relu",
            "GELU": "gelu",
            "Tanh": "tanh",
            "Sigmoid": "sigmoid",
            "LogSigmoid": "logsigmoid",
            "Softsign": "softsign",
            "Tanhshrink": "tanhshrink",
            "Softplus": "softplus",
            "Softmax": "softmax",
            "LogSoftmax": "log_softmax",
        }.items()
    },
}
# Holds other layers and does nothing itself: tracing goes through it to what it holds.
CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


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
    if len(outputs) != 1 or network.nodes[-1].op != "output":
        found.append(f"forward: {len(outputs)} output nodes, wanted one, as the last node")
    known: list[str] = []
    layers = {layer.id: layer for layer in network.layers}
    for node in network.nodes:
        try:
            _expression(node, known, layers, {name: name for name in known}, network)
        except _Refused as refusal:
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
        a = _bound((), layer.args, kind.parameters)
        if kind.make is not None:
            kind.make(a, False)
        elif kind.call is not None:
            kind.call(a, "x")
    except _Refused as refusal:
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
            and (kind.make is None or kind.buffers(_bound((), layer.args, kind.parameters)))
        ):
            out.append(f"layer {layer.id}: {layer.type} {kind.note}, as PyTorch does in evaluation.")
        if layer.type not in CONTAINERS and layer.id not in _called(network):
            out.append(f"layer {layer.id}: the forward function never calls it, so it and its arrays are left out.")
    return out


def buffers(network: Network) -> tuple[str, ...]:
    """Returns the paths of arrays that are no weights, such as `norm1.running_mean`, for a model's `frozen`."""
    fields, out = field_names(network), []
    for layer in network.layers:
        if layer.id in fields:
            kind = LAYERS[layer.type]
            names = kind.buffers(_bound((), layer.args, kind.parameters))
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
            raise _Refused("a default of an input is not supported")
        return ""
    if node.op == "output":
        if len(node.args) != 1 or node.kwargs:
            raise _Refused(f"{len(node.args)} arguments, wanted one: a node or a list of nodes")
        results = node.args[0] if isinstance(node.args[0], list) else [node.args[0]]
        return ", ".join(_array(v, known, names) for v in results)
    if node.op == "call_module":
        layer = layers.get(node.target)
        if layer is None:
            raise _Refused(f"there is no layer {node.target!r}")
        if layer.type not in LAYERS:
            raise _Refused(f"its layer's type {layer.type!r} cannot be called")
        kind = LAYERS[layer.type]
        if len(node.args) != kind.inputs or node.kwargs:
            raise _Refused(f"{len(node.args) + len(node.kwargs)} arguments, wanted {kind.inputs} of its inputs alone")
        inputs = [_array(v, known, names) for v in node.args]
        _refuse_inplace(layer.args.get("inplace", False), node, network)
        if kind.call is None:
            return _call(f"self.{_identifier(layer.id)}", inputs)
        return kind.call(_bound((), layer.args, kind.parameters), inputs[0])
    if node.op not in ("call_function", "call_method"):
        raise _Refused(f"the operation {node.op!r} is not supported")
    if node.target in ("cat", "concat", "concatenate", "stack") and node.op == "call_function":
        a = _bound(node.args, node.kwargs, {"tensors": REQUIRED, "dim": 0})
        if not isinstance(a["tensors"], list):
            raise _Refused(f"found {_short(a['tensors'])}, wanted a list of nodes")
        function = "jnp.stack" if node.target == "stack" else "jnp.concatenate"
        return f"{function}([{', '.join(_array(v, known, names) for v in a['tensors'])}], axis={a.axis('dim')})"
    if node.target in OPERATORS:
        if len(node.args) != 2 or node.kwargs:
            raise _Refused(f"{len(node.args)} arguments and {_short(dict(node.kwargs))}, wanted two operands alone")
        return f" {OPERATORS[node.target]} ".join(map(value, node.args))
    function = FUNCTIONS.get(node.target)
    if function is None:
        raise _Refused(f"it is not supported; supported: {', '.join(sorted([*FUNCTIONS, *OPERATORS, 'cat', 'stack']))}")
    # PyTorch's functions call their array `input`.
    args, kwargs = list(node.args), dict(node.kwargs)
    first = args.pop(0) if args else kwargs.pop("input", None)
    a = _bound(args, kwargs, function.parameters)
    if node.target == "dropout" and a.truth("training"):
        raise _Refused("training is true: it would drop at random; wanted false")
    _refuse_inplace(a.values.get("inplace", False), node, network)
    return function.expression(a, _array(first, known, names))


def _refuse_inplace(inplace: Any, node: Node, network: Network) -> None:
    # It writes over its input: the same as a new array where nobody else reads that.
    if inplace is False:
        return
    readers = [n.name for n in network.nodes for v in _flat_values([*n.args, *n.kwargs.values()]) if v in node.args[:1]]
    if inplace is not True or len(readers) != 1:
        raise _Refused(f"inplace is {_short(inplace)} and its input is read by {', '.join(readers)}; wanted false")


def _flat_values(values: Sequence[Any]) -> list[Any]:
    out = []
    for v in values:
        out += _flat_values(v) if isinstance(v, list) else [v]
    return out


def _array(value: Any, known: Sequence[str], names: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise _Refused(f"found {_short(value)} as an array, wanted a node in front of this one")
    return names[value]


def _operand(value: Any, known: Sequence[str], names: Mapping[str, str]) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"({value!r})" if value < 0 else repr(value)
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
    lines = [f"class {class_name}(eqx.Module):", f'    """The network {network.name}: {_signature(network)}."""', ""]
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
    return kind.make(_bound((), layer.args, kind.parameters), batch_statistics)


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


def _call(function: str, args: Sequence[str]) -> str:
    return f"{function}({', '.join(args)})"


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
