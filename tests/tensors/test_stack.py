"""The stack: every format holds the same tensor, the table belongs to it, and what does not fit is named."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
from gpi_latents.errors import InputError, TensorError, UserError
from gpi_latents.origin import OF_VERSION_0_1, Origin
from gpi_latents.plan import read_plan, write_plan
from gpi_latents.recipe import model_digest
from gpi_latents.tensors.latent_file import latent_bytes
from gpi_latents.tensors.stack import stack, write_results
from gpi_latents.tensors.tensor_file import open_latents

RECIPES = ["x" * 64] * 7


@pytest.mark.parametrize("suffix", ["pt", "npy", "safetensors"])
def test_every_format_holds_the_latents_in_order(tmp_path, values, latents, suffix):
    target = tmp_path / f"latents.{suffix}"
    stacked = stack(latents, target, {"provenance": "x"}, RECIPES, "")
    assert [digest for digest, _ in stacked] == [
        hashlib.sha256(latent.numpy().tobytes()).hexdigest() for latent in values.values()
    ]
    if suffix == "pt":
        read = torch.load(target, weights_only=True)
        assert torch.equal(read, torch.load(target, weights_only=True, mmap=True))
    elif suffix == "npy":
        read = torch.from_numpy(np.load(target, allow_pickle=False))
    else:
        with safetensors.safe_open(target, "pt") as file:
            assert file.metadata() == {"provenance": "x"}
            read = file.get_tensor("latents")
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.cat(list(values.values())))
    assert {str(path) for path in tmp_path.iterdir()} == {str(target), *latents.values()}


@pytest.mark.fault("stranger")
def test_different_shapes_are_refused_with_the_rare_ones_named(tmp_path, latents):
    torch.save(torch.zeros(1, 4, 8, 8), latents["d"])
    with pytest.raises(TensorError) as caught:
        stack(latents, tmp_path / "latents.pt", {}, RECIPES, "")
    assert "(4, 8, 6): 6 items (a, b, c, e, f, ...)" in str(caught.value)
    assert "(4, 8, 8): 1 item (d)" in str(caught.value)


@pytest.mark.fault("stranger")
def test_all_latents_that_do_not_fit_are_named_at_once(tmp_path, values, latents):
    Path(latents["a"]).write_text("no latent")
    Path(latents["b"]).write_bytes(latent_bytes(values["b"], Origin("x" * 64, model_sha256="b" * 64)))
    Path(latents["c"]).write_bytes(latent_bytes(values["c"], Origin("c" * 64)))
    Path(latents["f"]).unlink()
    torch.save(torch.zeros(1, 4, 8, 8), latents["g"])
    with pytest.raises(TensorError) as caught:
        stack(latents, tmp_path / "latents.pt", {}, RECIPES, "m" * 64)
    heading, *lines = str(caught.value).splitlines()
    assert heading == "4 latents cannot be stacked:"
    starts = ("a.pt is not a latent", "b.pt was made with another model", "c.pt was made with other", "f.pt is missing")
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"  - {tmp_path}/hidden_{start}")


def test_if_no_latent_can_be_read_the_first_twenty_are_named(tmp_path):
    missing = {str(number): str(tmp_path / f"hidden_{number}.pt") for number in range(30)}
    with pytest.raises(TensorError) as caught:
        stack(missing, tmp_path / "latents.pt", {}, [""] * 30, "")
    lines = str(caught.value).splitlines()
    assert lines[0] == "30 latents cannot be stacked:"
    assert len(lines) == 22
    assert lines[-1] == "  ... and 10 more"


# --- With a plan ---

MODEL = model_digest({"model_id": "demo"})
CONFIG = {"model_id": "demo", "output_hidden_dir": "results/hidden", "prefix_hidden": "hidden"}
OUTPUTS = [Path("results/latents.pt"), Path("results/index.csv"), Path("results/provenance.json")]


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """In a study of odd cells with its latents; returns the folder of the plan and the index table as expected."""
    monkeypatch.chdir(tmp_path)
    Path("results/hidden").mkdir(parents=True)
    Path("results/model.json").write_text('{"model_id": "demo"}')
    table = pd.DataFrame(
        {
            "row": range(4),
            "id": ["001", "1e3", "nan", "NA"],
            "image": ["a b.png", 'a"b.png', "a,b.png", "図.png"],
            "prompt": ["a, b", "  blanks  ", "Küche 図 🐦", "'"],
            "negative_prompt": ["", "", "none", "null"],
            "strength": pd.Series([0.0, 0.3, 1.0, 0.1 + 0.2], dtype=object),
            "seed": pd.Series(["", 7, 2**63 - 1, 0], dtype=object),
            "note": ["NA", "null", "1.50", "007"],
            'a "quoted", name': ['say "hi"', " ", "00", "\\n"],
            "cell": ["two\nlines", "\r\nreturned\r", "=1+1", "only\ra return"],
        }
    )
    recipes = [str(number) * 64 for number in table["row"]]
    digests = []
    origins = [
        Origin(recipes[0], "a" * 64, MODEL, "a b.png"),
        Origin(recipes[1], "b" * 64, MODEL, 'a"b.png', ["laid on white", "turned; upright"]),
        Origin(recipes[2], "c" * 64, MODEL, "a,b.png"),
        Origin(recipes[3]),  # of an earlier version
    ]
    for item_id, number, origin in zip(table["id"], table["row"], origins, strict=True):
        latent = torch.full((1, 4, 2, 2), float(number))
        Path(f"results/hidden/hidden_{item_id}.pt").write_bytes(latent_bytes(latent, origin))
        digests.append(hashlib.sha256(latent.numpy().tobytes()).hexdigest())
    plan = table.copy()
    plan.insert(0, "sheet_row", range(2, 6))
    plan.insert(1, "recipe_sha256", recipes)
    table.insert(7, "sha256", digests)
    table.insert(8, "recipe_sha256", recipes)
    table.insert(9, "image_sha256", [origin.image_sha256 for origin in origins])
    table.insert(10, "notes", ["", "laid on white; turned; upright", "", OF_VERSION_0_1])
    return Path(write_plan(CONFIG, plan)), table


def run_stack(plan: Path) -> str:
    return write_results(plan, Path("results/model.json"), *OUTPUTS)


def test_the_index_table_is_the_sheets_cell_by_cell(planned):
    plan, table = planned
    assert run_stack(plan) == "stacked 4 latents"
    index = pd.read_csv("results/index.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(index, table.astype(str))
    with open("results/index.csv", encoding="utf-8", newline="") as file:  # by another reader than pandas
        assert list(csv.reader(file)) == [list(table), *table.astype(str).to_numpy().tolist()]
    assert open_latents("results/latents.pt")[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    origin = json.loads(Path("results/provenance.json").read_text())
    assert (origin["items"], origin["model"], origin["config"]["model_id"]) == (4, {"model_id": "demo"}, "demo")
    assert sorted(os.listdir("results")) == ["hidden", "index.csv", "latents.pt", "model.json", "provenance.json"]


def test_a_latent_that_belongs_to_another_plan_is_refused_and_leaves_no_table(planned):
    plan, _ = planned
    run_stack(plan)
    Path("results/hidden/hidden_1e3.pt").write_bytes(latent_bytes(torch.zeros(1, 4, 2, 2), Origin("x" * 64)))
    with pytest.raises(TensorError, match=r"hidden_1e3\.pt was made with other settings"):
        run_stack(plan)
    assert sorted(os.listdir("results")) == ["hidden", "latents.pt", "model.json", "provenance.json"]


def leave_out(*ids: str) -> None:
    """What jobs leave of items that failed, with `on_error: skip`."""
    Path("logs/extract").mkdir(parents=True, exist_ok=True)
    for item_id in ids:
        Path(f"results/hidden/hidden_{item_id}.pt").write_bytes(b"")
        Path(f"logs/extract/{item_id}.log").write_text(f'working on it\nerror: {item_id}.png: it is, "cut" off\n')


@pytest.mark.fault("skip")
def test_items_that_failed_are_left_out_of_tensor_and_table_and_listed(planned):
    plan, table = planned
    leave_out("001", "nan")
    Path("other").mkdir()
    failed_file = Path("results/failed.csv")
    outputs = [*OUTPUTS, failed_file]
    assert (
        write_results(plan, Path("results/model.json"), *outputs) == "stacked 2 latents, left out 2 items that failed"
    )
    assert open_latents("results/latents.pt")[:, 0, 0, 0].tolist() == [1, 3]
    index = pd.read_csv("results/index.csv", dtype=str, keep_default_na=False)
    expected = table.iloc[[1, 3]].assign(row=range(2)).astype(str).reset_index(drop=True)
    pd.testing.assert_frame_equal(index, expected)
    failed = pd.read_csv(failed_file, keep_default_na=False, dtype={"id": str})
    assert failed.to_numpy().tolist() == [
        [2, "001", "a b.png", '001.png: it is, "cut" off'],
        [4, "nan", "a,b.png", 'nan.png: it is, "cut" off'],
    ]
    made = [path.read_bytes() for path in OUTPUTS[:2]]
    rows = read_plan(plan).iloc[[1, 3]].assign(row=range(2))
    write_results(
        Path(write_plan(CONFIG, rows)), Path("results/model.json"), *[Path("other") / path.name for path in OUTPUTS]
    )
    assert made == [(Path("other") / path.name).read_bytes() for path in OUTPUTS[:2]]  # of a sheet without these rows
    origin = json.loads(Path("results/provenance.json").read_text())
    assert (origin["items"], origin["failed"]) == (2, failed.to_dict("records"))
    with pytest.raises(TensorError, match=r"2 latents cannot be stacked"):  # with on_error: stop
        run_stack(plan)
    for item_id in ("001", "nan"):
        Path(f"results/hidden/hidden_{item_id}.pt").write_bytes(latent_bytes(torch.zeros(1, 4, 2, 2)))
    write_results(plan, Path("results/model.json"), *outputs)
    assert failed_file.read_text() == "sheet_row,id,image,reason\n"
    run_stack(plan)
    assert not failed_file.exists()
    assert "failed" not in json.loads(Path("results/provenance.json").read_text())


@pytest.mark.fault("skip")
def test_no_item_at_all_or_an_empty_latent_without_a_reason_is_an_error(planned):
    plan, table = planned
    outputs = [*OUTPUTS, Path("results/failed.csv")]
    leave_out(*table["id"])
    with pytest.raises(TensorError, match=r"None of the 4 items could be done; the first: 001\.png: it is"):
        write_results(plan, Path("results/model.json"), *outputs)
    Path("logs/extract/nan.log").write_text("working on it\n")
    with pytest.raises(TensorError, match=r"hidden_nan\.pt is empty, and logs/extract/nan\.log does not say why"):
        write_results(plan, Path("results/model.json"), *outputs)
    assert not any(path.exists() for path in outputs)


def test_a_missing_plan_and_a_damaged_model_are_named(planned):
    plan, _ = planned
    with pytest.raises(InputError, match=r"The plan of this run, \S+/other, is missing: run snakemake again"):
        run_stack(plan.with_name("other"))
    Path("results/model.json").write_text('{"model_id"')
    with pytest.raises(UserError, match=r"results/model\.json is damaged: delete it"):
        run_stack(plan)


@pytest.mark.fault("kill")
def test_a_kill_at_any_write_never_lets_tensor_and_table_disagree(planned):
    """The second run stacks other values; its process ends at its first, second, ... change of a file."""
    plan, _ = planned
    run_stack(plan)
    for number, path in enumerate(Path("results/hidden").iterdir()):
        path.write_bytes(latent_bytes(torch.full((1, 4, 2, 2), 10.0 + number)))
    kept = {path: path.read_bytes() for path in OUTPUTS}
    ends: list[int] = []
    while not ends or ends[-1]:
        for path, content in kept.items():
            path.write_bytes(content)
        if (child := os.fork()) == 0:
            end_at_change(len(ends) + 1)
            run_stack(plan)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if Path("results/index.csv").exists():
            digests = pd.read_csv("results/index.csv")["sha256"].tolist()
            assert digests == [hashlib.sha256(latent.tobytes()).hexdigest() for latent in open_latents(OUTPUTS[0])]
    assert len(ends) > 8
    run_stack(plan)
    assert not [name for name in os.listdir("results") if name.startswith(".")]


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("suffix", ["pt", "npy", "safetensors"])
def test_what_somebody_put_in_the_place_of_a_temporary_tensor_is_not_written_into(planned, suffix):
    """In a folder that a group shares, links to files that only the user may write."""
    plan, _ = planned
    private = Path("private")
    private.write_bytes(b"mine")
    tensor = Path(f"results/latents.{suffix}")
    for name in (f".latents.{suffix}.tmp.{suffix}", f".latents.{suffix}.tmp.{suffix}.sparse"):
        (tensor.parent / name).symlink_to(private.absolute())
    write_results(plan, Path("results/model.json"), tensor, *OUTPUTS[1:])
    assert private.read_bytes() == b"mine"
    assert not tensor.is_symlink()
    assert len(open_latents(tensor)) > 1


def end_at_change(count: int) -> None:
    """Let this process end before its `count`th change of a file."""

    def counting(change):
        def counted(*arguments, **options):
            nonlocal count
            count -= 1
            if count == 0:
                os._exit(9)
            return change(*arguments, **options)

        return counted

    for name in ("unlink", "replace", "write_bytes", "open"):
        setattr(Path, name, counting(getattr(Path, name)))


@pytest.mark.fault("disk")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("suffix", ["pt", "npy"])
def test_a_full_or_read_only_disk_is_named_and_keeps_no_half_tensor(planned, suffix):
    plan, _ = planned
    disk = Path("disk")
    disk.mkdir()
    outputs = [disk / f"latents.{suffix}", *OUTPUTS[1:]]

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        (disk / "filler").write_bytes(bytes(64 * 1024))
        with pytest.raises(OSError, match=r"^the tensor cannot be written to disk: No space left on device"):
            write_results(plan, Path("results/model.json"), *outputs)
        assert os.listdir(disk) == ["filler"]
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OSError, match=r"^the tensor cannot be written to disk: Read-only file system"):
            write_results(plan, Path("results/model.json"), *outputs)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
