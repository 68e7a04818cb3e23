"""What the status page asks of the part that sends results to other systems."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from edge.audit import Person
from edge.dicom_out.exports import DeliveryStep, ExportStore
from edge.dicom_out.overview import resend
from edge.site import Site


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

    def resend(self, study: str, target: str, by: Person) -> None:
        """Have the results of a study sent to a target again, as ``by`` wants it.

        Raises:
            EdgeError: there is no such delivery.
        """


class StoredDeliveries:
    """The deliveries in the database of the agent, each look with a connection of its own."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def backlog(self) -> list[Backlog]:
        """Return every target with what waits for it."""
        with self._site.opened() as store:
            backlogs, now = store.extension(ExportStore).backlogs(), datetime.now(UTC)
        return [
            Backlog(
                name, one.waiting, now - timedelta(seconds=one.oldest_s) if one.waiting else None
            )
            for name, one in sorted(backlogs.items())
        ]

    def dead(self) -> list[DeadLetter]:
        """Return what was given up, the last first."""
        with self._site.opened() as store:
            letters = store.extension(ExportStore).deliveries(DeliveryStep.DEAD)
        return [
            DeadLetter(
                one.study_key, one.target, one.version, one.attempts, one.reason,
                datetime.fromisoformat(one.created),
            )
            for one in reversed(letters)
        ]  # fmt: skip

    def resend(self, study: str, target: str, by: Person) -> None:
        """Have the results of a study sent to a target again; errors as `overview.resend`."""
        resend(study, target, self._site, by)
