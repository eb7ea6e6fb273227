"""Formats of weights: the same model from each, names that differ, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import netCDF4
import numpy as np
import pytest
from safetensors.numpy import save_file

from retrograd import layers, store
from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.plugins import dotted
from retrograd.weight_formats import array_inputs
from retrograd.weights import array_leaves, export, load_into, weights_digest

NO_H5PY = "h5py, of the extra `petab`, is not installed"
NO_ONNX = "onnx, an extra, is not installed"
NO_TORCH = "PyTorch, an extra, is not installed"
ORIGIN = store.Provenance({"class": "Net"}, {"plugin": "a" * 64}, "c" * 64, {"threads": 1})


class Net(Model):
    """A network of 2, 3, 3 and 2 values in equinox's own MLP: two of its layers have one shape."""

    states = {"a": "1", "b": "1"}
    network: eqx.nn.MLP

    def vector_field(self, t, x, k):
        return self.network(x)


class Fields(Model):
    """The same as fields: nothing tells in which order they are applied, and two are of one shape."""

    states = {"a": "1", "b": "1"}
    first: layers.Linear
    second: layers.Linear
    third: layers.Linear


class Distinct(Model):
    states = {"a": "1", "b": "1"}
    last: layers.Linear
    first: layers.Linear


class Convolution(Model):
    states = {"a": "1"}
    inner: Any


def net() -> Net:
    return Net(network=eqx.nn.MLP(2, 2, 3, 2, jnp.tanh, key=jax.random.PRNGKey(0)))


def fields() -> Fields:
    return Fields(layers.Linear(2, 3), layers.Linear(3, 3), layers.Linear(3, 3))


def trained(model):
    """Returns the model with other values, each a float32: so that all formats can hold them."""
    leaves, structure = jax.tree_util.tree_flatten(model)
    value = lambda i, v: jnp.asarray(
        np.sin(1.0 + i + 0.7 * np.arange(v.size)).astype(np.float32).reshape(v.shape), float
    )
    return jax.tree_util.tree_unflatten(
        structure, [value(i, v) if eqx.is_inexact_array(v) else v for i, v in enumerate(leaves)]
    )


def arrays_of(model) -> dict[str, np.ndarray]:
    return {dotted(name): np.asarray(leaf) for name, leaf in array_leaves(model)}


def assert_same(found, wanted) -> None:
    assert weights_digest(found) == weights_digest(wanted)


def sequential(model: Net, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the names of PyTorch's `Sequential(Linear, Tanh, Linear, Tanh, Linear)`."""
    out = {}
    for i, layer in enumerate(model.network.layers):
        assert layer.bias is not None
        out |= {f"{prefix}{2 * i}.weight": np.asarray(layer.weight), f"{prefix}{2 * i}.bias": np.asarray(layer.bias)}
    return out


def as_safetensors(arrays: dict[str, np.ndarray], path: Path) -> str:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return str(path)


def as_eqx(model, path: Path) -> str:
    with open(path, "wb") as file:
        eqx.tree_serialise_leaves(file, model)
    return str(path)


def as_torch(content: Any, path: Path) -> str:
    torch: Any = pytest.importorskip("torch", reason=NO_TORCH)
    tensors = lambda v: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v
    torch.save({k: tensors(v) for k, v in content.items()} if isinstance(content, dict) else content, path)
    return str(path)


def as_hdf5(arrays: dict[str, np.ndarray], path: Path) -> str:
    h5py: Any = pytest.importorskip("h5py", reason=NO_H5PY)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return str(path)


def as_onnx(nodes: list[Any], arrays: dict[str, np.ndarray], path: Path, width: int = 2) -> str:
    onnx: Any = pytest.importorskip("onnx", reason=NO_ONNX)
    make, of = onnx.helper, onnx.TensorProto.FLOAT
    initializers = [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()]
    made = [
        make.make_node(op, inputs, [output], name=f"n{i}", **more) for i, (op, inputs, output, more) in enumerate(nodes)
    ]
    graph = make.make_graph(
        made,
        "g",
        [make.make_tensor_value_info("x", of, [1, width])],
        [make.make_tensor_value_info("y", of, None)],
        initializers,
    )
    onnx.save(make.make_model(graph), path)
    return str(path)


def gemm(trans: int, names: Callable[[int, str], str]):
    def write(model: Net, path: Path) -> str:
        nodes, arrays, last = [], {}, "x"
        for i, layer in enumerate(model.network.layers):
            weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
            arrays |= {names(i, "weight"): weight if trans else weight.T, names(i, "bias"): bias}
            nodes.append(("Gemm", [last, names(i, "weight"), names(i, "bias")], f"h{i}", {"transB": trans}))
            nodes.append(("Tanh", [f"h{i}"], f"t{i}", {}))
            last = f"t{i}"
        return as_onnx([*nodes[:-1][:-1], ("Gemm", nodes[-2][1], "y", {"transB": trans})], arrays, path)

    return write


def matmul(model: Net, path: Path) -> str:
    nodes, arrays, last = [], {}, "x"
    for i, layer in enumerate(model.network.layers):
        # As exporters call them: a number for the matrix, the name of the parameter for the bias, in either place.
        arrays |= {f"onnx::MatMul_{i}": np.asarray(layer.weight).T, f"net.{2 * i}.bias": np.asarray(layer.bias)}
        nodes.append(("MatMul", [last, f"onnx::MatMul_{i}"], f"m{i}", {}))
        nodes.append(("Add", [f"m{i}", f"net.{2 * i}.bias"] if i % 2 else [f"net.{2 * i}.bias", f"m{i}"], f"h{i}", {}))
        nodes.append(("Relu", [f"h{i}"], f"t{i}", {}))
        last = f"t{i}"
    nodes[-1] = ("Relu", nodes[-1][1], "y", {})
    return as_onnx(nodes, dict(reversed(arrays.items())), path)


def narrow(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in arrays.items()}


FORMATS: dict[str, Callable[[Net, Path], str]] = {
    "eqx": lambda m, p: as_eqx(m, p / "w.eqx"),
    "safetensors": lambda m, p: as_safetensors(arrays_of(m), p / "w.safetensors"),
    "safetensors, the network's names": lambda m, p: as_safetensors(arrays_of(m.network), p / "w.safetensors"),
    "safetensors, PyTorch's names": lambda m, p: as_safetensors(narrow(sequential(m)), p / "w.safetensors"),
    "safetensors, PyTorch's names in a module": lambda m, p: as_safetensors(
        sequential(m, "net.body."), p / "w.safetensors"
    ),
    "pt": lambda m, p: as_torch(narrow(sequential(m, "net.")), p / "w.pt"),
    "pth": lambda m, p: as_torch(sequential(m), p / "w.pth"),
    "hdf5": lambda m, p: as_hdf5(
        {f"parameters/net1/{n.replace('.', '/')}": a for n, a in arrays_of(m.network).items()}, p / "w.hdf5"
    ),
    "h5, early": lambda m, p: as_hdf5({n.replace(".", "/"): a for n, a in arrays_of(m.network).items()}, p / "w.h5"),
    "onnx, Gemm": lambda m, p: gemm(1, lambda i, role: f"net.{2 * i}.{role}")(m, p / "w.onnx"),
    "onnx, Gemm not transposed": lambda m, p: gemm(0, lambda i, role: f"{role}{i}")(m, p / "w.onnx"),
    "onnx, the model's names": lambda m, p: gemm(0, lambda i, role: f"network.layers.{i}.{role}")(m, p / "w.onnx"),
    "onnx, MatMul and Add": lambda m, p: matmul(m, p / "w.onnx"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_model_is_the_same_whichever_file_it_comes_from(kind: str, tmp_path: Path):
    wanted = trained(net())
    found = load_into(net(), FORMATS[kind](wanted, tmp_path))
    assert_same(found, wanted)


@pytest.mark.parametrize("kind", ["eqx", "safetensors, PyTorch's names", "pt", "hdf5", "onnx, MatMul and Add"])
def test_model_nc_is_the_same_whichever_file_it_comes_from(kind: str, tmp_path: Path):
    wanted = trained(net())
    files = {}
    for name, path in (("a", as_eqx(wanted, tmp_path / "first.eqx")), ("b", FORMATS[kind](wanted, tmp_path))):
        export(load_into(net(), path), ORIGIN, str(tmp_path / f"{name}.nc"))
        with netCDF4.Dataset(tmp_path / f"{name}.nc") as file:
            own = {key: file.getncattr(key) for key in file.ncattrs() if "date" not in key and "history" not in key}
            values = {key: v[...] for key, v in {**file.variables, **file["/weights"].variables}.items()}
            files[name] = (own, values)
    (one, values), (two, others) = files["a"], files["b"]
    assert one["weights_sha256"] == two["weights_sha256"]
    assert one == two
    for name, value in values.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


# -- names --------------------------------------------------------------------------------------------


def test_names_that_the_study_tells(tmp_path: Path):
    wanted = trained(fields())
    arrays = {
        n.replace("first", "enc.0").replace("second", "enc.1").replace("third", "dec"): a
        for n, a in arrays_of(wanted).items()
    }
    path = as_safetensors(arrays, tmp_path / "w.safetensors")
    told = {"first": "enc.0", "second.weight": "enc.1.weight", "second": "enc[1]", "third": "dec"}
    assert_same(load_into(fields(), path, told), wanted)
    # What is not told goes by its own name.
    arrays = {n.replace("third", "dec"): a for n, a in arrays_of(wanted).items()}
    assert_same(load_into(fields(), as_safetensors(arrays, tmp_path / "v.safetensors"), {"third": "dec"}), wanted)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"frist": "enc"}, "model.weight_names: frist names no array of the model; it has: first.weight, first.bias"),
        ({"first": "enc"}, r"does not hold first.weight as enc.weight, first.bias as enc.bias.*; it holds: first"),
        ({"first.bias": "second.bias"}, "second.bias is taken for more than one array"),
    ],
)
def test_names_that_are_told_wrongly(told: dict[str, str], text: str, tmp_path: Path):
    path = as_safetensors(arrays_of(trained(fields())), tmp_path / "w.safetensors")
    with pytest.raises(RetrogradError, match=text):
        load_into(fields(), path, told)


def test_names_for_a_file_that_has_none(tmp_path: Path):
    with pytest.raises(RetrogradError, match=r"does not apply to \.eqx"):
        load_into(net(), as_eqx(net(), tmp_path / "w.eqx"), {"network": "net"})


def test_names_that_nothing_settles_are_shown_side_by_side(tmp_path: Path):
    path = as_safetensors({n.replace("i", "1"): a for n, a in arrays_of(fields()).items()}, tmp_path / "w.safetensors")
    with pytest.raises(RetrogradError) as caught:
        load_into(fields(), path)
    text = str(caught.value)
    assert "order and shapes do not settle which array is which" in text
    assert "  first.weight [3, 2] " in text and "  f1rst.we1ght [3, 2]" in text
    assert "  model:\n    weight_names:\n      first: " in text


class TwoLists(Model):
    states = {"a": "1"}
    left: list[layers.Linear]
    right: list[layers.Linear]


def lists(n: int, m: int) -> TwoLists:
    return TwoLists([layers.Linear(n, 3), layers.Linear(3, 1)], [layers.Linear(m, 3), layers.Linear(3, 1)])


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_lists_of_layers_are_told_apart_by_their_shapes_or_not_at_all(suffix: str, tmp_path: Path):
    write = as_safetensors if suffix == "safetensors" else as_torch
    rename = lambda n: n.replace("left.1", "b.2").replace("right.1", "a.2").replace("left", "b").replace("right", "a")
    wanted = trained(lists(2, 4))
    path = write({rename(n): a for n, a in arrays_of(wanted).items()}, tmp_path / f"w.{suffix}")
    assert_same(load_into(lists(2, 4), path), wanted)
    wanted = trained(lists(2, 2))
    path = write({rename(n): a for n, a in arrays_of(wanted).items()}, tmp_path / f"v.{suffix}")
    with pytest.raises(RetrogradError, match="order and shapes do not settle"):
        load_into(lists(2, 2), path)
    assert_same(
        load_into(lists(2, 2), path, {"left.0": "b.0", "left.1": "b.2", "right.0": "a.0", "right.1": "a.2"}), wanted
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("4.bias"),
        lambda a: a.update({"6.weight": np.zeros((2, 2))}),
        lambda a: a.update({"2.weight": np.zeros((3, 4))}),
        lambda a: a.update({"0.weight": a["0.weight"].T.copy()}),
    ],
)
def test_a_list_of_other_shapes_or_length_is_refused(change: Callable[..., Any], tmp_path: Path):
    arrays = sequential(net())
    change(arrays)
    with pytest.raises(RetrogradError, match="order and shapes do not settle"):
        load_into(net(), as_safetensors(arrays, tmp_path / "w.safetensors"))


def test_counters_of_batch_norms_are_no_arrays_of_the_model(tmp_path: Path):
    arrays = sequential(trained(net())) | {"1.num_batches_tracked": np.asarray(7)}
    assert_same(load_into(net(), as_safetensors(arrays, tmp_path / "w.safetensors")), trained(net()))


# -- convolutions -------------------------------------------------------------------------------------


def test_the_bias_of_equinoxs_convolution(tmp_path: Path):
    model = Convolution(eqx.nn.Conv2d(2, 3, 2, key=jax.random.PRNGKey(0)))
    wanted = trained(model)
    arrays = {n: np.ravel(a) if "bias" in n else a for n, a in arrays_of(wanted).items()}
    assert_same(load_into(model, as_safetensors(arrays, tmp_path / "w.safetensors")), wanted)


def test_equinoxs_transposed_convolution_takes_no_arrays_of_pytorchs(tmp_path: Path):
    model = Convolution(eqx.nn.ConvTranspose1d(2, 2, 2, key=jax.random.PRNGKey(0)))
    path = as_hdf5({f"inner/{n.partition('.')[2]}": a for n, a in arrays_of(model).items()}, tmp_path / "w.h5")
    with pytest.raises(RetrogradError, match=r"use retrograd\.layers\.ConvTranspose"):
        load_into(model, path)
    assert_same(load_into(model, as_eqx(trained(model), tmp_path / "w.eqx")), trained(model))


def test_onnx_kernels_are_as_they_are(tmp_path: Path):
    model = Convolution([layers.Conv(1, 2, (2,), stride=(1,), padding=((0, 0),), dilation=(1,)), layers.Linear(3, 1)])
    wanted = trained(model)
    conv, linear = wanted.inner
    arrays = {"k": conv.weight, "b": conv.bias, "w": linear.weight.T}
    nodes = [("Conv", ["x", "k", "b"], "c", {}), ("Flatten", ["c"], "f", {}), ("MatMul", ["f", "w"], "m", {})]
    nodes.append(("Add", ["m", "d"], "y", {}))
    path = as_onnx(
        nodes, {n: np.asarray(a) for n, a in arrays.items()} | {"d": np.asarray(linear.bias)}, tmp_path / "w.onnx"
    )
    assert_same(load_into(model, path), wanted)


# -- ONNX ---------------------------------------------------------------------------------------------


def test_onnx_fields_of_different_shapes_are_told_apart(tmp_path: Path):
    model = Distinct(layers.Linear(3, 1), layers.Linear(2, 3))
    wanted = trained(model)
    arrays = {"a": wanted.first.weight.T, "b": wanted.first.bias, "c": wanted.last.weight.T, "d": wanted.last.bias}
    nodes = [
        ("MatMul", ["x", "a"], "m", {}),
        ("Add", ["m", "b"], "h", {}),
        ("MatMul", ["h", "c"], "o", {}),
        ("Add", ["o", "d"], "y", {}),
    ]
    path = as_onnx(nodes, {n: np.asarray(a) for n, a in arrays.items()}, tmp_path / "w.onnx")
    assert_same(load_into(model, path), wanted)


def test_onnx_fields_of_one_shape_are_refused(tmp_path: Path):
    # The graph's order is no help: that of the fields is how they are declared.
    arrays = {f"w{i}": np.ones((3, 3 if i else 2), np.float32) for i in range(3)}
    arrays |= {f"b{i}": np.ones(3, np.float32) for i in range(3)}
    nodes = [
        ("Gemm", ["x" if i == 0 else f"h{i - 1}", f"w{i}", f"b{i}"], f"h{i}" if i < 2 else "y", {"transB": 1})
        for i in range(3)
    ]
    path = as_onnx(nodes, arrays, tmp_path / "w.onnx")
    with pytest.raises(RetrogradError, match="order and shapes do not settle"):
        load_into(fields(), path)
    told = {"first.weight": "w0", "first.bias": "b0", "second.weight": "w1", "second.bias": "b1"}
    load_into(fields(), path, told | {"third.weight": "w2", "third.bias": "b2"})


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([("LSTM", ["x", "w", "w"], "y", {})], r"n0 \(LSTM\): the operation is not one of a feed-forward network"),
        ([("Gemm", ["x", "w"], "y", {"alpha": 2.0})], r"n0 \(Gemm\): wanted a layer x W \+ b of constants, without"),
        ([("Mul", ["x", "v"], "y", {})], r"n0 \(Mul\): v is an array that belongs to no layer"),
        ([("Concat", ["x", "v"], "y", {"axis": 0})], r"n0 \(Concat\): v is an array that belongs to no layer"),
        ([("MatMul", ["x", "x"], "y", {})], r"n0 \(MatMul\): wanted a product of an array and of a constant matrix"),
        ([("MatMul", ["x", "w"], "m", {}), ("MatMul", ["m", "w"], "y", {})], r"n1 \(MatMul\): w is used by two nodes"),
    ],
)  # fmt: skip
def test_onnx_graphs_that_are_refused(nodes: list[Any], text: str, tmp_path: Path):
    arrays = {"w": np.ones((2, 2), np.float32), "v": np.ones(2, np.float32)}
    with pytest.raises(RetrogradError, match=text):
        load_into(net(), as_onnx(nodes, arrays, tmp_path / "w.onnx"))


def test_constants_of_a_graph_count_as_weights_and_shapes_do_not(tmp_path: Path):
    onnx: Any = pytest.importorskip("onnx", reason=NO_ONNX)
    model = Convolution([layers.Linear(2, 3)])
    wanted = trained(model)
    weight = onnx.numpy_helper.from_array(np.asarray(wanted.inner[0].weight), "held")
    nodes = [
        ("Constant", [], "k", {"value": weight}),
        ("Identity", ["b"], "same", {}),
        ("Reshape", ["x", "shape"], "r", {}),
        ("Gemm", ["r", "k", "same"], "h", {"transB": 1}),
        ("Constant", [], "two", {"value_float": 2.0}),
        ("Mul", ["h", "two"], "y", {}),
    ]
    arrays = {"b": np.asarray(wanted.inner[0].bias), "shape": np.array([1, 2])}
    assert_same(load_into(model, as_onnx(nodes, arrays, tmp_path / "w.onnx")), wanted)


def test_a_matrix_on_the_left_is_in_its_own_order(tmp_path: Path):
    model = Convolution([layers.Linear(2, 3, bias=False)])
    wanted = trained(model)
    path = as_onnx([("MatMul", ["w", "x"], "y", {})], {"w": np.asarray(wanted.inner[0].weight)}, tmp_path / "w.onnx")
    assert_same(load_into(model, path), wanted)


# -- PyTorch ------------------------------------------------------------------------------------------


def test_what_pytorch_itself_saves(tmp_path: Path):
    torch: Any = pytest.importorskip("torch", reason=NO_TORCH)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)
    )
    path = str(tmp_path / "w.pt")
    torch.save(module.state_dict(), path)
    model: Any = load_into(net(), path)
    x = np.array([0.3, -0.7])
    wanted = module.double()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(model.network(jnp.asarray(x)), wanted, rtol=1e-13)
    torch.save({"epoch": 3, "model_state_dict": module.float().state_dict()}, path)
    assert_same(load_into(net(), path), model)
    # Exact as float32 too.
    torch.save({k: v.bfloat16() for k, v in module.state_dict().items()}, path)
    half: Any = load_into(net(), path)
    np.testing.assert_array_equal(half.network.layers[0].weight, module[0].weight.bfloat16().double().detach().numpy())


def test_pickles_are_not_loaded(tmp_path: Path):
    torch: Any = pytest.importorskip("torch", reason=NO_TORCH)
    path = str(tmp_path / "w.pt")
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(RetrogradError, match=r"cannot be read as tensors .*torch\.save\(model\.state_dict\(\), path\)"):
        load_into(net(), path)
    torch.save({"a": 3}, path)
    with pytest.raises(RetrogradError, match="holds dict and not names with tensors"):
        load_into(net(), path)
    (tmp_path / "w.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(RetrogradError, match="cannot be read as tensors"):
        load_into(net(), path)


@pytest.mark.parametrize(
    ("suffix", "package", "extra"), [(".pt", "torch", "torch"), (".hdf5", "h5py", "petab"), (".onnx", "onnx", "onnx")]
)
def test_a_missing_extra_is_one_sentence_with_the_command(
    suffix: str, package: str, extra: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"")
    with pytest.raises(RetrogradError) as caught:
        load_into(net(), str(path))
    told = f"needs {package}, which is not installed: `make run EXTRAS={extra} CONFIG=STUDY.yaml` installs the extra"
    assert told in str(caught.value)


# -- HDF5 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"metadata/pytorch_format": False}, "pytorch_format is false"),
        ({"metadata/perm": "column"}, "perm is 'column', wanted 'row'"),
        ({"parameters/net1/layer/name": "text"}, "is of type object, wanted numbers"),
    ],
)
def test_hdf5_files_that_are_refused(more: dict[str, Any], text: str, tmp_path: Path):
    arrays = {f"parameters/net1/{n.replace('.', '/')}": a for n, a in arrays_of(net().network).items()}
    with pytest.raises(RetrogradError, match=text):
        load_into(net(), as_hdf5(arrays | more, tmp_path / "w.h5"))
    (tmp_path / "w.h5").write_bytes(b"nonsense")
    with pytest.raises(RetrogradError, match="is no readable HDF5 file"):
        load_into(net(), str(tmp_path / "w.h5"))


def test_big_endian_and_metadata_are_read(tmp_path: Path):
    wanted = trained(net())
    arrays: dict[str, Any] = {
        f"parameters/net1/{n.replace('.', '/')}": a.astype(">f8") for n, a in arrays_of(wanted.network).items()
    }
    path = as_hdf5(arrays | {"metadata/pytorch_format": True, "metadata/perm": "row"}, tmp_path / "w.h5")
    assert_same(load_into(net(), path), wanted)


class Hybrid(Model):
    states = {"a": "1"}
    net1: layers.Linear
    net2: layers.Linear
    inputs: dict[str, jax.Array]
    frozen = ("net2", "inputs")


def test_several_networks_and_inputs_in_one_file(tmp_path: Path):
    model = Hybrid(layers.Linear(2, 2), layers.Linear(2, 2), {"image": jnp.zeros(3)})
    wanted = trained(model)
    arrays = {f"parameters/{n.replace('.', '/')}": a for n, a in arrays_of(wanted).items() if "inputs" not in n}
    arrays |= {"inputs/image/0": np.asarray(wanted.inputs["image"]), "inputs/other/c1": np.ones(2)}
    assert_same(load_into(model, as_hdf5(arrays, tmp_path / "w.h5")), wanted)


def test_array_inputs(tmp_path: Path):
    arrays = {"inputs/one/0": np.arange(3.0), "inputs/two/c1;c2": np.ones((2, 2)), "inputs/two/c3": np.zeros((2, 2))}
    found = array_inputs(as_hdf5(arrays | {"parameters/net1/layer/weight": np.ones(1)}, tmp_path / "w.h5"))
    assert {name: sorted(values) for name, values in found.items()} == {"one": ["0"], "two": ["c1", "c2", "c3"]}
    np.testing.assert_array_equal(found["two"]["c2"], np.ones((2, 2)))
    for more, text in (
        ("inputs/one/c1", "for all conditions"),
        ("inputs/two/c3;c4", "two arrays for the condition 'c3'"),
    ):
        with pytest.raises(RetrogradError, match=text):
            array_inputs(as_hdf5(arrays | {more: np.ones(1)}, tmp_path / "v.h5"))
