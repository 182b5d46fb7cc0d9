"""Around a run: dates, disks and locks before it; lost and left files; what a failed run reports."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from gpi_latents import joblog, paths, run
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
    Path(paths.MODEL).touch()
    full = f"Results cannot be written to {os.getcwd()}/logs: No space left on device"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "logs"], check=True)
    try:
        run.check_writable(CONFIG)
        assert full not in run.unfinished(CONFIG, sheet)
        Path("logs/filler").write_bytes(bytes(8192))
        with pytest.raises(InputError, match=full):
            run.check_writable(CONFIG)
        assert run.unfinished(CONFIG, sheet).endswith(f"1 of 1 items were not reached: run again for them.\n{full}")
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


# --- Lost and left files ---


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


def test_files_that_belong_to_no_row_are_listed(monkeypatch, capsys):
    ids, _ = make_blocks(monkeypatch)
    make("results/hidden/notes.txt", "results/images/other.png", "logs/x")
    run.print_orphans(CONFIG, ids, "logs/orphans.txt")
    assert capsys.readouterr().out == "Every latent and picture belongs to an item.\n"
    run.print_orphans(CONFIG, ["a", "b", "f"], "logs/orphans.txt")
    expected = [f"results/hidden/hidden_{item_id}.pt" for item_id in "cde"]
    expected += [f"results/images/gen_{item_id}.png" for item_id in "cde"] + ["results/checksums/2.sha256"]
    assert capsys.readouterr().out.splitlines() == expected
    assert Path("logs/orphans.txt").read_text().splitlines() == expected
    without = run.orphans(CONFIG | {"output_image_dir": None}, ids[:2])
    assert not [path for path in without if path.startswith("results/images")]


# --- What a run reports at its end ---


def sheet(count: int, **columns) -> pd.DataFrame:
    ids = [f"p{number}" for number in range(count)]
    known = {"id": ids, "image": "p.png", "prompt": "a", "negative_prompt": None, "strength": 0.5}
    return pd.DataFrame(known | columns, index=range(2, count + 2))


def log(path: str, text: str) -> None:
    make(path)
    Path(path).write_text(text)


FINISHED = joblog.line(joblog.Finished(["prompt cut: 77 of 90 tokens", "picture grey"], [1, 4, 8, 8], 1.0, 2.0, "cpu"))


def test_failed_items_are_listed_with_reasons_and_the_rest_is_counted():
    make("results/model.json", "results/hidden/hidden_p0.pt")
    log("logs/extract/p1.log", "loading the model\nnoise of a library\nerror: p.png: the picture\nis empty\n")
    log("logs/extract/p2.log", f"working on it\n{FINISHED}\n")  # it was done, and its latent was lost later
    assert run.unfinished(CONFIG, sheet(4)).splitlines() == [
        "1 of 4 items failed (all in logs/failed.csv):",
        "  - row 3, p1: p.png: the picture is empty",
        "2 of 4 items were not reached: run again for them.",
    ]
    table = pd.read_csv("logs/failed.csv").to_dict("records")  # row is the tensor's, in the index table
    assert table == [{"sheet_row": 3, "id": "p1", "image": "p.png", "reason": "p.png: the picture is empty"}]


def test_of_many_failed_items_twenty_are_shown_and_all_are_in_the_table():
    make("results/model.json")
    for number in range(50):
        log(f"logs/extract/p{number}.log", "error: bad\n")
    lines = run.unfinished(CONFIG, sheet(50)).splitlines()
    assert lines[0] == "50 of 50 items failed (all in logs/failed.csv):"
    assert lines[-1] == "  ... and 30 more"
    assert len(lines) == 22
    assert len(pd.read_csv("logs/failed.csv")) == 50


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([], "model\n1 of 1 items were not reached: run again for them."),
        (["results/model.json", "results/hidden/hidden_p0.pt"], "stack\nsums"),
        (["results/model.json", "results/hidden/hidden_p0.pt", "results/index.csv"], "values\nreport"),
    ],
)
def test_if_no_item_failed_the_log_of_the_rule_that_did_is_shown(made, expected):
    make(*made, *(f"results/report/{name}.json" for name in paths.FIGURES if name != "values"))
    for path in ("model", "stack", "report"):
        log(f"logs/{path}.log", path)
    log("logs/checksums/0.log", "sums")
    for name in paths.FIGURES:
        log(f"logs/figure/{name}.log", name)
    assert run.unfinished(CONFIG, sheet(1)) == expected


def test_prompts_that_were_cut_are_listed_by_row():
    long = "red " * 30
    items = sheet(6, prompt=[long, "a", "a", long, long, "é" * 38], negative_prompt=["", "", long, None, None, None])
    items["strength"] = [0.5, 0.5, 0.5, 0, 0.5, 0.5]
    for number in range(6):
        log(f"logs/extract/p{number}.log", FINISHED if number != 4 else "error: bad")
    # p1 is short, p3 does not use its prompt, p4 failed
    lines = run.cut_prompts(items).splitlines()
    assert lines[0] == "Prompts too long for the model:"
    assert lines[1:] == [f"  - row {row}, p{row - 2}: prompt cut: 77 of 90 tokens" for row in (2, 4, 7)]
    assert run.cut_prompts(items[1:2]) == ""
