"""How far an item is: the thread that makes it tells, and whoever waits for it asks."""

from __future__ import annotations

from collections.abc import Callable

WAITING = "waiting for the model"  # which another item has, so that it is no fault of this one
IN_BATCH = MAKING, DECODING = "making the latent", "decoding the latent"  # with others, if `batch_size` is above 1


class Progress:
    """The progress of one item.

    Args:
        limit: seconds without any after which the item is given up.
        check: called at each step, in the item's thread; what it raises ends the item.
    """

    def __init__(self, limit: float, check: Callable[[], None] = lambda: None):
        self.limit = limit
        self.check = check
        self.doing = ""
        self.steps = 0
        self._seen = 0
        self._silence = 0.0

    def step(self, doing: str) -> None:
        """Say what comes next, such as `opening the picture`."""
        self.check()
        self.doing = doing
        self.steps += 1

    @property
    def is_at_work(self) -> bool:
        """Whether the item is being made, not waiting for its turn."""
        return self.doing not in ("", WAITING)

    def problem(self, seconds: float) -> str:
        """Why the item is to be given up, empty if it is not.

        Args:
            seconds: since it was asked before. They are counted rather than read from a clock, which goes on while the
                machine sleeps.
        """
        if self.steps != self._seen or not self.is_at_work:
            self._seen, self._silence = self.steps, 0.0
        else:
            self._silence += seconds
        if self._silence < self.limit:
            return ""
        return (
            f"no progress for {self._silence:.0f} s while {self.doing}; if that is not a fault but takes so long here, "
            "raise item_timeout"
        )
