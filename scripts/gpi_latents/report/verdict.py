"""What to look at before estimating: findings, each a sentence with the section of the report that shows more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from gpi_latents.joblog import DOUBTFUL
from gpi_latents.plan import has_draws
from gpi_latents.report.facts import notes
from gpi_latents.report.overlap import is_blank

# Median PSNR in dB below which the latents hold little of the pictures, by the latents' channels. Photographs of 256
# pixels come back with 23 to 25 dB from Stable Diffusion's autoencoders of 4 channels (model card of sd-vae-ft-mse),
# and with about 29 dB from one of 16, as Stable Diffusion 3 and FLUX.1 have (Esser and others 2024, table 3). 3 dB less
# is twice the squared error.
LEAST_PSNR = {16: 24.0}
LEAST_PSNR_OF_OTHERS = 20.0
SMALLEST_SHARE = 0.1  # of the items in the smaller group, below which its few items decide an estimate
# Of a group's items that its effective sample size must be; by chance, 1 treatment of 24 to 40 items in 60 has less.
LEAST_WORTH = 0.1
NAMED = 4  # items of a finding, and kinds of doubts, that are named


class Finding(NamedTuple):
    """A sentence, and the section that it is about, as a link such as `#map`."""

    text: str
    section: str


@dataclass(frozen=True)
class Judged:
    """What is judged.

    Attributes:
        facts: of the figures, by their names.
        index: the index table, every cell a text.
        provenance: as in results/provenance.json.
        demo_pictures: SHA-256 of the files of the demo's pictures.
    """

    facts: dict[str, dict[str, Any]]
    index: pd.DataFrame
    provenance: dict[str, Any]
    demo_pictures: frozenset[str] = frozenset()

    def section(self, name: str) -> str:
        """The section of a figure; the overview, if the report is without it."""
        return f"#{name}" if name in self.facts else "#overview"

    def cells(self, column: str) -> pd.Series | None:
        """A column of the sheet, one cell per item; None if there is none."""
        if column not in self.index:
            return None
        return (self.index.drop_duplicates("item") if has_draws(self.index) else self.index)[column]


def findings(judged: Judged) -> list[Finding]:
    """What to look at first; nothing, if all is well."""
    return [found for find in FINDERS if (found := find(judged))]


def as_json(found: list[Finding]) -> dict[str, Any]:
    """The verdict for results/report.json."""
    return {"ready": not found, "findings": [one._asdict() for one in found]}


def demo_model(judged: Judged) -> Finding | None:
    """The demo's model with pictures that are not the demo's."""
    config = judged.provenance["config"]
    if config["model_id"] != "demo" or config.get("vae_id") or "image_sha256" not in judged.index:
        return None
    known = judged.index.loc[judged.index["image_sha256"] != "", "image_sha256"].drop_duplicates()
    others = int((~known.isin(judged.demo_pictures)).sum())
    if not others:
        return None
    return Finding(
        f"The demo's model was made for the demo's drawings alone, and {others:,} of {_count(len(known), 'picture')} "
        f"{_is(others)} no such drawing: choose a model for your pictures (key model_id, docs/models.md).",
        judged.section("contact_sheet"),
    )


def failed_items(judged: Judged) -> Finding | None:
    """Items that are left out because they failed (key `on_error: skip`)."""
    failed = judged.provenance.get("failed") or []
    if not failed:
        return None
    return Finding(
        f"{_count(len(failed), 'item')} failed and {_is(len(failed))} left out of the tensor: the rest may be another "
        "sample than you drew.",
        "#failed",
    )


def poor_reconstruction(judged: Judged) -> Finding | None:
    """Decoded pictures that are far from the inputs."""
    medians = judged.facts.get("reconstruction", {}).get("medians")
    channels = judged.facts["values"]["shape"][1]
    least = LEAST_PSNR.get(channels, LEAST_PSNR_OF_OTHERS)
    if not medians or medians["psnr"] >= least:
        return None
    return Finding(
        f"The latents hold little of the pictures: the median PSNR of the reconstruction is {medians['psnr']:.1f} dB, "
        f"and below {least:g} dB is poor for latents of {channels} channels.",
        "#reconstruction",
    )


def unreadable_pictures(judged: Judged) -> Finding | None:
    """Pictures that are missing, damaged, or changed since."""
    unreadable = len(judged.facts.get("reconstruction", {}).get("unreadable", []))
    if not unreadable:
        return None
    return Finding(
        f"The pictures of {_count(unreadable, 'item')} cannot be compared with what was decoded: they are missing, "
        "damaged, or changed since.",
        "#reconstruction",
    )


def doubtful_pictures(judged: Judged) -> Finding | None:
    """Notes that begin with `warning:`."""
    doubts = [one for one in notes(judged.index) if one["note"].startswith(DOUBTFUL)]
    if not doubts:
        return None
    doubted = judged.index["notes"].str.split("; ").map(lambda all_: any(x.startswith(DOUBTFUL) for x in all_))
    items = judged.index.loc[doubted, "item" if has_draws(judged.index) else "id"].nunique()  # draws share a picture
    kinds = "; ".join(one["note"].removeprefix(DOUBTFUL) for one in doubts[:NAMED])
    more = f"; and {_count(len(doubts) - NAMED, 'other doubt')}" if len(doubts) > NAMED else ""
    return Finding(
        f"The {'pictures' if items > 1 else 'picture'} of {_count(items, 'item')} may be other than you take "
        f"{'them' if items > 1 else 'it'} for: {kinds}{more}.",
        "#notes",
    )


def outliers(judged: Judged) -> Finding | None:
    """Items, or draws of items, whose values are far from those of all others."""
    facts = judged.facts["values"]
    if not facts["outlying"]:
        return None
    noun = "draw" if has_draws(judged.index) else "item"  # each draw has values of its own
    return Finding(
        f"{_count(facts['outlying'], noun)} of {facts['of']:,} {_has(facts['outlying'])} unusual values: the mean or "
        f"the spread of a channel is more than {facts['far']:g} robust standard deviations from the median "
        f"({_ids(facts['named'], facts['outlying'])}).",
        "#values",
    )


def same_latents(judged: Judged) -> Finding | None:
    """Items with one latent."""
    facts = judged.facts["duplicates"]
    items = facts["same_items"]
    if not items:
        return None
    return Finding(
        f"{_count(items, 'item')} {_has(items)} the same latent as another, value for value: probably a picture twice "
        f"({_ids([one for group in facts['same'] for one in group], items)}).",
        "#duplicates",
    )


def same_draws(judged: Judged) -> Finding | None:
    """Draws that are no draws."""
    rows = judged.facts["duplicates"]["same_draws"]
    if not rows:
        return None
    return Finding(
        f"The draws of {_count(rows, 'row')} of the sheet are the same latent: the autoencoder draws nothing, so one "
        "is enough (key draws).",
        "#duplicates",
    )


def near_duplicates(judged: Judged) -> Finding | None:
    """Items with nearly the same latent."""
    facts = judged.facts["duplicates"]
    if not facts["near"]:
        return None
    return Finding(
        f"{_count(facts['near'], 'item')} {_has(facts['near'])} a near-duplicate: another item closer than "
        f"{100 * facts['below']:g} % of the typical distance "
        f"({_ids([one for pair in facts['pairs'] for one in pair['items']], facts['near'])}).",
        "#duplicates",
    )


def group_sizes(judged: Judged) -> Finding | None:
    """A treatment that does not make two groups, or a very small one."""
    facts = judged.facts.get("overlap")
    if facts is None:
        return None
    if facts["reason"]:
        return Finding(facts["reason"], "#overlap")
    small, large = sorted(facts["groups"], key=lambda group: group["items"])
    if small["items"] >= SMALLEST_SHARE * (small["items"] + large["items"]):
        return None
    return Finding(
        f"The groups are very unequal: {small['items']:,} with the treatment {small['name']} and {large['items']:,} "
        f"with {large['name']}. Below {SMALLEST_SHARE:.0%} of the items, a few of them decide the estimate.",
        "#overlap",
    )


def missing_cells(judged: Judged) -> Finding | None:
    """Items without a treatment or an outcome."""
    told, of, rest = [], 0, True
    for name in ("treatment", "outcome"):
        cells = judged.cells(name)
        if cells is not None and (missing := int(is_blank(cells).sum())):
            told.append(f"{missing:,} {_has(missing)} no {name}")
            of, rest = len(cells), rest and missing < len(cells)
    if not told:
        return None
    words = f"Of {_count(of, 'item')}, {' and '.join(told)}: complete the sheet"
    words += ", or leave them out (drop_missing=True)." if rest else "."
    return Finding(words, judged.section("overlap"))


def poor_overlap(judged: Judged) -> Finding | None:
    """Latents that give the treatment away, or weights that leave little of a group."""
    facts = judged.facts.get("overlap", {})
    if facts.get("warn"):
        return Finding(
            f"The latents nearly give the treatment away (area under the ROC curve {facts['auc']:.2f}, of 1): the "
            "picture shows the treatment itself, or the groups hardly overlap.",
            "#overlap",
        )
    for group in facts.get("groups", []):
        if group["effective"] < LEAST_WORTH * group["items"]:
            return Finding(
                f"Weighted by propensity, the {group['items']:,} items with the treatment {group['name']} are "
                f"worth {group['effective']:.1f} (effective sample size), and below {LEAST_WORTH:.0%} is poor: the "
                "groups hardly overlap, or there are too few items to tell.",
                "#overlap",
            )
    return None


FINDERS: list[Callable[[Judged], Finding | None]] = [
    demo_model,
    failed_items,
    poor_reconstruction,
    unreadable_pictures,
    doubtful_pictures,
    outliers,
    same_latents,
    same_draws,
    near_duplicates,
    group_sizes,
    missing_cells,
    poor_overlap,
]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _ids(items: list[dict[str, Any]], of: int) -> str:
    """The ids of the first items, of so many."""
    ids = [*dict.fromkeys(one["id"] for one in items)][: min(of, NAMED)]
    return ", ".join(ids) + (", …" if len(ids) < of else "")


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"
