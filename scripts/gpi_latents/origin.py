"""What made a latent, as JSON in the comment of its file, which is a zip file; torch does not read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

END = b"PK\5\6"  # a zip file ends with a record of 22 bytes and the comment, whose length is the record's last number
END_LENGTH = 22
LONGEST_COMMENT = 2**16 - 1
OF_VERSION_0_1 = "made by version 0.1, which read some kinds of pictures otherwise (CHANGELOG.md)"


@dataclass(frozen=True)
class Origin:
    """What made a latent; every part is empty where its file, one of an earlier version, does not say it.

    Attributes:
        recipe_sha256: of the recipe.
        image_sha256: of the picture's file.
        model_sha256: of the model, as `recipe.model_digest` makes it.
        image: path of the picture.
        notes: what was done to the picture beyond resizing, and what the model does not read of the prompts.
    """

    recipe_sha256: str = ""
    image_sha256: str = ""
    model_sha256: str = ""
    image: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def shown_notes(self) -> list[str]:
        """The notes for the index table, where those on the picture may be unknown."""
        return self.notes if self.image_sha256 else [*self.notes, OF_VERSION_0_1]

    def comment(self) -> bytes:
        """The comment for a file; of notes that are too long together, only the first ones."""
        for count in range(len(self.notes), -1, -1):
            text = json.dumps(asdict(self) | {"notes": self.notes[:count]}, ensure_ascii=False).encode()
            if len(text) <= LONGEST_COMMENT:
                break
        return text


def split_comment(content: bytes) -> tuple[int, Origin]:
    """Where the comment begins in the end of a zip file (its length if there is none), and what it says."""
    begin = content.rfind(END, -END_LENGTH - LONGEST_COMMENT) + END_LENGTH
    comment = content[begin:]
    if begin < END_LENGTH or len(comment) != int.from_bytes(content[begin - 2 : begin], "little"):
        return len(content), Origin()
    text = comment.decode(errors="replace")
    if not text.startswith("{"):
        return begin, Origin(recipe_sha256=text)  # as version 0.1 wrote it
    try:
        return begin, Origin(**json.loads(text))
    except (ValueError, TypeError):
        return begin, Origin()


def read_origin(path: str | Path) -> Origin:
    """What made the latent in a file; empty if it does not say it, or cannot be read."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - 4096))
            end = file.read()
            if END not in end:  # many notes
                file.seek(max(0, length - END_LENGTH - LONGEST_COMMENT))
                end = file.read()
    except OSError:
        return Origin()
    return split_comment(end)[1]
