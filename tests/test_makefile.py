"""What `make` does on a fresh machine, apart from the downloads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv

from helpers.study import ROOT


def test_an_environment_whose_making_was_interrupted_is_mended(tmp_path):
    venv.create(tmp_path / ".venv", with_pip=False)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("envs/requirements.txt", "pyproject.toml", "scripts/plugins/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = ["make", "install", f"PYTHON={sys.executable}"]
    # What comes after pip fails, as there is no package.
    subprocess.run(command, cwd=tmp_path, env=environment | {"PIP_NO_INDEX": "1"}, capture_output=True)
    subprocess.run([tmp_path / ".venv/bin/python", "-m", "pip", "--version"], env=environment, check=True)
