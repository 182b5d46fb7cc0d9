"""The place below what is printed, where a terminal shows how far a run is."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

# To the end of the screen, from the cursor on.
ERASE = "\x1b[J"
# Make room for one line below, go back, and remember where that is.
BELOW = "\x1bD\x1b[A\x1b7\r\n"
BACK = "\x1b8"


class Area:
    """Prints text, and on a terminal keeps one line of progress below it.

    The cursor always stays where the next text belongs, above that line, so that what jobs print by themselves is not
    overwritten, and a killed run leaves the terminal usable. `rich.live` leaves it below, and then erases their lines.
    """

    def __init__(self, stream: TextIO, has_colors: bool):
        self.is_terminal = stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
        self.console = Console(
            file=stream,
            force_terminal=self.is_terminal,
            no_color=not has_colors or None,
            soft_wrap=True,
            highlight=False,
        )
        self.spinner = Spinner("dots")
        self.is_drawn = False

    def say(self, text: str, style: str = "") -> None:
        """Print text for good."""
        self.erase()
        encoding = self.console.encoding
        self.console.print(Text(text.encode(encoding, "backslashreplace").decode(encoding), style=style))
        self.console.file.flush()

    def draw(self, doing: str, words: str, part: float | None) -> None:
        """Show the line: what is happening, a bar for the part that is done, from 0 to 1, and how far it is."""
        name, rest = Text(doing, style="bold"), Text(words)
        room = self.console.width - name.cell_len - rest.cell_len - 6
        if part is not None and room > 7:
            cells = [name, ProgressBar(total=1.0, completed=part, width=min(30, room)), rest]
        else:
            cells = [Text(" ").join([name, rest])]  # cut at its end, if the terminal is narrow
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self.spinner, *cells)
        for column in grid.columns:
            column.no_wrap = True
        with self.console.capture() as line:
            self.console.print(grid, width=self.console.width - 1, end="")
        self.console.file.write(f"{ERASE}{BELOW}{line.get().rstrip()}{BACK}")
        self.console.file.flush()
        self.is_drawn = True

    def erase(self) -> None:
        """Take the line away."""
        if self.is_drawn:
            self.console.file.write(ERASE)
            self.console.file.flush()
            self.is_drawn = False
