"""From the results to an array and a table: checked against each other, and refused in plain words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import gpi_latents as gpi
import numpy as np
import pandas as pd
import pytest
import torch
from gpi_latents.errors import DataError, TensorError
from gpi_latents.gpi.gpi_pack_import import import_gpi_pack
from helpers.made_results import SHEET, edit, make_results
from helpers.study import Study


@pytest.fixture
def results(tmp_path):
    """A folder of results as the workflow leaves it, with a latent of its own for each item of `SHEET`."""
    return make_results(tmp_path / "results")


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
    assert index["outcome"].isna().tolist() == [False, False, False, True, False, False]
    assert index["outcome"][4] == "n/a"


def test_results_without_provenance_or_copied_elsewhere_are_found(tmp_path, results):
    moved = tmp_path / "copy"
    shutil.move(results, moved)
    assert len(gpi.load(moved)[0]) == 6
    (moved / "provenance.json").unlink()
    assert len(gpi.load(moved)[0]) == 6


@pytest.mark.fault("results")
def test_studies_whose_results_are_links_into_one_scratch_folder_each_find_their_own_tensor(tmp_path):
    """As on clusters; beside the links' targets lie the tensors of a third study."""
    scratch = tmp_path / "scratch"
    for name, sheet in (("one", SHEET), ("two", SHEET[::-1].assign(row=range(6)))):
        for stacked in ("results/latents.npy", "tensors/all.npy"):
            results = make_results(tmp_path / f"{name}-{stacked[:3]}/results", stacked, sheet)
            shutil.move(results, scratch / results.parent.name)
            results.symlink_to(scratch / results.parent.name)
    for stacked in ("results/latents.npy", "tensors/all.npy"):
        make_results(tmp_path / "third/results", stacked, SHEET)
        (tmp_path / "third" / stacked).parent.rename(scratch / stacked.split("/")[0])
        shutil.rmtree(tmp_path / "third")
    for kind in ("res", "ten"):
        assert gpi.load(tmp_path / f"one-{kind}/results")[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert gpi.load(tmp_path / f"two-{kind}/results", check=False)[0][:, 0, 0, 0].tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.fault("results")
def test_a_copy_beside_the_results_that_it_was_made_of_has_its_own_tensor(tmp_path, results):
    shutil.copytree(results, tmp_path / "copy")
    shutil.rmtree(results)
    make_results(results, sheet=SHEET[::-1].assign(row=range(6)))
    assert gpi.load(tmp_path / "copy")[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert gpi.load(results / "hidden/..")[0][:, 0, 0, 0].tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.fault("results")
def test_a_link_that_leads_to_nothing_is_named(tmp_path, results):
    (results / "latents.pt").unlink()
    (results / "latents.pt").symlink_to("/gone/latents.pt")
    with pytest.raises(DataError, match=r"results/latents\.pt is a link to '/gone/latents\.pt', which does not exist"):
        gpi.load(results)
    (tmp_path / "other").symlink_to("/gone/scratch")
    with pytest.raises(DataError, match=r"index\.csv cannot be read: .*other is a link to '/gone/scratch', which"):
        gpi.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("cells", "expected", "dtype"),
    [
        (["1", " 2 ", "NA"], [1, 2, None], "float64"),
        (["1.5", "NaN", "", "N/A", "NULL", "<NA>", "nan", " "], [1.5] + [None] * 7, "float64"),
        (["1", "-2", "+3"], [1, -2, 3], "int64"),
        (["1e5", "-.5", "3."], [1e5, -0.5, 3], "float64"),
        (["0", "0.5", "-0.5", "0e1"], [0, 0.5, -0.5, 0], "float64"),
        (["TRUE", "FALSE"], [True, False], "bool"),
        (["True", "false", "NA"], [True, False, None], "boolean"),
        (["06", "48", "NA"], ["06", "48", None], "text"),
        (["48", "-06"], ["48", "-06"], "text"),
        (["TRUE", "1"], ["TRUE", "1"], "text"),
        (["1", "two", " "], ["1", "two", None], "text"),
        (["p1", "p1 ", "\tp1\u00a0", "p 2"], ["p1", "p1", "p1", "p 2"], "text"),
        (["inf", "1"], ["inf", "1"], "text"),
        (["9007199254740993", "5"], [9007199254740993, 5], "int64"),
        (["9007199254740993", "NA"], [9007199254740993, None], "Int64"),
        (["18446744073709551615", "NA"], [18446744073709551615, None], "UInt64"),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"], "text"),
        (["123456789012345678901234", "5"], ["123456789012345678901234", "5"], "text"),
        (["-5", "18446744073709551615"], ["-5", "18446744073709551615"], "text"),
        (["NA", ""], [None, None], "float64"),
    ],
)
def test_a_column_is_read_as_what_its_cells_are(results, cells, expected, dtype):
    edit(results, lambda index: index.assign(x=(cells * 6)[:6], id=[f"item {number}" for number in range(6)]))
    read = gpi.load(results)[1]["x"]
    assert [None if pd.isna(value) else value for value in read] == (expected * 6)[:6]
    is_text = pd.api.types.is_string_dtype(read.dropna())
    assert is_text if dtype == "text" else read.dtype == dtype


def test_ids_prompts_paths_digests_and_notes_stay_as_they_are_written(results):
    cells = ["NA", "06", "TRUE", "12", " ", "nan"]
    names = ["image", "prompt", "negative_prompt", "recipe_sha256", "image_sha256", "notes"]
    edit(results, lambda index: index.assign(**dict.fromkeys(names, cells), id=["NA", "01", "TRUE", "4", "5", "nan"]))
    index = gpi.load(results)[1]
    assert all(index[name].tolist() == cells for name in names)
    assert index["id"].tolist() == ["NA", "01", "TRUE", "4", "5", "nan"]


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


@pytest.mark.fault("skip")
@pytest.mark.parametrize(
    ("draws", "said"), [(False, "1 of 7 items failed"), (True, r"1 of 7 draws failed .*means are")]
)
def test_items_that_failed_and_were_left_out_are_a_warning(results, draws, said):
    if draws:
        edit(results, lambda index: index.assign(item=index["id"], draw=1))
    origin = json.loads((results / "provenance.json").read_text())
    failed = [{"sheet_row": 8, "id": "zoe", "image": "a.png", "reason": "cut off"}]
    (results / "provenance.json").write_text(json.dumps(origin | {"failed": failed}))
    with pytest.warns(UserWarning, match=rf"^{said}.*if failing goes with treatment or outcome, estimates are biased"):
        R, index = gpi.load(results, check=False)
    assert len(R) == len(index) == 6


def test_a_stale_file_of_one_item_is_caught(results):
    _, index = gpi.load(results)
    torch.save(torch.zeros(1, 4, 2, 3), results / "hidden/hidden_eve.pt")
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
