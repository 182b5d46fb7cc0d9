"""A study as the Snakefile sees it: the checked config and sheet, and where each item's files are."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any

import pandas as pd
from snakemake.common import overwrite_function_params

from gpi_latents import paths, run
from gpi_latents.errors import InputError
from gpi_latents.model.family import model_files, model_identity
from gpi_latents.plan import PLAN_COLUMNS, item_lines, read_item_lines, read_plan, write_plan
from gpi_latents.recipe import SETTINGS, canonical, recipe, text_digest
from gpi_latents.study.settings import load_config
from gpi_latents.study.sheet import index_table, read_items
from gpi_latents.study.stale import stale_results


def plan_table(config: Mapping[str, Any], sheet: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The plan of a sheet, as `plan.write_plan` takes it, and the recipe of each item as canonical JSON.

    Args:
        config: as `settings.load_config` returns it.
        sheet: as `sheet.read_items` returns it.
    """
    recipes = [recipe(config, item) for item in sheet[["prompt", *SETTINGS]].itertuples(index=False)]
    texts = list(map(canonical, recipes))
    table = index_table(sheet, recipes)
    table.insert(0, "sheet_row", sheet.index)
    table.insert(1, "recipe_sha256", list(map(text_digest, texts)))
    return table, texts


def with_parameters(function: Callable) -> Callable:
    """Keep the parameters of a function: Snakemake asks for them at each call, which takes longer than the call."""
    overwrite_function_params(function, inspect.signature(function).parameters)
    return function


class Study:
    """A study, read once when Snakemake parses.

    Args:
        given: the config as Snakemake read it.
        command_line: the keys that came by `--config`.
        is_main: whether this is the user's Snakemake, not one that a cluster's job runs; pictures are checked and the
            plan is written there alone.

    Raises:
        InputError: with all mistakes in the config or in the sheet.
    """

    def __init__(self, given: Mapping[str, Any], command_line: Iterable[str] = (), is_main: bool = True):
        self.config = load_config(given, command_line)
        self.sheet = read_items(self.config, check_images=is_main)
        table, recipes = plan_table(self.config, self.sheet)
        images = list(map(paths.plain, self.sheet["image"]))
        lines = item_lines(images, recipes)
        self.items = dict(zip(self.sheet["id"], zip(images, recipes, strict=True), strict=True))
        self.table = text_digest(table.drop(columns=PLAN_COLUMNS).to_csv(index=False))
        self.stale: dict[str, str] = {}
        if is_main:
            run.check_dates(self.config)
            self.stale = stale_results(self.config, table, self._zeroed())
        if is_main or "GPI_PLAN" not in os.environ:
            os.environ["GPI_PLAN"] = write_plan(self.config, table, lines)
        else:  # a cluster's job takes the plan of the run which submitted it, whatever the sheet has become since
            lines = read_item_lines(os.environ["GPI_PLAN"])
            planned = map(json.loads, lines)
            images_and_recipes = [(item["image"], canonical(item["recipe"])) for item in planned]
            self.items = dict(zip(read_plan(os.environ["GPI_PLAN"])["id"], images_and_recipes, strict=True))
        self.plan = os.environ["GPI_PLAN"]
        self.places = dict(zip(self.items, accumulate(map(len, lines), initial=0), strict=False))
        self.latents = [paths.latent_path(self.config, item_id) for item_id in self.items]
        self.checksums = paths.checksum_paths(len(self.latents))
        self.figures = paths.figures(self.config, self.sheet)
        self.model_files = model_files(self.config)
        self.model_identity = model_identity(self.config)
        outputs = {"latent": paths.latent_path(self.config, "{id}"), "picture": paths.picture_path(self.config, "{id}")}
        self.outputs = {name: path for name, path in outputs.items() if path}  # no pictures if none are decoded
        skipped = [paths.SKIPPED] if self.config["on_error"] == "skip" else []
        self.stacked = [self.config["stacked"], paths.INDEX, paths.PROVENANCE, *skipped]
        report = [paths.REPORT] if self.config["report"] else []
        self.results = [self.config["stacked"], paths.INDEX, paths.PROVENANCE, *report]

    @with_parameters
    def image(self, wildcards: Any) -> str:
        """The path of an item's picture."""
        return self._item(wildcards)[0]

    @with_parameters
    def image_bytes(self, wildcards: Any) -> int:
        """The size of a picture's file in bytes, -1 if it does not exist.

        Snakemake reads the bytes of a picture only if it is newer than the latent, which a file from an archive is not.
        """
        try:
            return os.stat(self._item(wildcards)[0]).st_size
        except OSError:
            return -1

    @with_parameters
    def recipe(self, wildcards: Any) -> str:
        """An item's recipe as one text: of several params, Snakemake would not notice two that swap their values."""
        return self._item(wildcards)[1]

    def place(self, wildcards: Any) -> int:
        """Where an item's line begins in the plan, in bytes."""
        self._item(wildcards)
        return self.places[wildcards.id]

    def block(self, wildcards: Any) -> list[str]:
        """The latents of the wildcard `block`."""
        return paths.block(self.latents, int(wildcards.block))

    def lost(self, checksums: Iterable[str]) -> list[str]:
        """See `run.lost_results`."""
        return run.lost_results(self.config, self.items, checksums)

    def extract_command(self, python: str, cores: int | None) -> str:
        """The beginning of the command that extracts an item: with the resident model, or each job by itself.

        What differs between items is added: their result files, and their place in the plan. Their prompts and paths
        are not, since all users of a machine can read command lines.
        """
        scripts, on_error = paths.SCRIPTS, ["--on-error", self.config["on_error"]]
        if not self.config["resident"]:
            return shlex.join([python, f"{scripts}/resident.py", "once", "--plan", self.plan, *on_error])
        options = [*on_error, "--resident", self._resident_name(python), "--workers", str(cores or 1)]
        os.environ["GPI_RUN"] = str(os.getpid())  # whoever copies the line runs it from a shell, which is $$
        command = shlex.join([python, "-I", "-S", f"{scripts}/extract.py", "--plan", self.plan, *options])
        return f'{command} --run "${{GPI_RUN:-$$}}"'

    def _zeroed(self) -> set[str]:
        """The items without a negative prompt where there could be one."""
        given = '"empty_negative_prompt":true'
        return {item for item, (_, text) in self.items.items() if '"negative_prompt":""' in text and given not in text}

    def _item(self, wildcards: Any) -> tuple[str, str]:
        if wildcards.id not in self.items:
            raise InputError(f"The sheet {self.config['items']} has no item {wildcards.id!r}")
        return self.items[wildcards.id]

    def _resident_name(self, python: str) -> str:
        """All by which one resident differs from another, the source of its code included.

        An edited core is then never answered by an old process. The client adds the model and the Slurm job.
        """
        keys = ["model_id", "vae_id", "variant", "cache_dir", "device", "dtype", "batch_size"]
        keys += ["output_hidden_dir", "output_image_dir", "item_timeout"]
        name = hashlib.sha256(canonical([{key: self.config[key] for key in keys}, python, os.getcwd()]).encode())
        for source in sorted(paths.PACKAGE.rglob("*.py")):
            name.update(source.read_bytes())
        return name.hexdigest()[:12]
