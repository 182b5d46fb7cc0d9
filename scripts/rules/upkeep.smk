"""Targets that make no results: `check` opens every picture, `plan` times three items, `orphans` lists files that belong
to nothing any more."""


rule check:
    log:
        "logs/check.txt",
    conda:
        "../../envs/environment.yaml"
    threads: 4
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        command=command("check.py"),
    shell:
        "{params.command} --threads {threads} > {log:q} 2>&1"


# What limits how many items a run has at a time; None where nothing does.
CORES, IN_FLIGHT = [getattr(workflow.global_resources.get(name), "value", None) for name in ("_cores", "in_flight")]


rule plan:
    input:
        model=MODEL,
    log:
        "logs/plan.txt",
    conda:
        "../../envs/environment.yaml"
    threads: min(filter(None, [CORES, IN_FLIGHT]), default=1)
    resources:
        gpu=1,
        in_flight=1,
        mem_mb=16000,
        runtime=60,
        device=STUDY.config["device"],
    params:
        command=command("cost.py"),
        in_flight=lambda wildcards, threads: (STUDY.config["resident"] and IN_FLIGHT) or threads,
    shell:
        "{params.command} --workers {threads} --in-flight {params.in_flight} > {log:q} 2>&1"


rule orphans:
    log:
        "logs/orphans.txt",
    conda:
        "../../envs/environment.yaml"
    params:
        command=command("orphans.py"),
    shell:
        "{params.command} > {log:q} 2>&1"
