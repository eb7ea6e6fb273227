if PLAN.study.measured:

    rule fit:
        input:
            plugin=ancient(PLAN.study.model.plugin),
            model=f"{RESULTS}/model.nc",
            dynamics=f"{RESULTS}/{{variant}}/dynamics.nc",
            gradients=f"{RESULTS}/{{variant}}/gradients.nc",
        output:
            nc=ensure(f"{RESULTS}/{{variant}}/fit.nc", non_empty=True),
            tsv=f"{RESULTS}/{{variant}}/simulations.tsv",
        log:
            f"{RESULTS}/logs/fit/{{variant}}.log",
        conda:
            "../../envs/retrograd.yaml"
        threads: 1
        resources:
            mem_mb=by_attempt(STUDY_MEMORY),
            runtime=by_attempt(10),
        params:
            settings=gather_settings("gradients"),
            class_name=PLAN.study.model.class_,
            user_files=[PLAN.plugin_digest()],
            code=PLAN.code("fit"),
        script:
            PLAN.script("fit")
