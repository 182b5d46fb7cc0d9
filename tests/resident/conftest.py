"""Benches whose residents end with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.bench import Bench, finished


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    """For tests that end its resident, or start several; without a model."""
    made = Bench(tmp_path / "study", stub=True)
    yield made
    made.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Bench]:
    """With a resident that serves all tests of a file; without a model."""
    made = Bench(tmp_path_factory.mktemp("bench") / "study", stub=True, resident_idle_seconds=600)
    finished(made.client("warm"))
    yield made
    made.end()
