"""The same solves and gradients by others: diffrax as users write it, CasADi with CVODES, SciPy's Radau; and by us.

Each takes starts x and parameters k of many scenarios and gives, for the dynamic phase alone, states at the save times
and the gradient of the loss by all weights and by k. Each runs in a process of its own (`speed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from scipy.integrate import solve_ivp

from retrograd.api import Model
from retrograd.context import field_of
from retrograd.dynamics import KVAERNO5, SUCCESSFUL, Integrator, rows_at
from retrograd.gradients import GradientProblem
from retrograd.plugins import member
from retrograd.weights import flatten, unflatten

# diffrax's own default, which users leave as it is.
MAX_STEPS = 4096
# Between two save times; SUNDIALS' default is 500.
CVODES_STEPS = 10_000


class Contestant:
    """One way to states and gradients; compiles at its first call."""

    def __init__(self, cls: type[Model], model: Model, options: Mapping[str, Any], rtol: float, atol: float) -> None:
        """- `options`: the variant's solver, formulation, guard and so on, and `save_times`."""
        self.cls, self.model, self.rtol, self.atol = cls, model, rtol, atol
        controller = {**options["controller"], "rtol": rtol, "atol": atol}
        self.options = {**options, "controller": controller}
        self.field = field_of(cls, options)
        self.times = np.asarray(options["save_times"], float)
        self.n = len(cls.states)
        self.loss = member(cls, "loss", ())

    def solve(self, x: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Returns states at the save times, (scenario, time, state); NaN where there are none.

        - `x`, `k`: shape (scenario, state) and (scenario, parameter).
        """
        raise NotImplementedError

    def gradient(self, x: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the loss's gradient by k (scenario, parameter) and by weights (scenario, weight); None: has none."""
        raise NotImplementedError


class Retrograd(Contestant):
    """The recorded solve, and the adjoint on its steps."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.integrator = Integrator(self.field, self.model, self.options, self.times.tolist(), self.n)
        self.problem = GradientProblem(self.cls, self.field, self.model, self.options, self.times.tolist(), None)

    def solve(self, x, k):
        records = self.integrator.run(x, k)
        return np.stack([rows_at(r, start, self.times) for r, start in zip(records, x, strict=True)])

    def gradient(self, x, k):
        p = self.problem
        records = self.integrator.run(x, k)
        gk, gw = np.full(k.shape, np.nan), np.full((len(k), p.weights), np.nan)
        good = np.flatnonzero([r.status == SUCCESSFUL for r in records])
        steps = [records[i].step_time for i in good]
        ends, stages = p.replayer.forward(self.model, x[good], k[good], steps)
        *_, gk[good], gw[good] = p.to_start(k[good], steps, stages, p.saved(ends, steps, x[good]))
        return gk, gw


class RetrogradKvaerno5(Retrograd):
    """The same with Kvaerno5 and a full Newton iteration, whatever the variant's solver is."""

    def __init__(self, cls: type[Model], model: Model, options: Mapping[str, Any], rtol: float, atol: float) -> None:
        super().__init__(cls, model, {**options, **KVAERNO5}, rtol, atol)


class Diffrax(Contestant):
    """`jax.vmap` of `diffrax.diffeqsolve` over all scenarios, with its default inner iteration and adjoint.

    By the variant's solver if diffrax has it, else by Kvaerno5.
    """

    root_finder: Any = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        chosen = getattr(diffrax, self.options["solver"], diffrax.Kvaerno5)
        root = self.root_finder(rtol=self.rtol, atol=self.atol) if self.root_finder else None
        solver = chosen() if root is None else chosen(root_finder=root)
        term = diffrax.ODETerm(lambda t, x, args: self.field(args[0], jnp.asarray(t), x, args[1]))
        times = jnp.asarray(self.times)

        def states(model, x, k):
            solution = diffrax.diffeqsolve(
                term,
                solver,
                t0=0.0,
                t1=times[-1],
                dt0=None,
                y0=x,
                args=(model, k),
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
                max_steps=MAX_STEPS,
                throw=False,
            )
            assert solution.ys is not None
            return jnp.where(solution.result == diffrax.RESULTS.successful, solution.ys, jnp.nan)

        def value(weights, static, x, k):
            model = eqx.combine(weights, static)
            return self.loss(model, times, states(model, x, k), k)

        def slope(model, x, k):
            weights, static = eqx.partition(model, eqx.is_inexact_array)
            gw, gk = jax.grad(value, argnums=(0, 3))(weights, static, x, k)
            return gk, flatten(gw)

        self._states, self._slope = eqx.filter_jit(self.over(states)), eqx.filter_jit(self.over(slope))

    def over(self, one: Any) -> Any:
        return jax.vmap(one, in_axes=(None, 0, 0))

    def solve(self, x, k):
        return np.asarray(self._states(self.model, jnp.asarray(x), jnp.asarray(k)))

    def gradient(self, x, k):
        gk, gw = self._slope(self.model, jnp.asarray(x), jnp.asarray(k))
        return np.asarray(gk), np.asarray(gw)


class DiffraxNewton(Diffrax):
    """The same with a full Newton iteration in the implicit steps."""

    root_finder = optx.Newton


class DiffraxLoop(Diffrax):
    """The same as `Diffrax` one scenario after the other, in a Python loop over one compiled solve."""

    def over(self, one: Any) -> Any:
        return one

    def solve(self, x, k):
        return np.stack([np.asarray(self._states(self.model, *rows)) for rows in self._rows(x, k)])

    def gradient(self, x, k):
        gk, gw = zip(*(self._slope(self.model, *rows) for rows in self._rows(x, k)), strict=True)
        return np.stack([np.asarray(v) for v in gk]), np.stack([np.asarray(v) for v in gw])

    def _rows(self, x, k):
        return [(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(x, k, strict=True)]


class Casadi(Contestant):
    """CVODES (SUNDIALS) with its adjoint sensitivities, through CasADi, one scenario after the other."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._build()

    def _build(self) -> None:
        # An extra: imported where it is wanted.
        import casadi as ca

        from retrograd.casadi_field import scalars, translated

        flat, parameters = np.asarray(flatten(self.model), float), len(self.cls.parameters)
        self.flat, self.parameters = flat, parameters
        field = lambda w, t, x, k: self.field(unflatten(self.model, w), t, x, k)
        x, p, t = ca.SX.sym("x", self.n), ca.SX.sym("p", parameters + len(flat)), ca.SX.sym("t")
        both = scalars(p)
        rate = translated(field, flat, np.zeros(()), np.zeros(self.n), np.zeros(parameters))
        rates = rate(both[parameters:], scalars(t)[0], scalars(x), both[:parameters])
        settings = {"reltol": self.rtol, "abstol": self.atol, "max_num_steps": CVODES_STEPS}
        after = self.times[self.times > 0].tolist()
        dae = {"x": x, "p": p, "t": t, "ode": ca.vertcat(*rates)}
        integrator = ca.integrator("integrator", "cvodes", dae, 0.0, after, settings)
        start, moved = ca.MX.sym("start", self.n), ca.MX.sym("moved", parameters + len(flat))
        states = integrator(x0=start, p=moved)["xf"]
        if self.times[0] == 0:
            states = ca.horzcat(start, states)
        # The loss as a function of its own, so that CasADi's adjoint begins with its derivative.
        symbols = ca.SX.sym("states", self.n, len(self.times))
        rows = scalars(ca.vec(symbols)).reshape(len(self.times), self.n)
        loss = lambda w, rows, k: self.loss(unflatten(self.model, w), jnp.asarray(self.times), rows, k)
        value = translated(loss, flat, np.zeros((len(self.times), self.n)), np.zeros(parameters))
        given = value(both[parameters:], rows, both[:parameters])
        outer = ca.Function("loss", [symbols, p], [ca.SX(given.item())])
        self._solve = ca.Function("solve", [start, moved], [states])
        self._gradient = ca.Function("gradient", [start, moved], [ca.gradient(outer(states, moved), moved)])

    def solve(self, x, k):
        return self._each(lambda: self._solve, x, k, (len(self.times), self.n), lambda v: v.T)

    def gradient(self, x, k):
        both = self._each(lambda: self._gradient, x, k, (self.parameters + len(self.flat),), np.ravel)
        return both[:, : self.parameters], both[:, self.parameters :]

    def _each(self, call: Any, x: np.ndarray, k: np.ndarray, shape: tuple[int, ...], form: Any) -> np.ndarray:
        out = np.full((len(x), *shape), np.nan)
        for i in range(len(x)):
            try:
                out[i] = form(call()(x[i], np.concatenate([k[i], self.flat])).full())
            except RuntimeError:
                # SUNDIALS gave this one up. What is left of it made a later call, fine by itself, run for ten minutes.
                self._build()
        return out


class Scipy(Contestant):
    """`scipy.integrate.solve_ivp` with Radau, on a compiled field and Jacobian; it has no adjoint."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        field = lambda t, x, k: self.field(self.model, t, x, k)
        self._rate, self._jacobian = jax.jit(field), jax.jit(jax.jacfwd(field, argnums=1))

    def solve(self, x, k):
        out = np.full((len(x), len(self.times), self.n), np.nan)
        for i in range(len(x)):
            rate = lambda t, y, k=k[i]: np.asarray(self._rate(t, y, k))
            slope = lambda t, y, k=k[i]: np.asarray(self._jacobian(t, y, k))
            options = {"method": "Radau", "jac": slope, "rtol": self.rtol, "atol": self.atol}
            try:
                found = solve_ivp(rate, (0.0, self.times[-1]), x[i], t_eval=self.times, **options)
            except ValueError:
                # LAPACK refused a matrix that is not finite.
                continue
            if found.success:
                out[i] = found.y.T
        return out

    def gradient(self, x, k):
        return None


CONTESTANTS: dict[str, type[Contestant]] = {
    "retrograd": Retrograd,
    "retrograd_kvaerno5": RetrogradKvaerno5,
    "diffrax": Diffrax,
    "diffrax_newton": DiffraxNewton,
    "diffrax_loop": DiffraxLoop,
    "casadi": Casadi,
    "scipy": Scipy,
}
