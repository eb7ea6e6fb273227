"""Export the pretrained model of a study to netCDF (rule export)."""

from typing import TYPE_CHECKING

from retrograd.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, plugin, class_name, weights_file, out_file, names=None):
    from retrograd.plugins import build_structure, load_class
    from retrograd.weights import export, load_into

    model = load_into(build_structure(load_class(plugin, class_name)), weights_file, names)
    run.digest("plugin", plugin)
    if weights_file:
        run.digest("weights", weights_file)
    export(model, run.provenance(), out_file)


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.input["plugin"],
            run.settings["class"],
            snakemake.input.get("weights"),
            snakemake.output["nc"],
            run.settings.get("weight_names"),
        )
