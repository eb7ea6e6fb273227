"""Tell what a comparison came to; fail where runs differ (rule compare)."""

from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(file):
    from retrograd import store
    from retrograd.agreement import DIFFERENT
    from retrograd.comparison import overall
    from retrograd.comparison_page import lines
    from retrograd.errors import RetrogradError

    dataset = store.read(file, "comparison")
    if overall(dataset) == DIFFERENT:
        raise RetrogradError("\n  ".join(lines(dataset)))
    for line in lines(dataset):
        log.info("%s", line)


if __name__ == "__main__":
    with job(snakemake, computes=False):
        main(snakemake.input["nc"])
