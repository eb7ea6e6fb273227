"""Check that an archive is whole, without loading its model or computing anything (rule verify)."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

# Lines of findings that are printed: one changed file often breaks many links.
MOST_SHOWN = 50
# Files of another workflow that are named.
MOST_NAMED = 10


def main(path, root):
    from retrograd.errors import RetrogradError
    from retrograd.inspection import CHECKS, inspect
    from retrograd.provenance import file_digest

    found = inspect(path, Path(root))
    for check in CHECKS:
        if check in found.passed:
            log.info("%s: %d looked at, nothing wrong", check, found.passed[check])
        elif check in found.skipped:
            log.info("%s: not checked, since %s", check, found.skipped[check])
    if found.foreign:
        # No finding: a workflow may be changed before a study is run. But it runs where the unpacked archive is run.
        shown = ", ".join(found.foreign[:MOST_NAMED]) + (", and others" if len(found.foreign) > MOST_NAMED else "")
        log.warning("of the workflow in it %d files are not those of this one: %s", len(found.foreign), shown)
    if found.findings:
        lines = [str(finding) for finding in found.findings[:MOST_SHOWN]]
        if more := len(found.findings) - MOST_SHOWN:
            lines += [f"and {more} more"] if more > 0 else []
        raise RetrogradError("\n  ".join([f"{path} is not what was archived:", *lines]))
    log.info("%s is whole: sha256 %s", path, file_digest(path))


if __name__ == "__main__":
    with job(snakemake):
        main(snakemake.params["archive"], snakemake.params["root"])
