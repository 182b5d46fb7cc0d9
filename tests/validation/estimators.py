"""The estimators that the study compares, and how well latents show a confounder."""

from __future__ import annotations

import warnings
from typing import Any

import gpi_latents
import numpy as np
from gpi_latents.gpi.effect import Effect

COMPONENTS = 20
READING_COMPONENTS = 100
FOLDS = 5
# Those of the README before `gpi_latents.estimate`; there one seed was used.
OLD_SETTINGS: dict[str, Any] = {
    "K": 2,
    "architecture_z": [64, 16],
    "architecture_y": [256, 1],
    "lr": 3e-3,
    "batch_size": 64,
    "patience": 30,
    "step_size": None,
    "dropout": 0.0,
    "length": 16 / 30,  # R / (30 * R.std()), with 256 values a row
    "ps_model_params": {},
    "standardize": False,
}
NAMES = {
    "naive": "difference in means",
    "components": "AIPW on principal components",
    "old": "gpi_pack, old settings, one seed",
    "estimate": "gpi_latents.estimate",
    "oracle": "confounder known",
}


def difference_in_means(Y: np.ndarray, T: np.ndarray) -> tuple[float, float]:
    """The estimate and its standard error (Welch)."""
    treated, control = Y[T == 1], Y[T == 0]
    variance = treated.var(ddof=1) / len(treated) + control.var(ddof=1) / len(control)
    return float(treated.mean() - control.mean()), float(np.sqrt(variance))


def regression(Y: np.ndarray, T: np.ndarray, confounder: np.ndarray) -> tuple[float, float]:
    """The treatment's coefficient by least squares, adjusted for the confounder, and its standard error."""
    X = np.column_stack([T, np.ones_like(Y), confounder])
    coefficients = np.linalg.lstsq(X, Y, rcond=None)[0]
    residuals = Y - X @ coefficients
    covariance = np.linalg.inv(X.T @ X) * (residuals @ residuals) / (len(Y) - X.shape[1])
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0]))


def aipw_on_components(R: np.ndarray, Y: np.ndarray, T: np.ndarray, seed: int) -> tuple[float, float]:
    """Cross-fitted AIPW (augmented inverse propensity weighting) with linear models of principal components.

    Args:
        R: latents (n, d).
        Y: outcomes (n,).
        T: treatments (n,), 0 or 1.
        seed: of the folds.

    Returns:
        The estimate and its standard error.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.model_selection import KFold

    X = PCA(COMPONENTS, whiten=True, random_state=0).fit_transform(R)
    scores = np.empty(len(Y))
    for fitted, rows in KFold(FOLDS, shuffle=True, random_state=seed).split(X):
        propensity = LogisticRegression(max_iter=1000).fit(X[fitted], T[fitted]).predict_proba(X[rows])[:, 1]
        propensity = propensity.clip(0.01, 0.99)
        predicted = [
            LinearRegression().fit(X[fitted][T[fitted] == arm], Y[fitted][T[fitted] == arm]).predict(X[rows])
            for arm in (0, 1)
        ]
        residuals = Y[rows] - np.where(T[rows] == 1, predicted[1], predicted[0])
        weights = np.where(T[rows] == 1, 1 / propensity, -1 / (1 - propensity))
        scores[rows] = predicted[1] - predicted[0] + weights * residuals
    return float(scores.mean()), float(scores.std() / np.sqrt(len(scores)))


def estimate(R: np.ndarray, Y: np.ndarray, T: np.ndarray, **options: Any) -> Effect:
    """`gpi_latents.estimate`; its warnings are in the result, and are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gpi_latents.estimate(R, Y, T, progress=False, **options)


def readability(R: np.ndarray, confounder: np.ndarray, T: np.ndarray, seed: int) -> float:
    """How well latents show a confounder: of its variance within treatment groups, the share predicted out of fold.

    Within treatment groups, as the treatment alone tells something of its causes too. The better of a ridge regression
    and a small neural network (scikit-learn's), of the treatment and `READING_COMPONENTS` principal components, in two
    folds, as the networks of `gpi_latents.estimate` learn from half of the rows.

    Args:
        R: latents (n, d).
        confounder: (n,).
        T: treatments (n,), 0 or 1.
        seed: of the folds and the network.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neural_network import MLPRegressor

    X = PCA(READING_COMPONENTS, random_state=0).fit_transform(R)
    X = np.column_stack([X / X.std(), T])
    network = MLPRegressor(
        hidden_layer_sizes=(64, 16), learning_rate_init=3e-3, batch_size=64, early_stopping=True, random_state=seed
    )
    folds = KFold(2, shuffle=True, random_state=seed)
    models = (RidgeCV(np.logspace(-2, 4, 7)), network)
    errors = [float(((confounder - cross_val_predict(model, X, confounder, cv=folds)) ** 2).mean()) for model in models]
    within = confounder - np.where(T == 1, confounder[T == 1].mean(), confounder[T == 0].mean())
    return 1 - min(errors) / float((within**2).mean())
