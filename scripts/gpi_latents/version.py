"""Which workflow this is: its version and, in a clone, its commit."""

from __future__ import annotations

import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version

from gpi_latents.paths import SCRIPTS

ROOT = SCRIPTS.parent


def workflow() -> dict[str, str | None]:
    """The `version`, and the git `commit`, followed by ` with changes` if the code is not as committed.

    Either is None where it is not known, such as the commit in a folder that was downloaded.
    """
    commit = _git("rev-parse", "HEAD")
    changed = commit and _git("status", "--porcelain", "--untracked-files=no", "--", "Snakefile", "scripts")
    return {"version": _version(), "commit": f"{commit} with changes" if changed else commit}


def _version() -> str | None:
    project = ROOT / "pyproject.toml"
    try:
        if project.exists():
            return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return version("gpi_latents")
    except (KeyError, ValueError, OSError, PackageNotFoundError):
        return None


def _git(*arguments: str) -> str | None:
    # Its folder is named, so that a repository around a downloaded copy is not taken for this one.
    command = ["git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
