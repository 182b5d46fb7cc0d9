"""Models that the tests of the core share; they are loaded once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from gpi_latents.core.diffusion import Model, same_bits
from gpi_latents.paths import DEMO_MODEL
from helpers import families


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    same_bits()


@pytest.fixture(scope="session")
def demo_model() -> Model:
    return Model(DEMO_MODEL)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """The folder of the families' checkpoints."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="session")
def family_model(checkpoints) -> Callable[[str], Model]:
    """Loads a family's model, once each."""
    return functools.cache(lambda family: Model(families.model(family, checkpoints)))
