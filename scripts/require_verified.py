"""Fail unless every scenario has a verified gradient under every variant (rule strict)."""

from typing import TYPE_CHECKING

from retrograd.job import job, log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(summary_file):
    from retrograd import store
    from retrograd.errors import RetrogradError
    from retrograd.schema import OUTCOMES

    summary = store.read(summary_file, "summary")
    scenarios = store.labels(summary, "scenario")
    lines = []
    for variant, codes in zip(store.labels(summary, "variant"), summary["outcome"].values, strict=True):
        bad = [(name, OUTCOMES[c]) for name, c in zip(scenarios, codes, strict=True) if c != 0]
        shown = ", ".join(f"{name} ({outcome})" for name, outcome in bad[:10])
        if bad:
            lines.append(f"{variant}: {len(bad)} of {len(scenarios)}: {shown}{', ...' if len(bad) > 10 else ''}")
    if lines:
        raise RetrogradError(
            "strict: true, and these scenarios have no verified gradient (the report says why):\n  "
            + "\n  ".join(lines)
        )
    log.info("strict: every scenario has a verified gradient")


if __name__ == "__main__":
    with job(snakemake, computes=False):
        main(snakemake.input["summary"])
