"""What is known of each derivative: its own error, the check by finite differences, the distance to the ODE's.

A verdict has two parts. Whether a derivative is that of the numerical solution is decided against differences on the
same steps, within the error bars of both. To how many digits it is the ODE's derivative is the error bar that a replay
on finer steps gives.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping

import numpy as np

from retrograd import peers
from retrograd.differences import RESOLUTION, WIDTHS, coarse
from retrograd.gradients import GradientProblem, Scenarios, largest
from retrograd.reference import Reference
from retrograd.schema import REASONS, VERDICTS

log = logging.getLogger("retrograd")

VERIFIED, REFUTED, INCONCLUSIVE, NONFINITE, SKIPPED = range(len(VERDICTS))
# Of a scenario's verdicts the worst counts, in this order.
WORST_FIRST = (NONFINITE, REFUTED, INCONCLUSIVE, SKIPPED, VERIFIED)

# A method's rounding error over what it changes by under one sample of rounding errors. The ratio of two samples
# exceeds 10 in six of 100 cases; the largest of a scenario's derivatives stands for all of them.
ROUNDING_MARGIN = 10.0
# Further samples, where the first moves a scenario's derivatives by more than RESOLUTION: rounding may be all that they
# are, as in the adjoint of an explicit method beyond its limit of stability, and one sample may come close by chance.
FURTHER_SAMPLES = (2, 3, 4)

# Of the distance between a solve's states and those of the replay on its steps, what its stages may be off.
INNER_MARGIN = 3.0
# Of the tolerance, what an inner iteration may leave: diffrax's VeryChord ends there (its `kappa`).
INNER_SHARE = 1e-2

# Bound on the error over the difference to steps half as long: 2 for a method of first order, 1.03 for one of fifth.
REFINED = 2.0
# Share of a scenario's largest difference that each of its derivatives, and each of its states over time, is given.
BESIDE = 0.05


# A method's derivatives and its own error in them, (scenario, wrt), its gradient to the weights, and to what model time
# its own adaptive solve got, (scenario,).
Derived = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


# -- what each method can be wrong by itself ---------------------------------------------------------------


def derive(
    problem: GradientProblem,
    data: Scenarios,
    replayed: Mapping[str, np.ndarray],
    stages: list[np.ndarray],
    scale: np.ndarray,
    ode_error: np.ndarray,
    kink: np.ndarray,
    took: Callable[[str, float], object],
) -> dict[str, Derived]:
    """Returns what each of the methods forms: see `Derived`.

    - `replayed`, `stages`: as `problem.replay` returned them.
    - `scale`: as `problem.scales` returned it.
    - `ode_error`: as `discretisation` returned it.
    - `kink`: as `problem.differences` returned it.
    - `took`: as in `gradient_table`.

    The gradient to the weights, (scenario, weight), is NaN where the method forms derivatives in directions only, and
    the time where it makes no solve of its own that is known.
    """
    none = np.full((len(data.ok), problem.weights), np.nan)
    no_solve = np.full(len(data.ok), np.nan)
    by_replay = problem.columns_of(replayed)

    @functools.cache
    def discrete() -> np.ndarray:
        def form(rows: np.ndarray, seed: int) -> np.ndarray:
            own = [stages[i] for i in rows]
            return problem.columns_of(problem.adjoint(data.take(rows), own, replayed["rows"][rows], seed))

        return rounding(by_replay, sampled(form, by_replay, scale), scale, kink, problem.dtype)

    def replay() -> Derived:
        return by_replay, discrete(), replayed["network"], no_solve

    def forward() -> Derived:
        def form(rows: np.ndarray, seed: int) -> np.ndarray:
            return problem.tangents(data.take(rows), [stages[i] for i in rows], replayed["rows"][rows], seed)

        ad = form(np.arange(len(stages)), 0)
        return ad, rounding(ad, sampled(form, ad, scale), scale, kink, problem.dtype), none, no_solve

    def checkpoint() -> Derived:
        gradient, steps, states, seconds = peers.checkpoint(problem, data)
        took("checkpoint", seconds)
        error = discrete() + own_solve(problem, data, by_replay, steps, states, scale)
        reached = np.array([ends[-1] if len(ends) else 0.0 for ends in steps])
        return problem.columns_of(gradient), error, gradient["network"], reached

    def backsolve() -> Derived:
        ad, error = peers.backsolve(problem, data)
        # It is the derivative of the ODE that it approximates, not that of the numerical solution.
        return ad, error + ode_error, none, no_solve

    methods = {"replay": replay, "forward": forward, "checkpoint": checkpoint, "backsolve": backsolve}
    out = {}
    for name in problem.methods:
        log.info("derivatives by %s", name)
        out[name] = methods[name]()
    return out


def sampled(form: Callable[[np.ndarray, int], np.ndarray], ad: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns derivatives with rounding errors on the way, (scenario, wrt): of some samples those furthest from `ad`.

    - `form`: some scenarios and the seed of a sample -> their derivatives.
    - `scale`: as `problem.scales` returned it.
    """
    furthest = form(np.arange(len(ad)), 1)
    with np.errstate(invalid="ignore"):
        noisy = np.flatnonzero(largest(furthest - ad, scale)[:, 0] > RESOLUTION * largest(ad, scale)[:, 0])
        for seed in FURTHER_SAMPLES if len(noisy) else ():
            again = form(noisy, seed)
            further = np.abs(again - ad[noisy]) > np.abs(furthest[noisy] - ad[noisy])
            furthest[noisy] = np.where(further, again, furthest[noisy])
    return furthest


def rounding(ad: np.ndarray, jittered: np.ndarray, scale: np.ndarray, kink: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns what rounding can bring into derivatives, (scenario, wrt).

    - `ad`, `jittered`: the derivatives, and the same with changes of the size of rounding on the way (`sampled`).
    - `scale`: sizes of what they are taken by: derivatives compare after multiplication with it.
    - `kink`: where the slopes to both sides differ. A change of the size of rounding may take such a derivative from
      one to the other, which says nothing of the scenario's others.

    What cancels between steps, or in a stage's matrix between fast exchanges, shows in the difference (stochastic
    arithmetic: Vignes 1993, doi:10.1016/0378-4754(93)90003-D). In addition some units in the last place of the
    scenario's largest derivative.
    """
    with np.errstate(invalid="ignore"):
        moved = ROUNDING_MARGIN * largest(np.where(kink, 0, jittered - ad), scale)
    return (moved + 1e3 * float(np.finfo(dtype).eps) * largest(ad, scale)) / scale


def own_solve(
    problem: GradientProblem,
    data: Scenarios,
    replayed: np.ndarray,
    steps: list[np.ndarray],
    states: list[np.ndarray],
    scale: np.ndarray,
) -> np.ndarray:
    """Returns the error of derivatives through a solve of one's own, shape (scenario, wrt).

    - `replayed`: the derivatives by replay on the recorded steps.
    - `steps`, `states`: the ends of the solve's steps and the states there.
    - `scale`: as `problem.scales` returned it.

    An adaptive solve that is differentiated chooses its steps itself; where rounding tips one of them, it is the
    derivative of another discrete solution than the recorded one, and both are right. The difference is that of two
    replays. And its stages are solved to a tolerance only, and the adjoint is linearised there: a share of the
    tolerance by the iteration's own rule. Where that rule is too hopeful, it shows in the distance of its states from
    those of the replay on its steps, by which the stages are moved.
    """
    c, inner = problem.options["controller"]["rtol"], problem.options["nonlinear"]["rtol"]
    share = INNER_SHARE * (c if inner is None else inner) if problem.replayer.tableau.implicit else 0.0
    out = np.broadcast_to(share * largest(replayed, scale), replayed.shape) / scale
    complete = lambda i: len(steps[i]) and steps[i][-1] == problem.times[-1]
    rows = np.array([i for i in range(len(steps)) if complete(i)], int)
    if len(rows):
        part = data.take(rows).on([steps[i] for i in rows])
        part.step_x = [states[i] for i in rows]
        found, stages = problem.replay(part)
        derivatives = problem.columns_of(found)
        out[rows] += np.abs(derivatives - replayed[rows])
        if problem.replayer.tableau.implicit:
            # The last stage is the step's end.
            off = [np.abs(s - y[:, -1])[:, None] for s, y in zip(part.step_x, stages, strict=True)]
            sign = np.random.Generator(np.random.PCG64(1)).choice([-1.0, 1.0], stages[0].shape[1:])
            moved = [y + INNER_MARGIN * sign * d for y, d in zip(stages, off, strict=True)]
            apart = problem.columns_of(problem.adjoint(part, moved, found["rows"])) - derivatives
            out[rows] += largest(apart, scale[rows]) / scale[rows]
    return out


def discretisation(
    problem: GradientProblem, data: Scenarios, replayed: Mapping[str, np.ndarray], scale: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns how far the solution of the ODE may be from the one on the recorded steps.

    - `replayed`: as `problem.replay` returned it.
    - `scale`: as `problem.scales` returned it.

    Keys: `loss_error` (scenario,), `x_error` (scenario, time, state), `ode_error` (scenario, wrt), `network_error`
    (scenario, weight); NaN where the finer replay does not get through.

    On steps half as long the error is at most half, in whatever order the method converges there, so it is at most
    twice the difference (Richardson 1911, doi:10.1098/rsta.1911.0009). That can vanish by accident where the error
    changes its sign; so each quantity gets a share of the largest difference beside it.
    """
    found, _ = problem.replay(data.on([_halved(np.asarray(s, problem.dtype)) for s in data.steps]))
    eps = 1e3 * float(np.finfo(problem.dtype).eps)
    x, gradient = replayed["rows"], problem.columns_of(replayed)
    moved = np.abs(found["rows"] - x)
    beside = np.max(moved, axis=1, keepdims=True, initial=0)
    x_error = REFINED * (moved + BESIDE * beside) + eps * np.abs(x)
    # What the states may be off moves a smooth loss by so much: its own difference is a sum that may cancel.
    with np.errstate(invalid="ignore"):
        by_states = np.sum(np.abs(replayed["loss_slope"]) * x_error, axis=(1, 2))
        slope = np.abs(problem.columns_of(found) - gradient)
        network = np.abs(found["network"] - replayed["network"])
    most = np.max(slope * scale, axis=1, keepdims=True, initial=0) / scale
    return {
        "loss_error": np.fmax(by_states, REFINED * np.abs(found["loss"] - replayed["loss"]))
        + eps * np.abs(replayed["loss"]),
        "x_error": x_error,
        "ode_error": REFINED * (slope + BESIDE * most) + eps * largest(gradient, scale) / scale,
        "network_error": REFINED * (network + BESIDE * np.max(network, axis=1, keepdims=True, initial=0))
        + eps * largest(replayed["network"], np.ones(1)),
    }


def _halved(ends: np.ndarray) -> np.ndarray:
    starts = np.concatenate([np.zeros(1, ends.dtype), ends[:-1]])
    middles = starts + (ends - starts) / 2
    # Steps of an ulp have no middle.
    return np.unique(np.concatenate([middles[(middles > starts) & (middles < ends)], ends]))


# -- verdicts ----------------------------------------------------------------------------------------------


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
    both sides differ, and where it is within bounds that are wider than `differences.RESOLUTION` of the derivative
    and than what counts as zero beside the scenario's largest scaled derivative.
    """
    with np.errstate(invalid="ignore"):
        bound = fd_error + ad_error
        wide = coarse(bound, np.maximum(np.abs(ad), np.abs(fd)), largest(fd, scale) / scale, dtype)
        # In order: the last that applies stands.
        cases = [
            (np.abs(ad - fd) <= bound, VERIFIED, "agrees"),
            (wide, INCONCLUSIVE, "bound_too_wide"),
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


# -- the table ---------------------------------------------------------------------------------------------


def gradient_table(
    problem: GradientProblem,
    recorded: Scenarios,
    done: Callable[[int], None] = lambda count: None,
    took: Callable[[str, float], object] = lambda method, seconds: None,
) -> dict[str, np.ndarray]:
    """Returns the variables of `gradients.nc` for all scenarios; those that were not simulated are skipped, with NaN.

    - `done`: called after each width of the check's sweep, with the number of scenarios that were replayed.
    - `took`: called with a method that was timed, and its time for all scenarios [s], compilation left out.
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
        "solve_end": nan(methods),
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
    errors = discretisation(problem, part, replayed, scale)
    for name in ("loss_error", "x_error", "ode_error"):
        table[name][rows] = errors[name]
    differences = problem.differences(part, replayed, stages, done)
    kink = differences.pop("kink")
    for name, value in differences.items():
        table[name][rows] = value
    derived = derive(problem, part, replayed, stages, scale, errors["ode_error"], kink, took)
    for m, (ad, error, network, reached) in enumerate(derived.values()):
        found, reason = verdicts(ad, error, differences["fd"], differences["fd_error"], kink, scale, problem.dtype)
        table["ad"][rows, m], table["ad_error"][rows, m] = ad, error
        table["verdict"][rows, m], table["reason"][rows, m] = found, reason
        table["status"][rows, m] = worst(found)
        table["gradient_network"][rows, m], table["solve_end"][rows, m] = network, reached
    independent = independent_derivatives(problem, part, problem.columns_of(replayed), errors["ode_error"], scale)
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
    none = np.full(replayed.shape, np.nan)
    out = {name: none.copy() for name in ("fd_free", "fd_free_error", "reference", "reference_error")}
    gradient = problem.options["gradient"]
    rows = _spread(len(data.ok), gradient["free_differences"])
    if len(rows) and problem.columns:
        out["fd_free"][rows], out["fd_free_error"][rows] = peers.free_differences(problem, data.take(rows))
    rows = _spread(len(data.ok), gradient["reference"])
    if len(rows) and problem.columns and problem.dtype == np.float64:
        out["reference"], out["reference_error"] = Reference(problem).derivatives(data, rows)
    agrees = verdicts(
        replayed, ode_error, out["reference"], out["reference_error"], np.zeros(none.shape, bool), scale, problem.dtype
    )[0]
    asked = np.isfinite(out["reference"])
    return out | {"reference_verdict": np.where(asked, agrees, SKIPPED)}


def _spread(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)) if count else np.zeros(0, int)
