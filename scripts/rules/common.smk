"""What all rules share: the study, how commands are started, and the hooks of a run."""

import os
import shlex
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

if not isinstance(workflow.current_basedir, os.PathLike):  # such as an address, where a module names one
    raise WorkflowError(
        "From an address come the rules without their commands: clone its repository and name that Snakefile"
    )

# Before a job, Snakemake removes its logs and results; what others put there since then, in a shared folder, `>` does not
# open. Not as a module, since the rules of the other workflow would have this too.
if workflow.modifier.is_main_snakefile():
    shell.prefix("set -eu -o noclobber; ")

# The package beside this file, whatever is installed; its name alone is added, since a study may have a model.py too.
sys.path.insert(0, str(Path(workflow.current_basedir).parent))
from gpi_latents import paths, run
from gpi_latents.closing import Closing
from gpi_latents.errors import InputError
from gpi_latents.files import remove_files
from gpi_latents.plan import remove_other_plans
from gpi_latents.study.study import Study, with_parameters

del sys.path[0]

# A study has its own config/config.yaml, or names another by --configfile. Defaults are in gpi_latents/study/settings.py.
if not workflow.overwrite_configfiles and os.path.isfile("config/config.yaml"):

    configfile: "config/config.yaml"


try:
    run.check_module(workflow)
    run.check_profile(workflow)
    in_flight_notes = run.check_in_flight(workflow)
    STUDY = Study(config, workflow.config_settings.config, is_main=workflow.is_main_process)
except InputError as error:
    raise WorkflowError(str(error)) from None
except UnicodeEncodeError as error:  # of a path
    raise WorkflowError(
        f"{error.object!r} cannot be named in this terminal's language settings ({sys.getfilesystemencoding()}): run again "
        "with PYTHONUTF8=1 before the command"
    ) from None

for note in [*in_flight_notes, *STUDY.sheet.attrs["notes"]] if workflow.is_main_process else []:
    logger.info(note)

CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
PYTHON = "python" if CONDA else sys.executable
EXTRACT = STUDY.extract_command(PYTHON, workflow.resource_settings.cores)
STACK = workflow.modifier.modify_rulename("stack")  # as a module, it may have another name
CLOSING = Closing(STUDY, workflow)
MODEL = paths.MODEL  # by its name, since with rules.model.output planning grows with the square of the items


def command(script):
    """How a rule's command begins, as a function of its input, which Snakemake does not compare between runs."""
    return lambda wildcards, input: shlex.join([PYTHON, f"{paths.SCRIPTS}/{script}", "--plan", STUDY.plan])


def planned_checksums(lost=False):
    """All, or with --batch stack=i/n those of the batch; the last batch asks for all that is lost."""
    batch = workflow.dag_settings.batch
    if batch is None or batch.rulename != STACK or (lost and batch.is_final):
        return STUDY.checksums
    return [path for path in batch.get_batch([*STUDY.checksums, MODEL]) if path != MODEL]


@with_parameters
def extract_command(wildcards, input):
    """How the command of an item begins: a function of its input, as those of `command`."""
    return f"{EXTRACT} --item {STUDY.place(wildcards)}"


@with_parameters
def extract_threads(wildcards):
    """A job takes no core while it waits for the resident, which computes on --cores, as long as `in_flight` limits these.

    It does not without a profile, and where --resources has something else in its place.
    """
    limited = "in_flight" in workflow.global_resources
    return 0 if limited and STUDY.config["resident"] and workflow.local_exec else 1


def model_files(wildcards):
    """A local model's files. Every plan that makes results asks for them, so what is stale is forced here."""
    workflow.dag.forcefiles.update(STUDY.stale)
    return STUDY.model_files


def is_stacked_by(jobs):
    return any(paths.INDEX in job.output for job in jobs)


wildcard_constraints:
    id=r"[A-Za-z0-9_-][A-Za-z0-9._-]*",
    block=r"\d+",


workflow.localrules(*map(workflow.modifier.modify_rulename, ("all", "model", "checksums", "orphans")))


def begin(log=None):
    try:
        run.check_writable(STUDY.config)
        run.lock_run()
    except InputError as error:
        raise WorkflowError(str(error)) from None
    remove_other_plans(STUDY.plan)
    run.remove_outdated_check(STUDY.sheet)
    run.lift_rate_limit(workflow)
    CLOSING.begin()
    # With --touch nothing is made, and the logs go on telling when each item was. A workflow that uses this one as a
    # module has jobs of its own.
    planned = [] if workflow.touch else [job for job in workflow.dag.needrun_jobs() if run.is_own(job)]
    if is_stacked_by(planned):
        run.set_report_aside()
    remove_files([paths.FAILED, *(log for job in planned for log in job.log)])
    # On a cluster Snakemake leaves an old result where it is until its job writes a new one, and if it never does, takes
    # it for new.
    if not workflow.local_exec:
        remove_files(output for job in planned for output in job.output)


def succeed(log=None):
    if workflow.dag_settings.batch is None or is_stacked_by(workflow.dag.jobs):  # the last batch does it for all
        run.remove_failed(STUDY.config, STUDY.items)
    remove_files([paths.EARLIER_REPORT] if os.path.exists(paths.REPORT) else [])
    logger.info(CLOSING.success(), extra={"closing": True})


def fail(log=None):
    run.remove_failed(STUDY.config, STUDY.items)
    logger.error(CLOSING.failure(), extra={"closing": True})


onstart:
    begin()


onsuccess:
    succeed()


onerror:
    fail()


run.join_hooks(workflow, onstart=begin, onsuccess=succeed, onerror=fail)

# Our logger plugin says with these words what a dry run found, and leaves it to our last words why a job of ours failed.
for handler in workflow.logger_manager.plugin_handlers:
    if hasattr(handler, "words"):
        handler.words = CLOSING if workflow.modifier.is_main_snakefile() else None
        handler.progress.steps = {name: step for step, name in CLOSING.rules.items()}
