"""Whole files or none, and clear words for what cannot be used as input."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import unicodedata
from pathlib import Path
from typing import BinaryIO

import pytest
from gpi_latents.files import (
    CLOCK_TOLERANCE,
    existing_files,
    file_problems,
    future_files,
    missing_files,
    read_text,
    remove_files,
    write_whole,
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    for content in (b"one", b"another"):
        write_whole("a.json", content)
        assert Path("a.json").read_bytes() == content
    assert os.listdir() == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_whole("a.json", b"old")

    def full(*_: Path | str) -> BinaryIO:
        return open("/dev/full", "wb", buffering=0)

    Path(".a.json.0.tmp").touch()
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"^a\.json cannot be written: No space left on device$"):
        write_whole("a.json", b"new")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert Path("a.json").read_bytes() == b"old"
    assert os.listdir() == ["a.json"]


def test_what_a_killed_process_leaves_is_overwritten_by_the_next_and_jobs_of_slurm_do_not_share_it(monkeypatch):
    used: list[str] = []
    replace = Path.replace

    def noting(path: Path, target: str) -> Path:
        used.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noting)
    for job in (None, None, "7", "8"):
        if job:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        write_whole("a.pt", b"x")
    assert used[0] == used[1]
    assert len(set(used)) == 3


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link"])
def test_what_somebody_put_in_a_temporary_files_place_is_not_written_into(kind):
    """In a folder that a group shares, links to files that only the user may write."""
    Path("private").write_bytes(b"mine")
    planted = Path(".a.pt.0.tmp")
    if kind == "hard link":
        planted.hardlink_to("private")
    else:
        planted.symlink_to("private" if kind == "link" else "new")
    write_whole("a.pt", b"x")
    assert not Path("a.pt").is_symlink()
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == {"private": b"mine", "a.pt": b"x"}


def test_what_cannot_be_removed_from_a_temporary_files_place_is_named():
    Path(".a.pt.0.tmp").mkdir()
    with pytest.raises(OSError, match=r"^a\.pt cannot be written: .* \(\.a\.pt\.0\.tmp is in the way\)$"):
        write_whole("a.pt", b"x")


@pytest.mark.fault("disk")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_and_a_read_only_one_are_clear_errors():
    os.mkdir("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "disk"], check=True)
    try:
        with pytest.raises(OSError, match=r"^disk/a cannot be written: No space left on device$"):
            write_whole("disk/a", bytes(10**5))
        assert os.listdir("disk") == []
        subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)
        with pytest.raises(OSError, match=r"^disk/a cannot be written: Read-only file system$"):
            write_whole("disk/a", b"x")
    finally:
        subprocess.run(["umount", "-l", "disk"], check=True)


def test_reading_and_removing_do_without_the_file():
    Path("log").write_bytes(b" two\nlines \xff\n")
    assert read_text("log") == "two\nlines \N{REPLACEMENT CHARACTER}"
    remove_files(["log", "missing"])
    assert read_text("log") == ""
    assert not Path("log").exists()


@pytest.mark.fault("stranger")
@pytest.mark.timeout(60)
def test_a_log_is_not_read_through_a_link_nor_waited_for():
    """Its text could be another's secret, which the end of a run would write into logs/failed.csv."""
    Path("private").write_text("secret")
    Path("log").symlink_to("private")
    os.mkfifo("pipe")
    assert read_text("log") == read_text("pipe") == ""


def make_strange_files() -> None:
    Path("file").touch()
    Path("folder").mkdir()
    Path("folder/inner").touch()
    Path("link").symlink_to("folder/inner")
    Path("broken").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")


def test_files_are_told_from_all_else():
    make_strange_files()
    files = ["file", "folder/inner", "link", "./file"]
    others = ["folder", "broken", "loop", "pipe", "socket", "missing", "folder/missing", "nowhere/missing"]
    assert list(existing_files([*others, *files])) == files
    assert missing_files([*others, *files]) == set(others)


def test_each_path_that_is_no_file_gets_its_reason():
    make_strange_files()
    here = f"(looked from {os.getcwd()})"
    expected = {
        "folder": f"no such file: 'folder' is a folder {here}",
        "broken": "'broken' is a link to 'nowhere', which does not exist",
        "loop": f"'loop' cannot be accessed: Too many levels of symbolic links {here}",
        "pipe": "'pipe' is not a regular file (but a pipe, a socket or a device)",
        "socket": "'socket' is not a regular file (but a pipe, a socket or a device)",
        "/dev/null": "'/dev/null' is not a regular file (but a pipe, a socket or a device)",
        "missing": f"no such file: 'missing' {here}",
        "nowhere/missing": f"no such file: 'nowhere/missing' {here}",
    }
    assert file_problems(["file", "link", "folder/inner", *expected]) == expected


@pytest.mark.fault("picture")
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("path", ["é.png", "Fotos für Ü/a.png", ".//Fotos für Ü/ö é.png"])
def test_a_name_in_another_unicode_form_is_told_and_the_command_puts_it_right(path, form):
    on_disk = unicodedata.normalize(form, path)
    asked = unicodedata.normalize("NFD" if form == "NFC" else "NFC", path)
    Path(on_disk).parent.mkdir(exist_ok=True)
    Path(on_disk).touch()
    for _ in range(asked.count("/") or 1):  # one command for each name
        problem = file_problems([asked])
        if not problem:
            break
        message, command = problem[asked].split(" Rename it by this command: ")
        assert message.startswith(f"no such file: {asked!r} (looked from ")
        assert "There is a file of the same name in another Unicode form" in message
        subprocess.run(command, shell=True, check=True)
    assert file_problems([asked]) == {}


def test_the_command_in_the_readme_gives_a_folders_files_the_form_of_the_sheet():
    readme = (Path(__file__).parent.parent / "config/README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python3 -c .*NFC.*$", readme, re.MULTILINE)
    for name in ("é.png", "a.png"):
        Path(unicodedata.normalize("NFD", name)).touch()
    subprocess.run(command, shell=True, check=True)
    assert sorted(os.listdir()) == ["a.png", unicodedata.normalize("NFC", "é.png")]


@pytest.mark.fault("picture")
def test_a_path_that_is_written_for_elsewhere_gets_a_hint():
    Path("photos").mkdir()
    Path("far/inner").mkdir(parents=True)
    for name in ("photos/a.png", "photos/B.png", "b c.png", "c d.png", "far/inner/x.png", "Shot\u202fAM.png"):
        Path(name).touch()
    Path("link").symlink_to("far/inner")
    hints = {
        "photos\\a.png": "It is a path of Windows: write it as on this machine, with / between the folders",
        "C:\\photos\\x.png": "It is a path of Windows",
        "C:/photos/x.png": "It is a path of Windows",
        "\\\\server\\x.png": "It is a path of Windows",
        "~/a.png": "Write the path in full: ~ and variables are not replaced",
        "$HOME/a.png": "Write the path in full",
        "%USERPROFILE%/a.png": "Write the path in full",
        "file:///photos/a.png": "Write the path alone, without file://",
        "https://x.org/a.png": "It is an address: copy the picture to this machine",
        "s3://x/a.png": "It is an address: copy the picture to this machine",
        " photos/a.png ": "There is 'photos/a.png': remove the blanks around it",
        "photos/A.PNG": "There is 'photos/a.png': upper and lower case differ",
        "photos/b.png": "There is 'photos/B.png': upper and lower case differ",
        "Shot AM.png": "There is 'Shot\\u202fAM.png': upper and lower case differ, or characters that look alike",
        "link/../photos/a.png": "There is 'photos/a.png', but after a link, .. is the folder above the one",
    }
    problems = file_problems([*hints, "photos/none.png", "link/../inner/x.png"])
    assert list(problems) == [*hints, "photos/none.png"]
    for path, hint in hints.items():
        start = f"no such file: {path!r} (looked from {os.getcwd()}). "
        assert problems[path].startswith(start + hint)
    assert problems["photos/none.png"] == f"no such file: 'photos/none.png' (looked from {os.getcwd()})"


def test_dates_in_the_future_are_found_beyond_what_two_clocks_may_differ():
    Path("folder/inner").mkdir(parents=True)
    now = time.time()
    for name, ahead in {"old": -9e8, "tolerated": CLOCK_TOLERANCE / 2, "ahead": 3600, "inner/below": 3600}.items():
        Path("folder", name).touch()
        os.utime(f"folder/{name}", (now + ahead, now + ahead))
    assert future_files(["folder", "missing", "folder/old", "folder/ahead"]) == ["folder/ahead"]
    assert future_files(["folder/inner", "folder"]) == ["folder/ahead", "folder/inner/below"]
    (problem,) = file_problems(f"folder/{name}" for name in ("old", "tolerated", "ahead")).values()
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + 3600))
    assert problem.startswith(f"'folder/ahead' is dated in the future ({date}), so nothing could be newer: give it")
    subprocess.run(["touch", "folder/ahead"], check=True)
    assert file_problems(["folder/ahead"]) == {}
