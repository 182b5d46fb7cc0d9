"""The plan of a run: written whole, and read back as it was, whatever is in the sheet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.files import write_whole
from gpi_latents.plan import read_config, read_plan, remove_other_plans, write_plan
from gpi_latents.study.settings import load_config

CELLS = [
    *("", " ", "0", "001", "1.0", "1e5", "NA", "nan", "null", "None", "true", "#", "-", "=1+1", "2026-01-01"),
    *('"', '""', "a,b", 'a "b"', "'", ";", "\\", '\\"', "\t", " a ", "\n", "\r", "\r\n", "a\nb\r\nc\rd", '"\n"'),
    *("é", "図", "\u2028", "\ufeff", "\U0001f600", "e\u0301", "x" * 100_000),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(cells=CELLS) -> pd.DataFrame:
    frame = pd.DataFrame({"sheet_row": range(2, len(cells) + 2), "id": "i", "Y": cells, 'odd "name",\n': cells[::-1]})
    return frame.astype(object)


def test_any_cell_and_any_name_of_a_column_come_back_as_they_were():
    written = table()
    found = read_plan(write_plan({}, written))
    assert list(found) == list(written)
    assert found["Y"].tolist() == CELLS
    assert found['odd "name",\n'].tolist() == CELLS[::-1]
    assert found["sheet_row"].tolist() == [str(row) for row in written["sheet_row"]]


def test_the_config_comes_back_with_the_types_it_had():
    config = load_config({"model_id": "demo", "image_size": [64, 96], "strength": 1, "negative_prompt": 'é "図"\n'})
    found = read_config(write_plan(config, table()))
    assert found == config
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in config.items()}


def test_the_same_content_is_the_same_folder_and_another_is_another():
    first = write_plan({"a": 1, "b": 2}, table())
    written = Path(first, "plan.csv").stat().st_mtime_ns
    assert write_plan({"b": 2, "a": 1}, table()) == first
    assert Path(first, "plan.csv").stat().st_mtime_ns == written
    others = {write_plan({"a": 2, "b": 2}, table()), write_plan({"a": 1, "b": 2}, table(CELLS[1:]))}
    assert len(others | {first}) == 3
    assert {path.name for path in Path(paths.PLANS).iterdir()} == {Path(each).name for each in others | {first}}
    remove_other_plans(first)
    assert [str(path) for path in Path(paths.PLANS).iterdir()] == [first]
    assert read_plan(first)["Y"].tolist() == CELLS


@pytest.mark.parametrize("fails_at", ["config.json", "plan.csv"])
def test_a_plan_is_there_whole_or_not_at_all(monkeypatch, fails_at):
    def write(path, content):
        if Path(path).name == fails_at:
            raise OSError(28, "No space left on device")
        write_whole(path, content)

    monkeypatch.setattr("gpi_latents.plan.write_whole", write)
    folder = write_plan({}, table())
    assert list(Path(paths.PLANS).iterdir()) == []
    for read in (read_config, read_plan):
        with pytest.raises(InputError, match=f"The plan of this run, {folder}, is missing"):
            read(folder)
    monkeypatch.undo()


def test_the_same_plan_of_two_runs_at_once_is_kept_whole(monkeypatch):
    """The other run writes it between our look and our renaming."""

    def write(path, content):
        if Path(path).name == "plan.csv" and not Path(paths.PLANS, "other").exists():
            other = Path(path).parent.parent / Path(path).parent.name.split(".")[1]
            other.mkdir()
            (other / "config.json").write_text('{"from": "the other run"}')
        write_whole(path, content)

    monkeypatch.setattr("gpi_latents.plan.write_whole", write)
    assert read_config(write_plan({}, table())) == {"from": "the other run"}
    assert len(list(Path(paths.PLANS).iterdir())) == 1


def test_a_folder_that_cannot_be_written_does_not_stop_a_dry_run():
    Path(paths.PLANS).parent.mkdir()
    Path(paths.PLANS).write_text("not a folder")
    assert write_plan({}, table()).startswith(paths.PLANS)
