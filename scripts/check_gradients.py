"""Form the gradients of one chunk of scenarios and check them by finite differences (rule gradients_chunk)."""

from typing import TYPE_CHECKING

from retrograd.job import Progress, Stopwatch, job, log, single

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    run, plugin, class_name, model_file, steady_file, dynamics_file, scenarios, earlier, out_file, seconds_file=None
):
    import numpy as np

    from retrograd import context, store
    from retrograd.differences import WIDTHS
    from retrograd.gradient_stage import form_gradients, gradient_problem
    from retrograd.gradients import from_records, load_records
    from retrograd.provenance import text_digest
    from retrograd.schema import GRADIENTS, TIMINGS, VERDICTS
    from retrograd.timing import derivatives

    options = run.settings
    run.digest("plugin", plugin)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    run.digest("model", model_file)
    run.inputs["rows"] = text_digest(scenarios)
    chunk = context.load_chunk(scenarios, cls, options["start"])
    steady = None
    if steady_file:
        steady = run.read("steady_state", steady_file, "steady_state", settings=earlier["steady_state"])
    dynamics = run.read("dynamics", dynamics_file, "dynamics", settings=earlier["dynamics"])
    records = load_records(dynamics)
    at_rest = (None, None) if steady is None else (steady["x"].values, steady["conserved_basis"].values)
    recorded = from_records(chunk, dynamics["x_start"].values, records, *at_rest)
    rungs = (steady["rung"].values if steady else np.zeros(len(chunk.ids), int), dynamics["rung"].values)
    problem = gradient_problem(cls, model, options)
    progress = Progress("finite differences", WIDTHS * int(recorded.ok.sum()), "replays, one a scenario and width")
    watch, took = Stopwatch(), {}
    table = form_gradients(cls, model, options, problem, recorded, records, rungs, progress.advance, took.__setitem__)
    watch.lap("gradients, their check and causes of failures, compilation included")
    for m, method in enumerate(problem.methods):
        counts = np.bincount(table["status"][:, m], minlength=len(VERDICTS))
        told = ", ".join(f"{c} {v}" for c, v in zip(counts, VERDICTS, strict=True) if c)
        log.info("%s: %s of %d scenarios", method, told, len(chunk.ids))
    dataset = store.build(
        GRADIENTS,
        table,
        {
            "scenario": chunk.ids,
            "method": problem.methods,
            "wrt": problem.labels,
            "state": list(cls.states),
            "width": [f"width{i}" for i in range(table["fd_sweep"].shape[2])],
        },
        units=context.units_of(cls),
        coords={"model_time": (np.asarray(options["save_times"], float), cls.time_unit, "model time")},
    )
    store.write(dataset, out_file, GRADIENTS, run.provenance())
    if seconds_file is not None:
        rows = np.flatnonzero(recorded.ok)
        for method in problem.methods:
            if len(rows) and method not in took:
                watch = Stopwatch()
                # The check has compiled it.
                derivatives(method, problem, recorded.take(rows))
                took[method] = watch.lap(f"{method}, compiled before")
        seconds = [took.get(method, 0.0) for method in problem.methods]
        times = store.build(TIMINGS, {"seconds": seconds}, {"part": problem.methods})
        store.write(times, seconds_file, TIMINGS, run.provenance())


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.input["plugin"],
            snakemake.params["class_name"],
            snakemake.input["model"],
            single(snakemake.input.get("steady_state")),
            single(snakemake.input["dynamics"]),
            snakemake.params["scenarios"],
            snakemake.params["earlier"],
            snakemake.output["nc"],
            snakemake.output.get("seconds"),
        )
