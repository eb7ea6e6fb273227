"""From a study to jobs: what settings a piece of work has, which variants share it, what its inputs are.

The Snakefile imports this on every parse, in every job: nothing heavy may be imported here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from retrograd.archive import bad_names
from retrograd.arguments import asked_for, headline
from retrograd.errors import RetrogradError
from retrograd.imported import source_files
from retrograd.loading import load_study
from retrograd.messages import show
from retrograd.packing import OWN, beside, source
from retrograd.provenance import canonical, code_digest, file_digest, text_digest, with_names
from retrograd.references import digest_of, plugin_of, variants_of
from retrograd.scenarios import automatic_size, chunks
from retrograd.schema import stages_of
from retrograd.study import BESIDE, IMPORTED, stage_options
from retrograd.whole import whole

SCRIPTS = {
    "export": "export_model.py",
    "steady_state": "find_steady_state.py",
    "dynamics": "simulate.py",
    "gradients": "check_gradients.py",
    "gather": "gather.py",
    "fit": "fit.py",
    "summary": "summarize.py",
    "effects": "weigh_remedies.py",
    "report": "plot_report.py",
    "strict": "require_verified.py",
    "debug": "debug_scenario.py",
    "work_precision": "benchmark_methods.py",
    "speed": "benchmark_speed.py",
    "archive": "make_archive.py",
    "verify": "verify_archive.py",
    "compared": "compare_variant.py",
    "comparison": "join_comparison.py",
    "compare": "give_verdict.py",
    "reproduce": "reproduce.py",
}
# What the pages are filled into.
TEMPLATES = {
    "report": ("report.html.j2", "report.js.j2", "style.css.j2"),
    "comparison": ("comparison.html.j2", "style.css.j2"),
}


@dataclass(frozen=True)
class Work:
    """One piece of numerical work, shared by all variants whose settings for it agree."""

    stage: str
    settings: str  # canonical JSON
    upstream: Mapping[str, str]  # stage -> work


class Plan:
    """A validated study, laid out as jobs. Raises ConfigError with all problems of its config.

    One Plan lives as long as its process, so that caches on its methods leak nothing (B019).
    """

    def __init__(self, config: Mapping[str, Any], root: Path) -> None:
        self.root = root
        # A study that is computed anew brings its own: what a variant of that name was when it was archived.
        own = Path("config", "variants.yaml")
        self.study = load_study(config, own if own.is_file() else root / own)
        self.results = f"results/{self.study.study}"
        self.variants = list(self.study.variants)
        self.stages = stages_of(self.study.start)
        self._options = {v: {s: stage_options(self.study, v, s) for s in self.stages} for v in self.variants}
        self.works: dict[str, Work] = {}
        self._of: dict[tuple[str, str], str] = {}
        for variant in self.variants:
            upstream: dict[str, str] = {}
            for stage in self.stages:
                settings = canonical(self._options[variant][stage])
                # Sixteen digits of a digest of the settings, and of those of the stages before.
                name = text_digest(canonical([stage, settings, upstream]))[:16]
                self.works[name] = Work(stage, settings, dict(upstream))
                self._of[variant, stage] = name
                upstream[stage] = name
        count, size = len(self.study.table.ids), self.study.chunk_size
        # What makes a scenario costly, in time and in memory.
        self.network = bool(self.study.model.weights) or "network" in self.study.gradient.wrt
        self.chunk_size = automatic_size(count, len(self.works), self.network) if size == "auto" else size
        self._chunks = chunks(count, self.chunk_size)

    @property
    def n_chunks(self) -> int:
        return len(self._chunks)

    def chunk(self, index: int) -> str:
        """Returns the scenarios of one job, as `Table.part` does."""
        return self.study.table.part(*self._chunks[index])

    def work(self, variant: str, stage: str) -> str:
        """Returns the name of the work that gives a variant's stage."""
        return self._of[variant, stage]

    def upstream(self, work: str, stage: str) -> str | None:
        """Returns the work of an earlier stage that a work builds on, None where there is no such stage."""
        return self.works[work].upstream.get(stage)

    def script(self, rule: str) -> str:
        """Returns the path of a copy of a rule's script, named by its content and dated 1970.

        Snakemake reruns a job whose script is newer than its outputs, as every script is after a checkout. Of the
        copy it can see the content only, through `code`.
        """
        source = self.root / "scripts" / SCRIPTS[rule]
        copy = Path(".snakemake", "retrograd", file_digest(source)[:16], source.name).absolute()
        if not copy.exists():
            with whole(copy) as temporary:
                temporary.write_bytes(source.read_bytes())
                os.utime(temporary, (0, 0))
        return str(copy)

    @cache  # noqa: B019
    def code(self, rule: str) -> str:
        """Returns the digest of the code that a rule runs: its script and the modules that this imports."""
        templates = [self.root / "scripts" / "retrograd" / name for name in TEMPLATES.get(rule, ())]
        return code_digest(self.root / "scripts" / SCRIPTS[rule], *templates)

    @cache  # noqa: B019
    def plugin_digest(self) -> str:
        """Returns the plug-in's sha256: a parameter of every rule that runs it, so that content decides."""
        return file_digest(self.study.model.plugin)

    @cache  # noqa: B019
    def weights_digest(self) -> str:
        """Returns the sha256 of the weights' file, empty where there is none."""
        return file_digest(self.study.model.weights) if self.study.model.weights else ""

    def known_weights(self) -> dict[str, str]:
        """Returns the weights' sha256 by the name under which `model.nc` has it: by it a job knows the study's own."""
        return {"weights": self.weights_digest()}

    def earlier_settings(self, work: str) -> dict[str, str]:
        """Returns the settings of the works that a work builds on, by stage, as canonical JSON."""
        return {stage: self.works[name].settings for stage, name in self.works[work].upstream.items()}

    @cache  # noqa: B019
    def scenarios_digest(self) -> str:
        """Returns the sha256 of the scenario table."""
        return file_digest(self.study.scenarios)

    def export_settings(self) -> str:
        """Returns the settings of the export as canonical JSON."""
        named = self.study.model.weight_names
        names = {"weight_names": dict(sorted(named.items()))} if named else {}
        return canonical({"class": self.study.model.class_, "precision": "float64"} | names | self.study.mode())

    def gather_settings(self, variant: str, stage: str) -> str:
        """Returns what the result file of a variant's stage depends on, as canonical JSON."""
        return canonical(self._named(self._options[variant][stage], variant))

    def _named(self, settings: Mapping[str, Any], variant: str) -> dict[str, Any]:
        return with_names(settings, self.study.study, variant, self.study.model.class_)

    def fit_files(self) -> list[str]:
        """Returns the files that hold simulations against measurements, none where the plug-in declares none."""
        return [f"{self.results}/{variant}/fit.nc" for variant in self.variants] if self.study.measured else []

    def summary_settings(self) -> str:
        """Returns the settings of the summary as canonical JSON."""
        variants = [{"name": v, "gradient": self.study.gradient_of(v)} for v in self.variants]
        return canonical({"study": self.study.study, "start": self.study.start, "variants": variants})

    def debugged(self) -> tuple[str, int]:
        """Returns the variant and the row of the scenario that `snakemake debug` names; raises RetrogradError."""
        given, table = self.study.arguments, self.study.table
        scenario, problems = asked_for("scenario", given, table.ids)
        variant, more = asked_for("variant", given, self.variants)
        if scenario is None or variant is None:
            shown = scenario or table.ids[0], variant or self.variants[0]
            raise RetrogradError(
                headline("debug", [*problems, *more], dict(zip(("scenario", "variant"), shown, strict=True)))
            )
        return variant, table.ids.index(scenario)

    def debug_file(self) -> str:
        """Returns the path of the trace; a scenario's id is free text and no file name, its row is."""
        variant, row = self.debugged()
        return f"{self.results}/debug/{variant}/{row}.txt"

    def debug_settings(self) -> str:
        """Returns the settings of the trace as canonical JSON."""
        variant, _ = self.debugged()
        settings: dict[str, Any] = {}
        for stage in self.stages:
            settings |= self._options[variant][stage]
        return canonical(self._named(settings, variant))

    def debug_scenario(self) -> str:
        """Returns the scenario of the trace, as `chunk` does."""
        _, row = self.debugged()
        return self.study.table.part(row, row + 1)

    def _benchmarked(self) -> str:
        return "recommended" if "recommended" in self.variants else self.variants[-1]

    def benchmark_settings(self) -> str:
        """Returns the settings of the benchmark as canonical JSON: those of `recommended`, or of the last variant."""
        options = self._options[self._benchmarked()]["gradients"]
        return canonical({**options, "benchmark": self.study.benchmark.model_dump(mode="json")})

    def benchmark_scenarios(self) -> str:
        """Returns the scenarios of the benchmark, spread evenly over the table, as `chunk` does."""
        table = self.study.table
        total, count = len(table.ids), min(self.study.benchmark.scenarios, len(table.ids))
        rows = sorted({round(i * (total - 1) / max(count - 1, 1)) for i in range(count)})
        ids, values = [table.ids[r] for r in rows], [table.rows[r] for r in rows]
        return canonical({"ids": ids, "columns": table.columns, "rows": values})

    def timings(self) -> list[str]:
        """Returns the files with the times of all jobs, of a study with factors."""
        timed = [(w.stage, name) for name, w in self.works.items() if w.stage != "steady_state"]
        return [f"{self.results}/timings/{stage}/{name}/{i}.nc" for stage, name in timed for i in range(self.n_chunks)]

    def effects_settings(self) -> str:
        """Returns the settings of the weighing of remedies as canonical JSON."""
        design = self.study.design()
        return canonical(
            {
                "study": self.study.study,
                "variants": self._options,
                "gradient_of": {v: self.study.gradient_of(v) for v in self.variants},
                # In order: the first level is what the others are compared with.
                "factors": [[factor, list(levels)] for factor, levels in design.items()],
                "cells": {name: dict(levels) for name, levels in self.study.cells.items()},
                "works": {v: {stage: self.work(v, stage) for stage in self.stages} for v in self.variants},
                "chunks": [list(bounds) for bounds in self._chunks],
            }
        )

    def user_files(self) -> dict[str, str]:
        """Returns the files that the config names, by role."""
        model = self.study.model
        files = {"plugin": model.plugin, "weights": model.weights, "scenarios": self.study.scenarios}
        files |= {kind: getattr(model, kind) for kind in IMPORTED}
        files = {role: file for role, file in files.items() if file is not None}
        for kind in IMPORTED & files.keys():
            first, *others = source_files(kind, files[kind])
            files |= {f"{kind}/{os.path.relpath(file, first.parent)}": str(file) for file in others}
        return files

    def given(self) -> dict[str, tuple[str, str]]:
        """Returns what the study is given: role -> its file, and the file's name in an archive.

        That is the same where it can be; a file from elsewhere, or of a taken name, gets a place of its own.
        """
        taken = [*source(self.root), *OWN]
        out = {}
        for role, file in self.user_files().items():
            here = os.path.normpath(file).replace(os.sep, "/")
            # A table may have any suffix: with one that no other role has, the last option is free.
            suffix = ".tsv" if role == "scenarios" else Path(file).suffix
            # Where files are made: what lies there in an archive is none that a study is given.
            made = here.split("/")[0].casefold() in (".snakemake", "results")
            options = (*([] if made else [here]), f"study/{here.rpartition('/')[2]}", f"study/{role}{suffix}")
            kind, _, relative = role.partition("/")
            if relative:
                # What a file names by a path relative to itself has to stay there.
                options = (os.path.normpath(f"{os.path.dirname(out[kind][1])}/{relative}").replace(os.sep, "/"),)
            name = next((n for n in options if n not in dict(bad_names([*taken, n]))), None)
            if name is None:
                raise RetrogradError(f"{file}: found no name for it in an archive, wanted a file below its problem's")
            taken.append(name)
            out[role] = file, name
        return out

    def result_files(self) -> list[str]:
        """Returns the netCDF files of the study that are results: chunks are parts of them."""
        stages = [f"{self.results}/{variant}/{stage}.nc" for variant in self.variants for stage in self.stages]
        remedies = [f"{self.results}/effects.nc", *self.timings()] if self.study.cells else []
        return [f"{self.results}/model.nc", *stages, *self.fit_files(), f"{self.results}/summary.nc", *remedies]

    def tables(self) -> list[str]:
        """Returns the text tables that are results: each is written with a netCDF file."""
        return [table for file in self.result_files() for table in beside(file)]

    @cache  # noqa: B019
    def source_digest(self) -> str:
        """Returns the sha256 over the workflow's own files."""
        return text_digest(canonical({name: file_digest(path) for name, path in source(self.root).items()}))

    def archive_settings(self) -> str:
        """Returns the settings of the archive as canonical JSON: the study's config as YAML, and what it is given."""
        given = self.given()
        study = self.study.as_given()
        study["model"] |= {role: given[role][1] for role in ("plugin", "weights", *IMPORTED) if role in given}
        study["scenarios"] = given["scenarios"][1]
        text = yaml.safe_dump(study, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
        return canonical({"config": text, "given": {role: list(names) for role, names in given.items()}})

    def _path_asked_for(self, command: str, name: str, wanted: str, example: str) -> str:
        value = self.study.arguments.get(name)
        if value is None or not str(value).strip():
            raise RetrogradError(headline(command, [f"{name}: found nothing, wanted {wanted}"], {name: example}))
        return str(value)

    def archive_asked_for(self, command: str) -> str:
        """Returns the path that `--config archive=PATH` names; raises RetrogradError where there is none."""
        example = f"results/archives/{self.study.study}.zip"
        return self._path_asked_for(command, "archive", "the path of an archive", example)

    def archived(self) -> tuple[str, str]:
        """Returns the path of the archive to reproduce and its sha256; raises RetrogradError where there is none."""
        path = self.archive_asked_for("reproduce")
        if not Path(path).is_file():
            raise RetrogradError(f"archive: found no file at {path}, wanted an archive that `snakemake archive` made.")
        found = self.study.arguments.get("trust_plugin")
        # Snakemake reads True as a truth value and true as a text.
        if found is not True and found != "true":
            told = (
                f"trust_plugin: found {'nothing' if found is None else show(found)}, wanted true: this runs the plug-in"
                f" of the archive, {plugin_of(path)}, which is Python code and can do all that you can. Read it before"
            )
            raise RetrogradError(headline("reproduce", [told], {"archive": path, "trust_plugin": "true"}))
        return path, file_digest(path)

    @cache  # noqa: B019
    def reference(self) -> tuple[str, str]:
        """Returns the path that `--config reference=PATH` names, and a sha256 of what is there.

        Raises RetrogradError where there is no run.
        """
        wanted = "the path of another run's results folder, or of an archive"
        path = self._path_asked_for("compare", "reference", wanted, f"results/archives/{self.study.study}.zip")
        return path, digest_of(path)

    def compared_variants(self) -> list[str]:
        """Returns the variants that the reference has too, in order; raises RetrogradError where it has none."""
        path, _ = self.reference()
        there = variants_of(path)
        common = [variant for variant in self.variants if variant in there]
        if not common:
            raise RetrogradError(
                f"reference: {path} has the variants {', '.join(there)}, and this study has "
                f"{', '.join(self.variants)}: none is in both, so there is nothing to compare."
            )
        return common

    def comparison_settings(self) -> str:
        """Returns the settings of the comparison as canonical JSON."""
        there = variants_of(self.reference()[0])
        return canonical({"study": self.study.study, "variants": self.variants, "variants_there": there})

    def settings_of_results(self) -> dict[str, str]:
        """Returns the settings that each result file was computed with, as canonical JSON; those of times left out."""
        out = {
            f"{self.results}/model.nc": self.export_settings(),
            f"{self.results}/summary.nc": self.summary_settings(),
        }
        for variant in self.variants:
            for stage in self.stages:
                out[f"{self.results}/{variant}/{stage}.nc"] = self.gather_settings(variant, stage)
        for variant, file in zip(self.variants, self.fit_files(), strict=False):
            out[file] = self.gather_settings(variant, "gradients")
        return out | ({f"{self.results}/effects.nc": self.effects_settings()} if self.study.cells else {})

    def made_comparison(self) -> list[str]:
        """Returns the path of the study's comparison with another run and its digest; nothing where none was made.

        No input of a rule: a report would ask for a comparison anew, and there may be no reference to compare with.
        """
        path = Path(self.results, "comparison", "comparison.nc")
        return [path.as_posix(), file_digest(path)] if path.is_file() else []

    def report_settings(self) -> str:
        """Returns the settings of the report as canonical JSON: the study, its variants resolved."""
        return canonical(
            {
                # As text: canonical JSON sorts keys, and the first level of a factor is what others are compared with.
                "study": json.dumps({k: v for k, v in self.study.as_given().items() if k not in BESIDE}),
                "resolved": self._options,
                "gradient_of": {v: self.study.gradient_of(v) for v in self.variants},
                "stages": [*self.stages, *(["fit"] if self.study.measured else [])],
                # Of those that are not built in: to be pasted into another study's config.
                "defined": {v: self.study.variant(v).model_dump(mode="json") for v in self.study.define_variants},
            }
        )
