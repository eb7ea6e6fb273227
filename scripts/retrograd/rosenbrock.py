"""Rodas5P, a linearly implicit step: one Jacobian and one elimination a step, and no iteration that could fail.

With J = df/dx and T = df/dt at the start (t0, x) of a step of length h, the method of Steinebach (2023,
doi:10.1007/s10543-023-00967-x; coefficients from there), in the form of Hairer and Wanner (1996, section IV.7), is

    Y_i = x + sum_{j<i} a_ij u_j,
    (I - h gamma J) u_i = gamma (h f(t0 + c_i h, Y_i) + sum_{j<i} C_ij u_j + h^2 d_i T),
    x_next = x + sum_i b_i u_i.

It has order 5, is L-stable and stiffly accurate; the last increment is the difference to an embedded method of order 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.linalg import eliminated
from retrograd.plugins import Field
from retrograd.runge_kutta import Step, Tableau, stage_times, value_and_jacobian


def _lower(rows: list[list[float]]) -> np.ndarray:
    out = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


_A6 = [-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946]


class Rodas5PTableau:
    """The coefficients of Rodas5P as full arrays."""

    stages = 8
    gamma = 0.21193756319429014
    a = _lower(
        [
            [],
            [3.0],
            [2.849394379747939, 0.45842242204463923],
            [-6.954028509809101, 2.489845061869568, -10.358996098473584],
            [2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641],
            _A6,
            [*_A6, 1.0],
            [*_A6, 1.0, 1.0],
        ]
    )
    b = np.array([*_A6, 1.0, 1.0, 1.0])
    coupling = _lower(  # C_ij
        [
            [],
            [-14.155112264123755],
            [-17.97296035885952, -2.859693295451294],
            [147.12150275711716, -1.41221402718213, 71.68940251302358],
            [165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306],
            [24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471],
            [
                *(30.91273214028599, -3.1208243349937974, 77.79954646070892),
                *(34.28646028294783, -19.097331116725623, -28.087943162872662),
            ],
            [
                *(37.80277123390563, -3.2571969029072276, 112.26918849496327),
                *(66.9347231244047, -40.06618937091002, -54.66780262877968, -9.48861652309627),
            ],
        ]
    )
    c = np.array([0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1, 1, 1])
    d = np.array([gamma, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069, 0, 0, 0])
    # Of the dense output, of order 4.
    dense = np.array(
        [
            [
                *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
                *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
            ],
            [
                *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
                *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
            ],
            [
                *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
                *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
            ],
        ]
    )
    # No iteration on its stages, and no limit of stability either: the Jacobian at the start serves the whole step.
    implicit = False
    explicit = False
    linearly_implicit = True


def tableau_of(solver: str) -> Any:
    """Returns the coefficients of a variant's solver: of Runge-Kutta methods in the rates, of Rodas5P in increments.

    Whoever has to know of which kind a solver is asks these: `explicit`, `implicit` or `linearly_implicit`.
    """
    return Rodas5PTableau if solver == "Rodas5P" else Tableau(solver)


def stage_points(stages: Any) -> Any:
    """Returns where the rates of the stages are taken, (..., stage, state), from what a replay keeps of a step.

    - `stages`: the start of the step and its increments, shape (..., 1 + stage, state).
    """
    return stages[..., :1, :] + jnp.einsum(
        "ij,...jn->...in", jnp.asarray(Rodas5PTableau.a, stages.dtype), stages[..., 1:, :]
    )


Rate = Callable[[Any, jax.Array], jax.Array]
Slopes = tuple[jax.Array, jax.Array, jax.Array]


def slopes(rate: Rate, t: jax.Array, x: jax.Array) -> Slopes:
    """Returns f (state,), df/dx (state, state) and df/dt (state,) of one lane; `rate`: f(t, x)."""
    value, jac = value_and_jacobian(lambda x: rate(t, x), x)
    return value, jac, jax.jvp(lambda t: rate(t, x), (t,), (jnp.ones_like(t),))[1]


def rodas5p(
    rate: Rate, t0: jax.Array, t1: jax.Array, x: jax.Array, at_start: Slopes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the state at t1, the increments u, and (I - h gamma J) u of the last of them, of one step of one lane.

    - `rate`: f(t, x).
    - `x`: state at t0, shape (state,).
    - `at_start`: `slopes` there.

    Shapes (state,), (stage, state) and (state,). A state that is not finite in one component is NaN in all: the size of
    its error is not known, and a controller that is given inf for both cannot choose a shorter step.
    """
    tab, h, times = Rodas5PTableau, t1 - t0, stage_times(Rodas5PTableau.c, t0, t1)
    value, jac, by_time = at_start
    solve = eliminated(_matrix(h, jac))
    # Unrolled, so that what is known to be 0 is left out.
    u: list[jax.Array] = []
    right = value
    for i in range(tab.stages):
        value = rate(times[i], _along(tab.a[i], u, x)) if i else value
        right = _along(tab.coupling[i], u, h * value)
        if tab.d[i]:
            right = right + h * h * float(tab.d[i]) * by_time
        right = tab.gamma * right
        u.append(solve(right))
    end = _along(tab.b, u, x)
    return jnp.where(jnp.all(jnp.isfinite(end)), end, jnp.nan), jnp.stack(u), right


def _matrix(h: jax.Array, jac: jax.Array) -> jax.Array:
    return jnp.eye(len(jac), dtype=jac.dtype) - h * Rodas5PTableau.gamma * jac


def _along(row: np.ndarray, increments: list[jax.Array], start: jax.Array) -> jax.Array:
    out = start
    for weight, u in zip(row, increments, strict=False):
        out = out + float(weight) * u
    return out


class Rosenbrock:
    """The step of Rodas5P on one vector field, in the place of `RungeKutta` in a replay.

    Its `stages` are the start of the step and its increments, shape (1 + stage, state): all that the way back needs.
    """

    tableau = Rodas5PTableau
    takes_rate = False
    kept = 1 + Rodas5PTableau.stages
    guesses = 0

    def __init__(self, field: Field) -> None:
        """- `field`: f(model, t, x, k)."""
        self.field = field

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
        """Returns the step of one lane from (t0, x) to t1; arguments as those of `RungeKutta`, the last two unused.

        A step of length 0 changes nothing.
        """
        rates = lambda t, x: self.field(model, t, x, k)
        end, u, _ = rodas5p(rates, t0, t1, x, slopes(rates, t0, x))
        return Step(jnp.where(t1 == t0, x, end), rate, u[-1], jnp.concatenate([x[None], u]))


class _Dense(diffrax.AbstractLocalInterpolation):
    t0: Any
    t1: Any
    y0: jax.Array
    y1: jax.Array
    k: jax.Array

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return self.evaluate(t1, left=left) - self.evaluate(t0, left=left)
        share = (t0 - self.t0) / jnp.where(self.t1 == self.t0, 1, self.t1 - self.t0)
        first, second, third = jnp.asarray(Rodas5PTableau.dense, self.k.dtype) @ self.k
        inner = first + share * (second + share * third)
        return (1 - share) * self.y0 + share * (self.y1 + (1 - share) * inner)


class Rodas5P(diffrax.AbstractAdaptiveSolver):
    """Rodas5P as a solver of diffrax, for an `ODETerm` without jumps on a state that is one vector.

    The last increment is the error of the embedded method divided by I - h gamma J. Where stiffness falls by orders of
    magnitude within the step, that division hides an error of any size: a step into a region where nothing moves any
    more would be accepted. So the estimate is the larger one of that and of the error divided by the same matrix at the
    end of the step, whose slopes the next step begins with anyway.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = _Dense
    tableau: ClassVar = Rodas5PTableau

    def order(self, terms):
        return 5

    def init(self, terms, t0, t1, y0, args):
        return slopes(lambda t, x: terms.vf(t, x, args), jnp.asarray(t0, y0.dtype), y0)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        t0, t1 = jnp.asarray(t0, y0.dtype), jnp.asarray(t1, y0.dtype)
        rate = lambda t, x: terms.vf(t, x, args)
        end, u, undivided = rodas5p(rate, t0, t1, y0, solver_state)
        at_end = slopes(rate, t1, end)
        error = jnp.maximum(jnp.abs(u[-1]), jnp.abs(eliminated(_matrix(t1 - t0, at_end[1]))(undivided)))
        return end, error, {"y0": y0, "y1": end, "k": u}, at_end, diffrax.RESULTS.successful
