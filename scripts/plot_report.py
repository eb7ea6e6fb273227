"""Draw the figures of a study and write its page (rule report)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import job, log, single

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, folder, model_file, summary_file, scenarios, effects_file, comparison, out_html, out_svg, out_png):
    from retrograd import report
    from retrograd.results import load
    from retrograd.wording import verdict

    settings = run.settings | {"study": json.loads(run.settings["study"])}
    results = load(folder, settings, model_file, summary_file, scenarios, effects_file, next(iter(comparison), None))
    for treated in results.variants:
        log.info("%s: %s", treated.name, verdict(results, treated))
    sizes = report.make(results, out_html, out_svg, out_png)
    for name, size in sizes.items():
        log.info("%s: %.0f kB", name, size / 1000)


if __name__ == "__main__":
    with job(snakemake, computes=False) as run:
        main(
            run,
            str(Path(snakemake.input["summary"]).parent),
            snakemake.input["model"],
            snakemake.input["summary"],
            snakemake.input["scenarios"],
            single(snakemake.input["effects"]),
            snakemake.params["comparison"],
            snakemake.output["html"],
            list(snakemake.output["svg"]),
            list(snakemake.output["png"]),
        )
