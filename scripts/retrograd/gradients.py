"""Gradients of the loss on recorded steps, by adjoint and tangent, and the finite differences beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from retrograd.api import Model
from retrograd.batches import batched, float_type
from retrograd.context import Chunk
from retrograd.differences import FURTHER, NOISE_PAIRS, WIDTHS, Samples, coarse, estimate, widths
from retrograd.dynamics import SUCCESSFUL, Record, save_index
from retrograd.jump_replay import make_replayer
from retrograd.jumps import jump_times_of, row_times
from retrograd.linalg import tolerance
from retrograd.plugins import Field, member
from retrograd.replay import Linearised
from retrograd.starts import InitialState, StartOfDynamics
from retrograd.steady import SteadyProblem
from retrograd.store import ragged
from retrograd.weights import flatten, n_weights, unflatten

# Of derivatives: by what they are taken.
KINDS = ("dynamic", "steady", "network")


@dataclass
class Scenarios:
    """The scenarios of one chunk, as arrays with one row each; rows that were not simulated have `ok` False."""

    k_dynamic: np.ndarray  # (scenario, parameter)
    k_steady: np.ndarray
    x0: np.ndarray  # (scenario, state), NaN where the table gives none
    x_start: np.ndarray  # (scenario, state)
    steps: list[np.ndarray]  # ends of the accepted steps
    step_x: list[np.ndarray]
    ok: np.ndarray
    # None with `start: initial_state`:
    x_rest: np.ndarray | None  # steady states, (scenario, state)
    conserved: np.ndarray | None  # (scenario, state, state)

    def only(self, rows: np.ndarray) -> Scenarios:
        """Returns all scenarios, with `ok` left to those of a mask."""
        return replace(self, ok=self.ok & rows)

    def take(self, rows: np.ndarray) -> Scenarios:
        """Returns some of the scenarios."""
        return Scenarios(
            self.k_dynamic[rows],
            self.k_steady[rows],
            self.x0[rows],
            self.x_start[rows],
            [self.steps[r] for r in rows],
            [self.step_x[r] for r in rows],
            self.ok[rows],
            None if self.x_rest is None else self.x_rest[rows],
            None if self.conserved is None else self.conserved[rows],
        )

    def on(self, steps: list[np.ndarray]) -> Scenarios:
        """Returns the same on other steps, whose states are not known yet."""
        return replace(self, steps=steps, step_x=[np.full((len(s), self.x_start.shape[1]), np.nan) for s in steps])


class GradientProblem:
    """The compiled gradient stage of one variant."""

    def __init__(
        self,
        cls: type[Model],
        field: Field,
        model: Model,
        options: Mapping[str, Any],
        save_times: Sequence[float],
        steady: SteadyProblem | None,
    ) -> None:
        """- `options`: the variant's solver, nonlinear, controller, segments, max_steps, and `gradient`.
        - `save_times`: increasing.
        - `steady`: None with `start: initial_state`.
        """
        self.cls, self.field, self.model, self.options, self.steady = cls, field, model, options, steady
        self.n = len(cls.states)
        self.dtype = float_type()
        self.times = row_times(jump_times_of(field), save_times, self.dtype)
        self.replayer = make_replayer(field, options, self.n)
        self.weights = n_weights(model)
        gradient = options["gradient"]
        self.methods = list(gradient["methods"])
        names = list(cls.parameters)
        wrt = set(gradient["wrt"])
        estimated = [i for i, name in enumerate(names) if cls.estimated is None or name in cls.estimated]
        self.columns: list[tuple[str, int]] = []
        if "dynamic" in wrt:
            self.columns += [("dynamic", i) for i in estimated]
        if "steady" in wrt and steady is not None:
            self.columns += [("steady", i) for i in estimated]
        if "network" in wrt and self.weights:
            self.columns += [("network", i) for i in range(gradient["directions"])]
        self.labels = [f"network[{i}]" if kind == "network" else f"{names[i]}@{kind}" for kind, i in self.columns]
        # Unit vectors, so that a directional derivative compares with the gradient's norm.
        rng = np.random.Generator(np.random.PCG64(gradient["seed"]))
        directions = rng.standard_normal((gradient["directions"], self.weights))
        norms = np.linalg.norm(directions, axis=1, keepdims=True)
        self.directions = directions / np.where(norms > 0, norms, 1)
        self.initial, self.onset = InitialState(cls), StartOfDynamics(cls)
        self._loss = self._make_loss()
        self._loss_tangents: Any = eqx.filter_jit(jax.vmap(self.loss_tangent, in_axes=(None, 0, 0, 0, None, None)))

    # -- loss and start -------------------------------------------------------------------------------

    def _make_loss(self) -> Callable[..., Any]:
        times = jnp.asarray(self.times)
        call = member(self.cls, "loss", ())

        def loss(weights, rows, k, static):
            return call(eqx.combine(weights, static), times, rows, k)

        def both(model, rows, k):
            weights, static = eqx.partition(model, eqx.is_inexact_array)
            value, (gw, gx, gk) = jax.value_and_grad(loss, argnums=(0, 1, 2))(weights, rows, k, static)
            return value, gx, gk, flatten(gw).astype(k.dtype)

        return eqx.filter_jit(jax.vmap(both, in_axes=(None, 0, 0)))

    def saved(self, ends: Sequence[np.ndarray], steps: Sequence[np.ndarray], x_start: np.ndarray) -> np.ndarray:
        """Returns the states at the save times, shape (item, time, state), from those at the ends of the steps.

        - `ends`, `steps`: of each item arrays (step, state) and (step,).
        - `x_start`: shape (item, state).
        """
        rows = np.full((len(ends), len(self.times), self.n), np.nan)
        # Items next to one scenario share its steps.
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for times in steps:
            if id(times) not in found:
                index = save_index(np.asarray(times, self.dtype), self.times)
                found[id(times)] = np.flatnonzero(index >= 0), index[index >= 0]
        if len(ends):
            at, to = zip(*(found[id(times)] for times in steps), strict=True)
            item = np.repeat(np.arange(len(ends)), [len(a) for a in at])
            first = np.concatenate([[0], np.cumsum([len(x) for x in ends])])
            rows[item, np.concatenate(to)] = np.concatenate(ends)[first[item] + np.concatenate(at)]
        if self.times[0] == 0:
            rows[:, 0] = x_start
        return rows

    # -- gradients ------------------------------------------------------------------------------------

    def from_start(self, data: Scenarios, gx: np.ndarray, gk: np.ndarray, gw: np.ndarray, jitter: int = 0):
        """Carries the cotangent of the start state on into parameters; returns dynamic, steady and weight gradients."""
        gs = np.zeros_like(gk)
        if self.steady is None:
            more_k, more_w = self.initial.adjoint(self.model, data.k_dynamic, data.x0, gx)
            gk = gk + more_k
        else:
            assert data.x_rest is not None and data.conserved is not None
            if self.onset.given:
                gx, more_k, more_w = self.onset.adjoint(self.model, data.x_rest, data.k_dynamic, gx, jitter)
                gk, gw = gk + more_k, gw + more_w
            at = (data.x_rest, data.k_steady, data.x0, data.conserved)
            gs, more_w = self.steady.adjoint(self.model, *at, gx, jitter)
        return gk, gs, gw + more_w

    def at_rest(self, model: Model, data: Scenarios) -> np.ndarray:
        """Returns the steady states next to those of `data`, under its parameters, shape (scenario, state)."""
        assert self.steady is not None and data.x_rest is not None and data.conserved is not None
        return self.steady.reroot(model, data.x_rest, data.k_steady, data.x0, data.conserved)

    def starts(self, model: Model, data: Scenarios) -> np.ndarray:
        """Returns the starts of the dynamics under the parameters of `data`, shape (scenario, state)."""
        if self.steady is None:
            return self.initial.value(model, data.k_dynamic, data.x0)
        return self.onset.value(model, self.at_rest(model, data), data.k_dynamic)

    def replay(self, data: Scenarios) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Returns loss, deviation and gradients by the discrete adjoint, and the stages for the check.

        Keys: `loss`, `deviation` (scenario,), `rows`, `loss_slope` (scenario, time, state), `dynamic`, `steady`
        (scenario, parameter), `network` (scenario, weight).
        """
        ends, stages = self.replayer.forward(self.model, data.x_start, data.k_dynamic, data.steps)
        deviation = np.array(
            [
                np.max(np.abs(e - r) / tolerance(self.options["controller"], r), initial=0.0)
                for e, r in zip(ends, data.step_x, strict=True)
            ]
        )
        rows = self.saved(ends, data.steps, data.x_start)
        return {"rows": rows, "deviation": deviation, **self.adjoint(data, stages, rows)}, stages

    def adjoint(
        self, data: Scenarios, stages: list[np.ndarray], rows: np.ndarray, jitter: int = 0
    ) -> dict[str, np.ndarray]:
        """Returns loss and gradients, as `replay`, from its stages and rows.

        - `jitter`: 0, or the seed of changes of the size of rounding (`linalg.jitter`).
        """
        loss, lx, gx, gk, gw = self.to_start(data.k_dynamic, data.steps, stages, rows, jitter)
        dynamic, steady, network = self.from_start(data, gx, gk, gw, jitter)
        return {"loss": loss, "loss_slope": lx, "dynamic": dynamic, "steady": steady, "network": network}

    def to_start(
        self, k: np.ndarray, steps: list[np.ndarray], stages: list[np.ndarray], rows: np.ndarray, jitter: int = 0
    ) -> tuple[np.ndarray, ...]:
        """Returns the loss, its slope, and its derivatives by start state, k and weights with the others held.

        - `k`, `steps`: as `k_dynamic` and `steps` of `Scenarios`; the other arguments as those of `adjoint`.

        Shapes (scenario,), (scenario, time, state), (scenario, state), (scenario, parameter) and (scenario, weight).
        """
        loss, lx, lk, lw = batched(self._loss, self.model, rows, k)
        injected = [self.injected(ends, slope) for ends, slope in zip(steps, lx, strict=True)]
        gx, gk, gw = self.replayer.backward(self.model, k, steps, stages, injected, self.weights, jitter)
        if self.times[0] == 0:
            gx = gx + lx[:, 0]
        return loss, lx, gx, gk + lk, gw + lw

    def injected(self, steps: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Returns what the loss adds to the cotangent at each step's end, shape (step, state).

        - `slope`: the loss's derivative by the states at the save times, shape (time, state).
        """
        index = save_index(np.asarray(steps, self.dtype), self.times)
        return np.where((index >= 0)[:, None], slope[np.maximum(index, 0)], 0.0)

    def tangents(self, data: Scenarios, stages: list[np.ndarray], x: np.ndarray, jitter: int = 0) -> np.ndarray:
        """Returns the derivatives by the tangent on the recorded steps (method `forward`), shape (scenario, wrt).

        - `stages`, `x`: as `replay` returned them, the latter as `rows`.
        - `jitter`: as in `adjoint`.
        """
        total = len(data.steps)
        dk, steady, dw = self.moves()
        if self.steady is None:
            dx = self.initial.tangent(self.model, data.k_dynamic, data.x0, dk, dw)
        else:
            assert data.x_rest is not None and data.conserved is not None
            at = (data.x_rest, data.k_steady, data.x0, data.conserved)
            dx = self.steady.tangent(self.model, *at, steady, dw, jitter)
            dx = self.onset.tangent(self.model, data.x_rest, data.k_dynamic, dx, dk, dw, jitter)
        ends = self.replayer.tangent(self.model, data.k_dynamic, data.steps, stages, dx, dk, dw, jitter)
        rows = np.zeros((total, len(self.columns), len(self.times), self.n))
        for i, steps in enumerate(data.steps):
            index = save_index(np.asarray(steps, self.dtype), self.times)
            rows[i][:, index[index >= 0]] = np.swapaxes(ends[i][index >= 0], 0, 1)
            if self.times[0] == 0:
                rows[i][:, 0] = dx[i]
        dk, dw = jnp.asarray(dk, self.dtype), jnp.asarray(dw, self.dtype)
        call_rows = lambda model, *rows: self._loss_tangents(model, *rows, dk, dw)
        return batched(call_rows, self.model, x, data.k_dynamic, rows)

    def moves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what each of the columns moves by 1: dynamic and steady parameters, and weights.

        Shapes (wrt, parameter), (wrt, parameter) and (wrt, weight).
        """
        dynamic, steady = np.zeros((2, len(self.columns), len(self.cls.parameters)))
        weights = np.zeros((len(self.columns), self.weights))
        for j, (kind, i) in enumerate(self.columns):
            if kind == "network":
                weights[j] = self.directions[i]
            else:
                (dynamic if kind == "dynamic" else steady)[j, i] = 1
        return dynamic, steady, weights

    def loss_tangent(self, model: Model, rows: Any, k: Any, drows: Any, dk: Any, dweights: Any) -> jax.Array:
        """Returns the derivatives of one scenario's loss in some directions, shape (direction,): traceable.

        - `rows`, `drows`: states (time, state), and their derivatives (direction, time, state).
        - `dk`, `dweights`: shape (direction, parameter) and (direction, weight).
        """
        call, times = member(self.cls, "loss", ()), jnp.asarray(self.times)
        loss = lambda w, rows, k: call(unflatten(model, w), times, rows, k)
        at = (flatten(model).astype(k.dtype), rows, k)
        return jax.vmap(lambda *d: jax.jvp(loss, at, d)[1])(dweights, drows, dk)

    def columns_of(self, gradient: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the derivatives in the order of `labels`, shape (scenario, wrt)."""
        out = np.zeros((len(gradient["dynamic"]), len(self.columns)))
        for j, (kind, i) in enumerate(self.columns):
            if kind == "network":
                # Row by row: what BLAS makes of a row depends on how many there are.
                out[:, j] = np.sum(gradient["network"] * self.directions[i], axis=1)
            else:
                out[:, j] = gradient[kind][:, i]
        return out

    def scales(self, data: Scenarios) -> np.ndarray:
        """Returns the size of what each derivative is taken by, shape (scenario, wrt).

        Of a parameter its magnitude, 1 where it is 0 and has none; of a direction of the weights their norm, so that
        a step changes every weight by a share of its typical size.
        """
        norm = float(np.sqrt(np.sum(np.asarray(flatten(self.model), np.float64) ** 2))) if self.weights else 0.0
        out = np.full((len(data.k_dynamic), len(self.columns)), max(norm, 1e-3))
        for j, (kind, i) in enumerate(self.columns):
            if kind != "network":
                k = np.abs((data.k_dynamic if kind == "dynamic" else data.k_steady)[:, i])
                out[:, j] = np.where(k > 1e-8, k, 1.0)
        return out

    # -- the check ------------------------------------------------------------------------------------

    def differences(
        self,
        data: Scenarios,
        replayed: Mapping[str, np.ndarray],
        stages: list[np.ndarray],
        done: Callable[[int], object] = lambda count: None,
    ) -> dict[str, np.ndarray]:
        """Returns `fd`, `fd_error`, `fd_step`, `fd_left`, `fd_right`, `kink` (scenario, wrt) and the sweep.

        The sweep is `fd_sweep`, `fd_sweep_width` (scenario, wrt, width). `done` is called after each width, with the
        number of scenarios that were replayed.

        - `replayed`, `stages`: as `replay` returned them.

        Every function value is a replay on the recorded steps, its stages solved to rounding from the recorded
        ones, with the steady state solved anew from the recorded one.
        """
        out: dict[str, np.ndarray] = {}
        loss, slopes = replayed["loss"], self.columns_of(replayed)
        for rows in self.replayer.portions(data.steps):
            part = self._differences(data.take(rows), loss[rows], slopes[rows], [stages[i] for i in rows], done)
            for name, value in part.items():
                out.setdefault(name, np.empty((len(loss), *value.shape[1:]), value.dtype))[rows] = value
        return out

    def _differences(self, data, loss, slopes, stages, done) -> dict[str, np.ndarray]:
        near = self.replayer.linearise(self.model, data.k_dynamic, data.steps, stages)
        scale = self.scales(data)
        noise = self._noise(data, loss, near)
        found = self._sweep(data, loss, near, noise, widths(scale, self.dtype), done=done)
        # Where the function bends within the narrowest width, as a limit cycle does whose steps are frozen, further
        # sweeps go on from there. Only their narrowest pair is free of bends, if any is. The same where the derivative
        # is another one: many small kinks, of a relu that stages pass one by one, look like a smooth function.
        for start in FURTHER:
            narrower = widths(scale, self.dtype, start)
            with np.errstate(all="ignore"):
                most = largest(found["fd"], scale) / scale
                eps = float(np.finfo(self.dtype).eps)
                hopeless = eps * np.abs(loss)[:, None] / narrower[:, :, -1] > found["fd_error"]
                wide = coarse(found["fd_error"], np.abs(found["fd"]), most, self.dtype)
                wide |= np.abs(found["fd"] - slopes) > found["fd_error"]
                open_ = wide & ~hopeless & ~found["kink"]
            rows = np.flatnonzero(np.any(open_, axis=1))
            if not len(rows):
                break
            # Along all columns, since the noise is measured on all of them: those that are open in other scenarios only
            # would make a bound depend on its neighbours.
            again = self._sweep(data.take(rows), loss[rows], near.take(rows), noise[rows], narrower[rows], 1)
            before = np.where(np.isnan(found["fd_error"][rows]), np.inf, found["fd_error"][rows])
            better = open_[rows] & (again["fd_error"] < before)
            for name, value in again.items():
                mask = better.reshape(*better.shape, *[1] * (value.ndim - 2))
                found[name][rows] = np.where(mask, value, found[name][rows])
        return found

    def _noise(self, data: Scenarios, loss: np.ndarray, near: Linearised) -> np.ndarray:
        """Returns what changes of the size of rounding at the end of each step do to the loss, shape (scenario,).

        A state that sits on an equilibrium to the last bit stays there whatever is perturbed, and its noise does not
        show in the values; a step beyond the stability limit of an explicit method amplifies it all the same.
        """
        rows = np.arange(len(loss))
        ends, _ = self.replayer.perturbed(self.model, data.x_start, data.k_dynamic, rows, near, 1)
        return np.abs(self._losses(data, ends, rows, self.model, data.x_start, data.k_dynamic) - loss)

    def _sweep(
        self,
        data: Scenarios,
        loss: np.ndarray,
        near: Linearised,
        noise: np.ndarray,
        sweep: np.ndarray,
        pairs: int = NOISE_PAIRS,
        done: Callable[[int], object] = lambda count: None,
    ) -> dict[str, np.ndarray]:
        # `differences` by one sweep (scenario, wrt, width).
        shape = (len(loss), len(self.columns))
        out = {name: np.full(shape, np.nan) for name in ("fd", "fd_error", "fd_step", "fd_left", "fd_right")}
        out |= {name: np.full((*shape, WIDTHS), np.nan) for name in ("fd_sweep", "fd_sweep_width")}
        out["kink"] = np.zeros(shape, bool)
        h, values = self._values(data, near, sweep, done)
        eps = float(np.finfo(self.dtype).eps)
        samples = [Samples(h[c], values[c, 0], values[c, 1], loss, eps, noise) for c in range(len(self.columns))]
        others = np.array([s.noise(pairs) for s in samples])
        for j, sample in enumerate(samples):
            found = estimate(sample, others, pairs)
            for name in ("value", "error", "step", "left", "right"):
                out["fd" if name == "value" else f"fd_{name}"][:, j] = getattr(found, name)
            out["fd_sweep"][:, j], out["fd_sweep_width"][:, j] = found.quotients, sample.h
            out["kink"][:, j] = found.kink
        return out

    def losses(self, model: Model, rows: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Returns the losses, shape (item,), of trajectories (item, time, state) under parameters (item, parameter)."""
        return batched(self._loss, model, rows, k)[0]

    def _losses(self, data: Scenarios, ends: list[np.ndarray], rows: np.ndarray, model: Model, x, k) -> np.ndarray:
        """Returns the losses of items (scenario `rows[i]`, start `x[i]`, parameters `k[i]`) from their states."""
        return self.losses(model, self.saved(ends, [data.steps[r] for r in rows], x), k)

    def shifted(self, data: Scenarios, kind: str, i: int, by: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns start states, dynamic parameters and weights with one of the columns moved.

        - `kind`, `i`: an entry of `columns`.
        - `by`: how far, shape (scenario,); the same for all where weights are moved.
        """
        k, flat = data.k_dynamic.copy(), np.asarray(flatten(self.model), np.float64)
        ks, model = data.k_steady.copy(), self.model
        if kind == "network":
            flat = flat + by[0] * self.directions[i]
            model = unflatten(self.model, jnp.asarray(flat, self.dtype))
        else:
            (k if kind == "dynamic" else ks)[:, i] += by
        return self.starts(model, replace(data, k_dynamic=k, k_steady=ks)), k, flat

    def _values(
        self,
        data: Scenarios,
        near: Linearised,
        sweep: np.ndarray,
        done: Callable[[int], object],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the widths as floating point makes them, (column, scenario, width), and the losses at them.

        Those have shape (column, sign, scenario, width). All columns go together, width by width: the narrower one is,
        the fewer iterations a stage takes, and all lanes wait for the slowest.
        """
        total, signs = len(data.steps), np.array([1.0, -1.0])
        h = np.moveaxis(sweep, 1, 0).copy()
        values = np.empty((len(h), 2, total, h.shape[2]))
        of = {kind: [(c, i) for c, (found, i) in enumerate(self.columns) if found == kind] for kind in KINDS}
        moved = {}
        for kind in ("dynamic", "steady"):
            for c, i in of[kind]:
                base = np.asarray((data.k_dynamic if kind == "dynamic" else data.k_steady)[:, i], self.dtype)
                both = (base[:, None] + signs[:, None, None] * h[c]).astype(self.dtype)
                h[c] = (both[0].astype(np.float64) - both[1].astype(np.float64)) / 2
                moved[c] = both
        parameters = of["dynamic"] + of["steady"]
        for w in range(h.shape[2]):
            if parameters:
                to = np.stack([moved[c][:, :, w] for c, _ in parameters])
                at = [c for c, _ in parameters]
                values[at, :, :, w] = self._at_parameters(data, near, of["dynamic"], of["steady"], to)
            if of["network"]:
                at = [c for c, _ in of["network"]]
                # A direction's width is that of the weights' norm, the same in all scenarios.
                values[at, :, :, w] = self._at_weights(data, near, [i for _, i in of["network"]], h[at, 0, w])
            done(total)
        return h, values

    def _at_parameters(self, data, near, dynamic, steady, to) -> np.ndarray:
        # Losses (column, sign, scenario) with one parameter each at `to`, (column, sign, scenario): the dynamic ones,
        # then the steady ones.
        total = len(data.steps)
        rows = np.tile(np.arange(total), 2 * len(to))
        k = data.k_dynamic[rows]
        split = 2 * total * len(dynamic)
        each = k.reshape(len(to), 2, total, -1)
        for c, (_, i) in enumerate(dynamic):
            each[c, :, :, i] = to[c]
        if self.steady is None:
            x = self.initial.value(self.model, k, data.x0[rows])
        else:
            assert data.x_rest is not None
            rest = data.x_rest[rows]
            if steady:
                late = data.take(rows[split:])
                each = late.k_steady.reshape(len(steady), 2, total, -1)
                for c, (_, i) in enumerate(steady):
                    each[c, :, :, i] = to[len(dynamic) + c]
                rest[split:] = self.at_rest(self.model, late)
            x = self.onset.value(self.model, rest, k)
        ends, _ = self.replayer.perturbed(self.model, x, k, rows, near)
        return self._losses(data, ends, rows, self.model, x, k).reshape(to.shape)

    def _at_weights(self, data, near, directions, widths) -> np.ndarray:
        # Losses (direction, sign, scenario) with the weights moved along each direction, by its width.
        total = len(data.steps)
        flat = np.asarray(flatten(self.model), np.float64)
        weights = [
            flat + s * w * self.directions[i] for i, w in zip(directions, widths, strict=True) for s in (1.0, -1.0)
        ]
        models = [unflatten(self.model, jnp.asarray(p, self.dtype)) for p in weights]
        starts = [self.starts(m, data) for m in models]
        rows, of = np.tile(np.arange(total), len(models)), np.repeat(np.arange(len(models)), total)
        ends, _ = self.replayer.perturbed(
            self.model, np.concatenate(starts), data.k_dynamic[rows], rows, near, weights=np.stack(weights), of=of
        )
        out = []
        for m, (model, x) in enumerate(zip(models, starts, strict=True)):
            mine = ends[m * total : (m + 1) * total]
            out.append(self._losses(data, mine, np.arange(total), model, x, data.k_dynamic))
        return np.stack(out).reshape(len(directions), 2, total)


def largest(derivatives: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns each scenario's largest finite derivative, multiplied with its scale, shape (scenario, 1)."""
    scaled = np.abs(np.where(np.isfinite(derivatives), derivatives, 0)) * scale
    return np.max(scaled, axis=1, keepdims=True, initial=0)


def load_records(dynamics: xr.Dataset) -> list[Record]:
    """Returns the recorded attempts and steps of each scenario, from `dynamics.nc`."""
    attempts, steps = (list(pairwise(ragged(dynamics, f"{name}_count"))) for name in ("attempt", "step"))
    error = np.where(dynamics["attempt_finite"].values == 1, dynamics["attempt_error"].values, np.inf)
    values = {name: dynamics[name].values for name in ("attempt_start", "attempt_end", "step_time", "step_x")}
    accepted, status = dynamics["attempt_accepted"].values.astype(bool), dynamics["status"].values
    return [
        Record(
            status=int(status[i]),
            start=values["attempt_start"][slice(*attempts[i])],
            end=values["attempt_end"][slice(*attempts[i])],
            accepted=accepted[slice(*attempts[i])],
            error=error[slice(*attempts[i])],
            step_time=values["step_time"][slice(*steps[i])],
            step_x=values["step_x"][slice(*steps[i])],
        )
        for i in range(len(status))
    ]


def from_records(
    chunk: Chunk,
    x_start: np.ndarray,
    records: Sequence[Record],
    x_rest: np.ndarray | None,
    conserved: np.ndarray | None,
) -> Scenarios:
    """Returns a chunk's scenarios with their recorded steps.

    - `x_start`: shape (scenario, state).
    - `x_rest`, `conserved`: as `x` and `conserved_basis` in `steady_state.nc`; None with `start: initial_state`.
    """
    return Scenarios(
        k_dynamic=chunk.k_dynamic,
        k_steady=chunk.k_steady,
        x0=chunk.x0,
        x_start=x_start,
        steps=[r.step_time for r in records],
        step_x=[r.step_x for r in records],
        ok=np.array([r.status == SUCCESSFUL for r in records]),
        x_rest=x_rest,
        conserved=conserved,
    )
