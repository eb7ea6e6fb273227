"""Networks from PEtab-SciML's YAML: against PyTorch's numbers, as source, and what is refused by name."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import network_cases
import numpy as np
import pytest
import yaml
from network_cases import CASES, TRAINED, chain, conv, formula, linear, network, node, norm, summary

from retrograd.errors import RetrogradError
from retrograd.network_import import buffers, field_names, header, notes, problems, read_network, source
from retrograd.plugins import dotted, load_class
from retrograd.weight_formats import array_inputs
from retrograd.weights import array_leaves, load_into

EXPECTED = json.loads(network_cases.EXPECTED.read_text())
# Beside the repository, or beside the folder of its work trees.
SHARED = next((p for up in Path(__file__).parents if (p := up / "shared" / "cases").is_dir()), Path("../shared/cases"))


def read(content: dict[str, Any], folder: Path):
    path = folder / "net.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_network(str(path))


def classes(text: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "generated"}
    exec(compile(text, "generated", "exec"), space)
    return space


def built(net, values, **options):
    """Returns an instance of the generated class, with the arrays of `values(name, shape)`."""
    text = source(net, "Net", **options)
    model = classes(header(text) + "\n\n" + text)["Net"].build(jax.random.PRNGKey(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    ids = {name: id_ for id_, name in field_names(net).items()}

    def value(path, leaf):
        name, _, array = dotted(jax.tree_util.keystr(path)).rpartition(".")
        return jnp.asarray(values(f"{ids[name]}.{array}", leaf.shape), leaf.dtype)

    return jax.tree_util.tree_unflatten(structure, [value(*leaf) for leaf in leaves])


def outputs(model, *inputs) -> list[np.ndarray]:
    found = model(*inputs)
    return [np.asarray(v) for v in (found if isinstance(found, tuple) else (found,))]


def assert_summaries(found: list[list[float]], wanted: list[list[float]], tolerance: float = 1e-12) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a[:-3] == b[:-3], "shape"
        np.testing.assert_allclose(a[-3:], b[-3:], rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("case", CASES)
def test_each_network_gives_the_numbers_of_pytorch(case: str, tmp_path: Path):
    net = read(CASES[case][0], tmp_path)
    assert problems(net) == []
    model = built(net, formula)
    values = [jnp.asarray(v) for v in network_cases.inputs(case)]
    found = outputs(eqx.filter_jit(model), *values)
    assert {a.dtype for a in found} == {np.dtype("float64")}
    assert_summaries(summary(found), EXPECTED[case])


@pytest.mark.parametrize("case", TRAINED)
def test_statistics_of_the_batch_are_those_of_training(case: str, tmp_path: Path):
    model = built(read(CASES[case][0], tmp_path), formula, batch_statistics=True)
    assert not any("running" in path for path, _ in array_leaves(model))
    found = outputs(model, *(jnp.asarray(v) for v in network_cases.inputs(case)))
    assert_summaries(summary(found), EXPECTED[f"{case}, training"])


# What PyTorch warns of is about its own ways.
@pytest.mark.filterwarnings("ignore")
def test_the_committed_numbers_are_those_of_pytorch():
    pytest.importorskip("torch", reason="PyTorch, an extra, is not installed: its committed numbers stand")
    for case, wanted in network_cases.all_by_torch().items():
        assert_summaries(wanted, EXPECTED[case], 1e-10)


@pytest.mark.parametrize("case", ["image network", "instance norm 2d", "max pool 2d", "p-norm pool 2d", "arithmetic"])
def test_float32_stays_float32(case: str, tmp_path: Path):
    jax.config.update("jax_enable_x64", False)
    try:
        model = built(read(CASES[case][0], tmp_path), formula)
        found = outputs(model, *(jnp.asarray(v, jnp.float32) for v in network_cases.inputs(case)))
        assert {a.dtype for a in found} == {np.dtype("float32")}
        assert_summaries(summary(found), EXPECTED[case], 2e-4)
    finally:
        jax.config.update("jax_enable_x64", True)


DIFFERENTIABLE = [case for case, (_, shapes) in CASES.items() if max(np.prod(s) for s in shapes) < 150]


@pytest.mark.slow
@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_derivatives_are_those_of_differences_in_both_modes(case: str, tmp_path: Path):
    model = built(read(CASES[case][0], tmp_path), formula)
    inputs = [jnp.asarray(v) for v in network_cases.inputs(case)]
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    directions = jax.tree_util.tree_map(
        lambda a: jnp.asarray(np.cos(3.0 * np.arange(a.size)).reshape(a.shape)), (weights, inputs)
    )

    def value(weights, inputs):
        found = eqx.combine(weights, static)(*inputs)
        return sum(jnp.sum(jnp.sin(v)) for v in (found if isinstance(found, tuple) else (found,)))

    @jax.jit
    def all_three(weights, inputs):
        forward = jax.jvp(value, (weights, inputs), directions)[1]
        gradient = jax.grad(value, argnums=(0, 1))(weights, inputs)
        pairs = zip(jax.tree_util.tree_leaves(gradient), jax.tree_util.tree_leaves(directions), strict=True)
        moved = lambda h: value(*jax.tree_util.tree_map(lambda v, d: v + h * d, (weights, inputs), directions))
        ends = jax.lax.map(moved, jnp.array([1e-6, -1e-6]))
        return forward, sum(jnp.vdot(g, d) for g, d in pairs), (ends[0] - ends[1]) / 2e-6

    forward, backward, difference = all_three(weights, inputs)
    assert np.isfinite(forward)
    np.testing.assert_allclose(backward, forward, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(forward, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["conv1d", "transposed 1d", "max pool", "p-norm pool 1d", "cat", "instance norm 1d"])
def test_vmap_is_a_loop(case: str, tmp_path: Path):
    model = built(read(CASES[case][0], tmp_path), formula)
    many = [jnp.stack([v * (1 + 0.1 * i) for i in range(3)]) for v in network_cases.inputs(case)]
    found = jax.vmap(model)(*many)
    for i in range(3):
        np.testing.assert_allclose(found[i], model(*(v[i] for v in many)), rtol=1e-13, atol=1e-14)


# -- the text -----------------------------------------------------------------------------------------


def test_the_source_of_the_suites_first_network(tmp_path: Path):
    content = network(
        1,
        {"layer1": linear(2, 5), "layer2": linear(5, 1, False)},
        [
            node("layer1", "call_module", "layer1", "in0"),
            node("tanh", "call_method", "tanh", "layer1"),
            node("layer2", "call_module", "layer2", "tanh"),
        ],
        "layer2",
    )
    text = source(read(content, tmp_path), "Net1")
    assert (
        text
        == '''class Net1(eqx.Module):
    """The network net0: 1 input, 1 output, as PEtab-SciML describes it."""

    layer1: layers.Linear
    layer2: layers.Linear

    @classmethod
    def build(cls, key: jax.Array) -> Net1:
        """Returns the structure; `key`: for the initialisers."""
        keys = jax.random.split(key, 2)
        return cls(
            layer1=layers.Linear(2, 5, key=keys[0]),
            layer2=layers.Linear(5, 1, bias=False, key=keys[1]),
        )

    def __call__(self, in0: jax.Array) -> jax.Array:
        layer1 = self.layer1(in0)
        tanh = jnp.tanh(layer1)
        layer2 = self.layer2(tanh)
        return layer2
'''
    )


def test_the_source_is_the_same_each_time_and_needs_no_formatter(tmp_path: Path):
    written = tmp_path / "written"
    written.mkdir()
    for i, (content, _) in enumerate(CASES.values()):
        text = source(read(content, tmp_path), "Net")
        assert text == source(read(content, tmp_path), "Net")
        (written / f"net{i}.py").write_text(header(text) + "\n\n" + text)
    own = 'lint.isort.known-first-party=["retrograd"]'
    for command in (["format", "--check", "--diff"], ["check", "--select", "F821,F401,E9,I001", "--config", own]):
        options = ["--no-cache", "--isolated", "--line-length", "120", str(written)]
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_names_that_python_does_not_allow(tmp_path: Path):
    content = network(
        1,
        {"net.0": linear(2, 3), "lambda": linear(3, 3), "1st": linear(3, 1), "jax": linear(1, 1)},
        [
            node("net_0", "call_module", "net.0", "in0"),
            node("class", "call_module", "lambda", "net_0"),
            node("layers", "call_module", "1st", "class"),
            node("self", "call_module", "jax", "layers"),
        ],
        "self",
    )
    net = read(content, tmp_path)
    assert field_names(net) == {"net.0": "net_0", "lambda": "lambda_", "1st": "_1st", "jax": "jax_"}
    assert outputs(built(net, formula), jnp.ones(2))[0].shape == (1,)
    twice = network(
        1,
        {"a.b": linear(2, 2), "a_b": linear(2, 2)},
        [node("x", "call_module", "a.b", "in0"), node("y", "call_module", "a_b", "x")],
        "y",
    )
    with pytest.raises(RetrogradError, match=r"layer a\.b: its name in Python is that of another"):
        source(read(twice, tmp_path), "Net")


def test_a_layer_that_is_called_twice_has_its_arrays_once(tmp_path: Path):
    content = network(
        1, {"a": linear(3, 3)}, [node("x", "call_module", "a", "in0"), node("y", "call_module", "a", "x")], "y"
    )
    model = built(read(content, tmp_path), formula)
    w, b = np.asarray(model.a.weight), np.asarray(model.a.bias)
    np.testing.assert_allclose(outputs(model, jnp.ones(3))[0], w @ (w @ np.ones(3) + b) + b, rtol=1e-13)


def test_what_a_reader_should_know_is_noted(tmp_path: Path):
    content = chain(
        norm("BatchNorm1d", 3, True), ("Dropout", {"p": 0.5}), ("Sequential", {}) if False else linear(3, 2)
    )
    content["layers"].append(
        {"layer_id": "spare", "layer_type": "Linear", "args": {"in_features": 1, "out_features": 1}}
    )
    net = read(content, tmp_path)
    assert notes(net) == [
        "layer layer0: BatchNorm1d uses the mean and variance that training left behind (running_mean, running_var), "
        "as PyTorch does in evaluation.",
        "layer layer1: Dropout returns its input: nothing is dropped, as PyTorch does in evaluation.",
        "layer spare: the forward function never calls it, so it and its arrays are left out.",
    ]
    assert buffers(net) == ("layer0.running_mean", "layer0.running_var")
    assert buffers(net, batch_statistics=True) == ()
    assert "spare" not in source(net, "Net")


# -- refusals -----------------------------------------------------------------------------------------


def refused(layer: tuple[str, dict[str, Any]], folder: Path) -> str:
    (found,) = problems(read(chain(layer), folder))[:1]
    return found


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (("GRU", {"input_size": 2}), "layer layer0: the type 'GRU' is not supported; supported: AdaptiveAvgPool1d, "),
        (("MaxPool1d", {"kernel_size": 2, "return_indices": True}), "return_indices is True, which is not supported"),
        (("MaxPool1d", {"kernel_size": 2, "padding": 2}), "padding is [2], wanted at most half of the kernel's size"),
        (
            conv("Conv1d", 2, 3, 2, padding_mode="mirror"),
            "padding_mode is 'mirror', which is not supported; supported:",
        ),
        (conv("Conv1d", 2, 3, 2, padding="same", stride=2), "'same', which PyTorch has for a stride of 1 only"),
        (conv("Conv1d", 2, 3, 2, groups=2), "groups is 2, which does not divide 2 and 3 channels"),
        (conv("Conv1d", 2, 3, [2, 2]), "kernel_size is [2, 2], wanted 1 whole numbers from 1"),
        (conv("Conv2d", 2, 3, 2, device="cuda"), "the argument 'device' is not known; known: in_channels, "),
        (conv("ConvTranspose1d", 2, 3, 2, output_padding=1), "output_padding is [1], wanted less than the stride"),
        (("Linear", {"in_features": 2}), "Linear: out_features missing"),
        (("Linear", {"in_features": 2, "out_features": 2.5}), "out_features is 2.5, wanted a whole number from 1"),
        (("Linear", {"in_features": 2, "out_features": 2, "bias": 1}), "bias is 1, wanted true or false"),
        (
            ("GELU", {"approximate": "fast"}),
            'approximate is \'fast\', which is not supported; supported: "none" or "tanh"',
        ),
    ],
)
def test_layers_are_refused_by_name_and_argument(layer, text: str, tmp_path: Path):
    assert text in refused(layer, tmp_path)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (
            node("x", "call_function", "fft", "in0"),
            "node x (call_function fft): it is not supported; supported: abs, add",
        ),
        (node("x", "call_module", "nothing", "in0"), "there is no layer 'nothing'"),
        (node("x", "call_module", "layer0", "later"), "found 'later' as an array, wanted a node in front of this one"),
        (node("x", "call_module", "layer0", "in0", "in0"), "2 arguments, wanted 1 of its inputs alone"),
        (node("x", "get_attr", "scale"), "the operation 'get_attr' is not supported"),
        (node("x", "call_function", "relu", "in0", slope=1), "the argument 'slope' is not known; known: inplace"),
        (node("x", "call_function", "relu", "in0", inplace=True), "inplace is true and its input is read by layer0, x"),
        (node("x", "call_function", "dropout", "in0"), "training is true: it would drop at random; wanted false"),
        (
            node("x", "call_function", "softmax", "in0", dim=0, dtype="float"),
            "dtype is 'float', which is not supported",
        ),
        (node("x", "call_function", "cat", "in0", dim=0), "found 'in0', wanted a list of nodes"),
        (node("x", "call_function", "add", "in0", "in0", alpha=2), "wanted two operands alone"),
    ],
)
def test_nodes_are_refused_by_name_and_argument(bad, text: str, tmp_path: Path):
    content = chain(linear(2, 2))
    content["forward"].insert(2, bad)
    found = problems(read(content, tmp_path))
    assert len(found) == 1
    assert text in found[0]


def test_a_view_that_is_written_over_is_refused(tmp_path: Path):
    nodes = [
        node("v", "call_method", "flatten", "in0"),
        node("w", "call_function", "relu", "v", inplace=True),
        node("x", "call_function", "add", "w", "in0"),
    ]
    (found,) = problems(read(network(1, {}, nodes, "x"), tmp_path))
    assert "inplace is true and its input is read by v, x" in found
    assert problems(read(network(1, {}, nodes[:2], "w"), tmp_path)) == []


def test_all_that_is_not_supported_is_told_in_one_list(tmp_path: Path):
    content = chain(("LSTM", {}), linear(2, 2), ("nonsense", {}))
    content["inputs"].append({"input_id": "second"})
    net = read(content, tmp_path)
    with pytest.raises(RetrogradError) as caught:
        source(net, "Net")
    assert any("0 output nodes, wanted one" in text for text in problems(replace(net, nodes=())))
    for text in ("'LSTM' is not supported", "(call_function nonsense)", "2 are declared and the forward graph takes 1"):
        assert text in str(caught.value)


def changed(change) -> dict[str, Any]:
    content = copy.deepcopy(chain(linear(2, 2)))
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.update(forward=[{}]), r"forward\[0\]: name is missing"),
        (lambda c: c.pop("forward"), "the file: forward is missing"),
        (lambda c: c.update(extra=1), "the file: found the key 'extra', wanted nn_model_id, inputs, layers, forward"),
        (lambda c: c.update(layers=3), "layers: found 3, wanted a list of entries"),
        (lambda c: c["layers"][0].pop("layer_type"), r"layers\[0\]: layer_type is missing"),
        (lambda c: c["layers"][0].update(args=[1]), r"layers\[0\]: args is \[1\], wanted names and values"),
        (lambda c: c["inputs"][0].update(transform="log"), "transform is 'log', which is not supported"),
        (lambda c: c["forward"][0].update(op=3), r"forward\[0\]: op is 3, wanted text"),
    ],
)
def test_a_file_of_another_form_is_refused(change, text: str, tmp_path: Path):
    with pytest.raises(RetrogradError, match=text):
        read(changed(change), tmp_path)


def test_files_of_the_formats_first_version(tmp_path: Path):
    content = chain(linear(2, 2))
    content = {"mlmodel_id": content.pop("nn_model_id"), **content}
    content["inputs"][0]["transform"] = None
    assert read({"models": [content]}, tmp_path).name == "net0"
    with pytest.raises(RetrogradError, match="found 2 networks under `models`, wanted one network a file"):
        read({"models": [content, content]}, tmp_path)


def test_files_that_are_no_yaml_or_missing(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: [")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(RetrogradError, match="is no readable YAML file"):
            read_network(str(tmp_path / name))


def test_nothing_of_a_file_becomes_code(tmp_path: Path):
    content = network(
        1, {"a": linear(2, 2)}, [node("x = __import__('os')", "call_module", "a", "in0")], "x = __import__('os')"
    )
    content["nn_model_id"] = 'net"""\nimport os'
    text = source(read(content, tmp_path), "Net")
    assert '"""The network net____import os: ' in text
    assert "        x_____import____os__ = self.a(in0)" in text


# -- the suite ----------------------------------------------------------------------------------------


def in_a_model(net, field: str, folder: Path) -> Any:
    """Returns a model of a generated network as a field of this name, from a plug-in file."""
    text = source(net, "Net")
    whole = f"class Whole(Model):\n    {field}: Net\n    states = {{'a': '1'}}\n"
    path = folder / "plugin.py"
    path.write_text(f"{header(text)}from retrograd.api import Model\n\n\n{text}\n\n{whole}")
    cls = load_class(str(path), "Whole")
    return cls(**{field: sys.modules[cls.__module__].Net.build(jax.random.PRNGKey(1))})


@pytest.mark.parametrize("field", ["net0", "network"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_suites_network_gives_its_output(number: int, field: str, tmp_path: Path):
    folder = SHARED / "net" / "001"
    if not folder.is_dir():
        pytest.skip(f"the shared cases are not here: {folder}")
    h5py = pytest.importorskip("h5py", reason="h5py, of the extra `petab`, is not installed")
    model = in_a_model(read_network(str(folder / "net.yaml")), field, tmp_path)
    model = load_into(model, str(folder / f"net_ps_{number}.hdf5"))
    value = array_inputs(str(folder / f"net_input_{number}.hdf5"))["input0"]["data"]
    with h5py.File(folder / f"net_output_{number}.hdf5") as file:
        wanted = file["outputs/output0/data"][()]
    np.testing.assert_allclose(getattr(model, field)(jnp.asarray(value, float)), wanted, rtol=0, atol=1e-6)


def test_the_suites_array_input_and_its_network(tmp_path: Path):
    folder = SHARED / "sciml" / "036" / "petab"
    if not folder.is_dir():
        pytest.skip(f"the shared cases are not here: {folder}")
    pytest.importorskip("h5py", reason="h5py, of the extra `petab`, is not installed")
    model = in_a_model(read_network(str(folder / "net6.yaml")), "net6", tmp_path)
    model: Any = load_into(model, str(folder / "net6_ps.hdf5"))
    second = array_inputs(str(folder / "net6_input1.hdf5"))["net6_input2"]["0"]
    arrays = dict(array_leaves(model))
    value = np.concatenate([[0.7], second])
    for i in (1, 2, 3):
        weight, bias = (np.asarray(arrays[f".net6.layer{i}.{name}"]) for name in ("weight", "bias"))
        value = weight @ value + bias if i == 3 else np.maximum(weight @ value + bias, 0)
    np.testing.assert_allclose(model.net6(jnp.array([0.7]), jnp.asarray(second)), value, rtol=1e-13)


@pytest.mark.parametrize("case", ["001/petab/net1", "002/petab/net1", "023/petab/net1", "036/petab/net6"])
def test_the_suites_problems_have_networks_that_are_imported(case: str):
    path = SHARED / "sciml" / f"{case}.yaml"
    if not path.is_file():
        pytest.skip(f"the shared cases are not here: {path}")
    net = read_network(str(path))
    assert problems(net) == notes(net) == []


def test_what_petab_sciml_writes_is_what_is_read(tmp_path: Path):
    torch = pytest.importorskip("torch", reason="PyTorch, an extra, is not installed")
    pytest.importorskip("petab_sciml", reason="petab-sciml, of the extra `petab`, is not installed")
    standard = importlib.import_module("petab_sciml.standard")
    written = 0
    for case, (content, _) in CASES.items():
        # petab-sciml 0.0.3 has no such functions, and writes the axis of the last one a second time, as 0: PyTorch
        # refuses that as we do.
        if case in ("stack", "arithmetic", "cat along another axis"):
            continue
        wanted = standard.NNModel(**content)
        try:
            exported = standard.NNModel.from_pytorch_module(wanted.to_pytorch_module(), "net0", wanted.inputs)
        except (SyntaxError, ValueError):
            # Nor can it write a layer without arguments or with a text as one.
            continue
        written += 1
        standard.NNModelStandard.save_data(data=exported, filename=str(tmp_path / "net.yaml"))
        model = built(read_network(str(tmp_path / "net.yaml")), formula)
        found = outputs(model, *(jnp.asarray(v) for v in network_cases.inputs(case)))
        assert_summaries(summary(found), EXPECTED[case])
    assert torch
    assert written >= 70
