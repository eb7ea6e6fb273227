"""One Runge-Kutta step of our own, the same for the adaptive solve, for the replay and for neighbours of a replay.

Implicit stages are solved in the states and to rounding,

    Y_i = base_i + h a_ii f(t_i, Y_i),      base_i = x + h sum_{j<i} a_ij f_j,

and a stage's rate is taken from this equation, f_i = (Y_i - base_i) / (h a_ii): evaluating f would multiply the
rounding of Y_i by the stiffness, and at equilibrium that alone exceeds what an error estimate tolerates (Shampine 1980,
doi:10.1137/0901005; Hairer and Wanner 1996, section IV.8). The last stage's rate is the first of the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.linalg import solve
from retrograd.plugins import Field

# Corrections of a simplified Newton iteration on a stage.
SIMPLIFIED_STEPS = 40


class Tableau:
    """The coefficients of a diffrax Runge-Kutta solver as full arrays."""

    linearly_implicit = False

    def __init__(self, solver_name: str) -> None:
        t = getattr(diffrax, solver_name).tableau
        s = t.num_stages
        self.stages = s
        self.a = np.zeros((s, s))
        for i, row in enumerate(t.a_lower):
            self.a[i + 1, : i + 1] = row
        self.predictor = np.zeros((s, s))
        if t.implicit:
            self.a[np.arange(s), np.arange(s)] = t.a_diagonal
            for i, row in enumerate(t.a_predictor):
                self.predictor[i + 1, : i + 1] = row
        self.b = np.asarray(t.b_sol, float)
        self.b_error = np.asarray(t.b_error, float)
        self.c = np.concatenate([[0.0 if t.c1 is None else t.c1], t.c])
        self.implicit = bool(t.implicit)
        self.explicit = not self.implicit
        self.stiffly_accurate = bool(np.array_equal(self.b, self.a[-1]))
        if self.implicit and not (self.stiffly_accurate and self.a[0, 0] == 0 and self.c[-1] == 1):
            raise ValueError(f"{solver_name}: wanted an explicit first stage, and a last one that is the result.")


def stage_times(c: np.ndarray, t0: jax.Array, t1: jax.Array) -> jax.Array:
    """Returns the times of stages at the shares c, (stage,), of steps from t0 to t1, shape (..., stage)."""
    c_ = jnp.asarray(c, t0.dtype)
    # The end itself, not t0 + (t1 - t0), which may differ from it by an ulp.
    return jnp.where(c_ == 1, t1[..., None], t0[..., None] + c_ * (t1 - t0)[..., None])


@dataclass
class Step:
    """What a step gives; all for one lane."""

    x: jax.Array  # (state,)
    rate: jax.Array  # (state,), f there
    error: jax.Array  # (state,)
    stages: jax.Array  # (stage, state)


jax.tree_util.register_dataclass(Step)


class RungeKutta:
    """The step of one solver on one vector field."""

    takes_rate = True

    def __init__(self, field: Field, solver: str, atol: float, n: int, dtype: np.dtype, newton_steps: int) -> None:
        """- `field`: f(model, t, x, k).
        - `solver`: name of a diffrax solver.
        - `atol`: absolute tolerance: what counts as zero when a correction is compared with its state.
        - `n`: number of states.
        - `newton_steps`: most Newton iterations on a stage; NaN where they do not do.
        """
        self.tableau = Tableau(solver)
        self.n, self.dtype = n, dtype
        self.field = field
        self._floor = atol
        self._newton_steps = newton_steps
        self.kept = self.tableau.stages
        self.guesses = self.kept if self.tableau.implicit else 0

    def __call__(
        self,
        model: Model,
        t0: jax.Array,
        t1: jax.Array,
        x: jax.Array,
        rate: jax.Array,
        k: Any,
        guess: jax.Array | None = None,
        inverse: jax.Array | None = None,
    ) -> Step:
        """Returns the step of one lane from (t0, x) to t1.

        - `rate`: f(t0, x), shape (state,).
        - `guess`: first guesses of the stages, shape (stage, state); NaN where there is none.
        - `inverse`: of I - h a_ii df/dx close to each stage, shape (stage, state, state): a simplified Newton
          iteration with these.

        A step of length 0 changes nothing.
        """
        run = self._implicit if self.tableau.implicit else self._explicit
        out = run(model, t0, t1, x, rate, k, guess, inverse)
        still = t1 == t0
        return Step(jnp.where(still, x, out.x), jnp.where(still, rate, out.rate), out.error, out.stages)

    def _explicit(self, model, t0, t1, x, rate, k, guess, inverse) -> Step:
        tab, h, times = self.tableau, t1 - t0, stage_times(self.tableau.c, t0, t1)
        a, b = jnp.asarray(tab.a, self.dtype), jnp.asarray(tab.b, self.dtype)

        def stage(carry, i):
            rates, stages = carry
            y = x + h * (a[i] @ rates)
            return (rates.at[i].set(self.field(model, times[i], y, k)), stages.at[i].set(y)), None

        zeros = jnp.zeros((tab.stages, self.n), self.dtype)
        (rates, stages), _ = jax.lax.scan(stage, (zeros.at[0].set(rate), zeros.at[0].set(x)), jnp.arange(1, tab.stages))
        end = stages[-1] if tab.stiffly_accurate else x + h * (b @ rates)
        last = rates[-1] if tab.stiffly_accurate else self.field(model, t1, end, k)
        return Step(end, last, h * (jnp.asarray(tab.b_error, self.dtype) @ rates), stages)

    def _implicit(self, model, t0, t1, x, rate, k, guess, inverse) -> Step:
        tab, h, times = self.tableau, t1 - t0, stage_times(self.tableau.c, t0, t1)
        a, predictor = jnp.asarray(tab.a, self.dtype), jnp.asarray(tab.predictor, self.dtype)

        def stage(carry, i):
            rates, stages = carry
            base, ha = x + h * (a[i] @ rates), h * a[i, i]
            start = base + ha * (predictor[i] @ rates)
            if guess is not None:
                start = jnp.where(jnp.isfinite(guess[i]), guess[i], start)
            if inverse is None:
                y = self._newton(model, times[i], base, ha, k, start)
            else:
                y = self._simplified_newton(model, times[i], base, ha, k, start, inverse[i])
            rate = (y - base) / jnp.where(ha == 0, 1, ha)
            return (rates.at[i].set(rate), stages.at[i].set(y)), None

        zeros = jnp.zeros((tab.stages, self.n), self.dtype)
        (rates, stages), _ = jax.lax.scan(stage, (zeros.at[0].set(rate), zeros.at[0].set(x)), jnp.arange(1, tab.stages))
        error = h * (jnp.asarray(tab.b_error, self.dtype) @ rates)
        return Step(stages[-1], rates[-1], error, stages)

    def _newton(self, model, t, base, ha, k, start) -> jax.Array:
        """Returns Y = base + ha f(t, Y), to rounding; NaN where the iteration does not get there."""
        eps = float(jnp.finfo(self.dtype).eps)
        eye = jnp.eye(self.n, dtype=self.dtype)

        def body(carry):
            i, y, last, _going = carry
            rate, jac = rate_and_jacobian(self.field, model, t, y, k)
            step = solve(eye - ha * jac, y - base - ha * rate)
            size = jnp.max(jnp.abs(step) / (jnp.abs(y) + self._floor))
            return i + 1, y - step, size, ~newton_ends(size, last, eps) & jnp.isfinite(size)

        carry = (0, start, jnp.asarray(jnp.inf, self.dtype), ha != 0)
        _, y, _, going = jax.lax.while_loop(lambda c: (c[0] < self._newton_steps) & c[3], body, carry)
        return jnp.where(going, jnp.nan, y)

    def _simplified_newton(self, model, t, base, ha, k, start, inverse) -> jax.Array:
        # As `_newton`, with the inverse matrices of a solution next to this one: a third of the cost an iteration,
        # and convergence at a rate proportional to the distance.
        eps = jnp.finfo(self.dtype).eps

        def body(carry):
            i, y, last, _going = carry
            step = inverse @ (y - base - ha * self.field(model, t, y, k))
            sizes = jnp.abs(step) / (jnp.abs(y) + self._floor)
            size = jnp.max(sizes)
            # The slowest component's: a fast one that was the largest would promise too much.
            ratio = jnp.max(jnp.where(sizes > eps, sizes / last, 0))
            # What is left after this correction, from the rate; or the floor that rounding sets.
            left = size * ratio / jnp.maximum(1 - ratio, 0.1)
            done = ((i > 0) & (left < 0.5 * eps)) | (size < 2 * eps) | ((jnp.max(last) < 1e3 * eps) & (ratio > 0.25))
            return i + 1, y - step, sizes, ~done & jnp.isfinite(size)

        carry = (0, start, jnp.full(start.shape, jnp.inf, self.dtype), ha != 0)
        _, y, _, going = jax.lax.while_loop(lambda c: (c[0] < SIMPLIFIED_STEPS) & c[3], body, carry)
        return jnp.where(going, jnp.nan, y)


def newton_ends(size: Any, last: Any, eps: float) -> Any:
    """Returns whether a Newton iteration ends with a correction of this size, relative to the state.

    - `last`: size of the correction before it.

    The next correction would be of the order of this one's square. Or they are small and no longer shrink: the floor
    that rounding sets.
    """
    root = math.sqrt(eps)
    return (size <= 0.1 * root) | ((last < 1e3 * root) & (size > 0.25 * last))


def rate_and_jacobian(field: Field, model: Model, t: jax.Array, x: jax.Array, k: Any) -> tuple[jax.Array, jax.Array]:
    """Returns f, shape (state,), and df/dx, shape (state, state), of one lane."""
    return value_and_jacobian(lambda x: field(model, t, x, k), x)


def value_and_jacobian(call: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a function's value at x, shape (row,), and its Jacobian there, shape (row, column), evaluated once."""

    def twice(x):
        value = call(x)
        return value, value

    jac, value = jax.jacfwd(twice, has_aux=True)(x)
    return value, jac
