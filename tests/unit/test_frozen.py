"""Frozen layers: stored with the weights, but no gradient, no difference and no direction by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Networked, gradient_problem, options, scenarios, solve

from retrograd import store
from retrograd.certificates import gradient_table
from retrograd.errors import RetrogradError
from retrograd.plugins import build_structure, lies_under, load_class
from retrograd.schema import VERDICTS
from retrograd.weights import array_leaves, export, flatten, n_weights, read_model, unflatten, weight_leaves

K, X, TIMES = np.array([[3.0, 0.7], [1.0, -0.4]]), np.array([[0.7, 0.0], [-0.4, 0.0]]), [0.5, 1.0]


class Frozen(Networked):
    """The networked problem with the first layer given: 2 x 4 weights and 4 biases less of 17."""

    frozen = ("network.layers[0]",)


class AllFrozen(Networked):
    frozen = ("network",)


def build(cls):
    return cls(network=Networked.build(jax.random.PRNGKey(3)).network)


def gradients(cls, **changes):
    model, settings = build(cls), options(**{"wrt": ["dynamic", "network"]} | changes)
    records = solve(cls, model, settings, TIMES, X, K)
    problem = gradient_problem(cls, model, settings, TIMES)
    return problem, gradient_table(problem, scenarios(records, X, K))


def test_paths_are_prefixes_of_whole_names():
    assert lies_under(".network.layers[1].weight", ("network.layers[1]",))
    assert lies_under(".network.layers[1].weight", ("inputs", "network.layers.1.weight"))
    assert lies_under(".inputs['net6_input2']", ("inputs",))
    assert not lies_under(".network.layers[10].weight", ("network.layers[1]", "layers", "network.layer"))


def test_frozen_arrays_are_no_weights():
    model: Any = build(Frozen)
    free = build(Networked)
    assert n_weights(model) == len(flatten(model)) == n_weights(free) - 12
    assert [path for path, _ in weight_leaves(model)] == [".network.layers[1].weight", ".network.layers[1].bias"]
    assert len(array_leaves(model)) == 4
    np.testing.assert_array_equal(flatten(model), flatten(free)[12:])
    moved: Any = unflatten(model, flatten(model) + 1)
    np.testing.assert_array_equal(moved.network.layers[0].weight, model.network.layers[0].weight)
    np.testing.assert_array_equal(moved.network.layers[1].bias, model.network.layers[1].bias + 1)


def test_a_gradient_loses_the_same_leaves():
    model = build(Frozen)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda w: jnp.sum(eqx.combine(w, static).network(jnp.ones(2))))(weights)
    assert flatten(gradient).shape == (5,)


@pytest.mark.parametrize("solver", ["Kvaerno5", "Rodas5P"])
def test_gradients_are_those_of_the_free_model_and_verified(solver):
    problem, table = gradients(Frozen, solver=solver)
    _, free = gradients(Networked, solver=solver)
    assert {VERDICTS[v] for v in np.ravel(table["verdict"])} == {"verified"}
    assert problem.weights == problem.directions.shape[1] == 5
    found, wanted = table["gradient_network"], free["gradient_network"][..., 12:]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table["ad"][:, 0, :2], free["ad"][:, 0, :2], rtol=1e-12)
    along = np.sum(found[:, 0, None] * problem.directions, axis=-1)
    np.testing.assert_allclose(along, table["ad"][:, 0, 2:], rtol=1e-9, atol=1e-12)


def test_a_network_frozen_as_a_whole_leaves_the_parameters():
    problem, table = gradients(AllFrozen, wrt=["dynamic"])
    assert problem.weights == 0
    assert {VERDICTS[v] for v in np.ravel(table["verdict"])} == {"verified"}


PLUGIN = """
import equinox as eqx
import jax.numpy as jnp
from retrograd.api import Model


class Net(Model):
    states = {"a": "1", "b": "1"}
    network: eqx.nn.MLP
    frozen = FROZEN

    @classmethod
    def build(cls, key):
        return cls(network=eqx.nn.MLP(2, 2, 3, 1, jnp.tanh, key=key))

    def vector_field(self, t, x, k):
        return self.network(x)
"""


def plugin(folder: Path, frozen: str) -> type:
    path = folder / "net.py"
    path.write_text(PLUGIN.replace("FROZEN", frozen))
    return load_class(str(path), "Net")


def test_frozen_arrays_are_in_the_exported_model(tmp_path: Path):
    cls = plugin(tmp_path, "('network.layers.0',)")
    model = build_structure(cls)
    path = str(tmp_path / "model.nc")
    export(model, store.Provenance({"class": "Net"}, {"plugin": "a" * 64}, "c" * 64, {"threads": 1}), path)
    back = read_model(path, cls, build_structure(cls))
    for (name, found), (_, wanted) in zip(array_leaves(back), array_leaves(model), strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    assert n_weights(back) == 8


def test_float32_reaches_frozen_arrays(tmp_path: Path):
    cls = plugin(tmp_path, "('network.layers.0',)")
    model = build_structure(cls)
    path = str(tmp_path / "model.nc")
    export(model, store.Provenance({"class": "Net"}, {"plugin": "a" * 64}, "c" * 64, {"threads": 1}), path)
    jax.config.update("jax_enable_x64", False)
    try:
        narrow = read_model(path, cls, build_structure(cls))
        assert {str(leaf.dtype) for _, leaf in array_leaves(narrow)} == {"float32"}
    finally:
        jax.config.update("jax_enable_x64", True)


def test_a_frozen_path_that_names_nothing_is_refused(tmp_path: Path):
    with pytest.raises(RetrogradError, match=r"frozen names 'network.layer', which holds no array; arrays: network"):
        build_structure(plugin(tmp_path, "('network.layer',)"))


@pytest.mark.parametrize("frozen", ["'network'", "['network']", "('network', 1)", "('',)"])
def test_a_declaration_that_is_no_tuple_of_text_is_refused(tmp_path: Path, frozen: str):
    with pytest.raises(RetrogradError, match="wanted a tuple of paths"):
        plugin(tmp_path, frozen)
