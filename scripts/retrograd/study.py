"""What a study is: the keys of its config, and which settings each stage depends on.

Every parse of the Snakefile imports this module, in every job: standard library, yaml and pydantic only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    model_validator,
)

from retrograd.factors import FRACTIONS, level_changes
from retrograd.scenarios import Table
from retrograd.schema import STAGES
from retrograd.settings import (
    BENCHMARK_METHODS,
    GRADIENT_METHODS,
    PEERS,
    Day,
    Doi,
    FilePath,
    Flag,
    Method,
    Name,
    Natural,
    Orcid,
    Part,
    Relative,
    Size,
    StudyName,
    Text,
    Time,
    Variant,
    VariantName,
    choice,
    falling,
    once,
    only,
    refuse,
    rising,
)

# Keys that `snakemake --config` puts beside the study: arguments of single commands, no part of it.
ARGUMENTS = ("archive", "reference", "scenario", "variant", "trust_plugin")
# Kinds of files that a plug-in is made of, by their key in `model`, and how their names end.
IMPORTED = {"sbml": (".xml", ".sbml"), "antimony": (".ant", ".txt"), "petab": (".yaml", ".yml")}
# Keys of a study that its results and its report do not depend on.
BESIDE = ("benchmark", "publication")
STARTS = ("steady_state", "initial_state")
WRT = ("dynamic", "steady", "network")


# --- the study ------------------------------------------------------------------------------------


class ModelFile(Part):
    """Where the model comes from."""

    plugin: FilePath = Field(
        description="the plug-in, a Python file; trusted code; relative to the working directory; or sbml, antimony or "
        "petab in the place of plugin and class"
    )
    class_: Text = Field(alias="class", description="name of the model class in the plug-in")
    sbml: FilePath | None = Field(
        default=None, description="a model in SBML (.xml, .sbml), of which a plug-in is made; needs the extra petab"
    )
    antimony: FilePath | None = Field(
        default=None, description="a model in Antimony (.ant, .txt), of which a plug-in is made; needs the extra petab"
    )
    petab: FilePath | None = Field(
        default=None,
        description="a problem in PEtab, version 1 or 2, with networks or without (.yaml), of which a plug-in, "
        "its weights, scenarios, start and save_times are made; needs the extra petab",
    )
    weights: FilePath | None = Field(
        default=None,
        description="pretrained weights (.eqx, .safetensors, .pt, .hdf5, .onnx); null: as build() gives them",
    )
    weight_names: dict[Text, Text] = Field(
        default_factory=dict,
        description="the model's names of arrays or layers, each with its name in the file of the weights, where "
        "they differ",
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
    peers: Annotated[tuple[Annotated[str, choice(PEERS)], ...], AfterValidator(once)] = Field(
        default=PEERS[:-1], description="whose solves and gradients are timed side by side"
    )
    rounds: Size = Field(default=3, description="rounds in which they take turns [1]")


class Author(Part):
    """Somebody who made a study."""

    name: Text = Field(description="name: Family, Given")
    affiliation: Text | None = Field(default=None, description="where the author works")
    orcid: Orcid | None = Field(default=None, description="ORCID, four groups of four digits")


class Publication(Part):
    """What an archive says of the study besides its numbers; nothing else depends on it."""

    title: Text | None = Field(default=None, description="title; null: made of the study's name")
    description: Text | None = Field(default=None, description="a paragraph about the study")
    authors: tuple[Author, ...] = Field(default=(), description="who made it, each with name, affiliation, orcid")
    license: Text | None = Field(
        default=None, description="licence of the archive, an SPDX identifier such as CC-BY-4.0"
    )
    date: Day | None = Field(default=None, description="date of publication, YYYY-MM-DD")
    doi: Doi | None = Field(default=None, description="DOI of the archive, if it has one already")


def _level(value: Any) -> Any:
    # A value that names itself: its name is part of a variant's.
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if is_plain else refuse("a text or a number; anything else needs a name: {name: value}")


def _levels_kind(value: Any) -> str | None:
    return "<names>" if isinstance(value, dict) else "<list>" if isinstance(value, list | tuple) else None


def _two_at_least(values: Any) -> Any:
    return values if len(values) > 1 else refuse("at least two levels")


Levels = Annotated[
    Annotated[dict[Name, Any], AfterValidator(_two_at_least), Tag("<names>")]
    | Annotated[
        tuple[Annotated[Any, BeforeValidator(_level)], ...],
        AfterValidator(once),
        AfterValidator(_two_at_least),
        Tag("<list>"),
    ],
    Discriminator(
        _levels_kind,
        custom_error_type="retrograd",
        custom_error_message="{wanted}",
        custom_error_context={"wanted": "a mapping of names to values, or a list of values"},
    ),
]


class Factors(Part):
    """A factorial design of numerical treatments, each cell a variant."""

    base: VariantName = Field(default="naive", description="variant whose settings hold where no factor changes them")
    fraction: Annotated[int, only(f"one of {', '.join(map(str, FRACTIONS))}", lambda v: v in FRACTIONS)] = Field(
        default=1, description="1: every combination of levels; 2, 4, 8, 16: one in so many, of the highest resolution"
    )
    levels: dict[Name, Levels] = Field(
        description="factor to its levels: for one named like a key of a variant values of that key, for any other "
        "mappings of settings"
    )


ChunkSize = Annotated[
    Size | Literal["auto"],
    only(
        "auto, or a whole number from 1 to 100000",
        lambda v: v == "auto" or (isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 100_000),
    ),
]


def _save_times_kind(value: Any) -> str | None:
    if isinstance(value, dict | Grid):
        return "<grid>"
    return "<list>" if isinstance(value, list | tuple) else None


class Study(Part):
    """A study as its config file describes it; `load_study` makes it."""

    study: StudyName = Field(description="name: results go to results/<study>/; characters A-Z a-z 0-9 _ . -")
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
    factors: Factors | None = Field(
        default=None, description="null, or factors whose combinations are further variants"
    )
    chunk_size: ChunkSize = Field(default="auto", description="scenarios per job [1]; auto: by their number and kind")
    gradient: Gradient = Field(default=Gradient(), description="which derivatives are formed and checked")
    benchmark: Benchmark = Field(default=Benchmark(), description="what `snakemake benchmark` measures")
    publication: Publication = Field(default=Publication(), description="what the study's archive says about it")
    strict: Flag = Field(default=False, description="true: a scenario without a verified gradient fails the run")
    portable: Flag = Field(
        default=False, description="true: the same bits on x86-64 and aarch64 processors, at a cost in speed"
    )

    # What load_study found beside the config. No fields: those are the config's documentation.
    _arguments: dict[str, Any] = PrivateAttr(default_factory=dict)
    _built_in: dict[str, Variant] = PrivateAttr(default_factory=dict)
    _table: Table | None = PrivateAttr(default=None)
    _formulations: tuple[str, ...] | None = PrivateAttr(default=None)
    _cells: dict[str, dict[str, str]] = PrivateAttr(default_factory=dict)
    _measured: bool = PrivateAttr(default=False)

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

    @property
    def cells(self) -> Mapping[str, Mapping[str, str]]:
        """The variants that `factors` make, name to the level of each factor; they come last in `variants`."""
        return MappingProxyType(self._cells)

    @property
    def measured(self) -> bool:
        """Whether the plug-in declares measurements, which simulations are held against."""
        return self._measured

    def design(self) -> dict[str, list[str]]:
        """Returns the factors and the names of their levels, in order; empty where there are none."""
        factors = self.factors.levels if self.factors else {}
        return {factor: list(level_changes(factor, levels, ())) for factor, levels in factors.items()}

    def as_given(self) -> dict[str, Any]:
        """Returns the study as plain data, without the variants that its factors make."""
        out = self.model_dump(mode="json", by_alias=True)
        out["variants"] = [name for name in out["variants"] if name not in self._cells]
        out["define_variants"] = {n: v for n, v in out["define_variants"].items() if n not in self._cells}
        return out

    def mode(self) -> dict[str, bool]:
        """Returns what `portable` adds to the settings of a job that computes: nothing where it is off."""
        return {"portable": True} if self.portable else {}

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
    for name, altered in variant.rungs(study.times()[-1]):
        same = altered["formulation"] == variant.formulation
        rungs.append((name, altered | {"formulation": formulation} if same else altered))
    steady = study.start == "steady_state"
    mode = study.mode()
    find = _of_stage(settings, _STEADY_KEYS) | {"rescue": _rescue(settings, rungs, _STEADY_KEYS)} | mode
    solve = _of_stage(settings, _DYNAMICS_KEYS) | {"rescue": _rescue(settings, rungs, _DYNAMICS_KEYS)} | mode
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
    for name, altered in rungs:
        mine = _of_stage(altered, keys)
        out.append({"name": name, "settings": None if mine in seen else mine})
        seen.append(mine)
    return out
