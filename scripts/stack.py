"""All latents into one tensor in sheet order, the index table and the provenance beside it."""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import platform
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import items
import numpy as np
import torch
from tensors import values_offset, write_shape


def read_latent(path: str | Path) -> torch.Tensor:
    """One item's latent, float32 (1, C, H, W).

    Raises:
        InputError: the file is no such latent.
    """
    try:
        latent = torch.load(path, map_location="cpu", weights_only=True)
        if latent.dtype != torch.float32 or latent.ndim != 4 or latent.shape[0] != 1:
            raise ValueError(f"it holds {latent.dtype} {tuple(latent.shape)}, not float32 (1, C, H, W)")
    except FileNotFoundError:
        raise items.InputError(f"{path} is missing: run snakemake without a target, which makes it again") from None
    except Exception as error:  # torch.load raises many kinds for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise items.InputError(f"{path} is not a latent of this workflow ({reason}): delete it and run again") from None
    return latent


class Reader:
    """Reads latents of one shape as `read_latent` does, but without torch where a file is written like the first one.

    Of two files that torch.save wrote for tensors of one shape and memory layout, all is the same up to the values;
    behind these stands their CRC-32 (a zip file's data descriptor). What is not so is left to torch.
    """

    def __init__(self, first: str | Path):
        latent = read_latent(first)
        self.shape = tuple(latent.shape)
        self.strides = [4 * stride for stride in latent.stride()]
        content = Path(first).read_bytes()
        begin = values_offset(first)
        self.before = content[:begin]
        self.values = slice(begin, begin + 4 * latent.numel())
        self.length = len(content)

    def read(self, path: str | Path, recipe_digest: str = "") -> tuple[bytes, str] | None:
        """One latent.

        Args:
            path: of its file.
            recipe_digest: of the recipe that must have made it, where the file says so; empty where any will do.

        Returns:
            Its bytes, little-endian float32 in C order, and their SHA-256, hexadecimal; None if its shape differs.

        Raises:
            InputError: the file is no latent of this workflow, a damaged one, or one that another recipe made.
        """
        try:
            content = Path(path).read_bytes()
        except OSError:
            content = b""
        # The end of a zip file: a record of 22 bytes, then the comment.
        said = content[-64:].decode(errors="replace") if content[-86:-82] == b"PK\5\6" else ""
        if said and recipe_digest and said != recipe_digest:
            raise items.InputError(
                f"{path} was made with other settings than the sheet and the config now have: delete it and run again"
            )
        if len(content) == self.length and content.startswith(self.before):
            values = content[self.values]
            if not content.startswith(b"PK\7\10" + zlib.crc32(values).to_bytes(4, "little"), self.values.stop):
                raise items.InputError(f"{path} is damaged (its checksum is wrong): delete it and run again")
            latent = np.ndarray(self.shape, "<f4", values, strides=self.strides)
        else:
            latent = read_latent(path).numpy().astype("<f4", copy=False)
        if latent.shape != self.shape:
            return None
        ordered = latent.tobytes()
        return ordered, hashlib.sha256(ordered).hexdigest()


def stack(
    paths: Iterable[str], ids: list[str], target: Path, metadata: dict[str, str], recipes: Iterable[str] | None = None
) -> list[str]:
    """Write all latents into one file, reading one at a time.

    Args:
        paths: of the latents, in sheet order.
        ids: of their items, in the same order.
        target: the suffix `.pt`, `.npy` or `.safetensors` chooses the format of the tensor (N, C, H, W), float32.
        metadata: texts that a safetensors file holds beside the tensor.
        recipes: the digests of the recipes that must have made the latents, in the same order.

    Returns:
        The SHA-256 of each latent's bytes (little-endian float32 in C order), hexadecimal.

    Raises:
        InputError: the latents are not all of one shape, or not what `Reader.read` takes.
    """
    paths = list(paths)
    digests = []
    reader = Reader(paths[0])
    with _writer(target, (len(paths), *reader.shape[1:]), metadata) as file:
        for path, recipe_digest in zip(paths, recipes or [""] * len(paths), strict=True):
            latent = reader.read(path, recipe_digest)
            if latent is None:
                raise items.InputError(_shapes_message(paths, ids))
            file.write(latent[0])
            digests.append(latent[1])
    return digests


@contextmanager
def _writer(path: Path, shape: tuple[int, ...], metadata: dict[str, str]) -> Iterator[BinaryIO]:
    """A file whose format is complete but for the tensor's values, open where these begin."""
    size = 4 * int(np.prod(shape))
    if path.suffix == ".pt":
        offset = _pt_skeleton(path, shape, size)
    else:
        header = _npy_header(shape) if path.suffix == ".npy" else _safetensors_header(shape, size, metadata)
        path.write_bytes(header)
        offset = len(header)
    with path.open("r+b") as file:
        file.seek(offset)
        yield file


def _pt_skeleton(path: Path, shape: tuple[int, ...], size: int) -> int:
    # torch writes the whole file but the values, and tells where they belong. The tensor that it is given lies in a
    # sparse file, so that it takes neither memory nor disk.
    sparse = path.with_name(f"{path.name}.sparse")
    try:
        with sparse.open("wb") as file:
            file.truncate(size)
        tensor = torch.from_file(str(sparse), shared=False, size=size // 4, dtype=torch.float32).reshape(shape)
        with torch.serialization.skip_data():
            torch.save(tensor, path)
    except RuntimeError as error:  # all that torch says is "iostream error"
        raise OSError(f"the tensor cannot be written to {path.parent} ({error}): No space left on device?") from None
    else:
        write_shape(path, shape)
    finally:
        sparse.unlink(missing_ok=True)
    return values_offset(path)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _safetensors_header(shape: tuple[int, ...], size: int, metadata: dict[str, str]) -> bytes:
    # The library writes only tensors that are in memory. The format: the header's length in 8 bytes, JSON padded to
    # 8, the values (https://github.com/huggingface/safetensors, "Format").
    header = {"__metadata__": metadata, "latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _shapes_message(paths: list[str], ids: list[str]) -> str:
    found = collections.defaultdict(list)
    for path, item_id in zip(paths, ids, strict=True):
        found[tuple(read_latent(path).shape[1:])].append(item_id)
    lines = ["The latents have different shapes (C, H, W), so they make no one tensor:"]
    for shape, members in sorted(found.items(), key=lambda entry: -len(entry[1])):
        named = ", ".join(members[:5]) + (", ..." if len(members) > 5 else "")
        lines.append(f"  - {shape}: {len(members)} item{'s' * (len(members) > 1)} ({named})")
    lines.append("With resize 'pad', 'crop' or 'stretch' all have one shape. Each item's own latent is there anyway.")
    return "\n".join(lines)


def provenance(config: dict[str, Any], model: dict[str, Any], count: int) -> dict[str, Any]:
    """What made the latents: model, recipe version, config, and the software at the time of stacking."""
    packages = ("torch", "diffusers", "transformers", "pillow", "numpy", "snakemake")
    return {
        "items": count,
        "model": model,
        "recipe_version": items.RECIPE_VERSION,
        "software": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "config": config,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the workflow's config as JSON")
    parser.add_argument("--table", required=True, help="digest of the index table that was planned")
    parser.add_argument("--model", type=Path, required=True, help="model.json")
    parser.add_argument("--output", type=Path, nargs=3, required=True, help="tensor, index table and provenance")
    arguments = parser.parse_args()
    config = arguments.config
    tensor, index, provenance_file = arguments.output
    temporary = tensor.with_name(f".{tensor.name}.tmp{tensor.suffix}")
    try:
        sheet = items.read_items(config, check_images=False)
        table = items.index_table(config, sheet)
        if items.table_digest(table) != arguments.table:
            raise items.InputError(f"The sheet {config['items']} was changed during the run: run again")
        origin = provenance(config, json.loads(arguments.model.read_text(encoding="utf-8")), len(table))
        paths = [items.latent_path(config, item_id) for item_id in table["id"]]
        known = sheet[["prompt", *items.SETTINGS]].itertuples(index=False)
        recipes = [items.recipe_digest(items.recipe(config, item)) for item in known]
        # The index is absent while the tensor is replaced, so that the two never disagree.
        index.unlink(missing_ok=True)
        metadata = {"provenance": items.canonical(origin)}
        digests = stack(paths, list(table["id"]), temporary, metadata, recipes)
        table.insert(table.columns.get_loc("seed") + 1, "sha256", digests)
        temporary.replace(tensor)
        provenance_file.write_text(json.dumps(origin, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial = index.with_name(f".{index.name}.tmp")
        table.to_csv(partial, index=False, lineterminator="\n")
        partial.replace(index)
    except (
        items.InputError,
        OSError,
        RuntimeError,
        json.JSONDecodeError,
        zipfile.BadZipFile,
    ) as error:  # torch.save has its own kind
        print(error, file=sys.stderr)
        return 1
    finally:
        temporary.unlink(missing_ok=True)
    print(f"stacked {len(table)} latents")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
