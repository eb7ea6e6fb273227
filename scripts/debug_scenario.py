"""Run one scenario alone and write a readable trace of it (rule debug)."""

from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, plugin, class_name, model_file, scenario, out_file):
    from retrograd import context
    from retrograd.provenance import without_names
    from retrograd.trace_text import trace
    from retrograd.whole import whole

    settings, names = without_names(run.settings), {key: run.settings[key] for key in ("study", "variant")}
    run.digest("plugin", plugin)
    cls, model = context.load_model(plugin, class_name, model_file, run.wanted)
    chunk = context.load_chunk(scenario, cls, settings["start"])
    found = trace(cls, model, chunk, settings, **names, plugin=plugin, model_file=model_file)
    with whole(out_file) as temporary:
        temporary.write_text(found.text, encoding="utf-8")
    for line in found.short:
        log.info("%s", line)
    log.info("trace: %s", out_file)


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.input["plugin"],
            snakemake.params["class_name"],
            snakemake.input["model"],
            snakemake.params["scenario"],
            snakemake.params["trace"],
        )
