"""What both ports have in common: who counts, what listens, and what becomes of an instance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from edge.dicom_in.identity import Identity
from edge.dicom_in.incoming import Expected, Incoming, Source
from edge.dicom_in.received import ReceivedStore
from edge.dicom_in.refusals import Reason, Refused

log = structlog.get_logger()


class Counters(Protocol):
    """What the part counts."""

    def count_received(self, way: str) -> None:
        """Count a received instance."""

    def count_refused_instance(self, way: str, reason: str) -> None:
        """Count a refused instance."""

    def count_refused_association(self, reason: str) -> None:
        """Count a refused association or connection."""

    def set_associations(self, number: int) -> None:
        """Set how many associations are open."""


@dataclass(frozen=True)
class Listening:
    """A port on which studies are received: its address, and whether it is served."""

    address: str
    is_served: Callable[[], bool]


def keep(
    store: ReceivedStore,
    counters: Counters,
    incoming: Incoming | None,
    source: Source,
    expected: Expected,
    sender: int,
) -> Identity:
    """Make an instance durable in the store, and count it; None for a request without a data set.

    Raises:
        Refused: it is not stored; that is counted and in the log.
    """
    way = source.way
    try:
        if incoming is None:
            store.missed(sender)
            raise Refused(Reason.UNREADABLE, "the request has no data set")
        identity = store.keep(incoming, source, expected, sender)
    except Refused as refusal:
        counters.count_refused_instance(way, refusal.reason.words)
        who = {"way": way, "peer": source.peer, "caller": source.caller}
        log.warning("instance refused", **who, reason=refusal.reason.words, why=str(refusal))
        raise
    counters.count_received(way)
    return identity
