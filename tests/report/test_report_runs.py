"""The report of a real run, and when it is made again."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest
from gpi_latents import paths
from helpers.report import Page, check_page, page_in_browser
from helpers.study import Study


@pytest.fixture
def copy(demo, tmp_path) -> Study:
    """A copy of the finished demo, which a test may change."""
    shutil.copytree(demo.folder, tmp_path / "copy")
    copied = Study(tmp_path / "copy")
    copied.config(report=True)
    return copied


def test_the_demo_ends_with_a_report(demo):
    assert demo.first.jobs["figures"] == 1
    assert demo.first.jobs["report"] == 1
    html = (demo.folder / "results/report.html").read_text(encoding="utf-8")
    assert len(html) < 3_000_000
    page = check_page(html)
    for title, _ in paths.FIGURES.values():
        assert title in page.text
    index = demo.index()
    assert set(index["id"]) <= set(re.findall(r"shape_\d+", page.text))
    assert page.tags.count("svg") == len(paths.FIGURES) - 1  # the contact sheet is a table of cards
    assert len([source for source in page.loaded if source.startswith("data:image/webp")]) >= 2 * len(index)
    assert "strength 0.7: a purple square" in page.text
    assert "treatment" in page.text
    assert "diffusers 0." in page.text
    assert (demo.folder / "logs/figures.log").read_text().splitlines() == [
        f"drew {name} of {len(index)} items" for name in paths.FIGURES
    ]
    assert (demo.folder / "logs/report.log").read_text().startswith("wrote")


def test_snakemakes_own_report_holds_the_figures_with_captions(demo, tmp_path):
    target = tmp_path / "out.html"
    demo.run("--report", str(target))
    html = target.read_text(encoding="utf-8")
    for name, (title, category) in paths.FIGURES.items():
        assert f"{name}.png" in html
        assert title in html
        assert category in html
    assert "Items that are close together have similar latents" in html
    assert "snakemake.wildcards" not in html


@pytest.mark.long
@pytest.mark.fault("stranger")
@pytest.mark.timeout(300)
def test_the_name_of_a_column_runs_nothing_in_either_report(demo, copy, tmp_path):
    column = "</script><img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    sheet = pd.read_csv(copy.folder / "config/items.csv", dtype=str, keep_default_na=False)
    copy.sheet(sheet.assign(**{column: "1"}).to_dict("records"))
    copy.config(report=True, report_color=column)
    copy.run()
    ours = copy.folder / "results/report.html"
    html = ours.read_text(encoding="utf-8")
    assert column in check_page(html).text
    pages = []
    for study in (demo, copy):
        study.run("--report", str(tmp_path / "out.html"))
        pages.append(Page((tmp_path / "out.html").read_text(encoding="utf-8")))
    assert pages[1].tags == pages[0].tags
    assert pages[1].loaded == []
    for page in (ours, tmp_path / "out.html"):
        assert page_in_browser(page)[0] != "owned"
    # Even what got into our page would not run: its policy allows our script alone. Without the policy it would.
    for policy, title in ((r"\g<0>", "Latents of 30 items: report"), ("", "owned")):
        changed = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", policy, html)
        (tmp_path / "changed.html").write_text(changed.replace("</body>", f"{column}</body>"), encoding="utf-8")
        assert page_in_browser(tmp_path / "changed.html")[0] == title


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("key", ["stacked", "output_hidden_dir", "output_image_dir", "model_id", "vae_id"])
def test_a_path_that_could_run_something_in_snakemakes_report_is_refused(study, key):
    study.pictures(1)
    study.config(**{key: "results/</script><img src=x onerror=alert(1)>/a.pt"})
    run = study.run("--dry-run", fails=True)
    assert f"key {key}: " in run.text
    assert re.search("'</' in a path|is not a valid text", run.text)
    assert "Traceback" not in run.output


def drawn(study: Study) -> set[str]:
    """The figures that the last run drew; the others it kept."""
    lines = (study.folder / "logs/figures.log").read_text().splitlines()
    assert [line.split()[1] for line in lines] == list(paths.FIGURES)
    return {line.split()[1] for line in lines if line.startswith("drew")}


@pytest.mark.long
def test_an_edited_outcome_draws_again_only_what_shows_it(copy):
    before = {file.name: file.read_bytes() for file in (copy.folder / "results/report").iterdir()}
    sheet = pd.read_csv(copy.folder / "config/items.csv", dtype=str, keep_default_na=False)
    sheet.loc[0, "outcome"] = "9.75"
    copy.sheet(sheet.to_dict("records"))
    assert copy.run().jobs == {"stack": 1, "figures": 1, "report": 1}
    assert drawn(copy) == {"contact_sheet"}
    assert "9.75" in (copy.folder / "results/report.html").read_text(encoding="utf-8")
    for file in (copy.folder / "results/report").iterdir():
        assert file.stem == "contact_sheet" or file.read_bytes() == before[file.name]


def test_what_makes_the_report_again(copy):
    copy.config(report=True, report_color="size")
    assert copy.run().jobs == {"figures": 1, "report": 1}
    assert "<b>size</b>" in (copy.folder / "results/report.html").read_text()
    sheet = pd.read_csv(copy.folder / "config/items.csv", dtype=str, keep_default_na=False)
    sheet.loc[0, "treatment"] = "2"
    copy.sheet(sheet.to_dict("records"))
    planned = copy.run("--dry-run", "--verbose").jobs
    assert planned == {"stack": 1, "figures": 1, "report": 1}
    (copy.folder / "results/report.html").unlink()
    copy.config(report=False)
    assert copy.run("--dry-run", "--verbose").jobs == {"stack": 1}
    copy.config(report=True, report_color="sizee")
    run = copy.run("--dry-run", fails=True)
    assert "has no column 'sizee': did you mean 'size'?" in run.text
    assert "Traceback" not in run.output


def test_a_figure_that_fails_is_explained(copy):
    (copy.folder / "results/report/map.png").unlink()
    (copy.folder / "results/latents.pt").write_bytes(b"not a tensor")
    run = copy.run("results/report/map.png", fails=True)
    assert "results/latents.pt is no" in run.text
    assert "stacked" not in run.text
