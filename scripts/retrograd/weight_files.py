"""Files of weights: which of a file's arrays is which of the model's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np

from retrograd.errors import RetrogradError
from retrograd.plugins import dotted
from retrograd.weight_formats import READERS, Stored

Named = Sequence[tuple[str, Any]]

# More lists of layers than this are not tried in every order.
MOST_LISTS = 6


def is_leaf_array(leaf: Any) -> bool:
    """Tells whether a leaf of a pytree is an array, JAX's or numpy's."""
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


def read_arrays(
    path: str, suffix: str, model: Any, wanted: Named, names: Mapping[str, str] | None
) -> list[np.ndarray | None]:
    """Returns the file's arrays in the order of `wanted`, (pytree path, leaf); None for those that it does not hold.

    - `names`: path in the model to name in the file, of arrays or of parts that hold some, where they differ.
    """
    if suffix == ".eqx":
        if names:
            raise RetrogradError(f"{path} has no names, but an order: `model.weight_names` does not apply to .eqx.")
        return list(_read_eqx(path, model, wanted))
    stored = READERS[suffix](path, [dotted(name) for name, _ in wanted])
    leaves = {dotted(name): _shape_in_torch(name, leaf, model) for name, leaf in wanted}
    which, by_name = _which(path, type(model).__name__, leaves, stored, names)
    if stored.torch or not by_name:
        _refuse_other_orders(path, model)
    out: list[np.ndarray | None] = []
    for name, leaf in wanted:
        array = stored.arrays.get(which[dotted(name)])
        if array is not None and array.shape == leaves[dotted(name)] != leaf.shape:
            # Equinox keeps axes of length 1 behind the bias of a convolution.
            array = array.reshape(leaf.shape)
        out.append(array)
    return out


# -- which array is which -----------------------------------------------------------------------------

Shapes = Mapping[str, tuple[int, ...]]


def _which(
    path: str, cls: str, leaves: Shapes, stored: Stored, names: Mapping[str, str] | None
) -> tuple[dict[str, str], bool]:
    """Returns the name in the file of each leaf, and whether it is the leaf's own."""
    found = {name: array.shape for name, array in stored.arrays.items()}
    if names:
        which, own = _as_told(path, leaves, found, names), False
    else:
        which, own = _by_name(leaves, found), True
        if not set(which.values()) <= set(found):
            others = _by_layers(leaves, found, stored.layers) if stored.layers else _by_lists(leaves, found)
            which, own = (which, True) if others is None else (others, False)
        if leaves and found and not set(which.values()) & set(found):
            raise RetrogradError(_table(path, cls, leaves, found))
    extra = sorted(set(found) - set(which.values()))
    if extra:
        raise RetrogradError(
            f"{path} holds arrays that {cls} does not have: {', '.join(extra)}; it has: {', '.join(leaves) or 'none'}."
        )
    return which, own


def _as_told(path: str, leaves: Shapes, found: Shapes, names: Mapping[str, str]) -> dict[str, str]:
    told = {dotted(key): dotted(value) for key, value in names.items()}
    which, used = {}, set()
    for leaf in leaves:
        # The longest path is the most special one.
        key = max((k for k in told if f"{leaf}.".startswith(f"{k}.")), key=len, default=None)
        which[leaf] = leaf if key is None else f"{told[key]}{leaf[len(key) :]}"
        used.add(key)
    unused = [key for key in told if key not in used]
    if unused:
        raise RetrogradError(
            f"model.weight_names: {', '.join(unused)} names no array of the model; "
            f"it has: {', '.join(leaves) or 'none'}."
        )
    wrong = [f"{leaf} as {name}" for leaf, name in which.items() if name not in found]
    if wrong:
        raise RetrogradError(
            f"model.weight_names: {path} does not hold {', '.join(wrong)}; it holds: {', '.join(found) or 'nothing'}."
        )
    if len(set(which.values())) < len(which):
        twice = sorted({name for name in which.values() if list(which.values()).count(name) > 1})
        raise RetrogradError(f"model.weight_names: {', '.join(twice)} is taken for more than one array of the model.")
    return which


def _by_name(leaves: Shapes, found: Shapes) -> dict[str, str]:
    # A file saved from the network alone lacks the name of the field that holds it; one of a larger whole, such as
    # a problem of one network, has a name of its own in front of all.
    tails = {leaf: leaf.partition(".")[2] for leaf in leaves}
    heads = {name.partition(".")[0] for name in found}
    options = [{leaf: leaf for leaf in leaves}]
    if len(set(tails.values())) == len(tails) and all(tails.values()):
        options.append(tails)
    if len(heads) == 1 and all("." in name for name in found):
        (head,) = heads
        options += [{leaf: f"{head}.{name}" for leaf, name in option.items()} for option in options]
    complete = [option for option in options if set(option.values()) <= set(found)]
    some = [option for option in options if set(option.values()) & set(found)]
    return [*complete, *some, *options][0]


@dataclass(frozen=True)
class _List:
    # A numbered list of layers: its name, and for each entry, in order, the arrays' names by what follows the number.
    name: str
    entries: tuple[Mapping[str, str], ...]

    def signature(self, shapes: Shapes) -> list[dict[str, tuple[int, ...]]]:
        return [{suffix: shapes[name] for suffix, name in entry.items()} for entry in self.entries]


def _lists(names: Shapes) -> tuple[list[_List], list[str]]:
    # Splits names at their first number: `net.2.weight` is entry 2 of `net`. Also returns those without a number.
    lists: dict[str, dict[int, dict[str, str]]] = {}
    plain = []
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is None:
            plain.append(name)
        else:
            entries = lists.setdefault(".".join(parts[:at]), {})
            entries.setdefault(int(parts[at]), {})[".".join(parts[at + 1 :])] = name
    return [_List(name, tuple(e for _, e in sorted(entries.items()))) for name, entries in lists.items()], plain


def _by_lists(leaves: Shapes, found: Shapes) -> dict[str, str] | None:
    """Returns the only assignment that lists of layers allow, of the same order and shapes; None without exactly one.

    PyTorch's `Sequential` counts activations too, so that its numbers are others than those of a list of layers alone.
    """
    (ours, plain), (theirs, other) = _lists(leaves), _lists(found)
    which = _by_name({name: leaves[name] for name in plain}, {name: found[name] for name in other}) if plain else {}
    if set(which.values()) != set(other) or not ours or not len(ours) == len(theirs) <= MOST_LISTS:
        return None
    fits = [
        order
        for order in itertools.permutations(theirs)
        if all(a.signature(leaves) == b.signature(found) for a, b in zip(ours, order, strict=True))
    ]
    if len(fits) != 1:
        return None
    for a, b in zip(ours, fits[0], strict=True):
        for mine, its in zip(a.entries, b.entries, strict=True):
            which |= {name: its[suffix] for suffix, name in mine.items()}
    return which


def _by_layers(leaves: Shapes, found: Shapes, layers: list[dict[str, str]]) -> dict[str, str] | None:
    """Returns the only assignment of layers in the order of a graph; None without exactly one.

    The order counts where the model has one numbered list of layers. Else it is how the fields are declared and not how
    they are applied, so that only shapes tell, which must then be all different.
    """
    ours: dict[str, dict[str, str]] = {}
    for leaf in leaves:
        ours.setdefault(leaf.rpartition(".")[0], {})[leaf.rpartition(".")[2]] = leaf
    lists, plain = _lists(leaves)
    signature = lambda layer, shapes: sorted((role, shapes[name]) for role, name in layer.items())
    mine = [signature(layer, leaves) for layer in ours.values()]
    its = [signature(layer, found) for layer in layers]
    if len(lists) == 1 and not plain:
        order = sorted(ours, key=lambda name: [int(p) if p.isdecimal() else -1 for p in name.split(".")])
        pairs = list(zip(order, layers, strict=False))
        if len(order) != len(layers) or [signature(ours[name], leaves) for name in order] != its:
            return None
    else:
        if sorted(mine) != sorted(its) or any(mine.count(one) > 1 for one in mine):
            return None
        pairs = [(name, layers[its.index(one)]) for name, one in zip(ours, mine, strict=True)]
    return {leaf: layer[role] for name, layer in pairs for role, leaf in ours[name].items()}


def _table(path: str, cls: str, leaves: Shapes, found: Shapes) -> str:
    left, right = ([f"{name} {list(shape)}" for name, shape in side.items()] for side in (leaves, found))
    width = max(map(len, [*left, cls]))
    rows = itertools.zip_longest([f"{cls} has", *left], ["the file has", *right], fillvalue="")
    lines = [f"  {a:<{width + 4}}  {b}".rstrip() for a, b in rows]
    ours, theirs = (next(iter(side)).rpartition(".")[0] or next(iter(side)) for side in (leaves, found))
    return "\n".join(
        [
            f"{path} has other names than {cls}, and order and shapes do not settle which array is which:",
            *lines,
            "Say in the study which is which, of whole layers or of single arrays, for example:",
            "  model:",
            "    weight_names:",
            f"      {ours}: {theirs}",
        ]
    )


# -- what equinox orders otherwise --------------------------------------------------------------------


def _parts(model: Any, kind: type) -> Iterator[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda part: isinstance(part, kind))[0]
    return ((jax.tree_util.keystr(path), part) for path, part in leaves if isinstance(part, kind))


def _shape_in_torch(name: str, leaf: Any, model: Any) -> tuple[int, ...]:
    biases = [f"{path}.bias" for path, _ in (*_parts(model, eqx.nn.Conv), *_parts(model, eqx.nn.ConvTranspose))]
    return tuple(leaf.shape[:1]) if name in biases else tuple(leaf.shape)


def _refuse_other_orders(path: str, model: Any) -> None:
    others = [name for name, _ in _parts(model, eqx.nn.ConvTranspose)]
    if others:
        raise RetrogradError(
            f"{path} orders the weights of a transposed convolution as PyTorch does, {', '.join(others)} as equinox: "
            "use retrograd.layers.ConvTranspose, which is PyTorch's, in place of eqx.nn.ConvTranspose."
        )


# -- the one format without names ----------------------------------------------------------------------


def _read_eqx(path: str, model: Any, wanted: Named) -> list[Any]:
    # The format is one .npy stream a leaf, scalars of Python included, in front of which equinox's own
    # documentation puts a line of JSON with hyperparameters. It is read here and not by equinox, whose error
    # for a shape names neither the file nor what is left over.
    out: list[Any] = []
    with open(path, "rb") as file:
        if file.read(1) == b"{":
            file.readline()
        else:
            file.seek(0)
        for leaf_path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
            if not (is_leaf_array(leaf) or isinstance(leaf, (bool, int, float, complex, np.generic))):
                continue
            try:
                array = np.lib.format.read_array(file, allow_pickle=False)
            except Exception as error:  # numpy parses headers with tokenize, whose errors are no ValueError
                name = wanted[len(out)][0] if len(out) < len(wanted) else "(a number)"
                raise RetrogradError(
                    f"{path}: leaf {name} could not be read ({error}). Was it saved with "
                    "eqx.tree_serialise_leaves from a model of this structure?"
                ) from error
            if is_leaf_array(leaf):
                out.append(array)
            elif not np.array_equal(array, leaf):
                # A number that is no array stays as `build` sets it: another one is another network.
                name = jax.tree_util.keystr(leaf_path)
                raise RetrogradError(
                    f"{path}: number {name}: found {array!r}, wanted {leaf!r} as {type(model).__name__}.build sets it."
                )
        if file.read(1):
            raise RetrogradError(
                f"{path} holds more arrays than the {len(wanted)} of {type(model).__name__}: "
                "it was saved from a larger model."
            )
    return out
