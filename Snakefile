"""From a sheet of images and prompts to one tensor of diffusion latents and its index table."""

import os
import shlex
import sys

from snakemake.settings.types import DeploymentMethod

from scripts import items, slurm

# The defaults stand in config/schema.yaml. A study has its own config/config.yaml, or names another by --configfile.
if not workflow.overwrite_configfiles and os.path.isfile("config/config.yaml"):

    configfile: "config/config.yaml"


try:
    config = items.load_config(config, workflow.config_settings.config)
    # The target `check` tells by itself what is wrong with the images.
    SHEET = items.read_items(config, check_images=workflow.is_main_process and not items.is_target("check", sys.argv))
except items.InputError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:
    items.settle_dates(config)
ITEMS = {item.id: item for item in SHEET[["id", "image", "prompt", *items.SETTINGS]].itertuples(index=False)}
LATENTS = [items.latent_path(config, item_id) for item_id in ITEMS]
MODEL = "results/model.json"  # by its name, since with rules.model.output planning grows with the square of the items
CHECKSUMS = items.checksum_paths(len(LATENTS))
# In a cluster's job, what was planned when it was submitted: the sheet may have been edited meanwhile.
TABLE = items.table_digest(items.index_table(config, SHEET))
if not workflow.is_main_process:
    TABLE = os.environ.get("GPI_TABLE", TABLE)
os.environ |= {"GPI_TABLE": TABLE}
FIGURES = items.figures(config)
CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
PYTHON = "python" if CONDA else sys.executable
CONFIG = items.canonical(config)
RESIDENT = items.resident_arguments(config, PYTHON, workflow.resource_settings.cores)


# The commands of profiles/slurm, which Snakemake runs from the working directory, find their script by these.
os.environ |= {"GPI_PYTHON": sys.executable, "GPI_SLURM": f"{items.ROOT}/scripts/slurm.py"}


def item(wildcards):
    if wildcards.id not in ITEMS:
        raise WorkflowError(f"The sheet {config['items']} has no item {wildcards.id!r}")
    return ITEMS[wildcards.id]


def script(name, *arguments, options=()):
    return shlex.join([PYTHON, *options, f"{items.ROOT}/scripts/{name}", *arguments])


# Params that are functions of input and output are not compared between runs: the commands hold what does not decide a
# latent, and everything that does stands in a param of its own.
def extract_command(wildcards, input, output):
    request = {
        "image": input.image,
        "recipe": items.recipe(config, item(wildcards)),
        "latent": output.latent,
        "picture": output.get("picture"),
        "run": os.getpid(),
    }
    return script("extract.py", *RESIDENT, items.canonical(request), options=["-I", "-S"])


def tell(*texts):
    for text in filter(None, texts):
        print(text, file=sys.stderr)


def planned_checksums(lost=False):
    """All, or with --batch stack=i/n those of the batch; the last batch asks for all that is lost."""
    batch = workflow.dag_settings.batch
    if batch is None or batch.rulename != "stack" or (lost and batch.is_final):
        return CHECKSUMS
    return [path for path in batch.get_batch([*CHECKSUMS, MODEL]) if path != MODEL]


def told_by_check():
    return items.log_text("logs/check.txt") if "check" in workflow.dag_settings.targets else ""


wildcard_constraints:
    id=r"[A-Za-z0-9_-][A-Za-z0-9._-]*",
    block=r"\d+",
    figure="|".join(items.FIGURES),


localrules:
    all,
    model,
    checksums,
    orphans,


rule all:
    input:
        config["stacked"],
        "results/index.csv",
        "results/provenance.json",
        ["results/report.html"] if config["report"] else [],
        # Without these, a lost result would go unnoticed as long as there is a tensor.
        lambda wildcards: items.lost_results(config, ITEMS, planned_checksums(lost=True)),
        lambda wildcards: planned_checksums(),


rule model:
    input:
        items.model_files(config),
    output:
        MODEL,
    log:
        "logs/model.log",
    conda:
        "envs/environment.yaml"
    params:
        identity=items.model_identity(config),
        command=lambda wildcards, output: script("model.py", "--config", CONFIG, "--output", *output),
    shell:
        "{params.command} > {log:q} 2>&1"


rule extract:
    input:
        image=lambda wildcards: os.path.normpath(item(wildcards).image),
        model=MODEL,
    output:
        **({"picture": items.picture_path(config, "{id}")} if config["output_image_dir"] else {}),
        latent=items.latent_path(config, "{id}"),
    log:
        "logs/extract/{id}.log",
    group:
        "extract"
    conda:
        "envs/environment.yaml"
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=1,
        device=config["device"],
    params:
        # One text, since Snakemake compares params as a set, in which two settings could swap their values unnoticed.
        recipe=lambda wildcards: items.canonical(items.recipe(config, item(wildcards))),
        image_bytes=lambda wildcards: items.image_bytes(item(wildcards).image),
        command=extract_command,
    shell:
        "{params.command} > {log:q} 2>&1"


# The stack sees the latents through these, a hundred at a time: what Snakemake does before and after a job grows with
# the square of its inputs.
rule checksums:
    input:
        lambda wildcards: items.block(LATENTS, int(wildcards.block)),
    output:
        items.checksum_path("{block}"),
    log:
        "logs/checksums/{block}.log",
    conda:
        "envs/environment.yaml"
    shell:
        "sha256sum -- {input:q} > {output:q} 2> {log:q}"


rule stack:
    input:
        checksums=CHECKSUMS,
        model=MODEL,
    output:
        config["stacked"],
        "results/index.csv",
        "results/provenance.json",
    log:
        "logs/stack.log",
    conda:
        "envs/environment.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        table=TABLE,
        command=lambda wildcards, input, output: script(
            "stack.py", "--config", CONFIG, "--table", TABLE, "--model", input.model, "--output", *output
        ),
    shell:
        "{params.command} > {log:q} 2>&1"


rule figure:
    input:
        tensor=config["stacked"],
        index="results/index.csv",
    output:
        report(
            "results/report/{figure}.png",
            caption="scripts/templates/captions.rst",
            category=lambda wildcards: items.FIGURES[wildcards.figure][1],
            labels=lambda wildcards: {"figure": items.FIGURES[wildcards.figure][0]},
        ),
        "results/report/{figure}.json",
    log:
        "logs/figure/{figure}.log",
    conda:
        "envs/environment.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        color=lambda wildcards: config["report_color"] if wildcards.figure == "map" else None,
        command=lambda wildcards, input, output: script(
            "figures.py", "--config", CONFIG, "--figure", wildcards.figure, "--index", input.index, "--output", *output
        ),
    shell:
        "{params.command} > {log:q} 2>&1"


rule report:
    input:
        expand("results/report/{figure}.{kind}", figure=FIGURES, kind=["png", "json"]),
        provenance="results/provenance.json",
    output:
        "results/report.html",
    log:
        "logs/report.log",
    conda:
        "envs/environment.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        command=lambda wildcards, input, output: script(
            "report.py", "--figures", *FIGURES, "--provenance", input.provenance, "--output", *output
        ),
    shell:
        "{params.command} > {log:q} 2>&1"


rule check:
    log:
        "logs/check.txt",
    conda:
        "envs/environment.yaml"
    threads: 4
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        command=lambda wildcards, threads: script("check.py", "--config", CONFIG, "--threads", str(threads)),
    shell:
        "{params.command} > {log:q} 2>&1"


rule orphans:
    log:
        "logs/orphans.txt",
    run:
        items.tell_orphans(config, SHEET, log[0])


onstart:
    try:
        items.check_writable(config)
        items.lock_run()
    except items.InputError as error:
        raise WorkflowError(str(error)) from None
    slurm.forget_submitted()
    planned = list(workflow.dag.needrun_jobs())
    items.remove_files([items.FAILED, *(log for job in planned for log in job.log)])
    # On a cluster Snakemake leaves an old result where it is until its job writes a new one, and if it never does, takes
    # it for new.
    if not workflow.local_exec:
        items.remove_files(output for job in planned for output in job.output)


onsuccess:
    tell(told_by_check(), items.cut_prompts(SHEET))


onerror:
    slurm.cancel_submitted()
    tell(items.cut_prompts(SHEET), told_by_check() or items.unfinished(config, SHEET))
