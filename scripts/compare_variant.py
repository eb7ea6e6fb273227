"""Compare one variant with the same variant of a reference run (rule compared)."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import Stopwatch, job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, root, reference, digest, plugin, class_name, model_file, scenarios, out_file):
    from retrograd import context, store
    from retrograd.comparing import Comparison
    from retrograd.comparison import part_of
    from retrograd.divergence import first_divergence, reason
    from retrograd.origins import differences
    from retrograd.provenance import without_names
    from retrograd.references import results_of
    from retrograd.runs import both_sides, chunk_of_both, read_run
    from retrograd.scenarios import read_scenarios
    from retrograd.schema import COMPARISON, stages_of

    variant = run.settings["variant"]
    options = without_names(run.settings)
    stages = stages_of(options["start"])
    watch = Stopwatch()
    there = read_run(results_of(reference, Path(root), digest), variant, stages)
    run.digest("plugin", plugin)
    run.digest("model", model_file)
    # The report tells of a comparison only as long as it is one of the files that stand there.
    for stage in stages:
        run.digest(f"{variant}/{stage}", str(Path(model_file).parent / variant / f"{stage}.nc"))
    here = read_run(Path(model_file).parent, variant, stages, run.wanted)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    chunk = context.chunk_of(read_scenarios(scenarios), cls, options["start"])
    sides = both_sides(here, there)
    comparison = Comparison(cls, model, options, chunk_of_both(chunk, sides[0]), *sides)
    watch.lap("read both runs")
    found = comparison.run()
    watch.lap("compare, compilation included")
    items = differences([here.said, there.said], [here.weights_sha256, there.weights_sha256])
    first = first_divergence(comparison, found) | {"reason": reason(comparison, found, items)}
    watch.lap("look for the reason")
    log.info("%s: %s", variant, first["reason"])
    dataset = part_of(variant, comparison, found, first, items, cls.time_unit)
    run.inputs["reference"] = digest
    store.write(dataset, out_file, COMPARISON, run.provenance(), title_of=variant)


if __name__ == "__main__":
    with job(snakemake) as run:
        reference, digest = snakemake.params["reference"]
        main(
            run,
            snakemake.params["root"],
            reference,
            digest,
            snakemake.input["plugin"],
            snakemake.params["class_name"],
            snakemake.input["model"],
            snakemake.input["scenarios"],
            snakemake.output["nc"],
        )
