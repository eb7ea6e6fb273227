"""Measurements within a plug-in: which are a scenario's, what is simulated for them, and how likely they are.

Distributions of PEtab 2.0, "Noise distributions": m the measurement, y what is simulated, s the noise scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrograd.errors import RetrogradError

DISTRIBUTIONS = ("normal", "log-normal", "laplace", "log-laplace")
# What formulas see in the rows of other observables: an argument at which hardly any formula is singular.
_HARMLESS = 0.7

# Of an observable: time, state and placeholders -> its value and noise scale.
Observable = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def number(value: jax.Array) -> jax.Array:
    """Returns the whole number that a parameter holds, whatever rounding did to it."""
    return jnp.round(value).astype(int)


def entry(array: jax.Array, index: Sequence[int]) -> jax.Array:
    """Returns one number of an array; without an index that of an array of one number."""
    if not index and array.size == 1:
        return jnp.reshape(array, ())
    # JAX itself takes the last entry for one that is not there.
    if len(index) != array.ndim or any(i >= n for i, n in zip(index, array.shape, strict=False)):
        raise RetrogradError(f"found an array of shape {list(array.shape)} from a network, wanted {list(index)} in it.")
    return array[tuple(index)]


def pick(*values: Any) -> jax.Array:
    """Returns one of the numbers before the last argument, which says which: 0 for the first."""
    *numbers, which = values
    return jnp.asarray(numbers, jnp.result_type(which))[number(which)]


class Measurements:
    """All measurements of a problem, in the order of its table.

    - `experiment`, `observable`: of each by number, shape (measurement,).
    - `time`: since the start of the experiment, `value`: as measured; shape (measurement,).
    - `overrides`: of each the values of its observable's placeholders, as indices into what `fitted` is given.
    - `distributions`: of each observable, one of `DISTRIBUTIONS`.
    """

    def __init__(
        self,
        experiment: Sequence[int],
        observable: Sequence[int],
        time: Sequence[float],
        value: Sequence[float],
        overrides: Sequence[Sequence[int]],
        distributions: Sequence[str],
    ) -> None:
        self.observable, self.time, self.value = np.array(observable), np.array(time), np.array(value)
        self.logarithmic = np.array([d.startswith("log-") for d in distributions])[self.observable]
        self.laplace = np.array([d.endswith("laplace") for d in distributions])[self.observable]
        width = max(map(len, overrides))
        padded = [[*row, *[0] * (width - len(row))] for row in overrides]
        self.overrides = np.array(padded, int).reshape(len(padded), width)
        rows = [np.flatnonzero(np.array(experiment) == e) for e in range(max(experiment) + 1)]
        most = max(map(len, rows))
        self.rows = np.array([[*r, *[-1] * (most - len(r))] for r in rows])

    def fitted(
        self,
        times: jax.Array,
        x: jax.Array,
        experiment: jax.Array,
        values: jax.Array,
        observables: Sequence[Observable],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the rows of an experiment's measurements, -1 for padding, what is simulated, and the noise scale.

        All of shape (row,).

        - `times`, `x`: save times (time,) and states there (time, state).
        - `experiment`: its number. `values`: what placeholders can stand for, shape (value,).
        """
        rows = jnp.asarray(self.rows)[experiment]
        row = jnp.maximum(rows, 0)
        saved = jnp.argmin(jnp.abs(times - jnp.asarray(self.time, x.dtype)[row][:, None]), axis=1)
        # The save times: what is measured at a jump is what follows on it.
        t, states = times[saved], x[saved]
        held = values[jnp.asarray(self.overrides)[row]]
        which = jnp.asarray(self.observable)[row]
        simulation, noise = jnp.full(t.shape, jnp.nan, x.dtype), jnp.full(t.shape, jnp.nan, x.dtype)
        for i, observable in enumerate(observables):
            # Rows of others are kept from the formula, since a derivative that is no number there would spoil all.
            mine = (rows >= 0) & (which == i)
            y, s = jax.vmap(observable)(
                t, jnp.where(mine[:, None], states, _HARMLESS), jnp.where(mine[:, None], held, _HARMLESS)
            )
            simulation, noise = jnp.where(mine, y, simulation), jnp.where(mine, s, noise)
        return rows, simulation, noise

    def negative_log_likelihood(self, rows: jax.Array, simulation: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns -log of the density of the measurements in some rows, summed; arguments as `fitted` returns them."""
        used, row = rows >= 0, jnp.maximum(rows, 0)
        m = jnp.where(used, jnp.asarray(self.value, simulation.dtype)[row], 1.0)
        y, s = jnp.where(used, simulation, 1.0), jnp.where(used, noise, 1.0)
        logarithmic, laplace = jnp.asarray(self.logarithmic)[row], jnp.asarray(self.laplace)[row]
        log = lambda v: jnp.log(jnp.where(logarithmic, v, 1.0))
        apart = jnp.where(logarithmic, log(m) - log(y), m - y) / s
        squared = 0.5 * apart**2 + 0.5 * jnp.log(2 * jnp.pi)
        each = jnp.where(laplace, jnp.abs(apart) + jnp.log(2.0), squared) + jnp.log(s) + log(m)
        return jnp.sum(jnp.where(used, each, 0.0))
