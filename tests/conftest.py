"""Fixtures of all tests, and the tables that they print."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.study import ROOT, Study


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "study")


@pytest.fixture
def workflow_copy(tmp_path) -> Path:
    """A clone of the workflow that a test may edit."""
    copy = tmp_path / "clone"
    for part in ("config", "scripts", "envs", "profiles"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", copy)
    return copy


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Study:
    """The demo, run once in a folder of its own, from the files that this repository ships."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "config", folder / "config")
    finished = Study(folder)
    shutil.copy(ROOT / "config/config.yaml", folder / "config")
    finished.first = finished.run("-p")
    return finished


# Tests that share one of these run in one worker of pytest-xdist, which makes it once.
SHARED = ("demo", "finished", "cluster")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that run Snakemake come last, so that a quick mistake shows quickly; cases of faults carry their kind."""
    items.sort(key=lambda item: bool({"study", "workflow_copy", *SHARED} & set(item.fixturenames)))
    for item in items:
        for name in {*SHARED} & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(name))
        item.user_properties += [("fault", marker.args[0]) for marker in item.iter_markers("fault")]


def pytest_terminal_summary(terminalreporter):
    """Print what tests recorded as the property `table`: (title, line, column, cell); and the faults by kind."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    faults: dict[str, dict[str, str]] = {}
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            for name, value in getattr(report, "user_properties", []):
                if name == "fault" and outcome in ("passed", "failed", "skipped"):
                    for kind in (value, "all"):
                        counts = faults.setdefault(kind, {})
                        counts[outcome] = str(int(counts.get(outcome, 0)) + 1)
                if name == "table" and report.when == "call":
                    title, line, column, cell = value
                    tables.setdefault(title, {}).setdefault(line, {})[column] = cell
    if faults:
        tables["faults, cases by kind"] = dict(sorted(faults.items(), key=lambda entry: entry[0] == "all"))
    for title, lines in tables.items():
        columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
        terminalreporter.section(title)
        terminalreporter.line(f"| | {' | '.join(columns)} |")
        terminalreporter.line("| --- |" + " --- |" * len(columns))
        for line, cells in lines.items():
            terminalreporter.line(f"| {line} | {' | '.join(cells.get(column, '') for column in columns)} |")
