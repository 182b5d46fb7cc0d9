"""Around a run: what has to be so before it begins, its lock and hooks, lost results."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.files import dangling_link, empty_files, future_files, missing_files, remove_files


def check_dates(config: Mapping[str, Any]) -> None:
    """Refuse results that are dated in the future: an input that is edited now would not be newer than they are.

    Raises:
        InputError: with a command that repairs the dates.
    """
    places = [*paths.FOLDERS, config["output_hidden_dir"], config["output_image_dir"], config["stacked"]]
    places = [place for place in dict.fromkeys(places) if place and os.path.exists(place)]
    if not (found := future_files(places)):
        return
    # All get one time, so that none becomes newer than what was made from it.
    searched = [f"./{place}" for place in places if not place.startswith("results/")]
    raise InputError(
        f"{len(found)} of the results are dated in the future, such as {found[0]}: this machine's clock was set back. "
        f"Give them today's date by this command (in {os.getcwd()}):\n"
        f"  touch .now && find -L {shlex.join(searched)} -newer .now -exec touch -r .now {{}} + && rm .now"
    )


def check_writable(config: Mapping[str, Any]) -> None:
    """Check that results and logs can be written, since Snakemake ends with a traceback if they cannot.

    Raises:
        InputError: a folder that cannot be written, and why; or a link to a folder that a stranger has made.
    """
    for folder in _folders(config):
        for path in (folder, *folder.parents):
            if path.is_symlink() and path.lstat().st_uid not in (os.getuid(), 0, os.stat(".").st_uid):
                raise InputError(
                    f"{path} is a link to {os.readlink(path)!r}, made by neither you nor the owner of {os.getcwd()}. "
                    "If your results shall go there, remove the link and make it yourself"
                )
    if problem := unwritable(config):
        raise InputError(problem)


def unwritable(config: Mapping[str, Any]) -> str:
    """Why results or logs cannot be written, as a text for the user; empty if they can."""
    for folder in _folders(config):
        if link := dangling_link(folder):
            return f"Results cannot be written to {folder}: {link}. Make that folder, or remove the link"
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing) as file:
                file.write(bytes(4096))  # on a full disk, an empty file has room
        except OSError as error:
            return f"Results cannot be written to {existing.absolute()}: {error.strerror}"
    return ""


def _folders(config: Mapping[str, Any]) -> list[Path]:
    chosen = [config["output_hidden_dir"], config["output_image_dir"], os.path.dirname(config["stacked"])]
    return [Path(folder) for folder in (*chosen, *paths.FOLDERS, "logs", "logs/extract") if folder]


def check_module(workflow: Any) -> None:
    """Refuse what cannot be when another workflow uses this one as a module.

    Args:
        workflow: Snakemake's, while it parses.

    Raises:
        InputError: the module's paths are changed, or it is there twice.
    """
    module = workflow.modifier
    if module.is_main_snakefile():
        return
    advice = f"run it there by itself: snakemake --snakefile {paths.SCRIPTS.parent}/Snakefile --directory FOLDER"
    if module.path_modifier.replace_prefix(paths.MODEL) != paths.MODEL:
        raise InputError(
            f"The module {module.namespace} has a prefix or replace_prefix, but its commands name their files, such as "
            f"{paths.MODEL}, from the working directory. To have them in another folder, {advice}"
        )
    first = vars(workflow).setdefault("gpi_latents", module.namespace)
    if first != module.namespace:
        raise InputError(
            f"The modules {first} and {module.namespace} are the same workflow, and both would write {paths.MODEL} and "
            f"other files of the same names. Give each study a folder, and {advice}"
        )


def check_profile(workflow: Any) -> None:
    """Refuse to run without the settings of `profiles/`, where Snakemake cannot read them.

    It takes a profile's path for a pattern, says that it uses the profile, and goes on without it.

    Args:
        workflow: Snakemake's, while it parses.

    Raises:
        InputError: the folder of this workflow has `[`, `*` or `?` in its path, and no profile is in force.
    """
    folder = str(paths.SCRIPTS.parent)
    if folder == glob.escape(folder) or not (workflow.is_main_process and workflow.modifier.is_main_snakefile()):
        return
    if "in_flight" not in workflow.resource_settings.resources:  # all of ours set it
        raise InputError(
            f"Snakemake reads no profile in {folder!r}, since [, * and ? in a path are a pattern to it, and without "
            "profiles/default a run is slow and does again what need not be. Rename that folder, or go into it and run "
            "there with --directory STUDY"
        )


def check_in_flight(workflow: Any) -> list[str]:
    """What to tell a user who still gives the items in flight as `gpu`, their name before `in_flight`.

    Args:
        workflow: Snakemake's, while it parses.

    Returns:
        Notes for a run on this machine, where `gpu` limits the items in flight too.

    Raises:
        InputError: a profile or command for a cluster says so, where Snakemake would share `gpu` out among all jobs.
    """
    resources, scopes = workflow.global_resources, workflow.resource_settings.overwrite_resource_scopes
    old = "gpu" in resources and "in_flight" not in resources
    if not (old or "gpu" in scopes) or not (workflow.is_main_process and workflow.modifier.is_main_snakefile()):
        return []
    count = resources["gpu"].value if "gpu" in resources else 8
    if not scopes:
        return [f"The number of items in flight is called in_flight now: --resources in_flight={count}"]
    raise InputError(
        "The profile or the command line gives the number of items in flight as gpu; it is called in_flight now. In a "
        f"profile, write\n  resources:\n    - in_flight={count}\n  set-resource-scopes:\n    - in_flight=local\n"
        f"and on the command line  --resources in_flight={count} --set-resource-scopes in_flight=local"
    )


def join_hooks(workflow: Any, **own: Callable[[str], None]) -> None:
    """As a module, run our hooks before those of the workflow that uses us; Snakemake would leave ours out.

    Args:
        workflow: Snakemake's, while it parses.
        own: our functions `onstart`, `onsuccess` and `onerror`, which get the path of Snakemake's log.
    """
    if workflow.modifier.is_main_snakefile() or "gpi_latents_hooks" in vars(workflow):
        return
    workflow.gpi_latents_hooks = own

    def joined(name: str, other: Callable[[str], None]) -> Callable[[str], None]:
        def hook(log: str) -> None:
            own[name](log)
            other(log)

        return hook

    for name in own:
        register = getattr(workflow, name)
        # What was registered before us, and what will be.
        setattr(workflow, f"_{name}", joined(name, getattr(workflow, f"_{name}")))
        setattr(workflow, name, lambda func, name=name, register=register: register(joined(name, func)))


def is_own(job: Any) -> bool:
    """Whether a job of Snakemake's is of a rule of this workflow, not of one that uses it as a module."""
    return Path(str(job.rule.basedir)).is_relative_to(paths.SCRIPTS.parent)


def lock_run() -> None:
    """Hold this working directory for as long as this process lives, if the disk supports locks.

    Snakemake checks its own lock and then writes it, so that two runs that start at once could both pass.

    Raises:
        InputError: another run holds it.
    """
    # Not by the library filelock: on a disk without locks, as Lustre may be, it makes a file that a kill leaves behind.
    # The descriptor is never closed, which would end the lock.
    descriptor = os.open(".snakemake/gpi-latents.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"Another run is at work in {os.getcwd()}: wait for it to end, or use another --directory"
        ) from None
    except OSError:
        pass  # the disk has no locks; Snakemake's own must do


def lift_rate_limit(workflow: Any) -> None:
    """Let jobs on this machine start at any rate, where nobody has chosen one.

    Under Snakemake's default limit, 100 jobs a second, each look for jobs to start has another follow a second later:
    after 1,000 items there would be 1,000 looks a second.

    Args:
        workflow: Snakemake's, when a run begins.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if workflow.local_exec and limit is not None and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def set_report_aside() -> None:
    """Give the report of the run before another name: the results that it describes are about to be replaced."""
    if os.path.exists(paths.REPORT):
        os.replace(paths.REPORT, paths.EARLIER_REPORT)
    remove_files([paths.REPORT_JSON])


def remove_outdated_check(sheet: pd.DataFrame) -> None:
    """Remove the list of `check` if one of its rows is gone from the sheet, or its picture changed since then.

    Args:
        sheet: as `sheet.read_items` returns it.
    """
    try:
        listed = pd.read_csv(paths.CHECK, dtype=str, keep_default_na=False)
        rows = {*listed[["sheet_row", "id", "image"]].itertuples(index=False, name=None)}
        made = os.stat(paths.CHECK).st_mtime
    except (OSError, ValueError, KeyError):  # none, or none of ours
        return
    known = zip(map(str, sheet.index), sheet["id"], sheet["image"], strict=True)
    # The time of change is also that of a picture that was copied with its older date.
    changed = (image for _, _, image in rows if os.path.exists(image) and os.stat(image).st_ctime > made)
    if not rows.issubset(known) or any(changed):
        remove_files([paths.CHECK])


def lost_results(config: Mapping[str, Any], ids: Iterable[str], checksums: Iterable[str]) -> list[str]:
    """Files that are missing although what was made from them exists, which Snakemake does not ask for by itself.

    Args:
        config: as `settings.load_config` returns it.
        ids: of all items, in sheet order.
        checksums: the checksum files whose latents are looked at.

    Returns:
        Latents that a checksum was made of, and pictures whose latent exists.
    """
    chosen = set(checksums)
    made = chosen - missing_files(chosen)
    blocks = {item_id: paths.checksum_path(number // paths.BLOCK) for number, item_id in enumerate(ids)}
    latents = {item_id: paths.latent_path(config, item_id) for item_id, path in blocks.items() if path in chosen}
    missing = missing_files(latents.values())
    lost = [path for item_id, path in latents.items() if path in missing and blocks[item_id] in made]
    if config["output_image_dir"]:
        pictures = {str(paths.picture_path(config, item_id)): path for item_id, path in latents.items()}
        lost += sorted(path for path in missing_files(pictures) if pictures[path] not in missing)
    return lost


def remove_failed(config: Mapping[str, Any], ids: Iterable[str]) -> None:
    """Remove the empty files of items that failed: the next run finds them missing, and tries these items again."""
    latents = {paths.latent_path(config, item_id): item_id for item_id in ids}
    for latent in empty_files(latents):
        picture = paths.picture_path(config, latents[latent])
        with contextlib.suppress(OSError):  # of a disk that has turned read-only; the next run finds them empty
            remove_files([latent, picture] if picture else [latent])
