# Times belong to a machine: nothing else depends on these files, and no other target makes them.
rule benchmark:
    input:
        f"{RESULTS}/benchmarks/work_precision.nc",
        f"{RESULTS}/benchmarks/speed.nc",


rule work_precision:
    input:
        plugin=ancient(PLAN.study.model.plugin),
        model=f"{RESULTS}/model.nc",
    output:
        nc=f"{RESULTS}/benchmarks/work_precision.nc",
        svg=f"{RESULTS}/benchmarks/work_precision.svg",
        png=f"{RESULTS}/benchmarks/work_precision.png",
    log:
        f"{RESULTS}/logs/work_precision.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(240),
    params:
        settings=PLAN.benchmark_settings(),
        scenarios=PLAN.benchmark_scenarios(),
        class_name=PLAN.study.model.class_,
        plugin=PLAN.plugin_digest(),
        known=PLAN.known_weights(),
        code=PLAN.code("work_precision"),
    script:
        PLAN.script("work_precision")


rule speed:
    input:
        plugin=ancient(PLAN.study.model.plugin),
        model=f"{RESULTS}/model.nc",
    output:
        nc=f"{RESULTS}/benchmarks/speed.nc",
        svg=f"{RESULTS}/benchmarks/speed.svg",
        png=f"{RESULTS}/benchmarks/speed.png",
    log:
        f"{RESULTS}/logs/speed.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(240),
    params:
        settings=PLAN.benchmark_settings(),
        scenarios=PLAN.benchmark_scenarios(),
        class_name=PLAN.study.model.class_,
        plugin=PLAN.plugin_digest(),
        known=PLAN.known_weights(),
        code=PLAN.code("speed"),
    script:
        PLAN.script("speed")
