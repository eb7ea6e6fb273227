"""One scenario alone: every attempt with its stages, what first failed in an attempt, the steps on the way back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import float_type
from retrograd.dynamics import NEWTON_STEPS, SUCCESSFUL, Integrator, make_solver, uses_own_step
from retrograd.jumps import jumps_of
from retrograd.linalg import solve as linear_solve
from retrograd.linalg import tolerance
from retrograd.nonfinite import NonFinite, first_nonfinite
from retrograd.plugins import Field
from retrograd.rosenbrock import rodas5p, slopes, stage_points, tableau_of
from retrograd.runge_kutta import newton_ends, rate_and_jacobian

# Steps whose Jacobians are formed in one call on the way back.
BLOCK = 32
_BY_ROUNDING = "it depends on rounding, thus on the batch's vector width and the machine, whether this step succeeds"


# -- forward ----------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One attempt of the adaptive solve, accepted or not."""

    t0: float
    t1: float
    accepted: bool
    error: float  # scaled norm of the error estimate; accepted below 1
    x: np.ndarray  # (state,), at t0
    stages: np.ndarray  # (stage, state)
    rates: np.ndarray  # (stage, state), as the step has them
    end: np.ndarray  # (state,), at t1 if it was accepted

    @property
    def is_finite(self) -> bool:
        """Whether it gave an error estimate and finite stages."""
        return bool(np.isfinite(self.error) and np.all(np.isfinite(self.stages)))


@dataclass
class Run:
    """The adaptive solve of one scenario."""

    status: int  # as in `dynamics.nc`
    x_start: np.ndarray  # (state,)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def steps(self) -> np.ndarray:
        """Ends of the accepted steps, shape (step,)."""
        return np.array([a.t1 for a in self.attempts if a.accepted], self.x_start.dtype)

    @property
    def step_x(self) -> np.ndarray:
        """States there, shape (step, state)."""
        return np.array([a.end for a in self.attempts if a.accepted]).reshape(-1, len(self.x_start))

    @property
    def x(self) -> np.ndarray:
        """The last state that was reached, shape (state,)."""
        return self.step_x[-1] if len(self.steps) else self.x_start


class SingleSteps:
    """The compiled attempt of one variant, unbatched, with its stages: in lanes of a batch, last digits may differ."""

    def __init__(self, field: Field, model: Model, options: Mapping[str, Any], n: int) -> None:
        """- `field`: f(model, t, x, k).
        - `options`: the variant's solver, nonlinear, controller, segments, max_steps, and `save_times`.
        - `n`: number of states.
        """
        self.dtype, self.model, self._field = float_type(), model, field
        integrator = Integrator(field, model, options, options["save_times"], n)
        tableau, solver = tableau_of(options["solver"]), make_solver(options)

        def inside(model, lane):
            # Stages and rates of the attempt that begins at this lane, each of shape (stage, state).
            h = lane.t1 - lane.t0
            if integrator.step is None:
                term = diffrax.ODETerm(lambda t, x, args: field(args[0], jnp.asarray(t), x, args[1]))
                args = (model, lane.k)
                _, _, dense, _, _ = solver.step(term, lane.t0, lane.t1, lane.x, args, lane.solver_state, False)
                increments = dense["k"]
                a = jnp.asarray(tableau.a, self.dtype)[:, :, None]
                # Where a_ij is 0, what is not finite in stage j is no part of stage i.
                return lane.x + jnp.sum(jnp.where(a == 0, 0, a * increments), axis=1), increments / h
            stages = integrator.step(model, lane.t0, lane.t1, lane.x, lane.solver_state, lane.k).stages
            rates = [lane.solver_state]
            for i in range(1, tableau.stages):
                base = lane.x + h * sum(float(tableau.a[i, j]) * rates[j] for j in range(i))
                rates.append((stages[i] - base) / (h * float(tableau.a[i, i])))
            return stages, jnp.stack(rates)

        def advance(model, lane):
            after, (t0, t1, accepted, error, end, *_) = integrator.attempt(model, lane)
            return after, (t0, t1, accepted, error, lane.x, *inside(model, lane), end)

        def between(model, t0, t1, x, k):
            lane = eqx.tree_at(lambda s: (s.t0, s.t1), integrator.start(model, x, k), (t0, t1))
            if lane.solver_state is not None:
                state = integrator.state_at(model, t0, t1, x, k)
                lane = eqx.tree_at(lambda s: s.solver_state, lane, state)
            return advance(model, lane)[1]

        self._start = eqx.filter_jit(integrator.start)
        self._advance, self._between = eqx.filter_jit(advance), eqx.filter_jit(between)

    def solve(self, x_start: Any, k: Any) -> Run:
        """Returns every attempt of one scenario.

        - `x_start`: state at model time 0, shape (state,).
        - `k`: parameters of the dynamic phase, shape (parameter,).
        """
        x, k = jnp.asarray(x_start, self.dtype), jnp.asarray(k, self.dtype)
        lane = self._start(self.model, x, k)
        run = Run(SUCCESSFUL, np.asarray(x))
        while int(lane.status) < 0:
            lane, row = self._advance(self.model, lane)
            run.attempts.append(_attempt(row))
        run.status = int(lane.status)
        return run

    def attempt(self, t0: float, t1: float, x: Any, k: Any) -> Attempt:
        """Returns the attempt from (t0, x) to t1 as it was made within a solve; `x`: shape (state,)."""
        as_is = lambda v: jnp.asarray(v, self.dtype)
        return _attempt(self._between(self.model, as_is(t0), as_is(t1), as_is(x), as_is(k)))


def _attempt(row: Any) -> Attempt:
    t0, t1, accepted, error, *arrays = map(np.asarray, row)
    return Attempt(float(t0), float(t1), bool(accepted), float(error), *arrays)


def solve(field: Field, model: Model, options: Mapping[str, Any], x_start: Any, k: Any) -> Run:
    """Returns every attempt of one scenario; arguments as those of `SingleSteps` and of its method `solve`."""
    return SingleSteps(field, model, options, len(x_start)).solve(x_start, k)


def vector(x: np.ndarray) -> str:
    """Returns a state as text on one line."""
    return "[" + ", ".join(f"{v:.8g}" for v in np.ravel(x)) + "]"


@dataclass
class Finding:
    """What first went wrong."""

    said: str
    kind: str = ""  # rates, jacobian, iterate (overflow), matrix (singular), iteration (does not converge), or nothing
    stage: int | None = None  # from 0
    origin: NonFinite | None = None

    @property
    def sentence(self) -> str:
        """What was found, and in which stage."""
        return self.said if self.stage is None else f"stage {self.stage + 1}: {self.said}"


class Diagnosis:
    """Looks into attempts of one scenario that were not finite, by taking their inner iterations in single steps."""

    def __init__(self, field: Field, model: Model, options: Mapping[str, Any], k: Any) -> None:
        """- `options`, `k`: as `solve` takes them; `of` gives the same for another scenario, compiled once."""
        self.dtype = float_type()
        self.model, self.k = model, jnp.asarray(k, self.dtype)
        self.tableau = tableau_of(options["solver"])
        self._field = field
        self._own = uses_own_step(options)
        self._options = options
        self._both = eqx.filter_jit(lambda model, t, x, k: rate_and_jacobian(field, model, t, x, k))
        self._slope = eqx.filter_jit(
            lambda model, t, base, ha, rate, k: jax.jacfwd(lambda r: field(model, t, base + ha * r, k))(rate)
        )

    def of(self, k: Any) -> Diagnosis:
        """Returns the same of another scenario."""
        other = copy.copy(self)
        other.k = jnp.asarray(k, self.dtype)
        return other

    def rates(self, t: Any, x: Any) -> Finding | None:
        """Returns what makes f(t, x) not finite, None where it is finite."""
        return self.look(t, x)[0]

    def look(self, t: Any, x: Any) -> tuple[Finding | None, np.ndarray, np.ndarray]:
        """Returns what is not finite in f(t, x) or df/dx, None if all is, and the two: (state,) and (state, state)."""
        t, x = jnp.asarray(t, self.dtype), jnp.asarray(x, self.dtype)
        rate, jac = map(np.asarray, self._both(self.model, t, x, self.k))
        finding = None
        if not np.all(np.isfinite(rate)):
            origin = first_nonfinite(self._field, self.model, t, x, self.k)
            finding = Finding("the rates there are not finite", "rates", origin=origin)
        elif not np.all(np.isfinite(jac)):
            jacobian = lambda model, t, x, k: jax.jacfwd(lambda x: self._field(model, t, x, k))(x)
            origin = first_nonfinite(jacobian, self.model, t, x, self.k)
            finding = Finding("the rates there are finite, their Jacobian df/dx is not", "jacobian", origin=origin)
        return finding, rate, jac

    @property
    def _works(self) -> str:
        if not self.tableau.implicit:
            return f"the step is finite: {_BY_ROUNDING}"
        return f"the {'Newton' if self._own else 'chord'} iteration of its stages converges: {_BY_ROUNDING}"

    def __call__(self, attempt: Attempt) -> Finding:
        """Returns what first went wrong in an attempt that was not finite."""
        with np.errstate(all="ignore"):
            for i in range(self.tableau.stages):
                if np.all(np.isfinite(attempt.stages[i])) and np.all(np.isfinite(attempt.rates[i])):
                    continue
                found = self._stage(attempt, i)
                return found or Finding(f"when the step is repeated in single operations, {self._works}", stage=i)
            if self.tableau.implicit and not self._own:
                # diffrax keeps the last iterate of a stage that did not converge, and makes the error infinite.
                for i in range(1, self.tableau.stages):
                    found = self._stage(attempt, i)
                    if found:
                        return found
            if self.tableau.linearly_implicit and (found := self.look(attempt.t1, attempt.end)[0]):
                found.said = f"at the end of the step, {found.said}"
                return found
        if attempt.is_finite:
            return Finding(f"when the step is repeated on its own, outside the batch, {self._works}", "iteration")
        return Finding("all stages are finite, and the error estimate is not")

    def _stage(self, attempt: Attempt, i: int) -> Finding | None:
        """Returns what goes wrong in a stage, None where nothing does."""
        h = self.dtype.type(attempt.t1) - self.dtype.type(attempt.t0)
        t = self.time(attempt, i)
        if not self.tableau.implicit or i == 0:
            if not np.all(np.isfinite(attempt.stages[i])):
                return Finding("the rates of the stages before are finite, and their sum overflows", "iterate", i)
            finding = self.rates(t, attempt.stages[i])
            if self.tableau.linearly_implicit and finding is None:
                finding = self.look(t, attempt.stages[i])[0] if i == 0 else None
                told = "rates and Jacobian at the start are finite, and I - h gamma df/dx cannot be solved with"
                finding = finding or Finding(told, "matrix")
        elif self._own:
            finding = self._newton(attempt, i, h, t)
        else:
            finding = self._chord(attempt, i, h, t)
        if finding:
            finding.stage = i
        return finding

    def time(self, attempt: Attempt, i: int) -> np.floating[Any]:
        t0, t1, c = self.dtype.type(attempt.t0), self.dtype.type(attempt.t1), self.dtype.type(self.tableau.c[i])
        return t1 if c == 1 else t0 + c * (t1 - t0)

    def _base(self, attempt: Attempt, i: int, h: Any) -> tuple[np.ndarray, Any, np.ndarray]:
        """Returns x + h sum a_ij f_j, h a_ii and the predicted rate of a stage."""
        a, predictor = self.tableau.a.astype(self.dtype), self.tableau.predictor.astype(self.dtype)
        rates = attempt.rates[:i]
        return attempt.x + h * (a[i, :i] @ rates), h * a[i, i], predictor[i, :i] @ rates

    def _newton(self, attempt: Attempt, i: int, h: Any, t: Any) -> Finding | None:
        # The iteration of `RungeKutta`, with its rule of stopping.
        base, ha, guess = self._base(attempt, i, h)
        y = base + ha * guess
        eye = np.eye(len(y), dtype=self.dtype)
        eps = float(np.finfo(self.dtype).eps)
        last, sizes = np.inf, []
        for iteration in range(NEWTON_STEPS):
            where = f"Newton's iterate {iteration}{' (the predictor)' * (iteration == 0)}, x = {vector(y)}"
            if not np.all(np.isfinite(y)):
                return Finding(f"{where}: overflow, although the rates before were finite", "iterate")
            finding, rate, jac = self.look(t, y)
            if finding:
                finding.said = f"{where}: {finding.said}"
                return finding
            step = np.asarray(linear_solve(jnp.asarray(eye - ha * jac), jnp.asarray(y - base - ha * rate)))
            if not np.all(np.isfinite(step)):
                told = f"{where}: rates and Jacobian are finite, and I - h a_ii df/dx cannot be solved with"
                return Finding(told, "matrix")
            size = np.max(np.abs(step) / (np.abs(y) + self._options["controller"]["atol"]))
            sizes.append(size)
            if newton_ends(size, last, eps):
                return None
            y, last = y - step, size
        return Finding(
            f"Newton's iterates stay finite and do not converge in {NEWTON_STEPS}; corrections relative to x: "
            + ", ".join(f"{s:.1e}" for s in sizes),
            "iteration",
        )

    def _chord(self, attempt: Attempt, i: int, h: Any, t: Any) -> Finding | None:
        # diffrax's VeryChord, in the rates and with the Jacobian at the predictor of the first implicit stage.
        first_base, first_ha, first_guess = self._base(attempt, 1, h)
        start = self.time(attempt, 1)
        finding, _, _ = self.look(start, first_base + first_ha * first_guess)
        # Of the rates by the rates: h a_ii df/dx is formed in one, and finite where df/dx alone overflows.
        slope = np.asarray(self._slope(self.model, start, first_base, first_ha, first_guess, self.k))
        if finding and not np.all(np.isfinite(slope)):
            finding.said = f"Jacobian of the step, at the predictor of stage 2: {finding.said}"
            return finding
        base, ha, rate = self._base(attempt, i, h)
        matrix = np.eye(len(rate), dtype=self.dtype) - slope
        finder = make_solver(self._options).root_finder
        inner = {"rtol": finder.rtol, "atol": finder.atol}
        sizes: list[Any] = []
        # VeryChord calls whatever has not converged after its second correction a failure, and optimistix ends there.
        for iteration in range(2):
            y = base + ha * rate
            where = f"chord iterate {iteration}{' (the predictor)' * (iteration == 0)}, x = {vector(y)}"
            if not np.all(np.isfinite(y)):
                return Finding(f"{where}: overflow, although the rates before were finite", "iterate")
            finding, there, _ = self.look(t, y)
            if finding and not np.all(np.isfinite(there)):
                finding.said = f"{where}: {finding.said}"
                return finding
            step = np.asarray(jnp.linalg.solve(jnp.asarray(matrix), jnp.asarray(rate - there)))
            if not np.all(np.isfinite(step)):
                return Finding(f"{where}: the rates are finite, and I - h a_ii df/dx cannot be solved with", "matrix")
            rate = rate - step
            sizes.append(np.sqrt(np.mean((step / tolerance(inner, rate)) ** 2)))
        ratio = sizes[1] / sizes[0]
        left = sizes[1] * ratio / (1 - ratio)
        leaves = "diverges" if ratio >= 1 else f"leaves {left:.3g}, wanted between 0 and {finder.kappa:g}"
        if sizes[1] < 10.0 ** (2 - np.finfo(self.dtype).precision) or 0 < left < finder.kappa:
            return None
        return Finding(
            f"the chord iteration stays finite and has not converged after two corrections, which is where diffrax "
            f"gives up: they are {sizes[0]:.3g} and {sizes[1]:.3g} units of the tolerance, which {leaves}",
            "iteration",
        )


# -- back -------------------------------------------------------------------------------------------------


@dataclass
class Visit:
    """One step on the way back."""

    step: int  # from 0, in the order of time
    t1: float
    t0: float
    at_end: np.ndarray  # (state,), derivative of the loss by the state at t1
    at_start: np.ndarray  # (state,), by the state at t0


def walk_back(
    field: Field,
    model: Model,
    options: Mapping[str, Any],
    k: np.ndarray,
    steps: np.ndarray,
    stages: np.ndarray,
    injected: np.ndarray,
) -> tuple[list[Visit], Finding | None]:
    """Returns the steps as the discrete adjoint of `replay.py` visits them, the last one first, and what first failed.

    - `k`: shape (parameter,).
    - `steps`, `stages`: ends (step,) and stages (step, stage, state) of a replayed scenario, as its replay keeps them.
    - `injected`: the loss's derivative by the state at each step's end, shape (step, state).
    """
    tableau, dtype = tableau_of(options["solver"]), float_type()
    a, b = tableau.a, tableau.b
    k_ = jnp.asarray(k, dtype)
    frozen = tableau.linearly_implicit
    starts, stages = stages[:, 0], np.asarray(stage_points(jnp.asarray(stages, dtype))) if frozen else stages

    @eqx.filter_jit
    def through(model, t0, t1, x, lam):
        # By JAX, where J is part of the step: the adjoint that is replayed is another.
        rate = lambda t, x: field(model, t, x, k_)
        return jax.vjp(lambda x: rodas5p(rate, t0, t1, x, slopes(rate, t0, x))[0], x)[1](lam)[0]

    jumps = jumps_of(field)
    jumped = jumps.apply if jumps else lambda model, t, x, k: x

    @eqx.filter_jit
    def through_jump(model, t, x, lam):
        return jax.vjp(lambda x: jumped(model, t, x, k_), x)[1](lam)[0]

    one = lambda model, t, x: jax.jacfwd(lambda x: field(model, t, x, k_))(x)
    jacobians = eqx.filter_jit(jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)), in_axes=(None, 0, 0)))
    begins = np.concatenate([np.zeros(1, steps.dtype), steps[:-1]])
    times = np.where(tableau.c == 1, steps[:, None], begins[:, None] + tableau.c * (steps - begins)[:, None])
    eye = np.eye(stages.shape[-1])
    lam = np.zeros(stages.shape[-1])
    visits: list[Visit] = []
    failed: Finding | None = None
    block: np.ndarray = np.zeros(0)
    first = len(steps)
    for n in reversed(range(len(steps))):
        if n < first:
            first = max(n + 1 - BLOCK, 0)
            rows = np.minimum(first + np.arange(BLOCK), n)
            block = np.asarray(jacobians(model, jnp.asarray(times[rows], dtype), jnp.asarray(stages[rows], dtype)))
        jac = block[n - first]
        h = float(steps[n]) - float(begins[n])
        lam = lam + injected[n]
        end = lam
        eta = np.zeros_like(stages[n])
        with np.errstate(all="ignore"):
            for i in () if frozen else reversed(range(tableau.stages)):
                phi = h * (b[i] * end + a[:, i] @ eta)
                try:
                    phi = np.linalg.solve(eye - h * a[i, i] * jac[i].T, phi)
                except np.linalg.LinAlgError:
                    phi = np.full_like(phi, np.nan)
                eta[i] = jac[i].T @ phi
            lam = end + eta.sum(axis=0)
        if jumps is not None and bool(jumps.at(jnp.asarray(begins[n], dtype))):
            lam = np.asarray(through_jump(model, *(jnp.asarray(v, dtype) for v in (begins[n], starts[n], end))), float)
        elif frozen:
            at = (jnp.asarray(v, dtype) for v in (begins[n], steps[n], starts[n], end))
            lam = np.asarray(through(model, *at), float)
        visits.append(Visit(n, float(steps[n]), float(begins[n]), end, lam))
        if failed is None and not np.all(np.isfinite(lam)):
            failed = _lost(field, model, k_, times[n], stages[n], jac, end)
    return visits, failed


def _lost(field: Field, model: Model, k: Any, times: Any, stages: Any, jac: np.ndarray, end: np.ndarray) -> Finding:
    if not np.all(np.isfinite(end)):
        return Finding("the derivative of the loss by the state at a save time is not finite", "loss")
    for i in reversed(range(len(stages))):
        if not np.all(np.isfinite(jac[i])):
            jacobian = lambda model, t, x, k: jax.jacfwd(lambda x: field(model, t, x, k))(x)
            t, x = (jnp.asarray(v, float_type()) for v in (times[i], stages[i]))
            said = f"the Jacobian df/dx at x = {vector(stages[i])} is not finite"
            return Finding(said, "jacobian", i, first_nonfinite(jacobian, model, t, x, k))
    return Finding("the Jacobians are finite, and the cotangent overflows or a stage's matrix is singular")
