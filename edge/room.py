"""What can be sent of one study: how many regions, and with what bytes they are back in time."""

from __future__ import annotations

from dataclasses import dataclass

from edge.estimate import LinkEstimate


@dataclass(frozen=True)
class Room:
    """The limits of one asking.

    Attributes:
        link: what to expect of it now.
        budget_s: seconds that the second reading may take.
        max_rois: regions of one study that the cloud takes at most.
        confidence: with which the answers are to be back within the budget.
    """

    link: LinkEstimate
    budget_s: float
    max_rois: int
    confidence: float

    @property
    def most(self) -> int:
        """Regions at most; a probe is one."""
        if not self.link.available or self.budget_s <= 0:
            return 0
        return 1 if self.link.probing else self.max_rois

    def fits(self, rois: int, sent_bytes: int) -> bool:
        """Whether so many regions with so many bytes together are answered within the budget."""
        return self.link.completion_s(rois, sent_bytes, self.confidence) <= self.budget_s

    def beside(self, rois: int, sent_bytes: int, offered: int, each_bytes: int) -> int:
        """For how many of those ``offered``, of ``each_bytes``, there is room beside the others."""
        for count in range(min(offered, self.most - rois), 0, -1):
            if self.fits(rois + count, sent_bytes + count * each_bytes):
                return count
        return 0

    def why_no_more(self, sent: int) -> str:
        """Why not more than ``sent`` regions go, in words for the report."""
        if not self.link.available:
            return self.link.reason
        if self.budget_s <= 0:
            return "no time left to ask"
        if self.link.probing:
            return "one region finds out whether the cloud is back"
        if sent >= self.max_rois:
            return f"no more than {self.max_rois} regions of one study are sent"
        return f"the link carries {sent} regions in the {self.budget_s:.1f} s that were left"
