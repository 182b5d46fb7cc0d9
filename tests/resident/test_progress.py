"""How far an item is, and when that is not enough."""

from __future__ import annotations

import pytest
from gpi_latents.resident.progress import WAITING, Progress


def test_an_item_that_makes_no_progress_is_given_up_and_every_step_is_progress():
    item = Progress(limit=5)
    for _ in range(3):
        item.step("making the latent")
        for _ in range(3):
            assert not item.problem(2)
    assert item.problem(2).startswith("no progress for 6 s while making the latent")


@pytest.mark.parametrize("steps", [[], ["opening the picture", WAITING]])
def test_an_item_that_waits_for_its_turn_is_not_to_blame(steps):
    item = Progress(limit=5)
    for step in steps:
        item.step(step)
    assert not any(item.problem(2) for _ in range(10))
