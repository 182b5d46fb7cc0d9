"""A folder of results as the workflow leaves it, made without a model."""

from __future__ import annotations

import hashlib
import json

import pandas as pd
import torch
from gpi_latents.tensors.tensor_file import tensor_writer

SHEET = pd.DataFrame(
    {
        "row": range(6),
        "id": ["001", "bob", "eve", "kim", "lee", "mia"],
        "image": "a.png",
        "prompt": "12",
        "strength": ["0.0", "0.0", "0.0", "0.0", "0.5", "0.5"],
        "treatment": ["0", "1", "0", "1", "0", "1"],
        "outcome": ["1.5", "-2e-1", "3", "", "n/a", "4"],
        "size": [".1", "2", "3", " 4 ", "5", "6"],
    },
    dtype=str,
)


def make_results(folder, stacked="results/latents.pt", sheet=SHEET):
    (folder / "hidden").mkdir(parents=True)
    paths = {item_id: folder / f"hidden/hidden_{item_id}.pt" for item_id in sheet["id"]}
    for item_id, path in paths.items():
        number = float(list(SHEET["id"]).index(item_id))
        latent = torch.full((1, 4, 2, 3), number) + torch.arange(24).reshape(1, 4, 2, 3) / 100
        torch.save(latent, path)
    latents = [torch.load(path, weights_only=True).numpy() for path in paths.values()]
    target = folder.parent / stacked
    target.parent.mkdir(exist_ok=True)
    with tensor_writer(target, (len(latents), 4, 2, 3), {}) as file:
        file.writelines(latent.tobytes() for latent in latents)
    digests = [hashlib.sha256(latent.tobytes()).hexdigest() for latent in latents]
    sheet.assign(sha256=digests).to_csv(folder / "index.csv", index=False)
    (folder / "provenance.json").write_text(json.dumps({"config": {"stacked": stacked}}))
    return folder


def edit(results, change):
    index = pd.read_csv(results / "index.csv", dtype=str, keep_default_na=False)
    change(index).to_csv(results / "index.csv", index=False)
