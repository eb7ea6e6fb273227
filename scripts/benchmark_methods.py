"""Measure gradient error against cost for each method, and draw it (rule benchmark)."""

from typing import TYPE_CHECKING

from retrograd.job import Stopwatch, job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, plugin, class_name, model_file, scenarios, out_file, pictures):
    from retrograd import context, store
    from retrograd.figures import draw_work_precision
    from retrograd.pages import write
    from retrograd.schema import WORK_PRECISION
    from retrograd.work_precision import measure

    run.digest("plugin", plugin)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    run.digest("model", model_file)
    chunk = context.load_chunk(scenarios, cls, run.settings["start"])
    watch = Stopwatch()
    table = measure(cls, model, run.settings, chunk, watch.lap)
    methods, tolerances = (run.settings["benchmark"][name] for name in ("methods", "tolerances"))
    labels = {"scenario": chunk.ids, "method": methods, "tolerance": [f"{t:g}" for t in tolerances]}
    dataset = store.build(WORK_PRECISION, table, labels)
    store.write(dataset, out_file, WORK_PRECISION, run.provenance())
    for form, content in draw_work_precision(dataset).items():
        write(pictures[form], content)
    for m, name in enumerate(methods):
        told = ", ".join(f"{1e3 * s:.3g} ms" for s in table["seconds"][m])
        log.info("%s: %s a scenario at rtol %s", name, told, ", ".join(labels["tolerance"]))


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.input["plugin"],
            snakemake.params["class_name"],
            snakemake.input["model"],
            snakemake.params["scenarios"],
            snakemake.output["nc"],
            {"svg": snakemake.output["svg"], "png": snakemake.output["png"]},
        )
