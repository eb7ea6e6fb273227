"""Loading a model plug-in by path, and what each variant makes of its vector field."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.jumps import FieldWithJumps, Jumps
from retrograd.messages import one_of, printable, show
from retrograd.patience import at_most
from retrograd.provenance import file_digest
from retrograd.scenarios import wrong_label


def load_class(path: str, class_name: str) -> type[Model]:
    """Returns the model class of a plug-in file. The file is executed: it is trusted code.

    The module goes by a name made of its content, so that two versions of one file never meet, and no folder of
    the user's is put on `sys.path`.
    """
    file = Path(path)
    module_name = f"retrograd_plugin_{file_digest(file)[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise RetrogradError(f"{path} is no Python file: a plug-in's name ends in .py.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with at_most(f"Loading {path}", "A plug-in only defines a class; look for a loop or a wait in it."):
                # Not exec_module: the bytecode that Python keeps is told apart by size and whole seconds only.
                exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise RetrogradError(f"{path} stopped while it was loaded: {type(error).__name__}: {error}.") from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Model)):
        classes = [n for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, Model) and v is not Model]
        raise RetrogradError(
            f"{path} has no model class {class_name!r} (a subclass of retrograd.api.Model); "
            f"it defines: {', '.join(classes) or 'none'}."
        )
    _check_declarations(found, f"{path}, class {class_name}")
    return found


def _check_declarations(cls: type[Model], where: str) -> None:
    problems = []
    for name in ("states", "parameters", "formulations"):
        value = getattr(cls, name)
        if not isinstance(value, Mapping) or not all(
            isinstance(k, str) and isinstance(v, str) for k, v in value.items()
        ):
            problems.append(f"{name} is {value!r}, wanted a dict of text to text")
    if not problems and not cls.states:
        problems.append("states is empty, wanted at least one state")
    if not problems:
        problems.extend(
            f"{kind} has the name {show(name)}, wanted one {why}"
            for kind in ("states", "parameters", "formulations")
            for name in getattr(cls, kind)
            if (why := wrong_label(name))
        )
    if not problems:
        problems.extend(
            f"formulations names the method {method!r}, which the class does not have"
            for method in cls.formulations.values()
            if not callable(getattr(cls, method, None))
        )
    if not isinstance(cls.time_unit, str):
        problems.append(f"time_unit is {cls.time_unit!r}, wanted text such as 's'")
    # A lone text would freeze what its letters name.
    if not isinstance(cls.frozen, tuple) or not all(isinstance(path, str) and path for path in cls.frozen):
        problems.append(f"frozen is {cls.frozen!r}, wanted a tuple of paths such as ('network.layers[0]',)")
    if cls.estimated is not None:
        if not isinstance(cls.estimated, tuple) or not all(isinstance(name, str) for name in cls.estimated):
            problems.append(f"estimated is {cls.estimated!r}, wanted None or a tuple of parameters such as ('k1',)")
        elif isinstance(cls.parameters, Mapping):
            problems.extend(
                f"estimated names {name!r}, wanted a parameter: {one_of(name, list(cls.parameters))}"
                for name in cls.estimated
                if name not in cls.parameters
            )
    times = cls.jump_times
    if not isinstance(times, tuple) or not all(isinstance(t, int | float) for t in times):
        problems.append(f"jump_times is {times!r}, wanted a tuple of times such as (5.0, 10.0)")
    elif not all(0 < t < math.inf for t in times) or any(a >= b for a, b in itertools.pairwise(times)):
        problems.append(f"jump_times is {times!r}, wanted finite times above 0, increasing")
    problems += _measurement_problems(cls)
    if problems:
        raise RetrogradError(f"{where}: " + "; ".join(problems) + ".")


def _measurement_problems(cls: type[Model]) -> list[str]:
    columns = {"experiment": str, "observable": str, "time": (int, float), "measurement": (int, float)}
    table = cls.measurements
    if isinstance(table, Mapping) and not table:
        return []
    if not isinstance(table, Mapping) or set(table) != set(columns):
        found = ", ".join(map(str, table)) if isinstance(table, Mapping) else repr(table)
        return [f"measurements has {found}, wanted {{}} or a dict with the columns {', '.join(columns)}"]
    lengths = {name: len(column) if isinstance(column, tuple | list) else -1 for name, column in table.items()}
    if len(set(lengths.values())) > 1 or min(lengths.values()) < 1:
        return [f"measurements has columns of lengths {lengths}, wanted tuples, all of one length above 0"]
    out = [
        f"measurements has {value!r} in {name}[{i}], wanted {'text' if kind is str else 'a number'}"
        for name, kind in columns.items()
        for i, value in enumerate(table[name])
        if not isinstance(value, kind) or value == "" or value != value or (name == "measurement" and math.isinf(value))
    ]
    if cls.fitted is Model.fitted:
        out.append("measurements are there and no method fitted(self, times, x, k), which says what is simulated")
    return out[:10]


def build_structure(cls: type[Model]) -> Model:
    """Returns `cls.build(key)`, with the weights' initial values; errors name the plug-in's class."""
    try:
        with at_most(f"{cls.__name__}.build(key)", "It only makes the structure; look for a loop or a wait in it."):
            model = cls.build(jax.random.PRNGKey(0))
    except (Exception, SystemExit) as error:
        raise RetrogradError(f"{cls.__name__}.build(key) stopped: {type(error).__name__}: {error}.") from error
    if not isinstance(model, cls):
        raise RetrogradError(f"{cls.__name__}.build(key) returned {type(model).__name__}, wanted {cls.__name__}.")
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    paths = [jax.tree_util.keystr(path) for path, leaf in leaves if hasattr(leaf, "shape")]
    for prefix in cls.frozen:
        # A path that freezes nothing is a misspelt one, and its gradients would be taken in silence.
        if not any(lies_under(path, (prefix,)) for path in paths):
            listed = ", ".join(map(dotted, paths)) or "none"
            raise RetrogradError(f"{cls.__name__}.frozen names {prefix!r}, which holds no array; arrays: {listed}.")
    return model


def dotted(path: str) -> str:
    """Returns a pytree path such as `.network.layers[0].weight` with dots alone: `network.layers.0.weight`."""
    for old, new in (("['", "."), ("']", ""), ("[", "."), ("]", "")):
        path = path.replace(old, new)
    return path.lstrip(".")


def lies_under(path: str, prefixes: Sequence[str]) -> bool:
    """Tells whether a pytree path is one of the prefixes or continues one; all with brackets or dots alone."""
    name = f"{dotted(path)}."
    return any(name.startswith(f"{dotted(prefix)}.") for prefix in prefixes)


Field = Callable[[Model, jax.Array, jax.Array, jax.Array], jax.Array]


def parameter_dict(cls: type[Model], k: jax.Array) -> dict[str, jax.Array]:
    """Returns the parameters as the plug-in sees them: name to scalar, from shape (parameter,)."""
    return {name: k[i] for i, name in enumerate(cls.parameters)}


def asked(cls: type[Model], name: str, method: Callable[..., Any], *args: Any) -> Any:
    """Returns what a method of the model returns; what it raises, or waits for, is told with its name and line."""
    try:
        with at_most(f"Tracing {cls.__name__}.{name}", "Look for a loop of Python in it, or a wait."):
            value = method(*args)
    except RetrogradError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        file = os.path.abspath(inspect.getsourcefile(cls) or "")
        own = [frame for frame in frames if os.path.abspath(frame.filename) == file]
        at = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
        told = printable(str(error).strip().partition("\n")[0])
        raise RetrogradError(f"{cls.__name__}.{name} stopped: {at}{type(error).__name__}: {told}") from error
    if jnp.issubdtype(getattr(value, "dtype", float), jnp.complexfloating):
        raise RetrogradError(f"{cls.__name__}.{name} returned {value.dtype}, wanted real numbers.")
    return value


def _as_array(cls: type[Model], name: str, value: Any, dtype: Any) -> jax.Array:
    try:
        return jnp.asarray(value, dtype)
    except Exception as error:
        raise RetrogradError(f"{cls.__name__}.{name} returned {type(value).__name__}, wanted an array.") from error


def vector_field(cls: type[Model], formulation: str, guard: Mapping[str, float] | None) -> Field:
    """Returns f(model, t, x, k) -> dx/dt, shape (state,), in one formulation and with the guard applied.

    - `guard`: None, or `x_max` and `dx_fill`: the formulation sees x clipped to +-x_max, and rates that are not
      finite are replaced by dx_fill.
    """
    try:
        method = getattr(cls, cls.formulations[formulation])
    except KeyError:
        raise RetrogradError(
            f"{cls.__name__} has no formulation {formulation!r}; it has: {', '.join(cls.formulations)}."
        ) from None

    def field(model: Model, t: jax.Array, x: jax.Array, k: jax.Array) -> jax.Array:
        seen = x if guard is None else jnp.clip(x, -guard["x_max"], guard["x_max"])
        name = cls.formulations[formulation]
        rate = _as_array(cls, name, asked(cls, name, method, model, t, seen, parameter_dict(cls, k)), x.dtype)
        if rate.shape != x.shape:
            raise RetrogradError(
                f"{cls.__name__}.{cls.formulations[formulation]} returned shape {rate.shape}, "
                f"wanted {x.shape}, one rate a state."
            )
        if guard is not None:
            rate = jnp.where(jnp.isfinite(rate), rate, jnp.asarray(guard["dx_fill"], x.dtype))
        return rate

    if not cls.jump_times:
        return field
    return FieldWithJumps(field, Jumps(cls.jump_times, member(cls, "jump", (len(cls.states),))))


def member(cls: type[Model], name: str, shape: tuple[int, ...] | None) -> Callable[..., jax.Array]:
    """Returns a method of the model, its k as an array (the last argument) and its result's shape checked.

    - `shape`: the shape wanted; empty for a scalar, None for a vector of any length.
    """

    def call(model: Model, *args: Any) -> jax.Array:
        *head, k = args
        found = asked(cls, name, getattr(model, name), *head, parameter_dict(cls, k))
        value = _as_array(cls, name, found, k.dtype)
        if shape is None and value.ndim < 2:
            return jnp.atleast_1d(value)
        if value.shape != shape:
            wanted = "a vector, of any length" if shape is None else shape
            raise RetrogradError(f"{cls.__name__}.{name} returned shape {value.shape}, wanted {wanted}.")
        return value

    return call
