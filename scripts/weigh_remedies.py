"""Weigh each remedy of a factorial study: its effects, the smallest cures, the waterfall (rule effects)."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, summary_file, timings, out_file):
    import functools

    from retrograd import store
    from retrograd.effects import seconds_of, weigh
    from retrograd.provenance import canonical
    from retrograd.schema import EFFECTS

    summary = run.read("summary", summary_file, "summary")
    settings = {
        (stage, work): canonical(run.settings["variants"][variant][stage])
        for variant, works in run.settings["works"].items()
        for stage, work in works.items()
    }

    @functools.cache
    def read(stage, work, chunk):
        path = timings / stage / work / f"{chunk}.nc"
        found = run.read(f"timings/{stage}/{work}/{chunk}", str(path), "timings", settings=settings[stage, work])
        return dict(zip(store.labels(found, "part"), found["seconds"].values, strict=True))

    weighed = weigh(run.settings, summary, seconds_of(run.settings, summary, read))
    dataset = store.build(EFFECTS, weighed["values"], weighed["labels"])
    for name, row in zip(weighed["labels"]["effect"], dataset["value"].values.T, strict=True):
        log.info("%s: verified %+.3f, attempts x %.3g, seconds x %.3g", name, *row)
    store.write(dataset, out_file, EFFECTS, run.provenance(), title_of=f"study {run.settings['study']}")


if __name__ == "__main__":
    with job(snakemake, computes=False) as run:
        main(
            run,
            snakemake.input["summary"],
            Path(snakemake.output["nc"]).parent / "timings",
            snakemake.output["nc"],
        )
