"""Hold the simulations of a variant against the measurements (rule fit)."""

from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

# Samples whose log-likelihood is told in the log; fit.nc has all.
MOST_TOLD = 10


def main(run, plugin, class_name, model_file, dynamics_file, gradients_file, out_file, out_table):
    import numpy as np

    from retrograd import context, store
    from retrograd.fit import fit
    from retrograd.schema import FIT, FIT_STATUS
    from retrograd.simulations import simulation_lines
    from retrograd.whole import whole

    run.digest("plugin", plugin)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    run.digest("model", model_file)
    with (
        run.read("dynamics", dynamics_file, "dynamics", store.JOINED) as dynamics,
        run.read("gradients", gradients_file, "gradients", store.JOINED) as gradients,
    ):
        dataset = fit(cls, model, dynamics, gradients)
    counts = np.bincount(dataset["status"].values, minlength=len(FIT_STATUS))
    told = ", ".join(f"{c} {name.replace('_', ' ')}" for c, name in zip(counts, FIT_STATUS, strict=True) if c)
    log.info("%d measurements, samples: %s", dataset.sizes["measurement"], told)
    first = dataset[["sample", "llh", "llh_error"]].isel(sample=slice(MOST_TOLD))
    for sample, llh, error in zip(*(first[name].values for name in ("sample", "llh", "llh_error")), strict=True):
        log.info("sample %s: llh %.12g, discretisation error %.2g", sample, llh, error)
    title = f"study {run.settings['study']}, variant {run.settings['variant']}"
    store.write(dataset, out_file, FIT, run.provenance(), title_of=title)
    with whole(out_table) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
        out.writelines(simulation_lines(dataset))


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.input["plugin"],
            snakemake.params["class_name"],
            snakemake.input["model"],
            snakemake.input["dynamics"],
            snakemake.input["gradients"],
            snakemake.output["nc"],
            snakemake.output["tsv"],
        )
