"""The arrays of `gpi_pack`: of the same items, without gaps, and refused in plain words."""

from __future__ import annotations

import warnings

import gpi_latents as gpi
import numpy as np
import pandas as pd
import pytest
from gpi_latents.errors import DataError
from helpers.made_results import edit, make_results


@pytest.fixture
def results(tmp_path):
    """A folder of results as the workflow leaves it, with a latent of its own for each item of `SHEET`."""
    return make_results(tmp_path / "results")


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
        ({"query": "strength == 0"}, 'as by drop_missing=True or query="outcome.notna()"'),
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
        (["m", "NA", "f"], "covariate", "holds texts, not numbers ('f'; 'm'): give dummies=True"),
        (
            ["1", "2", "B"],
            "covariate",
            "'B' in row 5 (mia). Complete the sheet, or leave them out, as by query=\"id not",
        ),
        (["1", "2", "B"], "covariate", "write index['x'] = index['x'].astype('category') and give dummies=True"),
        (["a", "b", "c"], "outcome", "holds texts, not numbers ('a'; 'b'; 'c'): give a column of numbers"),
        (
            ["06", "48"],
            "covariate",
            "codes: if they name groups, give dummies=True; if they are numbers, write index['x'] = pd.to_numeric(",
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


def test_rows_with_a_gap_are_left_out_on_request_and_named(results):
    def gaps(index):
        return index.assign(
            treatment=["0", "1", "", "1", "0", "1"],
            outcome=["1", "2", "3", " ", "5", "NA"],
            x=["a", "b", "a", "", "a", "b"],
        )

    edit(results, gaps)
    R, index = gpi.load(results)
    text = (
        "3 of 6 rows are left out: no outcome 'outcome' in 2 (row 3, kim; row 5, mia), "
        "no treatment 'treatment' in 1 (row 2, eve), no covariate 'x' in 1 (row 3, kim)"
    )
    with pytest.warns(UserWarning, match="rows are left out") as caught:
        chosen, Y, T, C = gpi.arrays(R, index, "outcome", "treatment", "x", drop_missing=True, dummies=True)
    assert [str(warning.message) for warning in caught] == [text]
    assert caught[0].filename == __file__
    assert chosen[:, 0, 0, 0].tolist() == [0, 1, 4]
    assert (Y.tolist(), T.tolist(), C.tolist()) == ([1, 2, 5], [0, 1, 0], [[0], [1], [0]])
    with warnings.catch_warnings(action="error"):  # nothing is left out of the rows that the query chooses
        assert len(gpi.arrays(R, index, "outcome", "treatment", query="row in [0, 1, 4]", drop_missing=True)[0]) == 3


def test_what_is_no_number_is_not_taken_for_missing(results):
    R, index = gpi.load(results)
    with (
        pytest.warns(UserWarning, match=r"1 of 6 rows are left out: no outcome 'outcome' in 1 \(row 3, kim\)"),
        pytest.raises(DataError, match=r"not a number in 1 of 5 rows: 'n/a' in row 4 \(lee\)"),
    ):
        gpi.arrays(R, index, "outcome", "treatment", drop_missing=True)
    with pytest.raises(DataError, match=r"not a number in 1 of 6 rows: inf in row 1 "):
        gpi.arrays(R, index.assign(size=[1, np.inf, 2, 3, 4, 5]), "size", "treatment", drop_missing=True)
    with pytest.raises(DataError, match="6 of 6 rows are left out: no outcome 'size' in 6 "):
        gpi.arrays(R, index.assign(size=np.nan), "size", "treatment", drop_missing=True)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["b", " a", "c", "a ", "b", "c"], [[1, 0], [0, 0], [0, 1], [0, 0], [1, 0], [0, 1]]),
        (["06", "48", "06", "1", "48", "06"], [[0, 0], [0, 1], [0, 0], [1, 0], [0, 1], [0, 0]]),
        (["TRUE", "FALSE"] * 3, [[1], [0]] * 3),
        (["3", "10", "2"] * 2, [[3], [10], [2]] * 2),
        (pd.Categorical([3, 10, 2] * 2), [[1, 0], [0, 1], [0, 0]] * 2),
        (pd.Categorical(["lo", "hi"] * 3, ["lo", "mid", "hi"]), [[0], [1]] * 3),
    ],
)
def test_texts_and_categories_become_columns_of_0_and_1_on_request(results, cells, expected):
    """One column for each value but the first, between the columns of the other covariates."""
    R, index = gpi.load(results)
    index = index.assign(x=cells)
    C = gpi.arrays(R, index, "row", "treatment", ["size", "x", "strength"], dummies=True)[3]
    assert C is not None
    assert C.dtype == np.float64
    assert C[:, 0].tolist() == index["size"].tolist()
    assert C[:, -1].tolist() == index["strength"].tolist()
    assert C[:, 1:-1].tolist() == expected


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a", "b", "NA"] * 2, r"'x' is missing in 2 of 6 rows: missing in row 2 \(eve\).*drop_missing=True"),
        (["a"] * 6, "'x' is 'a' in all 6 rows: leave it out"),
        (["41", "old", "39"] * 2, r"not a number in 2 of 6 rows: 'old' in row 1 \(bob\)"),
        (pd.Categorical(["1", None, "2"] * 2), r"missing in 2 of 6 rows: missing in row 1 \(bob\)"),
    ],
)
def test_columns_of_0_and_1_are_made_of_whole_groups_only(results, cells, message):
    R, index = gpi.load(results)
    with pytest.raises(DataError, match=message):
        gpi.arrays(R, index.assign(x=cells), "row", "treatment", "x", dummies=True)


def test_further_columns_come_along_in_the_order_of_the_latents(results):
    R, index = gpi.load(results)
    index = index.assign(weight=[1.5, np.nan, 2, 3, 4, 5], village=pd.Categorical(list("abcabc")))[::-1]
    index = index.set_index("id", drop=False)
    chosen, Y, _, _, table = gpi.arrays(
        R, index, "size", "treatment", also=["weight", "village", "size"], query="row < 4"
    )
    assert table["row"].tolist() == chosen[:, 0, 0, 0].tolist() == [3, 2, 1, 0]
    assert list(table.columns) == ["row", "id", "weight", "village", "size"]
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table["village"].dtype == "category"
    assert table["weight"].isna().tolist() == [False, False, True, False]
    assert table["size"].tolist() == Y.tolist()
    with pytest.warns(UserWarning, match=r"no value of 'weight' in 1 \(row 1, bob\)"):
        table = gpi.arrays(R, index, "size", "treatment", also="weight", drop_missing=True)[4]
    assert table["weight"].tolist() == [5, 4, 3, 2, 1.5]
    with pytest.raises(DataError, match="no column 'wieght' for the further column"):
        gpi.arrays(R, index, "size", "treatment", also="wieght")
