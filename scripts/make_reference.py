"""Rewrites the generated tables of config/README.md from the code that they describe.

    python scripts/make_reference.py

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; what is around them is written by hand. The test
tests/unit/test_reference.py fails where the file and the code differ.
"""

from __future__ import annotations

import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from retrograd import schema
from retrograd.study import Study, Variant
from retrograd.wording import CAUSE_WORDS

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "config" / "README.md"
VARIANTS = ROOT / "config" / "variants.yaml"
COMMAND = "python scripts/make_reference.py"
BLOCK = re.compile(r"(<!-- generated: ([a-z_ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# One line for each code. The causes' words are those of the report.
CODES: dict[str, dict[str, str]] = {
    "steady_state_status": {
        "converged": "a stable root within the tolerance, which keeps the conserved quantities of its guess",
        "max_steps_reached": "iterations, or attempts of the integration, ran out; x is where they did, or NaN",
        "nonfinite": "the search met values that are not finite and nothing better; x is NaN",
        "unstable": "a root with an eigenvalue of positive real part, and no stable one was reached; x is that root",
        "not_a_root": "the search ended at x, where the residual is larger than the tolerance explains",
        "invalid": "guess or parameters are not finite (x is NaN); or x is a root whose Jacobian is singular, "
        "or that does not keep the conserved quantities",
    },
    "steady_state_method": {
        "root": "a root find, or the guess itself",
        "integrate": "integration from the guess until it is at rest, then polished by Newton's method",
    },
    "dynamics_status": {
        "successful": "the last save time was reached",
        "max_steps_reached": "the attempts ran out; rows at later save times are NaN",
        "dt_min_reached": "the next step would not move time in floating point, or a rejected one shrinks no further",
        "nonfinite": "rates were not finite at the start, or states where steps shrank to nothing",
        "skipped": "no finite start: no steady state was found, or initial_state or start_of_dynamics is not finite",
    },
    "verdict": {
        "verified": "automatic and finite differences agree within the sum of their error bounds",
        "refuted": "they differ by more than that",
        "inconclusive": "the bounds are too wide to tell",
        "nonfinite": "the derivative by automatic differentiation is NaN or inf",
        "skipped": "there was nothing to judge: the simulation failed, or nothing is differentiated by",
    },
    "fit_status": {
        "complete": "every experiment has a loss",
        "experiment_failed": "an experiment has none: it was not simulated, or its loss is not finite",
        "experiment_missing": "the study has no scenario of an experiment",
    },
    "outcome": {
        "verified": "simulated, and every derivative by the variant's own method is verified",
        "forward_failed": "the simulation did not reach the last save time",
        "gradient_nonfinite": "simulated, and a derivative is NaN or inf",
        "gradient_refuted": "simulated, and a derivative is refuted",
        "inconclusive": "simulated, and the check cannot tell for a derivative, or had nothing to check",
        "steady_state_failed": "no steady state to start from",
    },
    "cause": {name: words for name, (words, _) in CAUSE_WORDS.items()},
}
_FLAGS = {
    "steady_state_status": schema.STEADY_STATUS,
    "steady_state_method": schema.STEADY_METHOD,
    "dynamics_status": schema.DYNAMICS_STATUS,
    "verdict": schema.VERDICTS,
    "fit_status": schema.FIT_STATUS,
    "outcome": schema.OUTCOMES,
    "cause": schema.CAUSES,
}
_UNITS = {"{state}": "of the state", "{time}": "time unit", "{per_time}": "1 / time unit"}
_DTYPES = {"str": "string", "float64": "float", "int32": "int", "int8": "int8"}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    # Markdown takes <study> for HTML, and a bar for the next cell.
    return re.sub(r"<(\w+)>", r"&lt;\1&gt;", text).replace("|", "\\|")


def prose(text: str) -> str:
    """Returns a paragraph."""
    return textwrap.fill(text, 110, break_on_hyphens=False, break_long_words=False) + "\n"


# --- config keys ----------------------------------------------------------------------------------


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Returns what a key may hold, in the words of the message that a wrong value gets."""
    inner, optional = _without_none(annotation)
    extra = tuple(metadata)
    whole: Any = Annotated[(inner, *extra)] if extra else inner
    try:
        TypeAdapter(whole).validate_python("")
    except ValidationError as error:
        found = error.errors()[0]
    else:
        raise ValueError(f"{annotation!r} takes an empty text: no words to document it by.")
    words = found["msg"]
    if found["type"] == "tuple_type":
        words = f"a list; each entry: {allowed(_argument(inner, tuple))}"
    elif found["type"] in ("model_type", "dict_type"):
        words = "a mapping"
    return f"{words}, or null" if optional and not words.startswith("none") else words


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    rest = [a for a in typing.get_args(annotation) if a is not type(None)]
    if len(rest) == len(typing.get_args(annotation)):
        return annotation, False
    # `|` takes no tuple.
    return typing.Union[tuple(rest)], True  # noqa: UP007


def _argument(annotation: Any, origin: type) -> Any:
    """Returns what a list type lists, also below Annotated."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is not origin:
        raise ValueError(f"{annotation!r} is no {origin.__name__}.")
    return typing.get_args(annotation)[0]


def _model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Returns the model class in an annotation, and whether it is listed there."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for part in typing.get_args(annotation):
        found, listed = _model(part)
        if found:
            return found, listed or typing.get_origin(annotation) is tuple
    return None, False


def default(field: FieldInfo) -> str:
    """Returns the default of a key as YAML has it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its keys' defaults"
    if value is None and "none" in str(field.description).split(",")[0]:
        return "`none`"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    return str(value)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[list[str]]:
    """Yields path, what is allowed, default and meaning of every key of a model and of the models in it."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        meaning = str(field.description)
        yield [f"`{path}`", allowed(field.annotation, field.metadata), default(field), meaning]
        inner, listed = _model(field.annotation)
        if inner not in (None, Variant):
            yield from keys(inner, f"{path}{'[]' if listed else ''}.")


def study_keys() -> str:
    return table(("key", "what it may hold", "default", "meaning [unit]"), keys(Study))


def variant_keys() -> str:
    return table(("key", "what it may hold", "default", "meaning [unit]"), keys(Variant))


# --- built-in variants ----------------------------------------------------------------------------


def built_in_variants() -> str:
    """Returns what each built-in variant stands for, which settings they differ in, and which they share."""
    text = VARIANTS.read_text(encoding="utf-8")
    variants = {name: dict(_flat(settings)) for name, settings in yaml.safe_load(text).items()}
    comments = {
        name: " ".join(line.lstrip("# ") for line in above.splitlines())
        for above, name in re.findall(r"^((?:#.*\n)+)([\w.-]+):", text, re.MULTILINE)
    }
    settings = list(next(iter(variants.values())))
    shared = [key for key in settings if len({_yaml(v[key]) for v in variants.values()}) == 1]
    differ = [key for key in settings if key not in shared]
    lines = [
        table(("variant", "what it stands for"), ([f"`{n}`", comments[n]] for n in variants)),
        table(
            ("setting", *(f"`{n}`" for n in variants)),
            ([f"`{key}`", *(_yaml(v[key]) for v in variants.values())] for key in differ),
        ),
        prose("The same in all: " + ", ".join(f"`{k}: {_yaml(variants['recommended'][k])}`" for k in shared) + "."),
    ]
    return "\n".join(lines)


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and key != "guard":
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- result files ---------------------------------------------------------------------------------


def file(kind: str) -> str:
    """Returns the variables of one kind of file."""
    found = schema.SCHEMAS[kind]
    rows = []
    for name, var in found.variables.items():
        unit = "code" if var.flags else _UNITS.get(var.units, var.units)
        notes = [var.long_name]
        if var.sample_dimension:
            notes.append(f"entries along `{var.sample_dimension}` (CF contiguous ragged array)")
        notes += [var.comment] if var.comment else []
        rows.append([f"`{name}`", ", ".join(f"`{d}`" for d in var.dims), _DTYPES[var.dtype], unit, "; ".join(notes)])
    labels = ", ".join(f"`{dim}_name({dim})`: {words}" for dim, words in found.labels.items())
    blocks = [
        prose(f"Schema `{found.tag}`, written by rule `{found.rule}`. {found.summary}."),
        table(("variable", "dimensions", "type", "unit", "meaning"), rows),
        prose(f"Labels: {labels}."),
    ]
    return "\n".join(blocks)


def codes(name: str) -> str:
    """Returns the meaning of each code of one status variable."""
    rows = [[str(code), f"`{flag}`", CODES[name][flag]] for code, flag in enumerate(_FLAGS[name])]
    if name == "cause":
        rows = [[*row, CAUSE_WORDS[flag][1]] for row, flag in zip(rows, _FLAGS[name], strict=True)]
        return table(("code", "name", "meaning", "what to try"), rows)
    return table(("code", "name", "meaning"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "study keys": study_keys,
    "variant keys": variant_keys,
    "built_in variants": built_in_variants,
    **{f"file {kind}": lambda kind=kind: file(kind) for kind in schema.SCHEMAS},
    **{f"codes {name}": lambda name=name: codes(name) for name in _FLAGS},
}


def render(text: str) -> str:
    """Returns the reference with every generated block as the code has it now; raises ValueError for a lost block."""
    found = [match[1] for match in BLOCK.findall(text)]
    if sorted(found) != sorted(BLOCKS):
        odd = sorted(set(found) ^ set(BLOCKS)) or sorted({n for n in found if found.count(n) > 1})
        raise ValueError(f"{REFERENCE.name}: found the generated blocks {found}, wanted each once; odd: {odd}")
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", text)


def main() -> None:
    """Rewrites the file where it differs."""
    text = REFERENCE.read_text(encoding="utf-8")
    new = render(text)
    if new != text:
        REFERENCE.write_text(new, encoding="utf-8", newline="\n")
    print(f"{REFERENCE.relative_to(ROOT)}: {'rewritten' if new != text else 'nothing to change'}")


if __name__ == "__main__":
    main()
