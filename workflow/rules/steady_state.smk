rule steady_state_chunk:
    input:
        plugin=ancient(PLAN.study.model.plugin),
        model=f"{RESULTS}/model.nc",
    output:
        nc=ensure(
            f"{RESULTS}/chunks/steady_state/{{work}}/{{chunk}}.nc", non_empty=True
        ),
    log:
        f"{RESULTS}/logs/steady_state/{{work}}.{{chunk}}.log",
    # Before the joins: they can wait, and what waits for a chunk is on the longest way.
    priority: 1
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=by_attempt(CHUNK_MEMORY),
        runtime=by_attempt(20),
    params:
        settings=chunk_settings,
        scenarios=chunk_scenarios,
        class_name=PLAN.study.model.class_,
        plugin=PLAN.plugin_digest(),
        known=PLAN.known_weights(),
        code=PLAN.code("steady_state"),
    script:
        PLAN.script("steady_state")


rule steady_state:
    input:
        parts=parts("steady_state"),
        earlier=earlier("steady_state"),
        model=f"{RESULTS}/model.nc",
        plugin=ancient(PLAN.study.model.plugin),
        scenarios=ancient(PLAN.study.scenarios),
    output:
        nc=ensure(f"{RESULTS}/{{variant}}/steady_state.nc", non_empty=True),
    log:
        f"{RESULTS}/logs/steady_state/{{variant}}.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        stage="steady_state",
        settings=gather_settings("steady_state"),
        user_files=[PLAN.plugin_digest(), PLAN.scenarios_digest()],
        numerics=PLAN.code("steady_state"),
        code=PLAN.code("gather"),
    script:
        PLAN.script("gather")
