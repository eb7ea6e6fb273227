"""Join the comparisons of all variants into one file and one page (rule comparison)."""

from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, parts, reference, out_file, page_file):
    from retrograd import comparison_page, store
    from retrograd.comparison import joined
    from retrograd.schema import COMPARISON
    from retrograd.whole import whole

    path, digest = reference
    run.inputs["reference"] = digest
    found = [store.read(part, "comparison", wanted=run.inputs) for part in parts]
    run.inputs |= {name: d for part in found for name, d in store.origin(part.attrs).items() if "/" in name}
    dataset = joined(found, run.settings)
    store.write(dataset, out_file, COMPARISON, run.provenance(), title_of=run.settings["study"])
    with whole(page_file) as temporary:
        temporary.write_text(comparison_page.page(run.settings["study"], dataset, digest), encoding="utf-8")
    log.info("%s: compared with %s", page_file, path)


if __name__ == "__main__":
    with job(snakemake, computes=False) as run:
        main(
            run,
            list(snakemake.input["parts"]),
            snakemake.params["reference"],
            snakemake.output["nc"],
            snakemake.output["html"],
        )
