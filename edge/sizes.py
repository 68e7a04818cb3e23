"""How large a region may be sent, and what a second reading of it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Shape = tuple[int, int, int]
"""Voxels (z, y, x)."""


class Size(Enum):
    """What of a candidate's surroundings is sent; the cloud mirrors the rest."""

    FULL = "full"
    REDUCED = "reduced"  # a cube of two thirds of the side
    SLAB = "slab"  # 2.5D: of that cube the middle half of the slices

    def shape_of(self, full: Shape) -> Shape:
        """The region's shape where that of the full one is ``full``."""
        z, y, x = full
        match self:
            case Size.FULL:
                return full
            case Size.REDUCED:
                return 2 * z // 3, 2 * y // 3, 2 * x // 3
            case Size.SLAB:
                return z // 3, 2 * y // 3, 2 * x // 3


@dataclass(frozen=True)
class Policy:
    """How the latency budget is spent.

    Attributes:
        full, reduced, slab: what a reading of that size is worth, as a share of the full one's: of
            its 2 AUC - 1, on the validation nodules and what the edge takes for nodules beside
            them (``overread-eval sizes``).
        confidence: the share of escalations that must end within the budget.
        fill: a region may be smaller than full if the nodule takes at most this share of its
            shortest side.
        describe: whether the cloud is also asked for size, kind and outline of what is reported
            anyway, where there is room for it after all that is uncertain.
    """

    full: float = 1.0
    reduced: float = 0.94
    slab: float = 0.88
    confidence: float = 0.95
    fill: float = 0.75
    describe: bool = True

    def share(self, size: Size) -> float:
        """What a reading of that size is worth."""
        return {Size.FULL: self.full, Size.REDUCED: self.reduced, Size.SLAB: self.slab}[size]

    def sizes_for(self, diameter_mm: float, full: Shape) -> tuple[Size, ...]:
        """The sizes in which a candidate may be sent; 1 mm a voxel."""
        smaller = (Size.REDUCED, Size.SLAB)
        fits = (s for s in smaller if diameter_mm <= self.fill * min(s.shape_of(full)))
        return (*fits, Size.FULL)


POLICY = Policy()
