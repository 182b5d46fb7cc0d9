"""Targets that make no results: `check` opens every picture, `orphans` lists files of rows that were removed."""


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
        run.print_orphans(STUDY.config, STUDY.items, log[0])
