"""What a study will take: three items that stand for all, what is reckoned from them, and nothing left behind."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from gpi_latents.core.diffusion import restored_settings
from gpi_latents.cost import PER_ITEM, PER_REPORT, PER_RUN, Measured, chosen, cost, forecast, passes, shortened
from gpi_latents.errors import InputError
from gpi_latents.paths import PLANS
from gpi_latents.plan import item_lines, write_plan
from gpi_latents.recipe import canonical
from gpi_latents.study.settings import load_config
from helpers.study import Study

MEASURED = Measured(
    ids=["a", "b", "c"],
    passes=[0, 4, 12],
    seconds=[1.0, 1.4, 2.2],
    at_once=2,
    loading=20.0,
    start=0.5,
    devices=["cpu"],
    memory=4.2e9,
    gpu_memory=0,
    sizes=(66e3, 500e3, 65536),
)


def recipe(strength: float, steps: int = 50, guidance: float = 7.5) -> dict:
    return {"strength": strength, "num_inference_steps": steps, "guidance_scale": guidance}


def items(tmp_path: Path, kinds: list[int], sizes: list[int]) -> pd.DataFrame:
    """Rows of these passes, with files of these sizes."""
    images = [str(tmp_path / str(number)) for number in range(len(kinds))]
    for image, size in zip(images, sizes, strict=True):
        Path(image).write_bytes(bytes(size))
    return pd.DataFrame({"image": images, "passes": kinds})


def test_the_passes_of_an_item_are_its_steps_twice_if_they_are_guided():
    recipes = [{"strength": 0}, recipe(0.5), recipe(0.5, guidance=1), recipe(1, steps=20)]
    assert list(map(passes, recipes)) == [0, 50, 25, 40]
    for strength in (1, 0.5, 0.3, 1 / 3, 1 / 49, 0.02):  # for timing, at least one step is left, and few more
        few = [passes(shortened(recipe(strength, guidance=1), steps)) for steps in (1, 2, 4, 6)]
        assert shortened(recipe(strength), 1)["num_inference_steps"] >= 4  # PNDMScheduler fails with fewer
        assert 1 <= few[0] <= few[1] <= few[2] <= few[3] <= 7
    assert shortened({"strength": 0}, 2) == {"strength": 0}
    assert shortened(recipe(1, steps=3), 6) == recipe(1, steps=3)


def test_the_cheapest_and_the_dearest_kind_are_timed_however_few_there_are(tmp_path):
    rare = items(tmp_path, kinds=[0] * 50 + [40] * 49 + [90], sizes=list(range(100)))
    assert list(rare.loc[chosen(rare).index, "passes"]) == [0, 40, 90]
    # Of one kind, a small file, a middling and a large one, but neither the smallest nor the largest.
    alike = items(tmp_path, kinds=[0] * 90, sizes=list(range(89, -1, -1)))
    assert [os.path.getsize(image) for image in chosen(alike)["image"]] == [15, 45, 75]
    assert len(chosen(alike[:1])) == 1
    assert len(chosen(alike[:2])) == 2


def test_times_are_reckoned_from_the_passes_of_all_items():
    config = load_config({"model_id": "demo", "report": False})
    # A second and a tenth for each pass: 100 items of 0 passes and 20 of 80, which is more than any that was timed.
    text = forecast(config, 200, [0] * 100 + [80] * 20, MEASURED)
    made = 120 * 1.0 + 0.1 * 20 * 80
    others = 0.5 * (120 * PER_ITEM + PER_RUN)
    assert (
        f"Time: about {(20 + made + others) / 60:.0f} min. 20 s to load the model, 5 min for the items (2.3 s" in text
    )
    assert "120 of 200 items are to be made, 2 at a time on cpu (timed: a, b, c)." in text
    assert "Memory: 4.2 GB for the model, and" in text
    # Latents and pictures of the 120, and a tensor of all.
    assert "Disk: 81 MB. 7.9 MB latents, 60 MB decoded pictures, 13 MB tensor" in text
    report = 0.5 * PER_REPORT
    text = forecast(config | {"report": True}, 200, [0] * 100, MEASURED)
    assert f"{0.5 * (100 * PER_ITEM + PER_RUN) + report:.0f} s for Snakemake and the report" in text
    # Without a resident each item loads the model, two at a time.
    text = forecast(config | {"resident": False}, 200, [0] * 4, MEASURED)
    assert "0 s to load the model, 44 s for the items (11 s each)" in text
    slow = replace(MEASURED, passes=[0, 0, 0], seconds=[144.0, 144.0, 144.0])
    assert "for the items (2 min each)" in forecast(config, 10, [0] * 10, slow)
    # Where other programs slowed down the items of few passes, nothing is reckoned from passes.
    busy = replace(MEASURED, passes=[2, 4, 6], seconds=[1.2, 1.0, 0.8])
    assert "10 s for the items (1 s each)" in forecast(config, 10, [6] * 10, busy)
    assert "There is too little room" in forecast(config, 10**9, [0] * 10**3, MEASURED)


@pytest.mark.parametrize("lost", ["latent", "picture"])
def test_an_item_whose_latent_or_picture_is_missing_is_to_be_made(tmp_path, monkeypatch, lost):
    study = Study(tmp_path)
    study.pictures(3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpi_latents.cost.stale_results", lambda *_: {})
    monkeypatch.setattr("gpi_latents.cost.measure", lambda config, items, *_: replace(MEASURED, ids=[*items["id"]]))
    config = load_config({"model_id": "demo"})
    table = pd.DataFrame({"sheet_row": [2, 3], "id": ["a", "b"], "image": ["pictures/p0.png", "pictures/p1.png"]})
    plan = Path(write_plan(config, table, item_lines(table["image"], [canonical(recipe(0.5))] * 2)))
    files = {"latent": "results/hidden/hidden_{}.pt", "picture": "results/images/gen_{}.png"}
    for item_id in table["id"]:
        for file in files.values():
            Path(file.format(item_id)).parent.mkdir(parents=True, exist_ok=True)
            Path(file.format(item_id)).touch()
    assert cost(plan, 2, 2) == "All 2 latents are made: a run has nothing to extract."
    Path(files[lost].format("b")).unlink()
    assert "1 of 2 items are to be made, 2 at a time on cpu (timed: b)" in cost(plan, 2, 2)


def test_plan_asks_a_cluster_for_a_gpu_as_the_items_do(tmp_path):
    study = Study(tmp_path)
    study.config(device="cpu")
    study.pictures(1)
    text = study.run("plan", "--dry-run", "--workflow-profile", "none").output  # Snakemake's own words
    assert "device=cpu" in text.partition("rule plan:")[2]


@pytest.mark.long
def test_plan_times_what_is_left_to_make_and_leaves_no_results(tmp_path, monkeypatch):
    study = Study(tmp_path / "a study ä")
    rows = study.pictures(4)
    for row, strength in zip(rows, (0, 0, 0.5, 1), strict=True):
        row["strength"] = strength
    study.sheet(rows)
    study.run("results/hidden/hidden_p0.pt")
    before = {path for path in study.folder.rglob("results/**/*") if path.is_file()}
    output = study.run("plan").output
    assert "3 of 4 items are to be made, 2 at a time on cpu (timed: p1, p2, p3)." in output
    assert "Time: about " in output
    assert {path for path in study.folder.rglob("results/**/*") if path.is_file()} == before
    study.config(batch_size=2)  # which are not filled by as many items as there are cores
    output = study.run("plan", "--resources", "in_flight=3", cores=1).output
    assert "4 of 4 items are to be made, 2 at a time on cpu" in output
    (study.folder / "pictures/p2.png").write_bytes(b"no picture")
    monkeypatch.chdir(study.folder)
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "error")  # as it sets it
    with restored_settings(), pytest.raises(InputError, match=r"Row 4, p2: the picture 'pictures/p2\.png' .*check"):
        cost(next(Path(PLANS).glob("*/")), 2, 2)
