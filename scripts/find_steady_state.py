"""Find the steady states of one chunk of scenarios (rule steady_state_chunk)."""

from typing import TYPE_CHECKING

from retrograd.job import Progress, job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, plugin, class_name, model_file, scenarios, out_file):
    import dataclasses

    import numpy as np

    from retrograd import context, store
    from retrograd.schema import STEADY_STATE, STEADY_STATUS
    from retrograd.steady import SteadyProblem

    cls, model = context.load_model(plugin, class_name, model_file)
    chunk = context.load_chunk(scenarios, cls, "steady_state")
    problem = SteadyProblem(cls, context.field_of(cls, run.settings), run.settings["steady_state"])
    progress = Progress("steady states", len(chunk.ids))
    found = problem.find(model, chunk.k_steady, chunk.x0, progress.advance)
    for code in np.unique(found.status[found.status != 0]):
        names = [name for name, status in zip(chunk.ids, found.status, strict=True) if status == code]
        log.warning("%s: %d scenarios: %s", STEADY_STATUS[code], len(names), ", ".join(names[:10]))
    states = list(cls.states)
    dataset = store.build(
        STEADY_STATE,
        dataclasses.asdict(found),
        {"scenario": chunk.ids, "state": states, "state_2": states},
        units=context.units_of(cls),
    )
    run.digest("plugin", plugin)
    run.digest("model", model_file)
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
