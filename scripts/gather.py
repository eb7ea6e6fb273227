"""Join the chunks of one stage and variant into its result file (rules steady_state, dynamics, gradients)."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, stage, parts, named_inputs, earlier, numerics_digest, out_file):
    import json

    from retrograd import store
    from retrograd.provenance import canonical, text_digest, without_names
    from retrograd.scenarios import read_scenarios

    for name, path in named_inputs.items():
        run.digest(name, path)
    for path in earlier:
        run.read(Path(path).stem, path, Path(path).stem, store.JOINED).close()
    own = canonical(without_names(run.settings))
    wanted = {"plugin": run.inputs["plugin"], "model": run.inputs["model"], "settings": own}
    table, start, environments = read_scenarios(named_inputs["scenarios"]), 0, []
    for path in parts:
        with store.read(path, stage, store.JOINED) as ds:
            stop = start + ds.sizes["scenario"]
            rows = {"rows": text_digest(table.part(start, stop))}
            store.check_origin(ds.attrs, path, stage, wanted | rows)
            environments.append(json.loads(ds.attrs["retrograd_environment"]))
            start = stop
    if any(e != environments[0] for e in environments):
        log.warning("the chunks of %s were computed in different environments; the first one is recorded", out_file)
    # The numbers come from the chunks: their code and environment stand here, not those of the joining.
    provenance = store.Provenance(run.settings, run.inputs, numerics_digest, environments[0])
    title = f"study {run.settings['study']}, variant {run.settings['variant']}"
    store.join(parts, out_file, stage, provenance, title_of=title)


if __name__ == "__main__":
    with job(snakemake, computes=False) as run:
        named = {name: getattr(snakemake.input, name) for name in ("model", "plugin", "scenarios")}
        main(
            run,
            snakemake.params["stage"],
            list(snakemake.input["parts"]),
            named,
            list(snakemake.input["earlier"]),
            snakemake.params["numerics"],
            snakemake.output["nc"],
        )
