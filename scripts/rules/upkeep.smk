"""Targets that make no results: `check` opens every picture, `plan` times three items, `orphans` lists files that belong
to nothing any more."""

from gpi_latents.orphans import write_orphans


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


# How many items a run has in flight: as many as there are cores, and the profile says.
IN_FLIGHT = [workflow.global_resources[name].value for name in {"_cores", "in_flight"} & {*workflow.global_resources}]


rule plan:
    input:
        model=MODEL,
    log:
        "logs/plan.txt",
    conda:
        "../../envs/environment.yaml"
    threads: min(filter(None, IN_FLIGHT), default=1)
    resources:
        gpu=1,
        in_flight=1,
        mem_mb=16000,
        runtime=60,
    params:
        command=command("cost.py"),
    shell:
        "{params.command} --workers {threads} > {log:q} 2>&1"


rule orphans:
    log:
        "logs/orphans.txt",
    run:
        write_orphans(STUDY.config, STUDY.items, STUDY.figures, log[0])
