"""One training of `gpi_pack`'s network, and the propensities from its features. Groups of rows are never split."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from gpi_latents.errors import DataError
from gpi_latents.gpi.gpi_pack_import import import_gpi_pack

DIVISIONS = 100  # tried, until treated and control rows are in both halves
SAME_NAMES = ("batch_size", "conv_layers", "dropout", "step_size", "bn", "patience", "min_delta")  # TarNet's and ours


def rows_of(groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The rows (int64) whose group is among those chosen, in the order of these."""
    place = np.full(groups.max() + 1, -1)
    place[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(place[groups] >= 0)
    return rows[np.argsort(place[groups[rows]], kind="stable")]


def halves(groups: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows at random, a group as a whole, so that `share` of the groups is in the second part."""
    from sklearn.model_selection import train_test_split

    first, second = train_test_split(np.unique(groups), test_size=share, random_state=seed)
    return rows_of(groups, first), rows_of(groups, second)


def train(
    R: np.ndarray,
    Y: np.ndarray,
    T: np.ndarray,
    C: np.ndarray | None,
    groups: np.ndarray,
    seed: int,
    settings: dict[str, Any],
) -> Any:
    """A trained `gpi_pack.TarNet`.

    The first weights and the order of the batches follow from the seed. The rows that decide when to stop are drawn as
    `gpi_pack` draws them, but by group. Batches are taken from the arrays at once, not row by row as `gpi_pack` does,
    which gives the same numbers several times faster.

    Args:
        R: float32 (n, d), or (n, C, H, W) with `conv_layers`.
        Y: float64 (n,).
        T: int64 (n,), 0 or 1.
        C: float64 (n, covariates), or None.
        groups: int64 (n,).
        seed: of the weights, the rows that decide when to stop, and the batches.
        settings: as in `gpi_latents.gpi.estimate.SETTINGS`.
    """
    from torch.utils.data import DataLoader

    class Network(import_gpi_pack().TarNet):  # type: ignore[misc]
        train_dataloader: Any
        valid_dataloader: Any

        def create_dataloaders(self, *parts_by_row: Any) -> None:
            parts = halves(groups, settings["valid_perc"], seed)
            arrays = [R, Y, T] if C is None else [R, Y, T, C]
            super().create_dataloaders(*(values[part] for values in arrays for part in parts))
            self.train_dataloader = _by_batch(self.train_dataloader)
            self.valid_dataloader = _by_batch(self.valid_dataloader)

    def _by_batch(loader: DataLoader) -> DataLoader:
        return DataLoader(loader.dataset, sampler=loader.batch_sampler, batch_size=None)

    network = Network(
        epochs=settings["nepoch"],
        learning_rate=settings["lr"],
        architecture_y=list(settings["architecture_y"]),
        architecture_z=list(settings["architecture_z"]),
        verbose=False,
        random_state=seed,
        **{name: settings[name] for name in SAME_NAMES},
    )
    network.fit(R, Y, T, C, valid_perc=settings["valid_perc"], plot_loss=False)
    return network


def propensities(
    features: np.ndarray, T: np.ndarray, groups: np.ndarray, seed: int, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the treatment given a network's features, each row's from a model that did not see it.

    Args:
        features: float32 (n, features), of rows that the network was not trained on.
        T: int64 (n,), 0 or 1.
        groups: int64 (n,).
        seed: of the two halves.
        settings: `ps_model` and `ps_model_params` are used.

    Returns:
        The propensities, float64 (n,), and the half of each row, 0 or 1, int64 (n,).

    Raises:
        DataError: no division into halves gives each of them treated and control rows.
    """
    from sklearn.linear_model import LogisticRegression

    gpi_pack = import_gpi_pack()
    model_class = settings["ps_model"] or LogisticRegression
    options = dict(settings["ps_model_params"])
    if model_class is gpi_pack.SpectralNormClassifier:
        options.setdefault("input_dim", features.shape[1])
    first, second = _halves_with_both(T, groups, seed)
    found, half = np.empty(len(T)), np.zeros(len(T), np.int64)
    half[second] = 1
    for fitted, predicted in ((first, second), (second, first)):
        model = model_class(**options)
        with contextlib.redirect_stdout(io.StringIO()):  # gpi_pack's classifier prints each epoch
            model.fit(features[fitted], T[fitted])
        found[predicted] = model.predict_proba(features[predicted])[:, 1]
    return found, half


def _halves_with_both(T: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Halves with treated and control rows each: those of `gpi_pack` by this seed, or else by the next that will do."""
    if len(np.unique(groups)) > 1:
        for attempt in range(DIVISIONS):
            first, second = halves(groups, 0.5, (seed + attempt) % 2**32)
            if len(set(T[first])) == len(set(T[second])) == 2:
                return first, second
    raise DataError(
        f"With seed {seed}, {len(T)} rows cannot be divided into halves with treated and control rows each, for the "
        "propensities. Give more rows or clusters, or a smaller K"
    )
