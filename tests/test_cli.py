"""The command gpi-latents: what it calls, what it says when it cannot, and a whole way from pictures to latents."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpi_latents import cli
from helpers.study import ROOT, draw

SNAKEMAKE = [sys.executable, "-m", "snakemake"]
CORES = ["--cores", "all"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    monkeypatch.setenv("GPI_COMMAND", "")  # which `main` sets: with delenv, what it sets would stay for other tests


@pytest.fixture
def call(monkeypatch, capsys):
    """A function that runs gpi-latents with a Snakemake that does nothing, and returns the command that it was."""

    def run(*arguments: str) -> list[str]:
        became: list[list[str]] = []
        monkeypatch.setattr(sys, "argv", ["gpi-latents", *arguments])
        monkeypatch.setattr(os, "execv", lambda program, command: became.append(command))
        cli.main()
        assert shlex.split(capsys.readouterr().err) == became[0]  # it says what it runs
        return became[0]

    return run


def study(name: str = "a study", file: str = "items.csv") -> str:
    Path(name, "config").mkdir(parents=True)
    Path(name, "config", file).write_text("image,prompt\n")
    return name


def place(name: str) -> list[str]:
    return ["--snakefile", str(ROOT / "Snakefile"), "--directory", name]


PASSED_ON = [
    ["-n"],
    ["--config", "seed=7", "model_id=demo", "-n"],
    ["results/latents.pt", "--forcerun", "stack"],
    ["--config", "items=my sheet.csv", "--", "all"],
    ["--set-resources", "extract:mem_mb=8000", "--default-resources", "slurm_extra='--qos=long -x'"],
]


@pytest.mark.parametrize("options", PASSED_ON, ids=" ".join)
def test_all_options_go_to_snakemake_as_they_are(call, options):
    name = study()
    assert call("run", name, *options) == [*SNAKEMAKE, *CORES, *place(name), *options]
    assert os.environ["GPI_COMMAND"] == shlex.join(["gpi-latents", "run", name, *options])
    assert call("run", "-n", name, *options) == [*SNAKEMAKE, *CORES, *place(name), "-n", *options]


@pytest.mark.parametrize("command", ["check", "plan", "orphans", "model"])
def test_a_command_is_a_target_that_no_option_can_take_for_its_value(call, command):
    name = study(file="config.yaml")
    assert call(command, name, "--config", "seed=7") == [
        *(*SNAKEMAKE, command, *CORES, *place(name)),
        *("--config", "seed=7"),
    ]


@pytest.mark.parametrize(
    "options", [["--cores", "2"], ["--cores=2"], ["-c2"], ["-j", "2"], ["--workflow-profile", "slurm"], ["--profile=x"]]
)
def test_who_chooses_cores_or_a_profile_keeps_them(call, options, monkeypatch):
    name = study()
    assert call("run", name, *options) == [*SNAKEMAKE, *place(name), *options]
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "mine")
    assert call("run", name) == [*SNAKEMAKE, *place(name)]


def refused(monkeypatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["gpi-latents", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code not in (0, None)
    return str(caught.value.code)


@pytest.mark.fault("sheet")
def test_a_folder_that_is_no_study_is_refused_with_the_way_to_make_one(call, monkeypatch):
    message = refused(monkeypatch, "run", "my study")
    assert "There is no folder 'my study'" in message
    assert "gpi-latents init 'my study' --pictures FOLDER" in message
    assert "The folder of the study comes first" in refused(monkeypatch, "run", "--cores", "4", "my study")
    os.mkdir("empty")
    assert call("run", "empty", "-C", "items=my.csv")
    assert "empty has no sheet, config/items.csv. To make one" in refused(monkeypatch, "check", "empty")
    assert call("run", "empty", "--configfile", "other.yaml")  # which may name the sheet
    monkeypatch.setattr(cli, "SNAKEFILE", Path("lib/Snakefile"))  # as where pip has installed the package
    assert "the package alone, without the workflow" in refused(monkeypatch, "run", "my study")


def test_it_starts_without_heavy_libraries():
    code = "import sys, gpi_latents.cli; print(*({'torch', 'pandas', 'numpy', 'PIL', 'snakemake'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not ran.stdout.split()


@pytest.mark.long
def test_from_a_folder_of_pictures_to_latents_by_three_commands():
    for number, name in enumerate(["ä 1.png", "sub/b.jpg", "c.webp"]):
        draw(Path("a study/my photos", name), seed=number)
    Path("table.csv").write_text("file;outcome\nb;1,5\nä 1;2\n", encoding="utf-8")

    def ran(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", "from gpi_latents.cli import main; main()", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    made = ran("init", "a study", "--pictures", "a study/my photos", "--table", "table.csv", "--model", "demo")
    assert made.returncode == 0, made.stderr
    assert "check 'a study'" in made.stdout
    checked = ran("check", "a study", "--cores", "1")
    assert "All 2 pictures can be read." in checked.stderr
    assert ran("run", "a study", "--config", "report=false").returncode == 0
    assert torch.load("a study/results/latents.pt", weights_only=True).shape == (2, 4, 8, 8)
    assert Path("a study/results/hidden/hidden_sub_b.pt").exists()
    again = ran("init", "a study", "--pictures", "a study/my photos")
    assert (again.returncode, "items.csv exists" in again.stderr) == (1, True)
