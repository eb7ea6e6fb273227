"""The settings of a variant: their types, bounds and defaults, and what a wrong one is told.

Every parse of the Snakefile imports this module, in every job: standard library and pydantic only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, TypeGuard

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from retrograd.messages import one_of
from retrograd.rescue import RUNGS, ladder
from retrograd.scenarios import NUMERAL

GRADIENT_METHODS = ("replay", "forward", "checkpoint", "backsolve")
# What the benchmark measures besides: the check, differences of free solves, and diffrax with a full Newton iteration.
BENCHMARK_METHODS = ("replay", "forward", "fd", "checkpoint", "checkpoint_newton", "backsolve", "fd_free")
# Whose speed is measured side by side.
PEERS = ("retrograd", "diffrax", "diffrax_newton", "diffrax_loop", "casadi", "scipy", "retrograd_kvaerno5")
_IMPLICIT_SOLVERS = ("Kvaerno3", "Kvaerno4", "Kvaerno5")
_EXPLICIT_SOLVERS = ("Tsit5", "Dopri5", "Dopri8", "Bosh3", "Heun", "Midpoint", "Ralston")
# Those of diffrax, and one of ours.
SOLVERS = (*_IMPLICIT_SOLVERS, "Rodas5P", *_EXPLICIT_SOLVERS)

_SPLIT_SOLVERS = "KenCarp3 KenCarp4 KenCarp5 Sil3"
_OTHER_SOLVERS = (
    "ALIGN Euler EulerHeun GeneralShARK HalfSolver ItoMilstein LeapfrogMidpoint QUICSORT ReversibleHeun "
    "SEA SPaRK SRA1 SemiImplicitEuler ShARK ShOULD SlowRK StratonovichMilstein"
)
_REFUSED_SOLVERS = {
    "ImplicitEuler": "is refused: diffrax <= 0.7.2 ignores failed Newton solves in it (diffrax issue 753)",
    **dict.fromkeys(
        _SPLIT_SOLVERS.split(),
        "is refused: it needs a vector field split into an explicit and an implicit part",
    ),
    **dict.fromkeys(_OTHER_SOLVERS.split(), "is refused: no adaptive error estimate or no Butcher tableau"),
}
# Files and folders that stand beside the variants' folders in results/<study>/.
RESERVED = (
    *(
        "benchmarks",
        "chunks",
        "comparison",
        "debug",
        "effects.nc",
        "logs",
        "model.nc",
        "report",
        "summary.nc",
        "timings",
    ),
)


# Folders that stand beside the studies' own in results/.
RESERVED_STUDIES = ("archives", "reproductions")


# --- types ----------------------------------------------------------------------------------------


def refuse(wanted: str) -> NoReturn:
    raise PydanticCustomError("retrograd", "{wanted}", {"wanted": wanted})


def only(wanted: str, test: Callable[[Any], bool]) -> BeforeValidator:
    def check(value: Any) -> Any:
        return value if test(value) else refuse(wanted)

    return BeforeValidator(check)


def real(wanted: str, test: Callable[[float], bool] = lambda _: True) -> BeforeValidator:
    def check(value: Any) -> float:
        # YAML 1.1 takes 1e-6 (no dot) and 1.0e30 (no sign in the exponent) for texts; whoever writes them
        # means the numbers.
        if isinstance(value, str) and NUMERAL.fullmatch(value):
            value = float(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            number = float(value) if is_number else math.nan
        except OverflowError:
            number = math.inf
        return number if math.isfinite(number) and test(number) else refuse(wanted)

    return BeforeValidator(check)


def whole(wanted: str, low: int, high: int) -> BeforeValidator:
    return only(wanted, lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high)


def choice(options: Sequence[str], refused: Mapping[str, str] = MappingProxyType({})) -> BeforeValidator:
    """Returns a validator of one of some words; `refused`: words that users may try, and why not."""

    def check(value: Any) -> str:
        if isinstance(value, str) and value in options:
            return value
        if isinstance(value, str) and value in refused:
            refuse(f"one of {', '.join(options)}; {value} {refused[value]}")
        refuse(one_of(value, options))

    return BeforeValidator(check)


# Of a folder's name: a path of three of them, with what stands around, has its place everywhere.
LONGEST_NAME = 200
# What Windows takes for a device, with any ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.I)


def is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not _why_no_name(value)


def _why_no_name(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_.-]+", value) is None or value in (".", ".."):
        return "a name of the characters A-Z a-z 0-9 _ . - and no others"
    if len(value) > LONGEST_NAME:
        return f"a name of at most {LONGEST_NAME} characters"
    if value[0] == "-" or value[-1] == ".":
        return "a name that neither begins with - nor ends with ., since folders are called so"
    return "another name: Windows takes this one for a device" if _DEVICES.fullmatch(value) else ""


def check_name(value: Any) -> str:
    if not isinstance(value, str):
        refuse(f"{_why_no_name('')}, in quotes (YAML reads something else)")
    if why := _why_no_name(value):
        refuse(why)
    return value


def check_study_name(value: Any) -> str:
    name = check_name(value)
    if name.casefold() in RESERVED_STUDIES:
        refuse(f"another name: results/{name} is taken (as are {', '.join(RESERVED_STUDIES)})")
    return name


def check_variant_name(value: Any) -> str:
    name = check_name(value)
    if name.casefold() in RESERVED:
        refuse(f"another name: results/<study>/{name} is taken (as are {', '.join(RESERVED)})")
    return name


def is_path(value: Any) -> TypeGuard[str]:
    # Snakemake reads braces in a file name as wildcards.
    is_text = isinstance(value, str) and bool(value.strip())
    return is_text and value.isprintable() and not set(value) & set("{}")


def _none_word(value: Any) -> Any:
    # YAML has no word `none`: it arrives as a text.
    if value is None or value == "none":
        return None
    return value if isinstance(value, dict) else refuse("none, or a mapping with the keys x_max, dx_fill")


def once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        refuse("a list with at least one entry")
    twice = sorted({v for v in values if values.count(v) > 1})
    if twice:
        refuse(f"every entry once; {', '.join(map(repr, twice))} stands there more than once")
    return values


def falling(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or any(after >= before for before, after in pairwise(values)):
        refuse("a list of falling numbers, at least one")
    return values


def rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        refuse("a list with at least one time")
    for before, after in pairwise(values):
        if after <= before:
            refuse(f"strictly increasing times; {after!r} comes after {before!r}")
    return values if values[-1] > 0.0 else refuse("a last time above 0")


Text = Annotated[str, only("a text", lambda v: isinstance(v, str) and bool(v.strip()))]
Flag = Annotated[bool, only("true or false", lambda v: isinstance(v, bool))]
Name = Annotated[str, BeforeValidator(check_name)]
StudyName = Annotated[str, BeforeValidator(check_study_name)]
VariantName = Annotated[str, BeforeValidator(check_variant_name)]


def is_orcid(value: Any) -> bool:
    """Returns whether a value is an ORCID, its last digit right (ISO 7064, 11-2)."""
    if not (isinstance(value, str) and re.fullmatch(r"(\d{4}-){3}\d{3}[\dX]", value)):
        return False
    total = 0
    for digit in value.replace("-", "")[:-1]:
        total = 2 * (total + int(digit))
    return "0123456789X"[(12 - total % 11) % 11] == value[-1]


def _day(value: Any) -> str:
    # YAML makes a date of an unquoted one.
    text = value.isoformat() if isinstance(value, date) else value
    try:
        good = isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        good = False
    return text if good else refuse("a date, such as 2026-11-23")


def is_doi(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"10\.\d{4,9}/\S+", value) is not None


FilePath = Annotated[str, only("a path, relative to the working directory or absolute, without { and }", is_path)]
Finite = Annotated[float, real("a finite number")]
Positive = Annotated[float, real("a finite number above 0", lambda v: v > 0)]
Relative = Annotated[float, real("a number above 0 and below 1", lambda v: 0 < v < 1)]
Time = Annotated[float, real("a finite number, 0 or above", lambda v: v >= 0)]
Steps = Annotated[int, whole("a whole number from 1 to 2147483647", 1, 2**31 - 1)]
Size = Annotated[int, whole("a whole number from 1 to 100000", 1, 100_000)]
Natural = Annotated[int, whole("a whole number, 0 or above", 0, 2**31 - 1)]
Method = Annotated[str, choice(GRADIENT_METHODS)]
Day = Annotated[str, BeforeValidator(_day)]
Doi = Annotated[str, only("a DOI, such as 10.5281/zenodo.1234567", is_doi)]
Orcid = Annotated[str, only("an ORCID with its last digit right, such as 0000-0002-1825-0097", is_orcid)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- variants -------------------------------------------------------------------------------------


class Guard(Part):
    """Bounds on what the vector field sees and gives back."""

    x_max: Positive = Field(description="bound on |x| of every state as the vector field sees it [unit of the state]")
    dx_fill: Finite = Field(description="rate in place of one that is not finite [unit of the state / time unit]")


class SteadyState(Part):
    """How the steady state is sought."""

    method: Annotated[Literal["root", "integrate"], choice(("root", "integrate"))] = Field(
        default="root", description="root: a root find; integrate: integration until nothing moves"
    )
    rtol: Relative = Field(default=1.0e-10, description="relative tolerance [1]")
    atol: Positive = Field(default=1.0e-10, description="absolute tolerance [unit of the state]")
    max_steps: Steps = Field(default=256, description="most iterations, or steps of the integration [1]")
    starts: Natural = Field(
        default=0, description="further starts of the root find, around the first guess, where it gives none [1]"
    )


class Nonlinear(Part):
    """The inner solve of implicit steps; explicit solvers have none."""

    method: Annotated[Literal["newton", "chord"], choice(("newton", "chord"))] = Field(
        default="newton", description="newton: a new Jacobian every iteration; chord: one Jacobian a stage"
    )
    rtol: Relative | None = Field(default=None, description="relative tolerance [1]; null: the controller's")
    atol: Positive | None = Field(
        default=None, description="absolute tolerance [unit of the state]; null: the controller's"
    )


class Controller(Part):
    """The step-size controller."""

    rtol: Relative = Field(default=1.0e-6, description="relative tolerance [1]")
    atol: Positive = Field(default=1.0e-8, description="absolute tolerance [unit of the state]")
    pcoeff: Finite = Field(default=0.0, description="proportional coefficient [1]")
    icoeff: Finite = Field(default=1.0, description="integral coefficient [1]")
    dcoeff: Finite = Field(default=0.0, description="derivative coefficient [1]")
    dtmax: Positive | None = Field(default=None, description="longest step [time unit of the model]; null: any")
    dt0: Positive | None = Field(default=None, description="first step [time unit of the model]; null: chosen")
    sensitivities: bool = Field(
        default=False,
        description="whether the derivative of the states along one direction of start, parameters and weights is kept "
        "within the tolerances too; steps take two to three times as long",
    )


class Segment(Part):
    """One stage of a solve in stages."""

    until: Positive = Field(description="model time at which the stage ends [time unit of the model]")
    dtmax: Positive | None = Field(
        default=None, description="longest step in it [time unit of the model]; null: the controller's dtmax"
    )


def _stages(values: tuple[Segment, ...]) -> tuple[Segment, ...]:
    rising(tuple(s.until for s in values))
    return values


def _check_rung(value: Any) -> Any:
    if isinstance(value, str):
        return value if value in RUNGS else refuse(one_of(value, tuple(RUNGS)))
    if not isinstance(value, dict) or len(value) < 2 or not is_name(value.get("name")):
        refuse(f"one of {', '.join(RUNGS)}, or a mapping with a name (A-Z a-z 0-9 _ . -) and settings to change")
    if value["name"] in (*RUNGS, "none"):
        refuse(f"another name than that of a built-in rung ({value['name']})")
    wrong = set(value) & {"rescue", "gradient", "precision"}
    return value if not wrong else refuse(f"a rung without {', '.join(sorted(wrong))}, which a rung cannot change")


class Variant(Part):
    """A complete numerical treatment; what is left out is as in the built-in `recommended`."""

    precision: Annotated[Literal["float32", "float64"], choice(("float32", "float64"))] = Field(
        default="float64", description="float32 or float64"
    )
    formulation: Text = Field(default="stable", description="one of the model's formulations")
    guard: Annotated[Guard | None, BeforeValidator(_none_word)] = Field(
        default=None, description="none, or bounds on the state and the rates: x_max, dx_fill"
    )
    steady_state: SteadyState = Field(default=SteadyState(), description="search for the steady state")
    solver: Annotated[str, choice(SOLVERS, _REFUSED_SOLVERS)] = Field(
        default="Kvaerno5", description=f"a diffrax solver, or our Rodas5P: {', '.join(SOLVERS)}"
    )
    nonlinear: Nonlinear = Field(default=Nonlinear(), description="inner solve of implicit steps")
    controller: Controller = Field(default=Controller(), description="step-size controller")
    segments: Annotated[tuple[Segment, ...], AfterValidator(_stages)] | None = Field(
        default=None,
        description="null, or stages to solve in, by increasing `until`; "
        "after the last one the controller's dtmax holds",
    )
    max_steps: Steps = Field(default=16384, description="most attempts, accepted and rejected, a simulation [1]")
    rescue: tuple[Annotated[str | dict[str, Any], BeforeValidator(_check_rung)], ...] = Field(
        default=(),
        description="what is tried, in order, where a steady state or a simulation fails: names of built-in rungs "
        f"({', '.join(RUNGS)}), or mappings with a `name` and the settings to change",
    )
    gradient: Method | None = Field(
        default=None, description="gradient method whose verdict decides the outcome; null: the study's first"
    )

    @model_validator(mode="after")
    def _rungs_are_variants(self) -> Variant:
        if self.rescue:
            once(tuple(rung if isinstance(rung, str) else rung["name"] for rung in self.rescue))
            self.rungs(1.0)
        return self

    def rungs(self, stop: float) -> list[tuple[str, dict[str, Any]]]:
        """Returns name and settings, plain data, of each rung of the rescue ladder, in order.

        - `stop`: the last save time [time unit of the model].
        """
        out = []
        for name, settings in ladder(self.model_dump(mode="json"), stop):
            try:
                out.append((name, Variant.model_validate(settings).model_dump(mode="json")))
            except ValidationError as error:
                told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                refuse(f"settings of a variant in the rung {name} ({told})")
        return out
