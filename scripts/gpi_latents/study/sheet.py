"""Read and check the sheet."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gpi_latents.errors import InputError, error_list
from gpi_latents.files import file_problems
from gpi_latents.plan import PLAN_COLUMNS
from gpi_latents.recipe import SETTINGS, recipe, recipe_digest, steps_problem
from gpi_latents.study.settings import parse_cell, schema, suggestion, value_problem

# Columns that the index table adds, so a sheet cannot have them.
INDEX_COLUMNS = ["row", "sha256", *PLAN_COLUMNS]


def read_items(config: Mapping[str, Any], check_images: bool = True) -> pd.DataFrame:
    """Read and validate the sheet.

    Args:
        config: as `load_config` returns it.
        check_images: also check that every image is a file, by one directory scan per folder.

    Returns:
        One line per item in sheet order, labelled by its row in the sheet (the header is row 1): `id`, `image`,
        `prompt`, the `SETTINGS` with the config's values where the sheet has none, then the carried columns as text.

    Raises:
        InputError: naming the file and, for the first 20 problems, row and column.
    """
    path = config["items"]
    sheet = _read_csv(path)
    rules = schema()["$defs"]["item"]["properties"]
    _check_header(path, list(sheet.columns), rules)
    _check_color(config, list(sheet.columns))
    problems: list[tuple[int, str, str]] = []

    if "id" not in sheet:
        sheet.insert(0, "id", [Path(image).stem for image in sheet["image"]])
        id_hint = " (made from the image's file name: give the sheet a column id to choose another)"
    else:
        id_hint = ""

    items = pd.DataFrame(index=sheet.index)
    for name, rule in rules.items():
        if name in ("id", "image", "prompt"):
            texts = sheet[name]
            parsed = {text: (text, value_problem(text, rule)) for text in texts.unique()}
        elif name in sheet:
            texts = sheet[name]
            rule = schema()["properties"][name]
            parsed = {text: parse_cell(text, rule, config[name]) for text in texts.unique()}
        else:
            items[name] = pd.Series([config[name]] * len(sheet), index=sheet.index, dtype=object)
            continue
        items[name] = pd.Series([parsed[text][0] for text in texts], index=sheet.index, dtype=object)
        bad = {text for text, (_, problem) in parsed.items() if problem}
        hint = id_hint if name == "id" else ""
        problems += [(row, name, parsed[text][1] + hint) for row, text in texts.items() if text in bad]

    faulty = {(row, name) for row, name, _ in problems}
    for row, strength, steps in zip(items.index, items["strength"], items["num_inference_steps"], strict=True):
        if faulty.isdisjoint({(row, "strength"), (row, "num_inference_steps")}):
            problem = steps_problem(strength, steps)
            problems += [(row, "strength", problem)] if problem else []
    usable = {row: item_id for row, item_id in items["id"].items() if (row, "id") not in faulty}
    problems += [
        (row, "id", text + id_hint) for row, text in _duplicates(items["id"], _ignores_case(path)) if row in usable
    ]
    problems += [
        (row, "id", f"{item_id!r} ends in 20 times the same, which Snakemake takes for an endless loop{id_hint}")
        for row, item_id in usable.items()
        if _is_periodic(item_id)
    ]
    if check_images:
        bad_images = file_problems(items["image"].unique())
        problems += [
            (row, "image", bad_images[image])
            for row, image in items["image"].items()
            if image in bad_images and (row, "image") not in faulty
        ]
    if clash := _clash(config, {os.path.dirname(own): own for own in [*items["image"], path]}):
        raise InputError(clash)
    if problems:
        order = {name: i for i, name in enumerate(sheet.columns)}
        problems.sort(key=lambda problem: (problem[0], order.get(problem[1], -1)))
        lines = [f"row {row}, column {column}: {text}" for row, column, text in problems]
        raise InputError(error_list(f"The sheet {path} (its header is row 1)", lines))

    carried = [name for name in sheet.columns if name not in rules]
    return pd.concat([items, sheet[carried]], axis=1)


def _read_csv(path: str) -> pd.DataFrame:
    """The sheet with every cell as the text that stands there, labelled by row (the header is row 1)."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"No sheet at {path} (looked from {os.getcwd()}): name yours by the config key items"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"The sheet {path} is not UTF-8 (line {line}): save it again as 'CSV UTF-8'") from None
    except OSError as error:
        raise InputError(f"The sheet {path} cannot be read: {error.strerror}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"The sheet {path} is not a CSV file: line {line} has a NUL byte")
    try:
        # The Python engine alone tells a cell that is not there from an empty one.
        cells = pd.read_csv(
            io.StringIO(text), header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, engine="python"
        )
    except pd.errors.EmptyDataError:
        raise InputError(f"The sheet {path} is empty: it needs a header and at least one row") from None
    except pd.errors.ParserError as error:
        raise InputError(
            f"The sheet {path} is not a regular CSV file ({str(error).strip()}): "
            'a text with a comma or a newline stands in double quotes, and a quote in it is doubled ("")'
        ) from None
    cells.index = pd.RangeIndex(1, len(cells) + 1)
    blank = (cells.fillna("") == "").all(axis=1)
    if blank.all() or blank.iloc[0]:
        raise InputError(f"The sheet {path} has no header in row 1")
    short = cells.isna().any(axis=1) & ~blank
    if short.any():
        problems = [
            f"row {row}: {cells.loc[row].notna().sum()} cells, the header has {cells.shape[1]}"
            for row in cells.index[short]
        ]
        raise InputError(error_list(f"The sheet {path}", problems))
    sheet = cells[~blank].iloc[1:]
    sheet.columns = cells.iloc[0].tolist()
    if len(sheet) == 0:
        raise InputError(f"The sheet {path} has a header but no rows")
    return sheet


def _check_header(path: str, columns: list[str], rules: Mapping[str, Any]) -> None:
    problems = []
    if len(columns) == 1 and (found := re.search(r"[;\t|]", columns[0])):
        raise InputError(
            f"The sheet {path} is separated by {found.group()!r}, not by commas: save it again as CSV with commas"
        )
    for name in dict.fromkeys(columns):
        if columns.count(name) > 1:
            problems.append(f"column {name!r} stands there {columns.count(name)} times")
        if name in INDEX_COLUMNS:
            problems.append(f"column {name!r} has a name that the index table needs for itself: give it another")
        elif name not in rules and (near := suggestion(name, rules, cutoff=0.85)):
            problems.append(f"unknown column {name!r}{near} If it is a variable of your own, give it another name")
        elif name.strip() == "":
            problems.append(f"column {columns.index(name) + 1} has no name")
    for name in schema()["$defs"]["item"]["required"]:
        if name not in columns:
            problems.append(f"column {name!r} is missing")
    if problems:
        raise InputError(error_list(f"The header of the sheet {path}", problems))


def _check_color(config: Mapping[str, Any], columns: list[str]) -> None:
    color = config["report_color"]
    known = [*columns, *(name for name in ["id", *SETTINGS] if name not in columns)]
    if config["report"] and color is not None and color not in known:
        near = suggestion(color, known, cutoff=0.6)
        raise InputError(f"key report_color: the sheet {config['items']} has no column {color!r}{near}")


def _duplicates(ids: pd.Series, ignores_case: bool) -> Iterator[tuple[int, str]]:
    first: dict[str, int] = {}
    for row, item_id in ids.items():
        earlier = first.setdefault(item_id.lower() if ignores_case else item_id, row)
        if earlier == row:
            continue
        if ids[earlier] == item_id:
            yield row, f"{item_id!r} stands in row {earlier} already"
        else:
            yield row, f"{item_id!r} and {ids[earlier]!r} of row {earlier} name the same files on this disk"


def _ignores_case(path: str) -> bool:
    """Whether the disk takes `A` and `a` for one name, as those of macOS and Windows do."""
    other = Path(path).with_name(Path(path).name.swapcase())
    return other != Path(path) and os.path.exists(other) and os.path.samefile(path, other)


def _is_periodic(text: str) -> bool:
    """Whether Snakemake takes a wildcard's value for an endless loop: it ends in 20 times the same."""
    return text.count(text[-1:]) >= 20 and bool(re.search(r"(.+)\1{19}$", text))


def _clash(config: Mapping[str, Any], own: Mapping[str, str]) -> str:
    """Why results would lie among the user's own files, one of which `own` names by its folder; empty if not."""
    at_risk = {os.path.realpath(folder): file for folder, file in own.items()}
    folders = {
        "output_hidden_dir": config["output_hidden_dir"],
        "output_image_dir": config["output_image_dir"],
        "stacked": os.path.dirname(config["stacked"]),
    }
    for key, folder in folders.items():
        if folder is not None and (file := at_risk.get(os.path.realpath(folder))):
            return f"The config's key {key} puts results into the folder of {file!r}, one of yours: name another folder"
    for folder in ("results", "results/checksums", "logs", "logs/extract"):
        if file := at_risk.get(os.path.realpath(folder)):
            return f"{file!r} lies in {folder}, the folder of the results: put it into another folder"
    return ""


def index_table(config: Mapping[str, Any], items: pd.DataFrame) -> pd.DataFrame:
    """The index table without the latents' digests.

    Returns:
        `row` (0..N-1), `id`, `image`, `prompt`, the settings as the recipe holds them (empty where a setting plays no
        part), then the carried columns, all in sheet order.
    """
    known = items[["prompt", *SETTINGS]]
    recipes = [recipe(config, item) for item in known.itertuples(index=False)]
    table = items.drop(columns=SETTINGS).reset_index(drop=True)
    for place, name in enumerate(SETTINGS, start=3):
        values = pd.Series([chosen.get(name, "") for chosen in recipes], dtype=object)
        table.insert(place, name, values)
    table.insert(0, "row", range(len(table)))
    return table


def table_digest(table: pd.DataFrame) -> str:
    """SHA-256 of an index table's text, hexadecimal."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def plan_table(config: Mapping[str, Any], items: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The index table with the `plan.PLAN_COLUMNS` before it.

    Args:
        config: as `settings.load_config` returns it.
        items: as `read_items` returns it.
        table: as `index_table` returns it.
    """
    known = items[["prompt", *SETTINGS]].itertuples(index=False)
    table = table.copy()
    table.insert(0, "sheet_row", list(items.index))
    table.insert(1, "recipe_sha256", [recipe_digest(recipe(config, item)) for item in known])
    return table
