"""Items with several draws: the mean of their latents, or groups that no fold splits."""

from __future__ import annotations

import hashlib
import json

import gpi_latents as gpi
import numpy as np
import pandas as pd
import pytest
from gpi_latents.errors import DataError

ITEMS = {"7": 3, "20": 1, "1": 2, "3": 2}  # how many draws each has


@pytest.fixture
def results(tmp_path):
    """A folder of results as the workflow leaves it, of random latents."""
    folder = tmp_path / "results"
    folder.mkdir()
    R = np.random.default_rng(0).standard_normal((sum(ITEMS.values()), 4, 2, 3)).astype(np.float32)
    np.save(folder / "latents.npy", R)
    lines = [(item, draw) for item, count in ITEMS.items() for draw in range(1, count + 1)]
    index = pd.DataFrame(
        {
            "row": range(len(R)),
            "id": [f"{item}_{draw}" if ITEMS[item] > 1 else item for item, draw in lines],
            "seed": [41 + draw for _, draw in lines],
            "sha256": [hashlib.sha256(latent.tobytes()).hexdigest() for latent in R],
            "item": [item for item, _ in lines],
            "draw": [draw for _, draw in lines],
            "treatment": [list(ITEMS).index(item) % 2 for item, _ in lines],
            "outcome": [list(ITEMS).index(item) / 2 for item, _ in lines],
            "school": ["s" if item == "20" else "t" for item, _ in lines],
        }
    )
    index.to_csv(folder / "index.csv", index=False)
    (folder / "provenance.json").write_text(json.dumps({"config": {"stacked": "results/latents.npy"}}))
    return folder


def test_the_latent_of_an_item_is_the_mean_of_its_draws(results):
    R, index = gpi.load(results)
    assert index["item"].tolist() == ["7"] * 3 + ["20"] + ["1"] * 2 + ["3"] * 2
    for table in (index, index[::-1]):
        means, Y, T, C, also = gpi.arrays(R, table, "outcome", "treatment", also=["item", "school"])
        assert also["item"].tolist() == list(table["item"].unique())
        expected = [R[index["item"] == item].astype(np.float64).mean(axis=0) for item in also["item"]]
        assert np.array_equal(means, np.array(expected, dtype=np.float32))
        assert (means.dtype, T.dtype, C) == (np.float32, np.int64, None)
        assert [(list(ITEMS)[int(2 * y)], int(2 * y) % 2) for y in Y] == list(zip(also["item"], T, strict=True))
        assert also["school"].tolist() == ["s" if item == "20" else "t" for item in also["item"]]
    flat = gpi.arrays(R, index, "outcome", "treatment", query="draw <= 2 and item != '1'", flat=True)[0]
    assert np.array_equal(flat[0], R[:2].astype(np.float64).mean(axis=0).astype(np.float32).ravel())
    assert flat.shape == (3, 24)


def test_separate_draws_come_with_the_item_by_which_to_cluster(results):
    R, index = gpi.load(results)
    separate, Y, T, _, also = gpi.arrays(R, index, "outcome", "treatment", also="item", draws="separate")
    assert np.array_equal(separate, R)
    assert (len(Y), len(T)) == (8, 8)
    assert also["item"].equals(index["item"])


def test_draws_of_an_item_whose_columns_differ_are_refused(results):
    R, index = gpi.load(results)
    index.loc[1, "outcome"] = 7.5
    with pytest.raises(DataError, match=r"'outcome' differs between draws of the same item \('7'\): give them one"):
        gpi.arrays(R, index, "outcome", "treatment")
    assert len(gpi.arrays(R, index, "outcome", "treatment", draws="separate")[0]) == 8
    index.loc[1, "outcome"] = np.nan
    with pytest.raises(DataError, match="'outcome' differs"):
        gpi.arrays(R, index, "outcome", "treatment")
    with pytest.warns(UserWarning, match="1 of 8 rows are left out"):
        means = gpi.arrays(R, index, "outcome", "treatment", drop_missing=True)[0]
    assert np.array_equal(means[0], R[[0, 2]].astype(np.float64).mean(axis=0).astype(np.float32))
    index.loc[1, "item"] = None
    with pytest.raises(DataError, match=r"'item' is missing in 1 rows \(row 1, 7_2\)"):
        gpi.arrays(R, index, "outcome", "treatment")
    with pytest.raises(DataError, match="draws must be 'mean' or 'separate', not 'first'"):
        gpi.arrays(R, index, "outcome", "treatment", draws="first")


def test_columns_of_the_users_that_have_these_names_average_nothing(results):
    R, index = gpi.load(results)
    assert np.array_equal(gpi.arrays(R, index.drop(columns="draw"), "outcome", "treatment")[0], R)
    index["id"], index["item"] = list("abcdefgh"), [1, 1, 2, 2, 3, 3, 4, 4]
    assert np.array_equal(gpi.arrays(R, index, "outcome", "treatment")[0], R)


def test_draws_whose_items_were_changed_never_become_rows_unasked(results):
    """As by index["item"].astype(int) for a join, where the ids in the sheet have leading zeros."""
    R, index = gpi.load(results)
    index["id"], index["item"] = "00" + index["id"], index["item"].astype(int)
    index["draw"] = index["draw"].astype("Int64")
    for table in (index, index[::-1], index.astype({"draw": float})):
        with pytest.raises(DataError, match=r"'item' no longer holds the ids .* \(it is (\d) for 00\1_\d, not 00\1\)"):
            gpi.arrays(R, table, "outcome", "treatment")
    assert len(gpi.arrays(R, index, "outcome", "treatment", draws="separate")[0]) == 8
    # One draw of each: 020 has no other.
    assert np.array_equal(gpi.arrays(R, index, "outcome", "treatment", query="draw == 1")[0], R[[0, 3, 4, 6]])
    assert np.array_equal(gpi.arrays(R, index, "outcome", "treatment", query="draw == 2")[0], R[[1, 5, 7]])
