"""States that jump at given times.

At each of `Model.jump_times` the dynamics go on from `Model.jump(t, x, k)`. In a record a jump is a step from t to the
next number above it, so that files, replays and other machines know it as they know any step; the vector field sees t
up to the jump and times above t after it, and a row that is saved at t is the state after the jump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model

Jump = Callable[[Model, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Jumps:
    """The jumps of a model.

    - `times`: increasing, above 0.
    - `apply`: (model, t, x, k) -> the state after the jump, of one lane.
    """

    times: tuple[float, ...]
    apply: Jump

    def before(self, stop: Any, dtype: np.dtype) -> np.ndarray:
        """Returns the times of the jumps on the way to `stop`, shape (jump,)."""
        times = np.asarray(self.times, dtype)
        return times[times < stop]

    def at(self, t: jax.Array) -> jax.Array:
        """Returns whether a step from t is a jump; traceable."""
        return jnp.any(t == jnp.asarray(self.times, t.dtype))

    def cut_off(self, t0: jax.Array, t1: jax.Array) -> jax.Array:
        """Returns the end of a step from t0 towards t1: the next jump, where that comes first; traceable."""
        times = jnp.asarray(self.times, t0.dtype)
        return jnp.min(jnp.where((times > t0) & (times < t1), times, t1), initial=jnp.inf)


@dataclass(frozen=True)
class FieldWithJumps:
    """A vector field f(model, t, x, k) of a model whose states jump."""

    rate: Jump
    jumps: Jumps

    def __call__(self, model: Model, t: jax.Array, x: jax.Array, k: jax.Array) -> jax.Array:
        return self.rate(model, t, x, k)


def jumps_of(field: Any) -> Jumps | None:
    """Returns the jumps of a vector field, None where its states do not jump."""
    return field.jumps if isinstance(field, FieldWithJumps) else None


def jump_times_of(field: Any) -> tuple[float, ...]:
    """Returns when states of a vector field jump."""
    return field.jumps.times if isinstance(field, FieldWithJumps) else ()


def after(times: np.ndarray) -> np.ndarray:
    """Returns the next numbers above some times, of their type."""
    return np.nextafter(times, np.asarray(np.inf, times.dtype))


def row_times(jump_times: Sequence[float], save_times: Sequence[float] | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns when rows are saved, shape (time,): of save times that are jumps, the next number above."""
    times = np.asarray(save_times, dtype)
    return np.where(np.isin(times, np.asarray(jump_times, dtype)), after(times), times)


def spans(field: Any, stop: Any, dtype: np.dtype) -> Iterator[tuple[Any, Any, bool]]:
    """Yields begin and end of each piece of the way from 0 to `stop`, and whether a jump follows on it."""
    jumps = jumps_of(field)
    times = np.zeros(0, dtype) if jumps is None else jumps.before(stop, dtype)
    begin = np.zeros((), dtype)
    for t in times:
        yield begin, t, True
        begin = after(t)
    if begin < stop:
        yield begin, np.asarray(stop, dtype), False
