import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# One line makes the library importable here, and through the main process's path in every script; nothing is installed.
sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from retrograd.devices import on_gpu
from retrograd.errors import RetrogradError
from retrograd.messages import ConfigError
from retrograd.plan import Plan

try:
    PLAN = Plan(config, Path(workflow.basedir))
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS = PLAN.results
# Of a job on a chunk [MB]: 0.4 a scenario were measured on the default model, and 1,100 whatever the chunk; 0.04 and 300
# on one without a network.
CHUNK_MEMORY = 2500 + PLAN.chunk_size // (1 if PLAN.network else 4)
# Of a job that reads the whole study [MB]: 0.007 a scenario and variant were measured in the report of 100,000.
STUDY_MEMORY = 2000 + len(PLAN.study.table.ids) * len(PLAN.variants) // 100


wildcard_constraints:
    variant="|".join(map(re.escape, PLAN.variants)),
    work="[0-9a-f]{16}",
    chunk=r"\d+",


def final_files():
    strict = [f"{RESULTS}/logs/strict.passed"] if PLAN.study.strict else []
    fits = [*PLAN.fit_files(), *PLAN.tables()]
    return [f"{RESULTS}/summary.nc", *fits, f"{RESULTS}/report/index.html", *strict]


def by_attempt(amount):
    """Memory [MB] or time [min] of a job: as much again in each retry. Slurm's limits count two Snakemake processes of
    some 110 MB each beside the job, and know no time below a minute."""

    def resource(wildcards, attempt):
        return amount * attempt

    return resource


# Cards that a job owns while it computes.
GPUS = int(on_gpu())


def chunk_settings(wildcards):
    """The settings that the numbers of a chunk depend on, as canonical JSON."""
    return PLAN.works[wildcards.work].settings


def chunk_scenarios(wildcards):
    """The scenarios of a chunk, as canonical JSON: editing one reruns its own chunk only."""
    return PLAN.chunk(int(wildcards.chunk))


def upstream_chunk(stage):
    """The chunk of an earlier stage that a chunk builds on; none where the study has no such stage."""

    def find(wildcards):
        work = PLAN.upstream(wildcards.work, stage)
        return [f"{RESULTS}/chunks/{stage}/{work}/{wildcards.chunk}.nc"] if work else []

    return find


def parts(stage):
    """All chunks of a stage under a variant, in order."""

    def find(wildcards):
        work = PLAN.work(wildcards.variant, stage)
        return [f"{RESULTS}/chunks/{stage}/{work}/{i}.nc" for i in range(PLAN.n_chunks)]

    return find


def timings(stage):
    """The file with the times of a job; of studies with factors only, whose remedies are weighed by them."""
    return (
        {"seconds": f"{RESULTS}/timings/{stage}/{{work}}/{{chunk}}.nc"}
        if PLAN.study.cells
        else {}
    )


def stage_files(variant, stages=PLAN.stages):
    """The result files of a variant."""
    return [f"{RESULTS}/{variant}/{stage}.nc" for stage in stages]


def earlier(stage):
    """The result files of the stages before one, which its own file names as inputs."""

    def find(wildcards):
        return stage_files(wildcards.variant, PLAN.stages[: PLAN.stages.index(stage)])

    return find


def gather_settings(stage):
    """What a result file depends on, as canonical JSON."""

    def find(wildcards):
        return PLAN.gather_settings(wildcards.variant, stage)

    return find


def asked_for(find):
    """What a job needs beside the study, once one asks for it: a message and no traceback where it is missing."""

    def call(wildcards):
        try:
            return find()
        except RetrogradError as error:
            # Snakemake wraps any other exception of an input function in a traceback.
            raise SystemExit(str(error)) from None

    return call


def compared_parts():
    """The comparisons of the variants that both runs have."""
    return [
        f"{RESULTS}/comparison/variants/{variant}.nc"
        for variant in PLAN.compared_variants()
    ]


def debugged_model():
    """The exported model, once it is known which scenario and variant to debug."""
    PLAN.debugged()
    return f"{RESULTS}/model.nc"
