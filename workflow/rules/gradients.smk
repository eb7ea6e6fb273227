rule gradients_chunk:
    input:
        plugin=ancient(PLAN.study.model.plugin),
        model=f"{RESULTS}/model.nc",
        steady_state=upstream_chunk("steady_state"),
        dynamics=upstream_chunk("dynamics"),
    output:
        **timings("gradients"),
        nc=ensure(f"{RESULTS}/chunks/gradients/{{work}}/{{chunk}}.nc", non_empty=True),
    log:
        f"{RESULTS}/logs/gradients/{{work}}.{{chunk}}.log",
    priority: 1
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=by_attempt(CHUNK_MEMORY),
        runtime=by_attempt(60),
    params:
        settings=chunk_settings,
        scenarios=chunk_scenarios,
        class_name=PLAN.study.model.class_,
        plugin=PLAN.plugin_digest(),
        known=PLAN.known_weights(),
        earlier=lambda wildcards: PLAN.earlier_settings(wildcards.work),
        code=PLAN.code("gradients"),
    script:
        PLAN.script("gradients")


rule gradients:
    input:
        parts=parts("gradients"),
        earlier=earlier("gradients"),
        model=f"{RESULTS}/model.nc",
        plugin=ancient(PLAN.study.model.plugin),
        scenarios=ancient(PLAN.study.scenarios),
    output:
        nc=ensure(f"{RESULTS}/{{variant}}/gradients.nc", non_empty=True),
    log:
        f"{RESULTS}/logs/gradients/{{variant}}.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        stage="gradients",
        settings=gather_settings("gradients"),
        user_files=[PLAN.plugin_digest(), PLAN.scenarios_digest()],
        numerics=PLAN.code("gradients"),
        code=PLAN.code("gather"),
    script:
        PLAN.script("gather")
