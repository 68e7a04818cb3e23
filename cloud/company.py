"""How many ROIs the open streams have announced and not sent yet: whom a batch may wait for."""

from __future__ import annotations


class Company:
    """A count that all streams of a service share."""

    def __init__(self) -> None:
        self._coming = 0

    @property
    def coming(self) -> int:
        """ROIs that may still come on streams that are open."""
        return self._coming

    def announce(self, rois: int) -> None:
        """A stream says that it will send so many."""
        self._coming += rois

    def left(self, rois: int = 1) -> None:
        """So many of those that were announced have come, or never will."""
        self._coming -= rois
