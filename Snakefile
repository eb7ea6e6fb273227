"""Retrograd: from a pretrained model and a table of scenarios to gradients with a certificate."""

from snakemake.utils import min_version

min_version("9.20")


# A study given by --configfile stands alone: merged with the default study it would inherit keys that it leaves out.
if not {"study", "model", "scenarios", "variants"} & set(config):

    configfile: workflow.source_path("config/config.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/steady_state.smk"
include: "workflow/rules/dynamics.smk"
include: "workflow/rules/gradients.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/debug.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/archive.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/local.smk"


rule all:
    default_target: True
    input:
        final_files(),


onstart:
    # Snakemake's limiter of submissions (9.27, by default 100 a second) wakes the scheduler once more a second for each
    # job that has ended, and each time it looks through all jobs that are ready: a fifth of a core after 200 jobs of the
    # atlas, and growing. Local jobs need no limit.
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None
