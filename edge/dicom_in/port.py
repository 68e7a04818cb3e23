"""What the ports that receive have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


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
