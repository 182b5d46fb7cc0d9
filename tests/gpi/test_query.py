"""Queries of the index table: as pandas answers them where no value is missing, as R does where one is."""

from __future__ import annotations

import pandas as pd
import pytest
from gpi_latents.errors import DataError
from gpi_latents.gpi.query import choose

WHOLE = pd.DataFrame(
    {
        "id": ["1", "2", "3", "4"],
        "fips": ["06", "06", "48", "48"],
        "wave": [1, 1, 2, 3],
        "size": [0.5, 1e5, -3.0, 2.0],
        "female": [True, False, True, False],
        "treated": [0, 1, 0, 1],
        "home state": ["CA", "CA", "TX", "TX"],
        "prompt": ["a cat", "a dog & a cat", "it's a `dog`", "12"],
        "date": pd.to_datetime(["2020-01-01", "2020-02-01", "2020-03-01", "2020-04-01"]),
    },
    index=[7, 7, 8, 9],
)
PEOPLE = WHOLE.assign(
    wave=[1, 1, 2, None],
    female=pd.array([True, False, None, False], dtype="boolean"),
    fips=["06", None, "48", "48"],
)


@pytest.mark.parametrize(
    "query",
    [
        "id not in ['1', '2']",
        "id != '3' and wave == 1",
        "wave == 1 & size > 1 | female",
        "not female",
        "~female & ~(fips == '06')",
        "female == True",
        "female != 0",
        "female == treated or wave == 3",
        "treated == True",
        "treated in [True]",
        "female in [0]",
        "1 <= wave < 3",
        "2 != wave",
        "2 < wave",
        "wave == [1, 3]",
        "wave != (1, 3)",
        "wave in [1.0, 2]",
        "size == 1e5 or size == -3",
        "size + 1 > wave * 2",
        "size > size.mean()",
        "sqrt(wave) > 1",
        "`home state` == 'TX' and fips in [\"48\"]",
        "prompt.str.contains('dog') and prompt != 'it\\'s a `dog`'",
        "prompt == 'a dog & a cat' or prompt == '12'",
        "~fips.isin(['06'])",
        "fips.ne('06')",
        "prompt.str.len() == 2",
        "fips < '10'",
        "treated in wave",
        "wave.eq(1) and not (~id.isin(['1'])).astype('bool')",
        "index == 7",
        "date > '2020-02-15'",
        "(wave == 1\n or wave == 3)",
    ],
)
def test_without_missing_values_a_query_chooses_what_pandas_chooses(query):
    chosen = choose(WHOLE, query)
    expected = WHOLE.query(query.replace("\n", " "), engine="python")
    assert 0 < len(expected) < 4
    assert list(WHOLE["id"][chosen]) == list(expected["id"])


@pytest.mark.fault("query")
@pytest.mark.parametrize(
    ("query", "chosen"),  # by the rules of R's ==, !, & and |, and of dplyr's filter(), which drops what is NA
    [
        ("wave != 2", "12"),
        ("not wave == 2", "12"),
        ("wave == 2", "3"),
        ("wave in {2, 3}", "3"),
        ("id not in []", "1234"),
        ("wave > 1", "3"),
        ("wave + 1 != 3", "12"),
        ("fips != '06'", "34"),
        ("female != True", "24"),
        ("not female", "24"),
        ("wave != 2 or female == False", "124"),
        ("wave != 2 and fips != '48'", "1"),
        ("not (wave == 2 and fips == '48')", "12"),
        ("wave.isna()", "4"),
        ("wave.isna() or wave != 2", "124"),
        ("fips == fips", "134"),
        # R's %in% counts a missing value as in no list; here it is not chosen, as in SQL, so that this is wave != 2.
        ("wave not in [2]", "12"),
        ("not wave in [2]", "12"),
        ("~wave.isin([2])", "12"),
    ],
)
def test_a_comparison_with_a_missing_value_is_neither_true_nor_false(query, chosen):
    for table in (PEOPLE, PEOPLE.astype(object), PEOPLE.convert_dtypes()):
        assert "".join(table["id"][choose(table, query)]) == chosen


@pytest.mark.fault("query")
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("id not in [1, 2]", "id holds texts: write id not in ['1', '2']"),
        ("id != 3", "id holds texts: write id != '3'"),
        ("fips != 6", "fips holds texts: write fips != '06'"),
        ("6 != fips", "write fips != '06'"),
        ("fips != 6 or wave == 1", "write fips != '06'"),
        ("`home state` == 1", "`home state` holds texts: write `home state` == '1'"),
        ("wave != '2'", "wave holds numbers: write wave != 2"),
        ("wave in ['1', 2.5]", "wave holds numbers: write wave in [1, 2.5]"),
        ("0 < wave < '2'", "wave holds numbers: write wave < 2"),
        ("wave != 'two'", "wave holds numbers"),
        ("female != 'TRUE'", "female holds True and False: write female != True"),
        ("female != 2", "female holds True and False"),
        ("~id.isin([1, 2])", "id holds texts: write id in ['1', '2']"),
        ("(id == 1).astype('boolean')", "write id == '1'"),
        ("prompt.str.len() != '2'", "prompt.str.len() holds numbers: write prompt.str.len() != 2"),
        ("id != wave", "id holds texts and wave numbers, which are never equal"),
        ("id not in wave", "id holds texts and wave numbers"),
        ("mixed != 1", "mixed holds values of several kinds"),
        ("date != 5", "date holds dates"),
        ("date != 'soon'", "unable to parse: soon"),
        ("wave == None", "write wave.isna()"),
        ("wave != 'NA'", "write wave.notna()"),
        ("fips not in ['NA', '06']", "write fips.notna()"),
        ("female != TRUE", "write True instead of TRUE"),
        ("wave == @wave", "cannot see your variables (@)"),
        ("strenth == 0", "no column 'strenth'"),
        ("home.state == 'CA'", "no column 'home'. Its columns (those with blanks or dots in them go into backticks"),
        ("`home` == 'CA'", "no column 'home'"),
        ("table == 1", "no column 'table'"),
        ("wave = 2", "Maybe you meant '=='"),
        ("wave is 2", "wave is 2: write == or !="),
        ("'a' in prompt", "compares no column with a value"),
        ("prompt in 'a cat'", "compares no column with a value"),
        ("1 == 1", "compares no column with a value"),
        ("wave + 1", "wave + 1 is no condition, such as wave + 1 == 1"),
        ("size.mean()", "size.mean() is no condition"),
        ("treated", "treated is no condition, such as treated == 1"),
        ("wave == 1 and treated", "treated is no condition"),
        ("", "is no condition"),
        ("wave == 1 && female", "invalid syntax"),
        ("wave == 9", "chooses none of the 4 rows"),
        (["wave == 1"], "The query must be a text"),
    ],
)
def test_what_would_be_answered_wrongly_is_refused_with_what_to_write(query, message):
    with pytest.raises(DataError) as caught:
        choose(PEOPLE.assign(mixed=[1, "1", 2, "2"]), query)
    assert message in str(caught.value)
    if isinstance(query, str):
        assert str(caught.value).startswith(f"The query {query!r} ")
