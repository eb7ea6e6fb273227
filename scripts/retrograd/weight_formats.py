"""The formats of files of weights: names and arrays from each, in PyTorch's order where it has one. No pickles."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrograd.errors import RetrogradError
from retrograd.messages import stumbled
from retrograd.optional import WEIGHT_SUFFIXES, need
from retrograd.plugins import dotted


@dataclass
class Stored:
    """What a file holds.

    - `arrays`: by name, dots alone.
    - `torch`: the arrays are ordered as PyTorch orders them, whatever they are called.
    - `layers`: the same arrays as layers in the order in which they are applied, where the format tells: names in
      `arrays` by role, such as `weight`.
    """

    arrays: dict[str, np.ndarray]
    torch: bool
    layers: list[dict[str, str]] = field(default_factory=list)


def _read_safetensors(path: str, leaves: Sequence[str]) -> Stored:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    del leaves
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RetrogradError(f"{path} is not a readable .safetensors file ({error}).") from error
    return Stored(_weights_only(tensors), torch=False)


def _weights_only(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # PyTorch's batch norms count the batches of their training, which changes no value.
    named = {dotted(name): array for name, array in arrays.items()}
    return {name: array for name, array in named.items() if name.rpartition(".")[2] != "num_batches_tracked"}


def _read_torch(path: str, leaves: Sequence[str]) -> Stored:
    del leaves
    need(f"{path}: a file of PyTorch's", "torch")
    import torch  # pyright: ignore[reportMissingImports]

    advice = "save the tensors alone: torch.save(model.state_dict(), path)"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes made it stumble over
        reason = str(error).strip().partition("\n")[0]
        raise RetrogradError(
            f"{path} cannot be read as tensors ({type(error).__name__}: {reason}); {advice}."
        ) from error
    # Checkpoints keep the state dict beside an optimiser's.
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise RetrogradError(f"{path} holds {type(content).__name__} and not names with tensors; {advice}.")
    arrays = {}
    for name, tensor in content.items():
        # A type that numpy has not, of which every value is one of float32 too.
        plain = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
        try:
            arrays[str(name)] = plain.numpy()
        except (TypeError, RuntimeError) as error:
            raise RetrogradError(
                f"{path}: {name} is {tensor.dtype}, {tensor.layout}, which is no plain array."
            ) from error
    return Stored(_weights_only(arrays), torch=True)


# Arrays that are larger than this [bytes] and than so many times their file are declared, not stored.
_MOST_BYTES, _MOST_RATIO = 2**28, 100


def _hdf5_arrays(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the arrays under `parameters` and under `inputs`, by their path there with slashes."""
    need(f"{path}: an HDF5 file of PEtab-SciML", "h5py")
    try:
        return _hdf5_content(path)
    except RetrogradError:
        raise
    except Exception as error:  # of a damaged file h5py raises what it happens to stumble over
        raise RetrogradError(f"{path} is no readable HDF5 file ({stumbled(error)}).") from error


def _hdf5_content(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    import h5py

    most = max(_MOST_BYTES, _MOST_RATIO * os.path.getsize(path))
    parameters: dict[str, np.ndarray] = {}
    inputs: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        datasets: dict[str, Any] = {}
        file.visititems(lambda name, item: datasets.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        if "metadata/pytorch_format" in datasets and not datasets["metadata/pytorch_format"][()]:
            raise RetrogradError(f"{path}: metadata/pytorch_format is false, wanted arrays in PyTorch's order.")
        if "metadata/perm" in datasets and datasets["metadata/perm"].asstr()[()] != "row":
            found = datasets["metadata/perm"].asstr()[()]
            raise RetrogradError(f"{path}: metadata/perm is {found!r}, wanted 'row': arrays in PyTorch's order.")
        for name, item in datasets.items():
            group, _, rest = name.partition("/")
            if group == "metadata":
                continue
            if item.dtype.kind not in "fiub":
                raise RetrogradError(f"{path}: {name} is of type {item.dtype}, wanted numbers.")
            if item.external or item.is_virtual:
                raise RetrogradError(f"{path}: {name} is stored in another file, wanted all arrays in this one.")
            if item.nbytes > most:
                raise RetrogradError(
                    f"{path}: {name} is said to have {item.nbytes} bytes, which this file cannot hold."
                )
            array = np.asarray(item[()])
            array = array.astype(array.dtype.newbyteorder("="))
            if group == "inputs":
                inputs[rest] = array
            else:
                # Early files have the layers at the top.
                parameters[rest if group == "parameters" else name] = array
    return parameters, inputs


def _read_hdf5(path: str, leaves: Sequence[str]) -> Stored:
    parameters, inputs = _hdf5_arrays(path)
    arrays = {name.replace("/", "."): array for name, array in parameters.items()}
    # Inputs are no weights: those that the model has no place for are somebody else's.
    held = {f"inputs.{name.replace('/', '.').removesuffix('.0')}": array for name, array in inputs.items()}
    return Stored(arrays | {name: array for name, array in held.items() if name in leaves}, torch=True)


def parameter_arrays(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of networks in a PEtab-SciML HDF5 file, by `network/layer/array`."""
    return _hdf5_arrays(path)[0]


def array_inputs(path: str) -> dict[str, dict[str, np.ndarray]]:
    """Returns the array inputs of a PEtab-SciML HDF5 file: input id to condition id to array.

    The condition `0` stands for all conditions, and is then the only one. An array for several conditions is returned
    for each of them.
    """
    out: dict[str, dict[str, np.ndarray]] = {}
    for name, array in _hdf5_arrays(path)[1].items():
        input_id, _, conditions = name.rpartition("/")
        for condition in conditions.split(";"):
            if condition in out.setdefault(input_id, {}):
                raise RetrogradError(f"{path}: inputs/{input_id} has two arrays for the condition {condition!r}.")
            out[input_id][condition] = array
    for input_id, arrays in out.items():
        if "0" in arrays and len(arrays) > 1:
            others = ", ".join(sorted(set(arrays) - {"0"}))
            raise RetrogradError(
                f"{path}: inputs/{input_id} has an array for all conditions (0) and ones for {others}."
            )
    return out


# -- ONNX ---------------------------------------------------------------------------------------------

# Nodes that hold no weights.
PLAIN_NODES = frozenset(
    name
    for row in (
        "Abs AveragePool Cast Celu Clip Concat Constant Dropout Elu Erf Exp Flatten Gelu GlobalAveragePool",
        "GlobalMaxPool HardSigmoid HardSwish Identity LeakyRelu LogSoftmax LpPool MaxPool Mish Neg Relu",
        "Reshape Selu Sigmoid Softmax Softplus Softsign Squeeze Swish Tanh Transpose Unsqueeze",
    )
    for name in row.split()
)
# Whose constants, if any, belong to a formula for an activation: one number each.
ARITHMETIC = ("Add", "Div", "Mul", "Pow", "Sqrt", "Sub")


def _read_onnx(path: str, leaves: Sequence[str]) -> Stored:
    del leaves
    need(f"{path}: an ONNX file", "onnx")
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
        constants = _onnx_constants(path, graph)
        return _OnnxGraph(path, graph, constants).stored()
    except RetrogradError:
        raise
    except Exception as error:  # protobuf's, numpy's and onnx's own, of no common class
        raise RetrogradError(f"{path} is no readable ONNX file ({stumbled(error)}).") from error


def _onnx_constants(path: str, graph: Any) -> dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    elsewhere = [tensor.name for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if elsewhere:
        raise RetrogradError(
            f"{path} has {', '.join(elsewhere)} in another file, wanted all arrays in this one: `onnx.save(onnx.load("
            "path), path)` writes them into it."
        )
    constants = {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute:
            held = node.attribute[0]
            if held.name == "value":
                constants[node.output[0]] = np.array(numpy_helper.to_array(held.t))
            elif held.name in ("value_float", "value_floats"):
                constants[node.output[0]] = np.array(held.f if held.name == "value_float" else held.floats, np.float32)
        elif node.op_type == "Identity" and node.input[0] in constants:
            # The name under which it is used takes its place.
            constants[node.output[0]] = constants.pop(node.input[0])
    return constants


class _OnnxGraph:
    """A feed-forward graph: its layers in order, their arrays turned to PyTorch's order by what the node does."""

    def __init__(self, path: str, graph: Any, constants: Mapping[str, np.ndarray]) -> None:
        self.path, self.graph, self.constants = path, graph, constants
        self.arrays: dict[str, np.ndarray] = {}
        self.layers: list[dict[str, str]] = []
        self.problems: list[str] = []
        self.of_output: dict[str, int] = {}

    def stored(self) -> Stored:
        layers = {"Gemm": self._gemm, "MatMul": self._matmul, "Add": self._add, "BatchNormalization": self._batch_norm}
        layers |= {"Conv": self._conv, "ConvTranspose": self._conv}
        for node in self.graph.node:
            what = f"{node.name or 'a node'} ({node.op_type})"
            if node.op_type in layers:
                layers[node.op_type](node, what)
            elif node.op_type in ARITHMETIC:
                self._arithmetic(node, what)
            elif node.op_type not in PLAIN_NODES:
                self.problems.append(f"{what}: the operation is not one of a feed-forward network that is read")
            elif node.op_type != "Identity":
                self._arithmetic(node, what)
        if self.problems:
            lines = "\n  ".join(self.problems)
            raise RetrogradError(f"{self.path}: its weights cannot be told apart in one way:\n  {lines}")
        return Stored(self.arrays, torch=True, layers=self.layers)

    def _take(self, what: str, roles: Mapping[str, tuple[str, np.ndarray]], output: str) -> None:
        layer = {}
        for role, (name, array) in roles.items():
            name = dotted(name)
            if name in self.arrays:
                self.problems.append(f"{what}: {name} is used by two nodes: weights that are shared are not supported")
            self.arrays[name] = array
            layer[role] = name
        self.of_output[output] = len(self.layers)
        self.layers.append(layer)

    def _constant(self, node: Any, i: int) -> np.ndarray | None:
        return self.constants.get(node.input[i]) if i < len(node.input) else None

    def _gemm(self, node: Any, what: str) -> None:
        settings = {a.name: a.i if a.type == 2 else a.f for a in node.attribute}
        weight, bias = self._constant(node, 1), self._constant(node, 2)
        plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        if weight is None or not plain or (len(node.input) > 2 and bias is None):
            self.problems.append(f"{what}: wanted a layer x W + b of constants, without alpha, beta and transA")
            return
        # (out, in) where it is transposed on the way, else (in, out).
        roles = {"weight": (node.input[1], weight if settings.get("transB", 0) else weight.T)}
        if bias is not None:
            roles["bias"] = (node.input[2], bias.reshape(-1))
        self._take(what, roles, node.output[0])

    def _matmul(self, node: Any, what: str) -> None:
        left, right = self._constant(node, 0), self._constant(node, 1)
        weight = left if right is None else right
        if weight is None or weight.ndim != 2 or (left is not None and right is not None):
            self.problems.append(f"{what}: wanted a product of an array and of a constant matrix")
        elif right is None:
            self._take(what, {"weight": (node.input[0], weight)}, node.output[0])
        else:
            self._take(what, {"weight": (node.input[1], weight.T)}, node.output[0])

    def _add(self, node: Any, what: str) -> None:
        # The bias of the product in front of it, or arithmetic.
        for i in (0, 1):
            layer, bias = self.of_output.get(node.input[1 - i]), self._constant(node, i)
            if layer is None or bias is None or "bias" in self.layers[layer] or bias.size != self._width(layer):
                continue
            name = dotted(node.input[i])
            if name in self.arrays:
                self.problems.append(f"{what}: {name} is used by two nodes: weights that are shared are not supported")
            self.arrays[name], self.layers[layer]["bias"] = bias.reshape(-1), name
            return
        self._arithmetic(node, what)

    def _width(self, layer: int) -> int:
        return self.arrays[self.layers[layer]["weight"]].shape[0]

    def _conv(self, node: Any, what: str) -> None:
        weight, bias = self._constant(node, 1), self._constant(node, 2)
        if weight is None or (len(node.input) > 2 and bias is None):
            self.problems.append(f"{what}: wanted a constant kernel and bias")
            return
        roles = {"weight": (node.input[1], weight)}
        if bias is not None:
            roles["bias"] = (node.input[2], bias)
        self._take(what, roles, node.output[0])

    def _batch_norm(self, node: Any, what: str) -> None:
        names = ("weight", "bias", "running_mean", "running_var")
        values = [self._constant(node, i) for i in range(1, 5)]
        if any(value is None for value in values):
            self.problems.append(f"{what}: wanted constant scale, bias, mean and variance")
            return
        roles = {n: (node.input[i + 1], v) for i, (n, v) in enumerate(zip(names, values, strict=True)) if v is not None}
        self._take(what, roles, node.output[0])

    def _arithmetic(self, node: Any, what: str) -> None:
        # Integers are shapes and axes.
        held = ((name, self.constants[name]) for name in node.input if name in self.constants)
        large = [name for name, array in held if array.size > 1 and array.dtype.kind == "f"]
        if large:
            self.problems.append(f"{what}: {', '.join(large)} is an array that belongs to no layer")


READERS: dict[str, Callable[[str, Sequence[str]], Stored]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".hdf5": _read_hdf5,
    ".h5": _read_hdf5,
    ".onnx": _read_onnx,
}
assert set(WEIGHT_SUFFIXES) == {".eqx", *READERS}
