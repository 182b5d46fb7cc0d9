"""What a real run shows on a terminal and in a pipe; tests/plugins plays all other cases to the logger plugin."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte
import pytest

SLOW = {"strength": 1, "num_inference_steps": 999}  # some seconds for one item


class OnTerminal:
    """A program in a terminal of 100 x 30."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.screen = pyte.Screen(100, 30)
        self.emulator = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {name: text for name, text in environment.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, *texts: str, seconds: float = 120.0) -> None:
        """Wait until one of the texts is on the screen; without any, until the program ends."""
        deadline = time.monotonic() + seconds
        while not any(text in self.text() for text in texts):
            assert time.monotonic() < deadline, self.text()
            if not select.select([self.master], [], [], 1.0)[0]:
                continue
            try:
                self.emulator.feed(os.read(self.master, 65536))
            except OSError:  # all that had it open have ended
                assert not texts, self.text()
                break
        if not texts:
            self.process.wait(seconds)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()


@pytest.mark.long
def test_a_run_tells_how_far_it_is_and_ends_with_its_last_words_alone(study):
    study.pictures(6)
    mended = (study.folder / "pictures/p3.png").read_bytes()
    (study.folder / "pictures/p3.png").write_bytes(mended[:200])
    terminal = OnTerminal(study.command(), study.environment)
    terminal.wait_for("loading the model", "extracting")
    assert " of 6 items" in terminal.text()
    terminal.wait_for()
    assert terminal.process.returncode == 1
    lines = terminal.text().splitlines()
    assert lines[1].startswith("6 items to extract, then the stack")
    assert lines[2].startswith("failed: p3: ")
    assert "row 5, p3: " in terminal.text()
    for text in ("Traceback", "RuleException", "Building DAG", '"shape"', "loading the model", "━"):
        assert text not in terminal.text()
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.cursor.x == 0
    (study.folder / "pictures/p3.png").write_bytes(mended)
    run = study.run()
    assert run.output.splitlines()[1].startswith("1 item to extract, then the stack")
    assert "\x1b" not in run.output
    assert len(run.output.splitlines()) < 12


@pytest.mark.long
def test_ctrl_c_leaves_the_terminal_as_it_was(study):
    study.pictures(4, **SLOW)
    terminal = OnTerminal(study.command(), study.environment)
    terminal.wait_for("loading the model", "extracting")
    terminal.type(b"\x03")
    terminal.wait_for()
    assert terminal.process.returncode != 0
    assert "Terminating processes on user request" in terminal.text()
    assert "━" not in terminal.text()
    assert "failed: " not in terminal.text()
    assert not terminal.screen.cursor.hidden
    assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, len(terminal.text().splitlines()))
