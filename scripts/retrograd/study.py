"""The config of a study: read, checked as a whole, handed to the rules.

Every parse of the Snakefile imports this module, in every job: standard library, yaml and pydantic only.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
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
from retrograd.scenarios import Table, read_scenarios
from retrograd.settings import (
    BENCHMARK_METHODS,
    GRADIENT_METHODS,
    FilePath,
    Flag,
    Method,
    Name,
    Natural,
    Part,
    Relative,
    Size,
    Text,
    Time,
    Variant,
    VariantName,
    check_variant_name,
    choice,
    falling,
    is_name,
    is_path,
    once,
    rising,
)

# Keys that `snakemake --config` puts beside the study: arguments of single commands, no part of it.
ARGUMENTS = ("archive", "reference", "scenario", "variant", "trust_plugin", "portable")
STAGES = ("steady_state", "dynamics", "gradients")
STARTS = ("steady_state", "initial_state")
WRT = ("dynamic", "steady", "network")


# --- the study ------------------------------------------------------------------------------------


class ModelFile(Part):
    """Where the model comes from."""

    plugin: FilePath = Field(description="the plug-in, a Python file; trusted code; relative to the working directory")
    class_: Text = Field(alias="class", description="name of the model class in the plug-in")
    weights: FilePath | None = Field(
        default=None, description="pretrained weights, .safetensors or .eqx; null: as build() gives them"
    )


class Grid(Part):
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
        rising(self.times())
        return self


class Gradient(Part):
    """Which derivatives of the loss are formed and checked."""

    methods: Annotated[tuple[Method, ...], AfterValidator(once)] = Field(
        default=("replay", "checkpoint"), description=f"how they are formed: {', '.join(GRADIENT_METHODS)}"
    )
    wrt: Annotated[tuple[Annotated[str, choice(WRT)], ...], AfterValidator(once)] = Field(
        default=WRT,
        description="with respect to what: dynamic (k of the dynamic phase), steady (k of the steady phase; "
        "nothing with start: initial_state), network (its weights)",
    )
    directions: Natural = Field(
        default=4,
        description="number of random directions for the finite-difference check of the network weights [1]; 0: none",
    )
    seed: Natural = Field(default=0, description="seed of those directions [1]")
    free_differences: Natural = Field(
        default=0,
        description="scenarios of each job whose derivatives are also taken by differences of free solves [1]",
    )
    reference: Natural = Field(
        default=0,
        description="scenarios of each job whose derivatives are also taken by SciPy, on sensitivity equations [1]",
    )


class Benchmark(Part):
    """What `snakemake benchmark` measures; no other target depends on it."""

    scenarios: Size = Field(default=32, description="number of scenarios, spread evenly over the table [1]")
    methods: Annotated[tuple[Annotated[str, choice(BENCHMARK_METHODS)], ...], AfterValidator(once)] = Field(
        default=BENCHMARK_METHODS, description="which ways to the derivatives"
    )
    tolerances: Annotated[tuple[Relative, ...], AfterValidator(falling)] = Field(
        default=(1e-3, 1e-5, 1e-7, 1e-9),
        description="relative tolerances of the controller, falling; the absolute ones are a hundredth of them [1]",
    )


def _save_times_kind(value: Any) -> str | None:
    if isinstance(value, dict | Grid):
        return "<grid>"
    return "<list>" if isinstance(value, list | tuple) else None


class Study(Part):
    """A study as its config file describes it; `load_study` makes it."""

    study: Name = Field(description="name: results go to results/<study>/; characters A-Z a-z 0-9 _ . -")
    model: ModelFile = Field(description="the model: plugin, class, weights")
    scenarios: FilePath = Field(description="scenario table, a TSV file; relative to the working directory")
    start: Annotated[Literal["steady_state", "initial_state"], choice(STARTS)] = Field(
        default="steady_state",
        description="where the dynamics begin: steady_state, or initial_state, which the model defines",
    )
    save_times: Annotated[
        Annotated[Grid, Tag("<grid>")] | Annotated[Annotated[tuple[Time, ...], AfterValidator(rising)], Tag("<list>")],
        Discriminator(
            _save_times_kind,
            custom_error_type="retrograd",
            custom_error_message="{wanted}",
            custom_error_context={"wanted": "a mapping with the keys start, stop, num, or a list of times"},
        ),
    ] = Field(description="{start, stop, num} or a list of strictly increasing times [time unit of the model]")
    variants: Annotated[tuple[VariantName, ...], AfterValidator(once)] = Field(
        description="which variants are computed: built-in ones, or those of define_variants"
    )
    define_variants: dict[VariantName, Variant] = Field(
        default_factory=dict,
        description="further variants, name to settings; keys left out are as in `recommended`",
    )
    chunk_size: Size = Field(default=64, description="scenarios per job [1]")
    gradient: Gradient = Field(default=Gradient(), description="which derivatives are formed and checked")
    benchmark: Benchmark = Field(default=Benchmark(), description="what `snakemake benchmark` measures")
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
    initial_state` the gradients depend neither on the search for a steady state (`find` is None)
    nor on parameters of the steady phase (`wrt` is without it).
    """
    variant = study.variant(variant_name)
    formulation = study.formulation_of(variant_name)
    settings = variant.model_dump(mode="json") | {"formulation": formulation}
    rungs = []
    for name, changed in variant.rungs(study.times()[-1]):
        same = changed["formulation"] == variant.formulation
        rungs.append((name, changed | {"formulation": formulation} if same else changed))
    steady = study.start == "steady_state"
    find = _of_stage(settings, _STEADY_KEYS) | {"rescue": _rescue(settings, rungs, _STEADY_KEYS)}
    solve = _of_stage(settings, _DYNAMICS_KEYS) | {"rescue": _rescue(settings, rungs, _DYNAMICS_KEYS)}
    if stage == "steady_state":
        return find
    solve |= {"save_times": list(study.times()), "start": study.start}
    if stage == "dynamics":
        return solve
    if stage != "gradients":
        raise ValueError(f"stage is {stage!r}, wanted one of {', '.join(STAGES)}.")
    gradient = study.gradient.model_dump(mode="json")
    # The order in which the config lists them changes nothing.
    gradient["wrt"] = [w for w in WRT if w in study.gradient.wrt and (steady or w != "steady")]
    return {**solve, "find": find if steady else None, "gradient": gradient}


_FIELD_KEYS = ("precision", "formulation", "guard")
_STEADY_KEYS = (*_FIELD_KEYS, "steady_state")
_DYNAMICS_KEYS = (*_FIELD_KEYS, "solver", "nonlinear", "controller", "segments", "max_steps")


def _of_stage(settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: settings[key] for key in keys}


def _rescue(
    settings: Mapping[str, Any], rungs: Sequence[tuple[str, Mapping[str, Any]]], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the rungs that are something new for a stage: its settings, and `rung`, the place in the whole ladder.

    The others stand there by name only, so that the numbers of rungs are the same in every stage.
    """
    seen = [_of_stage(settings, keys)]
    out = []
    for name, changed in rungs:
        mine = _of_stage(changed, keys)
        out.append({"name": name, "settings": None if mine in seen else mine})
        seen.append(mine)
    return out


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
    if is_path(plugin_path) and isinstance(class_name, str) and not lines:
        plugin, lines = look_at_plugin(plugin_path, class_name)
    problems += lines
    start = raw.get("start", "steady_state")
    problems += _check_against_model(raw, plugin, start)

    table: Table | None = None
    scenarios = raw.get("scenarios")
    lines = _check_file("scenarios", scenarios, (), "a TSV file of scenarios")
    problems += lines
    if is_path(scenarios) and not lines:
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
            check_variant_name(name)
            variants[name] = Variant.model_validate(settings)
        except PydanticCustomError as error:
            problems.append(f"{path}: found the name {show(name)}, wanted {error.message()}")
        except ValidationError as error:
            problems.extend(f"{path}: {line}" for line in _explain(error, Variant, root=(name,)))
    return variants, problems


def _check_file(key: str, path: Any, suffixes: tuple[str, ...], what: str) -> list[str]:
    """Returns the problems with a file that the config names; pydantic tells where it is no path."""
    if not is_path(path):
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
    names = [name for name in own if is_name(name)] if isinstance(own, Mapping) else []
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
        method, rescue = _sub(settings, "gradient"), _sub(settings, "rescue")
        rungs = [(f"{path}.rescue[{i}]", r) for i, r in enumerate(rescue if isinstance(rescue, list | tuple) else ())]
        for place, part in [(path, settings), *rungs]:
            formulation = _sub(part, "formulation")
            if isinstance(formulation, str) and plugin.formulations and formulation not in plugin.formulations:
                choices = one_of(formulation, plugin.formulations)
                told = f"found {formulation!r}, wanted a formulation of the model: {choices}"
                problems.append(f"{place}.formulation: {told}")
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
