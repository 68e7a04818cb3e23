"""The hybrid network as the cloud uses it: ROIs in, readings out."""

from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.morphology import squared_distance
from imaging.volume import FloatArray, UInt8Array, from_window
from models.runtime.detection import sigmoid
from models.runtime.engines import Outputs
from models.runtime.session import Opened, open_as
from models.runtime.session import Opening as Opening

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]

TEXTURES = ("ground glass", "part-solid", "solid")
"""The texture classes, in the order of their logits."""

_LUNG_HU, _AERATED_HU, _MIN_CONTRAST_HU = -850.0, -500.0, 100.0
"""Of lung where none is seen around a nodule; the most that is lung; the least contrast."""
_RIM_SHARE = 0.4
"""Share of the contrast from which a voxel outside of the outline belongs to something else."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The reading of one ROI.

    Attributes:
        probability: of being a nodule, calibrated, in [0, 1].
        diameter_mm: its diameter.
        malignancy: malignancy score in [0, 1]; 0.5 is the middle of the readers' scale.
        texture: one of `TEXTURES`.
        mask: bool ``(z, y, x)``: the voxels of the nodule, see `half_contrast`; may be empty.
    """

    probability: float
    diameter_mm: float
    malignancy: float
    texture: str
    mask: BoolArray


@dataclass(frozen=True, eq=False)
class Readings:
    """Readings of ``n`` ROIs: each field is ``(n,)``, ``mask`` bool ``(n, z, y, x)``.

    See `Reading`; ``texture`` holds indices into `TEXTURES`.
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


class SecondReader(Opened):
    """Reads ROIs with one opened hybrid artifact."""

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """The shape of an ROI, ``(z, y, x)``."""
        z, y, x = self.session.artifact.settings["roi_shape"]
        return int(z), int(y), int(x)

    def read(self, batch: UInt8Array) -> Readings:
        """Read uint8 ROIs ``(n, z, y, x)``.

        Raises:
            ModelFailed: the engine failed on this batch.
            ValueError: the ROIs are not of `roi_shape`.
        """
        return self.conclude(self.session.run(self.given(batch)), batch)

    def given(self, batch: UInt8Array) -> UInt8Array:
        """Return ROIs ``(n, z, y, x)`` as the network takes them, ``(n, 1, z, y, x)``.

        Raises:
            ValueError: the ROIs are not of `roi_shape`.
        """
        if batch.shape[1:] != self.roi_shape:
            raise ValueError(f"{self.name}: ROIs of {batch.shape[1:]}, expected {self.roi_shape}")
        return batch[:, None]

    def conclude(self, outputs: Outputs, rois: UInt8Array) -> Readings:
        """Calibrate the network's outputs, and measure the ``rois`` ``(n, z, y, x)``."""
        *numbers, texture, masks = outputs
        logit, log_diameter, malignancy = (one[:, 0].astype(np.float64) for one in numbers)
        (outline,) = self.session.artifact.settings["outline"]
        slope, intercept = self.session.artifact.settings["calibration"]
        drawn = zip(rois, masks[:, 0], strict=True)
        return Readings(
            probability=sigmoid(slope * logit + intercept),
            diameter_mm=np.exp(np.clip(log_diameter, 0.0, 5.0)),
            malignancy=sigmoid(malignancy),
            texture=texture.argmax(1),
            mask=np.stack([half_contrast(*one, outline) for one in drawn]),
        )


def open_second_reader(name: str, **opening: Unpack[Opening]) -> SecondReader:
    """Open the hybrid artifact of that name; the rest and errors as `open_as`."""
    return SecondReader(open_as("hybrid", name, **opening))


def half_contrast(roi: UInt8Array, logits: Float32Array, outline: float) -> BoolArray:
    """Return the nodule's voxels, as many as it has cubic voxels of volume, ``(z, y, x)``.

    The network draws as wide as readers do, above the logit ``outline``. The volume is that inside
    the surface where HU is half-way between lung and nodule: each voxel counts by its share of the
    contrast, which allows for voxels that hold both (partial volume). The voxels are those of the
    highest logits. A nodule that reaches a face is not measured; one without contrast has none.
    """
    drawn = nearest_piece(logits > outline)
    voxels = np.argwhere(drawn)
    if len(voxels) == 0 or (voxels == 0).any() or (voxels == np.array(drawn.shape) - 1).any():
        return drawn
    low, high = np.maximum(voxels.min(0) - 6, 0), voxels.max(0) + 7  # for speed
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    hu, inside = from_window(roi[box]).astype(np.float32), drawn[box].astype(np.uint8)
    away, depth = squared_distance(inside, 6), squared_distance(1 - inside, 3)
    around = (away > 2**2) & (away <= 6**2) & (hu < _AERATED_HU)
    lung_hu = float(np.median(hu[around])) if around.any() else _LUNG_HU
    # the scanner's blur spares the core, which is as deep as the nodule is large
    cores = (depth > radius**2 for radius in (3, 2, 1, 0))
    contrast_hu = float(np.median(hu[next(core for core in cores if core.any())])) - lung_hu
    if contrast_hu < _MIN_CONTRAST_HU:
        return np.zeros_like(drawn)
    share = np.clip((hu - lung_hu) / contrast_hu, 0, 1)
    # The blur reaches a voxel further than readers draw. What is dense there is a vessel or wall.
    counted = (away == 0) | ((away == 1) & (share < _RIM_SHARE))
    count = min(round(float(share[counted].sum())), len(voxels))
    kept = np.zeros_like(drawn)
    kept[tuple(voxels[np.argsort(-logits[drawn], kind="stable")[: max(count, 1)]].T)] = True
    return kept


def nearest_piece(mask: BoolArray) -> BoolArray:
    """Return the connected piece of ``mask`` ``(z, y, x)`` that is nearest to its middle."""
    voxels = np.argwhere(mask)
    if len(voxels) == 0:
        return mask
    low, high = voxels.min(0), voxels.max(0) + 1  # usually a small part of the ROI
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    components = sitk.ConnectedComponentImageFilter()
    components.FullyConnectedOn()
    components.SetNumberOfWorkUnits(1)  # more take longer to start than this takes
    pieces = components.Execute(sitk.GetImageFromArray(mask[box].astype(np.uint8)))
    labels = sitk.GetArrayFromImage(pieces)
    away = ((voxels - (np.array(mask.shape) - 1) / 2) ** 2).sum(1)
    nearest = np.zeros_like(mask)
    nearest[box] = labels == labels[tuple(voxels[away.argmin()] - low)]
    return nearest
