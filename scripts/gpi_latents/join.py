"""Match the rows of a user's table with pictures, by the names of the pictures in one of its columns."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import PurePosixPath

from gpi_latents.errors import InputError, bulleted, error_list
from gpi_latents.study.settings import COLUMNS
from gpi_latents.study.table import read_cells, surplus_columns

LIKELY = 0.5  # of its rows that a column of names has a picture for, unless the user names the column


@dataclass
class Table:
    """A user's table.

    Attributes:
        path: its file.
        header: its columns that have a name.
        rows: the cells of each row, by its number (the header is row 1).
        separator: between its cells.
        column: of the names of pictures.
        pictures: by the row, the picture that it names; some rows may name none.
    """

    path: str
    header: list[str]
    rows: dict[int, list[str]]
    separator: str
    column: str = ""
    pictures: dict[int, str] = field(default_factory=dict)

    def cells(self, column: str) -> dict[int, str]:
        """A column's cells by their rows; a row that is too short has an empty one."""
        place = self.header.index(column)
        return {row: each[place] if place < len(each) else "" for row, each in self.rows.items()}


def joined_table(path: str, pictures: Sequence[str], folder: str, by: str | None) -> Table:
    """Read a table and find the picture of each row.

    Args:
        path: a CSV file, as `table.read_cells` reads it.
        pictures: paths from the folder.
        folder: of the pictures.
        by: the column with their names, with or without suffix and folders; None finds it.

    Raises:
        InputError: there are no rows, no column or more than one can be that of the names, or a name has several
            pictures or rows.
    """
    if not os.path.isfile(path):
        raise InputError(f"There is no table {path!r} (looked from {os.getcwd()})")
    header, rows, separator = read_cells(path, COLUMNS)
    if not rows:
        raise InputError(f"The table {path} has a header but no rows")
    surplus, _ = surplus_columns(header, rows)
    table = Table(path, [name for place, name in enumerate(header) if place not in surplus], {}, separator)
    for row, cells in rows.items():
        table.rows[row] = [cell for place, cell in enumerate(cells) if place not in surplus]
    if by is not None and by not in table.header:
        raise InputError(f"{path} has no column {by!r}. Its columns: {', '.join(table.header)}")
    names = _Names(pictures, folder)
    found = {column: names.find(table.cells(column)) for column in ([by] if by else table.header)}
    table.column = by or _column_of_names(table, found, pictures)
    table.pictures = _one_each(table, found[table.column], os.path.basename(names.folder))
    return table


class _Names:
    """The pictures by their names, however these are written."""

    def __init__(self, pictures: Sequence[str], folder: str):
        self.folder = os.path.abspath(folder)
        self.by_name: dict[str, list[str]] = defaultdict(list)  # in small letters, with and without the suffix
        for picture in pictures:
            path = PurePosixPath(_plain(picture).casefold())
            for name in {path.name, path.stem}:
                self.by_name[name].append(picture)

    def find(self, cells: Mapping[int, str]) -> dict[int, list[str]]:
        """The pictures that each row's cell may mean, for the rows whose cell means any."""
        texts = {row: _plain(cell).split("/") for row, cell in cells.items() if cell.strip()}
        found = {row: self._find(parts) for row, parts in texts.items()}
        # Folders that all names have may be those of another machine; what follows them is the path from our folder.
        levels = zip(*(parts[:-1] for parts in texts.values()), strict=False)
        common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
        for level in range(1, common + 1):
            if any(found.values()):
                break
            found = {row: self._find(parts[level:], is_whole=True) for row, parts in texts.items()}
        return {row: pictures for row, pictures in found.items() if pictures}

    def _find(self, parts: list[str], is_whole: bool = False) -> list[str]:
        """The pictures whose path ends with these parts, or from the folder on is the whole of them."""
        candidates = self.by_name.get(parts[-1].casefold(), [])
        if is_whole:
            candidates = [picture for picture in candidates if len(_plain(picture).split("/")) == len(parts)]
        wanted = "/" + "/".join(parts).lstrip("/")

        def ends(picture: str, without_suffix: bool, fold: bool) -> bool:
            path = _plain(f"{self.folder}/{picture}")
            path = os.path.splitext(path)[0] if without_suffix else path
            return (path.casefold() if fold else path).endswith(wanted.casefold() if fold else wanted)

        # What is written exactly counts first, then what another system or program has written.
        for fold in (False, True):
            for without_suffix in (False, True):
                if hits := [picture for picture in candidates if ends(picture, without_suffix, fold)]:
                    return hits
        return []


def _plain(path: str) -> str:
    """A path as one Unicode form of it, with `/` between its folders."""
    return unicodedata.normalize("NFC", path.strip()).replace("\\", "/").removeprefix("./")


def _column_of_names(table: Table, found: Mapping[str, Mapping[int, list[str]]], pictures: Sequence[str]) -> str:
    """The one column whose cells are names of pictures."""
    likely = [column for column in table.header if len(found[column]) >= max(1, LIKELY * len(table.rows))]
    if not likely:
        raise InputError(
            f"No column of {table.path} has names of the pictures, such as {pictures[0]!r}. Its columns: "
            f"{', '.join(table.header)}. If one has them and most rows have no picture here, name it by --by"
        )
    named = {column: {picture for each in found[column].values() for picture in each} for column in likely}
    # The number of a person or of an answer may be like the name of a picture 1.jpg, but it lacks the suffix.
    likely = [column for column in likely if _has_suffix(table.cells(column), found[column])] or likely
    # A group or a grade is like the names of a few pictures only.
    most = max(len(named[column]) for column in likely)
    likely = [column for column in likely if 2 * len(named[column]) >= most]
    if different := [column for column in likely if found[column] != found[likely[0]]]:
        raise InputError(
            f"Both {likely[0]!r} and {different[0]!r} of {table.path} may name the pictures: say it by --by"
        )
    return "image" if "image" in likely else likely[0]


def _has_suffix(cells: Mapping[int, str], found: Mapping[int, list[str]]) -> bool:
    """Whether some of the cells name their pictures with the suffix."""
    return any(
        cells[row].strip().casefold().endswith(os.path.splitext(picture)[1].casefold())
        for row, pictures in found.items()
        for picture in pictures
    )


def _one_each(table: Table, found: Mapping[int, list[str]], folder: str) -> dict[int, str]:
    """The picture of each row, if no row may mean several and no picture has several rows."""
    problems = []
    advice = ""
    cells = table.cells(table.column)
    first: dict[str, int] = {}
    for row, pictures in found.items():
        if len(pictures) > 1:
            several = " or ".join(pictures[:3])
            problems.append(f"row {row}: {cells[row]!r} may be {several}: write {folder}/{pictures[0]} for the first")
        elif (earlier := first.setdefault(pictures[0], row)) != row:
            problems.append(f"row {row}: {cells[row]!r} is the picture {pictures[0]!r} of row {earlier} already")
            advice = "\nA picture has one row: of several answers to it, make one first, such as their mean"
    if problems:
        raise InputError(
            error_list(f"Column {table.column!r} of {table.path} (its header is row 1)", problems) + advice
        )
    if not found:
        listed = [f"row {row}: {cell!r}" for row, cell in cells.items()]
        raise InputError(bulleted(f"No row of {table.path} has a picture, by its column {table.column!r}:", listed))
    return {row: pictures[0] for row, pictures in found.items()}
