"""What a model plug-in imports: `from retrograd.api import Model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

__all__ = ["Model"]


class Model(eqx.Module):
    """An ODE model dx/dt = f(t, x; k, p) whose array leaves are the network weights p.

    A plug-in subclasses it, declares `states` and `parameters` (name to UDUNITS unit) and writes
    `vector_field`. Everything else has a default. All methods are traced by JAX: they must be pure,
    and work on scalars and one-dimensional arrays of one scenario; batching is Retrograd's work.
    """

    states: ClassVar[Mapping[str, str]] = {}
    parameters: ClassVar[Mapping[str, str]] = {}
    time_unit: ClassVar[str] = "s"
    formulations: ClassVar[Mapping[str, str]] = {"stable": "vector_field"}
    # Paths such as "network.layers[0]" whose arrays are stored with the weights but are none: no gradient by them.
    frozen: ClassVar[tuple[str, ...]] = ()
    # Names of the parameters by which derivatives are taken; None: by all.
    estimated: ClassVar[tuple[str, ...] | None] = None
    # Times at which the state becomes `jump(t, x, k)`, or the vector field changes; increasing, above 0.
    jump_times: ClassVar[tuple[float, ...]] = ()
    # Columns `experiment`, `observable` (text), `time` [time_unit], `measurement`, one entry a measurement; {}: none.
    measurements: ClassVar[Mapping[str, tuple]] = {}

    @classmethod
    def build(cls, key: jax.Array) -> Model:
        """Returns the model's structure; export puts the pretrained weights into it.

        - `key`: a PRNG key, for the initialisers of the network's layers.
        """
        del key
        return cls()

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns dx/dt, shape (state,), in the states' units per `time_unit`.

        - `t`: model time, scalar.
        - `x`: state, shape (state,), in the order of `states`.
        - `k`: parameter name to scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} must define vector_field(self, t, x, k).")

    def initial_guess(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the first guess of the steady state, shape (state,)."""
        del k
        return jnp.zeros(len(self.states))

    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the start of the dynamics, shape (state,), for `start: initial_state`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no initial_state(self, k), which `start: initial_state` needs: "
            "define it, or use `start: steady_state`."
        )

    def start_of_dynamics(self, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the state at which the dynamics begin, shape (state,), for `start: steady_state`.

        - `x`: the steady state, shape (state,).
        - `k`: the parameters of the dynamic phase.
        """
        del k
        return x

    def jump(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the state that the dynamics go on from, shape (state,).

        - `t`: one of `jump_times`. Up to it and there the vector field was taken; from here on it is at times above.
        - `x`: the state before, shape (state,).
        - `k`: the parameters of the dynamic phase.

        A row saved at `t` is the state after the jump.
        """
        del t, k
        return x

    def residual_scale(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns positive factors, shape (state,): the steady state solves f(x) * scale = 0."""
        del k
        return jnp.ones(len(self.states))

    def invariants(self, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the conserved quantities, shape (invariant,); none by default.

        The steady state keeps the values that they have at its first guess.
        """
        del k
        return jnp.zeros((0,), x.dtype)

    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the scalar that gradients are taken of: by default the sum of squares of x.

        - `times`: save times, shape (time,).
        - `x`: states there, shape (time, state).
        - `k`: the parameters of the dynamic phase.
        """
        del times, k
        return jnp.sum(x**2)

    def fitted(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns what a scenario's simulation says in the place of its measurements, each of shape (row,).

        - `times`, `x`, `k`: as `loss` gets them.

        First which measurements, as indices into `measurements`, all of one experiment, -1 for padding; then the
        simulated values; then the scale of the noise. Both in the unit of the measurement.
        """
        del times, x, k
        raise NotImplementedError(f"{type(self).__name__} must define fitted(self, times, x, k): it has measurements.")

    def exact(self, t: jax.Array, x_start: jax.Array, k: dict[str, jax.Array]) -> jax.Array | None:
        """Returns the closed-form solution at time t, shape (state,), or None where there is none."""
        del t, x_start, k
        return None
