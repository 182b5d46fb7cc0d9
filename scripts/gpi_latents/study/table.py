"""The sheet's file as spreadsheets and statistics programs write it: encodings, separators, row numbers, decimals."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gpi_latents.errors import InputError
from gpi_latents.plan import MISSING

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}

WHOLE = r"[+-]?\d+"
COMMA = r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?"  # a number with a decimal comma
GROUPED = r"[+-]?[1-9]\d{0,2}([.,]\d{3})+"  # 1,234: a decimal number, or one of thousands
ANY_MARKS = r"[+-]?[\d.,]*\d[\d.,]*([eE][+-]?\d+)?"


def read_cells(path: str, columns: Iterable[str]) -> tuple[list[str], dict[int, list[str]], str]:
    """The header, the cells of each row by its number (the header is row 1), without blank rows, and the separator.

    Args:
        path: a CSV file in UTF-8, or in UTF-16 with a byte order mark, separated by one of `SEPARATORS`.
        columns: names of which some are in the header; they tell which separator it is.

    Raises:
        InputError: it cannot be read as such a file, or has no header.
    """
    text = _read_text(path)
    if chosen := re.match(r'"?sep=(.)"?[;,\t]*(\r\n|\r|\n|\Z)', text, re.IGNORECASE):  # for Excel, which hides it
        text = text[chosen.end() :]
    separator = chosen.group(1) if chosen else _separator(text, set(columns))
    if separator not in SEPARATORS:
        raise InputError(
            f"The sheet {path} is separated by {separator!r}: save it again as CSV with commas, semicolons or tabs"
        )
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except ValueError:
        raise InputError(f"The sheet {path} is empty: it needs a header and at least one row") from None
    except csv.Error as error:
        raise InputError(
            f"The sheet {path} is not a regular CSV file ({error}): a text with a {SEPARATORS[separator]} or a newline "
            'needs double quotes around it, and a quote in it is doubled ("")'
        ) from None
    if not any(header):
        raise InputError(f"The sheet {path} has no header in row 1")
    return header, {row: each for row, each in enumerate(rows, start=2) if any(each)}, separator


def surplus_columns(header: list[str], rows: Mapping[int, list[str]]) -> tuple[set[int], list[str]]:
    """Which columns without a name hold nothing of the user's, by their places, and notes on them.

    These are blank ones, and a first one of row numbers or names, all different, as R and pandas write it.
    """
    width = max(map(len, [header, *rows.values()]))
    nameless = [place for place in range(width) if place >= len(header) or not header[place].strip()]
    blank = {place for place in nameless if not any(row[place].strip() for row in rows.values() if place < len(row))}
    blanks = "a blank column without a name is" if len(blank) == 1 else f"{len(blank)} blank columns without names are"
    notes = [f"{blanks} left out"] if blank else []
    if nameless[:1] != [0] or 0 in blank:
        return blank, notes
    names = [row[0].strip() for row in rows.values()]
    if "" in names or len(set(names)) < len(names):
        return blank, notes
    return blank | {0}, ["the first column, without a name, holds row numbers or row names and is left out", *notes]


def decimal_points(name: str, cells: list[str], is_setting: bool) -> tuple[list[str], str]:
    """A column with decimal points in place of decimal commas, and a note (empty if nothing is to say).

    Args:
        name: of the column.
        cells: its texts, in a sheet that is not separated by commas.
        is_setting: whether each cell is a number for itself; a column of the user's is changed as a whole, if all its
            cells apart from the `MISSING` are numbers.
    """
    marked = {cell.strip() for cell in cells}
    marked = {cell for cell in marked - MISSING if not re.fullmatch(WHOLE, cell, re.ASCII)}
    commas = {cell for cell in marked if re.fullmatch(COMMA, cell, re.ASCII)}
    grouped = {cell for cell in marked if re.fullmatch(GROUPED, cell, re.ASCII)}
    if commas - grouped and (is_setting or commas == marked):
        points = {cell: cell.replace(",", ".") for cell in commas}
        return [points.get(cell.strip(), cell) for cell in cells], f"column {name}: decimal commas are read as points"
    if is_setting or not all(re.fullmatch(ANY_MARKS, cell, re.ASCII) for cell in marked):
        return cells, ""
    if grouped and grouped == marked:
        doubt = f"{min(grouped)!r} may have decimals or a separator of thousands"
        return cells, f"column {name} stays as it is, since {doubt}: write thousands without a separator"
    if any("," in cell for cell in marked):
        return cells, f"column {name} stays as it is, since it has both commas and points: write all decimals alike"
    return cells, ""


def _read_text(path: str) -> str:
    try:
        content = Path(path).read_bytes()
        # Excel's "Unicode text" is UTF-16; what has no byte order mark is UTF-8.
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
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
    return text


def _separator(text: str, columns: set[str]) -> str:
    """The separator by which the header has most of the columns, else most cells; a comma if none is better."""
    best, found = (0, 0), ","
    for separator in [*SEPARATORS, "|"]:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [])
        except csv.Error:  # such as "image";"prompt" with commas
            continue
        if (score := (len(columns & set(header)), len(header))) > best:
            best, found = score, separator
    return found
