"""Decoded slices: each in its place of one array, with what was measured of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imaging.slices import SliceMeasures
from imaging.volume import HuArray

_GROWTH = 32
"""Slices by which an array grows; it is not copied."""


class Planes:
    """HU of slices of one size in the order in which they were decoded.

    ``hu`` is int16 ``(n, rows, columns)``; its first ``count`` are decoded.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.hu: HuArray = np.empty((0, rows, columns), np.int16)
        self.count = 0

    def room(self) -> HuArray:
        """Return the place of the next slice; no earlier place may be in use."""
        if self.count == len(self.hu):
            self.hu.resize((self.count + _GROWTH, *self.hu.shape[1:]), refcheck=False)
        place: HuArray = self.hu[self.count]
        return place


@dataclass(frozen=True, eq=False)
class Plane:
    """One decoded slice: its number among ``planes``, and what was measured of it."""

    planes: Planes
    number: int
    measures: SliceMeasures

    @property
    def hu(self) -> HuArray:
        """Its HU, int16 ``(rows, columns)``."""
        own: HuArray = self.planes.hu[self.number]
        return own


def in_order(planes: Sequence[Plane | None]) -> HuArray | None:
    """Return the HU of slices that lie beside each other in this order or its reverse.

    None where they do not: then they have to be copied.
    """
    found = [one for one in planes if one is not None]
    if len(found) < len(planes) or len({id(one.planes) for one in found}) != 1:
        return None
    numbers = np.array([one.number for one in found])
    steps = set(np.diff(numbers).tolist())
    if steps not in ({1}, {-1}):
        return None
    first, last = int(numbers.min()), int(numbers.max())
    return found[0].planes.hu[first : last + 1][:: steps.pop()]
