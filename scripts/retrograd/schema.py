"""What each netCDF file holds: the one place for names, dimensions, units, codes.

The writer takes dtype, dimensions and attributes from here, the reader checks against it, and
`config/README.md` is compared with it by a test. A unit in braces is filled in by the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STAGES = ("steady_state", "dynamics", "gradients")
OUTCOMES = (
    "verified",
    "forward_failed",
    "gradient_nonfinite",
    "gradient_refuted",
    "inconclusive",
    "steady_state_failed",
)
STEADY_STATUS = (
    "converged",
    "max_steps_reached",
    "nonfinite",
    "unstable",
    "not_a_root",
    "invalid",
)
STEADY_METHOD = ("root", "integrate")
DYNAMICS_STATUS = (
    "successful",
    "max_steps_reached",
    "dt_min_reached",
    "nonfinite",
    "skipped",
)
# Of a parameter sample: whether its log-likelihood is there, and what keeps it away.
FIT_STATUS = ("complete", "experiment_failed", "experiment_missing")
VERDICTS = ("verified", "refuted", "inconclusive", "nonfinite", "skipped")
REASONS = (
    "agrees",
    "differs",
    "bound_too_wide",
    "no_difference",
    "kink",
    "derivative_nonfinite",
    "not_formed",
)
CAUSES = (
    "none",
    "steady_state_not_found",
    "steady_state_unstable",
    "steady_state_overflow",
    "steady_state_not_isolated",
    "nonfinite_rate",
    "nonfinite_jacobian",
    "state_overflow",
    "inner_solve_failed",
    "step_size_collapsed",
    "steps_limited",
    "steps_exhausted_stiff",
    "steps_exhausted_oscillating",
    "steps_exhausted",
    "rejected_step_overflowed",
    "nonfinite_gradient",
    "gradient_differs",
    "kink",
    "check_too_coarse",
    "gradient_unfinished",
)
# Of a comparison: the ladder of verdicts, which steps were taken, and where a difference lies.
AGREEMENT = (
    "identical",
    "equivalent_rounding",
    "equivalent_solver_error",
    "not_comparable",
    "different",
    "not_compared",
)
KINDS = ("free", "replayed")
ORIGINS = ("integrity", "inputs", "config", "code", "environment")


def stages_of(start: str) -> list[str]:
    """Returns the stages of a study, in order; `start`: where its dynamics start."""
    return [stage for stage in STAGES if stage != "steady_state" or start == "steady_state"]


@dataclass(frozen=True)
class Variable:
    """One variable of a file: its dimensions, type and attributes."""

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    dtype: str = "float64"
    flags: tuple[str, ...] = ()
    sample_dimension: str = ""
    comment: str = ""


@dataclass(frozen=True)
class Schema:
    """One kind of file: its schema name, a summary for the global attributes, its variables."""

    name: str
    title: str
    summary: str
    rule: str
    variables: dict[str, Variable] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # dimension -> long_name of its labels
    version: int = 1

    @property
    def tag(self) -> str:
        return f"{self.name}/{self.version}"


def _status(dims: tuple[str, ...], long_name: str, flags: tuple[str, ...]) -> Variable:
    return Variable(dims, long_name, dtype="int8", flags=flags)


def _count(dims: tuple[str, ...], long_name: str, sample_dimension: str = "") -> Variable:
    return Variable(dims, long_name, dtype="int32", sample_dimension=sample_dimension)


def _rung(dims: tuple[str, ...], long_name: str) -> Variable:
    # A variant names its rungs itself: the meanings come from there.
    return Variable(dims, long_name, dtype="int8", flags=("none",))


def _cause(dims: tuple[str, ...], term: bool) -> dict[str, Variable]:
    """Returns the variables of a diagnosis; `term`: whether it may name a derivative."""
    names = {
        "cause": _status(dims, "code of the diagnosis", CAUSES),
        "cause_time": Variable(dims, "model time of the cause", units="{time}"),
        "cause_state": Variable(dims, "index of the state concerned, -1 for none", dtype="int32"),
        "cause_term": Variable(dims, "index of the derivative (wrt) concerned, -1 for none", dtype="int32"),
        "cause_text": Variable(dims, "the cause in a sentence, empty where nothing failed", dtype="str"),
    }
    return {name: v for name, v in names.items() if term or name != "cause_term"}


# Of a factorial study: what an effect is measured on, and what it compares.
MEASURES = ("verified", "attempts", "seconds")
EFFECT_KINDS = ("main", "interaction", "beside")

S = ("scenario",)

MODEL = Schema(
    name="model",
    title="Exported model: weights and self-test vectors",
    summary="Pretrained network weights with their pytree paths, and vectors that show that they were read back right",
    rule="export",
    variables={
        "equation": Variable(
            ("state",),
            "equation of the state in LaTeX",
            dtype="str",
            comment="numbers rounded to six digits, networks as functions; empty where none is short enough",
        ),
        "selftest_input": Variable(("selftest", "state"), "state at which the vector field was evaluated"),
        "selftest_k": Variable(("selftest", "parameter"), "parameters at which the vector field was evaluated"),
        "selftest_output": Variable(("selftest", "state"), "vector field there, in float64"),
    },
    labels={
        "state": "name of the state",
        "parameter": "name of the parameter",
        "selftest": "name of the self-test",
    },
)

STEADY_STATE = Schema(
    name="steady_state",
    title="Steady states",
    summary="Steady state of every scenario under the parameters of the steady phase, with the residual there",
    rule="steady_state",
    variables={
        "k": Variable(("scenario", "parameter"), "parameters of the steady phase", units="{parameter}"),
        "x": Variable(("scenario", "state"), "steady state", units="{state}"),
        "x_guess": Variable(("scenario", "state"), "first guess of the steady state", units="{state}"),
        "residual_norm": Variable(S, "infinity norm of the scaled residual at x"),
        "status": _status(S, "outcome of the steady-state search", STEADY_STATUS),
        "method": _status(S, "method that gave x", STEADY_METHOD),
        "rung": _rung(S, "rung of the rescue ladder that found the steady state"),
        "rung_name": Variable(S, "name of that rung", dtype="str"),
        "iterations": _count(S, "iterations of the root finder, or steps of the integration"),
        "max_real_eigenvalue": Variable(
            S, "largest real part of the eigenvalues of the Jacobian at x", units="{per_time}"
        ),
        "cross_check": Variable(
            S, "distance to where integration from the guess comes to rest, in units of atol + rtol |x|"
        ),
        "n_conserved": _count(S, "number of conserved quantities that were held at their value at the guess"),
        "conserved_basis": Variable(
            ("scenario", "state", "state_2"),
            "projector on the conserved directions, detected numerically where the model declares none",
        ),
        **_cause(S, term=False),
    },
    labels={
        "scenario": "name of the scenario",
        "state": "name of the state",
        "state_2": "name of the state",
        "parameter": "name of the parameter",
    },
)

DYNAMICS = Schema(
    name="dynamics",
    title="Dynamic simulations with their recorded steps",
    summary="Trajectories at the save times, every accepted step and every attempt of the adaptive solver",
    rule="dynamics",
    variables={
        "k": Variable(("scenario", "parameter"), "parameters of the dynamic phase", units="{parameter}"),
        "x": Variable(("scenario", "model_time", "state"), "state at the save times", units="{state}"),
        "x_start": Variable(("scenario", "state"), "state at model time 0", units="{state}"),
        "status": _status(S, "outcome of the simulation", DYNAMICS_STATUS),
        "rung": _rung(S, "rung of the rescue ladder that solved the scenario"),
        "rung_name": Variable(S, "name of that rung", dtype="str"),
        "num_accepted": _count(S, "number of accepted steps"),
        "num_rejected": _count(S, "number of rejected attempts"),
        "step_count": _count(S, "number of recorded steps", "step"),
        "step_time": Variable(("step",), "model time at the end of each accepted step", units="{time}"),
        "step_x": Variable(("step", "state"), "state at the end of each accepted step", units="{state}"),
        "attempt_count": _count(S, "number of recorded attempts", "attempt"),
        "attempt_start": Variable(("attempt",), "model time at the start of each attempt", units="{time}"),
        "attempt_end": Variable(("attempt",), "model time at the end of each attempt", units="{time}"),
        "attempt_accepted": Variable(("attempt",), "1 where the attempt was accepted, else 0", dtype="int8"),
        "attempt_error": Variable(
            ("attempt",),
            "scaled norm of the error estimate",
            comment="accepted below 1; NaN where it was not finite",
        ),
        "attempt_finite": Variable(("attempt",), "1 where the error norm was finite, else 0", dtype="int8"),
        "stiffness_ratio": Variable(
            S,
            "largest over smallest |Re| of the eigenvalues of the Jacobian, the largest such ratio met on the way",
            comment="a rate below one over the last save time counts as that",
        ),
        **_cause(S, term=False),
    },
    labels={
        "scenario": "name of the scenario",
        "state": "name of the state",
        "parameter": "name of the parameter",
    },
)

GRADIENTS = Schema(
    name="gradients",
    title="Gradients and their finite-difference check",
    summary="Gradients of the loss by each method, finite differences on frozen steps with their error bound, verdicts",
    rule="gradients",
    variables={
        "loss": Variable(S, "loss of the replayed trajectory"),
        "loss_error": Variable(S, "discretisation error of the loss, from steps half as long"),
        "x_error": Variable(
            ("scenario", "model_time", "state"),
            "discretisation error of the states at the save times, from steps half as long",
            units="{state}",
        ),
        "replay_deviation": Variable(
            S, "largest distance of replayed from recorded steps, in units of atol + rtol |x|"
        ),
        "ad": Variable(("scenario", "method", "wrt"), "derivative of the loss by automatic differentiation"),
        "ad_error": Variable(
            ("scenario", "method", "wrt"),
            "error that the method itself can bring in: rounding and inexact inner solves",
        ),
        "solve_end": Variable(
            ("scenario", "method"),
            "model time that the method's own adaptive solve reached, NaN where it makes none",
            units="{time}",
        ),
        "ode_error": Variable(
            ("scenario", "wrt"),
            "distance of the derivative of the numerical solution from that of the ODE's, from steps half as long",
        ),
        "fd": Variable(("scenario", "wrt"), "derivative of the loss by finite differences on the frozen steps"),
        "fd_error": Variable(("scenario", "wrt"), "error bound of fd, by the check itself"),
        "fd_step": Variable(("scenario", "wrt"), "smallest step width that entered fd"),
        "fd_free": Variable(
            ("scenario", "wrt"), "derivative of the loss by finite differences of free adaptive solves"
        ),
        "fd_free_error": Variable(("scenario", "wrt"), "error bound of fd_free, choice of steps included"),
        "reference": Variable(
            ("scenario", "wrt"), "derivative of the loss by forward sensitivity equations, integrated by SciPy"
        ),
        "reference_error": Variable(("scenario", "wrt"), "error of reference, from a hundredth of the tolerance"),
        "reference_verdict": _status(
            ("scenario", "wrt"), "whether replay and reference agree within ode_error and reference_error", VERDICTS
        ),
        "fd_left": Variable(("scenario", "wrt"), "slope to the left at the narrowest width"),
        "fd_right": Variable(("scenario", "wrt"), "slope to the right at the narrowest width"),
        "fd_sweep_width": Variable(("scenario", "wrt", "width"), "step widths of the sweep"),
        "fd_sweep": Variable(("scenario", "wrt", "width"), "central difference quotient at each step width"),
        "scale": Variable(
            ("scenario", "wrt"),
            "size of what the derivative is taken by: derivatives compare after multiplication with it",
        ),
        "verdict": _status(("scenario", "method", "wrt"), "verdict on each derivative", VERDICTS),
        "reason": _status(("scenario", "method", "wrt"), "why the verdict is what it is", REASONS),
        "gradient_network": Variable(
            ("scenario", "method", "weight"), "gradient of the loss with respect to the network weights"
        ),
        "status": _status(("scenario", "method"), "worst verdict of the scenario", VERDICTS),
        **_cause(("scenario", "method"), term=True),
    },
    labels={
        "scenario": "name of the scenario",
        "method": "how the gradient was formed",
        "wrt": "what the derivative is taken with respect to",
        "state": "name of the state",
        "width": "name of the step width",
    },
)

P = ("sample", "method", "parameter")
OF_MEASUREMENT = "in the unit of the measurement"
FIT = Schema(
    name="fit",
    title="Simulations held against measurements",
    summary="Log-likelihood of each parameter sample with its gradient, and what is simulated for each measurement",
    rule="fit",
    variables={
        "llh": Variable(
            ("sample",),
            "log-likelihood: less the sum of the losses of all experiments",
            comment="NaN where one of them has no loss",
        ),
        "llh_error": Variable(("sample",), "discretisation error of llh: the sum of loss_error over the experiments"),
        "status": _status(("sample",), "whether all experiments have a loss", FIT_STATUS),
        "n_experiments": _count(("sample",), "number of experiments that have a loss"),
        "observable_name": Variable(("measurement",), "name of what was measured", dtype="str"),
        "experiment_name": Variable(("measurement",), "name of the experiment", dtype="str"),
        "measurement_time": Variable(
            ("measurement",), "model time of the measurement", units="{time}", comment="NaN: at rest, the time inf"
        ),
        "measured": Variable(("measurement",), "measured value", comment=OF_MEASUREMENT),
        "simulation": Variable(("sample", "measurement"), "simulated value", comment=OF_MEASUREMENT),
        "noise": Variable(("sample", "measurement"), "scale of the noise", comment=OF_MEASUREMENT),
        "residual": Variable(("sample", "measurement"), "measured less simulated value, over noise"),
        "gradient": Variable(
            P,
            "derivative of llh: the sum over the experiments, and over both phases",
            comment="a parameter is one number in the steady and the dynamic phase",
        ),
        "gradient_error": Variable(
            P, "error of gradient as derivative of the ODE's llh: the sum of ad_error and ode_error of its parts"
        ),
        "gradient_network": Variable(("sample", "method", "weight"), "gradient of llh by the network weights"),
        "verdict": _status(("sample", "method"), "worst verdict of the sample's experiments", VERDICTS),
    },
    labels={
        "sample": "name of the parameter sample",
        "method": "how the gradient was formed",
        "parameter": "name of the parameter",
    },
)

SUMMARY = Schema(
    name="summary",
    title="Outcome of every scenario under every variant",
    summary="One outcome, its cause and the step counts for each variant and scenario",
    rule="summary",
    variables={
        "outcome": _status(("variant", "scenario"), "outcome under the variant's own gradient method", OUTCOMES),
        "status": _status(("variant", "scenario", "method"), "worst verdict by gradient method", VERDICTS),
        "steady_state_status": _status(("variant", "scenario"), "outcome of the steady-state search", STEADY_STATUS),
        "dynamics_status": _status(("variant", "scenario"), "outcome of the simulation", DYNAMICS_STATUS),
        "rung": _count(("variant", "scenario"), "number of the rung that solved the scenario, 0 for none"),
        "steady_state_rung": _count(
            ("variant", "scenario"), "number of the rung that found the steady state, 0 for none"
        ),
        "ode_digits": Variable(
            ("variant", "scenario"),
            "decimal digits in which the gradient of the numerical solution is that of the ODE",
            comment="from the largest ode_error times scale over the largest derivative times scale",
        ),
        "num_accepted": _count(("variant", "scenario"), "number of accepted steps"),
        "num_rejected": _count(("variant", "scenario"), "number of rejected attempts"),
        "loss": Variable(("variant", "scenario"), "loss of the replayed trajectory"),
        "max_relative_error": Variable(
            ("variant", "scenario", "method"),
            "largest difference of ad from fd, relative to the largest |fd| of the scenario",
        ),
        **_cause(("variant", "scenario"), term=True),
    },
    labels={
        "variant": "name of the variant",
        "scenario": "name of the scenario",
        "method": "how the gradient was formed",
    },
)

WORK_PRECISION = Schema(
    name="work_precision",
    title="Gradient error against cost",
    summary="Error of each gradient method against SciPy, and the time that it takes, over a range of tolerances",
    rule="work_precision",
    variables={
        "error": Variable(
            ("method", "tolerance", "scenario"),
            "largest distance of a derivative from the reference, relative to the largest derivative",
            comment="both multiplied with the size of what the derivative is taken by",
        ),
        "reference_error": Variable(S, "error of the reference, likewise, from a hundredth of its tolerance"),
        "seconds": Variable(
            ("method", "tolerance"), "time of solve and gradient for one scenario, compilation left out", units="s"
        ),
        "solve_seconds": Variable(("method", "tolerance"), "time of the recorded solve in it", units="s"),
        "steps": Variable(("method", "tolerance", "scenario"), "accepted steps of the recorded solve"),
    },
    labels={
        "scenario": "name of the scenario",
        "method": "how the gradient was formed",
        "tolerance": "relative tolerance of the controller",
    },
)

PT = ("peer", "tolerance")
SPEED = Schema(
    name="speed",
    title="Speed and accuracy beside others",
    summary="Processor time, memory and error of solves and gradients, by others and by us, in turns on one machine",
    rule="speed",
    variables={
        "seconds": Variable(
            (*PT, "part", "round"), "processor time of a warm call for one scenario, of one round", units="s"
        ),
        "start_seconds": Variable(PT, "processor time of imports and set-up", units="s"),
        "cold_seconds": Variable(
            (*PT, "part"), "processor time of the first call for all scenarios, compilation included", units="s"
        ),
        "compile_seconds": Variable(
            (*PT, "part"), "wall time of jax's tracing, lowering and compilation in that call", units="s"
        ),
        "memory": Variable(PT, "largest resident memory of the process", units="byte"),
        "solve_error": Variable(
            (*PT, "scenario"), "largest distance of a state from the reference, relative to its largest value"
        ),
        "gradient_error": Variable(
            (*PT, "scenario"),
            "largest distance of a derivative from the reference, relative to the largest derivative",
            comment="both multiplied with the size of what the derivative is taken by; by parameters and directions "
            "of the weights in the dynamic phase",
        ),
        "solved": Variable(PT, "share of the scenarios with states at all save times"),
        "gradient_finite": Variable(PT, "share of the scenarios with a finite gradient"),
        "reference_error": Variable(S, "error of the reference, likewise, from a hundredth of its tolerance"),
    },
    labels={
        "scenario": "name of the scenario",
        "peer": "who solves",
        "tolerance": "relative tolerance of the controller",
        "part": "what was called: solve or gradient",
    },
)

TIMINGS = Schema(
    name="timings",
    title="Time that a job's numerics took",
    summary="Time of the solve, or of each gradient method, for all scenarios of a job, compilation left out",
    rule="dynamics_chunk and gradients_chunk",
    variables={"seconds": Variable(("part",), "time for all scenarios of the job", units="s")},
    labels={"part": "what was timed: solve, or a gradient method"},
)

V = ("variant",)
EFFECTS = Schema(
    name="effects",
    title="What each remedy is worth",
    summary="Effects of a factorial study's levels on verified gradients, attempts and time, with bootstrap intervals",
    rule="effects",
    variables={
        "level": Variable(("variant", "factor"), "index of the factor's level, -1 outside the design", dtype="int32"),
        "level_name": Variable(("variant", "factor"), "name of that level, empty outside the design", dtype="str"),
        "verified": Variable(V, "share of the scenarios with a verified gradient"),
        "attempts": Variable(V, "attempts of a scenario, accepted and rejected, in the median"),
        "seconds": Variable(V, "time of solve and gradient for one scenario, compilation left out", units="s"),
        "value": Variable(
            ("measure", "effect"),
            "effect: of verified a difference of shares, of attempts and seconds a factor",
            comment="attempts and seconds: geometric means over scenarios",
        ),
        "low": Variable(("measure", "effect"), "lower end of the effect's 95 % interval, from a bootstrap"),
        "high": Variable(("measure", "effect"), "upper end of the effect's 95 % interval, from a bootstrap"),
        "effect_kind": _status(("effect",), "what is compared", EFFECT_KINDS),
        "cure_size": Variable(
            S,
            "number of remedies in the smallest set that verifies the scenario",
            dtype="int32",
            comment="0: verified without any; -1: by none",
        ),
        "cure": Variable(S, "the smallest sets of remedies that verify the scenario", dtype="str"),
        "waterfall_verified": _count(("waterfall",), "scenarios verified with all remedies up to this one"),
    },
    labels={
        "variant": "name of the variant",
        "factor": "name of the factor",
        "measure": "what the effect is on",
        "effect": "what is compared with its absence",
        "scenario": "name of the scenario",
        "waterfall": "remedies that are added, one after the other",
    },
)

Q = ("variant", "kind", "quantity")
COMPARISON = Schema(
    name="comparison",
    title="Comparison with a reference run",
    summary="How far each quantity is from the reference's, against what rounding and the choice of steps explain",
    rule="comparison",
    variables={
        "verdict": _status(Q, "verdict on the quantity", AGREEMENT),
        "n_values": _count(Q, "number of values"),
        "n_equal": _count(Q, "number of values that are equal to the bit"),
        "max_ulp": Variable(Q, "largest difference in units in the last place, in the variant's precision"),
        "max_relative": Variable(Q, "largest difference over the larger of both values"),
        "max_tolerance": Variable(Q, "largest difference in units of atol + rtol |x|"),
        "over_rounding": Variable(Q, "largest difference over what rounding explains"),
        "over_limit": Variable(Q, "largest difference over what rounding and the choice of steps explain"),
        "detection_limit": Variable(
            Q,
            "a change of any value by more than this share of its size would have been called different",
            comment="the largest limit over all values; size: the largest of the scenario",
        ),
        "where": Variable(Q, "where the worst value is", dtype="str"),
        "where_scenario": Variable(Q, "index of the scenario of the worst value, -1 for none", dtype="int32"),
        "scenario_verdict": _status((*Q, "scenario"), "worst verdict of the scenario", AGREEMENT),
        "variant_verdict": _status(("variant",), "worst verdict of the variant", AGREEMENT),
        "n_replayed": _count(("variant",), "number of scenarios that were replayed"),
        "first_stage": Variable(("variant",), "first stage that diverges, empty where none does", dtype="str"),
        "first_scenario": Variable(
            ("variant",), "index of the first scenario that diverges there, -1 for none", dtype="int32"
        ),
        "first_step": Variable(
            ("variant",), "index of the first recorded step that does not come out again, -1 for none", dtype="int32"
        ),
        "first_time": Variable(("variant",), "model time of that step", units="{time}"),
        "first_state": Variable(("variant",), "state that diverges there, empty for none", dtype="str"),
        "reason": Variable(("variant",), "the likely reason", dtype="str"),
        "item_origin": _status(("item",), "what differs", ORIGINS),
        "item_here": Variable(("item",), "what this run has", dtype="str"),
        "item_there": Variable(("item",), "what the reference has", dtype="str"),
        "item_variants": Variable(("item",), "variants concerned", dtype="str"),
    },
    labels={
        "variant": "name of the variant",
        "kind": "free: each run chose its own steps; replayed: this run took the reference's",
        "quantity": "stage and name of what is compared",
        "scenario": "name of the scenario",
        "item": "name of the difference",
    },
)

SCHEMAS = {
    s.name: s
    for s in (
        *(MODEL, STEADY_STATE, DYNAMICS, GRADIENTS, FIT, SUMMARY),
        *(WORK_PRECISION, SPEED, TIMINGS, EFFECTS, COMPARISON),
    )
}
