"""What the resident is asked, and how it says that an item could not be made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpi_latents.errors import UserError
from gpi_latents.resident.engine import Request


def parse_request(given: Any, config: Mapping[str, Any]) -> tuple[Request, int]:
    """A request that came as JSON, and the process number of the Snakemake that asks.

    Raises:
        ValueError: it has another form, or would write outside this working directory's result folders.
    """
    kinds = {"image": str, "recipe": dict, "latent": str, "picture": (str, type(None)), "run": int}
    if not isinstance(given, dict) or given.keys() - {"alone"} != kinds.keys():
        raise ValueError(f"a request has the keys {', '.join(kinds)}")
    for key, kind in kinds.items():
        if not isinstance(given[key], kind):  # type: ignore[arg-type]
            raise ValueError(f"{key} is of the wrong kind")
    for key, folder in (("latent", config["output_hidden_dir"]), ("picture", config["output_image_dir"])):
        path = given[key]
        if path is not None and (folder is None or Path(path).resolve().parent != Path(folder).resolve()):
            raise ValueError(f"{path!r} is not in the result folder {folder!r}")
    run_pid = given.pop("run")
    return Request(**given), run_pid


def explain(error: Exception, request: Request) -> str:
    """A message for the user: which item, and what is wrong."""
    text = str(error) or type(error).__name__
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return f"{request.image}: {text}"


def failure(message: str, code: int = 500) -> bytes:
    """An answer that says why an item could not be made, and by its code whether the item itself is at fault."""
    *first, last = message.splitlines() or [""]
    return "".join([*(f"501 {line}\n" for line in first), f"{code} {last}\n"]).encode(errors="replace")
