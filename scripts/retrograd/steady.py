"""Steady states: root finding with fallbacks, judged by us, and their implicit derivatives.

What is solved is

    R(x) = scale * f(0, x, k) + G(x)^T (I(x) - I(x_guess)) + P (x - x_guess) = 0,

I the model's invariants, G their Jacobian, P a projector on conserved directions that were found numerically where the
model declares none. At a root both added terms vanish, and the Jacobian is regular although df/dx is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from retrograd.api import Model
from retrograd.batches import batched, float_type, lanes_of
from retrograd.dynamics import KVAERNO5, SUCCESSFUL, Integrator
from retrograd.dynamics import MAX_STEPS as DYNAMICS_MAX_STEPS
from retrograd.linalg import jitter, orthonormal, projector, solve, tolerance
from retrograd.plugins import Field, member
from retrograd.schema import STEADY_METHOD, STEADY_STATUS
from retrograd.weights import flatten, unflatten

CONVERGED, MAX_STEPS, NONFINITE, UNSTABLE, NOT_A_ROOT, INVALID = range(len(STEADY_STATUS))
ROOT, INTEGRATE = range(len(STEADY_METHOD))

# Integration to the steady state may use this many attempts for each iteration that the config allows a root finder.
ATTEMPTS_PER_ITERATION = 64
# The cross-check by integration gives up sooner: it decides nothing, and one scenario in doubt must not cost minutes.
CROSS_CHECK_ATTEMPTS = 2000
# Long against every time scale that a model is likely to have; the integration ends when it is at rest.
HORIZON = 1e15
REFINE_STEPS = 50


@dataclass
class Steady:
    """Steady states of a number of scenarios: one row each, as `steady_state.nc` holds them."""

    x: np.ndarray  # (scenario, state)
    x_guess: np.ndarray  # (scenario, state)
    residual_norm: np.ndarray
    status: np.ndarray
    method: np.ndarray
    iterations: np.ndarray
    max_real_eigenvalue: np.ndarray
    cross_check: np.ndarray
    n_conserved: np.ndarray
    conserved_basis: np.ndarray  # (scenario, state, state)

    def take(self, rows: np.ndarray) -> Steady:
        """Returns some of the scenarios."""
        return Steady(*(getattr(self, f.name)[rows] for f in fields(self)))

    def replace(self, rows: np.ndarray, other: Steady) -> None:
        """Puts other results in the place of some."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


class SteadyProblem:
    """The compiled steady-state problem of one variant."""

    def __init__(self, cls: type[Model], field: Field, options: Mapping[str, Any]) -> None:
        """- `field`: f(model, t, x, k).
        - `options`: `method`, `rtol`, `atol`, `max_steps` of the variant's `steady_state`.
        """
        self.options = options
        self.n = len(cls.states)
        self.dtype = float_type()
        self._batched = partial(batched, lanes=lanes_of(self.n))
        self._field = field
        self._guess = member(cls, "initial_guess", (self.n,))
        self._scale = member(cls, "residual_scale", (self.n,))
        self._invariants = member(cls, "invariants", None)
        self._judge = eqx.filter_jit(jax.vmap(self._judge_one, in_axes=(None, 0, 0, 0, 0)))
        self._start = eqx.filter_jit(jax.vmap(self._start_one, in_axes=(None, 0, 0)))
        self._refine = eqx.filter_jit(self._refine_all)
        self._adjoint = eqx.filter_jit(jax.vmap(self._adjoint_one, in_axes=(None, 0, 0, 0, 0, 0, None)))
        self._tangent = eqx.filter_jit(jax.vmap(self._tangent_one, in_axes=(None, 0, 0, 0, 0, None, None, None)))
        self._jacobian = eqx.filter_jit(jax.vmap(self._jacobian_one, in_axes=(None, 0, 0)))

    # -- one scenario ---------------------------------------------------------------------------------

    def _start_one(self, model: Model, k: jax.Array, x0: jax.Array) -> jax.Array:
        return jnp.where(jnp.isnan(x0), self._guess(model, k), x0)

    def _residual(self, model, x, k, x0, p):
        start = self._start_one(model, k, x0)
        f = self._field(model, jnp.zeros((), x.dtype), x, k) * self._scale(model, k)
        invariants = lambda x: self._invariants(model, x, k)
        moved = invariants(x) - invariants(start)
        return f + jax.jacfwd(invariants)(x).T @ moved + p @ (x - start)

    def _jacobian_one(self, model, x, k):
        return jax.jacfwd(lambda x: self._field(model, jnp.zeros((), x.dtype), x, k))(x)

    def _judge_one(self, model, x, k, x0, p):
        residual = self._residual(model, x, k, x0, p)
        jac = jax.jacfwd(lambda x: self._residual(model, x, k, x0, p))(x)
        plain = self._field(model, jnp.zeros((), x.dtype), x, k) * self._scale(model, k)
        start = self._start_one(model, k, x0)
        invariants = self._invariants(model, x, k)
        moved = invariants - self._invariants(model, start, k)
        # Explained by a change of x within tolerance? A fixed bound on the residual would ask the impossible of
        # rates of e^20, whose rounding alone is 1e-7, and accept anything of rates of e^-20.
        allowed = jnp.abs(jac) @ tolerance(self.options, x)
        excess = jnp.where(residual == 0, 0, jnp.abs(residual) / allowed)
        kept = jnp.max(jnp.abs(moved) / tolerance(self.options, invariants), initial=0)
        return jnp.max(jnp.abs(plain)), jnp.max(excess), kept, jac

    def _refine_all(self, model, x, k, x0, p):
        # Newton to the floor that rounding sets, all of shape (lane, ...); NaN where it does not get there.
        eps = jnp.finfo(x.dtype).eps
        atol = self.options["atol"]

        def linearise(x, k, x0, p):
            f = lambda x: self._residual(model, x, k, x0, p)
            return f(x), jax.jacfwd(f)(x)

        def body(carry):
            i, x, last, going = carry
            residual, jac = jax.vmap(linearise)(x, k, x0, p)
            step = solve(jac, residual)
            size = jnp.max(jnp.abs(step) / (jnp.abs(x) + atol), axis=-1)
            small = 1e3 * jnp.sqrt(eps)
            worse = (last < small) & (size > last)
            x = jnp.where((going & ~worse)[:, None], x - step, x)
            going = going & (size > 2 * eps) & ~((last < small) & (size > 0.25 * last)) & jnp.isfinite(size)
            return i + 1, x, size, going

        carry = (0, x, jnp.full(x.shape[:1], jnp.inf, x.dtype), jnp.ones(x.shape[:1], bool))
        _, x, size, _ = jax.lax.while_loop(lambda c: (c[0] < REFINE_STEPS) & jnp.any(c[3]), body, carry)
        good = size < 1e3 * jnp.sqrt(eps)
        return jnp.where(good[:, None], x, jnp.nan)

    def _adjoint_one(self, model, x, k, x0, p, lam, jitter):
        jac = jax.jacfwd(lambda x: self._residual(model, x, k, x0, p))(x) * (1 + jitter)
        w = solve(jac.T, lam)
        weights, static = eqx.partition(model, eqx.is_inexact_array)

        def paired(weights, k):
            return -jnp.dot(w, self._residual(eqx.combine(weights, static), x, k, x0, p))

        gm, gk = jax.grad(paired, argnums=(0, 1))(weights, k)
        return gk, flatten(gm).astype(x.dtype)

    def _tangent_one(self, model, x, k, x0, p, dweights, dk, jitter):
        jac = jax.jacfwd(lambda x: self._residual(model, x, k, x0, p))(x) * (1 + jitter)
        moved = lambda w, k: self._residual(unflatten(model, w), x, k, x0, p)
        weights = flatten(model).astype(x.dtype)
        residual = jax.vmap(lambda dw, dk: jax.jvp(moved, (weights, k), (dw, dk))[1])(dweights, dk)
        return jax.vmap(lambda r: -solve(jac, r))(residual)

    # -- batches --------------------------------------------------------------------------------------

    def start(self, model: Model, k: np.ndarray, x0: np.ndarray) -> np.ndarray:
        """Returns the first guesses: `x0` where it is given, else the model's; shape (scenario, state)."""
        return self._batched(self._start, model, k, x0)

    def first_guess(
        self, model: Model, k: jax.Array, x0: jax.Array, dk: np.ndarray, dweights: np.ndarray
    ) -> tuple[jax.Array, jax.Array]:
        """Returns one scenario's first guess and its derivatives, (state,) and (direction, state): traceable."""
        moved = lambda w, k: self._start_one(unflatten(model, w), k, x0)
        at = (flatten(model).astype(k.dtype), jnp.asarray(k))
        return moved(*at), jax.vmap(lambda dw, dk: jax.jvp(moved, at, (dw, dk))[1])(dweights, dk)

    def reroot(self, model: Model, x: np.ndarray, k: np.ndarray, x0: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Returns the root next to `x` under other parameters or weights, to rounding; NaN where there is none."""
        return self._batched(self._refine, model, x, k, x0, p)

    def adjoint(
        self,
        model: Model,
        x: np.ndarray,
        k: np.ndarray,
        x0: np.ndarray,
        p: np.ndarray,
        lam: np.ndarray,
        seed: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns lam . dx/dk (scenario, parameter) and lam . dx/dp (scenario, weight): implicit function theorem.

        - `seed`: 0, or that of changes of the size of rounding (`linalg.jitter`).
        """
        adjoint: Any = self._adjoint
        matrix = jitter((self.n, self.n), self.dtype, seed)
        call = lambda model, *rows: adjoint(model, *rows, matrix)
        return self._batched(call, model, x * (1 + jitter((self.n,), self.dtype, seed)), k, x0, p, lam)

    def tangent(
        self,
        model: Model,
        x: np.ndarray,
        k: np.ndarray,
        x0: np.ndarray,
        p: np.ndarray,
        dk: np.ndarray,
        dweights: np.ndarray,
        seed: int = 0,
    ) -> np.ndarray:
        """Returns the derivatives of the root in directions of k and the weights, shape (scenario, direction, state).

        - `dk`, `dweights`: shape (direction, parameter) and (direction, weight).
        - `seed`: as in `adjoint`.
        """
        directions = jnp.asarray(dweights, self.dtype), jnp.asarray(dk, self.dtype)
        tangent: Any = self._tangent
        matrix = jitter((self.n, self.n), self.dtype, seed)
        call = lambda model, *rows: tangent(model, *rows, *directions, matrix)
        return self._batched(call, model, x * (1 + jitter((self.n,), self.dtype, seed)), k, x0, p)

    # -- search ---------------------------------------------------------------------------------------

    def find(
        self, model: Model, k: np.ndarray, x0: np.ndarray, done: Callable[[int], None] = lambda count: None
    ) -> Steady:
        """Returns the steady state of every scenario, with its status.

        - `k`: parameters of the steady phase, shape (scenario, parameter).
        - `x0`: first guess, shape (scenario, state), NaN where the model's own is to be used.

        Order of trials: the guess itself, Newton, the same with conserved directions found numerically,
        Levenberg-Marquardt, dogleg, integration; `method: integrate` begins with the last. A root that is unstable
        is left for the one that integration reaches, and kept only if there is none.
        """
        total = len(k)
        guess = self.start(model, k, x0)
        found = Steady(
            x=np.full((total, self.n), np.nan),
            x_guess=guess,
            residual_norm=np.full(total, np.nan),
            status=np.full(total, NONFINITE),
            method=np.full(total, ROOT),
            iterations=np.zeros(total, np.int64),
            max_real_eigenvalue=np.full(total, np.nan),
            cross_check=np.full(total, np.nan),
            n_conserved=np.zeros(total, np.int64),
            conserved_basis=np.zeros((total, self.n, self.n)),
        )
        usable = np.all(np.isfinite(guess), axis=1) & np.all(np.isfinite(k), axis=1)
        found.status[~usable] = INVALID
        open_ = np.flatnonzero(usable)
        self._find_conserved(model, k, guess, found, open_)
        if self.options["method"] == "root":
            zeros = np.zeros(len(open_), np.int64)
            unfinished = np.full(len(open_), MAX_STEPS)
            open_ = self._try(model, k, x0, found, open_, guess[open_], zeros, refine=False, failed=unfinished)
            for finder in (optx.Newton, optx.LevenbergMarquardt, optx.Dogleg):
                retry = open_[found.status[open_] != UNSTABLE]
                if not len(retry):
                    break
                x, steps, exhausted = self._root_find(finder, model, k, x0, guess[retry], found, retry)
                if finder is optx.LevenbergMarquardt and np.any(exhausted):
                    exhausted &= self._still_falls(model, k, x0, x, found, retry)
                failed = np.where(exhausted, MAX_STEPS, NOT_A_ROOT)
                self._try(model, k, x0, found, retry, x, steps, failed=failed)
                open_ = open_[found.status[open_] != CONVERGED]
        if len(open_):
            x, steps, failed = self._integrate(model, k, x0, found, open_, guess)
            self._try(model, k, x0, found, open_, x, steps, method=INTEGRATE, failed=failed)
            open_ = open_[found.status[open_] != CONVERGED]
        for offset in self._offsets(self.options.get("starts", 0)):
            if not len(open_):
                break
            from_there = guess[open_] + offset * (1 + np.abs(guess[open_]))
            x, steps, exhausted = self._root_find(optx.LevenbergMarquardt, model, k, x0, from_there, found, open_)
            open_ = self._try(model, k, x0, found, open_, x, steps, failed=np.where(exhausted, MAX_STEPS, NOT_A_ROOT))
        if self.options["method"] == "root":
            rows = np.flatnonzero((found.status == CONVERGED) & (found.method == ROOT))
            if len(rows):
                x, _, _ = self._integrate(model, k, x0, found, rows, guess, CROSS_CHECK_ATTEMPTS)
                rest = self.reroot(model, x, k[rows], x0[rows], found.conserved_basis[rows])
                apart = np.abs(rest - found.x[rows])
                found.cross_check[rows] = np.max(apart / tolerance(self.options, found.x[rows]), axis=1)
        done(total)
        return found

    def _offsets(self, count: int) -> np.ndarray:
        # Relative to the guess, (start, state): first close to it, then up to ten times as far away. What is conserved
        # is measured from the guess all the same.
        rng = np.random.Generator(np.random.PCG64(11))
        return rng.standard_normal((count, self.n)) * np.geomspace(0.1, 10, count)[:, None]

    def _try(self, model, k, x0, found, rows, x, steps, *, method=ROOT, refine=True, failed=None):
        """Judges candidates x of some scenarios, writes what they give into `found`, returns the rows still open.

        - `failed`: of each row the status where the candidate is no root, `NOT_A_ROOT` by default.
        """
        if not len(rows):
            return rows
        p = found.conserved_basis[rows]
        candidates = x
        if refine:
            polished = self.reroot(model, x, k[rows], x0[rows], p)
            candidates = np.where(np.isfinite(polished), polished, x)
        norm, excess, kept, jac = self._batched(self._judge, model, candidates, k[rows], x0[rows], p)
        eigen = self._max_real(model, candidates, k[rows], found.n_conserved[rows])
        regular = _regular(jac, float(np.finfo(self.dtype).eps))
        # What comes nearest to a steady state is kept: an unstable root before a point that is no root.
        rank = (CONVERGED, UNSTABLE, INVALID, NOT_A_ROOT, MAX_STEPS, NONFINITE)
        for j, i in enumerate(rows):
            is_root = bool(excess[j] <= 1)
            finite = bool(np.all(np.isfinite(candidates[j])) and np.isfinite(norm[j]))
            if not finite and method == ROOT:
                status = NONFINITE
            elif not is_root:
                status = NOT_A_ROOT if failed is None else int(failed[j])
            elif kept[j] > 1 or not regular[j]:
                status = INVALID
            elif eigen[j][0] > eigen[j][1]:
                status = UNSTABLE
            else:
                status = CONVERGED
            if np.isnan(found.residual_norm[i]) or rank.index(status) < rank.index(int(found.status[i])):
                found.status[i] = status
                found.x[i] = candidates[j] if finite else np.nan
                found.residual_norm[i] = norm[j]
                found.method[i] = method
                found.iterations[i] = int(steps[j])
                found.max_real_eigenvalue[i] = eigen[j][0]
        return rows[found.status[rows] != CONVERGED]

    def _root_find(self, finder, model, k, x0, guess, found, rows):
        rtol, atol, max_steps = (self.options[name] for name in ("rtol", "atol", "max_steps"))
        solver = finder(rtol=rtol, atol=atol)

        def one(model, x, k, x0, p):
            def residual(x, args):
                return self._residual(args, x, k, x0, p)

            sol = optx.root_find(residual, solver, x, args=model, max_steps=max_steps, throw=False)
            return sol.value, sol.stats["num_steps"], sol.result == optx.RESULTS.nonlinear_max_steps_reached

        call = eqx.filter_jit(jax.vmap(one, in_axes=(None, 0, 0, 0, 0)))
        return self._batched(call, model, guess, k[rows], x0[rows], found.conserved_basis[rows])

    def _still_falls(self, model, k, x0, x, found, rows):
        """Returns where more Levenberg-Marquardt iterations from x lower the residual: elsewhere it is at a minimum."""
        further, _, _ = self._root_find(optx.LevenbergMarquardt, model, k, x0, x, found, rows)
        p = found.conserved_basis[rows]
        before, after = (self._batched(self._judge, model, at, k[rows], x0[rows], p)[0] for at in (x, further))
        return after < 0.9 * before

    def _max_real(self, model, x, k, conserved):
        """Returns of each row the largest real part of df/dx and what rounding may make of a zero one.

        Conserved directions have eigenvalue 0 and say nothing about stability: that many, the smallest, are left out.
        """
        jac = self._batched(self._jacobian, model, x, k)
        out = []
        for matrix, count in zip(jac, conserved, strict=True):
            if not np.all(np.isfinite(matrix)):
                out.append((np.nan, np.inf))
                continue
            values = np.asarray(np.linalg.eigvals(matrix.astype(np.float64)), np.complex128)
            values = values[np.argsort(np.abs(values))][int(count) :]
            floor = 100 * self.n * float(np.finfo(self.dtype).eps) * np.linalg.norm(matrix)
            out.append((float(np.max(np.real(values), initial=-np.inf)), floor))
        return [(value if np.isfinite(value) else np.nan, floor) for value, floor in out]

    def _find_conserved(self, model, k, guess, found, rows):
        """Fills `n_conserved`, and `conserved_basis` where df/dx has the same left null space at several states.

        Linear conservation laws only (moieties); others must be declared as `invariants`.
        """
        if not len(rows):
            return
        declared = eqx.filter_eval_shape(
            lambda m, x, k: self._invariants(m, x, k),
            model,
            jax.ShapeDtypeStruct((self.n,), self.dtype),
            jax.ShapeDtypeStruct(k.shape[1:], self.dtype),
        ).shape[0]
        if declared:
            found.n_conserved[rows] = declared
            return
        eps = float(np.finfo(self.dtype).eps)
        first = self._batched(self._jacobian, model, guess[rows], k[rows])
        suspects = rows[~_regular(first, eps)]
        if not len(suspects):
            return
        # Three more states, off the guess in directions that no model is aligned with.
        rng = np.random.Generator(np.random.PCG64(7))
        offsets = rng.uniform(0.1, 0.5, (3, self.n))
        samples = [self._batched(self._jacobian, model, guess[suspects], k[suspects])]
        samples += [
            self._batched(self._jacobian, model, guess[suspects] + o * (1 + np.abs(guess[suspects])), k[suspects])
            for o in offsets
        ]
        rates = [
            self._batched(
                eqx.filter_jit(jax.vmap(self._rate_one, in_axes=(None, 0, 0))),
                model,
                guess[suspects],
                k[suspects],
            )
        ]
        for j, i in enumerate(suspects):
            stacked = np.concatenate([s[j] for s in samples], axis=1).astype(np.float64)
            if not np.all(np.isfinite(stacked)):
                continue
            size = np.max(np.abs(stacked), axis=1)
            size[size == 0] = 1.0
            scaled = stacked / size[:, None]
            values = np.linalg.svd(scaled, compute_uv=False)
            count = int(np.sum(values < 100 * self.n * eps * max(values[0], eps)))
            if not count:
                continue
            null = np.eye(self.n) - projector(orthonormal(scaled, self.n - count))
            basis = orthonormal(null / size[:, None], count)
            rate = rates[0][j].astype(np.float64) / size
            # A direction in which f is constant but not zero is a drift and no conservation law. An entry of a null
            # vector is known to rounding of the largest one only.
            if np.all(np.abs(null.T @ rate) <= 1e3 * eps * np.sum(np.abs(rate))):
                found.conserved_basis[i] = projector(basis)
                found.n_conserved[i] = count

    def _rate_one(self, model, x, k):
        return self._field(model, jnp.zeros((), x.dtype), x, k)

    def _integrate(self, model, k, x0, found, rows, guess, attempts=None):
        """Returns x (NaN where it did not come to rest), the attempts used and a status, integrating from the guess."""
        double = self.dtype == np.float64
        options = {
            **KVAERNO5,
            "controller": {
                "rtol": 1e-6 if double else 1e-4,
                "atol": 1e-8 if double else 1e-5,
                "pcoeff": 0.0,
                "icoeff": 1.0,
                "dcoeff": 0.0,
                "dtmax": None,
                "dt0": 1e-6,
            },
            "segments": None,
            "max_steps": attempts or ATTEMPTS_PER_ITERATION * self.options["max_steps"],
        }
        integrator = Integrator(self._field, model, options, [HORIZON], self.n)
        # The row's number travels as one more parameter, which the vector field never looks at.
        tagged = np.concatenate([k[rows], np.arange(len(rows))[:, None]], axis=1)
        last: dict[int, np.ndarray] = {}

        def at_rest(x: np.ndarray, tagged: np.ndarray) -> np.ndarray:
            local = tagged[:, -1].astype(int)
            which = rows[local]
            refined = self.reroot(model, x, k[which], x0[which], found.conserved_basis[which])
            with np.errstate(invalid="ignore"):
                near = np.max(np.abs(refined - x) / (1 + np.abs(x)), axis=1) < 1e-3
            stable = [
                value <= floor for value, floor in self._max_real(model, refined, k[which], found.n_conserved[which])
            ]
            rest = np.logical_and(near, np.asarray(stable))
            last.update({int(i): row for i, row in zip(local[rest], x[rest], strict=True)})
            return rest

        records = integrator.run(guess[rows], tagged, stop_when=at_rest)
        x = np.full((len(rows), self.n), np.nan)
        failed = np.full(len(rows), NONFINITE)
        for j, record in enumerate(records):
            if len(record.step_x):
                x[j] = record.step_x[-1]
            if j not in last and record.status == SUCCESSFUL:
                failed[j] = NOT_A_ROOT
            elif record.status == DYNAMICS_MAX_STEPS:
                failed[j] = MAX_STEPS
        steps = np.array([len(r.end) for r in records])
        at_end = np.array([j in last for j in range(len(rows))])
        x[~at_end] = np.nan
        return x, steps, failed


def _regular(matrices: np.ndarray, eps: float) -> np.ndarray:
    """Returns which matrices (row, n, n) are regular after their rows and columns were scaled to 1."""
    out = np.zeros(len(matrices), bool)
    for i, matrix in enumerate(matrices):
        m = matrix.astype(np.float64)
        if not np.all(np.isfinite(m)):
            continue
        for _ in range(3):
            row = np.max(np.abs(m), axis=1, keepdims=True)
            column = np.max(np.abs(m), axis=0, keepdims=True)
            if np.any(row == 0) or np.any(column == 0):
                break
            m = m / np.sqrt(row) / np.sqrt(column)
        values = np.linalg.svd(m, compute_uv=False)
        out[i] = values[-1] > 100 * len(m) * eps * values[0]
    return out
