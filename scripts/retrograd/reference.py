"""The derivative of the ODE by an integrator that shares nothing with ours: SciPy's, on forward sensitivity equations.

With S = dx/dp in a number of directions, x' = f and S' = (df/dx) S + df/dp, integrated together at tight tolerances
(Hairer and Wanner 1996, section IV.8, for Radau IIA; SciPy's implementation). A steady state is reached by integrating
the same equations from the first guess until nothing moves, so that the implicit function theorem is checked too.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.gradients import GradientProblem, Scenarios
from retrograd.jumps import jumps_of, spans
from retrograd.starts import tangent_through
from retrograd.weights import flatten, unflatten

RTOL = 1e-8
# Rate evaluations for one scenario; a stiff one takes some thousands, and one that SciPy cannot do would never end.
EVALUATIONS = 50_000
# Time within which nothing moves at rest, as a share of the time already passed.
REST = 1e-9


class _Exhausted(Exception):
    pass


class Reference:
    """Forward sensitivities of one model by SciPy."""

    def __init__(self, problem: GradientProblem) -> None:
        self.problem, self.n = problem, problem.n
        count = len(problem.columns)
        dynamic, steady, self.dw = problem.moves()
        self.dk = {"dynamic": dynamic, "steady": steady}
        weights = flatten(problem.model)

        def rates(t, y, k, dk, dw):
            x, s = y[: self.n], y[self.n :].reshape(count, self.n)
            f = lambda w, x, k: problem.field(unflatten(problem.model, w), t, x, k)
            one = lambda dx, dk, dw: jax.jvp(f, (weights, x, k), (dw, dx, dk))[1]
            return jnp.concatenate([f(weights, x, k), jax.vmap(one)(s, dk, dw).reshape(-1)])

        self._rates = jax.jit(rates)
        self._jacobian = jax.jit(jax.jacfwd(lambda x, t, k: problem.field(problem.model, t, x, k)))
        self._start = eqx.filter_jit(self._start_one)
        self._onset: Any = eqx.filter_jit(problem.onset.with_tangent)
        self._loss = eqx.filter_jit(problem.loss_tangent)
        self._jump: Any = eqx.filter_jit(self._jump_one)

    def _start_one(self, k, x0, dk, dw):
        if self.problem.steady is not None:
            return self.problem.steady.first_guess(self.problem.model, k, x0, dk, dw)
        return self.problem.initial.with_tangent(self.problem.model, k, x0, dk, dw)

    def _jump_one(self, t, x, k, s, dk, dw):
        jumps = jumps_of(self.problem.field)
        assert jumps is not None
        jump = lambda model, x, k: jumps.apply(model, t, x, k)
        return tangent_through(jump, self.problem.model, x, k, s, dk, dw)

    def derivatives(self, data: Scenarios, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns derivatives of the loss and their error, (scenario, wrt); NaN where SciPy gives none.

        - `rows`: the scenarios to take; the others are left out.

        The error is twice the difference to a hundredth of the tolerance.
        """
        value, error = np.full((2, len(data.ok), len(self.problem.columns)), np.nan)
        for i in rows:
            rough, fine = (self._one(data, i, rtol) for rtol in (RTOL, RTOL / 100))
            value[i], error[i] = fine, 2 * np.abs(fine - rough)
        return value, error

    def _one(self, data: Scenarios, i: int, rtol: float) -> np.ndarray:
        nothing = np.full(len(self.problem.columns), np.nan)
        phase = "dynamic" if self.problem.steady is None else "steady"
        k = (data.k_dynamic if phase == "dynamic" else data.k_steady)[i]
        x, s = self._start(k, data.x0[i], self.dk[phase], self.dw)
        y = np.concatenate([np.asarray(x), np.asarray(s).reshape(-1)])
        if self.problem.steady is not None:
            rest = self._to_rest(y, k, rtol)
            assert data.x_rest is not None
            if rest is None or not np.allclose(rest[: self.n], data.x_rest[i], rtol=1e-5, atol=1e-7):
                return nothing
            x, s = rest[: self.n], rest[self.n :].reshape(-1, self.n)
            x, s = self._onset(self.problem.model, x, data.k_dynamic[i], s, self.dk["dynamic"], self.dw)
            y = np.concatenate([x, s.reshape(-1)])
        return self._onward(y, data.k_dynamic[i], rtol)[1]

    def from_given(self, x: np.ndarray, k: np.ndarray, rtol: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns one scenario's states at the save times (time, state), and its loss's derivatives (wrt,), from a
        start that moves with nothing.

        - `x`, `k`: start and parameters of the dynamic phase.
        """
        return self._onward(np.concatenate([x, np.zeros(self.n * len(self.problem.columns))]), k, rtol)

    def _onward(self, y: np.ndarray, k: np.ndarray, rtol: float) -> tuple[np.ndarray, np.ndarray]:
        # From states and sensitivities at the start of the dynamic phase.
        times = np.asarray(self.problem.times, float)
        path, jumps = np.full((len(times), len(y)), np.nan), False
        for begin, end, jumps in spans(self.problem.field, times[-1], np.dtype(float)):
            inside = (times >= begin) & (times <= end)
            found = self._integrate(y, k, "dynamic", float(begin), float(end), rtol, np.union1d(times[inside], end))
            if found is None:
                return path[:, : self.n], np.full(len(self.problem.columns), np.nan)
            path[inside], y = found[: np.sum(inside)], found[-1]
            if jumps:
                at = (float(end), y[: self.n], k, y[self.n :].reshape(-1, self.n), self.dk["dynamic"], self.dw)
                x, s = self._jump(*map(jnp.asarray, at))
                y = np.concatenate([x, np.asarray(s).reshape(-1)])
        if jumps:
            # The last save time is a jump, and no piece follows on it.
            path[-1] = y
        drows = np.swapaxes(path[:, self.n :].reshape(len(times), -1, self.n), 0, 1)
        rows, dk = jnp.asarray(path[:, : self.n]), self.dk["dynamic"]
        return path[:, : self.n], np.asarray(self._loss(self.problem.model, rows, jnp.asarray(k), drows, dk, self.dw))

    def _to_rest(self, y: np.ndarray, k: np.ndarray, rtol: float) -> np.ndarray | None:
        """Returns states and sensitivities at rest, None where they keep moving."""
        start = 0.0
        for stop in 10.0 ** np.arange(-2, 16):
            path = self._integrate(y, k, "steady", start, stop, rtol, np.array([stop]))
            if path is None:
                return None
            moved = np.abs(path[-1] - y) / (1 + np.abs(path[-1]))
            start, y = stop, path[-1]
            rates = np.asarray(self._rates(0.0, y, k, self.dk["steady"], self.dw))
            slow = np.max(np.abs(rates[: self.n])) * stop < 1e12 * REST
            if np.max(moved) < REST and slow and stop > 1:
                return y
        return None

    def _integrate(
        self, y: np.ndarray, k: np.ndarray, phase: str, start: float, stop: float, rtol: float, times: np.ndarray
    ) -> np.ndarray | None:
        """Returns states and sensitivities at some times, (time, value), None where SciPy does not get there."""
        # Few jobs come here, and the import takes as long as a tenth of a small job.
        from scipy.integrate import solve_ivp

        dk, left = self.dk[phase], EVALUATIONS

        def rates(t: float, y: np.ndarray) -> np.ndarray:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Exhausted
            return np.asarray(self._rates(t if phase == "dynamic" else 0.0, y, k, dk, self.dw))

        def jacobian(t: float, y: np.ndarray) -> np.ndarray:
            # Without d(J S)/dx, which stands below the diagonal blocks: two more iterations and nothing worse.
            jac = np.asarray(self._jacobian(y[: self.n], t if phase == "dynamic" else 0.0, k))
            return np.kron(np.eye(len(y) // self.n), jac)

        atol = 1e-3 * rtol
        methods: list[dict[str, Any]] = [{"method": "Radau", "jac": jacobian}, {"method": "LSODA"}]
        for options in methods:
            left = EVALUATIONS
            try:
                found = solve_ivp(rates, (start, stop), y, t_eval=times, rtol=max(rtol, 1e-13), atol=atol, **options)
            except (_Exhausted, ValueError, np.linalg.LinAlgError):
                continue
            if found.success and np.all(np.isfinite(found.y)):
                return found.y.T
        return None
