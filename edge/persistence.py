"""How long and how often one asks for what is owed, and what room it may take meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from edge.settings import EdgeSettings

ASKING_S, ASKING_SHARE = 2.0, 0.2
"""A first asking may take so long, or that share of the deadline if it is less: a study that
arrives meanwhile waits for its end."""
LONGEST_SHARE = 0.5
"""No asking takes more of the deadline: what arrives has half of its time left at least."""
DAY_S = 86_400.0
MB = 1_000_000


@dataclass(frozen=True)
class Persistence:
    """The limits of asking for what is owed.

    Attributes:
        asking_s: for an asking when the last one brought a verdict.
        longest_s: for any asking.
        max_rois: regions of one asking at most.
        pause_s: after the first asking in vain; it doubles, as `edge.backoff` has it.
        keep_days: days of an agent's life after which a debt is given up.
        most_bytes: of the database; beyond it the oldest debt is given up.
    """

    asking_s: float
    longest_s: float
    max_rois: int
    pause_s: float
    keep_days: float
    most_bytes: float

    @classmethod
    def of(cls, settings: EdgeSettings) -> Self:
        """That which the settings name."""
        return cls(
            min(ASKING_S, ASKING_SHARE * settings.deadline_s),
            LONGEST_SHARE * settings.deadline_s,
            settings.max_rois,
            settings.owed_pause_s,
            settings.owed_keep_days,
            settings.owed_most_mb * MB,
        )

    def budget_s(self, in_vain: int) -> float:
        """For an asking after ``in_vain`` others in a row, of whatever study, brought no verdict.

        It doubles: a link that needs longer for a single region would never bring one.
        """
        return min(self.longest_s, self.asking_s * 2.0 ** min(in_vain, 30))

    @property
    def too_old(self) -> str:
        """Why a debt is given up that is older than it may be."""
        return f"no answer within {self.keep_days:g} days, and nobody is asked any more"

    @property
    def too_much(self) -> str:
        """Why a debt is given up for which there is no room."""
        return f"more than {self.most_bytes / MB:g} MB were owed, and nobody is asked any more"
