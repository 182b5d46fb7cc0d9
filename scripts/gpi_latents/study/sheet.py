"""Read and check the sheet."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gpi_latents.errors import InputError, error_list
from gpi_latents.files import file_problems
from gpi_latents.plan import MISSING, RESULT_COLUMNS
from gpi_latents.recipe import SETTINGS, steps_problem
from gpi_latents.study.settings import COLUMNS, checked, parse_cell, suggestion
from gpi_latents.study.table import GROUPED, SEPARATORS, decimal_points, read_cells, surplus_columns

# Columns that the index table and the plan add, so a sheet cannot have them.
RESERVED = ["row", "sheet_row", *RESULT_COLUMNS]


def read_items(config: Mapping[str, Any], check_images: bool = True) -> pd.DataFrame:
    """Read and check the sheet.

    Args:
        config: as `settings.load_config` returns it.
        check_images: also check that every image is a file, by one scan per folder.

    Returns:
        One row per item in sheet order, labelled by its row in the sheet (the header is row 1): `id`, `image`,
        `prompt`, the `SETTINGS` with the config's values where the sheet has none, then the carried columns as text.
        Each draw of a row with several is an item; if there are such rows, `item` (the id in the sheet) and `draw`
        (from 1) come before the carried columns.
        Its `attrs["notes"]` are sentences, for the user, on what was read otherwise than it is written: separators,
        columns that are left out, decimal commas.

    Raises:
        InputError: naming the file and, for the first 20 problems, row and column.
    """
    path = config["items"]
    sheet = _read_csv(path)
    id_hint = ""
    if made_ids := "id" not in sheet:
        sheet.insert(0, "id", [Path(image).stem for image in sheet["image"]])
        id_hint = " (made from the image's file name: give the sheet a column id to choose another)"
    problems: dict[tuple[int, str], str] = {}  # by row and column; the first of a cell is shown
    items = pd.concat([_parse(sheet, config, problems), sheet[[name for name in sheet if name not in COLUMNS]]], axis=1)
    for row in [row for row, column in problems if column == "id" and sheet["id"][row].strip()]:
        name = sheet["id"][row]
        problem = f"{name!r} is not a valid id." if made_ids else problems[row, "id"]
        problems[row, "id"] = f"{problem} Valid would be {safe_id(name)}"
    _check_draws(items, config, problems)
    items = _drawn(items, problems)
    _check_color(config, list(items))
    _check_rows(items, problems)
    if check_images and (bad := file_problems(items["image"].unique())):
        for row, image in items["image"].items():
            if image in bad:
                problems.setdefault((row, "image"), bad[image])
    _check_folders(config, [*items["image"], path])
    if problems:
        order = {name: number for number, name in enumerate(sheet)}
        lines = [
            f"row {row}, column {column}: {problems[row, column]}{id_hint if column == 'id' else ''}"
            for row, column in sorted(problems, key=lambda cell: (cell[0], order.get(cell[1], -1)))
        ]
        raise InputError(error_list(f"The sheet {path} (its header is row 1)", lines))
    items.attrs["notes"] = sheet.attrs["notes"]
    return items


def safe_id(name: str) -> str:
    """The valid id that is most like a name; a valid one is its own.

    Accents go, and `_` stands for what an id cannot have: `Köln (1)` gives `Koln_1`. Where nothing is left, `image`.
    """
    letters = [letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter)]
    words = re.sub(r"[^A-Za-z0-9._-]+", " ", "".join(letters)).split()
    return "_".join(words).lstrip(".")[:128] or "image"


def index_table(items: pd.DataFrame, recipes: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The index table without the latents' digests.

    Args:
        items: as `read_items` returns it.
        recipes: of all items, in sheet order.

    Returns:
        `row` (0..N-1), `id`, `image`, `prompt`, the settings as the recipe holds them (empty where a setting has no
        effect), `item` and `draw` if there are several draws of one, then the carried columns, all in sheet order.
    """
    recipes = list(recipes)
    table = items.reset_index(drop=True)
    for name in SETTINGS:
        table[name] = pd.Series([chosen.get(name, "") for chosen in recipes], dtype=object)
    table.insert(0, "row", range(len(table)))
    return table


def _read_csv(path: str) -> pd.DataFrame:
    """The sheet with every cell as its text, labelled by row (the header is row 1); notes and separator are attrs."""
    header, rows, separator = read_cells(path, COLUMNS)
    surplus, notes = surplus_columns(header, rows)
    _check_header(path, header, surplus)
    names, *cells = [
        [cell for place, cell in enumerate(each) if place not in surplus] for each in [header, *rows.values()]
    ]
    if lines := [
        f"row {row}: {len(each)} cells, the header has {len(header)}"
        for (row, each), kept in zip(rows.items(), cells, strict=True)
        if len(kept) != len(names)
    ]:
        message = error_list(f"The sheet {path}", lines)
        if all(len(each) == len(header) + 1 for each in rows.values()):
            message += (
                "\nNumbers with decimal commas need another separator or double quotes. If R's write.table left out "
                "the name of the row numbers, use row.names=FALSE"
            )
        raise InputError(message)
    if not rows:
        raise InputError(f"The sheet {path} has a header but no rows")
    table = pd.DataFrame(cells, index=list(rows), columns=names, dtype=object)
    if separator != ",":
        notes.insert(0, f"it is separated by {SEPARATORS[separator]}s")
        for name in names:
            if name not in COLUMNS or COLUMNS[name].annotation in (int, float):
                table[name], note = decimal_points(name, table[name].tolist(), is_setting=name in COLUMNS)
                notes += [note] if note else []
    table.attrs |= {"notes": [f"The sheet {path}: {note}" for note in notes], "separator": separator}
    return table


def _check_header(path: str, header: list[str], surplus: set[int]) -> None:
    problems = []
    names = [name for place, name in enumerate(header) if place not in surplus]
    for name in filter(str.strip, dict.fromkeys(names)):
        if names.count(name) > 1:
            problems.append(f"column {name!r} appears {names.count(name)} times")
        if name in RESERVED:
            problems.append(f"column {name!r} has a name that the index table needs for itself: give it another")
        elif name not in COLUMNS and (near := suggestion(name, COLUMNS, cutoff=0.85)):
            problems.append(f"unknown column {name!r}{near} If it is a variable of your own, give it another name")
    problems += [
        f"column {place + 1} has no name"
        for place, name in enumerate(header)
        if place not in surplus and not name.strip()
    ]
    problems += [f"column {name!r} is missing" for name in ("image", "prompt") if name not in header]
    if problems:
        raise InputError(error_list(f"The header of the sheet {path}", problems))


def _check_color(config: Mapping[str, Any], columns: list[str]) -> None:
    color = config["report_color"]
    if config["report"] and color is not None and color not in columns:
        near = suggestion(color, columns)
        raise InputError(f"key report_color: the sheet {config['items']} has no column {color!r}{near}")


def _parse(sheet: pd.DataFrame, config: Mapping[str, Any], problems: dict[tuple[int, str], str]) -> pd.DataFrame:
    """All columns with a meaning, parsed; each distinct text of a column once, since there may be very many rows."""
    columns = {}
    for name in COLUMNS:
        if name not in sheet:
            # The config of an older version's results lacks the keys that are new.
            columns[name] = [config.get(name, COLUMNS[name].default)] * len(sheet)
            continue
        parsed = {text: parse_cell(name, text, config.get(name)) for text in sheet[name].unique()}
        columns[name] = [parsed[text][0] for text in sheet[name]]
        bad = {text: problem for text, (_, problem) in parsed.items() if problem}
        if COLUMNS[name].annotation is int and sheet.attrs["separator"] != ",":  # there 1.000 may be a thousand
            doubtful = [text for text in parsed if re.fullmatch(GROUPED, text.strip(), re.ASCII)]
            bad |= {text: f"{text!r} may be thousands: write the number without points and commas" for text in doubtful}
        if bad:
            problems |= {(row, name): bad[text] for row, text in sheet[name].items() if text in bad}
    return pd.DataFrame(columns, index=sheet.index, dtype=object)


def _check_draws(items: pd.DataFrame, config: Mapping[str, Any], problems: dict[tuple[int, str], str]) -> None:
    """Find rows that cannot have as many draws as they ask for."""
    for row, item_id, strength, seed, draws in items[["id", "strength", "seed", "draws"]].itertuples(name=None):
        if draws == 1 or (row, "draws") in problems:
            continue
        if config["posterior"] == "mode" and strength == 0:
            problem = f"all {draws} would be the same, since posterior 'mode' at strength 0 leaves nothing to chance"
            problems[row, "draws"] = f"{problem}: write 1, or take posterior 'sample'"
        # Its last draw has the longest id and the largest seed.
        if (row, "id") not in problems and (problem := checked("id", f"{item_id}_{draws}")[1]):
            problems[row, "id"] = f"of its draw {draws}, {problem}"
        if (row, "seed") not in problems and (problem := checked("seed", seed + draws - 1)[1]):
            problems[row, "seed"] = f"the seed of its draw {draws}, {problem}"


def _drawn(items: pd.DataFrame, problems: dict[tuple[int, str], str]) -> pd.DataFrame:
    """Each draw as an item, as if the sheet had a row for it; without the column `draws`."""
    draws = [1 if (row, "draws") in problems else draws for row, draws in items["draws"].items()]
    items = items.drop(columns="draws")
    if max(draws) == 1:
        return items
    if taken := [name for name in ("item", "draw") if name in items]:
        raise InputError(
            f"The sheet's column {taken[0]!r} has a name that the index table needs where items have several draws: "
            "give it another"
        )
    items = items.loc[items.index.repeat(draws)]
    numbers = [number for count in draws for number in range(1, count + 1)]
    items.insert(place := items.columns.get_loc(SETTINGS[-1]) + 1, "item", items["id"])
    items.insert(place + 1, "draw", numbers)
    counts = [count for count in draws for _ in range(count)]
    each = list(zip(items["id"], items["seed"], counts, numbers, strict=True))
    items["id"] = [f"{item}_{number}" if count > 1 else item for item, _, count, number in each]
    items["seed"] = [seed + number - 1 if isinstance(seed, int) else seed for _, seed, _, number in each]
    return items


def _check_rows(items: pd.DataFrame, problems: dict[tuple[int, str], str]) -> None:
    """Find ids that are not unique, and settings that do not work together."""
    first: dict[str, tuple[int, str]] = {}
    hint = " (the draws of an item x are x_1, x_2 and so on)" if "draw" in items else ""
    for row, item_id in items["id"].items():
        earlier, other = first.setdefault(item_id.lower(), (row, item_id))
        if earlier != row and other == item_id:
            problems.setdefault((row, "id"), f"{item_id!r} is in row {earlier} already{hint}")
        elif earlier != row:
            problem = f"{item_id!r} and {other!r} of row {earlier} differ only in case, and some disks ignore case"
            problems.setdefault((row, "id"), problem + hint)
    columns = items[["prompt", "strength", "num_inference_steps"]]
    for row, prompt, strength, steps in columns.itertuples(name=None):
        if (row, "strength") in problems:
            continue
        if (row, "num_inference_steps") not in problems and (problem := steps_problem(strength, steps)):
            problems[row, "strength"] = problem
        if strength > 0 and prompt.strip() in MISSING - {""}:
            problem = f"{prompt!r} stands for a missing value: write the prompt, or leave the cell empty for none"
            problems.setdefault((row, "prompt"), problem)


def _check_folders(config: Mapping[str, Any], own_files: Iterable[str]) -> None:
    """Check that no results would be written among the user's own files."""
    own = {os.path.dirname(file): file for file in own_files}
    at_risk = {os.path.realpath(folder): file for folder, file in own.items()}
    folders = {
        "output_hidden_dir": config["output_hidden_dir"],
        "output_image_dir": config["output_image_dir"],
        "stacked": os.path.dirname(config["stacked"]),
    }
    for key, folder in folders.items():
        if folder is not None and (file := at_risk.get(os.path.realpath(folder))):
            raise InputError(
                f"The config's key {key} puts results into the folder of {file!r}, one of yours: name another folder"
            )
    for folder in ("results", "results/checksums", "logs", "logs/extract"):
        if file := at_risk.get(os.path.realpath(folder)):
            raise InputError(f"{file!r} is in {folder}, the folder of the results: put it into another folder")
