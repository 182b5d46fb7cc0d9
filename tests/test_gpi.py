"""From the results to the arrays of `gpi_pack`: aligned, checked against each other, and refused in plain words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from gpi_latents import gpi
from gpi_latents.errors import DataError, TensorError
from gpi_latents.tensors.latent_file import latent_bytes
from gpi_latents.tensors.stack import stack
from helpers.gpi_pack_import import import_gpi_pack
from helpers.study import Study

SHEET = pd.DataFrame(
    {
        "row": range(6),
        "id": ["001", "bob", "eve", "kim", "lee", "mia"],
        "image": "a.png",
        "prompt": "12",
        "strength": ["0.0", "0.0", "0.0", "0.0", "0.5", "0.5"],
        "treatment": ["0", "1", "0", "1", "0", "1"],
        "outcome": ["1.5", "-2e-1", "3", "", "n/a", "4"],
        "size": [".1", "2", "3", " 4 ", "5", "6"],
    },
    dtype=str,
)


@pytest.fixture
def results(tmp_path):
    """A folder of results as the workflow leaves it, with a latent of its own for each item of `SHEET`."""
    return make_results(tmp_path / "results")


def make_results(folder, stacked="results/latents.pt", sheet=SHEET):
    (folder / "hidden").mkdir(parents=True)
    paths = {item_id: folder / f"hidden/hidden_{item_id}.pt" for item_id in sheet["id"]}
    for item_id, path in paths.items():
        number = float(list(SHEET["id"]).index(item_id))
        latent = torch.full((1, 4, 2, 3), number) + torch.arange(24).reshape(1, 4, 2, 3) / 100
        path.write_bytes(latent_bytes(latent))
    target = folder.parent / stacked
    target.parent.mkdir(exist_ok=True)
    digests = stack(paths, target, {}, [""] * len(paths))
    sheet.assign(sha256=digests).to_csv(folder / "index.csv", index=False)
    (folder / "provenance.json").write_text(json.dumps({"config": {"stacked": stacked}}))
    return folder


@pytest.mark.parametrize(
    "stacked", ["results/latents.pt", "results/latents.npy", "results/latents.safetensors", "tensors/all.npy"]
)
def test_the_tensor_is_found_mapped_and_in_the_order_of_the_table(tmp_path, stacked):
    R, index = gpi.load(make_results(tmp_path / "results", stacked))
    assert isinstance(R, np.memmap)
    assert R.dtype == np.float32
    assert R.shape == (6, 4, 2, 3)
    assert list(R[:, 0, 0, 0]) == [0, 1, 2, 3, 4, 5]
    assert list(index["id"]) == list(SHEET["id"])
    assert index["size"].tolist() == [0.1, 2, 3, 4, 5, 6]
    assert index["prompt"].tolist() == ["12"] * 6
    assert index["outcome"].tolist()[3:5] == ["", "n/a"]


def test_results_without_provenance_or_copied_elsewhere_are_found(tmp_path, results):
    moved = tmp_path / "copy"
    shutil.move(results, moved)
    assert len(gpi.load(moved)[0]) == 6
    (moved / "provenance.json").unlink()
    assert len(gpi.load(moved)[0]) == 6


def test_arrays_are_those_of_the_chosen_items(results):
    R, index = gpi.load(results)
    R, Y, T, C = gpi.arrays(R, index, "outcome", "treatment", ["size", "strength"], query="size in [0.1, 2, 3, 6]")
    assert R[:, 0, 0, 0].tolist() == [0, 1, 2, 5]
    assert Y.tolist() == [1.5, -0.2, 3, 4]
    assert T.tolist() == [0, 1, 0, 1]
    assert C is not None
    assert C.tolist() == [[0.1, 0], [2, 0], [3, 0], [6, 0.5]]
    assert (R.dtype, Y.dtype, T.dtype, C.dtype) == (np.float32, np.float64, np.int64, np.float64)


def test_arrays_flat_in_another_order_and_without_covariates(results):
    R, index = gpi.load(results)
    backwards = index.sort_values("size", ascending=False)
    flat, Y, _, C = gpi.arrays(R, backwards, "size", "treatment", flat=True)
    assert flat.shape == (6, 24)
    assert Y.tolist() == [6, 5, 4, 3, 2, 0.1]
    assert np.array_equal(flat, R[::-1].reshape(6, 24))
    assert C is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "outcome 'outcome' is not a number in 2 of 6 rows: empty in row 3 (kim); 'n/a' in row 4 (lee)"),
        ({"query": "strength == 0"}, "in 1 of 4 rows: empty in row 3 (kim)"),
        ({"outcome": "price"}, "no column 'price' for the outcome. Its columns: row, id"),
        (
            {"outcome": "size", "treatment": "size"},
            "treatment 'size' must be 0 or 1, but is 0.1 in row 0 (001); 2.0 in row 1 (bob)",
        ),
        ({"outcome": "size", "query": "treatment == 1"}, "'treatment' is 1 in all 3 rows"),
        ({"outcome": "size", "query": "strength == 9"}, "chooses none of the 6 rows"),
        ({"outcome": "size", "query": "strenth == 0"}, "The query 'strenth == 0' does not work"),
        ({"outcome": "size", "covariates": ["outcome"]}, "covariate 'outcome' is not a number in 2 of 6 rows"),
    ],
)
def test_what_cannot_be_estimated_from_is_refused_with_its_rows(results, arguments, message):
    with pytest.raises(DataError) as caught:
        gpi.arrays(*gpi.load(results), **{"outcome": "outcome", "treatment": "treatment", **arguments})
    assert message in str(caught.value)


def test_a_missing_treatment_is_refused(results):
    edit(results, lambda index: index.assign(treatment=["0", "1", "", "1", "0", " "]))
    with pytest.raises(DataError, match=r"treatment 'treatment' is not a number in 2 .*empty in row 2 \(eve\)"):
        gpi.arrays(*gpi.load(results), "size", "treatment")


def test_a_part_of_the_table_is_no_table_of_all_latents(results):
    R, index = gpi.load(results)
    with pytest.raises(DataError, match="choose rows by query"):
        gpi.arrays(R[2:], index[2:], "size", "treatment")


def edit(results, change):
    index = pd.read_csv(results / "index.csv", dtype=str, keep_default_na=False)
    change(index).to_csv(results / "index.csv", index=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index[::-1], "no longer in their order"),
        (lambda index: index[::-1].assign(row=range(6)), r"6 of 6 latents are not those .*\(row 0, mia; row 1, lee"),
        (lambda index: index.drop(index=2), "6 latents, but the index table 5 rows"),
        (lambda index: index.assign(id="bob"), "an id twice"),
        (lambda index: index.drop(columns="sha256"), "no column 'sha256'"),
    ],
)
def test_a_changed_index_table_is_caught(results, change, message):
    edit(results, change)
    with pytest.raises(DataError, match=message):
        gpi.load(results)


def test_a_tensor_of_another_run_is_caught(tmp_path, results):
    other = make_results(tmp_path / "other/results", sheet=SHEET[::-1].assign(row=range(6)))
    shutil.copy(other / "latents.pt", results)
    with pytest.raises(DataError, match="6 of 6 latents are not those"):
        gpi.load(results)
    assert len(gpi.load(results, check=False)[0]) == 6


@pytest.mark.parametrize("missing", ["index.csv", "latents.pt"])
def test_missing_files_are_named(results, missing):
    (results / missing).unlink()
    with pytest.raises(DataError, match=rf"{missing} is missing: run snakemake"):
        gpi.load(results)


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("provenance.json", "{", DataError, r"provenance\.json is damaged: delete it"),
        ("provenance.json", "[1]", DataError, r"provenance\.json is damaged: delete it"),
        ("index.csv", "", DataError, r"index\.csv is not an index table of this workflow"),
        ("latents.pt", "no tensor", TensorError, r"latents\.pt is not a tensor of this workflow"),
    ],
)
def test_damaged_files_are_named(results, name, content, kind, message):
    (results / name).write_text(content)
    with pytest.raises(kind, match=message):
        gpi.load(results)
    assert issubclass(kind, DataError)
    assert issubclass(kind, ValueError)


def test_a_stale_file_of_one_item_is_caught(results):
    _, index = gpi.load(results)
    (results / "hidden/hidden_eve.pt").write_bytes(latent_bytes(torch.zeros(1, 4, 2, 3)))
    files = [results / f"hidden/hidden_{item_id}.pt" for item_id in index["id"]]
    read = torch.cat([torch.load(file, weights_only=True) for file in files]).numpy()
    with pytest.raises(DataError, match=r"1 of 6 latents .*\(row 2, eve\)"):
        gpi.check_digests(read, index)


def test_load_load_hiddens_and_torch_agree_bit_for_bit(demo):
    results = demo.folder / "results"
    R, index = gpi.load(results)
    hiddens = import_gpi_pack().load_hiddens(str(results / "hidden"), list(index["id"]), "hidden_")
    assert R.tobytes() == hiddens.tobytes()
    assert R.tobytes() == torch.load(results / "latents.pt", weights_only=True).numpy().tobytes()
    assert R.shape == hiddens.shape
    gpi.check_digests(hiddens, index)


@pytest.mark.long
def test_a_shuffled_sheet_and_a_removed_row_leave_each_outcome_with_its_latent(study: Study):
    rows = [row | {"outcome": number} for number, row in enumerate(study.pictures(5))]
    study.config(output_image_dir=None)
    study.sheet(rows)
    study.run()
    R, index = gpi.load(study.folder / "results")
    latents = dict(zip(index["outcome"], R.copy(), strict=True))
    study.sheet([rows[number] for number in (3, 0, 4, 1)])
    study.run()
    R, index = gpi.load(study.folder / "results")
    assert index["outcome"].tolist() == [3, 0, 4, 1]
    for outcome, latent in zip(index["outcome"], R, strict=True):
        assert np.array_equal(latent, latents[outcome])


def test_loading_imports_no_torch(results):
    command = (
        "import sys, gpi_latents; gpi_latents.load(sys.argv[1]); assert not {'torch', 'gpi_pack'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", command, results], cwd="/", check=True)
