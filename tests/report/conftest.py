"""Results to draw, in the working directory of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpi_latents.report import style
from gpi_latents.report.facts import Results
from helpers.report import Page, build_page, draw_figures, make_results, random_latents, write_log
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="package", autouse=True)
def quick_figures() -> Iterator[None]:
    """Fewer pixels than usual, and one thread as in a job; the demo's figures are drawn by other processes."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setattr(style, "DPI", 40)
        yield


@pytest.fixture
def made(tmp_path, monkeypatch) -> Callable[..., Results]:
    """`make_results`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return make_results


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory) -> Path:
    """The working directory of `drawn`."""
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="session")
def drawn(drawn_folder) -> tuple[Page, dict[str, Any]]:
    """The report of 40 items in which every kind of finding occurs, and the facts of its figures."""
    latents = random_latents(40)
    latents[17, 2] += 3
    latents[30, 1] *= 4
    latents[21] = latents[7] + 0.01 * random_latents(1, seed=5)[0]
    latents[25] = latents[3]
    strengths = ["0.8" if number in (4, 9) else "0.0" for number in range(40)]  # of those with the most noise
    treatment = [str(number % 2) for number in range(40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(drawn_folder)
        results = make_results(latents, strength=strengths, treatment=treatment)
        write_log("p0", 0.25, 0.3, "cpu")
        write_log("p1", 12.5, 20.0, "cuda:0")
        write_log("p2", 0.5, 0.6, "cpu")
        with open("logs/extract/p3.log", "w") as log:
            log.write("error: no such picture\n")
        open("logs/extract/p4.log", "w").close()
        facts = draw_figures(results)
        return build_page(results), facts
