rule archive:
    input:
        final=final_files(),
        results=PLAN.result_files(),
        pages=[
            f"{RESULTS}/report/index.html",
            *(
                f"{RESULTS}/report/{name}.{kind}"
                for name in FIGURES
                for kind in ("svg", "png")
            ),
        ],
        given=[ancient(file) for file in PLAN.user_files().values()],
    output:
        zip=f"results/archives/{PLAN.study.study}.zip",
    log:
        f"{RESULTS}/logs/archive.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        settings=lambda wildcards: PLAN.archive_settings(),
        root=workflow.basedir,
        source=lambda wildcards: PLAN.source_digest(),
        given=[PLAN.plugin_digest(), PLAN.weights_digest(), PLAN.scenarios_digest()],
        code=PLAN.code("archive"),
    script:
        PLAN.script("archive")


# No output: an archive is looked at anew each time.
rule verify:
    log:
        "results/archives/verify.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        archive=asked_for(lambda: PLAN.archive_asked_for("verify")),
        root=workflow.basedir,
        settings="{}",
        code=PLAN.code("verify"),
    script:
        PLAN.script("verify")
