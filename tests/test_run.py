"""Around a run: dates, disks and locks before it, and lost results."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from gpi_latents import closing, paths, run
from gpi_latents.errors import InputError

CONFIG = {
    "output_hidden_dir": "results/hidden",
    "output_image_dir": "results/images",
    "prefix_hidden": "hidden",
    "save_name": "gen",
    "stacked": "results/latents.pt",
}


@pytest.fixture(autouse=True)
def in_study(tmp_path, monkeypatch):
    (tmp_path / "my study").mkdir()
    monkeypatch.chdir(tmp_path / "my study")


def make(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(file)


# --- Dates ---


@pytest.mark.fault("clock")
def test_the_command_that_repairs_dates_works_in_folders_of_any_name():
    """Also in folders with blanks and quotes, behind a link, and with nothing else touched."""
    config = CONFIG | {
        "output_hidden_dir": "my hidden's/a b",
        "output_image_dir": "-images",
        "stacked": "all ours.pt",
    }
    Path("elsewhere").mkdir()
    Path("results").symlink_to("elsewhere")
    old = ["results/model.json", "my hidden's/a b/hidden_old.pt"]
    future = [
        "my hidden's/a b/hidden_a.pt",
        "-images/gen_a.png",
        "results/checksums/0.sha256",
        "results/report/map.png",
    ]
    future += ["all ours.pt", "results/index.csv"]
    others = ["my hidden's/own.txt", "own file.csv"]
    make(*old, *future, *others)
    ahead = time.time() + 3600
    for file in [*future, *others]:
        os.utime(file, (ahead, ahead))
    for file in old:
        os.utime(file, (1e9, 1e9))
    with pytest.raises(InputError) as caught:
        run.check_dates(config)
    heading, command = str(caught.value).splitlines()
    assert heading.startswith(
        "6 of the results are dated in the future, such as -images/gen_a.png: this machine's clock"
    )
    assert heading.endswith(f"(in {os.getcwd()}):")
    subprocess.run(command, shell=True, check=True)
    run.check_dates(config)
    assert len({os.stat(file).st_mtime_ns for file in future}) == 1  # none is newer than what was made from it
    assert all(abs(os.stat(file).st_mtime - time.time()) < 60 for file in future)
    assert {os.stat(file).st_mtime for file in old} == {1e9}
    assert {os.stat(file).st_mtime for file in others} == {ahead}
    assert not Path(".now").exists()


def test_results_of_the_past_and_none_at_all_are_accepted():
    run.check_dates(CONFIG)
    make("results/model.json", "results/hidden/hidden_a.pt")
    run.check_dates(CONFIG | {"output_image_dir": None})


# --- Disks and locks ---


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk")
def test_folders_that_cannot_be_written_are_named():
    run.check_writable(CONFIG | {"output_hidden_dir": "new/folder"})
    Path("disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "disk"], check=True)
    try:
        for key, place in {
            "output_hidden_dir": "disk",
            "output_image_dir": "disk/new",
            "stacked": "disk/all.pt",
        }.items():
            with pytest.raises(InputError, match=rf"cannot be written to {os.getcwd()}/disk: Read-only file system"):
                run.check_writable(CONFIG | {key: place})
    finally:
        subprocess.run(["umount", "-l", "disk"], check=True)
    assert os.listdir() == ["disk"]


@pytest.mark.fault("disk")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk")
def test_a_disk_without_room_for_logs_is_named_before_a_run_and_after_it():
    sheet = pd.DataFrame({"id": ["a"], "image": ["a.png"]})
    for name in ("results", "logs"):
        Path(name).mkdir()
    full = f"Results cannot be written to {os.getcwd()}/logs: No space left on device"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "logs"], check=True)
    try:
        run.check_writable(CONFIG)
        assert full not in closing.unfinished(CONFIG, sheet)
        Path("logs/filler").write_bytes(bytes(8192))
        with pytest.raises(InputError, match=full):
            run.check_writable(CONFIG)
        assert closing.unfinished(CONFIG, sheet).endswith(f"1 of 1 items were not reached: run again for them.\n{full}")
    finally:
        subprocess.run(["umount", "-l", "logs"], check=True)


@pytest.mark.fault("stranger")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link to somebody else")
@pytest.mark.parametrize("link", ["results/hidden", "results", "logs/extract"])
def test_a_result_folder_that_somebody_else_has_linked_elsewhere_is_refused(link):
    """A folder of somebody else is none: in a study that a group shares, members make each other's folders."""
    Path("elsewhere").mkdir()
    os.chown("elsewhere", 65534, 65534)
    Path(link).parent.mkdir(exist_ok=True)
    Path(link).symlink_to(Path("elsewhere").absolute())
    run.check_writable(CONFIG)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(InputError, match=rf"^{link} is a link to '{os.getcwd()}/elsewhere', made by neither you nor"):
        run.check_writable(CONFIG)
    os.chown(".", 65534, 65534)  # the study is his
    run.check_writable(CONFIG)


@pytest.mark.fault("two runs")
def test_a_second_run_is_refused_until_the_first_has_ended_however_it_ends():
    Path(".snakemake").mkdir()
    fork = multiprocessing.get_context("fork")
    locked = fork.Event()

    def hold() -> None:
        run.lock_run()
        locked.set()
        time.sleep(60)

    first = fork.Process(target=hold)
    first.start()
    assert locked.wait(30)
    with pytest.raises(InputError, match=rf"Another run is at work in {os.getcwd()}: wait"):
        run.lock_run()
    first.kill()
    first.join()
    second = fork.Process(target=run.lock_run)
    second.start()
    second.join()
    assert second.exitcode == 0


# --- Lost results ---


def make_blocks(monkeypatch) -> tuple[list[str], list[str]]:
    """Three blocks of two items with all their files; returns the ids and the checksum files."""
    monkeypatch.setattr(paths, "BLOCK", 2)
    ids = list("abcdef")
    for item_id in ids:
        make(f"results/hidden/hidden_{item_id}.pt", f"results/images/gen_{item_id}.png")
    checksums = [f"results/checksums/{number}.sha256" for number in range(3)]
    make(*checksums)
    return ids, checksums


def test_a_latent_is_lost_if_its_checksum_exists_and_a_picture_if_its_latent_does(monkeypatch):
    ids, checksums = make_blocks(monkeypatch)
    assert run.lost_results(CONFIG, ids, checksums) == []
    for item_id in "ace":
        Path(f"results/hidden/hidden_{item_id}.pt").unlink()
    for item_id in "ab":
        Path(f"results/images/gen_{item_id}.png").unlink()
    Path(checksums[2]).unlink()  # Snakemake itself asks for e
    latents = ["results/hidden/hidden_a.pt", "results/hidden/hidden_c.pt"]
    assert run.lost_results(CONFIG, ids, checksums) == [*latents, "results/images/gen_b.png"]
    assert run.lost_results(CONFIG | {"output_image_dir": None}, ids, checksums) == latents
    assert run.lost_results(CONFIG, ids, checksums[1:]) == latents[1:]  # of a batch


# --- The list of `check` ---


def test_the_list_of_check_stays_as_long_as_its_rows_and_pictures_are_as_it_says():
    make("a.png", "b.png")
    sheet = pd.DataFrame({"id": ["a", "b"], "image": ["a.png", "b.png"]}, index=[2, 3])
    listed = "sheet_row,id,image,problem,notes\n3,b,b.png,too large,\n"

    def is_kept(sheet: pd.DataFrame) -> bool:
        make(paths.CHECK)
        Path(paths.CHECK).write_text(listed)
        os.utime(paths.CHECK, (made := Path("b.png").stat().st_ctime + 1, made))
        run.remove_outdated_check(sheet)
        return Path(paths.CHECK).exists()

    assert is_kept(sheet)
    assert is_kept(sheet.assign(id=["other", "b"]))
    assert not is_kept(sheet.drop(3))
    assert not is_kept(sheet.assign(image=["a.png", "a.png"]))
    assert not is_kept(sheet.rename({3: 4}))
    is_kept(sheet)
    os.utime(paths.CHECK, (0, 0))  # so that the picture is newer
    run.remove_outdated_check(sheet)
    assert not Path(paths.CHECK).exists()
