"""Pack a study with everything that it takes to compute it again into one zip (rule archive)."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(run, root, results, pages, out_file):
    from retrograd import archive
    from retrograd.packing import pack

    digest = archive.write(out_file, pack(Path(root), run.settings, results, pages))
    log.info("%s: %.1f MB, sha256 %s", out_file, Path(out_file).stat().st_size / 1e6, digest)


if __name__ == "__main__":
    with job(snakemake) as run:
        main(
            run,
            snakemake.params["root"],
            list(snakemake.input["results"]),
            list(snakemake.input["pages"]),
            snakemake.output["zip"],
        )
