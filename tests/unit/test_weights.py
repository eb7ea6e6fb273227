"""Pretrained weights: read exactly or refused with the leaf's name, and found again in model.nc."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import netCDF4
import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file
from sealing import flip, seal_again

from retrograd import store, weights
from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.plugins import build_structure, load_class
from retrograd.weights import array_leaves, export, flatten, load_into, n_weights, read_model, unflatten, weights_digest

ORIGIN = store.Provenance({"class": "Net"}, {"plugin": "a" * 64}, "c" * 64, {"threads": 1})

NET = """
import equinox as eqx
import jax
import jax.numpy as jnp

from retrograd.api import Model


class Net(Model):
    states = {"a": "mol m-3", "b": "1"}
    parameters = {"k1": "s-1", "k2": "1"}
    network: eqx.nn.MLP

    @classmethod
    def build(cls, key):
        return cls(network=eqx.nn.MLP(2, 2, 3, 1, jnp.tanh, key=key))

    def vector_field(self, t, x, k):
        return k["k1"] * self.network(x) - k["k2"] * x
"""

# Arrays in lists and dicts, of integers, of no dimension; a number of Python's; a function.
ODD = """
import equinox as eqx
import jax
import jax.numpy as jnp

from retrograd.api import Model


class Odd(Model):
    states = {"a": "1"}
    parameters = {}
    parts: list
    table: dict
    steps: jax.Array
    factor: jax.Array
    gain: float
    act: object

    @classmethod
    def build(cls, key):
        keys = jax.random.split(key, 3)
        return cls(
            parts=[eqx.nn.Linear(1, 2, key=keys[0]), eqx.nn.Linear(2, 1, use_bias=False, key=keys[1])],
            table={"left": jnp.zeros((2,)), "right": jax.random.normal(keys[2], (1, 2))},
            steps=jnp.array([3, -4], jnp.int32),
            factor=jnp.array(1.5),
            gain=2.0,
            act=jnp.tanh,
        )

    def vector_field(self, t, x, k):
        inner = self.act(self.parts[0](x) + self.table["left"] + self.table["right"][0]) * self.steps
        return self.factor * self.gain * self.parts[1](inner) - x
"""

FREE = """
from retrograd.api import Model


class Free(Model):
    states = {"a": "1"}
    parameters = {"k1": "1"}

    def vector_field(self, t, x, k):
        return -k["k1"] * x
"""


def structure(text: str, tmp_path: Path) -> Model:
    """Returns the model of a plug-in's text as `build` makes it."""
    path = tmp_path / "plugin.py"
    path.write_text(text)
    name = text.partition("class ")[2].partition("(")[0]
    return build_structure(load_class(str(path), name))


def trained(model: Model, seed: int = 1) -> Model:
    """Returns the model with other weights, as training leaves them."""
    rng = np.random.Generator(np.random.PCG64(seed))
    change = lambda v: jnp.asarray(rng.standard_normal(v.shape), v.dtype) if eqx.is_inexact_array(v) else v
    return jax.tree_util.tree_map(lambda v: v + 7 if _is_integer(v) else change(v), model)


def _is_integer(leaf: Any) -> bool:
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.integer)


def assert_equal(found: Model, wanted: Model) -> None:
    """Asserts that two models agree to the bit, in types and in structure."""
    assert jax.tree_util.tree_structure(found) == jax.tree_util.tree_structure(wanted)
    for (path, leaf), (other, value) in zip(array_leaves(found), array_leaves(wanted), strict=True):
        assert path == other
        assert leaf.dtype == value.dtype, path
        assert leaf.shape == value.shape, path
        assert np.asarray(leaf).tobytes() == np.asarray(value).tobytes(), path


def as_eqx(model: Any, path: Path, first_line: str = "") -> str:
    with open(path, "wb") as file:
        file.write(first_line.encode())
        eqx.tree_serialise_leaves(file, model)
    return str(path)


def dotted(model: Model) -> dict[str, np.ndarray]:
    """Returns arrays under the names that training code gives: `network.layers.0.weight`."""
    return {_name(path): np.asarray(leaf) for path, leaf in array_leaves(model)}


def _name(path: str) -> str:
    return path.replace("['", ".").replace("']", "").replace("[", ".").replace("]", "").lstrip(".")


def as_safetensors(arrays: dict[str, np.ndarray], path: Path) -> str:
    save_file({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}, path)
    return str(path)


@pytest.fixture
def net(tmp_path: Path) -> Model:
    return structure(NET, tmp_path)


@pytest.fixture
def odd(tmp_path: Path) -> Model:
    return structure(ODD, tmp_path)


@pytest.fixture
def free(tmp_path: Path) -> Model:
    return structure(FREE, tmp_path)


# -- what is read is what was trained -----------------------------------------------------------------


@pytest.mark.parametrize("first_line", ["", '{"width": 3, "depth": 1}\n', "{}\n"], ids=["plain", "json", "empty json"])
@pytest.mark.parametrize("text", [NET, ODD], ids=["net", "odd"])
def test_eqx(text: str, first_line: str, tmp_path: Path):
    model = structure(text, tmp_path)
    wanted = trained(model)
    found = load_into(model, as_eqx(wanted, tmp_path / "w.eqx", first_line))
    assert_equal(found, wanted)
    assert not np.array_equal(flatten(found), flatten(model))


@pytest.mark.parametrize("text", [NET, ODD], ids=["net", "odd"])
def test_safetensors(text: str, tmp_path: Path):
    model = structure(text, tmp_path)
    wanted = trained(model)
    assert_equal(load_into(model, as_safetensors(dotted(wanted), tmp_path / "w.safetensors")), wanted)


@pytest.mark.parametrize(
    "rename",
    [
        lambda path: path,  # `.network.layers[0].weight`, as jax writes paths
        lambda path: path.lstrip("."),
        lambda path: _name(path).partition(".")[2],  # saved from the network alone
        lambda path: path.partition(".network.")[2],
        lambda path: "." + path.partition(".network.")[2],
        lambda path: _name(path),
    ],
    ids=["keystr", "no dot", "network alone", "alone, brackets", "alone, keystr", "dots"],
)
def test_names_in_safetensors(rename: Callable[[str], str], net: Model, tmp_path: Path):
    wanted = trained(net)
    arrays = {rename(path): np.asarray(leaf) for path, leaf in array_leaves(wanted)}
    assert_equal(load_into(net, as_safetensors(arrays, tmp_path / "w.safetensors")), wanted)


def test_names_with_brackets_and_quotes(odd: Model, tmp_path: Path):
    wanted = trained(odd)
    arrays = {path: np.asarray(leaf) for path, leaf in array_leaves(wanted)}
    assert ".table['left']" in arrays and ".parts[0].weight" in arrays
    assert_equal(load_into(odd, as_safetensors(arrays, tmp_path / "w.safetensors")), wanted)


def test_the_order_in_safetensors_does_not_matter(net: Model, tmp_path: Path):
    wanted = trained(net)
    arrays = dict(reversed(dotted(wanted).items()))
    assert_equal(load_into(net, as_safetensors(arrays, tmp_path / "w.safetensors")), wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("suffix", ["eqx", "safetensors"])
def test_narrow_weights_are_widened_exactly(dtype: type, suffix: str, net: Model, tmp_path: Path):
    narrow = jax.tree_util.tree_map(lambda v: v.astype(dtype) if eqx.is_inexact_array(v) else v, trained(net))
    path = tmp_path / f"w.{suffix}"
    found = load_into(net, as_eqx(narrow, path) if suffix == "eqx" else as_safetensors(dotted(narrow), path))
    for (name, leaf), (_, value) in zip(array_leaves(found), array_leaves(narrow), strict=True):
        assert leaf.dtype == jnp.float64
        assert np.array_equal(np.asarray(leaf), np.asarray(value).astype(np.float64)), name
        assert np.array_equal(np.asarray(leaf).astype(dtype), np.asarray(value)), name


def test_weights_in_column_order(net: Model, tmp_path: Path):
    """numpy writes them as they lie in memory, with a flag."""
    wanted = trained(net)
    path = tmp_path / "w.eqx"
    with open(path, "wb") as file:
        for _, leaf in array_leaves(wanted):
            np.save(file, np.asfortranarray(leaf))
    assert_equal(load_into(net, str(path)), wanted)


def test_a_model_without_a_network(free: Model, tmp_path: Path):
    assert load_into(free, None) is free
    assert n_weights(free) == 0
    path = str(tmp_path / "model.nc")
    export(free, ORIGIN, path)
    assert_equal(read_model(path, type(free), free), free)
    with netCDF4.Dataset(path) as file:
        assert file.n_weights == 0
        assert not file["/weights"].variables


# -- what does not fit is refused ---------------------------------------------------------------------


def refusal(model: Model, path: Any) -> str:
    with pytest.raises(RetrogradError) as caught:
        load_into(model, path if path is None else str(path))
    text = str(caught.value)
    assert path is None or str(path) in text
    return text


def test_a_missing_leaf_in_safetensors(net: Model, tmp_path: Path):
    arrays = dotted(net)
    del arrays["network.layers.1.bias"], arrays["network.layers.0.weight"]
    text = refusal(net, as_safetensors(arrays, tmp_path / "w.safetensors"))
    assert "does not fit Net" in text
    assert "leaf .network.layers[1].bias: missing, wanted float64[2]" in text
    assert "leaf .network.layers[0].weight: missing, wanted float64[3, 2]" in text
    assert "layers[0].bias" not in text


def test_a_missing_leaf_in_eqx(net: Model, tmp_path: Path):
    path = tmp_path / "w.eqx"
    with open(path, "wb") as file:
        for _, leaf in array_leaves(net)[:-1]:
            np.save(file, np.asarray(leaf))
    assert "leaf .network.layers[1].bias could not be read" in refusal(net, path)


def test_an_extra_leaf_in_safetensors(net: Model, tmp_path: Path):
    arrays = dotted(net) | {"network.layers.2.weight": np.zeros(1), "optimiser.step": np.zeros(())}
    text = refusal(net, as_safetensors(arrays, tmp_path / "w.safetensors"))
    assert "arrays that Net does not have: network.layers.2.weight, optimiser.step" in text
    assert "it has: network.layers.0.weight, network.layers.0.bias" in text


def test_an_extra_leaf_in_eqx(net: Model, tmp_path: Path):
    path = tmp_path / "w.eqx"
    with open(path, "wb") as file:
        eqx.tree_serialise_leaves(file, net)
        np.save(file, np.zeros(2))
    assert "holds more arrays than the 4 of Net" in refusal(net, path)


@pytest.mark.parametrize("suffix", ["eqx", "safetensors"])
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda a: a.T, "found shape [2, 3], wanted [3, 2]"),
        (lambda a: a[:2], "found shape [2, 2], wanted [3, 2]"),
        (lambda a: a.reshape(6), "found shape [6], wanted [3, 2]"),
        (lambda a: a[..., None], "found shape [3, 2, 1], wanted [3, 2]"),
        (lambda a: a.astype(np.int64), "found type int64, wanted float64"),
        (lambda a: a.astype(np.uint8), "found type uint8, wanted float64"),
        (lambda a: a > 0, "found type bool, wanted float64"),
        (lambda a: np.where(a == a.max(), np.nan, a), "1 values are not finite"),
        (lambda a: np.full_like(a, -np.inf), "6 values are not finite"),
        (lambda a: np.full_like(a, np.inf).astype(np.float32), "6 values are not finite"),
    ],
)
def test_a_leaf_that_does_not_fit(change: Callable[..., np.ndarray], wanted: str, suffix: str, net, tmp_path: Path):
    arrays = dotted(net)
    arrays["network.layers.0.weight"] = change(arrays["network.layers.0.weight"])
    path = tmp_path / f"w.{suffix}"
    if suffix == "eqx":
        with open(path, "wb") as file:
            for array in arrays.values():
                np.save(file, array)
    else:
        as_safetensors(arrays, path)
    text = refusal(net, path)
    assert f"leaf .network.layers[0].weight: {wanted}" in text
    assert text.count("leaf ") == 1


def test_every_leaf_that_does_not_fit_is_named(net: Model, tmp_path: Path):
    arrays = {name: np.zeros(9, np.int32) for name in dotted(net)}
    text = refusal(net, as_safetensors(arrays, tmp_path / "w.safetensors"))
    assert text.count("found shape [9], wanted") == 4


def test_nothing_is_narrowed(tmp_path: Path):
    text = NET.replace("MLP(2, 2, 3, 1, jnp.tanh, key=key)", "MLP(2, 2, 3, 1, jnp.tanh, dtype=jnp.float32, key=key)")
    model = structure(text, tmp_path)
    wide = {name: array.astype(np.float64) for name, array in dotted(model).items()}
    found = refusal(model, as_safetensors(wide, tmp_path / "w.safetensors"))
    assert "leaf .network.layers[0].weight: found type float64, wanted float32" in found


def test_integers_are_not_taken_for_others(odd: Model, tmp_path: Path):
    arrays = dotted(odd)
    arrays["steps"] = arrays["steps"].astype(np.int64)
    text = refusal(odd, as_safetensors(arrays, tmp_path / "w.safetensors"))
    assert "leaf .steps: found type int64, wanted int32" in text
    arrays["steps"] = arrays["steps"].astype(np.float32)
    text = refusal(odd, as_safetensors(arrays, tmp_path / "w.safetensors"))
    assert "leaf .steps: found type float32, wanted int32" in text


def test_a_network_that_is_missing(net: Model):
    text = refusal(net, None)
    assert "4 arrays (.network.layers[0].weight first) but `model.weights` is null" in text


@pytest.mark.parametrize("suffix", ["eqx", "safetensors"])
def test_weights_for_a_model_without_a_network(suffix: str, net: Model, free: Model, tmp_path: Path):
    path = tmp_path / f"w.{suffix}"
    as_eqx(net, path) if suffix == "eqx" else as_safetensors(dotted(net), path)
    text = refusal(free, path)
    if suffix == "eqx":
        assert "holds more arrays than the 0 of Free" in text
    else:
        assert "arrays that Free does not have: network.layers.0.bias" in text
        assert "it has: none" in text


@pytest.mark.parametrize("name", ["w.npz", "w.pkl", "w", "w.EQX", "w.eqx.gz"])
def test_another_suffix(name: str, net: Model, tmp_path: Path):
    as_eqx(net, tmp_path / name)
    text = refusal(net, tmp_path / name)
    assert f"ends in {Path(name).suffix!r}; weights are read from .eqx or .safetensors" in text


def test_one_format_under_the_name_of_the_other(net: Model, tmp_path: Path):
    assert "leaf .network" in refusal(net, as_safetensors(dotted(net), tmp_path / "w.eqx"))
    assert "not a readable .safetensors" in refusal(net, as_eqx(net, tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", ["eqx", "safetensors"])
def test_every_truncation_is_refused(suffix: str, net: Model, tmp_path: Path):
    path = tmp_path / f"w.{suffix}"
    as_eqx(net, path) if suffix == "eqx" else as_safetensors(dotted(net), path)
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        refusal(net, path)
    path.write_bytes(content[:-1])
    refusal(net, path)
    path.write_bytes(content + b"\0")
    refusal(net, path)


@pytest.mark.parametrize("suffix", ["eqx", "safetensors"])
def test_garbage_is_refused(suffix: str, net: Model, tmp_path: Path):
    rng = np.random.Generator(np.random.PCG64(0))
    path = tmp_path / f"w.{suffix}"
    for content in [
        b"",
        b"{",
        b"{}",
        b"{}\n",
        b"\x80\x04.",
        b"\x93NUMPY",
        b"PK\x03\x04",
        *map(rng.bytes, range(1, 99)),
    ]:
        path.write_bytes(content)
        refusal(net, path)


# Of numpy, in a header that it reads all the same: raised as an error, it would be a refusal.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:SyntaxWarning")
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@pytest.mark.parametrize("suffix", ["eqx", "safetensors"])
def test_a_changed_byte_is_a_value_or_is_refused(suffix: str, net: Model, tmp_path: Path):
    """Never another error: numpy's reader of headers has many."""
    rng = np.random.Generator(np.random.PCG64(1))
    path = tmp_path / f"w.{suffix}"
    as_eqx(net, path) if suffix == "eqx" else as_safetensors(dotted(net), path)
    content = path.read_bytes()
    refused = 0
    for i in rng.integers(len(content), size=600):
        spoiled = bytearray(content)
        spoiled[i] = rng.integers(256)
        path.write_bytes(spoiled)
        try:
            found = load_into(net, str(path))
        except RetrogradError:
            refused += 1
        else:
            assert jax.tree_util.tree_structure(found) == jax.tree_util.tree_structure(net)
    assert 100 < refused < 600


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


# The payload opens a file, and nobody closes it.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("place", [0, 2])
def test_pickles_are_never_loaded(place: int, net: Model, tmp_path: Path):
    target = tmp_path / "harm"
    path = tmp_path / "w.eqx"
    with open(path, "wb") as file:
        for i, (_, leaf) in enumerate(array_leaves(net)):
            if i == place:
                start = file.tell()
                np.save(file, np.array([Payload(target)], dtype=object), allow_pickle=True)
            else:
                np.save(file, np.asarray(leaf))
    name = array_leaves(net)[place][0]
    assert f"leaf {name} could not be read (Object arrays cannot be loaded" in refusal(net, path)
    assert not target.exists()
    # The payload works: it is the reader that does not run it.
    with open(path, "rb") as file:
        file.seek(start)
        np.load(file, allow_pickle=True)
    assert target.exists()


def test_a_bare_pickle_is_never_loaded(net: Model, tmp_path: Path):
    import pickle

    target = tmp_path / "harm"
    for suffix in ("eqx", "safetensors"):
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(pickle.dumps(Payload(target)))
        refusal(net, path)
    assert not target.exists()


def test_a_number_that_differs_from_the_structures(odd: Model, tmp_path: Path):
    """`gain` is no array and stays as the structure has it: with another value the network is not the trained one."""
    path = as_eqx(eqx.tree_at(lambda m: m.gain, trained(odd), 3.0), tmp_path / "w.eqx")
    assert "gain" in refusal(odd, path)


# -- one array of all weights -------------------------------------------------------------------------


@pytest.mark.parametrize("text", [NET, ODD, FREE], ids=["net", "odd", "free"])
def test_unflatten_undoes_flatten(text: str, tmp_path: Path):
    model = structure(text, tmp_path)
    other = trained(model, 2)
    flat = flatten(other)
    assert flat.shape == (n_weights(model),)
    assert flat.dtype == jnp.float64
    back = unflatten(model, flat)
    assert np.array_equal(flatten(back), flat)
    for (path, leaf), (_, value) in zip(array_leaves(back), array_leaves(other), strict=True):
        if not _is_integer(leaf):
            assert np.array_equal(leaf, value), path
    # Integers stay with the structure.
    if text is ODD:
        assert back.steps.tolist() == model.steps.tolist()


def test_the_order_of_weights(net: Model):
    assert n_weights(net) == 2 * 3 + 3 + 3 * 2 + 2
    flat = np.asarray(flatten(net))
    assert np.array_equal(flat[:6], np.ravel(net.network.layers[0].weight))
    assert np.array_equal(flat[6:9], net.network.layers[0].bias)
    moved = unflatten(net, jnp.arange(17.0))
    assert moved.network.layers[1].bias.tolist() == [15.0, 16.0]


def test_flatten_takes_a_gradient(net: Model):
    gradient = eqx.filter_grad(lambda m: jnp.sum(m.network(jnp.ones(2)) ** 2))(net)
    wanted = jax.grad(lambda p: jnp.sum(unflatten(net, p).network(jnp.ones(2)) ** 2))(flatten(net))
    assert np.array_equal(flatten(gradient), wanted)
    assert np.any(wanted != 0)


# -- model.nc -----------------------------------------------------------------------------------------


@pytest.fixture
def exported(net: Model, tmp_path: Path) -> tuple[str, Model]:
    model = trained(net)
    path = str(tmp_path / "model.nc")
    export(model, ORIGIN, path)
    return path, model


@pytest.mark.parametrize("text", [NET, ODD, FREE], ids=["net", "odd", "free"])
def test_export_and_back(text: str, tmp_path: Path):
    first = structure(text, tmp_path)
    model = trained(first)
    path = str(tmp_path / "model.nc")
    export(model, ORIGIN, path)
    found = read_model(path, type(model), first)
    assert_equal(found, model)
    assert weights_digest(found) == weights_digest(model)


def test_what_the_contract_says_of_model_nc(exported: tuple[str, Model]):
    path, model = exported
    with netCDF4.Dataset(path) as file:
        assert file.retrograd_schema == "model/1"
        assert set(file.groups) == {"weights"}
        assert {"selftest_input", "selftest_output", "selftest_k"} <= set(file.variables)
        assert file.n_weights == 17
        assert file.weights_sha256 == weights_digest(model)
        leaves = dict(array_leaves(model))
        group = file["/weights"].variables
        assert [v.getncattr("path") for v in group.values()] == list(leaves)
        for var in group.values():
            assert np.array_equal(var[:], leaves[var.getncattr("path")])
            assert var.dtype == np.float64
            assert var.units == "1" and var.long_name
        assert json.loads(file.states) == {"a": "mol m-3", "b": "1"}
        assert json.loads(file.parameters) == {"k1": "s-1", "k2": "1"}
        assert list(file["parameter_name"][:]) == ["k1", "k2"]
        file.set_auto_mask(False)
        x, k = file["selftest_input"][:], file["selftest_k"][:]
        for row in range(len(x)):
            rate = model.vector_field(jnp.zeros(()), jnp.asarray(x[row]), {"k1": k[row, 0], "k2": k[row, 1]})
            assert np.allclose(file["selftest_output"][row], rate, rtol=1e-14, atol=1e-15)


def test_the_content_digest_of_model_nc(exported: tuple[str, Model]):
    tree = xr.load_datatree(exported[0], engine="netcdf4", decode_times=False)
    assert store.content_digest(tree) == tree.attrs["retrograd_content_sha256"]


def test_the_same_bytes(exported: tuple[str, Model], tmp_path: Path):
    other = tmp_path / "elsewhere" / "m.nc"
    export(exported[1], ORIGIN, str(other))
    content = other.read_bytes()
    assert content == Path(exported[0]).read_bytes()
    assert str(tmp_path).encode() not in content
    assert b" at 0x" not in content


def test_a_failed_export_leaves_nothing_behind(exported: tuple[str, Model], monkeypatch: pytest.MonkeyPatch):
    path, model = exported
    before = Path(path).read_bytes()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="disk full"):
            export(trained(model, 5), ORIGIN, path)
    assert Path(path).read_bytes() == before
    assert sorted(p.name for p in Path(path).parent.glob(".*")) == []


def test_weights_beyond_float64_text(net: Model, tmp_path: Path):
    """Bits survive: subnormal, tiny, huge and negative zero."""
    flat = np.full(17, -0.0)
    flat[:5] = [5e-324, 1e-308, 1.7e308, -1 / 3, np.nextafter(1, 2)]
    model = unflatten(net, jnp.asarray(flat))
    path = str(tmp_path / "model.nc")
    export(model, ORIGIN, path)
    assert_equal(read_model(path, type(net), net), model)


def spoil(path: str, change: Callable[[netCDF4.Dataset], None]) -> None:
    with netCDF4.Dataset(path, "r+") as file:
        change(file)
    # What follows from the change is to be found, and not that there was one.
    seal_again(path)


def model_refusal(path: str, model: Model) -> str:
    with pytest.raises(RetrogradError) as caught:
        read_model(path, type(model), model)
    text = str(caught.value)
    assert path in text
    assert f"Rule export makes it: `snakemake --cores 1 --forcerun {path}`" in text
    return text


def test_a_changed_weight_is_found(exported: tuple[str, Model]):
    path, model = exported

    def change(file: netCDF4.Dataset) -> None:
        var = file["/weights/leaf2"]
        var[1, 2] = np.nextafter(var[1, 2], 9)

    spoil(path, change)
    text = model_refusal(path, model)
    assert f"wanted {weights_digest(model)}" in text and "weights have sha256" in text


def test_a_changed_digest_is_found(exported: tuple[str, Model]):
    path, model = exported
    spoil(path, lambda file: file.setncattr("weights_sha256", "0" * 64))
    assert f"weights have sha256 {weights_digest(model)}" in model_refusal(path, model)


def test_a_changed_path_is_found(exported: tuple[str, Model]):
    path, model = exported
    spoil(path, lambda file: file["/weights/leaf1"].setncattr("path", ".network.layers[9].bias"))
    assert "leaf .network.layers[0].bias: found '.network.layers[9].bias'" in model_refusal(path, model)


def test_swapped_paths_are_found(exported: tuple[str, Model]):
    path, model = exported

    def swap(file: netCDF4.Dataset) -> None:
        one, two = file["/weights/leaf0"], file["/weights/leaf2"]
        paths = [v.getncattr("path") for v in (one, two)]
        one.setncattr("path", paths[1])
        two.setncattr("path", paths[0])

    spoil(path, swap)
    assert "leaf .network.layers[0].weight: found '.network.layers[1].weight'" in model_refusal(path, model)


def test_a_changed_selftest_is_found(exported: tuple[str, Model]):
    path, model = exported

    def change(file: netCDF4.Dataset) -> None:
        file["selftest_output"][3, 1] += 1e-6

    spoil(path, change)
    assert "self-test 3, state b: found" in model_refusal(path, model)


def test_a_leaf_that_is_gone_is_found(exported: tuple[str, Model]):
    path, model = exported
    spoil(path, lambda file: file["/weights"].renameVariable("leaf3", "other"))
    assert "leaf .network.layers[1].bias: found None" in model_refusal(path, model)


def test_a_leaf_too_many_is_found(exported: tuple[str, Model]):
    path, model = exported
    spoil(path, lambda file: file["/weights"].createVariable("leaf4", "f8"))
    assert "found 5 leaves, wanted 4" in model_refusal(path, model)


def test_another_schema(exported: tuple[str, Model]):
    path, model = exported
    spoil(path, lambda file: file.setncattr("retrograd_schema", "model/0"))
    assert "has schema 'model/0', wanted 'model/1'" in model_refusal(path, model)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_model(part: float, exported: tuple[str, Model]):
    path, model = exported
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(part * len(content))])
    assert "cannot be read" in model_refusal(path, model)


def test_a_damaged_model_is_found_before_it_is_opened(exported: tuple[str, Model], monkeypatch: pytest.MonkeyPatch):
    path, model = exported
    flip(path, 8 * 5000)
    monkeypatch.setattr(xr, "load_datatree", lambda *a, **k: pytest.fail("the file was opened"))
    assert "its bytes are not those that were written" in model_refusal(path, model)


def test_a_model_with_other_weights_than_the_study_s(exported: tuple[str, Model]):
    path, model = exported
    with pytest.raises(RetrogradError, match="is not of this run: it was computed from weights"):
        read_model(path, type(model), model, {"weights": "0" * 64})


def test_no_model(exported: tuple[str, Model], tmp_path: Path):
    assert "cannot be read" in model_refusal(str(tmp_path / "none.nc"), exported[1])


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("MLP(2, 2, 3, 1", "MLP(2, 2, 4, 1", "leaf .network.layers[0].weight: found shape [3, 2], wanted [4, 2]"),
        ("MLP(2, 2, 3, 1", "MLP(2, 2, 3, 2", "found 4 leaves, wanted 6"),
        ("network: eqx", "net: eqx", "leaf .net.layers[0].weight: found '.network.layers[0].weight'"),
    ],
)
def test_a_changed_structure_is_found(old: str, new: str, wanted: str, exported: tuple[str, Model], tmp_path: Path):
    text = NET.replace(old, new).replace("cls(network=", "cls(net=" if old.startswith("network") else "cls(network=")
    assert wanted in model_refusal(exported[0], structure(text, tmp_path))


def test_a_changed_type_is_found(tmp_path: Path):
    model = trained(structure(ODD, tmp_path))
    path = str(tmp_path / "model.nc")
    export(model, ORIGIN, path)
    other = structure(ODD.replace("jnp.array([3, -4], jnp.int32)", "jnp.array([3.0, -4.0])"), tmp_path)
    assert "leaf .steps: found type int32, wanted float64" in model_refusal(path, other)


@pytest.mark.parametrize(
    ("old", "new", "state"),
    [
        ('- k["k2"] * x', '- 1.000001 * k["k2"] * x', "a"),
        ("jnp.tanh", "jax.nn.relu", "a"),
        ('- k["k2"] * x', '- k["k2"] * x * jnp.array([1.0, 1.001])', "b"),
        ('k["k1"] * self', 'k["k2"] * self', "a"),
        ('- k["k2"] * x', '- k["k2"] * x / 0', "a"),
    ],
)
def test_a_changed_vector_field_is_found(old: str, new: str, state: str, exported: tuple[str, Model], tmp_path: Path):
    text = NET.replace(old, new)
    assert text != NET
    found = model_refusal(exported[0], structure(text, tmp_path))
    assert f"self-test 0, state {state}: found" in found
    assert "the plug-in's vector field or the structure changed" in found


def test_a_comment_in_the_plugin_changes_nothing(exported: tuple[str, Model], tmp_path: Path):
    other = structure(NET + "# a comment\n", tmp_path)
    assert type(other) is not type(exported[1])
    assert np.array_equal(flatten(read_model(exported[0], type(other), other)), flatten(exported[1]))


def test_rates_that_are_not_finite_at_the_selftests(tmp_path: Path):
    """A model may be undefined at random states: NaN there is expected there, and nowhere else."""
    text = FREE.replace('-k["k1"] * x', 'jnp.log(x) * k["k1"]').replace(
        "from retro", "import jax.numpy as jnp\nfrom retro"
    )
    model = structure(text, tmp_path)
    path = str(tmp_path / "model.nc")
    export(model, ORIGIN, path)
    with netCDF4.Dataset(path) as file:
        output = file["selftest_output"][:].filled(np.nan)
    assert 0 < np.sum(np.isnan(output)) < output.size
    read_model(path, type(model), model)
    other = structure(text.replace("jnp.log(x)", "jnp.log(jnp.abs(x))"), tmp_path)
    assert "self-test" in model_refusal(path, other)


def test_a_changed_slow_rate_beside_a_fast_one_is_found(tmp_path: Path):
    text = FREE.replace('{"a": "1"}', '{"slow": "1", "fast": "1"}')
    text = text.replace('-k["k1"] * x', '-k["k1"] * jnp.array([1.0, 1e12]) * x').replace(
        "\nfrom", "import jax.numpy as jnp\nfrom"
    )
    model = structure(text, tmp_path)
    path = str(tmp_path / "model.nc")
    export(model, ORIGIN, path)
    other = structure(text.replace("[1.0, 1e12]", "[2.0, 1e12]"), tmp_path)
    assert "state slow" in model_refusal(path, other)


def test_a_float32_process_reads_narrowed_weights(exported: tuple[str, Model], tmp_path: Path):
    path, model = exported
    with jax.enable_x64(False):
        narrow = structure(NET, tmp_path)
        found = read_model(path, type(narrow), narrow)
        for (name, leaf), (_, value) in zip(array_leaves(found), array_leaves(model), strict=True):
            assert leaf.dtype == jnp.float32
            assert np.array_equal(np.asarray(leaf), np.asarray(value).astype(np.float32)), name
        other = structure(NET.replace('- k["k2"] * x', '- 1.01 * k["k2"] * x'), tmp_path)
        assert "self-test" in model_refusal(path, other)

    def change(file: netCDF4.Dataset) -> None:
        file["/weights/leaf0"][0, 0] += 1e-15

    spoil(path, change)
    with jax.enable_x64(False):
        # Below float32's rounding, and found all the same: the digest is of what is stored.
        assert "weights have sha256" in model_refusal(path, structure(NET, tmp_path))


def test_a_vector_field_that_fails_is_named(tmp_path: Path):
    model = structure(FREE.replace('k["k1"]', 'k["k9"]'), tmp_path)
    with pytest.raises(RetrogradError, match=r"Free\.vector_field stopped: .*plugin.py, line \d+: KeyError: 'k9'"):
        export(model, ORIGIN, str(tmp_path / "model.nc"))
    assert not (tmp_path / "model.nc").exists()


def test_the_digest_tells_weights_apart(net: Model, odd: Model):
    seen = {weights_digest(m) for m in (net, trained(net), odd, trained(odd))}
    assert len(seen) == 4
    flipped = eqx.tree_at(lambda m: m.factor, odd, -odd.factor)
    renamed = jax.tree_util.tree_map(lambda v: v, odd)
    assert weights_digest(flipped) != weights_digest(odd) == weights_digest(renamed)


def test_selftest_points_are_the_same_everywhere(net: Model):
    x, k = weights.selftest_points(type(net))
    again = weights.selftest_points(type(net))
    assert x.tobytes() == again[0].tobytes() and k.tobytes() == again[1].tobytes()
    assert x.shape == k.shape == (weights.SELFTESTS, 2)
    assert np.all(np.abs(x) <= 1) and np.all((k >= 0.1) & (k <= 1))
    assert len(np.unique(x)) == x.size


def test_npy_versions(net: Model, tmp_path: Path):
    """numpy wrote other header versions, and other tools still do."""
    wanted = trained(net)
    path = tmp_path / "w.eqx"
    with open(path, "wb") as file:
        for (_, leaf), version in zip(array_leaves(wanted), [(1, 0), (2, 0), (3, 0), (1, 0)], strict=True):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asarray(leaf), version)
            file.write(part.getvalue())
    assert_equal(load_into(net, str(path)), wanted)
