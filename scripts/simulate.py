"""Simulate one chunk of scenarios and record every attempt of the solver (rule dynamics_chunk)."""

from typing import TYPE_CHECKING

from retrograd.job import Progress, Stopwatch, job, log, single, tell_rescue

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, plugin, class_name, model_file, steady_file, scenarios, earlier, out_file, seconds_file=None):
    import numpy as np

    from retrograd import causes, context, store
    from retrograd.batches import float_type
    from retrograd.dynamics import rows_at
    from retrograd.jumps import row_times
    from retrograd.provenance import text_digest
    from retrograd.rescue import rung_names
    from retrograd.schema import DYNAMICS, DYNAMICS_STATUS, TIMINGS
    from retrograd.solve_stage import simulate, stiffness_ratios
    from retrograd.starts import starts_of

    options = run.settings
    run.digest("plugin", plugin)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    run.digest("model", model_file)
    run.inputs["rows"] = text_digest(scenarios)
    chunk = context.load_chunk(scenarios, cls, options["start"])
    states, times = list(cls.states), np.asarray(options["save_times"], float)
    at_rest = None
    if steady_file is not None:
        steady = run.read("steady_state", steady_file, "steady_state", settings=earlier["steady_state"])
        at_rest = steady["status"].values, steady["x"].values
    start = starts_of(cls, model, chunk.k_dynamic, chunk.x0, at_rest)
    rows = row_times(cls.jump_times, times, float_type())
    progress = Progress("simulations", len(chunk.ids))
    watch = Stopwatch()
    compiled = lambda: watch.lap("compile")
    records, rung = simulate(cls, model, options, start, chunk.k_dynamic, tell_rescue, progress.advance, compiled)
    seconds = watch.lap("run")
    status = np.array([r.status for r in records])
    for line in context.chunk_summary(status, DYNAMICS_STATUS, chunk):
        log.warning(line)
    why = causes.table(causes.of_dynamics(cls, model, options, records, start, chunk.k_dynamic), term=False)
    ratios = stiffness_ratios(cls, model, options, records, start, chunk.k_dynamic)
    watch.lap("stiffness and causes of failures")
    join = lambda name: np.concatenate([getattr(r, name) for r in records])
    error = join("error")
    finite = np.isfinite(error)
    accepted = np.array([r.num_accepted for r in records])
    attempts = np.array([len(r.end) for r in records])
    dataset = store.build(
        DYNAMICS,
        {
            "k": chunk.k_dynamic,
            "x": np.stack([rows_at(r, s, rows) for r, s in zip(records, start, strict=True)]),
            "x_start": start,
            "status": status,
            "rung": rung,
            "rung_name": [rung_names(options)[i] for i in rung],
            "num_accepted": accepted,
            "num_rejected": attempts - accepted,
            "step_count": accepted,
            "step_time": join("step_time"),
            "step_x": np.concatenate([r.step_x.reshape(-1, len(states)) for r in records]),
            "attempt_count": attempts,
            "attempt_start": join("start"),
            "attempt_end": join("end"),
            "attempt_accepted": join("accepted"),
            "attempt_error": np.where(finite, error, np.nan),
            "attempt_finite": finite,
            "stiffness_ratio": ratios,
            **why,
        },
        {"scenario": chunk.ids, "state": states, "parameter": list(cls.parameters)},
        units=context.units_of(cls),
        coords={"model_time": (times, cls.time_unit, "model time")},
        flags={"rung": rung_names(options)},
    )
    store.write(dataset, out_file, DYNAMICS, run.provenance())
    if seconds_file is not None:
        times = store.build(TIMINGS, {"seconds": [seconds]}, {"part": ["solve"]})
        store.write(times, seconds_file, TIMINGS, run.provenance())


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.input["plugin"],
            snakemake.params["class_name"],
            snakemake.input["model"],
            single(snakemake.input.get("steady_state")),
            snakemake.params["scenarios"],
            snakemake.params["earlier"],
            snakemake.output["nc"],
            snakemake.output.get("seconds"),
        )
