"""Judge every scenario under every variant (rule summary)."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, folder, out_file):
    from retrograd import store
    from retrograd.schema import OUTCOMES, SUMMARY, stages_of
    from retrograd.summary import summarize

    variants = run.settings["variants"]
    dataset = summarize(folder, run.settings)
    for variant in variants:
        for stage in stages_of(run.settings["start"]):
            run.digest(f"{variant['name']}/{stage}", f"{folder}/{variant['name']}/{stage}.nc")
    for i, variant in enumerate(variants):
        codes = dataset["outcome"].values[i]
        told = ", ".join(f"{(codes == c).sum()} {name}" for c, name in enumerate(OUTCOMES) if (codes == c).any())
        log.info("%s: %s", variant["name"], told)
    store.write(dataset, out_file, SUMMARY, run.provenance(), title_of=f"study {run.settings['study']}")


if __name__ == "__main__":
    with job(snakemake, computes=False) as run:
        main(run, str(Path(snakemake.output["nc"]).parent), snakemake.output["nc"])
