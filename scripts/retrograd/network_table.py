"""What of PyTorch's layers and functions is imported, and the Python that each becomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REQUIRED = object()


class Refused(Exception):
    """An argument that is not supported; the text says what was found and what is wanted."""


def short(value: Any) -> str:
    """Returns a value as a message shows it, not too long."""
    text = json.dumps(value, default=str) if isinstance(value, (list, Mapping)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def call_text(function: str, args: Sequence[str]) -> str:
    """Returns the text of a call."""
    return f"{function}({', '.join(args)})"


@dataclass(frozen=True)
class Arguments:
    """The arguments of a layer or function, by name, with defaults filled in: each checked where it is asked for."""

    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def number(self, name: str) -> str:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refused(f"{name} is {short(value)}, wanted a number")
        return repr(value)

    def whole(self, name: str, least: int = 0) -> int:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise Refused(f"{name} is {short(value)}, wanted a whole number from {least}")
        return value

    def axis(self, name: str) -> int:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(f"{name} is {short(value)}, wanted an axis: a whole number")
        return value

    def truth(self, name: str) -> bool:
        value = self.values[name]
        if not isinstance(value, bool):
            raise Refused(f"{name} is {short(value)}, wanted true or false")
        return value

    def tuple(self, name: str, dims: int, least: int = 0, none: bool = False) -> tuple[Any, ...]:
        """Returns one whole number an axis, from one for all or a list; None too where `none` allows it."""
        value = self.values[name]
        listed = [value[0]] * dims if isinstance(value, list) and len(value) == 1 else value
        listed = listed if isinstance(listed, list) else [listed] * dims
        good = lambda v: (none and v is None) or (isinstance(v, int) and not isinstance(v, bool) and v >= least)
        if len(listed) != dims or not all(map(good, listed)):
            raise Refused(f"{name} is {short(value)}, wanted {dims} whole numbers from {least}, or one for all axes")
        return tuple(listed)

    def only(self, name: str, *allowed: Any) -> Any:
        value = self.values[name]
        if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            raise Refused(f"{name} is {short(value)}, which is not supported; supported: {_either(allowed)}")
        return value


def _either(values: Sequence[Any]) -> str:
    return " or ".join(json.dumps(v) for v in values)


def bound(
    args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Mapping[str, Any], ignored: Sequence[str] = ()
) -> Arguments:
    """Returns arguments by name; refuses those that PyTorch's signature does not have, or that are missing."""
    names = list(parameters)
    if len(args) > len(names):
        raise Refused(f"{len(args)} arguments given, wanted at most {len(names)} ({', '.join(names) or 'none'})")
    values = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in values:
            raise Refused(f"{name} is given twice")
        if name not in parameters and name not in ignored:
            raise Refused(f"the argument {name!r} is not known; known: {', '.join(names) or 'none'}")
        values[name] = value
    missing = [n for n, default in parameters.items() if default is REQUIRED and n not in values]
    if missing:
        raise Refused(f"{', '.join(missing)} missing")
    return Arguments({**{n: d for n, d in parameters.items() if d is not REQUIRED}, **values})


@dataclass(frozen=True)
class LayerKind:
    """What becomes of a type of layers.

    - `parameters`: PyTorch's arguments in its order, with its defaults.
    - `make`: arguments to the constructor's name and arguments, or None where the layer has no arrays.
    - `call`: arguments and inputs to an expression, where it has none.
    - `inputs`: how many inputs it takes.
    - `buffers`: names of the arrays that are no weights, from the arguments.
    - `note`: what a reader should know of its meaning here, or nothing.
    """

    parameters: Mapping[str, Any]
    make: Callable[[Arguments, bool], tuple[str, list[str]]] | None = None
    call: Callable[[Arguments, str], str] | None = None
    inputs: int = 1
    buffers: Callable[[Arguments], tuple[str, ...]] = lambda a: ()
    note: str = ""


def _plain(values: Sequence[Any]) -> str:
    inner = ", ".join(map(str, values))
    return f"({inner},)" if len(values) == 1 else f"({inner})"


def _linear(a: Arguments, training: bool) -> tuple[str, list[str]]:
    bias = [] if a.truth("bias") else ["bias=False"]
    return "layers.Linear", [str(a.whole("in_features", 1)), str(a.whole("out_features", 1)), *bias]


def _bilinear(a: Arguments, training: bool) -> tuple[str, list[str]]:
    sizes = [str(a.whole(n, 1)) for n in ("in1_features", "in2_features", "out_features")]
    return "layers.Bilinear", [*sizes, *([] if a.truth("bias") else ["bias=False"])]


def _conv(dims: int) -> LayerKind:
    def make(a: Arguments, training: bool) -> tuple[str, list[str]]:
        kernel, dilation = a.tuple("kernel_size", dims, 1), a.tuple("dilation", dims, 1)
        stride, groups = a.tuple("stride", dims, 1), a.whole("groups", 1)
        mode = a.only("padding_mode", "zeros", "reflect", "replicate", "circular")
        if a["padding"] == "valid":
            padding = [(0, 0)] * dims
        elif a["padding"] == "same":
            if set(stride) != {1}:
                raise Refused("padding is 'same', which PyTorch has for a stride of 1 only")
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
    return LayerKind({**names, **more}, make)


def _channels(a: Arguments, groups: int) -> list[str]:
    sizes = [a.whole("in_channels", 1), a.whole("out_channels", 1)]
    if any(size % groups for size in sizes):
        raise Refused(f"groups is {groups}, which does not divide {sizes[0]} and {sizes[1]} channels")
    return [str(size) for size in sizes]


def _conv_transpose(dims: int) -> LayerKind:
    def make(a: Arguments, training: bool) -> tuple[str, list[str]]:
        a.only("padding_mode", "zeros")
        groups, stride, dilation = a.whole("groups", 1), a.tuple("stride", dims, 1), a.tuple("dilation", dims, 1)
        extra = a.tuple("output_padding", dims)
        if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
            raise Refused(f"output_padding is {short(list(extra))}, wanted less than the stride or the dilation")
        given = [f"stride={_plain(stride)}", f"padding={_plain(a.tuple('padding', dims))}"]
        given += [f"output_padding={_plain(extra)}", f"dilation={_plain(dilation)}"]
        more = [f"groups={groups}"] if groups != 1 else []
        more += [] if a.truth("bias") else ["bias=False"]
        return "layers.ConvTranspose", [*_channels(a, groups), _plain(a.tuple("kernel_size", dims, 1)), *given, *more]

    names = {"in_channels": REQUIRED, "out_channels": REQUIRED, "kernel_size": REQUIRED, "stride": 1, "padding": 0}
    more = {"output_padding": 0, "groups": 1, "bias": True, "dilation": 1, "padding_mode": "zeros"}
    return LayerKind({**names, **more}, make)


def _strided(a: Arguments, dims: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    # A stride that is not given is the kernel's size.
    kernel = a.tuple("kernel_size", dims, 1)
    return kernel, kernel if a["stride"] is None else a.tuple("stride", dims, 1)


def _padded(a: Arguments, dims: int, kernel: tuple[Any, ...]) -> tuple[Any, ...]:
    padding = a.tuple("padding", dims)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise Refused(f"padding is {short(list(padding))}, wanted at most half of the kernel's size")
    return padding


def _max_pool(dims: int) -> LayerKind:
    def call(a: Arguments, x: str) -> str:
        a.only("return_indices", False)
        kernel, stride = _strided(a, dims)
        given = [kernel, stride, _padded(a, dims, kernel), a.tuple("dilation", dims, 1)]
        return call_text("layers.max_pool", [x, *map(_plain, given), repr(a.truth("ceil_mode"))])

    names = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "dilation": 1}
    return LayerKind({**names, "return_indices": False, "ceil_mode": False}, call=call)


def _avg_pool(dims: int) -> LayerKind:
    def call(a: Arguments, x: str) -> str:
        kernel, stride = _strided(a, dims)
        given = [x, *map(_plain, (kernel, stride, _padded(a, dims, kernel))), repr(a.truth("ceil_mode"))]
        given += [] if a.truth("count_include_pad") else ["count_include_pad=False"]
        given += [] if a["divisor_override"] is None else [f"divisor={a.whole('divisor_override', 1)}"]
        return call_text("layers.avg_pool", given)

    names = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    return LayerKind({**names, "divisor_override": None}, call=call)


def _lp_pool(dims: int) -> LayerKind:
    def call(a: Arguments, x: str) -> str:
        kernel, stride = _strided(a, dims)
        given = [x, a.number("norm_type"), _plain(kernel), _plain(stride), repr(a.truth("ceil_mode"))]
        return call_text("layers.lp_pool", given)

    names = {"norm_type": REQUIRED, "kernel_size": REQUIRED, "stride": None, "ceil_mode": False}
    return LayerKind(names, call=call)


def _adaptive(kind: str, dims: int) -> LayerKind:
    def call(a: Arguments, x: str) -> str:
        if kind == "max":
            a.only("return_indices", False)
        return call_text(f"layers.adaptive_{kind}_pool", [x, _plain(a.tuple("output_size", dims, 1, none=True))])

    more = {"return_indices": False} if kind == "max" else {}
    return LayerKind({"output_size": REQUIRED, **more}, call=call)


RUNNING = "uses the mean and variance that training left behind (running_mean, running_var)"


def _norm(kind: str, dims: int, affine: bool, running: bool) -> LayerKind:
    def make(a: Arguments, training: bool) -> tuple[str, list[str]]:
        running = a.truth("track_running_stats") and not training
        given = [f"dims={dims}", f"eps={a.number('eps')}", f"affine={a.truth('affine')}"]
        given += [f"bias={a.truth('bias')}", f"running={running}"]
        return f"layers.{kind}", [str(a.whole("num_features", 1)), *given]

    # How fast training forgets plays no part in evaluation.
    names = {"num_features": REQUIRED, "eps": 1e-5, "momentum": 0.1, "affine": affine, "track_running_stats": running}
    buffers = lambda a: ("running_mean", "running_var") if a.truth("track_running_stats") else ()
    return LayerKind({**names, "bias": True}, make, buffers=buffers, note=RUNNING)


def _layer_norm(a: Arguments, training: bool) -> tuple[str, list[str]]:
    shape = a["normalized_shape"]
    shape = a.tuple("normalized_shape", len(shape) if isinstance(shape, list) else 1, 1)
    given = [f"eps={a.number('eps')}", f"affine={a.truth('elementwise_affine')}", f"bias={a.truth('bias')}"]
    return "layers.LayerNorm", [_plain(shape), *given]


def _flat(a: Arguments, x: str) -> str:
    start, end = a.axis("start_dim"), a.axis("end_dim")
    return f"jnp.ravel({x})" if (start, end) == (0, -1) else f"layers.flatten({x}, {start}, {end})"


def _same(a: Arguments, x: str) -> str:
    return x


DROPOUTS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")
DROPOUT = LayerKind({"p": 0.5, "inplace": False}, call=_same, note="returns its input: nothing is dropped")


@dataclass(frozen=True)
class Function:
    """A function of one array: PyTorch's arguments behind it, and the expression for `x`."""

    parameters: Mapping[str, Any]
    expression: Callable[[Arguments, str], str]
    # Arguments of PyTorch's own functions that change no value.
    ignored: tuple[str, ...] = ()


def _one(name: str) -> Callable[[Arguments, str], str]:
    return lambda a, x: f"{name}({x})"


def _with(name: str, *arguments: str) -> Callable[[Arguments, str], str]:
    return lambda a, x: call_text(name, [x, *(a.number(n) for n in arguments)])


def _gelu(a: Arguments, x: str) -> str:
    return f"jax.nn.gelu({x}, approximate={a.only('approximate', 'none', 'tanh') == 'tanh'})"


def _along(name: str) -> Callable[[Arguments, str], str]:
    def expression(a: Arguments, x: str) -> str:
        a.only("dtype", None)
        return f"layers.{name}({x})" if a["dim"] is None else f"jax.nn.{name}({x}, axis={a.axis('dim')})"

    return expression


def _reduced(name: str) -> Callable[[Arguments, str], str]:
    def expression(a: Arguments, x: str) -> str:
        axis = [] if a["dim"] is None else [f"axis={a.axis('dim')}"]
        return call_text(f"jnp.{name}", [x, *axis, *(["keepdims=True"] if a.truth("keepdim") else [])])

    return expression


INPLACE = {"inplace": False}
SOFTMAX = {"dim": None, "_stacklevel": 3, "dtype": None}

FUNCTIONS: dict[str, Function] = {
    "relu": Function(INPLACE, _one("jax.nn.relu")),
    "relu6": Function(INPLACE, _one("jax.nn.relu6")),
    "hardtanh": Function({"min_val": -1.0, "max_val": 1.0, **INPLACE}, _with("layers.hardtanh", "min_val", "max_val")),
    "hardswish": Function(INPLACE, _one("jax.nn.hard_swish")),
    "hardsigmoid": Function(INPLACE, _one("jax.nn.hard_sigmoid")),
    "selu": Function(INPLACE, _one("jax.nn.selu")),
    "silu": Function(INPLACE, _one("jax.nn.silu")),
    "mish": Function(INPLACE, _one("jax.nn.mish")),
    "elu": Function({"alpha": 1.0, **INPLACE}, _with("jax.nn.elu", "alpha")),
    "celu": Function({"alpha": 1.0, **INPLACE}, _with("jax.nn.celu", "alpha")),
    "leaky_relu": Function({"negative_slope": 0.01, **INPLACE}, _with("jax.nn.leaky_relu", "negative_slope")),
    "gelu": Function({"approximate": "none"}, _gelu),
    "tanh": Function({}, _one("jnp.tanh")),
    "sigmoid": Function({}, _one("jax.nn.sigmoid")),
    "logsigmoid": Function({}, _one("jax.nn.log_sigmoid")),
    "log_sigmoid": Function({}, _one("jax.nn.log_sigmoid")),
    "softsign": Function({}, _one("jax.nn.soft_sign")),
    "tanhshrink": Function({}, _one("layers.tanhshrink")),
    "softplus": Function({"beta": 1, "threshold": 20}, _with("layers.softplus", "beta", "threshold")),
    "softmax": Function(SOFTMAX, _along("softmax")),
    "log_softmax": Function(SOFTMAX, _along("log_softmax")),
    "flatten": Function({"start_dim": 0, "end_dim": -1}, _flat),
    "dropout": Function({"p": 0.5, "training": True, **INPLACE}, _same),
    "unsqueeze": Function({"dim": REQUIRED}, lambda a, x: f"jnp.expand_dims({x}, {a.axis('dim')})"),
    "transpose": Function(
        {"dim0": REQUIRED, "dim1": REQUIRED}, lambda a, x: f"jnp.swapaxes({x}, {a.axis('dim0')}, {a.axis('dim1')})"
    ),
    "sum": Function({"dim": None, "keepdim": False}, _reduced("sum")),
    "mean": Function({"dim": None, "keepdim": False}, _reduced("mean")),
    "exp": Function({}, _one("jnp.exp")),
    "log": Function({}, _one("jnp.log")),
    "sqrt": Function({}, _one("jnp.sqrt")),
    "sin": Function({}, _one("jnp.sin")),
    "cos": Function({}, _one("jnp.cos")),
    "abs": Function({}, _one("jnp.abs")),
    "square": Function({}, _one("jnp.square")),
    "neg": Function({}, lambda a, x: f"-{x}"),
}

# Of two arrays, or of an array and a number.
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "div": "/", "pow": "**", "matmul": "@"}


def _activation(name: str, **renamed: Any) -> LayerKind:
    function = FUNCTIONS[name]
    parameters = {n: d for n, d in {**function.parameters, **renamed}.items() if not n.startswith("_")}
    fill = lambda a: Arguments({**function.parameters, **a.values})
    return LayerKind(parameters, call=lambda a, x: function.expression(fill(a), x))


LAYERS: dict[str, LayerKind] = {
    "Linear": LayerKind({"in_features": REQUIRED, "out_features": REQUIRED, "bias": True}, _linear),
    "Bilinear": LayerKind(
        {"in1_features": REQUIRED, "in2_features": REQUIRED, "out_features": REQUIRED, "bias": True},
        _bilinear,
        inputs=2,
    ),
    "Flatten": LayerKind({"start_dim": 1, "end_dim": -1}, call=_flat),
    "Identity": LayerKind({}, call=_same),
    "LayerNorm": LayerKind(
        {"normalized_shape": REQUIRED, "eps": 1e-5, "elementwise_affine": True, "bias": True}, _layer_norm
    ),
    **dict.fromkeys(DROPOUTS, DROPOUT),
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
