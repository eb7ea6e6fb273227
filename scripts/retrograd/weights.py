"""Pretrained weights: from a file into the model's structure, and through `model.nc`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from retrograd import store
from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.optional import WEIGHT_SUFFIXES
from retrograd.patience import at_most
from retrograd.plugins import lies_under, vector_field
from retrograd.schema import MODEL
from retrograd.weight_files import is_leaf_array, read_arrays
from retrograd.whole import to_rebuild

SELFTESTS = 8


def array_leaves(model: Any) -> list[tuple[str, Any]]:
    """Returns (pytree path, array) of every array leaf, in the order of the flattened pytree."""
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if is_leaf_array(leaf)]


def weight_leaves(model: Any) -> list[tuple[str, Any]]:
    """Returns those of `array_leaves` that gradients are taken of: the floating ones that the class does not freeze."""
    return [(path, leaf) for path, leaf in array_leaves(model) if _is_weight(type(model), path, leaf)]


def _is_weight(cls: type, path: str, leaf: Any) -> bool:
    # By the class, which a gradient of the model's structure has too: both lose the same leaves.
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not lies_under(path, getattr(cls, "frozen", ()))


def n_weights(model: Any) -> int:
    """Returns the number of weights, without the frozen ones."""
    return sum(int(np.size(leaf)) for _, leaf in weight_leaves(model))


def flatten(model: Any) -> jax.Array:
    """Returns the weights, or a gradient of the model's structure, as one array of shape (weight,)."""
    leaves = [jnp.ravel(leaf) for _, leaf in weight_leaves(model)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros((0,))


def unflatten(model: Model, flat: Any) -> Model:
    """Returns the model with the weights of `flat`, shape (weight,), in the order of `flatten`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    start, out = 0, []
    for path, leaf in leaves:
        if is_leaf_array(leaf) and _is_weight(type(model), jax.tree_util.keystr(path), leaf):
            size = int(np.size(leaf))
            out.append(jnp.reshape(flat[start : start + size], leaf.shape).astype(leaf.dtype))
            start += size
        else:
            out.append(leaf)
    return jax.tree_util.tree_unflatten(structure, out)


def load_into(model: Model, path: str | None, names: Mapping[str, str] | None = None) -> Model:
    """Returns the model with the arrays of a file of weights; None keeps a network-free model.

    Raises RetrogradError that names every leaf that is missing, left over, or of another shape or type. A narrower
    float (a network trained in float32) is widened, which is exact; nothing is narrowed.

    - `path`: ends in one of WEIGHT_SUFFIXES, which tells the format.
    - `names`: path in the model to name in the file, of arrays or of parts that hold some, where they differ.
    """
    wanted = array_leaves(model)
    if path is None:
        if wanted:
            raise RetrogradError(
                f"the model has {len(wanted)} arrays ({wanted[0][0]} first) but `model.weights` is null: "
                f"name the file that holds them ({' or '.join(WEIGHT_SUFFIXES)})."
            )
        return model
    suffix = Path(path).suffix
    if suffix not in WEIGHT_SUFFIXES:
        raise RetrogradError(f"{path} ends in {suffix!r}; weights are read from {' or '.join(WEIGHT_SUFFIXES)}.")
    found = read_arrays(path, suffix, model, wanted, names)
    problems, arrays = [], []
    for (name, leaf), array in zip(wanted, found, strict=True):
        if array is None:
            problems.append(f"leaf {name}: missing, wanted {leaf.dtype}{list(leaf.shape)}")
        elif tuple(array.shape) != tuple(leaf.shape):
            problems.append(f"leaf {name}: found shape {list(array.shape)}, wanted {list(leaf.shape)}")
        elif array.dtype != leaf.dtype and not (
            array.dtype.kind == leaf.dtype.kind == "f" and np.can_cast(array.dtype, leaf.dtype, "safe")
        ):
            problems.append(f"leaf {name}: found type {array.dtype}, wanted {leaf.dtype}")
        elif array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            problems.append(f"leaf {name}: {int(np.sum(~np.isfinite(array)))} values are not finite")
        else:
            arrays.append(jnp.asarray(array, leaf.dtype))
    if problems:
        raise RetrogradError(f"{path} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems))
    return _replace_arrays(model, arrays)


def with_arrays(model: Model, arrays: Mapping[str, np.ndarray]) -> Model:
    """Returns a model with other arrays in the place of its own, by pytree path and of the same shapes."""
    return _replace_arrays(model, [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in array_leaves(model)])


def _replace_arrays(model: Model, arrays: list[Any]) -> Model:
    leaves, structure = jax.tree_util.tree_flatten(model)
    rest = iter(arrays)
    return jax.tree_util.tree_unflatten(structure, [next(rest) if is_leaf_array(v) else v for v in leaves])


def weights_digest(model: Any) -> str:
    """Returns a sha256 over paths, types, shapes and values (little-endian) of all array leaves."""
    digest = hashlib.sha256()
    for path, leaf in array_leaves(model):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype.str[1:]} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes())
    return digest.hexdigest()


def selftest_points(cls: type[Model]) -> tuple[np.ndarray, np.ndarray]:
    """Returns states (selftest, state) and parameters (selftest, parameter) at which the self-test evaluates f."""
    rng = np.random.Generator(np.random.PCG64(20240))
    x = rng.uniform(-1.0, 1.0, (SELFTESTS, len(cls.states)))
    k = rng.uniform(0.1, 1.0, (SELFTESTS, len(cls.parameters)))
    return x, k


def export(model: Model, provenance: store.Provenance, path: str) -> None:
    """Writes `model.nc`: weights, structure, formulas, self-test vectors."""
    # SymPy takes half a second, and all other jobs only read.
    from retrograd.equations import description_of, equations, networks, text_of

    cls = type(model)
    x, k = selftest_points(cls)
    output = evaluate(model, x, k)
    root = store.build(
        MODEL,
        {"equation": equations(model), "selftest_input": x, "selftest_k": k, "selftest_output": output},
        {
            "state": list(cls.states),
            "parameter": list(cls.parameters),
            "selftest": [f"selftest{i}" for i in range(SELFTESTS)],
        },
    )
    for name in ("selftest_input", "selftest_k", "selftest_output"):
        root[name].attrs["units"] = "1"
        root[name].attrs["comment"] = "numbers in the model's own units, which differ by column"
    root.attrs.update(
        n_weights=np.int64(n_weights(model)),
        weights_sha256=weights_digest(model),
        model_class=cls.__name__,
        description=description_of(cls),
        vector_field=text_of(cls.vector_field),
        loss="" if cls.loss is Model.loss else text_of(cls.loss),
        networks=json.dumps(networks(model), ensure_ascii=False),
        jump_times=json.dumps(list(cls.jump_times)),
        # Functions print with their address in memory, which differs from run to run.
        structure=re.sub(r" at 0x[0-9a-f]+", "", eqx.tree_pformat(model, width=100)),
        states=json.dumps(dict(cls.states)),
        parameters=json.dumps(dict(cls.parameters)),
        time_unit=cls.time_unit,
    )
    group: dict[str, Any] = {}
    for i, (leaf_path, leaf) in enumerate(array_leaves(model)):
        array = np.asarray(leaf)
        dims = tuple(f"leaf{i}_axis{axis}" for axis in range(array.ndim))
        if array.dtype == bool:
            array = array.astype(np.int8)
        attrs = {
            "long_name": f"array leaf {leaf_path}",
            "units": "1",
            "path": leaf_path,
            "dtype": str(leaf.dtype),
        }
        group[f"leaf{i}"] = (dims, array, attrs)
    weights = xr.Dataset(group, attrs={"long_name": "array leaves in the order of the flattened pytree"})
    store.write(
        xr.DataTree.from_dict({"/": root, "/weights": weights}),
        path,
        MODEL,
        provenance,
        title_of=cls.__name__,
    )


def evaluate(model: Model, x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Returns the vector field at some points, by the formulation that self-tests use, shape (point, state)."""
    cls = type(model)
    formulation = "stable" if "stable" in cls.formulations else next(iter(cls.formulations))
    field = vector_field(cls, formulation, None)
    dtype = jnp.zeros(()).dtype
    advice = "Look for a loop in it that never ends."
    try:
        with at_most(f"Evaluating {cls.__name__}.{cls.formulations[formulation]} at the self-test's points", advice):
            rates = np.asarray(
                jax.vmap(lambda x, k: field(model, jnp.zeros((), dtype), x, k))(
                    jnp.asarray(x, dtype), jnp.asarray(k, dtype)
                ),
                np.float64,
            )
    except RetrogradError:
        raise
    except Exception as error:
        raise RetrogradError(
            f"{cls.__name__}: the vector field could not be evaluated at the self-test's points: "
            f"{type(error).__name__}: {error}"
        ) from error
    return rates


def read_model(path: str, cls: type[Model], structure: Model, wanted: Mapping[str, str] = {}) -> Model:
    """Returns the exported model, checked: leaves, shapes, types, digest, and the self-test reproduced.

    - `wanted`: as for `store.read`.

    In a float32 process the weights are narrowed after the digest was checked, and the self-test is held to
    float32's accuracy.
    """
    again = to_rebuild("export", path)
    store.check_bytes(path, "model")
    try:
        tree = xr.load_datatree(path, engine="netcdf4", decode_times=False)
    except Exception as error:
        raise RetrogradError(f"{path} cannot be read ({error}). {again}") from error
    store.check_origin(tree.attrs, path, "model", wanted)
    group = tree["/weights"].to_dataset() if "weights" in tree.children else xr.Dataset()
    leaves = array_leaves(structure)
    problems, stored, arrays = [], [], []
    if len(group.data_vars) != len(leaves):
        problems.append(f"found {len(group.data_vars)} leaves, wanted {len(leaves)}")
    for i, (name, leaf) in enumerate(leaves):
        var = group.get(f"leaf{i}")
        if var is None or var.attrs.get("path") != name:
            problems.append(f"leaf {name}: found {None if var is None else var.attrs.get('path')!r}")
        elif var.shape != tuple(leaf.shape):
            problems.append(f"leaf {name}: found shape {list(var.shape)}, wanted {list(leaf.shape)}")
        else:
            array = var.values.astype(var.attrs["dtype"])
            if np.dtype(array.dtype).kind != np.dtype(leaf.dtype).kind:
                problems.append(f"leaf {name}: found type {array.dtype}, wanted {leaf.dtype}")
            stored.append(array)
            arrays.append(jnp.asarray(array, leaf.dtype))
    if problems:
        raise RetrogradError(f"{path} does not fit {cls.__name__}. {again}\n  " + "\n  ".join(problems))
    found = weights_digest(_replace_arrays(structure, stored)) if stored else weights_digest(structure)
    if found != tree.attrs["weights_sha256"]:
        raise RetrogradError(f"{path}: weights have sha256 {found}, wanted {tree.attrs['weights_sha256']}. {again}")
    model = _replace_arrays(structure, arrays)
    root = tree.to_dataset()
    output = evaluate(model, root["selftest_input"].values, root["selftest_k"].values)
    expected = root["selftest_output"].values
    tolerance = 1e-10 if jnp.zeros(()).dtype == jnp.float64 else 1e-4
    # By state: beside a fast one, a change in a slow one would be lost.
    scale = np.max(np.abs(expected), axis=0, initial=1.0, where=np.isfinite(expected))
    both_nan = np.isnan(expected) & ~np.isfinite(output)
    wrong = ~both_nan & ~(np.abs(output - expected) <= tolerance * scale)
    if np.any(wrong):
        row, column = np.argwhere(wrong)[0]
        raise RetrogradError(
            f"{path}: self-test {row}, state {list(cls.states)[column]}: found {output[row, column]!r}, wanted "
            f"{expected[row, column]!r}: the plug-in's vector field or the structure changed. {again}"
        )
    return model
