"""From a sheet of images and prompts to one tensor of diffusion latents and its index table."""

from snakemake.utils import min_version

min_version("9.24")


include: "scripts/rules/common.smk"  # STUDY (the checked config and sheet), how commands start, the hooks of a run


rule all:
    input:
        STUDY.results,
        # Without these, a lost result would go unnoticed as long as the tensor is there.
        lambda wildcards: [*STUDY.lost(planned_checksums(lost=True)), *planned_checksums()],


# Find or download the model, and write down exactly which one it is.
rule model:
    input:
        model_files,
    output:
        MODEL,
    log:
        "logs/model.log",
    conda:
        "envs/environment.yaml"
    params:
        identity=STUDY.model_identity,
        command=command("model.py"),
    shell:
        "{params.command} --output {output:q} > {log:q} 2>&1"


# One image: ask the resident process, which keeps the model loaded, for its latent.
rule extract:
    input:
        image=STUDY.image,
        model=MODEL,
    output:
        **STUDY.outputs,
    log:
        "logs/extract/{id}.log",
    group:
        "extract"
    conda:
        "envs/environment.yaml"
    threads: extract_threads
    resources:
        gpu=1,
        in_flight=1,
        mem_mb=16000,
        runtime=1,
        device=STUDY.config["device"],
    params:
        recipe=STUDY.recipe,  # all that decides the latent, as one text; the command reads it in the plan
        image_bytes=STUDY.image_bytes,
        command=extract_command,
    shell:
        "{params.command} --output {output:q} > {log:q} 2>&1"


# SHA-256 of a hundred latents at a time: what Snakemake does around a job grows with the square of its inputs.
rule checksums:
    input:
        STUDY.block,
    output:
        "results/checksums/{block}.sha256",
    log:
        "logs/checksums/{block}.log",
    conda:
        "envs/environment.yaml"
    shell:
        # But of empty files, whose SHA-256 this is: they stand for items that failed.
        "set -o pipefail; sha256sum -- {input:q} 2> {log:q} | awk '!/^.?e3b0c44298fc1c149afb/' > {output:q}"


# All latents, in the order of the sheet, as one tensor with its index table.
rule stack:
    input:
        checksums=STUDY.checksums,
        model=MODEL,
    output:
        STUDY.stacked,
    log:
        "logs/stack.log",
    conda:
        "envs/environment.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        table=STUDY.table,
        command=command("stack.py"),
    shell:
        "{params.command} --model {input.model:q} --output {output:q} > {log:q} 2>&1"


include: "scripts/rules/report.smk"
include: "scripts/rules/upkeep.smk"
