"""The adaptive solve, forward only, with every attempt recorded.

diffrax provides the solver's step and the step-size controller; the loop around them is ours, for two reasons. A
`vmap` of diffrax's loop would copy the whole record on each iteration, and it can neither record rejected
attempts nor replace a lane that has finished. The test suite holds it equal to `diffrax.diffeqsolve`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from retrograd.api import Model
from retrograd.batches import float_type, lanes_of
from retrograd.jumps import jump_times_of, jumps_of, row_times
from retrograd.linalg import tolerance
from retrograd.plugins import Field
from retrograd.rosenbrock import Rodas5P, tableau_of
from retrograd.runge_kutta import RungeKutta
from retrograd.schema import DYNAMICS_STATUS

# Attempts between two looks from the host: long enough to hide the dispatch, short enough to refill lanes soon.
BLOCK = 64

# `dt0: null` does what diffrax 0.7.2 does: its choice of a first step does not recognise the term that diffeqsolve
# has wrapped, and falls back on this constant. Its overflow in stiff systems is what breaks gradients later.
FIRST_STEP = 0.01

SUCCESSFUL, MAX_STEPS, DT_MIN, NONFINITE, SKIPPED = range(len(DYNAMICS_STATUS))


# Iterations on a stage; a step that needs more is better made shorter.
NEWTON_STEPS = 10

# Settings of the solve that is taken where a variant's own is not asked for.
KVAERNO5 = {"solver": "Kvaerno5", "nonlinear": {"method": "newton", "rtol": None, "atol": None}}


class SegmentedController(diffrax.AbstractAdaptiveStepSizeController[Any, Any]):
    """A PID controller whose largest step depends on the segment of time that the step starts in."""

    controller: diffrax.PIDController
    until: jax.Array  # (segment,)
    dtmax: jax.Array  # (segment + 1,), the last one for what comes after

    @property
    def rtol(self):
        return self.controller.rtol

    @property
    def atol(self):
        return self.controller.atol

    @property
    def norm(self):
        return self.controller.norm

    def wrap(self, direction):
        return self

    def _at(self, t):
        return self.dtmax[jnp.searchsorted(self.until, t, side="right")]

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        next_t1, state = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return jnp.minimum(next_t1, t0 + self._at(t0)), state

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        keep, next_t0, next_t1, jump, state, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
        )
        return keep, next_t0, jnp.minimum(next_t1, next_t0 + self._at(next_t0)), jump, state, result


def make_solver(options: Mapping[str, Any]) -> Any:
    """Returns the diffrax solver of a variant, with its inner nonlinear solve if it has one."""
    tableau = tableau_of(options["solver"])
    if tableau.linearly_implicit:
        return Rodas5P()
    cls = getattr(diffrax, options["solver"])
    if tableau.explicit:
        return cls()
    nonlinear, controller = options["nonlinear"], options["controller"]
    rtol = controller["rtol"] if nonlinear["rtol"] is None else nonlinear["rtol"]
    atol = controller["atol"] if nonlinear["atol"] is None else nonlinear["atol"]
    kind = {"newton": optx.Newton, "chord": diffrax.VeryChord}[nonlinear["method"]]
    return cls(root_finder=kind(rtol=rtol, atol=atol, norm=optx.rms_norm))


def uses_own_step(options: Mapping[str, Any]) -> bool:
    """Returns whether a variant's steps are ours (`runge_kutta.py`) and not diffrax's."""
    return tableau_of(options["solver"]).implicit and options["nonlinear"]["method"] == "newton"


def longest_steps(options: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Returns the ends of the segments and the longest step in each, inf for any; the last one is for what comes after.

    In segments that name none, and after the last one, the controller's own dtmax holds.
    """
    segments, dtmax = options["segments"] or (), options["controller"]["dtmax"]
    own = np.inf if dtmax is None else dtmax
    return [s["until"] for s in segments], [*(own if s.get("dtmax") is None else s["dtmax"] for s in segments), own]


def make_controller(options: Mapping[str, Any], step_ends: np.ndarray) -> Any:
    """Returns the step-size controller of a variant; steps end at `step_ends` exactly, shape (time,)."""
    c = options["controller"]
    pid = diffrax.PIDController(
        rtol=c["rtol"],
        atol=c["atol"],
        pcoeff=c["pcoeff"],
        icoeff=c["icoeff"],
        dcoeff=c["dcoeff"],
        dtmax=None if options["segments"] else c["dtmax"],
    )
    inner: Any = pid
    ends, largest = longest_steps(options)
    if ends:
        # The base class's abstract attributes count as fields for the type checker; here they are properties.
        inner = SegmentedController(  # pyright: ignore[reportCallIssue]
            pid, jnp.asarray(ends, step_ends.dtype), jnp.asarray(largest, step_ends.dtype)
        )
        inside = [t for t in ends if t < step_ends[-1]]
        step_ends = np.union1d(step_ends, np.asarray(inside, step_ends.dtype))
    return diffrax.ClipStepSizeController(inner, step_ts=jnp.asarray(step_ends))


class _Lane(eqx.Module):
    t0: jax.Array
    t1: jax.Array
    x: jax.Array
    k: jax.Array
    solver_state: Any
    controller_state: Any
    attempts: jax.Array
    accepted: jax.Array
    status: jax.Array  # -1 while it runs
    # Derivatives of x and of the solver's state along one direction, where steps are chosen for these too.
    dx: jax.Array | None = None
    dstate: Any = None


class _Attempts(eqx.Module):
    start: jax.Array  # (attempt, lane)
    end: jax.Array
    accepted: jax.Array
    error: jax.Array
    x: jax.Array  # (attempt, lane, state)


@dataclass
class Record:
    """What was recorded of one scenario: attempts in order, and of each accepted one its end and state."""

    status: int = SKIPPED
    start: np.ndarray = field(default_factory=lambda: np.zeros(0))
    end: np.ndarray = field(default_factory=lambda: np.zeros(0))
    accepted: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    step_time: np.ndarray = field(default_factory=lambda: np.zeros(0))
    step_x: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def num_accepted(self) -> int:
        return int(np.sum(self.accepted))


class Integrator:
    """The compiled adaptive solve of one variant; runs any number of scenarios through a few lanes."""

    def __init__(
        self, field: Field, model: Model, options: Mapping[str, Any], save_times: Sequence[float], n: int
    ) -> None:
        """- `field`: f(model, t, x, k).
        - `options`: the variant's solver, nonlinear, controller, segments, max_steps.
        - `save_times`: increasing, the last one above 0; steps end there exactly, and jumps begin and end.
        - `n`: number of states.
        """
        self.dtype, self.lanes = float_type(), lanes_of(n)
        jumps = jumps_of(field)
        times = row_times(jump_times_of(field), save_times, self.dtype)
        self.stop = times[-1]
        own, sensitive = uses_own_step(options), options["controller"].get("sensitivities", False)
        linearly_implicit, solver = tableau_of(options["solver"]).linearly_implicit, make_solver(options)
        if sensitive and hasattr(solver, "scan_kind"):
            # diffrax's default loop over stages has no derivative forwards.
            solver = replace(solver, scan_kind="lax")
        step = (
            RungeKutta(field, options["solver"], options["controller"]["atol"], n, self.dtype, NEWTON_STEPS)
            if own
            else None
        )
        step_ends = times[times > 0]
        if jumps is not None:
            step_ends = np.union1d(step_ends, jumps.before(self.stop, self.dtype))
        controller = make_controller(options, step_ends)
        dt0 = options["controller"]["dt0"]
        max_steps = options["max_steps"]
        stop = jnp.asarray(self.stop)
        # Within a hundred ulp of the end a step is stretched to it: diffrax's rule, kept so that both loops agree.
        near = self.stop
        for _ in range(100):
            near = np.nextafter(near, -np.inf, dtype=self.dtype)

        def rate(t, x, args):
            model, k = args
            return field(model, t, x, k)

        term = diffrax.ODETerm(rate)
        order = solver.error_order(term)

        def state_at(model, t0, t1, x, k):
            # What the solver carries from step to step.
            if own:
                return rate(t0, x, (model, k))
            state = solver.init(term, t0, t1, x, (model, k))
            if state is None or linearly_implicit:
                return state
            # diffrax evaluates the first stage of every lane anew while *any* lane is at its first step, so
            # that one scenario changes the rounding of its neighbours. Given here, it never does.
            return (jnp.zeros((), bool), rate(t0, x, (model, k)))

        def start(model, x, k):
            return begin(model, jnp.zeros((), self.dtype), x, k, x * _mixed(x) if sensitive else None)

        def begin(model, t0, x, k, dx):
            args = (model, k)
            first = jnp.asarray(FIRST_STEP if dt0 is None else dt0, self.dtype)
            t1, controller_state = controller.init(term, t0, stop, x, first, args, solver.func, order)
            t1 = jnp.minimum(t1, stop)
            state: Any = None
            dstate: Any = None
            if sensitive:
                of = lambda model, x, k: state_at(model, t0, t1, x, k)
                state, dstate = along(of, model, x, k, dx=dx)
            else:
                state = state_at(model, t0, t1, x, k)
            first_rate = state[0] if linearly_implicit else rate(t0, x, args)
            usable = jnp.isfinite(t1) & jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(first_rate))
            status = jnp.where(usable, -1, NONFINITE)
            zero = jnp.zeros((), jnp.int32)
            return _Lane(t0, t1, x, k, state, controller_state, zero, zero, status.astype(jnp.int32), dx, dstate)

        def take(model, lane, x, state, k):
            if step is None:
                x1, error, _, after, _ = solver.step(term, lane.t0, lane.t1, x, (model, k), state, False)
                return x1, error, after
            taken = step(model, lane.t0, lane.t1, x, state, k)
            return taken.x, taken.error, taken.rate

        def along(call, model, x, k, *more, dx, dmore=()):
            # A call's value, and its derivative along the one direction.
            weights, static = eqx.partition(model, eqx.is_inexact_array)
            whole = lambda w, x, k, *more: call(eqx.combine(w, static), x, k, *more)
            dw = jax.tree_util.tree_map(lambda w: w * _mixed(w), weights)
            value, slope = eqx.filter_jvp(whole, (weights, x, k, *more), (dw, dx, k * _mixed(k), *dmore))
            # Of what depends on nothing there is no derivative, and it is 0.
            filled = lambda v, d: jnp.zeros_like(v) if d is None and eqx.is_inexact_array(v) else d
            return value, jax.tree_util.tree_map(filled, value, slope, is_leaf=lambda v: v is None)

        def attempt(model, lane):
            dx1 = dstate = None
            if sensitive:
                of = lambda model, x, k, state: take(model, lane, x, state, k)
                given = (model, lane.x, lane.k, lane.solver_state)
                taken, dtaken = along(of, *given, dx=lane.dx, dmore=(lane.dstate,))
                (x1, error, solver_state), (dx1, derror, dstate) = taken, dtaken
                before, y1 = jnp.concatenate([lane.x, lane.dx]), jnp.concatenate([x1, dx1])
                error = jnp.concatenate([error, derror])
            else:
                x1, error, solver_state = take(model, lane, lane.x, lane.solver_state, lane.k)
                before, y1 = lane.x, x1
            error = jnp.where(jnp.isnan(error), jnp.inf, error)
            keep, t0, t1, _, controller_state, _ = controller.adapt_step_size(
                lane.t0, lane.t1, before, y1, (model, lane.k), error, order, lane.controller_state
            )
            t0 = jnp.minimum(t0, stop)
            ahead = jnp.where(keep, stop, t0 + 0.5 * (stop - t0))
            t1 = jnp.where((t0 < stop) & (t1 > near), ahead, t1)
            if jumps is not None:
                t1 = jumps.cut_off(t0, t1)
            seen = jnp.where(jnp.any(jnp.isnan(y1)), before, y1)
            larger = jnp.maximum(jnp.abs(before), jnp.abs(seen))
            scaled = optx.rms_norm(error / tolerance(options["controller"], larger))
            attempts = lane.attempts + 1
            select = lambda new, old: jax.tree_util.tree_map(lambda a, b: jnp.where(keep, a, b), new, old)
            done = t0 >= stop
            # A step that does not move time would be accepted for ever, and one that shrinks by less than an ulp
            # rejected for ever.
            stuck = ~done & (~(t1 > t0) | (~keep & (t1 >= lane.t1)))
            lost = ~jnp.isfinite(t1) | (stuck & ~jnp.all(jnp.isfinite(x1)))
            status = jnp.where(
                done,
                SUCCESSFUL,
                jnp.where(
                    lost,
                    NONFINITE,
                    jnp.where(stuck, DT_MIN, jnp.where(attempts >= max_steps, MAX_STEPS, -1)),
                ),
            ).astype(jnp.int32)
            after = _Lane(
                t0,
                t1,
                select(x1, lane.x),
                lane.k,
                select(solver_state, lane.solver_state),
                controller_state,
                attempts,
                lane.accepted + keep.astype(jnp.int32),
                status,
                select(dx1, lane.dx),
                select(dstate, lane.dstate),
            )
            row = (lane.t0, lane.t1, keep, scaled, x1)
            return (after, row) if jumps is None else jumped(model, lane, after, row)

        def jumped(model, lane, after, row):
            # At a jump, what it gives in the place of what the attempt gave; the solver begins anew behind it.
            assert jumps is not None
            here = jumps.at(lane.t0)
            t1, dx = jnp.nextafter(lane.t0, stop), None
            apply = jumps.apply
            jump = lambda model, x, k: apply(model, lane.t0, x, k)
            if sensitive:
                x, dx = along(jump, model, lane.x, lane.k, dx=lane.dx)
            else:
                x = jump(model, lane.x, lane.k)
            finite = jnp.all(jnp.isfinite(x))
            new = begin(model, t1, x, lane.k, dx)
            attempts, accepted = lane.attempts + 1, lane.accepted + finite.astype(jnp.int32)
            going = jnp.where(attempts >= max_steps, MAX_STEPS, new.status)
            status = jnp.where(finite, jnp.where(t1 >= stop, SUCCESSFUL, going), NONFINITE).astype(jnp.int32)
            new = eqx.tree_at(lambda s: (s.attempts, s.accepted, s.status), new, (attempts, accepted, status))
            error = jnp.where(finite, 0, jnp.inf).astype(self.dtype)
            pick = lambda a, b: jax.tree_util.tree_map(lambda a, b: jnp.where(here, a, b), a, b)
            return pick(new, after), pick((lane.t0, t1, finite, error, x), row)

        def block(model, lanes):
            empty = lambda dtype, *more: jnp.zeros((BLOCK, self.lanes, *more), dtype)
            record = _Attempts(
                empty(self.dtype), empty(self.dtype), empty(bool), empty(self.dtype), empty(self.dtype, n)
            )

            def body(carry):
                i, lanes, record = carry
                after, row = jax.vmap(lambda lane: attempt(model, lane))(lanes)
                running = lanes.status < 0
                freeze = lambda new, old: jnp.where(
                    jnp.reshape(running, running.shape + (1,) * (new.ndim - 1)), new, old
                )
                lanes = jax.tree_util.tree_map(freeze, after, lanes)
                record = jax.tree_util.tree_map(lambda buffer, v: buffer.at[i].set(v), record, _Attempts(*row))
                return i + 1, lanes, record

            def going(carry):
                i, lanes, _ = carry
                return (i < BLOCK) & jnp.any(lanes.status < 0)

            _, lanes, record = jax.lax.while_loop(going, body, (jnp.zeros((), jnp.int32), lanes, record))
            return lanes, record

        def refill(model, lanes, fresh, x, k):
            new = jax.vmap(lambda x, k: start(model, x, k))(x, k)
            pick = lambda a, b: jnp.where(jnp.reshape(fresh, fresh.shape + (1,) * (a.ndim - 1)), a, b)
            return jax.tree_util.tree_map(pick, new, lanes)

        self._model = model
        self._empty: Any = None
        # Of one lane, for whoever wants to look at single attempts.
        self.start, self.attempt, self.step, self.state_at = start, attempt, step, state_at
        self._refill = eqx.filter_jit(refill)
        self._block = eqx.filter_jit(block)

    def _no_lanes(self, x: jax.Array, k: jax.Array) -> Any:
        # What the first lanes are put into: `start` is compiled once, within the refill.
        if self._empty is None:
            lanes = eqx.filter_eval_shape(jax.vmap(self.start, in_axes=(None, 0, 0)), self._model, x, k)
            zeros = lambda v: np.zeros(v.shape, v.dtype) if isinstance(v, jax.ShapeDtypeStruct) else v
            self._empty = jax.tree_util.tree_map(zeros, lanes)
        return self._empty

    def compile(self, states: int, parameters: int) -> None:
        """Compiles the solve, so that compile and run time can be told apart."""
        x, k = jnp.zeros((self.lanes, states), self.dtype), jnp.zeros((self.lanes, parameters), self.dtype)
        lanes = self._refill(self._model, self._no_lanes(x, k), jnp.ones(self.lanes, bool), x, k)
        ended = eqx.tree_at(lambda s: s.status, lanes, jnp.full_like(lanes.status, SUCCESSFUL))
        jax.block_until_ready(self._block(self._model, ended))

    def run(
        self,
        x_start: np.ndarray,
        k: np.ndarray,
        *,
        done: Callable[[int], None] = lambda count: None,
        stop_when: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> list[Record]:
        """Returns the records of all scenarios, in order.

        - `x_start`: shape (scenario, state). A row that is not finite is skipped.
        - `k`: shape (scenario, parameter).
        - `done`: called with the number of scenarios that have just ended.
        - `stop_when`: (x, k) of the lanes -> which lanes may end early, as successful.
        """
        total = len(x_start)
        records = [Record() for _ in range(total)]
        parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(total)]
        queue = [i for i in range(total) if np.all(np.isfinite(x_start[i]))]
        done(total - len(queue))
        if not queue:
            return records
        x_start = np.asarray(x_start, self.dtype)
        k = np.asarray(k, self.dtype)
        owner = np.full(self.lanes, -1)
        filler = queue[0]
        waiting = list(reversed(queue))
        lanes: Any = None
        while True:
            fresh = np.zeros(self.lanes, bool)
            for lane in range(self.lanes):
                if owner[lane] < 0 and waiting:
                    owner[lane] = waiting.pop()
                    fresh[lane] = True
            if np.all(owner < 0):
                return records
            if np.any(fresh):
                rows = np.where(owner >= 0, owner, filler)
                x, kk = jnp.asarray(x_start[rows]), jnp.asarray(k[rows])
                first = lanes is None
                lanes = self._no_lanes(x, kk) if first else lanes
                lanes = self._refill(self._model, lanes, jnp.asarray(fresh | first), x, kk)
                if first:
                    idle = jnp.asarray(owner < 0)
                    lanes = eqx.tree_at(lambda s: s.status, lanes, jnp.where(idle, jnp.int32(SUCCESSFUL), lanes.status))
            before = np.asarray(lanes.attempts)
            lanes, record = self._block(self._model, lanes)
            status, after = np.array(lanes.status), np.asarray(lanes.attempts)
            rows = [np.asarray(v) for v in (record.start, record.end, record.accepted, record.error, record.x)]
            if stop_when is not None:
                early = (status < 0) & stop_when(np.asarray(lanes.x), np.asarray(lanes.k))
                status[early] = SUCCESSFUL
                lanes = eqx.tree_at(lambda s: s.status, lanes, jnp.asarray(status))
            for lane in np.flatnonzero(owner >= 0):
                i, count = owner[lane], after[lane] - before[lane]
                start, end, accepted, error, x1 = (row[:count, lane] for row in rows)
                parts[i].append((start, end, accepted, error, x1[accepted]))
                if status[lane] >= 0:
                    records[i] = _join(parts[i], int(status[lane]))
                    parts[i] = []
                    owner[lane] = -1
                    done(1)


def _mixed(values: jax.Array) -> jax.Array:
    """Returns factors of both signs, of the values' shape: a direction that no symmetry of a model leaves out."""
    return jnp.reshape(jnp.cos(jnp.arange(values.size) ** 2 + 1.0), values.shape).astype(values.dtype)


def _join(parts: list[tuple[np.ndarray, ...]], status: int) -> Record:
    start, end, accepted, error, x = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Record(status, start, end, accepted, error, end[accepted], x)


def rows_at(record: Record, x_start: np.ndarray, save_times: np.ndarray) -> np.ndarray:
    """Returns x at the save times, shape (time, state); NaN where the simulation did not get there."""
    rows = np.full((len(save_times), len(x_start)), np.nan)
    index = save_index(record.step_time, save_times)
    if len(index):
        rows[index[index >= 0]] = record.step_x[index >= 0]
    if save_times[0] == 0 and np.all(np.isfinite(x_start)):
        rows[0] = x_start
    return rows


def save_index(step_time: np.ndarray, save_times: np.ndarray) -> np.ndarray:
    """Returns for each step the save time that it ends at, or -1, shape (step,)."""
    if len(step_time) == 0:
        return np.zeros(0, np.int64)
    times = np.asarray(save_times, step_time.dtype)
    found = np.minimum(np.searchsorted(times, step_time), len(times) - 1)
    return np.where(times[found] == step_time, found, -1)
