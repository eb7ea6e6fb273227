rule export:
    input:
        **(
            {"weights": ancient(PLAN.study.model.weights)}
            if PLAN.study.model.weights
            else {}
        ),
        plugin=ancient(PLAN.study.model.plugin),
    output:
        nc=ensure(f"{RESULTS}/model.nc", non_empty=True),
    log:
        f"{RESULTS}/logs/export.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        settings=PLAN.export_settings(),
        user_files=[PLAN.plugin_digest(), PLAN.weights_digest()],
        code=PLAN.code("export"),
    script:
        PLAN.script("export")
