"""Write whole files, and say why a file cannot be read."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import stat
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpi_latents.paths import plain

CLOCK_TOLERANCE = 10.0  # seconds that the clocks of a file server and of this machine may differ


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that all of it is there or nothing.

    Raises:
        OSError: naming the file.
    """
    # The temporary name depends on the file and the Slurm job alone: what a killed process leaves is removed the next
    # time, and two jobs that make the same file do not write into one. The file is made anew, since in a folder that a
    # group shares somebody could have put a link to another's file in its place.
    temporary = Path(path).with_name(f".{Path(path).name}.{os.environ.get('SLURM_JOB_ID', '0')}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        in_the_way = f" ({temporary} is in the way)" if os.path.lexists(temporary) else ""
        raise OSError(f"{path} cannot be written: {error.strerror}{in_the_way}") from error


def csv_text(rows: Iterable[Iterable[str]], separator: str = ",") -> str:
    """Rows of texts as CSV that is read back as they are.

    Python's csv module leaves a carriage return without quotes if it does not end lines, which readers take for one.
    """
    lines = io.StringIO(newline="")
    plain = csv.writer(lines, delimiter=separator, lineterminator="\n")
    quoted = csv.writer(lines, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = list(row)
        (quoted if any("\r" in str(cell) for cell in cells) else plain).writerow(cells)
    return lines.getvalue()


def read_text(path: str | Path) -> str:
    """The text of a log; empty if there is no such file, or a link or a pipe that others put into a shared folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def read_json(path: str | Path) -> dict[str, Any]:
    """What a JSON file of ours holds; nothing if there is none, or if it is damaged."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def dangling_link(path: str | Path) -> str:
    """The link on the way to a file or folder that leads to nothing, in words; empty if there is none."""
    for place in (*reversed(Path(path).parents), Path(path)):
        if place.is_symlink() and not place.exists():
            return f"{place} is a link to {os.readlink(place)!r}, which does not exist"
    return ""


def remove_files(paths: Iterable[str]) -> None:
    """Remove those of the files that exist."""
    for path in paths:
        Path(path).unlink(missing_ok=True)


def existing_files(paths: Iterable[str]) -> dict[str, os.DirEntry]:
    """Those of the paths that are files; by one scan per folder, since there may be very many."""
    folders: dict[str, dict[str, os.DirEntry]] = {}
    found = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = {}
            with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
                folders[folder] = {entry.name: entry for entry in entries}
        entry = folders[folder].get(name)
        with contextlib.suppress(OSError):  # such as a link to itself
            if entry is not None and entry.is_file():
                found[path] = entry
    return found


def missing_files(paths: Iterable[str]) -> set[str]:
    """Those of the paths that are no files."""
    paths = list(paths)
    return set(paths).difference(existing_files(paths))


def empty_files(paths: Iterable[str]) -> set[str]:
    """Those of the paths that are files without content, as `on_error: skip` leaves them for items that failed."""
    return {path for path, entry in existing_files(paths).items() if entry.stat().st_size == 0}


def file_problems(paths: Iterable[str]) -> dict[str, str]:
    """Why files cannot be used as input, in words for the user, by their paths."""
    paths = list(paths)
    files = existing_files(paths)
    problems = {}
    listings: dict[str, dict[str, list[str]]] = {}
    latest = time.time() + CLOCK_TOLERANCE
    for path in paths:
        try:  # a folder can be open to entering but not to listing, or the other way round
            found = files[path].stat() if path in files else os.stat(path)
        except OSError:
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            problems[path] = _no_file(path, listings)
        elif found.st_mtime > latest:
            problems[path] = (
                f"{path!r} is dated in the future ({_date(found.st_mtime)}), so nothing could be newer: give it "
                "today's date with the command touch, or set this machine's clock right"
            )
    return problems


def future_files(places: Iterable[str]) -> list[str]:
    """Those of the places, and of the files in those that are folders, that are dated in the future."""
    latest = time.time() + CLOCK_TOLERANCE
    found = []
    for place in places:
        if os.path.isfile(place):
            found += [place] if os.stat(place).st_mtime > latest else []
        else:
            with contextlib.suppress(OSError), os.scandir(place) as entries:
                found += [entry.path for entry in entries if entry.is_file() and entry.stat().st_mtime > latest]
    return sorted(set(found))


def state(path: str) -> tuple[int, int] | None:
    """Size and time of a file, None if it cannot be read. (Inode numbers may change by themselves on network disks.)"""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _no_file(path: str, listings: dict[str, dict[str, list[str]]]) -> str:
    seen_from = f"(looked from {os.getcwd()})"
    try:
        kind = os.lstat(path).st_mode
        if stat.S_ISLNK(kind):
            kind = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            return f"{path!r} is a link to {os.readlink(path)!r}, which does not exist"
        return f"no such file: {path!r} {seen_from}{_hint(path, listings)}"
    except OSError as error:
        return f"{path!r} cannot be accessed: {error.strerror} {seen_from}"
    if stat.S_ISDIR(kind):
        return f"no such file: {path!r} is a folder {seen_from}"
    return f"{path!r} is not a regular file (but a pipe, a socket or a device)"


def _hint(path: str, listings: dict[str, dict[str, list[str]]]) -> str:
    """What a path that leads to nothing may mean, as the end of a message; empty if there is no guess."""
    slashed, normal = path.replace("\\", "/"), os.path.normpath(path)
    if path.lower().startswith("file://"):
        return ". Write the path alone, without file://"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        return ". It is an address: copy the picture to this machine, and write the path of the copy"
    if re.match(r"[A-Za-z]:[/\\]|\\\\", path) or (slashed != path and os.path.exists(slashed)):
        return ". It is a path of Windows: write it as on this machine, with / between the folders"
    if re.match(r"~|\$\w|%\w+%", path):
        return ". Write the path in full: ~ and variables are not replaced"
    if path.strip() != path and os.path.exists(path.strip()):
        return f". There is {path.strip()!r}: remove the blanks around it"
    if ".." in path and os.path.exists(normal):
        return f". There is {normal!r}, but after a link, .. is the folder above the one that it leads to"
    if not path or not (found := _alike(path := plain(path), listings)):
        return ""
    if unicodedata.normalize("NFC", found) != unicodedata.normalize("NFC", path):
        return f". There is {found!r}: upper and lower case differ, or characters that look alike"
    # It may be a folder's name that has another form.
    parts = zip(re.finditer(r"[^/]+", found), re.finditer(r"[^/]+", path), strict=True)
    names = [(found[: old.end()], path[: new.end()]) for old, new in parts]
    old, new = map(shlex.quote, next((pair for pair in names if not os.path.lexists(pair[1])), names[-1]))
    return (
        ". There is a file of the same name in another Unicode form, which stores letters with accents otherwise, as "
        f"macOS does. Rename it by this command: mv {old} {new}"
    )


def _alike(path: str, listings: dict[str, dict[str, list[str]]]) -> str:
    """A path that exists and looks like another, which differs in Unicode form or in case; empty if there is none.

    Args:
        path: that does not exist.
        listings: the names in each folder that was looked at, by what they look like; it is filled.
    """
    found = ["/" if path.startswith("/") else ""]
    for part in re.findall(r"[^/]+", path):
        longer = []
        for folder in found:
            if folder not in listings:
                listings[folder] = {}
                with contextlib.suppress(OSError):
                    for name in sorted(os.listdir(folder or ".")):
                        listings[folder].setdefault(_look(name), []).append(name)
            names = [part] if part in (".", "..") else listings[folder].get(_look(part), [])
            longer += [os.path.join(folder, name) for name in sorted(names, key=lambda name: name != part)]
        found = longer
    same = [each for each in found if unicodedata.normalize("NFC", each) == unicodedata.normalize("NFC", path)]
    return next(iter(same or found), "")


def _look(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
