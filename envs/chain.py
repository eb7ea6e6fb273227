"""Runs all rules of a study up to its summary in this one process: python chain.py CONFIG FOLDER.

Under emulation an import of jax takes a minute, and Snakemake would start a process for each rule. Scripts, settings
and digests are those of the rules; results go to FOLDER/results.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from retrograd.plan import Plan  # noqa: E402


class Named(dict):
    """Files or parameters by name, as a rule script finds them: as items and as attributes."""

    __getattr__ = dict.__getitem__


class Chain:
    """A study, rule by rule."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.results = plan, plan.results

    def rule(self, name: str, script: str, out: str, inputs: dict[str, Any], params: dict[str, Any]) -> None:
        """Runs one rule's script."""
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        given = SimpleNamespace(
            rule=name,
            input=Named(inputs),
            output=Named(nc=out),
            params=Named(params, code=self.plan.code(script)),
            wildcards={"output": out},
            log=[f"{self.results}/logs/{Path(out).relative_to(self.results).with_suffix('.log')}"],
            threads=1,
        )
        runpy.run_path(self.plan.script(script), {"snakemake": given}, "__main__")

    def run(self) -> None:
        """Runs all rules, in order."""
        plan, study = self.plan, self.plan.study
        model = {"plugin": study.model.plugin, "model": f"{self.results}/model.nc"}
        weights = {"weights": study.model.weights} if study.model.weights else {}
        self.rule("export", "export", model["model"], {**model, **weights}, {"settings": plan.export_settings()})
        for work, what in plan.works.items():
            earlier = {stage: f"{self.results}/chunks/{stage}/{name}" for stage, name in what.upstream.items()}
            for i in range(plan.n_chunks):
                chunks = {stage: f"{folder}/{i}.nc" for stage, folder in earlier.items()}
                params = {"settings": what.settings, "scenarios": plan.chunk(i), "class_name": study.model.class_}
                out = f"{self.results}/chunks/{what.stage}/{work}/{i}.nc"
                self.rule(f"{what.stage}_chunk", what.stage, out, {**model, **chunks}, params)
        for variant in plan.variants:
            done: list[str] = []
            for stage in plan.stages:
                folder = f"{self.results}/chunks/{stage}/{plan.work(variant, stage)}"
                parts = [f"{folder}/{i}.nc" for i in range(plan.n_chunks)]
                settings = plan.gather_settings(variant, stage)
                inputs = {**model, "scenarios": study.scenarios, "parts": parts, "earlier": list(done)}
                params = {"stage": stage, "settings": settings, "numerics": plan.code(stage)}
                done.append(f"{self.results}/{variant}/{stage}.nc")
                self.rule(stage, "gather", done[-1], inputs, params)
        self.rule("summary", "summary", f"{self.results}/summary.nc", {}, {"settings": plan.summary_settings()})


def main(config: str, folder: str) -> None:
    """Runs the study of a config file, whose paths are relative to the repository, with results below a folder."""
    study = yaml.safe_load(Path(config).read_text())
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    here = Path("config")
    if not here.exists():
        here.symlink_to(os.path.relpath(ROOT / "config"))
    Chain(Plan(study, ROOT)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
