# No output: a file that is there already would keep the command from running again.
rule debug:
    input:
        plugin=ancient(PLAN.study.model.plugin),
        model=asked_for(debugged_model),
    log:
        f"{RESULTS}/logs/debug.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=by_attempt(3000),
        runtime=by_attempt(60),
    params:
        trace=lambda wildcards: PLAN.debug_file(),
        settings=lambda wildcards: PLAN.debug_settings(),
        scenario=lambda wildcards: PLAN.debug_scenario(),
        known=PLAN.known_weights(),
        class_name=PLAN.study.model.class_,
        code=PLAN.code("debug"),
    script:
        PLAN.script("debug")
