"""Items that go through the model together: who waits for whom, and what one of them does to the others."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gpi_latents import paths
from gpi_latents.errors import ItemError, UserError
from gpi_latents.resident.batches import Batches, Job
from gpi_latents.resident.engine import Engine, Request
from gpi_latents.resident.progress import WAITING
from gpi_latents.resident.server import once
from gpi_latents.study.settings import load_config
from helpers.bench import RECIPE, demo_model
from helpers.study import draw

LONG = 60.0  # seconds that an item waits for others here, so that what ends the wait is never the clock


class StubModel:
    """Makes a latent of an item's name, in three steps; keeps the names of each batch."""

    device = "stub"

    def __init__(self, **errors: Exception):
        self.errors = errors
        self.batches: list[list[str]] = []
        self.is_free = threading.Event()
        self.is_free.set()

    def latents(self, pictures, recipes, on_step):
        self.is_free.wait(LONG)
        names = [recipe["name"] for recipe in recipes]
        self.batches.append(names)
        for name in names:
            if name in self.errors and not isinstance(self.errors[name], ItemError):
                raise self.errors[name]
        for _ in range(3):
            on_step()
        return [self.errors.get(name, f"latent of {name}") for name in names]

    def prompt_notes(self, recipe):
        return [f"note on {recipe['name']}"]

    def decode_all(self, latents, batch_size):
        return [f"{latent}, decoded by {batch_size}" for latent in latents]


def together(model: StubModel, names: str, size: int, steps=None, patience: float = LONG) -> dict:
    """What becomes of items that come at the same time; the kind of each is its letter's case."""
    batches = Batches([model], size, lambda: None)

    def make(name: str):
        step = (steps or {}).get(name, lambda doing: None)
        try:
            return batches.make(Job(str(name.isupper()), None, {"name": name}, name != "u", step, patience))
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(make, names), strict=True))


def test_items_of_one_kind_share_a_batch_and_each_gets_its_own():
    model = StubModel()
    made = together(model, "aBuDeF", 3)
    assert sorted(map(sorted, model.batches)) == [["B", "D", "F"], ["a", "e", "u"]]
    for name, own in made.items():
        assert (own.latent, own.notes) == (f"latent of {name}", [f"note on {name}"])
        assert own.decoded == (None if name == "u" else f"latent of {name}, decoded by 3")


def test_an_item_without_company_does_not_wait_for_ever():
    model = StubModel()
    assert together(model, "aB", 8, patience=0.01)["a"].latent == "latent of a"
    assert sorted(model.batches) == [["B"], ["a"]]


@pytest.mark.parametrize("error", [ItemError("NaN"), ValueError("of this item alone")], ids=repr)
def test_an_item_that_fails_fails_alone(error):
    made = together(StubModel(b=error), "abc", 3)
    assert made["b"] is error
    assert [made[name].latent for name in "ac"] == ["latent of a", "latent of c"]


def test_what_is_wrong_with_the_device_is_said_to_all_at_once():
    error = UserError("out of memory")
    model = StubModel(b=error)
    assert together(model, "abc", 3) == dict.fromkeys("abc", error)
    assert len(model.batches) == 1


def test_who_is_tried_again_waits_for_the_model_meanwhile():
    """So that its time without progress does not count."""
    steps: dict[str, list[str]] = {name: [] for name in "ab"}
    together(StubModel(b=ValueError("of this item alone")), "ab", 2, {name: steps[name].append for name in "ab"})
    making = "making the latent"
    assert steps["b"] == [making, WAITING, making]
    assert steps["a"] == [making, WAITING, *[making] * 4, "decoding the latent"]


@pytest.mark.fault("gpu")
def test_the_resident_ends_where_its_gpu_has_failed(monkeypatch, capsys):
    """Its clients ask another one, which begins with the GPU anew."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    together(StubModel(b=torch.AcceleratorError("an illegal memory access was encountered")), "a", 1)
    assert not ended
    together(StubModel(b=torch.AcceleratorError("an illegal memory access was encountered")), "b", 1)
    assert ended == [1]
    alone = together(StubModel(b=torch.AcceleratorError("out of memory")), "b", 1, patience=0)
    assert ended == [1]
    assert isinstance(alone["b"], torch.AcceleratorError)  # and no fault of the item, as it is no ItemError
    assert "ending: stub has failed: an illegal memory access was encountered" in capsys.readouterr().err


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5])
def test_an_item_that_nobody_waits_for_does_not_take_its_neighbours_along(last):
    """It is given up before it is computed, while it is, or before it is decoded."""
    asked = []

    def step(doing: str) -> None:
        asked.append(doing)
        if len(asked) == last:
            raise InterruptedError

    model = StubModel()
    made = together(model, "abc", 3, {"b": step})
    assert isinstance(made["b"], InterruptedError)
    assert len(asked) == last
    assert [made[name].latent for name in "ac"] == ["latent of a", "latent of c"]
    assert [len(batch) for batch in model.batches] == [3 if last > 1 else 2]


def test_a_batch_that_nobody_waits_for_is_given_up():
    def step(doing: str) -> None:
        steps.append(doing)
        if len(steps) > 3:
            raise InterruptedError

    steps: list[str] = []
    made = together(StubModel(), "ab", 2, {"a": step, "b": step})
    assert all(isinstance(error, InterruptedError) for error in made.values())
    assert steps == ["making the latent"] * 5  # each before all and after a step; one more after that


def test_the_resident_gives_the_bits_of_an_item_alone(tmp_path, monkeypatch):
    """Together, in the way without a resident, and when it is tried again alone; also where a neighbour is damaged."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path(paths.MODEL).write_text(demo_model())
    config = load_config({"model_id": "demo", "device": "cpu", "batch_size": 3})
    engine = Engine(config, workers=1)
    assert (engine.at_once, engine.threads) == (3, 3)
    batches = []
    latents = engine.models[0].latents
    monkeypatch.setattr(engine.models[0], "latents", lambda *given: batches.append(len(given[0])) or latents(*given))
    recipes = {f"{n}.png": RECIPE | {"batch_size": 3, "seed": n, "prompt": f"{n}", "strength": 0.5} for n in range(4)}
    for number, name in enumerate(recipes):
        draw(Path(name), seed=number)
    Path("3.png").write_text("no picture")

    def extract(name: str) -> object:
        try:
            return engine.extract(Request(name, recipes[name], f"{name}.pt", f"{name}.made.png"))
        except ItemError as error:
            return str(error)

    with ThreadPoolExecutor(4, initializer=engine.same_bits) as pool:
        found = dict(zip(recipes, pool.map(extract, recipes), strict=True))
    assert "cannot be read" in found["3.png"]
    for name in list(recipes)[:3]:
        engine.extract(Request(name, recipes[name], "alone.pt", "alone.png", alone=True))
        assert Path("alone.pt").read_bytes() == Path(f"{name}.pt").read_bytes()
        assert Path("alone.png").read_bytes() == Path(f"{name}.made.png").read_bytes()
    once(config, name, recipes[name], "once.pt", "once.png")
    assert Path("once.pt").read_bytes() == Path("alone.pt").read_bytes()
    assert Path("once.png").read_bytes() == Path("alone.png").read_bytes()
    assert sum(batches) == 6
    assert not torch.equal(*(torch.load(f"{n}.png.pt", weights_only=True) for n in (0, 1)))
