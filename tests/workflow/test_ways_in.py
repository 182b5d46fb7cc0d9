"""Other ways to start the workflow: as a module of another one, by both programs, among a user's own files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from helpers.study import ROOT, Study, draw

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
MODULE = f"""
configfile: "config/config.yaml"

module latents:
    snakefile: "{ROOT}/Snakefile"
    config: config

use rule * from latents

rule mine:
    default_target: True
    input: "results/latents.pt"
    output: "mine.txt"
    shell: "cp results/index.csv mine.txt"
"""


@pytest.fixture
def mine(tmp_path) -> Study:
    """A study among files of the user whose names are those of rooms and scripts; importing one ends the process."""
    study = Study(tmp_path / "étude du café 図")
    study.pictures(2, outcome=1)
    (study.folder / "scripts").mkdir()
    for name in ("model", "items", "tensors", "gpi", "study", "run", "scripts/__init__"):
        (study.folder / f"{name}.py").write_text("import os; os._exit(9)")
    study.environment |= {"PYTHONPATH": str(study.folder)}
    return study


def run(study: Study, *command: str | Path, cwd: Path, fails: bool = False) -> str:
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ran = subprocess.run(command, cwd=cwd, env=study.environment, timeout=300, **output)
    assert (ran.returncode != 0) == fails, ran.stdout
    return ran.stdout


def test_the_workflow_runs_as_a_module_of_another_among_a_users_own_files(mine):
    (mine.folder / "Snakefile").write_text(MODULE)
    printed = run(mine, SNAKEMAKE, "--cores", "2", "-p", cwd=mine.folder)
    assert "/scripts/stack.py --plan .snakemake/gpi-latents/" in printed
    assert mine.index()["id"].tolist() == ["p0", "p1"]
    assert (mine.folder / "mine.txt").read_text() == (mine.folder / "results/index.csv").read_text()
    # The same items by themselves, from elsewhere, need nothing more.
    (mine.folder / "elsewhere").mkdir()
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", mine.folder]
    printed = run(mine, *command, "--cores", "2", cwd=mine.folder / "elsewhere")
    assert "up to date" in printed


def test_orphans_are_listed_by_a_python_in_a_folder_with_a_space(study, tmp_path):
    study.pictures(1)
    for name in ("p0", "p7", "ä \udcff"):
        path = study.folder / f"results/hidden/hidden_{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "my clone").symlink_to(Path(sys.executable).parent.parent)
    python = tmp_path / "my clone/bin/python"
    printed = run(study, python, *study.command("orphans")[1:], cwd=study.folder)
    assert "2 files belong to nothing" in printed
    found = (study.folder / "logs/orphans.txt").read_text(encoding="utf-8")
    assert found == "results/hidden/hidden_p7.pt\nresults/hidden/hidden_ä \\udcff.pt\n"


TWICE = f"""
module others:
    snakefile: "{ROOT}/Snakefile"
    config: config

use rule * from others as others_*
"""

HOOKS = """
onstart:
    print("my own start")

onerror:
    print("my own end")
"""


@pytest.mark.long
@pytest.mark.fault("picture")
@pytest.mark.parametrize("place", ["before", "after"])
def test_as_a_module_it_names_what_failed_beside_the_hooks_of_the_other_workflow(mine, place):
    (mine.folder / "pictures/p1.png").write_bytes(b"no picture")
    text = MODULE.replace("from latents", "from latents as latents_*").replace(
        "shell:", 'log: "logs/mine.log"\n    shell:'
    )
    (mine.folder / "Snakefile").write_text(HOOKS + text if place == "before" else text + HOOKS)
    (mine.folder / "logs").mkdir()
    (mine.folder / "logs/mine.log").write_text("of an earlier run")
    display = ["--logger", "gpi"] if place == "after" else []
    printed = run(mine, SNAKEMAKE, "--cores", "2", *display, cwd=mine.folder, fails=True)
    if display:
        assert "2 items to extract, then the stack; and rule mine (1)" in printed
        assert "rule latents_extract" not in printed
    assert "1 of 2 items failed (all in logs/failed.csv):\n  - row 3, p1: pictures/p1.png: the picture" in printed
    assert (mine.folder / "logs/failed.csv").read_text().count("\n") == 2
    assert "localrules" not in printed  # that these rules are not known by their new names
    assert "my own start" in printed
    assert "my own end" in printed
    assert (mine.folder / "logs/mine.log").exists()
    checked = run(mine, SNAKEMAKE, "--cores", "2", "latents_check", cwd=mine.folder, fails=True)
    assert "row 3" in checked.split("latents_check")[-1]


@pytest.mark.fault("config")
@pytest.mark.parametrize(
    ("snakefile", "message"),
    [
        (MODULE.replace("config: config", "config: config\n    prefix: 'a'"), "The module latents has a prefix"),
        (MODULE.replace("config: config", "config: config\n    replace_prefix: {'results': 'a'}"), "has a prefix"),
        (
            MODULE + TWICE,
            "The modules latents and others are the same workflow, and both would write results/model.json",
        ),
    ],
    ids=["prefix", "replace_prefix", "twice"],
)
def test_what_cannot_be_as_a_module_is_refused_in_a_sentence(mine, snakefile, message):
    (mine.folder / "Snakefile").write_text(snakefile)
    printed = run(mine, SNAKEMAKE, "--cores", "2", "--dry-run", cwd=mine.folder, fails=True)
    assert message in printed
    assert "--directory" in printed
    assert "Traceback" not in printed


@pytest.mark.fault("config")
def test_a_snakefile_from_an_address_is_refused_in_a_sentence(mine):
    """It would be fetched without the commands that its rules run."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=ROOT)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (mine.folder / "Snakefile").write_text(MODULE.replace(str(ROOT), address))
        printed = run(mine, SNAKEMAKE, "--cores", "2", "--dry-run", cwd=mine.folder, fails=True)
        server.shutdown()
    assert "clone its repository and name that Snakefile" in " ".join(printed.split())
    assert "TypeError" not in printed


@pytest.mark.fault("config")
def test_a_locale_without_the_letters_of_a_path_is_named_with_the_remedy(mine):
    draw(mine.folder / "pictures/図.png")
    mine.sheet([{"id": "a", "image": "pictures/図.png", "prompt": "図"}])
    mine.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = mine.command("--dry-run")
    printed = run(mine, *command, cwd=mine.folder, fails=True)
    assert "cannot be named in this terminal's language settings (ascii): run again with PYTHONUTF8=1" in printed
    assert "Encode" not in printed
    mine.environment["PYTHONUTF8"] = "1"
    assert "stack" in run(mine, *command, cwd=mine.folder)


@pytest.mark.long
def test_a_clone_whose_profile_snakemake_cannot_read_is_refused_from_elsewhere(mine):
    clone = mine.folder / "clone [x]"
    for name in ("scripts", "profiles"):
        shutil.copytree(ROOT / name, clone / name)
    shutil.copy(ROOT / "Snakefile", clone)
    (clone / "config").symlink_to(ROOT / "config")
    command = [SNAKEMAKE, "--cores", "2", "-n", "--directory", mine.folder]
    refused = run(mine, *command, "--snakefile", clone / "Snakefile", cwd=mine.folder, fails=True)
    assert f"Snakemake reads no profile in '{clone}'" in " ".join(refused.split())
    assert "Traceback" not in refused
    assert "extract" in run(mine, *command, cwd=clone)


def test_who_still_gives_the_items_in_flight_as_gpu_is_told_their_name(mine):
    """A run on this machine goes on; on a cluster it would go wrong, so that it ends with the lines to write."""
    told = "in_flight now"
    assert told not in mine.run("--dry-run", "--verbose").text
    assert f"{told}: --resources in_flight=3" in mine.run("--dry-run", "--verbose", "--resources", "gpu=3").text
    shutil.copytree(ROOT / "profiles/slurm", mine.folder / "old")
    profile = mine.folder / "old/config.yaml"
    profile.write_text(profile.read_text().replace("in_flight", "gpu"))
    for name, *options in ([str(profile.parent)], ["slurm", "--resources", "gpu=8"]):
        text = mine.run("--dry-run", "--workflow-profile", name, *options, fails=True).text
        assert told in text
        assert "resources: - in_flight=8 set-resource-scopes: - in_flight=local" in text
