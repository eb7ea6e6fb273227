"""Measure speed and accuracy beside others, and draw them (rule speed)."""

from typing import TYPE_CHECKING

from retrograd.job import Stopwatch, job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, plugin, class_name, model_file, scenarios, out_file, pictures):
    import numpy as np

    from retrograd import context, speed, store
    from retrograd.errors import RetrogradError
    from retrograd.figures import draw_speed
    from retrograd.pages import write
    from retrograd.schema import SPEED
    from retrograd.work_precision import starts

    run.digest("plugin", plugin)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    run.digest("model", model_file)
    chunk = context.load_chunk(scenarios, cls, run.settings["start"])
    if cls.jump_times:
        raise RetrogradError(
            f"{class_name} has jump_times, and most peers in the benchmark know no jumps: their numbers would be "
            "those of another model. Take a study whose model has none."
        )
    about = run.settings["benchmark"]
    for name in speed.missing(about["peers"]):
        log.warning("%s is not installed, and left out: pip install %s brings it.", name, name)
    _, x, *_ = starts(cls, model, run.settings, chunk)
    good = np.flatnonzero(np.all(np.isfinite(x), axis=1))
    chunk, watch = chunk.take(good), Stopwatch()
    table = speed.measure(plugin, class_name, model_file, run.settings, x[good], chunk.k_dynamic, watch.lap)
    tolerances = [f"{t:g}" for t in about["tolerances"]]
    labels = {"scenario": chunk.ids, "peer": about["peers"], "tolerance": tolerances, "part": list(speed.PARTS)}
    dataset = store.build(SPEED, table, labels)
    store.write(dataset, out_file, SPEED, run.provenance())
    for form, content in draw_speed(dataset).items():
        write(pictures[form], content)
    for line in speed.told(dataset):
        log.info(line)


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
