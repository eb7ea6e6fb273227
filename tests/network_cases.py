"""Networks as PEtab-SciML writes them, one or more for each layer and function that is imported.

`python tests/network_cases.py` computes `network_expected.json` anew by PyTorch. The arrays are formulas, so that no
random numbers have to be kept.
"""

from __future__ import annotations

import importlib
import json
import operator
from pathlib import Path
from typing import Any

import numpy as np

EXPECTED = Path(__file__).with_suffix("").parent / "network_expected.json"


def node(name: str, op: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "target": target, "args": list(args), "kwargs": kwargs}


def network(inputs: int, layers: dict[str, tuple[str, dict[str, Any]]], nodes: list[dict[str, Any]], *out: Any):
    """Returns the content of a file; `nodes` are those between the inputs and the output, which returns `out`."""
    names = [f"in{i}" for i in range(inputs)]
    return {
        "nn_model_id": "net0",
        "inputs": [{"input_id": f"input{i}"} for i in range(inputs)],
        "layers": [{"layer_id": k, "layer_type": t, "args": args} for k, (t, args) in layers.items()],
        "forward": [*(node(n, "placeholder", n) for n in names), *nodes, node("output", "output", "output", *out)],
    }


def chain(*steps: Any):
    """Returns a network of one input; a step is (layer type, arguments) or (function in small letters, arguments)."""
    layers, nodes, last = {}, [], "in0"
    for i, (name, args) in enumerate(steps):
        if name[0].isupper():
            layers[f"layer{i}"] = (name, args)
            nodes.append(node(f"layer{i}", "call_module", f"layer{i}", last))
        else:
            nodes.append(node(f"{name}_{i}", "call_function", name, last, **args))
        last = nodes[-1]["name"]
    return network(1, layers, nodes, last)


def linear(n: int, m: int, bias: bool = True):
    return "Linear", {"in_features": n, "out_features": m, "bias": bias}


def conv(kind: str, n: int, m: int, kernel: Any, **more: Any):
    return kind, {"in_channels": n, "out_channels": m, "kernel_size": kernel, **more}


def norm(kind: str, n: int, track: bool, affine: bool = True, **more: Any):
    given = {"track_running_stats": track, "momentum": 0.1, "eps": 1e-5, "num_features": n, "affine": affine}
    return kind, {**given, "bias": affine, **more}


def activation(name: str, **args: Any):
    return chain(linear(2, 5), (name, args), linear(5, 1)), [(2,)]


# Name to (file, shapes of the inputs). Each layer and function of the suite's 54 network imports is among them.
CASES: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {
    "bilinear": (
        network(
            1,
            {
                "a": linear(2, 5),
                "b": linear(2, 10),
                "c": ("Bilinear", dict(zip(("in1_features", "in2_features", "out_features"), (5, 10, 2), strict=True))),
            },
            [
                node("x", "call_module", "a", "in0"),
                node("y", "call_module", "b", "in0"),
                node("z", "call_module", "c", "x", "y"),
            ],
            "z",
        ),
        [(2,)],
    ),
    "conv1d": (
        chain(
            conv("Conv1d", 1, 2, [5], stride=[1], padding=[0], dilation=[1], groups=1, padding_mode="zeros"),
            conv("Conv1d", 2, 1, 5),
        ),
        [(1, 20)],
    ),
    "conv2d": (chain(conv("Conv2d", 1, 2, 5), conv("Conv2d", 2, 1, [5, 2])), [(1, 12, 11)]),
    "conv3d": (chain(conv("Conv3d", 1, 2, 5), conv("Conv3d", 2, 1, [5, 4, 3])), [(1, 10, 10, 11)]),
    "transposed 1d": (chain(conv("ConvTranspose1d", 1, 2, 5), conv("ConvTranspose1d", 2, 1, 5)), [(1, 6)]),
    "transposed 2d": (chain(conv("ConvTranspose2d", 1, 2, 5), conv("ConvTranspose2d", 2, 1, [5, 2])), [(1, 4, 3)]),
    "transposed 3d": (
        chain(conv("ConvTranspose3d", 1, 2, 5), conv("ConvTranspose3d", 2, 1, [5, 4, 3])),
        [(1, 3, 2, 4)],
    ),
    "max pool": (chain(("MaxPool1d", {"kernel_size": 3, "stride": 2, "padding": 1})), [(2, 10)]),
    "average pool": (
        chain(
            (
                "AvgPool2d",
                {"kernel_size": [3, 2], "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True},
            )
        ),
        [(2, 10, 9)],
    ),
    "flatten": (chain(("Flatten", {"start_dim": 1, "end_dim": -1})), [(2, 3, 4)]),
    "flatten all": (chain(("Flatten", {"start_dim": 0, "end_dim": -1})), [(2, 3, 4)]),
    "p-norm pool 1d": (
        chain(("LPPool1d", {"norm_type": 2.0, "kernel_size": 3, "stride": None, "ceil_mode": False})),
        [(2, 10)],
    ),
    "p-norm pool 2d": (chain(("LPPool2d", {"norm_type": 3, "kernel_size": [3, 2], "stride": 2})), [(2, 7, 8)]),
    "p-norm pool 3d": (
        chain(("LPPool3d", {"norm_type": 2, "kernel_size": [3, 2, 1], "stride": None, "ceil_mode": True})),
        [(1, 7, 5, 3)],
    ),
    "adaptive": (chain(("AdaptiveAvgPool1d", {"output_size": 4})), [(2, 10)]),
    "image network": (
        chain(
            conv("Conv2d", 1, 6, 5),
            ("MaxPool2d", {"kernel_size": [2, 2], "stride": [2, 2], "padding": 0, "dilation": 1, "ceil_mode": False}),
            conv("Conv2d", 6, 4, 3),
            ("Flatten", {"start_dim": 0}),
            linear(36, 12),
            linear(12, 10),
        ),
        [(1, 14, 14)],
    ),
    "dropout": (chain(("Dropout", {"p": 0.5, "inplace": False}), linear(4, 3)), [(4,)]),
    "dropout 1d": (chain(("Dropout1d", {"p": 0.5}), conv("Conv1d", 5, 1, 2)), [(5, 6)]),
    "dropout 2d": (chain(("Dropout2d", {"p": 0.5}), conv("Conv2d", 5, 1, 2)), [(5, 6, 4)]),
    "dropout 3d": (chain(("Dropout3d", {"p": 0.5}), ("AlphaDropout", {"p": 0.3})), [(2, 3, 2, 2)]),
    "tanh as method": (
        network(
            1,
            {"layer1": linear(2, 5), "layer2": linear(5, 1)},
            [
                node("a", "call_module", "layer1", "in0"),
                node("tanh", "call_method", "tanh", "a"),
                node("b", "call_module", "layer2", "tanh"),
            ],
            "b",
        ),
        [(2,)],
    ),
    "relu6": activation("relu6", inplace=False),
    "hardtanh": activation("hardtanh", min_val=-0.3, max_val=0.4, inplace=False),
    "hardswish": activation("hardswish", inplace=False),
    "selu": activation("selu", inplace=False),
    "leaky_relu": activation("leaky_relu", negative_slope=0.2, inplace=False),
    "gelu": activation("gelu"),
    "gelu by tanh": activation("gelu", approximate="tanh"),
    "logsigmoid": activation("logsigmoid"),
    "tanhshrink": activation("tanhshrink"),
    "softsign": activation("softsign"),
    "softplus": activation("softplus", beta=3, threshold=1),
    "softplus, plain": activation("softplus"),
    "sigmoid": activation("sigmoid"),
    "hardsigmoid": activation("hardsigmoid", inplace=False),
    "mish": activation("mish", inplace=False),
    "elu": activation("elu", alpha=0.7, inplace=False),
    "celu": activation("celu", alpha=0.7, inplace=False),
    "relu": activation("relu", inplace=True),
    "softmax": (chain(("softmax", {"dim": 0, "_stacklevel": 3, "dtype": None})), [(6,)]),
    "log_softmax": (chain(("log_softmax", {"dim": -1, "_stacklevel": 3, "dtype": None})), [(3, 4)]),
    "silu": activation("silu", inplace=False),
    "softmax without an axis": (chain(("softmax", {}), ("log_softmax", {})), [(2, 3, 4)]),
    "batch norm 1d": (
        chain(norm("BatchNorm1d", 3, True), conv("Conv1d", 3, 4, 5), norm("BatchNorm1d", 4, True)),
        [(2, 3, 10)],
    ),
    "batch norm 1d of rows": (chain(norm("BatchNorm1d", 3, True), linear(3, 2)), [(4, 3)]),
    "batch norm 2d": (chain(norm("BatchNorm2d", 3, True, affine=False)), [(2, 3, 4, 5)]),
    "batch norm 3d": (chain(norm("BatchNorm3d", 3, False)), [(2, 3, 4, 3, 2)]),
    "instance norm 1d": (
        chain(
            norm("InstanceNorm1d", 3, False), conv("Conv1d", 3, 4, 5), norm("InstanceNorm1d", 4, False, affine=False)
        ),
        [(2, 3, 10)],
    ),
    "instance norm 2d": (chain(norm("InstanceNorm2d", 3, False)), [(3, 5, 4)]),
    "instance norm 3d": (chain(norm("InstanceNorm3d", 2, True)), [(2, 3, 4, 3)]),
    "layer norm": (
        chain(
            ("LayerNorm", {"normalized_shape": [4, 6, 5, 5], "eps": 1e-5, "elementwise_affine": True, "bias": True}),
            conv("Conv3d", 4, 1, 3),
        ),
        [(4, 6, 5, 5)],
    ),
    "layer norm of a vector": (
        chain(("LayerNorm", {"normalized_shape": [20], "eps": 1e-3, "elementwise_affine": True}), linear(20, 5)),
        [(3, 20)],
    ),
    "without bias": (chain(linear(2, 5, False), ("tanh", {}), linear(5, 1)), [(2,)]),
    "two inputs": (
        network(
            2,
            {
                "layer1": ("Bilinear", {"in1_features": 4, "in2_features": 3, "out_features": 5, "bias": True}),
                "layer2": linear(5, 1),
            },
            [
                node("a", "call_module", "layer1", "in0", "in1"),
                node("tanh", "call_method", "tanh", "a"),
                node("b", "call_module", "layer2", "tanh"),
            ],
            "b",
        ),
        [(4,), (3,)],
    ),
    "cat": (
        network(
            2,
            {"layer1": linear(7, 5)},
            [node("cat", "call_function", "cat", ["in0", "in1"], dim=0), node("a", "call_module", "layer1", "cat")],
            "a",
        ),
        [(4,), (3,)],
    ),
    # Beyond the suite: the arguments that it leaves at their defaults.
    "cat along another axis": (
        network(2, {}, [node("cat", "call_function", "cat", ["in0", "in1"], 1)], "cat"),
        [(2, 3), (2, 2)],
    ),
    "stack": (
        network(2, {}, [node("stack", "call_function", "stack", ["in0", "in1"], dim=-1)], "stack"),
        [(2, 3), (2, 3)],
    ),
    "linear, batched": (chain(linear(3, 4), ("ReLU", {"inplace": False}), linear(4, 2)), [(5, 2, 3)]),
    "bilinear, batched": (
        network(
            2,
            {"b": ("Bilinear", {"in1_features": 4, "in2_features": 3, "out_features": 5, "bias": False})},
            [node("a", "call_module", "b", "in0", "in1")],
            "a",
        ),
        [(2, 4), (2, 3)],
    ),
    "conv1d, all arguments": (
        chain(conv("Conv1d", 4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)),
        [(2, 4, 15)],
    ),
    "conv1d, same": (chain(conv("Conv1d", 2, 3, 4, padding="same", dilation=3)), [(2, 15)]),
    "conv1d, valid": (chain(conv("Conv1d", 2, 3, 4, padding="valid")), [(2, 15)]),
    "conv2d, reflected": (chain(conv("Conv2d", 2, 3, 3, padding=[1, 2], padding_mode="reflect")), [(2, 6, 7)]),
    "conv2d, repeated": (chain(conv("Conv2d", 2, 3, [3, 4], padding="same", padding_mode="replicate")), [(3, 2, 6, 7)]),
    "conv3d, around": (
        chain(conv("Conv3d", 2, 2, 2, padding=1, padding_mode="circular", stride=[1, 2, 1])),
        [(2, 3, 4, 3)],
    ),
    "transposed 1d, all arguments": (
        chain(conv("ConvTranspose1d", 4, 6, 3, stride=3, padding=1, output_padding=2, groups=2, dilation=2)),
        [(2, 4, 5)],
    ),
    "transposed 2d, all arguments": (
        chain(conv("ConvTranspose2d", 3, 2, [3, 2], stride=[2, 3], padding=[2, 0], output_padding=[1, 0], bias=False)),
        [(3, 4, 5)],
    ),
    "transposed 3d, batched": (
        chain(conv("ConvTranspose3d", 2, 4, 2, stride=2, groups=2, padding=1)),
        [(2, 2, 3, 2, 2)],
    ),
    "max pool 1d, ceil": (
        chain(("MaxPool1d", {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True})),
        [(2, 3, 12)],
    ),
    "max pool 2d": (
        chain(
            (
                "MaxPool2d",
                {"kernel_size": [3, 2], "stride": [2, 1], "padding": [1, 0], "dilation": [1, 2], "ceil_mode": True},
            )
        ),
        [(2, 8, 7)],
    ),
    "max pool 3d": (chain(("MaxPool3d", {"kernel_size": 2, "ceil_mode": True})), [(1, 2, 5, 4, 3)]),
    "average pool 1d, ceil": (
        chain(
            ("AvgPool1d", {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True, "count_include_pad": True})
        ),
        [(2, 12)],
    ),
    "average pool 1d, last window in the padding": (
        chain(("AvgPool1d", {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True})),
        [(2, 11)],
    ),
    "average pool 2d, padding not counted": (
        chain(
            ("AvgPool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False})
        ),
        [(2, 8, 7)],
    ),
    "average pool 3d, divisor": (
        chain(("AvgPool3d", {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True, "divisor_override": 5})),
        [(2, 4, 5, 3)],
    ),
    "p-norm pool 1d, ceil": (
        chain(
            ("LPPool1d", {"norm_type": 1.5, "kernel_size": 3, "stride": 2, "ceil_mode": True}),
        ),
        [(1, 8)],
    ),
    "adaptive max 1d": (chain(("AdaptiveMaxPool1d", {"output_size": 3, "return_indices": False})), [(2, 10)]),
    "adaptive max 2d": (chain(("AdaptiveMaxPool2d", {"output_size": [3, None]})), [(2, 2, 10, 4)]),
    "adaptive max 3d": (chain(("AdaptiveMaxPool3d", {"output_size": [2, 5, 1]})), [(2, 3, 4, 5)]),
    "adaptive average 2d": (chain(("AdaptiveAvgPool2d", {"output_size": [None, 3]})), [(2, 5, 7)]),
    "adaptive average 3d": (chain(("AdaptiveAvgPool3d", {"output_size": 3})), [(2, 2, 5, 7, 3)]),
    "instance norm, running": (chain(norm("InstanceNorm1d", 3, True)), [(2, 3, 6)]),
    "layer norm without arrays": (
        chain(("LayerNorm", {"normalized_shape": 4, "eps": 1e-5, "elementwise_affine": False})),
        [(3, 4)],
    ),
    "layer norm without bias": (chain(("LayerNorm", {"normalized_shape": [3, 4], "bias": False})), [(2, 3, 4)]),
    "flatten in the middle": (chain(("flatten", {"start_dim": 1, "end_dim": 2})), [(2, 3, 4, 2)]),
    "activations as layers": (
        chain(
            ("LeakyReLU", {"negative_slope": 0.1}),
            ("Hardtanh", {"min_val": -2.0, "max_val": 0.9}),
            ("ELU", {"alpha": 0.5}),
            ("CELU", {}),
            ("SELU", {}),
            ("SiLU", {}),
            ("Mish", {}),
            ("GELU", {"approximate": "tanh"}),
            ("Tanh", {}),
            ("Softplus", {"beta": 2.0}),
            ("LogSigmoid", {}),
            ("Softsign", {}),
            ("Tanhshrink", {}),
            ("Hardsigmoid", {}),
            ("Hardswish", {}),
            ("ReLU6", {}),
            ("Sigmoid", {}),
            ("Identity", {}),
            ("LogSoftmax", {"dim": 0}),
            ("Softmax", {"dim": None}),
        ),
        [(7,)],
    ),
    "arithmetic": (
        network(
            2,
            {},
            [
                node("a", "call_function", "add", "in0", "in1"),
                node("b", "call_function", "sub", 1.5, "a"),
                node("c", "call_function", "mul", "b", "in0"),
                node("d", "call_function", "truediv", "c", 3),
                node("e", "call_method", "pow", "d", 2),
                node("f", "call_function", "neg", "e"),
                node("g", "call_function", "exp", "f"),
                node("h", "call_method", "unsqueeze", "g", 1),
                node("i", "call_method", "transpose", "h", 0, 1),
                node("j", "call_function", "matmul", "i", "h"),
                node("k", "call_function", "sum", "g", dim=0, keepdim=True),
                node("l", "call_function", "mean", "i"),
                node("m", "call_function", "sqrt", "g"),
            ],
            ["j", "k", "l", "m"],
        ),
        [(5,), (5,)],
    ),
}


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns values that differ from entry to entry and from name to name, between -1 and 1; variances above 0.5."""
    shift = sum(ord(c) * (i + 1) for i, c in enumerate(name)) % 97
    values = np.sin(0.3 + 0.61 * np.arange(int(np.prod(shape))) + shift)
    return (1.0 + 0.5 * values if "running_var" in name else values).reshape(shape)


def inputs(case: str) -> list[np.ndarray]:
    # Positive where a p-norm of negative values is no number.
    values = [formula(f"input{i}", shape) for i, shape in enumerate(CASES[case][1])]
    return [1.1 + v for v in values] if "p-norm" in case else values


def summary(arrays: list[np.ndarray]) -> list[list[float]]:
    """Returns shape and three numbers for each array, which change with every entry and with their order."""
    out = []
    for a in arrays:
        flat, at = np.ravel(np.asarray(a, float)), np.arange(a.size)
        out.append([*a.shape, float(flat @ np.cos(at)), float(flat @ np.sin(0.7 * at)), float(np.sum(flat))])
    return out


def by_torch(content: dict[str, Any], values: list[np.ndarray], training: bool = False) -> list[np.ndarray]:
    """Returns the outputs as PyTorch computes them in float64."""
    torch: Any = importlib.import_module("torch")
    layers = {}
    for layer in content["layers"]:
        made = getattr(torch.nn, layer["layer_type"])(**layer["args"]).double().train(training)
        for name, array in [*made.named_parameters(), *made.named_buffers()]:
            if array.is_floating_point():
                array.data = torch.from_numpy(formula(f"{layer['layer_id']}.{name}", tuple(array.shape)))
        layers[layer["layer_id"]] = made
    known, rest = {}, [torch.from_numpy(v.copy()) for v in values]
    filled = lambda v: [filled(w) for w in v] if isinstance(v, list) else known.get(v, v) if isinstance(v, str) else v
    with torch.no_grad():
        for n in content["forward"]:
            args, kwargs = [filled(a) for a in n["args"]], {k: filled(v) for k, v in n["kwargs"].items()}
            if n["op"] == "placeholder":
                known[n["name"]] = rest.pop(0)
            elif n["op"] == "call_module":
                known[n["name"]] = layers[n["target"]](*args)
            elif n["op"] == "call_method":
                known[n["name"]] = getattr(args[0], n["target"])(*args[1:], **kwargs)
            elif n["op"] == "call_function":
                of = (torch.nn.functional, torch, operator)
                function = next(getattr(m, n["target"]) for m in of if hasattr(m, n["target"]))
                known[n["name"]] = function(*args, **kwargs)
            else:
                out = args[0] if isinstance(args[0], list) else args
                return [np.asarray(v) for v in out]
    raise AssertionError("no output")


# The suite's own numbers for these are by the statistics of the batch.
TRAINED = [case for case in CASES if "batch norm" in case]


def all_by_torch() -> dict[str, list[list[float]]]:
    found = {case: summary(by_torch(content, inputs(case))) for case, (content, _) in CASES.items()}
    return found | {f"{case}, training": summary(by_torch(CASES[case][0], inputs(case), True)) for case in TRAINED}


if __name__ == "__main__":
    lines = [f" {json.dumps(case)}: {json.dumps(value)}" for case, value in all_by_torch().items()]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
