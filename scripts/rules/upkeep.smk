"""Targets that make no results: `check` opens every picture, `orphans` lists files that belong to nothing any more."""

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


rule orphans:
    log:
        "logs/orphans.txt",
    run:
        write_orphans(STUDY.config, STUDY.items, STUDY.figures, log[0])
