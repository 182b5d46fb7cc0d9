"""What the Snakefile asks a study."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.plan import read_config, read_item, read_plan
from gpi_latents.recipe import text_digest
from gpi_latents.study.study import Study

pytestmark = pytest.mark.usefixtures("folder")
SHEET = "id,image,prompt,strength,treatment\n001,a.png,x,,1\nb,./photos/../b.png,y,0.5,NA\n"


def study(text=SHEET, is_main=True, command_line=(), **config) -> Study:
    Path("sheet.csv").write_bytes(text.encode())
    return Study({"model_id": "demo", "items": "sheet.csv", **config}, command_line, is_main)


def item(name: str) -> SimpleNamespace:
    return SimpleNamespace(id=name)


def test_an_item_has_its_picture_its_recipe_and_its_files():
    Path("b.png").write_bytes(b"123")
    found = study()
    assert found.image(item("b")) == "photos/../b.png"
    assert found.image_bytes(item("b")) == 3
    assert '"strength":0.5' in found.recipe(item("b"))
    assert '"strength":0.0' in found.recipe(item("001"))
    assert found.latents == ["results/hidden/hidden_001.pt", "results/hidden/hidden_b.pt"]
    assert found.outputs == {"latent": "results/hidden/hidden_{id}.pt", "picture": "results/images/gen_{id}.png"}
    assert found.checksums == ["results/checksums/0.sha256"]
    assert found.block(SimpleNamespace(block="0")) == found.latents
    assert found.results == ["results/latents.pt", "results/index.csv", "results/provenance.json", paths.REPORT]
    Path("b.png").unlink()
    assert found.image_bytes(item("b")) == -1


def test_what_an_item_is_made_of_is_in_the_plan_where_its_command_says():
    """Not on the command line, which all users of a machine can read."""
    found = study(SHEET.replace(",y,", ',"é ""図""\n{y}",'))
    for name, picture in (("001", "a.png"), ("b", "photos/../b.png")):
        planned = read_item(found.plan, found.place(item(name)))
        assert planned == {"image": picture, "recipe": json.loads(found.recipe(item(name)))}
    assert planned["recipe"]["prompt"] == 'é "図"\n{y}'


def test_keys_switch_pictures_and_the_report_off():
    found = study(output_image_dir=None, report=False)
    assert list(found.outputs) == ["latent"]
    assert found.results[-1] == "results/provenance.json"
    assert not {"contact_sheet", "reconstruction"} & set(found.figures)


def test_an_item_that_is_not_in_the_sheet_is_refused_by_name():
    for ask in (study().image, study().image_bytes, study().recipe, study().place):
        with pytest.raises(InputError, match=r"The sheet sheet\.csv has no item 'c'"):
            ask(item("c"))


def test_the_plan_is_the_index_table_with_row_and_recipe():
    found = study()
    assert read_config(found.plan) == found.config
    plan = read_plan(found.plan)
    assert list(plan)[:6] == ["sheet_row", "recipe_sha256", "row", "id", "image", "prompt"]
    assert plan["sheet_row"].tolist() == ["2", "3"]
    assert plan["row"].tolist() == ["0", "1"]
    assert plan["id"].tolist() == ["001", "b"]
    assert plan["image"].tolist() == ["a.png", "./photos/../b.png"]
    assert plan["treatment"].tolist() == ["1", "NA"]
    assert plan["recipe_sha256"].tolist() == [text_digest(found.recipe(item(each))) for each in ("001", "b")]


def test_an_edited_sheet_is_another_plan_and_the_old_one_is_kept_for_its_run():
    first = study()
    second = study(SHEET.replace(",y,", ",another,"))
    assert first.plan != second.plan
    assert read_plan(first.plan)["prompt"].tolist() == ["x", "y"]
    assert read_plan(second.plan)["prompt"].tolist() == ["x", "another"]


def test_what_changes_no_result_is_not_seen_by_the_stack_and_what_changes_the_table_is():
    first = study()
    assert study(resident=False, device="cpu", output_image_dir=None).table == first.table
    for text in (SHEET.replace("NA", "2"), SHEET.replace(",y,", ",z,"), SHEET.replace("treatment", "T")):
        assert study(text).table != first.table


def test_a_job_of_a_cluster_takes_the_plan_of_the_run_that_submitted_it():
    submitted = study()
    later = study(SHEET.replace(",y,", ",another,"), is_main=False)
    for ask in ("plan", "items", "places"):  # also of what is edited meanwhile
        assert getattr(later, ask) == getattr(submitted, ask)
    os.environ.pop("GPI_PLAN")
    assert read_plan(study(is_main=False).plan)["prompt"].tolist() == ["x", "y"]


def test_pictures_are_checked_once_by_the_users_own_snakemake():
    study(is_main=True)
    Path("a.png").unlink()
    study(is_main=False)
    with pytest.raises(InputError, match=r"row 2, column image: no such file: 'a\.png'"):
        study(is_main=True)


def test_results_of_the_future_are_refused():
    Path("results").mkdir()
    Path("results/index.csv").touch()
    os.utime("results/index.csv", (4e9, 4e9))
    with pytest.raises(InputError, match="dated in the future"):
        study()


def test_the_command_of_an_item_names_all_by_which_one_resident_differs_from_another(tmp_path, monkeypatch):
    found = study()
    command = shlex.split(found.extract_command("/bin/python", 3))
    assert command[:3] == ["/bin/python", "-I", "-S"]
    assert Path(command[3]).name == "extract.py"
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--plan"] == found.plan
    assert (options["--workers"], options["--on-error"]) == ("3", "stop")
    in_shell = subprocess.run(["sh", "-c", f"echo {found.extract_command('true', 3).split()[-1]}"], capture_output=True)
    assert in_shell.stdout.decode().strip() == os.environ["GPI_RUN"] == str(os.getpid())

    def resident(python="/bin/python", **config) -> str:
        command = shlex.split(study(**config).extract_command(python, None))
        return command[command.index("--resident") + 1]

    assert resident() == options["--resident"]
    assert resident(seed=3, report=False, resize="crop", stacked="R/R.npy", on_error="skip") == resident()
    for other in ({"dtype": "float16"}, {"device": "cpu"}, {"output_image_dir": None}, {"variant": "fp16"}):
        assert resident(**other) != resident()
    assert resident("/other/python") != resident()
    before = resident()
    shutil.copytree(paths.PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "package")
    assert resident() == before
    with (tmp_path / "package/core/pictures.py").open("a") as source:
        source.write("# edited\n")
    assert resident() != before


def test_without_the_resident_each_item_is_a_process_of_its_own():
    command = shlex.split(study(resident=False).extract_command("/bin/py thon", 2))
    assert command[0] == "/bin/py thon"
    assert Path(command[1]).name == "resident.py"
    assert command[2:] == ["once", "--plan", os.environ["GPI_PLAN"], "--on-error", "stop"]


def test_reading_takes_time_in_proportion_to_the_rows():
    def seconds(count: int) -> float:
        rows = "".join(f"i{number},a.png,prompt {number},0.5,{number}\n" for number in range(count))
        start = time.process_time()
        found = study("id,image,prompt,strength,seed\n" + rows)
        assert len(found.latents) == count
        return time.process_time() - start

    small = seconds(2000)
    assert seconds(10_000) < 10 * small
