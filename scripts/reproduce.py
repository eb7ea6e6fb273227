"""Compute an archived study anew in this environment and compare (rule reproduce)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# As they were before this job prepared its own process: the nested run's jobs prepare themselves.
SURROUNDINGS = dict(os.environ)

from retrograd.job import job, log  # noqa: E402

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(path, digest, root, cores):
    import shutil

    from retrograd import reproduction
    from retrograd.errors import RetrogradError
    from retrograd.provenance import environment
    from retrograd.references import study_of, unpacked

    archived = unpacked(path, root, digest)
    log.info("%s is whole: sha256 %s", path, digest)
    study = study_of(archived)
    for line in reproduction.told(archived, root, environment(None, 1)):
        log.info("%s", line)
    folder = reproduction.prepared(archived, Path(path), digest)
    log.info("computing study %s anew in %s, with %d cores", study, folder, cores)
    # What was compiled here before holds there too.
    kept = {"JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"]}
    code = reproduction.run(folder, root, cores, SURROUNDINGS | kept)
    comparison = folder / "results" / study / "comparison"
    if not (comparison / "comparison.nc").is_file():
        raise RetrogradError(f"{study} could not be computed anew: see above, and the logs in {folder}/results.")
    target = Path("results", study, "comparison")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(comparison, target)
    (folder / reproduction.FINISHED).touch()
    log.info("comparison: %s", target / "index.html")
    if code:
        raise RetrogradError(f"{study} did not come out again: see the verdict above, and {target / 'index.html'}.")
    log.info("%s came out again", study)


if __name__ == "__main__":
    with job(snakemake):
        path, digest = snakemake.params["archive"]
        main(path, digest, Path(snakemake.params["root"]), snakemake.threads)
