"""The rooms of the package: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from helpers.study import ROOT

SCRIPTS = ROOT / "scripts"
PACKAGE = SCRIPTS / "gpi_latents"
# Each floor may import those above it in this list, a room its own modules too.
GROUND = {
    "errors",
    "files",
    "digests",
    "recipe",
    "origin",
    "paths",
    "version",
    "joblog",
    "plan",
    "run",
    "slurm_use",
}
MAY_IMPORT = {
    "model": GROUND,
    "core": GROUND,
    "tensors": GROUND,
    "study": GROUND | {"model"},
    "resident": GROUND | {"model", "core", "tensors"},
    "report": GROUND | {"core.pictures", "tensors"},
    "check": GROUND | {"core.pictures"},
    "closing": GROUND | {"tensors", "study"},
    "orphans": GROUND | {"tensors"},
    "gpi": GROUND | {"tensors", "study"},
    "standalone": GROUND | {"model", "core", "tensors", "study"},
    "join": GROUND | {"study"},
    "init": GROUND | {"core.opening", "study", "join"},
    "cost": GROUND | {"study", "resident"},
    "cli": {"errors", "paths", "init"},
    "__init__": {"errors", "gpi", "standalone"},
} | {name: GROUND - {name} for name in GROUND}
HEAVY = {"torch", "diffusers", "transformers"}


def sources() -> dict[str, Path]:
    """The modules of the package by their names, such as `model.weights`."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in files}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    known, found = sources(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name.removeprefix("gpi_latents.") for name in names if name.startswith("gpi_latents.")}
    return found & known.keys()


def test_a_room_imports_only_what_is_below_it():
    for module, path in sources().items():
        room = module.split(".")[0]
        for name in imports(path) - {module}:
            is_allowed = name.split(".")[0] == room or MAY_IMPORT[room] & {name, name.split(".")[0]}
            assert is_allowed, f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports(path) - {name} for name, path in sources().items() if not name.endswith("__init__")}
    while free := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_files_and_functions_stay_short():
    for path in [*sources().values(), *SCRIPTS.glob("*.py"), *SCRIPTS.glob("rules/*.smk"), ROOT / "Snakefile"]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= (100 if path.name == "Snakefile" else 330), path
        if path.suffix == ".py":
            for node in ast.walk(ast.parse("\n".join(lines))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_importing_the_package_is_light_and_so_is_what_runs_while_snakemake_parses():
    code = "import sys, gpi_latents; print(*({'torch', 'pandas', 'numpy'} & set(sys.modules)));"
    code += "import gpi_latents.study.study, gpi_latents.run; print(*(set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    first, second = ran.stdout.splitlines()
    assert not first.split()
    assert not HEAVY & set(second.split())


def test_the_client_of_a_job_imports_the_standard_library_alone():
    files = (SCRIPTS / "extract.py", PACKAGE / "resident/client.py")
    tree = ast.parse("\n".join(file.read_text(encoding="utf-8") for file in files))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names <= {"_signal", "_socket", "os", "sys", "time", "fcntl", "subprocess", "client"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.mark.long
def test_pip_installs_the_package_and_a_users_own_files_take_no_name_from_it(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    # pip fetches the dependencies elsewhere; here they are those of this environment.
    here = next(path for path in sys.path if path.endswith("site-packages"))
    there = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", clone]
    subprocess.run(install, check=True, env=os.environ | {"PYTHONPATH": here})
    (there / "dependencies.pth").write_text(here)
    home = tmp_path / "a study of mine"
    (home / "scripts").mkdir(parents=True)
    for name in ("model", "items", "tensors", "gpi", "scripts/__init__", "study", "core", "report"):
        (home / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')")
    code = """
import gpi_latents
assert "venv" in gpi_latents.__file__, gpi_latents.__file__
from gpi_latents import arrays, extract_images, load
from PIL import Image
paths = extract_images(Image.new("RGB", (64, 64)), "nothing", "hidden", model_id="demo", seed=1)
print(paths[0].exists())
"""
    ran = subprocess.run([python, "-c", code], cwd=home, capture_output=True, text=True)
    assert ran.stdout.strip() == "True", ran.stderr
