"""Join the chunks of one stage and variant into its result file (rules steady_state, dynamics, gradients)."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, stage, parts, named_inputs, numerics_digest, out_file):
    import json

    from retrograd import store

    environments = []
    for path in parts:
        with store.read(path, stage, lazily=store.JOINED) as ds:
            environments.append(json.loads(ds.attrs["retrograd_environment"]))
    if any(e != environments[0] for e in environments):
        log.warning("the chunks of %s were computed in different environments; the first one is recorded", out_file)
    for name, path in named_inputs.items():
        run.digest(name, path)
    # The numbers come from the chunks: their code and environment stand here, not those of the joining.
    provenance = store.Provenance(run.settings, run.inputs, numerics_digest, environments[0])
    title = f"study {run.settings['study']}, variant {run.settings['variant']}"
    store.join(parts, out_file, stage, provenance, title_of=title)


if __name__ == "__main__":
    with job(snakemake) as run:
        named = {name: getattr(snakemake.input, name) for name in ("model", "plugin", "scenarios")}
        named |= {Path(path).stem: path for path in snakemake.input["earlier"]}
        main(
            run,
            snakemake.params["stage"],
            list(snakemake.input["parts"]),
            named,
            snakemake.params["numerics"],
            snakemake.output["nc"],
        )
