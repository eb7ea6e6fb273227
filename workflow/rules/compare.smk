rule compared:
    input:
        plugin=ancient(PLAN.study.model.plugin),
        model=f"{RESULTS}/model.nc",
        scenarios=ancient(PLAN.study.scenarios),
        stages=lambda wildcards: stage_files(wildcards.variant),
    output:
        nc=f"{RESULTS}/comparison/variants/{{variant}}.nc",
    log:
        f"{RESULTS}/logs/comparison/{{variant}}.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(3000),
        runtime=by_attempt(60),
    params:
        reference=asked_for(PLAN.reference),
        root=workflow.basedir,
        settings=gather_settings("gradients"),
        class_name=PLAN.study.model.class_,
        user_files=[PLAN.plugin_digest(), PLAN.scenarios_digest()],
        code=PLAN.code("compared"),
    script:
        PLAN.script("compared")


rule comparison:
    input:
        parts=asked_for(compared_parts),
    output:
        nc=f"{RESULTS}/comparison/comparison.nc",
        html=f"{RESULTS}/comparison/index.html",
    log:
        f"{RESULTS}/logs/comparison.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        reference=asked_for(PLAN.reference),
        settings=asked_for(PLAN.comparison_settings),
        code=PLAN.code("comparison"),
    script:
        PLAN.script("comparison")


# No output: the verdict is told each time, and a difference fails the run with all files in place.
rule compare:
    input:
        nc=f"{RESULTS}/comparison/comparison.nc",
        summary=f"{RESULTS}/summary.nc",
    log:
        f"{RESULTS}/logs/compare.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(5),
    params:
        settings="{}",
        code=PLAN.code("compare"),
    script:
        PLAN.script("compare")


# No output either: it is computed anew each time it is asked for.
rule reproduce:
    log:
        "results/reproductions/reproduce.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: lambda wildcards: workflow.cores
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(600),
    params:
        archive=asked_for(PLAN.archived),
        root=workflow.basedir,
        settings="{}",
        code=PLAN.code("reproduce"),
    script:
        PLAN.script("reproduce")
