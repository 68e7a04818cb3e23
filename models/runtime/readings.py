"""What a second reader says of regions, before it has a place in anyone's line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.volume import FloatArray

BoolArray = npt.NDArray[np.bool_]

TEXTURES = ("ground glass", "part-solid", "solid")
"""The texture classes, in the order of their logits."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Of one region: the chance of a nodule, and what kind of one it would be.

    Attributes:
        probability: of being a nodule, calibrated, in [0, 1].
        diameter_mm: its diameter.
        malignancy: how readers would suspect it, in [0, 1]; 1/2 is the middle of their scale.
        texture: one of `TEXTURES`.
        mask: bool ``(z, y, x)``: the voxels of the nodule, one piece; empty where none is seen.
    """

    probability: float
    diameter_mm: float
    malignancy: float
    texture: str
    mask: BoolArray


@dataclass(frozen=True, eq=False)
class Readings:
    """Of ``n`` regions: each field ``(n,)`` but ``mask``, bool ``(n, z, y, x)``; see `Reading`.

    ``texture`` holds places in `TEXTURES`.
    """

    probability: FloatArray
    diameter_mm: FloatArray
    malignancy: FloatArray
    texture: npt.NDArray[np.int64]
    mask: BoolArray

    def __len__(self) -> int:
        return len(self.probability)

    def __getitem__(self, number: int) -> Reading:
        return Reading(
            float(self.probability[number]),
            float(self.diameter_mm[number]),
            float(self.malignancy[number]),
            TEXTURES[int(self.texture[number])],
            self.mask[number],
        )


def nearest_piece(mask: BoolArray) -> BoolArray:
    """The connected piece of ``mask`` ``(z, y, x)`` that comes nearest to its middle."""
    places = np.argwhere(mask)
    if len(places) == 0:
        return mask
    low, high = places.min(0), places.max(0) + 1  # a small part of the region, as a rule
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    components = sitk.ConnectedComponentImageFilter()
    components.FullyConnectedOn()
    components.SetNumberOfWorkUnits(1)  # more take longer to start than this takes
    pieces = components.Execute(sitk.GetImageFromArray(mask[box].astype(np.uint8)))
    labels = sitk.GetArrayFromImage(pieces)
    away = ((places - (np.array(mask.shape) - 1) / 2) ** 2).sum(1)
    nearest = np.zeros_like(mask)
    nearest[box] = labels == labels[tuple(places[away.argmin()] - low)]
    return nearest
