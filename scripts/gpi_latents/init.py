"""A new study from a folder of pictures: its sheet, joined with a table of the user's, and its config."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import chdir
from pathlib import Path

from PIL import Image

from gpi_latents import paths
from gpi_latents.core.opening import FORMATS
from gpi_latents.errors import InputError, bulleted, listed
from gpi_latents.files import csv_text
from gpi_latents.join import Table, joined_table
from gpi_latents.study.settings import COLUMNS, KEYS, checked, load_config, suggestion
from gpi_latents.study.sheet import read_items, safe_id

SHEET, CONFIG = "config/items.csv", "config/config.yaml"
PROMPT = "no change"
OTHER_FILES = {"thumbs.db", "desktop.ini"}  # what systems put beside pictures; `.DS_Store` and `._x` are hidden
OTHER_FOLDERS = {"@eaDir", "__MACOSX"}  # of previews, made by disk stations and in archives
ID_LENGTH = 100  # leaves room for the number of a draw
SPELT = str.maketrans({"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"})
SHOWN = 5  # of what is left out


def init(
    study: str,
    pictures: str,
    table: str | None = None,
    by: str | None = None,
    prompt: str | None = None,
    model: str | None = None,
) -> str:
    """Make the sheet and the config of a study. No file that exists is changed.

    Args:
        study: its folder, which is made if there is none.
        pictures: a folder, of which all pictures are taken, those in its sub-folders too.
        table: a CSV file with one row per picture; the sheet gets its rows in their order, with its columns. Pictures
            without a row, and rows without a picture, are left out and named.
        by: the table's column with the names of the pictures; None finds it.
        prompt: for all rows; None is `PROMPT`, or the table's own column `prompt`.
        model: the `model_id`; None is the default.

    Returns:
        What was made and what was left out, as a text for the user.

    Raises:
        InputError: there is a sheet already, no picture, or something that a sheet cannot hold.
        OSError: a file cannot be written.
    """
    _check_new(study, model)
    found, others = find_pictures(pictures, study)
    others = [name for name in others if not (table and _is_same(os.path.join(pictures, name), table))]
    if not found:
        raise InputError(". ".join(filter(None, [f"There is no picture in {pictures}", _others(others)])))
    ids = dict(zip(found, picture_ids(found), strict=True))
    images = {name: paths.from_where(os.path.join(pictures, name), study) for name in found}
    if by is not None and table is None:
        raise InputError(f"--by {by} names a column of your table: give that too, by --table FILE.csv")
    if table is None:
        header, separator = ["id", "image", "prompt"], ","
        rows = {row: [ids[name], images[name], prompt or PROMPT] for row, name in enumerate(found, start=2)}
        used, lines = found, []
    else:
        joined = joined_table(table, found, pictures, by)
        header, rows = _rows(joined, ids, images, prompt)
        separator, used = joined.separator, list(joined.pictures.values())
        lines = _left_out(joined, found) + _settings(joined)
    _check_paths([images[name] for name in used])
    model_id = _model_id(study, model)
    _check(study, model_id, header, rows, separator, table)
    made = _write(study, model_id, csv_text([header, *rows.values()], separator).encode())
    outside = "" if not os.path.isabs(images[used[0]]) else ", by absolute paths, since they are outside of the study"
    lines = [f"{Path(study, SHEET)}: {_counted(len(rows), 'picture')}{outside}", made, *lines]
    return "\n".join(filter(None, [*lines, _others(others)]))


def find_pictures(folder: str, study: str) -> tuple[list[str], list[str]]:
    """The files below a folder whose suffix is that of a picture, and the others; sorted paths from the folder.

    Without hidden ones, what systems put beside pictures, and the results of the study.

    Raises:
        InputError: it is no folder.
        OSError: a folder in it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    if not os.path.isdir(folder):
        raise InputError(f"There is no folder {folder!r} with pictures (looked from {os.getcwd()})")
    Image.init()
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    results = {os.path.realpath(Path(study, name)) for name in ("results", "logs")}
    pictures: list[str] = []
    others: list[str] = []
    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or real in results:  # a link may lead back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in OTHER_FOLDERS]
        for name in files:
            if not name.startswith(".") and name.lower() not in OTHER_FILES:
                is_picture = os.path.splitext(name)[1].lower() in suffixes
                (pictures if is_picture else others).append(os.path.relpath(os.path.join(place, name), folder))
    return sorted(pictures), sorted(others)


def picture_ids(names: Sequence[str]) -> list[str]:
    """An id for each picture, like its name, unique also where upper and lower case are the same.

    Each depends on the picture's own name. Where that gives the id of another picture, or loses letters, a part of the
    name's SHA-256 follows; so the ids stay as they are when pictures are added, unless a new one looks the same.

    Args:
        names: paths from the folder of the pictures, all different.
    """
    plain = [os.path.splitext(name)[0].replace(os.sep, "_").translate(SPELT) for name in names]
    ids = [safe_id(text)[:ID_LENGTH] for text in plain]
    count = Counter(map(str.lower, ids))
    made = []
    for name, text, short in zip(names, plain, ids, strict=True):
        letters = [each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each)]
        is_whole = "".join(letters).isascii() and len(letters) <= ID_LENGTH
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        made.append(short if is_whole and count[short.lower()] == 1 else f"{short}-{digest}")
    return made


def _check_new(study: str, model: str | None) -> None:
    sheet, config = Path(study, SHEET), Path(study, CONFIG)
    if os.path.lexists(sheet):
        raise InputError(
            f"{sheet} exists, and init changes no file: add rows to it by hand, or rename it and run init again. "
            "(A picture with the same id and settings keeps its latent.)"
        )
    if model is not None and os.path.lexists(config):
        raise InputError(f"{config} exists, and init changes no file: set model_id there, and leave out --model")


def _is_same(first: str, second: str) -> bool:
    return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)


def _model_id(study: str, model: str | None) -> str:
    if model is None:
        return KEYS["model_id"].default
    return model if model == "demo" or not os.path.exists(model) else paths.from_where(model, study)


def _rows(
    table: Table, ids: dict[str, str], images: dict[str, str], prompt: str | None
) -> tuple[list[str], dict[int, list[str]]]:
    """The header of the sheet, and its rows by their numbers in the table."""
    names = list(table.header)
    if "image" in names and table.column != "image":
        raise InputError(
            f"Column 'image' of {table.path} does not name the pictures ({table.column!r} does), and the sheet has its "
            "own: give it another name in the table"
        )
    if "prompt" in names and prompt is not None:
        raise InputError(f"{table.path} has a column 'prompt' already: leave out --prompt, or rename the column")
    if suggestion(table.column, ["image"], cutoff=0.85):  # such as Image
        names[names.index(table.column)] = "image"
    added = [name for name in ("id", "image", "prompt") if name not in names]
    rows = {}
    for row, picture in table.pictures.items():
        new = {"id": ids[picture], "image": images[picture], "prompt": prompt or PROMPT}
        old = [images[picture] if name == "image" else cell for name, cell in zip(names, table.rows[row], strict=False)]
        rows[row] = [*(new[name] for name in added), *old, *table.rows[row][len(names) :]]
    return added + names, rows


def _left_out(table: Table, pictures: Sequence[str]) -> list[str]:
    """Lines on rows without a picture and pictures without a row."""
    cells = table.cells(table.column)
    rows = [f"row {row} ({_shown(cells[row])})" for row in table.rows if row not in table.pictures]
    used = set(table.pictures.values())
    alone = [_shown(name) for name in pictures if name not in used]
    lines = [f"{table.path} is joined by its column {table.column!r}"]
    lines += [f"Left out, {len(rows)} of its rows without a picture: {listed(rows, SHOWN)}"] if rows else []
    return lines + (
        [f"Left out, {_counted(len(alone), 'picture')} without a row: {listed(alone, SHOWN)}"] if alone else []
    )


def _shown(name: str) -> str:
    """A name as it is, if every terminal can show it in a line."""
    return name if name.isprintable() else repr(name)


def _settings(table: Table) -> list[str]:
    """A line on columns of the table that the workflow uses."""
    used = [name for name in table.header if name in COLUMNS and name != "image"]
    if not used:
        return []
    return [f"Used by the workflow, not only carried along: {', '.join(used)} (rename what is a variable of your own)"]


def _others(names: Sequence[str]) -> str:
    if not names:
        return ""
    count = "1 file that is no picture" if len(names) == 1 else f"{len(names)} files that are no pictures"
    return f"Not taken, {count} (docs/pictures.md): {listed(map(_shown, names), SHOWN)}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _check_paths(images: Iterable[str]) -> None:
    if bad := [repr(image) for image in images if checked("image", image)[1]]:
        raise InputError(
            bulleted(
                "Rename these pictures, or the folders that they are in. A path in a sheet has no braces, no line "
                "breaks, no words in angle brackets such as <logs>, and only letters that this system's language has:",
                bad,
            )
        )


def _check(
    study: str, model_id: str, header: list[str], rows: dict[int, list[str]], separator: str, table: str | None
) -> None:
    """Have the sheet read as it will be, with its rows at their places in the table, so that messages name these."""
    lines = [rows.get(row, []) for row in range(2, max(rows) + 1)]
    with tempfile.TemporaryDirectory() as folder, chdir(study if os.path.isdir(study) else folder):
        sheet = Path(folder, "items.csv")
        sheet.write_bytes(csv_text([header, *lines], separator).encode())
        try:
            read_items(load_config({"items": str(sheet), "model_id": model_id}))
        except InputError as error:
            message = str(error).replace(str(sheet), table or SHEET)
            if table and ", column id: " in message:
                message += "\nIf it is a variable of your own, rename it: ids are then made from the pictures' names"
            raise InputError(message) from None


def _write(study: str, model_id: str, sheet: bytes) -> str:
    """Write the new files; returns a line on the config."""
    config = Path(study, CONFIG)
    config.parent.mkdir(parents=True, exist_ok=True)
    all_keys = paths.SCRIPTS.parent / "config/README.md"
    made = f"{config}: model_id {model_id}"
    try:
        with config.open("x", encoding="utf-8") as file:
            file.write(
                f"# All keys, with their defaults: {all_keys}\nmodel_id: {json.dumps(model_id, ensure_ascii=False)}\n"
            )
    except FileExistsError:
        made = f"{config}: kept as it was"
    with Path(study, SHEET).open("xb") as file:
        file.write(sheet)
    return made
