# Name of each figure of the report and its category in Snakemake's own report.
FIGURES = {
    "outcomes": "Verdicts",
    "trajectories": "Dynamics",
    "steps": "Dynamics",
    "attempts": "Dynamics",
    "gradient_errors": "Gradients",
    "dot_product": "Gradients",
    "difference_sweep": "Gradients",
    "outcome_maps": "Verdicts",
    "stiffness": "Verdicts",
    "cause_sets": "Verdicts",
    "evaluation_order": "Dynamics",
}
if PLAN.study.cells:
    FIGURES |= {"waterfall": "Remedies", "effects": "Remedies"}
if PLAN.study.measured:
    FIGURES |= {"fit": "Measurements", "time_courses": "Measurements"}


rule summary:
    input:
        [stage_files(variant) for variant in PLAN.variants],
    output:
        nc=ensure(f"{RESULTS}/summary.nc", non_empty=True),
    log:
        f"{RESULTS}/logs/summary.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(STUDY_MEMORY),
        runtime=by_attempt(10),
    params:
        settings=PLAN.summary_settings(),
        code=PLAN.code("summary"),
    script:
        PLAN.script("summary")


if PLAN.study.cells:

    # Times belong to a machine: of a study's files this one and the report, which tells them, differ from run to run.
    rule effects:
        input:
            summary=f"{RESULTS}/summary.nc",
            seconds=PLAN.timings(),
        output:
            nc=ensure(f"{RESULTS}/effects.nc", non_empty=True),
        log:
            f"{RESULTS}/logs/effects.log",
        conda:
            "../../envs/retrograd.yaml"
        threads: 1
        resources:
            mem_mb=by_attempt(2000),
            runtime=by_attempt(10),
        params:
            settings=PLAN.effects_settings(),
            code=PLAN.code("effects"),
        script:
            PLAN.script("effects")


rule report:
    input:
        effects=[f"{RESULTS}/effects.nc"] if PLAN.study.cells else [],
        scenarios=ancient(PLAN.study.scenarios),
        model=f"{RESULTS}/model.nc",
        summary=f"{RESULTS}/summary.nc",
        stages=[stage_files(variant) for variant in PLAN.variants],
        fits=PLAN.fit_files(),
    output:
        html=report(
            f"{RESULTS}/report/index.html",
            caption="../report/index.rst",
            category="Report",
            labels={"page": "the whole report"},
        ),
        svg=[
            report(
                f"{RESULTS}/report/{name}.svg",
                caption=f"../report/{name}.rst",
                category=category,
                labels={"figure": name.replace("_", " ")},
            )
            for name, category in FIGURES.items()
        ],
        png=[f"{RESULTS}/report/{name}.png" for name in FIGURES],
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(STUDY_MEMORY),
        runtime=by_attempt(10),
    params:
        settings=PLAN.report_settings(),
        comparison=PLAN.made_comparison(),
        scenarios=PLAN.scenarios_digest(),
        code=PLAN.code("report"),
    script:
        PLAN.script("report")


rule strict:
    input:
        summary=f"{RESULTS}/summary.nc",
        report=f"{RESULTS}/report/index.html",
    output:
        touch(f"{RESULTS}/logs/strict.passed"),
    log:
        f"{RESULTS}/logs/strict.log",
    conda:
        "../../envs/retrograd.yaml"
    threads: 1
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(5),
    params:
        settings="{}",
        code=PLAN.code("strict"),
    script:
        PLAN.script("strict")
