"""A short version of the study, and the README's code from the results to an effect; `make validation` does it all."""

from __future__ import annotations

from typing import Any

import gpi_latents
import pandas as pd
import pytest
from gpi_latents.gpi.gpi_pack_import import import_gpi_pack
from helpers.study import ROOT
from validation import fashion_pool, study, summary


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A study of drawn pictures whose latents the real workflow made."""
    folder = tmp_path_factory.mktemp("pool")
    study.draw_pool(folder, 1700, seed=1)
    study.run_workflow(folder)
    return folder


@pytest.mark.long
def test_the_estimate_from_latents_has_a_small_part_of_the_naive_bias(pool):
    scenario = study.MAIN._replace(items=800, repetitions=4)
    estimates, warned = study.run({"shapes": pool}, [scenario], workers=1)
    print(summary.table(estimates))
    measured = summary.summary(estimates).loc[scenario.study, scenario.name]
    assert measured.loc["naive", "bias"] > 0.7
    assert measured.loc["naive", "coverage"] == 0
    assert abs(measured.loc["oracle", "bias"]) < 0.15
    assert abs(measured.loc["estimate", "bias"]) < measured.loc["naive", "bias"] / 4
    assert measured.loc["estimate", "coverage"] >= 0.5
    assert warned["readable"].min() > summary.READABLE


def test_without_photographs_or_weights_the_study_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_pool, "DATASET", tmp_path / "nowhere")
    assert "package dataset-fashion-mnist" in fashion_pool.what_is_missing()
    monkeypatch.setattr(fashion_pool, "DATASET", tmp_path)
    monkeypatch.setenv("GPI_TEST_WEIGHTS", str(tmp_path / "nowhere"))
    assert "GPI_TEST_WEIGHTS" in fashion_pool.what_is_missing()


def test_warnings_count_as_hits_only_where_the_confounder_cannot_be_read():
    line = dict.fromkeys(summary.WARNINGS, 0) | {"study": "shapes", "repetition": 0}
    warned = pd.DataFrame(
        [
            line | {"scenario": "read", "readable": 0.99},
            line | {"scenario": "read", "readable": float("nan"), "repetition": 1, "Seeds disagree": 1},
            line | {"scenario": "not read", "readable": 0.1, "Nothing learned": 1},
        ]
    )
    own = {"estimator": "estimate", "estimate": 1.1, "standard_error": 0.1}
    estimates = warned[["study", "scenario", "repetition"]].assign(**own)
    rows = summary.warnings_table(estimates, warned).splitlines()
    assert next(row for row in rows if "false alarms" in row).endswith("| 50% | 0% | 0% | 0% | 50% | 0% |")
    assert next(row for row in rows if "hits" in row).endswith("| 100% | 0% | 100% | 0% | 0% | 0% |")


@pytest.mark.long
def test_convolutions_and_covariates_are_used_as_given(pool):
    R, index = gpi_latents.load(pool / "results")
    R, Y, T, C = gpi_latents.arrays(R, index, "size", "red", ["light", "dot"], query="light > 0.5")
    layers = [{"in_channels": 4, "out_channels": 8, "kernel_size": 3, "pool": {"kernel_size": 2}}]
    ate, error = import_gpi_pack().estimate_k_ate(
        R, Y, T, C, conv_layers=layers, architecture_z=[8], architecture_y=[8, 1], nepoch=2, plot_propensity=False
    )
    assert abs(ate) < 0.5  # colour and size are independent
    assert 0 < error < 0.5


@pytest.mark.long
def test_the_readmes_code_gives_the_effect_with_its_interval(pool, monkeypatch, capsys):
    _, index = gpi_latents.load(pool / "results")
    chosen = study.choose(index, study.MAIN._replace(items=500), seed=[3])
    chosen[["id", "image", "prompt", "treatment", "outcome"]].to_csv(pool / "config/items.csv", index=False)
    study.run_workflow(pool)
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From latents to effects")[1]
    monkeypatch.chdir(pool)
    values: dict[str, Any] = {}
    exec(section.split("```python\n")[1].split("```")[0], values)
    effect = values["effect"]
    assert effect.n == 500
    assert repr(effect) in capsys.readouterr().out
    lower, upper = effect.interval
    assert lower < study.TRUTH < upper
    assert upper - lower < 1
    naive, error = study.difference_in_means(values["Y"], values["T"])
    assert naive - 3 * error > study.TRUTH
