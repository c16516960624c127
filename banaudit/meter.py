"""Counts the work of an audit, tells a listener how far it is, and stops it when the time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from banaudit.errors import TimeLimitReached

Listener = Callable[[str, float], None]
"""Called with what is being done and the share of the planned work that is done, 0 to 1."""


@dataclass
class Meter:
    """Image passes counted, progress told, time limit kept.

    Args:
        planned_images: Forward passes that the whole job is expected to take; progress is measured against it.
        time_limit: Seconds from now after which ``spend`` raises; none: no limit.
        listener: Told of progress after every ``spend``.
        about: Stands before whatever is done; empty: it is done with the audited network.
        stopped: Whether the time limit ended the job.
    """

    planned_images: int = 0
    time_limit: float | None = None
    listener: Listener | None = None
    forward_images: int = 0
    backward_images: int = 0
    started: float = field(default_factory=time.monotonic)
    about: str = ""
    stopped: bool = field(default=False, init=False)

    def aside(self, what: str) -> Meter:
        """A meter for work on other networks than the one whose passes are counted here.

        Time limit and listener are the same; progress stands where it is.

        Args:
            what: The other networks, in the user's words; it stands before whatever is done with them.
        """
        listener, share = self.listener, self._share

        def tell(step: str, _: float) -> None:
            if listener is not None:
                listener(step, share)

        return Meter(time_limit=self.time_limit, listener=tell, started=self.started, about=f"{what}: ")

    @property
    def _share(self) -> float:
        """Share of the planned work that is done."""
        return min(1.0, self.forward_images / self.planned_images) if self.planned_images else 0.0

    def book(self, *, forward: int, backward: int = 0) -> None:
        """Count passes that belong to a batch of which :meth:`spend` has told already."""
        self.forward_images += forward
        self.backward_images += backward

    def spend(self, what: str, *, forward: int, backward: int = 0) -> None:
        """Book a batch that is about to be computed.

        Args:
            what: What it is for, in the user's words.
            forward: Images passed forward.
            backward: Images passed backward.

        Raises:
            TimeLimitReached: The time limit has passed.
        """
        self.book(forward=forward, backward=backward)
        what = f"{self.about}{what}"
        if self.listener is not None:
            self.listener(what, self._share)
        if self.time_limit is not None and time.monotonic() - self.started > self.time_limit:
            self.stopped = True
            raise TimeLimitReached(f"the time limit of {self.time_limit:g} s ended during: {what}")
