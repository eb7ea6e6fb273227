"""Find the steady states of one chunk of scenarios (rule steady_state_chunk)."""

from typing import TYPE_CHECKING

from retrograd.job import Progress, job, log, tell_rescue

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, plugin, class_name, model_file, scenarios, out_file):
    import dataclasses

    from retrograd import causes, context, store
    from retrograd.find_stage import find_steady_states
    from retrograd.provenance import text_digest
    from retrograd.rescue import rung_names
    from retrograd.schema import STEADY_STATE, STEADY_STATUS

    options = run.settings
    run.digest("plugin", plugin)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    run.digest("model", model_file)
    run.inputs["rows"] = text_digest(scenarios)
    chunk = context.load_chunk(scenarios, cls, "steady_state")
    progress = Progress("steady states", len(chunk.ids))
    found, rung = find_steady_states(cls, model, options, chunk.k_steady, chunk.x0, tell_rescue)
    progress.advance(len(chunk.ids))
    for line in context.chunk_summary(found.status, STEADY_STATUS, chunk):
        log.warning(line)
    states = list(cls.states)
    why = causes.table(causes.of_steady_states(cls, model, options, found, chunk.k_steady), term=False)
    dataset = store.build(
        STEADY_STATE,
        {
            "k": chunk.k_steady,
            **dataclasses.asdict(found),
            "rung": rung,
            "rung_name": [rung_names(options)[i] for i in rung],
            **why,
        },
        {"scenario": chunk.ids, "state": states, "state_2": states, "parameter": list(cls.parameters)},
        units=context.units_of(cls),
        flags={"rung": rung_names(options)},
    )
    store.write(dataset, out_file, STEADY_STATE, run.provenance())


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.input["plugin"],
            snakemake.params["class_name"],
            snakemake.input["model"],
            snakemake.params["scenarios"],
            snakemake.output["nc"],
        )
