"""The hybrid network as the cloud uses it: regions in, readings out.

What a second reader says of regions, before it has a place in anyone's line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.volume import FloatArray, UInt8Array
from models.runtime.artifacts import Artifact
from models.runtime.engines import Outputs
from models.runtime.session import AUTO, Opened, open_as
from models.runtime.sigmoid import sigmoid

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


VIEWS: tuple[tuple[int, ...], ...] = ((), (1, 2), (1, 3), (2, 3))
"""The axes along which a region is mirrored for each of its views; training mirrors alike."""


class SecondReader(Opened):
    """Reads regions with one opened hybrid artifact."""

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """What `read` takes, ``(z, y, x)``."""
        z, y, x = self.session.artifact.settings["roi_shape"]
        return int(z), int(y), int(x)

    def read(self, batch: UInt8Array) -> Readings:
        """What the network says of regions ``(n, z, y, x)``; probabilities are calibrated.

        Each region is read in four `VIEWS` and the logits are averaged.

        Raises:
            ModelFailed: the engine failed on this batch.
            ValueError: the regions are not of `roi_shape`.
        """
        if batch.shape[1:] != self.roi_shape:
            raise ValueError(f"regions of {batch.shape[1:]}, {self.name} takes {self.roi_shape}")
        return conclude(self.session.run(views_of(batch)), self.session.artifact)


def views_of(batch: UInt8Array) -> UInt8Array:
    """Regions ``(n, z, y, x)`` as the network takes them, ``(views * n, 1, z, y, x)``."""
    views = np.concatenate([np.flip(batch, axes) for axes in VIEWS])
    return np.ascontiguousarray(views)[:, None]


def conclude(outputs: Outputs, artifact: Artifact) -> Readings:
    """What the network's outputs for all views say of the regions."""
    logit, log_diameter, malignancy, texture, masks = (
        out.reshape(len(VIEWS), len(out) // len(VIEWS), *out.shape[1:]) for out in outputs
    )
    mask = sum(np.flip(m[:, 0], axes) for m, axes in zip(masks, VIEWS, strict=True))
    slope, intercept = artifact.settings["calibration"]
    return Readings(
        probability=sigmoid(slope * _mean(logit) + intercept),
        diameter_mm=np.exp(np.clip(_mean(log_diameter), 0.0, 5.0)),
        malignancy=sigmoid(_mean(malignancy)),
        texture=texture.mean(0).argmax(1),
        mask=np.stack([nearest_piece(one > 0) for one in np.asarray(mask)]),
    )


def open_second_reader(name: str, *, engine: str = AUTO, threads: int = 0) -> SecondReader:
    """The hybrid artifact of that name, opened; errors as `open_as`."""
    needed = {"calibration": 2, "roi_shape": 3}
    return SecondReader(open_as("hybrid", name, needed, engine=engine, threads=threads))


def _mean(views: npt.NDArray[np.float32]) -> FloatArray:
    """``(views, n, 1)`` to ``(n,)``."""
    return np.asarray(views.mean(0)[:, 0], np.float64)
