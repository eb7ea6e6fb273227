"""A study's config, read and checked as a whole: every problem in one message.

Every parse of the Snakefile imports this module, in every job: standard library, yaml and pydantic only.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from retrograd.errors import RetrogradError
from retrograd.factors import MOST_CELLS, MOST_SHARED, cells, level_changes, settings_of, sharing
from retrograd.imported import ImportedProblem, complete_scenarios, import_model, source_digest
from retrograd.messages import ConfigError, capped, guess, one_of, overgrown, show, step, stumbled
from retrograd.optional import WEIGHT_SUFFIXES
from retrograd.patience import at_most
from retrograd.plugin_source import Plugin, look_at_plugin
from retrograd.provenance import canonical, file_digest, text_digest
from retrograd.rescue import changed
from retrograd.scenarios import Table, read_scenarios
from retrograd.settings import GRADIENT_METHODS, Variant, check_variant_name, is_name, is_path
from retrograd.study import ARGUMENTS, IMPORTED, STARTS, Study

# Where plug-ins are written that are made of other files.
MADE = Path(".snakemake", "retrograd", "imported")


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
    if why := overgrown(raw):
        raise ConfigError([f"the config: {why}"])
    raw, imported = _with_plugin(raw)
    problems: list[str] = []
    study: Study | None = None
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        problems += _explain(error, Study)
    built_in, lines = _read_variants(variants_file)
    problems += lines
    problems += _check_variant_names(raw, built_in, variants_file)
    problems += _check_file("model.weights", _sub(raw, "model", "weights"), WEIGHT_SUFFIXES, "a weights file")

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
    if study is not None and imported is not None:
        problems += _check_problem(study, imported)
    if study is not None:
        study, lines = _with_cells(study, built_in, plugin)
        problems += lines
    if study is not None and table is not None and not problems:
        study._arguments = {key: config[key] for key in ARGUMENTS if key in config}
        study._built_in, study._table, study._formulations = built_in, table, plugin.formulations
        study._measured = plugin.has_measurements
        problems += _check_save_times(study)
    if problems or study is None:
        raise ConfigError(problems)
    return study


def _with_plugin(raw: dict[str, Any]) -> tuple[dict[str, Any], ImportedProblem | None]:
    """Returns the config with a plug-in in the place of a model in another format, and a table that fits it.

    Then what was imported beside a model. Raises ConfigError with the problems of either.

    What is made lies below `.snakemake`, in a folder by the content of model and table: jobs that parse the Snakefile
    anew find it there.
    """
    kinds = [kind for kind in IMPORTED if _sub(raw, "model", kind) is not None]
    if not kinds:
        return raw, None
    kind, model = kinds[0], raw["model"]
    path, table = model[kind], raw.get("scenarios")
    if len(kinds) == 1 and _is_made_of(model.get("plugin"), kind, path):
        # As archives have it: whoever computes the study anew needs no reader of that format.
        return raw, None
    beside = [key for key in ("plugin", "class", "weights", *kinds[1:]) if model.get(key) is not None]
    if beside:
        told = f"model: found {', '.join(beside)} beside {kind}, wanted {kind} alone, of which a plug-in is made"
        raise ConfigError([told])
    problems = [] if is_path(path) else [f"model.{kind}: found {show(path)}, wanted a path"]
    problems += _check_file(f"model.{kind}", path, IMPORTED[kind], "a model file")
    problems += _check_file("scenarios", table, (), "a TSV file of scenarios")
    if problems:
        raise ConfigError(problems)
    if not (table is None or is_path(table)):
        return raw, None
    try:
        content = [source_digest(kind, path), *([] if table is None else [file_digest(table)])]
        folder = MADE / text_digest(canonical([kind, Path(path).name, *content]))[:16]
        with at_most(f"model.{kind}: importing {path}", "Its formulas are too large, or grow where they are put in."):
            made = import_model(kind, path, folder)
        completed = complete_scenarios(made, table, folder)
    except ConfigError:
        raise
    except RetrogradError as error:
        raise ConfigError([f"model.{kind}: {error}".replace("\n", "\n  ")]) from error
    except Exception as error:
        # Files that no reader foresaw make sympy, libsbml and petab stumble over whatever it is.
        told = f"model.{kind}: {path} cannot be imported: {stumbled(error)}; mend the file, or report this"
        raise ConfigError([told]) from error
    model = {**model, "plugin": str(made.plugin), "class": made.class_name}
    if made.weights is not None:
        model["weights"] = str(made.weights)
    given: dict[str, Any] = {}
    if made.problem is not None:
        given = {"start": made.problem.start, "save_times": made.problem.save_times, "variants": ["precise"]}
    return given | raw | {"model": model, "scenarios": str(completed)}, made.problem


def _check_problem(study: Study, problem: ImportedProblem) -> list[str]:
    """Returns what does not fit in a study of a problem with measurements."""
    problems = []
    if study.start != problem.start:
        told = "has a" if problem.start == "steady_state" else "has no"
        problems.append(
            f"start: found {study.start!r}, wanted {problem.start} or nothing: the problem {told} steady state before "
            "its experiments"
        )
    missing = [time for time in problem.times if time not in study.times()]
    if missing:
        told = ", ".join(f"{time:g}" for time in missing[:5]) + (", ..." if len(missing) > 5 else "")
        problems.append(f"save_times: found no {told}, wanted all times of measurements, or nothing")
    return problems


def _is_made_of(plugin: Any, kind: str, path: Any) -> bool:
    """Returns whether a plug-in says that it was made of a file."""
    try:
        return source_digest(kind, path) in Path(plugin).read_text(encoding="utf-8")
    except (OSError, TypeError, ValueError, RetrogradError):
        return False


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return {}, [f"{path}: found no valid YAML ({' '.join(str(error).split())})"]
    if why := overgrown(content):
        return {}, [f"{path}: {why}"]
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


def _with_cells(study: Study, built_in: Mapping[str, Variant], plugin: Plugin) -> tuple[Study, list[str]]:
    """Returns the study with the variants that its factors make, and the problems with these."""
    factors = study.factors
    known = {**built_in, **study.define_variants}
    if factors is None:
        return study, []
    if factors.base not in known:
        return study, [f"factors.base: found {factors.base!r}, wanted {one_of(factors.base, list(known))}"]
    base, keys = known[factors.base].model_dump(mode="json"), list(_keys(Variant))
    changes: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    taken: dict[str, str] = {}
    for factor, levels in factors.levels.items():
        place = f"factors.levels.{step(factor)}"
        changes[factor] = level_changes(factor, levels, keys)
        for name, change in changes[factor].items():
            twin = taken.setdefault(str(name).casefold(), factor)
            if twin != factor:
                problems.append(f"{place}: found the level {name!r}, which {twin} has too, wanted names used once")
            problems += _check_level(f"{place}.{step(name)}", factor, change, base, study, plugin)
    sizes, two = [len(levels) for levels in changes.values()], len(sharing(changes))
    if not sizes:
        problems.append("factors.levels: found no factor, wanted one at least")
    elif factors.fraction > 2 ** max(two - 1, 0) or (factors.fraction > 1 and two > MOST_SHARED):
        problems.append(
            f"factors.fraction: found {factors.fraction} with {two} factors of two levels, which share it, wanted at "
            f"most 2^(their number - 1), and at most {MOST_SHARED} of them"
        )
    elif math.prod(sizes) // factors.fraction > MOST_CELLS:
        problems.append(f"factors: found {math.prod(sizes) // factors.fraction} variants, wanted at most {MOST_CELLS}")
    if problems:
        return study, problems
    made = cells(changes, factors.fraction)
    variants: dict[str, Variant] = {}
    there = {name.casefold(): name for name in (*known, *study.variants)}
    for name, levels in made.items():
        try:
            check_variant_name(name)
            variants[name] = Variant.model_validate(settings_of(base, changes, levels))
        except PydanticCustomError as error:
            problems.append(f"factors: found the name {name!r} of a variant, wanted {error.message()}")
        except ValidationError as error:
            problems += [f"factors, variant {name}: {line}" for line in _explain(error, Variant)]
        if name.casefold() in there:
            problems.append(f"factors: found the name {name!r}, which a variant has already, wanted other levels")
    if problems:
        return study, capped(problems)
    update = {"variants": (*study.variants, *made), "define_variants": {**study.define_variants, **variants}}
    study = study.model_copy(update=update)
    study._cells = made
    return study, []


def _check_level(
    place: str, factor: str, change: Any, base: Mapping[str, Any], study: Study, plugin: Plugin
) -> list[str]:
    """Returns the problems with what a level changes."""
    keys = list(_keys(Variant))
    if not isinstance(change, Mapping):
        told = f"a mapping of settings, since {factor} is no key of a variant{guess(factor, keys)}"
        return [f"{place}: found {show(change)}, wanted {told}"]
    try:
        Variant.model_validate(changed(base, change))
    except ValidationError as error:
        return _explain(error, Variant, root=tuple(place.split(".")))
    formulation, method = change.get("formulation"), change.get("gradient")
    if formulation is not None and plugin.formulations and formulation not in plugin.formulations:
        wanted = one_of(formulation, plugin.formulations)
        return [f"{place}: found the formulation {formulation!r}, wanted one of the model's: {wanted}"]
    if method is not None and method not in study.gradient.methods:
        wanted = one_of(method, study.gradient.methods)
        return [f"{place}: found the gradient {method!r}, wanted one of this study's gradient.methods: {wanted}"]
    return []


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


def _check_save_times(study: Study) -> list[str]:
    """Returns what the solver's times cannot hold: it ends a step at each, and a step of one ulp it passes over."""
    problems, seen = [], set()
    for index, name in enumerate(study.variants):
        variant = study.variant(name)
        wide = variant.precision == "float64"
        if variant.segments is None and (wide, "good") in seen:
            continue
        low, high = (1e-200, 1e200) if wide else (1e-20, 1e30)
        last = study.times()[-1]
        ends = [s.until for s in variant.segments or () if s.until < last]
        # As whole numbers, floats of one sign are in order, and neighbours are one apart.
        bits = array("q" if wide else "i")
        bits.frombytes(array("d" if wide else "f", sorted({*study.times(), *ends})).tobytes())
        if not low <= last <= high:
            wanted = f"a last one from {low:g} to {high:g}, in another unit of time"
            told = f"save_times: found {last!r} as the last one, wanted {wanted}, with precision {variant.precision}"
        elif any(b - a < 2 for a, b in pairwise(bits)):
            if wide:
                told = "save_times: found two, or one and the end of a segment, that are neighbours in float64"
                told += ", wanted times that are further apart"
            else:
                told = (
                    f"variants[{index}]: found {name!r} with precision float32, wanted save times apart in float32 too"
                )
        else:
            seen |= {(wide, "good")}
            continue
        problems.append(told)
    return list(dict.fromkeys(problems))
