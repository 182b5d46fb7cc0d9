"""From the results to the arrays of `gpi_pack`: aligned, checked against each other, and refused in plain words."""

from __future__ import annotations

import hashlib
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
from gpi_latents.tensors.tensor_file import tensor_writer
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
        torch.save(latent, path)
    latents = [torch.load(path, weights_only=True).numpy() for path in paths.values()]
    target = folder.parent / stacked
    target.parent.mkdir(exist_ok=True)
    with tensor_writer(target, (len(latents), 4, 2, 3), {}) as file:
        file.writelines(latent.tobytes() for latent in latents)
    digests = [hashlib.sha256(latent.tobytes()).hexdigest() for latent in latents]
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


@pytest.mark.fault("query")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "outcome 'outcome' is not a number in 2 of 6 rows: missing in row 3 (kim); 'n/a' in row 4 (lee)"),
        ({}, "as by query=\"id not in ['kim', ...]\""),
        ({"query": "strength == 0"}, "in 1 of 4 rows: missing in row 3 (kim). "),
        ({"query": "strength == 0"}, 'as by query="outcome.notna()"'),
        ({"outcome": "price"}, "no column 'price' for the outcome. Its columns: row, id"),
        (
            {"outcome": "strength", "treatment": "size"},
            "treatment 'size' must be 0 or 1, but is 0.1 in row 0 (001); 2.0 in row 1 (bob)",
        ),
        (
            {"outcome": "size", "treatment": "strength"},
            "recode to 0 and 1, as by index['strength'] = index['strength'].map({0.0: 0, 0.5: 1})",
        ),
        ({"outcome": "size", "treatment": "size"}, "'size' is given twice, as outcome and as treatment"),
        ({"outcome": "size", "covariates": "treatment"}, "given twice, as treatment and as covariate"),
        ({"outcome": "size", "covariates": ["strength"] * 2}, "given twice, as covariate and as covariate"),
        ({"outcome": ["size"]}, "outcome must be the name of a column, such as 'age', not ['size']"),
        ({"outcome": "size", "covariates": [["strength"]]}, "covariate must be the name of a column"),
        ({"outcome": "size", "query": "treatment == 1"}, "'treatment' is 1 in all 3 rows"),
        ({"outcome": "size", "query": "strength == 9"}, "chooses none of the 6 rows"),
        ({"outcome": "size", "query": "treatment != '1'"}, "treatment holds numbers: write treatment != 1"),
        ({"outcome": "size", "covariates": ["outcome"]}, "covariate 'outcome' is not a number in 2 of 6 rows"),
    ],
)
def test_what_cannot_be_estimated_from_is_refused_with_its_rows(results, arguments, message):
    with pytest.raises(DataError) as caught:
        gpi.arrays(*gpi.load(results), **{"outcome": "outcome", "treatment": "treatment", **arguments})
    assert message in str(caught.value)


def test_a_missing_treatment_is_refused(results):
    edit(results, lambda index: index.assign(treatment=["0", "1", "", "1", "0", " "]))
    with pytest.raises(DataError, match=r"treatment 'treatment' is not a number in 2 .*missing in row 2 \(eve\)"):
        gpi.arrays(*gpi.load(results), "size", "treatment")


def test_a_part_of_the_table_is_no_table_of_all_latents(results):
    R, index = gpi.load(results)
    with pytest.raises(DataError, match="choose rows by query"):
        gpi.arrays(R[2:], index[2:], "size", "treatment")
    with pytest.raises(DataError, match="does not name every latent"):
        gpi.arrays(R, pd.concat([index[:5], index[:1]]), "size", "treatment")


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


@pytest.mark.fault("query")
@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("id not in ['1', '2']", [2, 3, 4, 5]),
        ("fips != '06'", [2, 3]),
        ("wave != 2", [0, 1, 4]),  # as R's filter(): where wave is NA, it is unknown
        ("female != True", [2, 3]),
    ],
)
def test_a_query_leaves_out_what_it_names_whatever_r_wrote(results, query, rows):
    carried = {
        "id": ["1", "2", "3", "4", "5", "6"],
        "fips": ["06", "06", "48", "48", "06", "NA"],
        "wave": ["1", "1", "2", "NA", "3", ""],
        "female": ["TRUE", "TRUE", "FALSE", "FALSE", "NA", "TRUE"],
    }
    edit(results, lambda index: index.assign(**carried))
    R = gpi.arrays(*gpi.load(results), "size", "treatment", query=query)[0]
    assert R[:, 0, 0, 0].tolist() == rows


def test_booleans_are_1_and_0(results):
    edit(results, lambda index: index.assign(t=["TRUE", "FALSE"] * 3, y=["true"] * 5 + ["NA"], c=["False", "True"] * 3))
    R, index = gpi.load(results)
    _, Y, T, C = gpi.arrays(R, index, "y", "t", "c", query="y.notna()")
    assert (Y.tolist(), T.tolist(), C.tolist()) == ([1] * 5, [1, 0, 1, 0, 1], [[0], [1], [0], [1], [0]])
    assert (Y.dtype, T.dtype, C.dtype) == (np.float64, np.int64, np.float64)
    with pytest.raises(DataError, match=r"outcome 'y' is not a number in 1 of 6 rows: missing in row 5 \(mia\)"):
        gpi.arrays(R, index, "y", "t")


@pytest.mark.fault("query")
@pytest.mark.parametrize(
    ("cells", "role", "message"),
    [
        (["treated", "control"], "treatment", "recode to 0 and 1, as by index['x'] = index['x'].map({'control': 0, "),
        (["a", "b", "c"], "treatment", "holds texts, not numbers ('a'; 'b'; 'c'): recode to 0 and 1"),
        (["m", "NA", "f"], "covariate", "index['x'].map({'f': 0, 'm': 1})"),
        (["a", "b", "c"], "covariate", "such as (index['x'] == 'c').where(index['x'].notna())"),
        (["a", "b", "c"], "outcome", "holds texts, not numbers ('a'; 'b'; 'c'): give a column of numbers"),
        (
            ["06", "48"],
            "covariate",
            "texts such as '06', which may be codes: if they are numbers, write index['x'] = pd.",
        ),
        (
            ["1", "0", "NA"],
            "treatment",
            "is not a number in 2 of 6 rows: missing in row 2 (eve); missing in row 5 (mia)",
        ),
    ],
)
def test_texts_are_refused_with_how_to_make_numbers_of_them(results, cells, role, message):
    edit(results, lambda index: index.assign(x=(cells * 3)[:6]))
    roles = {"outcome": "size", "treatment": "treatment", "covariate": "strength"} | {role: "x"}
    R, index = gpi.load(results)
    with pytest.raises(DataError) as caught:
        gpi.arrays(R, index, roles["outcome"], roles["treatment"], roles["covariate"])
    assert message in str(caught.value)


def test_one_covariate_may_be_given_as_a_text(results):
    R, index = gpi.load(results)
    C = gpi.arrays(R, index, "size", "treatment", "strength")[3]
    assert C is not None
    assert C.tolist() == [[0], [0], [0], [0], [0.5], [0.5]]
    assert gpi.arrays(R, index, "size", "treatment", None)[3] is None


def test_a_nullable_boolean_with_a_gap_is_refused_by_row_as_a_treatment():
    R = np.zeros((3, 1, 2, 2), np.float32)
    treatment = pd.array([True, None, False], dtype="boolean")
    index = pd.DataFrame({"row": range(3), "id": list("abc"), "T": treatment, "Y": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match=r"missing in row 1 \(b\)"):
        gpi.arrays(R, index, "Y", "T")
    assert gpi.arrays(R, index, "Y", "T", query="T.notna()")[2].tolist() == [1, 0]


@pytest.mark.parametrize(
    "read",
    [
        pd.read_csv,
        lambda file: pd.read_csv(file).astype({"row": float}),
        lambda file: pd.read_csv(file, dtype=str, keep_default_na=False),
    ],
)
def test_a_table_that_the_user_read_and_merged_will_do(results, read):
    R, _ = gpi.load(results)
    own = pd.DataFrame({"name": ["lee", "eve", "bob", "001", "kim"], "age": [50, 30, 20, 10, 40], "old": True})
    index = read(results / "index.csv").merge(own, left_on="id", right_on="name", how="left")
    index = index.sample(frac=1, random_state=1).set_index("id", drop=False)
    R, Y, T, C = gpi.arrays(R, index, "size", "treatment", ["age", "old"], query="age < 45 and old")
    order = np.argsort(Y)
    assert Y[order].tolist() == [0.1, 2, 3, 4]
    assert R[order, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert T[order].tolist() == [0, 1, 0, 1]
    assert C is not None
    assert C[order].tolist() == [[10, 1], [20, 1], [30, 1], [40, 1]]


@pytest.mark.fault("results")
def test_an_index_table_whose_rows_were_numbered_anew_is_refused(results):
    R, index = gpi.load(results)
    numbered = index.sort_values("size", ascending=False).assign(row=range(6))
    with pytest.raises(DataError, match=r"6 of 6 latents are not those in the index table \(row 0, "):
        gpi.arrays(R, numbered, "size", "treatment")
    assert gpi.arrays(R * 2, index, "size", "treatment")[0][1, 0, 0, 0] == 2  # what the user made of R


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
