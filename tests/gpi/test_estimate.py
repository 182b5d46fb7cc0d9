"""Effects by several seeds: what `gpi_pack` gives, in order, with its warnings, and without traces."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import warnings

import gpi_latents
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
import torch
from gpi_latents.errors import DataError
from gpi_latents.gpi import diagnostics, network
from gpi_latents.gpi.effect import Effect, written
from gpi_latents.gpi.estimate import SETTINGS
from gpi_latents.gpi.gpi_pack_import import INSTALL, import_gpi_pack
from helpers.study import ROOT
from sklearn.linear_model import LogisticRegression

# Small and quick; no test here depends on the defaults, which tests/validation chooses.
QUICK = {
    "architecture_z": [8, 4],
    "architecture_y": [16, 1],
    "nepoch": 3,
    "lr": 1e-2,
    "batch_size": 32,
    "step_size": None,
}
SMALL = {"architecture_z": [16, 4], "architecture_y": [32, 1], "nepoch": 40, "patience": 10, "length": 1.5}
pytestmark = pytest.mark.xdist_group("gpi_pack")  # it takes seconds to import


def draw(n=120, seed=0, strength=1.0):
    """R shows a confounder and, less well, the treatment; the effect is 1."""
    random = np.random.default_rng(seed)
    confounder = random.normal(size=n)
    T = (random.random(n) < 1 / (1 + np.exp(-strength * confounder))).astype(int)
    Y = T + confounder + random.normal(size=n)
    R = np.hstack([confounder[:, None] + 0.7 * random.normal(size=(n, 12)), random.normal(size=(n, 12))])
    return R.astype(np.float32), Y, T


def estimate(*arrays, **options):
    """Without a progress bar and with quick trainings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return gpi_latents.estimate(*arrays, **{"progress": False, **QUICK, **options})


@pytest.mark.parametrize("covariates", [0, 2])
def test_seed_42_gives_the_numbers_of_gpi_pack(covariates):
    R, Y, T = draw()
    C = np.random.default_rng(1).normal(size=(len(Y), covariates)) if covariates else None
    options = QUICK | {"dropout": 0.1, "K": 3}
    np.random.seed(42)
    matplotlib.use("agg")  # gpi_pack draws figures
    others = {"ps_model": LogisticRegression, "plot_propensity": False, "verbose": False}
    ate, error = import_gpi_pack().estimate_k_ate(R, Y, T, C, **options, **others)
    found = estimate(R, Y, T, C, seeds=[42], length=None, standardize=False, **options)
    assert found.estimate == pytest.approx(ate, rel=1e-13)
    assert found.standard_error == pytest.approx(error, rel=1e-13)


def test_the_effect_is_found_where_the_difference_in_means_is_wrong():
    R, Y, T = draw(600)
    found = estimate(R, Y, T, seeds=2, **SMALL)
    assert found.difference_in_means > 1.5
    assert found.interval[0] < 1 < found.interval[1] < 1.4
    assert (found.n, found.n_treated, found.clusters) == (600, T.sum(), None)
    assert found.propensity[T == 1].mean() > found.propensity[T == 0].mean() + 0.05
    lines = found.by_seed
    assert lines["seed"].tolist() == [0, 1]
    assert (lines["outcome_loss"] < lines["means_loss"]).all()
    assert lines["auc"].between(0.6, 0.9).all()
    assert (lines["effective_treated"] < T.sum()).all()


def test_the_median_over_seeds_has_the_variance_of_the_literature():
    by_seed = pd.DataFrame({"seed": range(3), "estimate": [1.0, 2.0, 4.0], "standard_error": [0.5, 0.1, 0.3]})
    names = [
        "outcome_loss",
        "means_loss",
        "idle_trainings",
        "astray_trainings",
        "auc",
        "explained",
        "extreme",
        "trimmed",
    ]
    by_seed[[*names, "effective_treated", "effective_control"]] = 1.0
    Y, T = np.array([0.0, 1, 2, 5]), np.array([0, 0, 1, 1])
    rest = {"clusters": None, "settings": {"K": 2}, "changed": {}, "gpi_pack": "0"}
    found = Effect.of("Y", by_seed, np.full(4, 0.5), Y=Y, T=T, **rest)
    assert found.estimate == 2
    assert found.standard_error == pytest.approx(np.sqrt(1 + 0.5**2))  # the middle of 1.25, 0.01 and 4.09
    assert found.interval == pytest.approx((2 - 1.96 * np.sqrt(1.25), 2 + 1.96 * np.sqrt(1.25)), abs=1e-4)
    assert found.difference_in_means == 3


def test_several_outcomes_are_those_one_by_one_and_in_their_own_units():
    R, Y, T = draw()
    both = estimate(R, pd.DataFrame({"vote": Y, "income": 1000 * Y + 20000}), T, seeds=2)
    alone = estimate(R, pd.Series(Y, name="vote"), T, seeds=2)
    assert list(both) == ["vote", "income"]
    assert (both["vote"].estimate, both["vote"].standard_error) == (alone.estimate, alone.standard_error)
    assert both["income"].estimate == pytest.approx(1000 * alone.estimate, rel=0.02)
    assert list(estimate(R, np.column_stack([Y, Y]), T, seeds=1)) == ["Y0", "Y1"]
    for text in (repr(both), both._repr_html_()):
        assert "income" in text
        assert f"{alone.estimate:.3g}" in text


def test_a_result_prints_what_an_article_needs():
    R, Y, T = draw()
    found = estimate(R, pd.Series(Y, name="<vote>"), T, seeds=[3, 8], clusters=np.arange(120) // 2)
    text = repr(found)
    for expected in (
        f"{found.estimate:.3g}",
        f"{found.standard_error:.3g}",
        f"120 ({T.sum()} treated, {120 - T.sum()} control) in 60 clusters",
        "2 folds, median over 2 seeds (3, 8)",
        "nepoch=3",
        *found.warnings,
    ):
        assert expected in text
    assert "&lt;vote&gt;" in found._repr_html_()


def test_it_leaves_random_numbers_threads_figures_and_the_folder_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    R, Y, T = draw()
    first = estimate(R, Y, T, seeds=1)
    matplotlib.pyplot.close("all")
    before = matplotlib.rcParams._get_backend_or_none(), torch.get_num_threads()
    torch.set_num_threads(2)
    np.random.seed(5)
    torch.manual_seed(5)
    capsys.readouterr()
    again = estimate(R, Y, T, seeds=1)
    drawn = np.random.random(), torch.rand(1).item()
    np.random.seed(5)
    torch.manual_seed(5)
    assert drawn == (np.random.random(), torch.rand(1).item())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before[1])
    assert matplotlib.rcParams._get_backend_or_none() == before[0]
    assert not matplotlib.pyplot.get_fignums()
    assert first.estimate == again.estimate
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    with warnings.catch_warnings(action="ignore"):
        gpi_latents.estimate(R, Y, T, seeds=1, **QUICK)
    assert "2/2" in capsys.readouterr().err


def test_the_standard_error_of_clusters_is_the_deviation_of_their_means():
    random = np.random.default_rng(0)
    means, robust, naive = [], [], []
    for _ in range(300):
        groups = random.permutation(np.repeat(np.arange(80), random.integers(1, 9, 80)))
        groups = pd.factorize(groups)[0]
        scores = random.normal(size=80)[groups] + 0.5 * random.normal(size=len(groups))
        means.append(scores.mean())
        robust.append(diagnostics.standard_error(scores, groups))
        naive.append(diagnostics.standard_error(scores, np.arange(len(scores))))
    assert np.mean(robust) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(naive) < 0.6 * np.std(means)


@pytest.mark.long
def test_the_standard_error_of_an_estimate_with_clusters_is_the_deviation_of_estimates():
    """Persons with 4 images each, in any order, are treated or not as a whole, and have an outcome in common."""
    tiny = {"seeds": 1, "architecture_z": [2], "architecture_y": [2, 1], "nepoch": 1, "batch_size": 256}
    random = np.random.default_rng(0)
    robust, naive = [], []
    for _ in range(60):
        person = random.permutation(np.repeat(np.arange(100), 4))
        T = random.permutation(100)[person] % 2
        Y = random.normal(size=100)[person] + 0.3 * random.normal(size=400)
        R = random.normal(size=(400, 3)).astype(np.float32)
        robust.append(estimate(R, Y, T, clusters=person, **tiny))
        naive.append(estimate(R, Y, T, **tiny).standard_error)
    deviation = np.std([found.estimate for found in robust])
    assert np.mean([found.standard_error for found in robust]) == pytest.approx(deviation, rel=0.25)
    assert np.mean(naive) < 0.65 * deviation


def test_no_model_sees_a_cluster_that_it_is_used_for():
    """Each person's images are the same, and tell nothing of others: what is predicted better was seen."""
    random = np.random.default_rng(0)
    person = random.permutation(np.repeat(np.arange(60), 4))
    R = random.normal(size=(60, 30)).astype(np.float32)[person]
    Y, T = random.normal(size=60)[person], random.permutation(60)[person] % 2
    settings = SMALL | {"length": 5.5, "nepoch": 60}
    divided = estimate(R, Y, T, seeds=2, **settings).by_seed
    whole = estimate(R, Y, T, seeds=2, clusters=person, **settings).by_seed
    assert (divided["outcome_loss"] < 0.8 * divided["means_loss"]).all()
    assert (whole["outcome_loss"] > 0.9 * whole["means_loss"]).all()
    for groups, is_seen in ((np.arange(240), True), (person, False)):
        propensity, half = network.propensities(R, T, groups, 0, SETTINGS)
        assert diagnostics.auc(propensity, T, half) > 0.8 if is_seen else diagnostics.auc(propensity, T, half) < 0.7
        trained = network.train(R, Y, T, None, groups, 0, SETTINGS | QUICK)
        parts = [trained.train_dataloader.dataset.tensors[0], trained.valid_dataloader.dataset.tensors[0]]
        fitted, stopping = ({row.numpy().tobytes() for row in part} for part in parts)
        assert bool(fitted & stopping) == is_seen


def table(**values):
    """A table by seed with nothing to warn of, but for the values."""
    lines = {"seed": range(4), "estimate": [1.0, 1.1, 0.9, 1.0], "standard_error": 0.2, "outcome_loss": 1.0}
    lines |= {
        "means_loss": 2.0,
        "idle_trainings": 0,
        "astray_trainings": 0,
        "auc": 0.7,
        "explained": 0.3,
        "extreme": 0.0,
        "trimmed": 0.0,
    }
    return pd.DataFrame(lines | {"effective_treated": 80.0, "effective_control": 90.0} | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extreme": 0.4}, "Extreme propensities: 40% of the rows"),
        ({"trimmed": 0.1}, "10% were trimmed"),
        ({"effective_control": 10.0}, "the control rows count as 10% of their number"),
        ({"idle_trainings": [2, 2, 1, 0]}, "Nothing learned: in 5 of 8 trainings"),
        (
            {"estimate": [0.0, 1.0, 2.0, 3.0]},
            "Seeds disagree: the estimates of 4 seeds have a standard deviation of 1.29",
        ),
        ({"astray_trainings": [0, 1, 0, 0]}, "A training went astray: in 1 of 8, the network's outcome loss is more"),
        ({"auc": 0.95, "explained": 0.2}, "Leakage: the network's features predict the treatment well (AUC 0.95)"),
        ({"auc": 0.9, "explained": 0.05, "means_loss": 1.06}, "explains only 5.0% of the outcome's variance within"),
    ],
)
def test_what_speaks_against_an_estimate_is_said_in_words(values, message):
    assert diagnostics.cautions(table(), 2, 100, 100, None) == []
    (text,) = diagnostics.cautions(table(**values), 2, 100, 100, None)
    assert message in text


def test_few_clusters_and_few_rows_are_warned_of():
    assert "Few clusters: with 12" in diagnostics.cautions(table(), 2, 100, 100, 12)[0]
    assert "Few rows: with 30" in diagnostics.cautions(table(effective_treated=25.0), 2, 30, 100, None)[0]


def test_warnings_are_given_once_and_kept():
    R, Y, T = draw()
    R = np.random.default_rng(3).normal(size=R.shape).astype(np.float32)  # shows nothing
    with pytest.warns(UserWarning, match="^Y: Nothing learned: in . of 4 trainings") as caught:
        found = gpi_latents.estimate(R, Y, T, seeds=2, progress=False, **QUICK)
    assert [str(warning.message) for warning in caught] == [f"Y: {text}" for text in found.warnings]
    assert caught[0].filename == __file__


def test_propensities_that_do_not_explain_the_outcome_are_told_from_those_that_do():
    random = np.random.default_rng(0)
    T, shown = np.tile([0, 1], 500), random.normal(size=1000)
    part = np.repeat([0, 1], 500)
    propensity = 1 / (1 + np.exp(-2 * shown))
    Y = 5.0 * T + shown
    assert diagnostics.explained(Y, T, propensity, part) > 0.9
    assert diagnostics.explained(5.0 * T + random.normal(size=1000), T, propensity, part) < 0.02
    assert diagnostics.auc(propensity, (shown > 0).astype(int), part) == 1
    assert diagnostics.auc(propensity, T, part) == pytest.approx(0.5, abs=0.05)
    assert diagnostics.effective(np.array([1.0, 1, 1, 0])) == 3


def changed(values, place, value):
    values = np.array(values, float)
    values[place] = value
    return values


R, Y, T = draw(60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"Y": changed(Y, 7, np.nan)}, "Y has 1 missing or infinite values, the first in row 7"),
        ({"T": changed(T, 3, 2)}, "T must be 0 (control) or 1 (treated), but holds 0, 1, 2"),
        ({"R": changed(R, (2, 1), np.inf)}, "R holds missing or infinite values"),
        ({"R": R * 0}, "R is the same number everywhere"),
        ({"Y": Y[1:]}, "R has 60 rows, but Y has 59: give the same rows of each"),
        ({"C": np.ones((3, 1))}, "R has 60 rows, but C has 3"),
        ({"Y": Y * 0 + 3}, "Y is 3 in all rows"),
        ({"Y": 2 + 3 * T}, "Y is 5 in all treated and 2 in all control rows: beside the treatment there is nothing"),
        ({"Y": {"vote": ["yes"] * 60}}, "The outcome 'vote' must hold numbers"),
        ({"Y": {"vote": Y[:, None]}}, "The outcome 'vote' must be one column, (n,), not of shape (60, 1)"),
        ({"Y": pd.Series([1.0, None] * 30, dtype="Float64")}, "Y has 30 missing or infinite values"),
        ({"T": np.arange(60) < 4}, "There are 4 treated and 56 control rows"),
        ({"clusters": np.arange(60) // 30}, "There are 2 clusters: with K = 2 folds"),
        ({"clusters": [None] + list("abcde") * 11 + list("abcd")}, "clusters has 1 missing values, the first in row 0"),
        ({"clusters": [*"abcde" * 11, *"abcd", np.nan]}, "clusters has 1 missing values, the first in row 59"),
        ({"seeds": 0}, "seeds must be how many (1 or more)"),
        ({"seeds": [1, 1]}, "or different whole numbers"),
        ({"learning_rate": 1}, "estimate knows no setting 'learning_rate'. Its settings: K, architecture_z"),
        ({"cluster": T}, "estimate takes no setting 'cluster': give clusters=..."),
        ({"K": 1}, "K, the number of folds, must be 2 or more, not 1"),
        ({"trim": [2, 3]}, "trim must be two numbers from 0 to 1"),
        ({"trim": 0.05}, "trim must be two numbers from 0 to 1, such as [0.01, 0.99], or None, not 0.05"),
        ({"trim": [0.01, 0.5, 0.99]}, "trim must be two numbers"),
        ({"trim": ["low", "high"]}, "trim must be two numbers"),
        ({"valid_perc": 20}, "valid_perc, a share of the rows, must be between 0 and 1, not 20"),
        ({"valid_perc": 1}, "valid_perc, a share of the rows, must be between 0 and 1, not 1"),
        ({"valid_perc": 0}, "valid_perc, a share of the rows"),
        ({"valid_perc": None}, "valid_perc, a share of the rows"),
        ({"length": 0}, "length must be a number above 0, or None, not 0"),
        ({"length": -1.5}, "length must be a number above 0"),
        ({"length": "long"}, "length must be a number above 0"),
        (
            {"conv_layers": [{}]},
            "R must be (n, d) or (n, C, H, W), and (n, C, H, W) with conv_layers, not of shape (60, 24)",
        ),
    ],
)
def test_what_cannot_be_estimated_from_is_refused(arguments, message):
    with pytest.raises(DataError) as caught:
        gpi_latents.estimate(**({"R": R, "Y": Y, "T": T} | arguments))
    assert message in str(caught.value)


def test_a_training_that_goes_astray_is_named():
    with pytest.raises(DataError, match="seed 4 went astray and predicts no numbers: give a smaller lr"):
        estimate(R, Y, T, seeds=[4], lr=1e30)


class Sure:
    """A propensity model that is sure of some rows."""

    def fit(self, features, treatment):
        pass

    def predict_proba(self, features):
        chance = np.full(len(features), 0.5)
        chance[:2] = 0, 1
        return np.column_stack([1 - chance, chance])


@pytest.mark.parametrize("trim", [None, [0, 1]])
def test_a_seed_without_a_number_is_refused_and_not_left_out_of_the_median(trim):
    with pytest.raises(DataError, match=r"With seed 3, .* of 8 of 60 rows are 0 or 1, .*: give trim, such as trim="):
        estimate(R, Y, T, seeds=[3, 4], ps_model=Sure, trim=trim)
    assert np.isfinite(estimate(R, Y, T, seeds=[3, 4], ps_model=Sure).by_seed["estimate"]).all()


def test_bounds_of_propensities_may_be_an_array():
    arrays = [estimate(R, Y, T, seeds=1, trim=trim) for trim in ([0.3, 0.7], np.array([0.3, 0.7]), (0.7, 0.3))]
    assert {found.estimate for found in arrays} == {arrays[0].estimate}
    assert [found.changed["trim"] for found in arrays] == [[0.3, 0.7]] * 3
    assert "trim" not in estimate(R, Y, T, seeds=1, trim=np.array([0.01, 0.99])).changed


@pytest.mark.parametrize(
    ("number", "text"), [(999.4, "999"), (999.7, "1000"), (-999.7, "-1000"), (0.12345, "0.123"), (123456.7, "123457")]
)
def test_numbers_are_written_without_powers_of_ten(number, text):
    assert written(number) == text


def test_latents_with_their_shape_are_flattened_or_convolved():
    R, Y, T = draw(60)
    shaped = R.reshape(60, 4, 2, 3)
    assert estimate(shaped, Y, T, seeds=1).estimate == estimate(R, Y, T, seeds=1).estimate
    layers = [{"in_channels": 4, "out_channels": 3, "kernel_size": 2}]
    assert abs(estimate(shaped, Y, T, seeds=1, conv_layers=layers).estimate) < 5


def test_covariates_count_whatever_their_units():
    R, Y, T = draw(400)
    noise = np.random.default_rng(2).normal(size=R.shape).astype(np.float32)
    income = 1e5 + 2e4 * R[:, :12].mean(axis=1)
    assert estimate(noise, Y, T, seeds=1, **SMALL).estimate > 1.5
    assert estimate(noise, Y, T, income, seeds=1, **SMALL).estimate < 1.4


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_reach_gpi_pack_by_the_names_that_it_has(name):
    known = inspect.signature(import_gpi_pack().estimate_k_ate).parameters
    assert name in {*known, "length", "standardize"}


def test_without_gpi_pack_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "gpi_pack", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"gpi_pack is not installed: run `make gpi`, .* may replace your torch"):
        gpi_latents.estimate(R, Y, T)


def test_the_page_installs_the_same_gpi_pack():
    (command,) = re.findall(r"pip install --no-deps \S+?(?=`)", INSTALL)
    assert f"\n{command}\n" in (ROOT / "docs/estimation.md").read_text(encoding="utf-8")


def test_the_estimate_does_not_hang_on_how_many_values_an_image_has():
    R, Y, T = draw(400)
    few, many = (estimate(np.tile(R, times), Y, T, seeds=2, **SMALL) for times in (1, 40))
    assert many.estimate == pytest.approx(few.estimate, abs=few.standard_error)
