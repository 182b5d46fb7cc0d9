"""Files that repeat what others say agree with them."""

from __future__ import annotations

import ast
import re

import yaml
from helpers.study import ROOT


def test_the_page_of_faults_names_its_tests_and_no_others():
    marked = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        whole = re.search(r"^pytestmark = .*pytest\.mark\.fault\(", ast.unparse(tree), re.MULTILINE)
        for node in tree.body:
            decorators = " ".join(map(ast.unparse, getattr(node, "decorator_list", [])))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marked |= {node.name} if whole or "pytest.mark.fault(" in decorators else set()
    page = (ROOT / "tests/FAULTS.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(test_\w+)`", page)) == marked


def test_the_pins_agree():
    """requirements.txt, environment.yaml and requirements-dev.txt name the same versions."""

    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "envs" / name).read_text().splitlines()
        return dict(line.split("==") for line in lines if "==" in line)

    required = pins("requirements.txt")
    environment = yaml.safe_load((ROOT / "envs/environment.yaml").read_text())
    assert dict(line.split("==") for line in environment["dependencies"][-1]["pip"]) == required
    assert required["torch"] == "2.13.0"
    development = pins("requirements-dev.txt")
    assert all(required[name] == version for name, version in development.items() if name in required)
    lines = (ROOT / "envs/requirements.in").read_text().splitlines()
    asked = {re.split("[=<>]", line)[0].replace("_", "-") for line in lines if line and line[0] != "#"}
    assert asked <= set(required)


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), ROOT / "CONTRIBUTING.md"]
    pages += [ROOT / "CHANGELOG.md", ROOT / "tests/FAULTS.md"]
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if link.startswith("http"):
                continue
            name, _, part = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page}: {link}"
            if part:
                heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert part in anchors, f"{page}: {link}"
