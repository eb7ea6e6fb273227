"""Gradients of the loss by each method, and the check that gives each its verdict."""

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
from retrograd.differences import WIDTHS, Samples, estimate, widths
from retrograd.dynamics import save_index
from retrograd.plugins import Field, member
from retrograd.replay import Replayer
from retrograd.schema import REASONS, VERDICTS
from retrograd.starts import InitialState
from retrograd.steady import SteadyProblem
from retrograd.store import ragged
from retrograd.weights import flatten, n_weights, unflatten

VERIFIED, REFUTED, INCONCLUSIVE, NONFINITE, SKIPPED = range(len(VERDICTS))
# Of a scenario's verdicts the worst counts, in this order.
WORST_FIRST = (NONFINITE, REFUTED, INCONCLUSIVE, SKIPPED, VERIFIED)

# A check whose bound is wider than this share of the derivative says nothing about it.
RESOLUTION = 1e-2

# Share of the inner tolerance by which stages solved to it move a derivative: on the stiff grid at most 1.2e-3.
INNER_SHARE = 1e-2

# Bound on the error over the difference to steps half as long: 2 for a method of first order, 1.03 for one of fifth.
REFINED = 2.0
# Share of a scenario's largest difference that each of its derivatives, and each of its states over time, is given.
BESIDE = 0.05


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
    conserved: np.ndarray | None  # (scenario, state, state), None with `start: initial_state`

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
            None if self.conserved is None else self.conserved[rows],
        )


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
        self.times = np.asarray(save_times, self.dtype)
        self.replayer = Replayer(field, options, self.n)
        self.weights = n_weights(model)
        parameters = len(cls.parameters)
        self.network_replayer = Replayer(
            lambda model, t, x, kw: field(unflatten(model, kw[parameters:]), t, x, kw[:parameters]),
            options,
            self.n,
        )
        gradient = options["gradient"]
        self.methods = list(gradient["methods"])
        names = list(cls.parameters)
        wrt = set(gradient["wrt"])
        self.columns: list[tuple[str, int]] = []
        if "dynamic" in wrt:
            self.columns += [("dynamic", i) for i in range(len(names))]
        if "steady" in wrt and steady is not None:
            self.columns += [("steady", i) for i in range(len(names))]
        if "network" in wrt and self.weights:
            self.columns += [("network", i) for i in range(gradient["directions"])]
        self.labels = [f"network[{i}]" if kind == "network" else f"{names[i]}@{kind}" for kind, i in self.columns]
        # Unit vectors, so that a directional derivative compares with the gradient's norm.
        rng = np.random.Generator(np.random.PCG64(gradient["seed"]))
        directions = rng.standard_normal((gradient["directions"], self.weights))
        norms = np.linalg.norm(directions, axis=1, keepdims=True)
        self.directions = directions / np.where(norms > 0, norms, 1)
        self.initial = InitialState(cls)
        self._loss = self._make_loss()

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

    def _rows(self, ends: np.ndarray, steps: np.ndarray, x_start: np.ndarray) -> np.ndarray:
        rows = np.full((len(self.times), self.n), np.nan)
        index = save_index(np.asarray(steps, self.dtype), self.times)
        rows[index[index >= 0]] = ends[index >= 0]
        if self.times[0] == 0:
            rows[0] = x_start
        return rows

    # -- gradients ------------------------------------------------------------------------------------

    def from_start(self, data: Scenarios, gx: np.ndarray, gk: np.ndarray, gw: np.ndarray):
        """Carries the cotangent of the start state on into parameters; returns dynamic, steady and weight gradients."""
        gs = np.zeros_like(gk)
        if self.steady is None:
            more_k, more_w = self.initial.adjoint(self.model, data.k_dynamic, data.x0, gx)
            gk = gk + more_k
        else:
            assert data.conserved is not None
            gs, more_w = self.steady.adjoint(self.model, data.x_start, data.k_steady, data.x0, data.conserved, gx)
        return gk, gs, gw + more_w

    def replay(self, data: Scenarios) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Returns loss, deviation and gradients by the discrete adjoint, and the stages for the check.

        Keys: `loss`, `deviation` (scenario,), `rows` (scenario, time, state), `dynamic`, `steady` (scenario,
        parameter), `network` (scenario, weight).
        """
        ends, stages = self.replayer.forward(self.model, data.x_start, data.k_dynamic, data.steps)
        c = self.options["controller"]
        deviation = np.array(
            [
                np.max(np.abs(e - r) / (c["atol"] + c["rtol"] * np.abs(r)), initial=0.0)
                for e, r in zip(ends, data.step_x, strict=True)
            ]
        )
        rows = np.stack([self._rows(e, s, x) for e, s, x in zip(ends, data.steps, data.x_start, strict=True)])
        loss, lx, lk, lw = batched(self._loss, self.model, rows, data.k_dynamic)
        injected = []
        for i, steps in enumerate(data.steps):
            index = save_index(np.asarray(steps, self.dtype), self.times)
            injected.append(np.where((index >= 0)[:, None], lx[i][np.maximum(index, 0)], 0.0))
        gx, gk, gw = self.replayer.backward(self.model, data.k_dynamic, data.steps, stages, injected, self.weights)
        if self.times[0] == 0:
            gx = gx + lx[:, 0]
        dynamic, steady, network = self.from_start(data, gx, gk + lk, gw + lw)
        out = {
            "loss": loss,
            "rows": rows,
            "deviation": deviation,
            "dynamic": dynamic,
            "steady": steady,
            "network": network,
        }
        return out, stages

    def tangents(self, data: Scenarios, stages: list[np.ndarray], x: np.ndarray) -> np.ndarray:
        """Returns the derivatives by the tangent on the recorded steps (method `forward`), shape (scenario, wrt).

        - `stages`, `x`: as `replay` returned them, the latter as `rows`.
        """
        total, names = len(data.steps), len(self.cls.parameters)
        dk, dw = np.zeros((len(self.columns), names)), np.zeros((len(self.columns), self.weights))
        steady = np.zeros_like(dk)
        for j, (kind, i) in enumerate(self.columns):
            if kind == "network":
                dw[j] = self.directions[i]
            else:
                (dk if kind == "dynamic" else steady)[j, i] = 1
        if self.steady is None:
            dx = self.initial.tangent(self.model, data.k_dynamic, data.x0, dk, dw)
        else:
            assert data.conserved is not None
            at = (data.x_start, data.k_steady, data.x0, data.conserved)
            dx = self.steady.tangent(self.model, *at, steady, dw)
        ends = self.replayer.tangent(self.model, data.k_dynamic, data.steps, stages, dx, dk, dw)
        rows = np.zeros((total, len(self.columns), len(self.times), self.n))
        for i, steps in enumerate(data.steps):
            index = save_index(np.asarray(steps, self.dtype), self.times)
            rows[i][:, index[index >= 0]] = np.swapaxes(ends[i][index >= 0], 0, 1)
            if self.times[0] == 0:
                rows[i][:, 0] = dx[i]
        call = member(self.cls, "loss", ())
        times = jnp.asarray(self.times)

        def moved(model, rows, k, drows, dk, dw):
            loss = lambda w, rows, k: call(unflatten(model, w), times, rows, k)
            at = (flatten(model).astype(k.dtype), rows, k)
            return jax.vmap(lambda *d: jax.jvp(loss, at, d)[1])(dw, drows, dk)

        lanes: Any = eqx.filter_jit(jax.vmap(moved, in_axes=(None, 0, 0, 0, None, None)))
        dk, dw = jnp.asarray(dk, self.dtype), jnp.asarray(dw, self.dtype)
        call_rows = lambda model, *rows: lanes(model, *rows, dk, dw)
        return batched(call_rows, self.model, x, data.k_dynamic, rows)

    def discretisation(
        self, data: Scenarios, replayed: Mapping[str, np.ndarray], scale: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns how far the solution of the ODE may be from the one on the recorded steps.

        - `replayed`: as `replay` returned it.
        - `scale`: as `scales` returned it.

        Keys: `loss_error` (scenario,), `x_error` (scenario, time, state), `ode_error` (scenario, wrt); NaN where
        the finer replay does not get through.

        On steps half as long the error is at most half, in whatever order the method converges there, so it is at most
        twice the difference (Richardson 1911, doi:10.1098/rsta.1911.0009). That can vanish by accident where the error
        changes its sign; so each quantity gets a share of the largest difference beside it.
        """
        part = data.take(np.arange(len(data.ok)))
        part.steps = [_halved(s) for s in data.steps]
        part.step_x = [np.full((len(s), self.n), np.nan) for s in part.steps]
        found, _ = self.replay(part)
        eps = 1e3 * float(np.finfo(self.dtype).eps)
        x, gradient = replayed["rows"], self.columns_of(replayed)
        moved = np.abs(found["rows"] - x)
        beside = np.max(moved, axis=1, keepdims=True, initial=0)
        slope = np.abs(self.columns_of(found) - gradient)
        largest = np.max(slope * scale, axis=1, keepdims=True, initial=0) / scale
        rounding = eps * _largest(gradient, scale) / scale
        return {
            "loss_error": REFINED * np.abs(found["loss"] - replayed["loss"]) + eps * np.abs(replayed["loss"]),
            "x_error": REFINED * (moved + BESIDE * beside) + eps * np.abs(x),
            "ode_error": REFINED * (slope + BESIDE * largest) + rounding,
        }

    def derive(
        self,
        method: str,
        data: Scenarios,
        replayed: Mapping[str, np.ndarray],
        stages: list[np.ndarray],
        scale: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns a method's derivatives and its own error in them, (scenario, wrt), and its gradient to the weights.

        - `replayed`, `stages`: as `replay` returned them.
        - `scale`: as `scales` returned it.

        The gradient to the weights, (scenario, weight), is NaN where the method forms derivatives in directions only.
        """
        none = np.full((len(data.ok), self.weights), np.nan)
        if method == "forward":
            ad = self.tangents(data, stages, replayed["rows"])
            return ad, own_error(method, ad, scale, self.options, self.dtype), none
        if method == "replay":
            ad = self.columns_of(replayed)
            return ad, own_error(method, ad, scale, self.options, self.dtype), replayed["network"]
        # Here, since these modules build on this one.
        from retrograd import peers

        if method == "backsolve":
            ad, error = peers.backsolve(self, data)
            # It is the derivative of the ODE that it approximates, not that of the numerical solution.
            return ad, error + self.discretisation(data, replayed, scale)["ode_error"], none
        gradient, steps = peers.checkpoint(self, data)
        ad = self.columns_of(gradient)
        error = own_error(method, ad, scale, self.options, self.dtype)
        error = error + self.step_choice(data, self.columns_of(replayed), steps)
        return ad, error, gradient["network"]

    def step_choice(self, data: Scenarios, replayed: np.ndarray, steps: list[np.ndarray]) -> np.ndarray:
        """Returns how far other steps move each derivative, shape (scenario, wrt).

        - `replayed`: the derivatives by replay on the recorded steps.
        - `steps`: the ends of the other steps.

        An adaptive solve that is differentiated chooses its steps itself; where rounding tips one of them, it is
        the derivative of another discrete solution than the recorded one, and both are right.
        """
        out = np.zeros_like(replayed)
        same = lambda i: len(steps[i]) == len(data.steps[i]) and np.array_equal(steps[i], data.steps[i])
        complete = lambda i: len(steps[i]) and steps[i][-1] == self.times[-1]
        rows = np.array([i for i in range(len(steps)) if complete(i) and not same(i)], int)
        if len(rows):
            part = data.take(rows)
            part.steps = [steps[i] for i in rows]
            part.step_x = [np.full((len(s), self.n), np.nan) for s in part.steps]
            out[rows] = np.abs(self.columns_of(self.replay(part)[0]) - replayed[rows])
        return out

    def columns_of(self, gradient: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the derivatives in the order of `labels`, shape (scenario, wrt)."""
        out = np.zeros((len(gradient["dynamic"]), len(self.columns)))
        for j, (kind, i) in enumerate(self.columns):
            if kind == "network":
                out[:, j] = gradient["network"] @ self.directions[i]
            else:
                out[:, j] = gradient[kind][:, i]
        return out

    def scales(self, data: Scenarios) -> np.ndarray:
        """Returns the size of what each derivative is taken by, shape (scenario, wrt).

        Of a parameter its magnitude, 1 where it is 0 and has none; of a direction of the weights their norm, so that
        a step changes every weight by a share of its typical size.
        """
        norm = float(np.linalg.norm(np.asarray(flatten(self.model), np.float64))) if self.weights else 0.0
        out = np.full((len(data.k_dynamic), len(self.columns)), max(norm, 1e-3))
        for j, (kind, i) in enumerate(self.columns):
            if kind != "network":
                k = np.abs((data.k_dynamic if kind == "dynamic" else data.k_steady)[:, i])
                out[:, j] = np.where(k > 1e-8, k, 1.0)
        return out

    # -- the check ------------------------------------------------------------------------------------

    def differences(
        self, data: Scenarios, loss: np.ndarray, stages: list[np.ndarray], done: Callable[[str], None]
    ) -> dict[str, np.ndarray]:
        """Returns `fd`, `fd_error`, `fd_step`, `fd_left`, `fd_right`, `kink` (scenario, wrt) and the sweep.

        The sweep is `fd_sweep`, `fd_sweep_width` (scenario, wrt, width).

        Every function value is a replay on the recorded steps, its stages solved to rounding from the recorded
        ones, with the steady state solved anew from the recorded one.
        """
        total, count = len(loss), len(self.columns)
        out = {name: np.full((total, count), np.nan) for name in ("fd", "fd_error", "fd_step", "fd_left", "fd_right")}
        out |= {name: np.full((total, count, WIDTHS), np.nan) for name in ("fd_sweep", "fd_sweep_width")}
        out["kink"] = np.zeros((total, count), bool)
        samples: list[Samples] = []
        near = self.replayer.linearise(self.model, data.k_dynamic, data.steps, stages)
        sweep = widths(self.scales(data), self.dtype)
        for j, (kind, i) in enumerate(self.columns):
            h = sweep[:, j]
            if kind == "network":
                values = self._perturbed_network(data, near, self.directions[i], h[0])
            else:
                base = data.k_dynamic[:, i] if kind == "dynamic" else data.k_steady[:, i]
                base = np.asarray(base, self.dtype)
                # The widths that floating point makes of them.
                plus, minus = (base[:, None] + h).astype(self.dtype), (base[:, None] - h).astype(self.dtype)
                h = (plus.astype(np.float64) - minus.astype(np.float64)) / 2
                values = self._perturbed_parameter(data, near, kind, i, plus, minus)
            samples.append(Samples(h, values[0], values[1], loss, float(np.finfo(self.dtype).eps)))
            done(self.labels[j])
        # All derivatives of a scenario are of one function, whose noise is known better from all than from each. The
        # median: a kink looks like noise, and belongs to the derivatives that cross it.
        noise = np.median([s.noise() for s in samples], axis=0) if samples else None
        for j, sample in enumerate(samples):
            found = estimate(sample, noise)
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
        table = [self._rows(e, data.steps[r], start) for e, r, start in zip(ends, rows, x, strict=True)]
        return self.losses(model, np.stack(table), k)

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
        if self.steady is None:
            return self.initial.value(model, k, data.x0), k, flat
        assert data.conserved is not None
        return self.steady.reroot(model, data.x_start, ks, data.x0, data.conserved), k, flat

    def _perturbed_parameter(self, data, near, kind, i, plus, minus) -> np.ndarray:
        total, count = plus.shape
        rows = np.repeat(np.arange(total), 2 * count)
        values = np.concatenate([plus, minus], axis=1).reshape(-1)
        k = data.k_dynamic[rows].copy()
        x = data.x_start[rows].copy()
        if kind == "dynamic":
            k[:, i] = values
            if self.steady is None:
                x = self.initial.value(self.model, k, data.x0[rows])
        else:
            assert self.steady is not None and data.conserved is not None
            ks = data.k_steady[rows].copy()
            ks[:, i] = values
            x = self.steady.reroot(self.model, x, ks, data.x0[rows], data.conserved[rows])
        ends = self.replayer.perturbed(self.model, x, k, rows, near)
        losses = self._losses(data, ends, rows, self.model, x, k).reshape(total, 2, count)
        return np.moveaxis(losses, 1, 0)

    def _perturbed_network(self, data, near, direction, h) -> np.ndarray:
        # The weights of a lane travel behind its parameters, so that lanes with other weights share a batch.
        total = len(data.steps)
        flat = np.asarray(flatten(self.model), np.float64)
        shifted = [flat + sign * width * direction for sign in (1.0, -1.0) for width in h]
        models = [unflatten(self.model, jnp.asarray(p, self.dtype)) for p in shifted]
        if self.steady is None:
            starts = [self.initial.value(m, data.k_dynamic, data.x0) for m in models]
        else:
            assert data.conserved is not None
            at = (data.x_start, data.k_steady, data.x0, data.conserved)
            starts = [self.steady.reroot(m, *at) for m in models]
        rows = np.tile(np.arange(total), len(models))
        weights = np.repeat(np.stack(shifted), total, axis=0)
        k = np.concatenate([data.k_dynamic[rows], weights], axis=1)
        ends = self.network_replayer.perturbed(self.model, np.concatenate(starts), k, rows, near)
        out = []
        for m, (model, x) in enumerate(zip(models, starts, strict=True)):
            mine = ends[m * total : (m + 1) * total]
            out.append(self._losses(data, mine, np.arange(total), model, x, data.k_dynamic))
        return np.stack(out, axis=1).reshape(total, 2, len(h)).transpose(1, 0, 2)


def _halved(ends: np.ndarray) -> np.ndarray:
    starts = np.concatenate([[0.0], ends[:-1]])
    middles = starts + (ends - starts) / 2
    # Steps of an ulp have no middle.
    return np.unique(np.concatenate([middles[(middles > starts) & (middles < ends)], ends]))


def own_error(
    method: str, ad: np.ndarray, scale: np.ndarray, options: Mapping[str, Any], dtype: np.dtype
) -> np.ndarray:
    """Returns the error that a method itself can bring into its derivatives, shape (scenario, wrt).

    - `ad`: the derivatives, shape (scenario, wrt).
    - `scale`: sizes of what they are taken by, same shape: derivatives compare after multiplication with it.

    Rounding, relative to the scenario's largest scaled derivative: sums over steps cancel. `checkpoint` in addition
    linearises stages that its inner iteration has solved to a tolerance only.
    """
    relative = 1e3 * float(np.finfo(dtype).eps)
    if method == "checkpoint":
        rtol = options["nonlinear"]["rtol"]
        relative += INNER_SHARE * (options["controller"]["rtol"] if rtol is None else rtol)
    return relative * _largest(ad, scale) / scale


def _largest(derivatives: np.ndarray, scale: np.ndarray) -> np.ndarray:
    scaled = np.abs(np.where(np.isfinite(derivatives), derivatives, 0)) * scale
    return np.max(scaled, axis=1, keepdims=True, initial=0)


def verdicts(
    ad: np.ndarray,
    ad_error: np.ndarray,
    fd: np.ndarray,
    fd_error: np.ndarray,
    kink: np.ndarray,
    scale: np.ndarray,
    dtype: np.dtype,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the verdict on each derivative and its reason, shape (scenario, wrt); arguments of the same shape.

    Verified where |ad - fd| is within the two error bounds, refuted where it is not. Inconclusive where the slopes to
    both sides differ, and where it is within bounds that are wider than `RESOLUTION` of the derivative and than what
    counts as zero beside the scenario's largest scaled derivative.
    """
    with np.errstate(invalid="ignore"):
        bound = fd_error + ad_error
        zero = 10 * np.sqrt(float(np.finfo(dtype).eps)) * _largest(fd, scale) / scale
        coarse = ~(bound <= np.maximum(RESOLUTION * np.maximum(np.abs(ad), np.abs(fd)), zero))
        # In order: the last that applies stands.
        cases = [
            (np.abs(ad - fd) <= bound, VERIFIED, "agrees"),
            (coarse, INCONCLUSIVE, "bound_too_wide"),
            (np.abs(ad - fd) > bound, REFUTED, "differs"),
            (~np.isfinite(fd), INCONCLUSIVE, "no_difference"),
            (kink, INCONCLUSIVE, "kink"),
            (~np.isfinite(ad), NONFINITE, "derivative_nonfinite"),
        ]
    verdict = np.full(ad.shape, SKIPPED, np.int8)
    reason = np.full(ad.shape, REASONS.index("not_formed"), np.int8)
    for where, code, name in cases:
        verdict[where], reason[where] = code, REASONS.index(name)
    return verdict, reason


def worst(table: np.ndarray) -> np.ndarray:
    """Returns the worst verdict along the last axis; skipped where there is none."""
    out = np.full(table.shape[:-1], SKIPPED, np.int8)
    for code in reversed(WORST_FIRST):
        out[np.any(table == code, axis=-1)] = code
    return out


def load_recorded(dynamics: xr.Dataset, steady: xr.Dataset | None, chunk: Chunk) -> Scenarios:
    """Returns a chunk's scenarios with their recorded steps, from `dynamics.nc` and `steady_state.nc`."""
    offsets = ragged(dynamics, "step_count")
    parts = [slice(a, b) for a, b in pairwise(offsets)]
    time, x = dynamics["step_time"].values, dynamics["step_x"].values
    return Scenarios(
        k_dynamic=chunk.k_dynamic,
        k_steady=chunk.k_steady,
        x0=chunk.x0,
        x_start=dynamics["x_start"].values,
        steps=[time[p] for p in parts],
        step_x=[x[p] for p in parts],
        ok=dynamics["status"].values == 0,
        conserved=None if steady is None else steady["conserved_basis"].values,
    )


def gradient_table(
    problem: GradientProblem, recorded: Scenarios, done: Callable[[int], None] = lambda count: None
) -> dict[str, np.ndarray]:
    """Returns the variables of `gradients.nc` for all scenarios; those that were not simulated are skipped, with NaN.

    - `done`: called with 1 after each derivative of the check.
    """
    total, wrt, methods = len(recorded.ok), len(problem.labels), len(problem.methods)
    nan = lambda *shape: np.full((total, *shape), np.nan)
    table: dict[str, np.ndarray] = {
        "loss": nan(),
        "loss_error": nan(),
        "x_error": nan(len(problem.times), problem.n),
        "replay_deviation": nan(),
        "ad": nan(methods, wrt),
        "ad_error": nan(methods, wrt),
        "ode_error": nan(wrt),
        "scale": nan(wrt),
        "fd": nan(wrt),
        "fd_error": nan(wrt),
        "fd_step": nan(wrt),
        "fd_left": nan(wrt),
        "fd_right": nan(wrt),
        "fd_sweep": nan(wrt, WIDTHS),
        "fd_sweep_width": nan(wrt, WIDTHS),
        "verdict": np.full((total, methods, wrt), SKIPPED, np.int8),
        "reason": np.full((total, methods, wrt), REASONS.index("not_formed"), np.int8),
        "gradient_network": nan(methods, problem.weights),
        "fd_free": nan(wrt),
        "fd_free_error": nan(wrt),
        "reference": nan(wrt),
        "reference_error": nan(wrt),
        "reference_verdict": np.full((total, wrt), SKIPPED, np.int8),
        "status": np.full((total, methods), SKIPPED, np.int8),
    }
    rows = np.flatnonzero(recorded.ok)
    if not len(rows):
        return table
    part = recorded.take(rows)
    replayed, stages = problem.replay(part)
    table["loss"][rows], table["replay_deviation"][rows] = replayed["loss"], replayed["deviation"]
    scale = problem.scales(part)
    table["scale"][rows] = scale
    for name, value in problem.discretisation(part, replayed, scale).items():
        table[name][rows] = value
    differences = problem.differences(part, replayed["loss"], stages, lambda label: done(1))
    kink = differences.pop("kink")
    for name, value in differences.items():
        table[name][rows] = value
    for m, method in enumerate(problem.methods):
        ad, error, network = problem.derive(method, part, replayed, stages, scale)
        found, reason = verdicts(ad, error, differences["fd"], differences["fd_error"], kink, scale, problem.dtype)
        table["ad"][rows, m], table["ad_error"][rows, m] = ad, error
        table["verdict"][rows, m], table["reason"][rows, m] = found, reason
        table["status"][rows, m] = worst(found)
        table["gradient_network"][rows, m] = network
    independent = independent_derivatives(problem, part, problem.columns_of(replayed), table["ode_error"][rows], scale)
    for name, value in independent.items():
        table[name][rows] = value
    return table


def independent_derivatives(
    problem: GradientProblem, data: Scenarios, replayed: np.ndarray, ode_error: np.ndarray, scale: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns `fd_free`, `reference`, their errors, and `reference_verdict`, (scenario, wrt), for some scenarios.

    - `replayed`, `ode_error`, `scale`: of the derivatives by replay.

    The scenarios are spread evenly over the job; the others have NaN.
    """
    from retrograd import peers
    from retrograd.reference import Reference

    none = np.full(replayed.shape, np.nan)
    out = {name: none.copy() for name in ("fd_free", "fd_free_error", "reference", "reference_error")}
    gradient = problem.options["gradient"]
    rows = _spread(len(data.ok), gradient["free_differences"])
    if len(rows) and problem.columns:
        out["fd_free"][rows], out["fd_free_error"][rows] = peers.free_differences(problem, data.take(rows))
    rows = _spread(len(data.ok), gradient["reference"])
    if len(rows) and problem.columns and problem.dtype == np.float64:
        out["reference"], out["reference_error"] = Reference(problem).derivatives(data, rows)
    bound = ode_error + own_error("replay", replayed, scale, problem.options, problem.dtype)
    agrees = verdicts(
        replayed, bound, out["reference"], out["reference_error"], np.zeros(none.shape, bool), scale, problem.dtype
    )[0]
    asked = np.isfinite(out["reference"])
    return out | {"reference_verdict": np.where(asked, agrees, SKIPPED)}


def _spread(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)) if count else np.zeros(0, int)
