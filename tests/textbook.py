"""Textbook problems as plug-ins, and their solutions and derivatives by SciPy alone.

Nothing here calls the library's numerics: the reference integrates states and forward sensitivities with SciPy's Radau.
JAX writes the sensitivities' right-hand sides, which hold no discretisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import scipy.integrate
import scipy.linalg
import scipy.optimize
from problems import ROOT

from retrograd.api import Model
from retrograd.plugins import load_class

Robertson = load_class(str(ROOT / "config/models/robertson.py"), "Robertson")


class Hires(Model):
    """High irradiance response of morphogenesis (Schaefer 1975), eight species; Hairer and Wanner 1996, section IV.10.

    The rates that the literature gives as numbers are parameters here. y7 + y8 is conserved.
    """

    states = {f"y{i}": "1" for i in range(1, 9)}
    parameters = {"light": "s-1", "source": "s-1", "bind": "s-1", "release": "s-1", "back": "s-1"}

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del t
        y1, y2, y3, y4, y5, y6, y7, y8 = x
        bound = k["bind"] * y6 * y8 - k["release"] * y7
        return jnp.stack(
            [
                -k["light"] * y1 + k["back"] * y2 + 8.32 * y3 + k["source"],
                k["light"] * y1 - 8.75 * y2,
                -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
                8.32 * y2 + 1.71 * y3 - 1.12 * y4,
                -1.745 * y5 + 0.43 * y6 + 0.43 * y7,
                -k["bind"] * y6 * y8 + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
                bound,
                -bound,
            ]
        )

    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:
        del k
        return jnp.array([1.0, 0, 0, 0, 0, 0, 0, 0.0057])

    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del times, k
        return jnp.sum((x * jnp.array([1.0, 5.0, 20.0, 2.0, 5.0, 1.0, 100.0, 100.0])) ** 2)


class Oregonator(Model):
    """The Belousov-Zhabotinsky reaction's limit cycle (Field and Noyes 1974); Hairer and Wanner 1996, section IV.10."""

    states = {"y1": "1", "y2": "1", "y3": "1"}
    parameters = {"s": "s-1", "q": "1", "w": "s-1"}

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del t
        y1, y2, y3 = x
        first = k["s"] * (y2 + y1 * (1 - k["q"] * y1 - y2))
        return jnp.stack([first, (y3 - (1 + y1) * y2) / k["s"], k["w"] * (y1 - y3)])

    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:
        del k
        return jnp.array([1.0, 2.0, 3.0])

    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        # Levels span five decades.
        del times, k
        return jnp.sum(jnp.log(x) ** 2)


class VanDerPol(Model):
    """y'' = mu (1 - y^2) y' - y: slow motion, and jumps that take the mu^-2-th part of a period."""

    states = {"y": "1", "v": "s-1"}
    parameters = {"mu": "s-1", "start": "1"}

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del t
        y, v = x
        return jnp.stack([v, k["mu"] * (1 - y**2) * v - y])

    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:
        return jnp.stack([k["start"], jnp.zeros_like(k["start"])])

    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del times
        return jnp.sum(x[:, 0] ** 2) + jnp.sum((k["mu"] * x[:, 1]) ** 2)


class Compartments(Model):
    """x' = A(k) x: three compartments that exchange at rates decades apart, the last one with an outflow."""

    states = {"x1": "1", "x2": "1", "x3": "1"}
    parameters = {"forth": "s-1", "back": "s-1", "slow": "s-1", "out": "s-1"}

    @staticmethod
    def matrix(k: Any) -> Any:
        """Returns A; its entries are linear in the parameters."""
        forth, back, slow, out = k["forth"], k["back"], k["slow"], k["out"]
        return [[-forth, back, 0 * out], [forth, -back - slow, 0.5 * slow], [0 * out, slow, -0.5 * slow - out]]

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del t
        return jnp.stack([jnp.stack(row) for row in self.matrix(k)]) @ x

    def initial_state(self, k: dict[str, jax.Array]) -> jax.Array:
        del k
        return jnp.array([1.0, 0.5, -0.25])


class Signalling(Model):
    """A receptor binds its ligand; bound, it activates a kinase, which phosphorylates a substrate.

    Binding is fast, the substrate slow. Phosphatases saturate. Receptor, kinase and substrate are conserved each, and
    nothing declares that: their totals are those of the first guess.
    """

    states = dict.fromkeys(("free", "bound", "idle", "active", "plain", "marked"), "nmol L-1")
    parameters = {
        "dose": "nmol L-1",
        "on": "L nmol-1 s-1",
        "off": "s-1",
        "activate": "L nmol-1 s-1",
        "deactivate": "nmol L-1 s-1",
        "half": "nmol L-1",
        "mark": "L nmol-1 s-1",
        "unmark": "s-1",
        "receptor": "nmol L-1",
        "kinase": "nmol L-1",
        "substrate": "nmol L-1",
    }

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del t
        free, bound, idle, active, plain, marked = x
        binding = k["on"] * k["dose"] * free - k["off"] * bound
        activation = k["activate"] * bound * idle - k["deactivate"] * active / (k["half"] + active)
        marking = k["mark"] * active * plain - k["unmark"] * marked
        return jnp.stack([-binding, binding, -activation, activation, -marking, marking])

    def initial_guess(self, k: dict[str, jax.Array]) -> jax.Array:
        none = jnp.zeros_like(k["receptor"])
        return jnp.stack([k["receptor"], none, k["kinase"], none, k["substrate"], none])

    def balance(self, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns what vanishes at the steady state, shape (6,): three of the rates, and the totals."""
        rate = self.vector_field(jnp.zeros(()), x, k)
        totals = jnp.stack([k["receptor"], k["kinase"], k["substrate"]])
        return jnp.concatenate([rate[1::2], x[::2] + x[1::2] - totals])

    def loss(self, times: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        # The derivative of `half` enters the loss directly too.
        weight = jnp.exp(-times / times[-1])
        return jnp.sum(weight * x[:, 5] ** 2) + jnp.sum(x[:, 3] / (k["half"] + x[:, 3])) + 1e-2 * jnp.sum(x[:, 1] ** 2)


@dataclass
class Reference:
    """States at the save times and what the loss makes of them; errors are differences between two tolerances."""

    x: np.ndarray  # (time, state)
    x_error: np.ndarray
    dynamic: np.ndarray  # (parameter,), derivative by the parameters of the dynamic phase, those of the start included
    dynamic_error: np.ndarray
    steady: np.ndarray  # (parameter,), by those of the steady phase; 0 where the start is given by the model
    steady_error: np.ndarray
    loss: float
    loss_error: float


def _named(model: Model, k: Any) -> dict[str, Any]:
    return {name: k[i] for i, name in enumerate(model.parameters)}


def differentiate(
    model: Model, times: np.ndarray, k: np.ndarray, x: np.ndarray, dx: np.ndarray, dx_steady: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the loss and its derivatives by the dynamic and the steady parameters, from those of the states.

    - `x`: shape (time, state); `dx`, `dx_steady`: shape (time, state, parameter).
    """
    loss = lambda x, k: model.loss(jnp.asarray(times), x, _named(model, k))
    value, (by_x, by_k) = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(k))
    paired = lambda d: np.einsum("tn,tnp->p", by_x, d)
    return float(value), np.asarray(by_k) + paired(dx), paired(dx_steady)


def by_radau(
    model: Model,
    times: np.ndarray,
    k: np.ndarray,
    x_start: np.ndarray,
    dx_start: np.ndarray,
    dx_steady: np.ndarray,
    rtol: float,
    atol: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x (time, state) and its derivatives by dynamic and by steady parameters (time, state, parameter).

    - `dx_start`, `dx_steady`: derivatives of the start by both, shape (state, parameter).
    - `atol`: shape (state,); of the derivatives, each times its parameter, the same.
    """
    n, count = len(x_start), len(k)
    unit = np.where(k != 0, np.abs(k), 1.0)
    field = lambda x, k: model.vector_field(jnp.zeros(()), x, _named(model, k))
    # Directions that never leave 0 need no integration.
    carried = np.flatnonzero(np.any(dx_steady != 0, axis=0))
    seeds = np.eye(count) * unit

    def augmented(z: jax.Array) -> jax.Array:
        x, s = z[:n], z[n:].reshape(-1, n)
        parts = jax.vmap(lambda s, dk: jax.jvp(field, (x, jnp.asarray(k)), (s, dk))[1])
        dk = jnp.concatenate([jnp.asarray(seeds), jnp.zeros((len(carried), count))])
        return jnp.concatenate([field(x, jnp.asarray(k)), parts(s, dk).reshape(-1)])

    rate, jacobian = jax.jit(augmented), jax.jit(jax.jacfwd(augmented))
    start = np.concatenate([x_start, (dx_start * unit).T.reshape(-1), dx_steady[:, carried].T.reshape(-1)])
    solution = scipy.integrate.solve_ivp(
        lambda t, z: np.asarray(rate(z)),
        (0.0, times[-1]),
        start,
        method="Radau",
        jac=lambda t, z: np.asarray(jacobian(z)),
        t_eval=times,
        rtol=rtol,
        atol=np.tile(atol, 1 + count + len(carried)),
        first_step=min(1e-6, times[-1]),
    )
    assert solution.success, solution.message
    z = solution.y.T
    s = np.swapaxes(z[:, n:].reshape(len(times), -1, n), 1, 2)
    steady = np.zeros((len(times), n, count))
    steady[:, :, carried] = s[:, :, count:]
    return z[:, :n], s[:, :, :count] / unit, steady


def _compared(
    model: Model, times: np.ndarray, k: np.ndarray, solve: Callable[[float], tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> Reference:
    # The fine solution, and its distance to one whose tolerance is ten times as wide.
    found = [solve(factor) for factor in (10.0, 1.0)]
    (loss0, g0, s0), (loss1, g1, s1) = (differentiate(model, times, k, *f) for f in found)
    x0, x1 = found[0][0], found[1][0]
    return Reference(x1, np.abs(x1 - x0), g1, np.abs(g1 - g0), s1, np.abs(s1 - s0), loss1, abs(loss1 - loss0))


def from_initial_state(model: Model, times: np.ndarray, k: np.ndarray, rtol: float, atol: np.ndarray) -> Reference:
    """Returns the reference of a solve that starts at `Model.initial_state`.

    - `k`: shape (parameter,). `atol`: shape (state,).
    """
    start = lambda k: model.initial_state(_named(model, k))
    x, dx = np.asarray(start(jnp.asarray(k))), np.asarray(jax.jacfwd(start)(jnp.asarray(k)))
    run = lambda factor: by_radau(model, times, k, x, dx, np.zeros_like(dx), factor * rtol, factor * atol)
    return _compared(model, times, k, run)


def from_balance(
    model: Signalling, times: np.ndarray, k: np.ndarray, k_steady: np.ndarray, rtol: float, atol: np.ndarray
) -> tuple[np.ndarray, Reference]:
    """Returns the steady state by SciPy's root finder, shape (state,), and the reference of the solve from there.

    - `k`, `k_steady`: shape (parameter,). `atol`: shape (state,).
    """
    balance = jax.jit(lambda x, k: model.balance(x, _named(model, k)))
    ks = jnp.asarray(k_steady)
    by_x, by_k = jax.jit(jax.jacfwd(balance)), jax.jacfwd(balance, argnums=1)
    guess = np.asarray(model.initial_guess(_named(model, ks)))
    root = scipy.optimize.root(
        lambda x: np.asarray(balance(x, ks)), guess, jac=lambda x: np.asarray(by_x(x, ks)), tol=1e-14
    )
    x = root.x
    for _ in range(3):
        x = x - np.linalg.solve(np.asarray(by_x(x, ks)), np.asarray(balance(x, ks)))
    assert np.all(x > 0), "the wrong root"
    dx = -np.linalg.solve(np.asarray(by_x(x, ks)), np.asarray(by_k(x, ks)))
    unit = np.where(k_steady != 0, np.abs(k_steady), 1.0)
    none = np.zeros((len(x), len(k)))

    def run(factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, dynamic, steady = by_radau(model, times, k, x, none, dx * unit, factor * rtol, factor * atol)
        return rows, dynamic, steady / unit

    return x, _compared(model, times, k, run)


def by_expm(times: np.ndarray, k: np.ndarray) -> Reference:
    """Returns the reference of `Compartments` by exponentials of [[A, dA], [0, A]] at 40 digits.

    SciPy's exponential loses the digits that the stiffness takes; its Frechet derivative must agree up to those.
    """
    model = Compartments()
    named = lambda k: np.array(model.matrix(_named(model, k)), float)
    start = np.array([1.0, 0.5, -0.25])
    n, count = len(start), len(k)
    x, dx = np.zeros((len(times), n)), np.zeros((len(times), n, count))
    with mp.workdps(40):
        exact = mp.matrix(model.matrix(_named(model, [mp.mpf(float(v)) for v in k])))
        for i, t in enumerate(times):
            for j in range(count):
                # A is linear in k.
                da = named(np.eye(count)[j])
                block = mp.zeros(2 * n)
                block[:n, :n] = block[n:, n:] = mp.mpf(float(t)) * exact
                block[:n, n:] = mp.mpf(float(t)) * mp.matrix(da.tolist())
                found = np.array(mp.expm(block).tolist(), float)
                x[i], dx[i, :, j] = found[:n, :n] @ start, found[:n, n:] @ start
                whole, part = scipy.linalg.expm_frechet(t * named(k), t * da)
                lost = 10 * np.finfo(float).eps * np.linalg.norm(t * named(k), 1)
                np.testing.assert_allclose(whole @ start, x[i], rtol=0, atol=lost)
                np.testing.assert_allclose(part @ start, dx[i, :, j], rtol=0, atol=lost * np.linalg.norm(part, 1))
    none = np.zeros_like(dx)
    loss, g, s = differentiate(model, times, k, x, dx, none)
    # What rounding the last step to float64 leaves.
    eps = 10 * float(np.finfo(float).eps)
    return Reference(x, eps * np.abs(x), g, eps * np.abs(g), s, s, loss, eps * loss)


class DeclaredSignalling(Signalling):
    """The same with its totals declared, which are then not looked for."""

    def invariants(self, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        del k
        return x[::2] + x[1::2]
