"""The config of a study: read, checked as a whole, handed to the rules.

Every parse of the Snakefile imports this module, in every job: standard library, yaml and pydantic only.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, TypeGuard, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from retrograd.messages import ConfigError, capped, guess, one_of, show, step
from retrograd.plugin_source import Plugin, look_at_plugin
from retrograd.scenarios import NUMERAL, Table, read_scenarios

# Keys that `snakemake --config` puts beside the study: arguments of single commands, no part of it.
ARGUMENTS = ("archive", "reference", "scenario", "variant", "trust_plugin", "portable")
STAGES = ("steady_state", "dynamics", "gradients")
STARTS = ("steady_state", "initial_state")
GRADIENT_METHODS = ("replay", "checkpoint")
WRT = ("dynamic", "steady", "network")
_IMPLICIT_SOLVERS = ("Kvaerno3", "Kvaerno4", "Kvaerno5")
_EXPLICIT_SOLVERS = ("Tsit5", "Dopri5", "Dopri8", "Bosh3", "Heun", "Midpoint", "Ralston")
SOLVERS = (*_IMPLICIT_SOLVERS, *_EXPLICIT_SOLVERS)

_UNBUILT_METHODS: dict[str, str] = dict.fromkeys(("forward", "backsolve"), "is planned and not built yet")
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
_RESERVED = ("benchmarks", "comparison", "logs", "model.nc", "report", "summary.nc")


# --- types ----------------------------------------------------------------------------------------


def _refuse(wanted: str) -> NoReturn:
    raise PydanticCustomError("retrograd", "{wanted}", {"wanted": wanted})


def _only(wanted: str, test: Callable[[Any], bool]) -> BeforeValidator:
    def check(value: Any) -> Any:
        return value if test(value) else _refuse(wanted)

    return BeforeValidator(check)


def _real(wanted: str, test: Callable[[float], bool] = lambda _: True) -> BeforeValidator:
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
        return number if math.isfinite(number) and test(number) else _refuse(wanted)

    return BeforeValidator(check)


def _whole(wanted: str, low: int, high: int) -> BeforeValidator:
    return _only(wanted, lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high)


def _choice(options: Sequence[str], refused: Mapping[str, str] = MappingProxyType({})) -> BeforeValidator:
    """Returns a validator of one of some words; `refused`: words that users may try, and why not."""

    def check(value: Any) -> str:
        if isinstance(value, str) and value in options:
            return value
        if isinstance(value, str) and value in refused:
            _refuse(f"one of {', '.join(options)}; {value} {refused[value]}")
        _refuse(one_of(value, options))

    return BeforeValidator(check)


def _is_name(value: Any) -> TypeGuard[str]:
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", value) is not None
    return is_word and value not in (".", "..")


def _check_name(value: Any) -> str:
    if not _is_name(value):
        quoted = ", in quotes (YAML reads something else)" if not isinstance(value, str) else ""
        _refuse(f"a name of the characters A-Z a-z 0-9 _ . - and no others{quoted}")
    return value


def _check_variant_name(value: Any) -> str:
    name = _check_name(value)
    if name.casefold() in _RESERVED:
        _refuse(f"another name: results/<study>/{name} is taken (as are {', '.join(_RESERVED)})")
    return name


def _is_path(value: Any) -> TypeGuard[str]:
    # Snakemake reads braces in a file name as wildcards.
    is_text = isinstance(value, str) and bool(value.strip())
    return is_text and value.isprintable() and not set(value) & set("{}")


def _none_word(value: Any) -> Any:
    # YAML has no word `none`: it arrives as a text.
    if value is None or value == "none":
        return None
    return value if isinstance(value, dict) else _refuse("none, or a mapping with the keys x_max, dx_fill")


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        _refuse("a list with at least one entry")
    twice = sorted({v for v in values if values.count(v) > 1})
    if twice:
        _refuse(f"every entry once; {', '.join(map(repr, twice))} stands there more than once")
    return values


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        _refuse("a list with at least one time")
    for before, after in pairwise(values):
        if after <= before:
            _refuse(f"strictly increasing times; {after!r} comes after {before!r}")
    return values if values[-1] > 0.0 else _refuse("a last time above 0")


Text = Annotated[str, _only("a text", lambda v: isinstance(v, str) and bool(v.strip()))]
Flag = Annotated[bool, _only("true or false", lambda v: isinstance(v, bool))]
Name = Annotated[str, BeforeValidator(_check_name)]
VariantName = Annotated[str, BeforeValidator(_check_variant_name)]
FilePath = Annotated[str, _only("a path, relative to the working directory or absolute, without { and }", _is_path)]
Finite = Annotated[float, _real("a finite number")]
Positive = Annotated[float, _real("a finite number above 0", lambda v: v > 0)]
Relative = Annotated[float, _real("a number above 0 and below 1", lambda v: 0 < v < 1)]
Time = Annotated[float, _real("a finite number, 0 or above", lambda v: v >= 0)]
Steps = Annotated[int, _whole("a whole number from 1 to 2147483647", 1, 2**31 - 1)]
Size = Annotated[int, _whole("a whole number from 1 to 100000", 1, 100_000)]
Natural = Annotated[int, _whole("a whole number, 0 or above", 0, 2**31 - 1)]
Method = Annotated[str, _choice(GRADIENT_METHODS, _UNBUILT_METHODS)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- variants -------------------------------------------------------------------------------------


class Guard(_Part):
    """Bounds on what the vector field sees and gives back."""

    x_max: Positive = Field(description="bound on |x| of every state as the vector field sees it [unit of the state]")
    dx_fill: Finite = Field(description="rate in place of one that is not finite [unit of the state / time unit]")


class SteadyState(_Part):
    """How the steady state is sought."""

    method: Annotated[Literal["root", "integrate"], _choice(("root", "integrate"))] = Field(
        default="root", description="root: a root find; integrate: integration until nothing moves"
    )
    rtol: Relative = Field(default=1.0e-10, description="relative tolerance [1]")
    atol: Positive = Field(default=1.0e-10, description="absolute tolerance [unit of the state]")
    max_steps: Steps = Field(default=256, description="most iterations, or steps of the integration [1]")


class Nonlinear(_Part):
    """The inner solve of implicit steps; explicit solvers have none."""

    method: Annotated[Literal["newton", "chord"], _choice(("newton", "chord"))] = Field(
        default="newton", description="newton: a new Jacobian every iteration; chord: one Jacobian a stage"
    )
    rtol: Relative | None = Field(default=None, description="relative tolerance [1]; null: the controller's")
    atol: Positive | None = Field(
        default=None, description="absolute tolerance [unit of the state]; null: the controller's"
    )


class Controller(_Part):
    """The step-size controller."""

    rtol: Relative = Field(default=1.0e-6, description="relative tolerance [1]")
    atol: Positive = Field(default=1.0e-8, description="absolute tolerance [unit of the state]")
    pcoeff: Finite = Field(default=0.0, description="proportional coefficient [1]")
    icoeff: Finite = Field(default=1.0, description="integral coefficient [1]")
    dcoeff: Finite = Field(default=0.0, description="derivative coefficient [1]")
    dtmax: Positive | None = Field(default=None, description="longest step [time unit of the model]; null: any")
    dt0: Positive | None = Field(default=None, description="first step [time unit of the model]; null: chosen")


class Segment(_Part):
    """One stage of a solve in stages."""

    until: Positive = Field(description="model time at which the stage ends [time unit of the model]")
    dtmax: Positive | None = Field(
        default=None, description="longest step in it [time unit of the model]; null: the controller's dtmax"
    )


def _stages(values: tuple[Segment, ...]) -> tuple[Segment, ...]:
    _rising(tuple(s.until for s in values))
    return values


class Variant(_Part):
    """A complete numerical treatment; what is left out is as in the built-in `recommended`."""

    precision: Annotated[Literal["float32", "float64"], _choice(("float32", "float64"))] = Field(
        default="float64", description="float32 or float64"
    )
    formulation: Text = Field(default="stable", description="one of the model's formulations")
    guard: Annotated[Guard | None, BeforeValidator(_none_word)] = Field(
        default=None, description="none, or bounds on the state and the rates: x_max, dx_fill"
    )
    steady_state: SteadyState = Field(default=SteadyState(), description="search for the steady state")
    solver: Annotated[str, _choice(SOLVERS, _REFUSED_SOLVERS)] = Field(
        default="Kvaerno5", description=f"a diffrax solver: {', '.join(SOLVERS)}"
    )
    nonlinear: Nonlinear = Field(default=Nonlinear(), description="inner solve of implicit steps")
    controller: Controller = Field(default=Controller(), description="step-size controller")
    segments: Annotated[tuple[Segment, ...], AfterValidator(_stages)] | None = Field(
        default=None,
        description="null, or stages to solve in, by increasing `until`; "
        "after the last one the controller's dtmax holds",
    )
    max_steps: Steps = Field(default=16384, description="most attempts, accepted and rejected, a simulation [1]")
    gradient: Method | None = Field(
        default=None, description="gradient method whose verdict decides the outcome; null: the study's first"
    )


# --- the study ------------------------------------------------------------------------------------


class ModelFile(_Part):
    """Where the model comes from."""

    plugin: FilePath = Field(description="the plug-in, a Python file; trusted code; relative to the working directory")
    class_: Text = Field(alias="class", description="name of the model class in the plug-in")
    weights: FilePath | None = Field(
        default=None, description="pretrained weights, .safetensors or .eqx; null: as build() gives them"
    )


class Grid(_Part):
    """Evenly spaced save times."""

    start: Time = Field(description="first save time [time unit of the model]")
    stop: Time = Field(description="last save time [time unit of the model]")
    num: Size = Field(description="number of save times [1]; 1: only `stop`")

    def times(self) -> tuple[float, ...]:
        """Returns the save times, shape (num,), in the model's time unit; the last is `stop` to the bit."""
        last = self.num - 1
        return (*(self.start + (self.stop - self.start) * i / last for i in range(last)), self.stop)

    @model_validator(mode="after")
    def _in_order(self) -> Grid:
        _rising(self.times())
        return self


class Gradient(_Part):
    """Which derivatives of the loss are formed and checked."""

    methods: Annotated[tuple[Method, ...], AfterValidator(_once)] = Field(
        default=GRADIENT_METHODS, description=f"how they are formed: {', '.join(GRADIENT_METHODS)}"
    )
    wrt: Annotated[tuple[Annotated[str, _choice(WRT)], ...], AfterValidator(_once)] = Field(
        default=WRT,
        description="with respect to what: dynamic (k of the dynamic phase), steady (k of the steady phase; "
        "nothing with start: initial_state), network (its weights)",
    )
    directions: Natural = Field(
        default=4,
        description="number of random directions for the finite-difference check of the network weights [1]; 0: none",
    )
    seed: Natural = Field(default=0, description="seed of those directions [1]")


def _save_times_kind(value: Any) -> str | None:
    if isinstance(value, dict | Grid):
        return "<grid>"
    return "<list>" if isinstance(value, list | tuple) else None


class Study(_Part):
    """A study as its config file describes it; `load_study` makes it."""

    study: Name = Field(description="name: results go to results/<study>/; characters A-Z a-z 0-9 _ . -")
    model: ModelFile = Field(description="the model: plugin, class, weights")
    scenarios: FilePath = Field(description="scenario table, a TSV file; relative to the working directory")
    start: Annotated[Literal["steady_state", "initial_state"], _choice(STARTS)] = Field(
        default="steady_state",
        description="where the dynamics begin: steady_state, or initial_state, which the model defines",
    )
    save_times: Annotated[
        Annotated[Grid, Tag("<grid>")] | Annotated[Annotated[tuple[Time, ...], AfterValidator(_rising)], Tag("<list>")],
        Discriminator(
            _save_times_kind,
            custom_error_type="retrograd",
            custom_error_message="{wanted}",
            custom_error_context={"wanted": "a mapping with the keys start, stop, num, or a list of times"},
        ),
    ] = Field(description="{start, stop, num} or a list of strictly increasing times [time unit of the model]")
    variants: Annotated[tuple[VariantName, ...], AfterValidator(_once)] = Field(
        description="which variants are computed: built-in ones, or those of define_variants"
    )
    define_variants: dict[VariantName, Variant] = Field(
        default_factory=dict,
        description="further variants, name to settings; keys left out are as in `recommended`",
    )
    chunk_size: Size = Field(default=64, description="scenarios per job [1]")
    gradient: Gradient = Field(default=Gradient(), description="which derivatives are formed and checked")
    strict: Flag = Field(default=False, description="true: a scenario without a verified gradient fails the run")

    # What load_study found beside the config. No fields: those are the config's documentation.
    _arguments: dict[str, Any] = PrivateAttr(default_factory=dict)
    _built_in: dict[str, Variant] = PrivateAttr(default_factory=dict)
    _table: Table | None = PrivateAttr(default=None)
    _formulations: tuple[str, ...] | None = PrivateAttr(default=None)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments of single commands that stood beside the study, as given; keys are of `ARGUMENTS`."""
        return MappingProxyType(self._arguments)

    @property
    def table(self) -> Table:
        """The scenarios; raises RuntimeError on a study that `load_study` did not make."""
        if self._table is None:
            raise RuntimeError("This Study has no scenario table: only load_study reads it.")
        return self._table

    def times(self) -> tuple[float, ...]:
        """Returns the save times, shape (time,), in the model's time unit, strictly increasing."""
        return self.save_times.times() if isinstance(self.save_times, Grid) else self.save_times

    def variant(self, name: str) -> Variant:
        """Returns a variant by name, the study's own or a built-in one; raises KeyError for other names."""
        return self.define_variants[name] if name in self.define_variants else self._built_in[name]

    def formulation_of(self, name: str) -> str:
        """Returns the formulation that a variant, by name, uses on this study's model.

        Built-in variants name formulations that not every model has: these get `stable`, or the model's first
        one where it has no `stable` either. Where formulations cannot be read without importing the plug-in,
        the variant's own stands.
        """
        wanted, known = self.variant(name).formulation, self._formulations
        if known is None or wanted in known:
            return wanted
        return "stable" if "stable" in known else known[0]

    def gradient_of(self, name: str) -> str:
        """Returns the gradient method whose verdict decides the outcome of a variant, by name.

        It is the variant's own, if the study forms it, else the study's first one.
        """
        wanted = self.variant(name).gradient
        return wanted if wanted in self.gradient.methods else self.gradient.methods[0]


def stage_options(study: Study, variant_name: str, stage: str) -> dict[str, Any]:
    """Returns the settings that one stage's numbers depend on, and no others: plain data for canonical JSON.

    - `stage`: one of `STAGES`; raises ValueError for another one.

    Names stay out, so that two variants with the same settings give the same dict. With `start:
    initial_state` the gradients depend neither on the search for a steady state (`steady_state` is None)
    nor on parameters of the steady phase (`wrt` is without it).
    """
    variant = study.variant(variant_name)
    settings = variant.model_dump(mode="json")
    settings["formulation"] = study.formulation_of(variant_name)
    options = {key: settings[key] for key in ("precision", "formulation", "guard")}
    if stage == "steady_state":
        return {**options, "steady_state": settings["steady_state"]}
    options |= {key: settings[key] for key in ("solver", "nonlinear", "controller", "segments", "max_steps")}
    options |= {"save_times": list(study.times()), "start": study.start}
    if stage == "dynamics":
        return options
    if stage != "gradients":
        raise ValueError(f"stage is {stage!r}, wanted one of {', '.join(STAGES)}.")
    steady = study.start == "steady_state"
    gradient = study.gradient.model_dump(mode="json")
    # The order in which the config lists them changes nothing.
    gradient["wrt"] = [w for w in WRT if w in study.gradient.wrt and (steady or w != "steady")]
    return {**options, "steady_state": settings["steady_state"] if steady else None, "gradient": gradient}


# --- what pydantic found --------------------------------------------------------------------------


def _path(parts: Sequence[Any]) -> str:
    """Returns `variants[2]` or `define_variants.mine.controller.rtol` for a pydantic location."""
    text = ""
    for part in parts:
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{part}]"
        elif not (isinstance(part, str) and part.startswith("<")):
            text += f"{'.' if text else ''}{step(part)}"
    return text


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the model class somewhere in an annotation, which has one at most."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _model_at(model: type[BaseModel], loc: Sequence[Any]) -> type[BaseModel]:
    """Returns the class of the mapping at a pydantic location, or of the one around it."""
    parts = iter(loc)
    for part in parts:
        if part in _keys(model):
            model = _model_in(_keys(model)[part].annotation) or model
            if part == "define_variants":
                next(parts, None)  # the variant's name, which may be that of a key
    return model


def _explain(error: ValidationError, model: type[BaseModel], root: tuple[str, ...] = ()) -> list[str]:
    """Returns one line for each problem that pydantic found.

    - `root`: where in the file the model stands.
    """
    lines = []
    for item in error.errors(include_url=False):
        loc, kind, found = item["loc"], item["type"], item["input"]
        is_unknown = kind in ("extra_forbidden", "invalid_key")
        path = _path((*root, *loc))
        if is_unknown or loc[-1:] == ("[key]",):
            # Not _path of it all: a number as a key would look like a list index.
            *parents, key = loc if is_unknown else loc[:-1]
            path = ".".join(filter(None, (_path((*root, *parents)), step(key))))
        if is_unknown:
            around = _model_at(model, loc[:-1])
            keys = list(_keys(around))
            value = f"value {show(found)}" if kind == "extra_forbidden" else "which is no text"
            meant = guess(loc[-1], [*keys, *ARGUMENTS] if around is Study else keys)
            text = f"found an unknown key ({value}), wanted {', '.join(keys)}{meant}"
        elif kind == "missing":
            field = _keys(_model_at(model, loc[:-1]))[str(loc[-1])]
            text = f"found nothing, wanted {field.description}"
        else:
            wanted = f"otherwise: {item['msg']}"
            if kind == "retrograd":
                wanted = item["msg"]
            elif kind == "model_type":
                wanted = f"a mapping with the keys {', '.join(_keys(_model_at(model, loc)))}"
            elif kind == "dict_type":
                wanted = "a mapping of names to settings"
            elif kind == "tuple_type":
                wanted = "a list"
            text = f"found {show(found)}, wanted {wanted}"
        lines.append(f"{path}{': ' if path else ''}{text}")
    return capped(lines)


# --- loading --------------------------------------------------------------------------------------


def load_study(config: Mapping[str, Any], variants_file: Path) -> Study:
    """Returns the study that a config describes, with its scenarios; raises ConfigError with every problem.

    - `config`: what YAML made of the config file, Snakemake's `config` as a rule; it is not changed.
    - `variants_file`: the built-in variants, name to settings.

    Relative paths start at the working directory. Each source (config, built-in variants, plug-in, scenarios)
    is checked as far as the others allow, so that one run tells all.
    """
    raw = {key: value for key, value in config.items() if key not in ARGUMENTS}
    problems: list[str] = []
    study: Study | None = None
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        problems += _explain(error, Study)
    built_in, lines = _read_variants(variants_file)
    problems += lines
    problems += _check_variant_names(raw, built_in, variants_file)
    suffixes = (".safetensors", ".eqx")
    problems += _check_file("model.weights", _sub(raw, "model", "weights"), suffixes, "a weights file")

    plugin_path, class_name = _sub(raw, "model", "plugin"), _sub(raw, "model", "class")
    plugin = Plugin()
    lines = _check_file("model.plugin", plugin_path, (".py",), "a Python file")
    if _is_path(plugin_path) and isinstance(class_name, str) and not lines:
        plugin, lines = look_at_plugin(plugin_path, class_name)
    problems += lines
    start = raw.get("start", "steady_state")
    problems += _check_against_model(raw, plugin, start)

    table: Table | None = None
    scenarios = raw.get("scenarios")
    lines = _check_file("scenarios", scenarios, (), "a TSV file of scenarios")
    problems += lines
    if _is_path(scenarios) and not lines:
        known = {"parameters": plugin.parameters, "states": plugin.states}
        try:
            table = read_scenarios(scenarios, **known, start=start if start in STARTS else None)
        except ConfigError as error:
            problems += error.problems
    problems += _check_start(plugin, start, table)
    if study is not None and table is not None and not problems:
        study._arguments = {key: config[key] for key in ARGUMENTS if key in config}
        study._built_in, study._table, study._formulations = built_in, table, plugin.formulations
        problems += _check_float32(study)
    if problems or study is None:
        raise ConfigError(problems)
    return study


def _sub(raw: Any, *keys: str) -> Any:
    """Returns a value of a config that may be wrong in any way; None where there is nothing."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    return raw


def _read_variants(path: Path) -> tuple[dict[str, Variant], list[str]]:
    """Returns the built-in variants by name, and the problems of their file."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        return {}, [f"{path}: cannot be read ({error.strerror})"]
    except (yaml.YAMLError, ValueError) as error:
        return {}, [f"{path}: found no valid YAML ({' '.join(str(error).split())})"]
    if not isinstance(content, dict):
        return {}, [f"{path}: found {show(content)}, wanted a mapping of names to variants"]
    variants: dict[str, Variant] = {}
    problems: list[str] = []
    for name, settings in content.items():
        try:
            _check_variant_name(name)
            variants[name] = Variant.model_validate(settings)
        except PydanticCustomError as error:
            problems.append(f"{path}: found the name {show(name)}, wanted {error.message()}")
        except ValidationError as error:
            problems.extend(f"{path}: {line}" for line in _explain(error, Variant, root=(name,)))
    return variants, problems


def _check_file(key: str, path: Any, suffixes: tuple[str, ...], what: str) -> list[str]:
    """Returns the problems with a file that the config names; pydantic tells where it is no path."""
    if not _is_path(path):
        return []
    file = Path(path)
    try:
        if file.is_file():
            if not suffixes or file.suffix in suffixes:
                return []
            return [f"{key}: found {path!r}, wanted {what} (a name that ends in {' or '.join(suffixes)})"]
        if file.is_dir():
            return [f"{key}: found {path!r}, which is a folder, wanted {what}"]
        siblings = [str(p) for p in file.parent.iterdir()] if file.parent.is_dir() else []
        siblings = [p for p in siblings if not suffixes or p.endswith(suffixes)]
    except OSError as error:
        return [f"{key}: found {show(path)}, which cannot be looked up ({error.strerror}), wanted {what}"]
    return [f"{key}: found no file {path!r}, wanted {what}{guess(str(file), siblings)}"]


def _check_variant_names(raw: Mapping[str, Any], built_in: Mapping[str, Variant], file: Path) -> list[str]:
    own = _sub(raw, "define_variants")
    names = [name for name in own if _is_name(name)] if isinstance(own, Mapping) else []
    problems = [
        f"define_variants.{step(name)}: found the name of a built-in variant ({file}), wanted another name"
        for name in names
        if name in built_in
    ]
    chosen = _sub(raw, "variants")
    known = [*built_in, *(name for name in names if name not in built_in)]
    folded: dict[str, str] = {}
    for index, name in enumerate(chosen if isinstance(chosen, list | tuple) else ()):
        if not isinstance(name, str):
            continue
        if name not in known:
            problems.append(f"variants[{index}]: found {name!r}, wanted {one_of(name, known)}")
        # Each variant has a folder, and not every file system tells A from a.
        twin = folded.setdefault(name.casefold(), name)
        if twin != name:
            problems.append(f"variants[{index}]: found {name!r} beside {twin!r}, wanted more than another case")
    return problems


def _check_against_model(raw: Mapping[str, Any], plugin: Plugin, start: Any) -> list[str]:
    """Returns what in define_variants and gradient does not fit the model or the rest of the study."""
    problems = []
    methods = _sub(raw, "gradient", "methods")
    methods = methods if isinstance(methods, list | tuple) else GRADIENT_METHODS
    own = _sub(raw, "define_variants")
    for name, settings in own.items() if isinstance(own, Mapping) else ():
        path = f"define_variants.{step(name)}"
        formulation, method = _sub(settings, "formulation"), _sub(settings, "gradient")
        if isinstance(formulation, str) and plugin.formulations and formulation not in plugin.formulations:
            choices = one_of(formulation, plugin.formulations)
            problems.append(f"{path}.formulation: found {formulation!r}, wanted a formulation of the model: {choices}")
        if method in GRADIENT_METHODS and method not in methods:
            listed = ", ".join(map(step, methods))
            problems.append(f"{path}.gradient: found {method!r}, wanted one of this study's gradient.methods: {listed}")
    wrt = _sub(raw, "gradient", "wrt")
    if start == "initial_state" and isinstance(wrt, list | tuple) and list(wrt) == ["steady"]:
        problems.append(
            'gradient.wrt: found ["steady"], wanted dynamic or network too, '
            "since start: initial_state has no steady phase"
        )
    return problems


def _check_start(plugin: Plugin, start: Any, table: Table | None) -> list[str]:
    if start != "initial_state" or plugin.has_initial_state is not False:
        return []
    given = set(table.columns) if table else set()
    if plugin.states and given >= {f"x0:{name}" for name in plugin.states}:
        return []
    return [
        (
            "start: found 'initial_state', wanted steady_state, or a method initial_state(self, k) "
            "in the model's class, which has none"
        )
    ]


def _check_float32(study: Study) -> list[str]:
    times = array("f", study.times())
    if math.isfinite(times[-1]) and all(a < b for a, b in pairwise(times)):
        return []
    return [
        f"variants[{index}]: found {name!r} with precision float32, wanted save times apart in float32 too"
        for index, name in enumerate(study.variants)
        if study.variant(name).precision == "float32"
    ]
