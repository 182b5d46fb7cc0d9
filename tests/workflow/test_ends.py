"""What a user reads at the end of each kind of run."""

from __future__ import annotations

import pytest
from helpers.study import Study, draw


def last_words(study: Study) -> str:
    """What Snakemake's log of the last run has, which has the words of any logger."""
    logs = sorted((study.folder / ".snakemake/log").glob("*.log"))
    return logs[-1].read_text()


@pytest.mark.long
def test_each_part_of_a_study_ends_in_words_of_its_own(study):
    study.pictures(2)
    folder = study.folder.resolve()
    text = study.run("--until", "extract", "--quiet").output
    assert "2 of 2 latents are made, but not stacked" in text
    assert "2 made, 0 kept, 0 failed, " in text
    text = study.run("--batch", "stack=1/2").output
    assert "Part 1 of 2: 2 of 2 items. Next: --batch stack=2/2" in text
    text = study.run("--batch", "stack=2/2").output
    results = f"2 latents (2, 4, 8, 8): {folder}/results/latents.pt, {folder}/results/index.csv"
    assert f"{results}\n0 made, 2 kept, 0 failed, " in text
    assert f"Next: in Python: from gpi_latents import load; R, index = load('{folder}/results')" in text
    assert "Everything is up to date: " + results in study.run("--dry-run").output
    assert "The dates of the results are renewed; nothing was made." in study.run("--touch", "--forceall").output


@pytest.mark.long
def test_a_dry_run_names_the_items_and_why_and_a_failed_run_the_command_that_goes_on(study):
    rows = study.pictures(5, strength=0.5, num_inference_steps=4, seed=1, outcome=1)
    study.run()
    rows[3]["outcome"] = 2
    study.sheet(rows)
    assert "Would run: stack (column outcome changed). No item would be extracted." in study.run("-n").text
    rows[0] |= {"id": "new"}
    rows[1] |= {"seed": 2}
    study.sheet(rows)
    draw(study.folder / "pictures/p2.png", seed=9)
    (study.folder / "results/images/gen_p3.png").unlink()
    words = "Would extract 4 of 5: new (new), p1 (seed), p2 (picture), p3 (file lost)\nThen: stack.\n"
    assert words in study.run("-n").output
    (study.folder / "pictures/p2.png").write_bytes(b"no picture")
    text = study.run(fails=True).output
    assert text.count("row 4, p2: ") == 1
    assert "/results/ still holds the tensor and the table of the run of 20" in text
    assert "\nItems: 3 made, 1 kept, 1 failed, " in text
    assert f"\nPut right what failed, then run: snakemake --snakefile {study.workflow}/Snakefile --directory" in text
    assert "Put right what failed" in last_words(study)
    draw(study.folder / "pictures/p2.png")
    assert "Would extract 1 of 5: p2 (failed before)" in study.run("-n").output
    assert "1 made, 4 kept, 0 failed, " in study.run().output


@pytest.mark.long
@pytest.mark.parametrize("logger", ["ours", "default"])
def test_check_and_orphans_say_what_they_find_once(study, logger):
    study.pictures(2)
    arguments = ["--workflow-profile", "none"] if logger == "default" else []
    for name in ("p7", "p8"):
        path = study.folder / f"results/hidden/hidden_{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    text = study.run("orphans", *arguments).output
    assert "2 files belong to nothing" in text
    assert text.count("hidden_p7.pt") == text.count("hidden_p8.pt") == 1
    assert study.run("check", *arguments).output.count("All 2 pictures can be read.") == 1
    (study.folder / "pictures/p1.png").write_bytes(b"no picture")
    assert study.run("check", *arguments, fails=True).output.count("row 3, p1: ") == 1
