"""The short way in, `gpi-latents`: each command but `init` is a call of Snakemake, which it prints and then becomes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from gpi_latents import paths
from gpi_latents.errors import InputError, exit_code

SNAKEFILE = paths.SCRIPTS.parent / "Snakefile"

# Each is a target of the Snakefile of the same name; `run` is all of it.
COMMANDS = {
    "run": "make the latents, the table and the report; what is there and still right is kept",
    "check": "open every picture, without a model, and list those that cannot be read",
    "plan": "time three items, and say what the whole study will take in time, memory and disk",
    "orphans": "list the files in the result folders that belong to no row of the sheet",
    "model": "find the model, or download it (where there is internet), and do nothing else",
}
OPTIONS = """All that follows STUDY goes to Snakemake as it is, such as -n (say what would run, and run nothing),
--cores 4 (use 4 CPU cores, not all), --config seed=7 (set a key of the config) or
--workflow-profile slurm (submit to a cluster)."""
# Whoever gives one of these has said how many cores there are, or another machine has them.
CHOOSE_CORES = ("--cores", "-c", "--jobs", "-j", "--profile", "--workflow-profile", "--executor", "-e")


def main() -> None:
    """Run a command line, `sys.argv`."""
    given, more = _parser().parse_known_args()
    if given.command == "init":
        if more:
            _parser().error(f"unknown options: {shlex.join(more)} (gpi-latents init -h lists those that there are)")
        raise SystemExit(exit_code(lambda: _init(given)))
    try:
        command = snakemake_command(given.command, given.study, [*more, *given.options])
    except InputError as error:
        raise SystemExit(str(error)) from None
    print(shlex.join(command), file=sys.stderr, flush=True)
    os.environ["GPI_COMMAND"] = shlex.join([program(), *sys.argv[1:]])  # what the last words of a run repeat
    os.execv(command[0], command)


def program() -> str:
    """The name of this program, as its user writes it."""
    return "gpi-latents" if shutil.which("gpi-latents") == sys.argv[0] else sys.argv[0]


def snakemake_command(command: str, study: str, options: list[str]) -> list[str]:
    """The call of Snakemake for one of the `COMMANDS`.

    Args:
        command: its name.
        study: the folder of the study, seen from the working directory.
        options: for Snakemake.

    Raises:
        InputError: there is no study, or no workflow, or no Snakemake.
    """
    _check_installed()
    if not os.path.isdir(study):
        raise InputError(
            f"There is no folder {study!r} (looked from {os.getcwd()}). The folder of the study comes first, then "
            f"options. To make one from a folder of pictures: {program()} init {shlex.quote(study)} --pictures FOLDER"
        )
    is_study = any(Path(study, "config", name).is_file() for name in ("items.csv", "config.yaml"))
    if not is_study and not any(option.startswith(("--config", "-C")) for option in options):
        raise InputError(
            f"{study} has no sheet, config/items.csv. To make one from a folder of pictures: "
            f"{program()} init {shlex.quote(study)} --pictures FOLDER"
        )
    target = [] if command == "run" else [command]
    are_chosen = "SNAKEMAKE_PROFILE" in os.environ or any(option.startswith(CHOOSE_CORES) for option in options)
    cores = [] if are_chosen else ["--cores", "all"]
    # The target stands first: after an option that takes many values it would be one of them.
    return [
        *(sys.executable, "-m", "snakemake", *target, *cores),
        *("--snakefile", str(SNAKEFILE), "--directory", study, *options),
    ]


def _check_installed() -> None:
    clone = "Clone its repository and run there: make install"
    if not SNAKEFILE.is_file():
        raise InputError(f"This is the package alone, without the workflow ({SNAKEFILE} does not exist). {clone}")
    if importlib.util.find_spec("snakemake") is None:
        raise InputError(f"{sys.executable} has no Snakemake. {clone}")


def _init(given: argparse.Namespace) -> str:
    from gpi_latents.init import init  # with pandas and Pillow, which the other commands do without

    made = init(given.study, given.pictures, given.table, given.by, given.prompt, given.model)
    study = shlex.quote(given.study)
    return f"{made}\nNext:\n  {program()} check {study}\n  {program()} run {study}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpi-latents",
        allow_abbrev=False,
        description="From a sheet of pictures and prompts to the latents of a diffusion model, for GPI. A study is a "
        "folder with a sheet, config/items.csv.",
        epilog="To begin: gpi-latents init STUDY --pictures FOLDER, then gpi-latents run STUDY.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning, epilog=OPTIONS, allow_abbrev=False)
        command.add_argument("study", metavar="STUDY", help="folder of the study")
        command.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options for Snakemake")
    meaning = "make the sheet and the config of a new study from a folder of pictures"
    init = commands.add_parser("init", help=meaning, description=meaning, allow_abbrev=False)
    init.add_argument("study", metavar="STUDY", help="folder of the study; it is made if there is none")
    init.add_argument("--pictures", metavar="FOLDER", required=True, help="all pictures in it and in its sub-folders")
    init.add_argument("--table", metavar="FILE.csv", help="your table (treatment, outcome, ...), one row per picture")
    init.add_argument("--by", metavar="COLUMN", help="its column with the names of the pictures (default: found)")
    init.add_argument("--prompt", metavar="TEXT", help="for all pictures (default: no change; no effect at strength 0)")
    init.add_argument(
        "--model", metavar="ID", help="the diffusion model (default: Stable Diffusion 1.5); demo: a small one"
    )
    return parser
