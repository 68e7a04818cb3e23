"""What the status page asks of the part that sends results to other systems."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class Backlog:
    """What waits for one target: how many objects, and since when the oldest."""

    target: str
    waiting: int
    oldest: datetime | None = None


@dataclass(frozen=True)
class DeadLetter:
    """A delivery that was given up: ``reason`` is what the target, or the link to it, said."""

    study: str
    target: str
    version: int
    attempts: int
    reason: str
    since: datetime


class Deliveries(Protocol):
    """The deliveries to all targets; other threads call it, and it must not wait for a target."""

    def backlog(self) -> Sequence[Backlog]:
        """Return every target with what waits for it."""

    def dead(self) -> Sequence[DeadLetter]:
        """Return what was given up, the last first."""

    def resend(self, study: str, target: str) -> None:
        """Have the results of a study sent to a target again.

        Raises:
            EdgeError: there is no such delivery.
        """
