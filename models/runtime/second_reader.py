"""The hybrid network as the cloud uses it: ROIs in, readings out."""

from dataclasses import dataclass
from pathlib import Path

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

VIEWS: tuple[tuple[int, ...], ...] = ((), (1, 3))
"""The axes along which a batch of ROIs is mirrored for each of its views, as in training."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The reading of one ROI.

    Attributes:
        probability: of being a nodule, calibrated, in [0, 1].
        diameter_mm: its diameter.
        malignancy: malignancy score in [0, 1]; 0.5 is the middle of the readers' scale.
        texture: one of `TEXTURES`.
        mask: bool ``(z, y, x)``: the voxels of the nodule, one piece; may be empty.
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
        return roi_shape_of(self.session.artifact)

    def read(self, batch: UInt8Array) -> Readings:
        """Read uint8 ROIs ``(n, z, y, x)``, each in two `VIEWS` whose logits are averaged.

        Raises:
            ModelFailed: the engine failed on this batch.
            ValueError: the ROIs are not of `roi_shape`.
        """
        artifact = self.session.artifact
        return conclude(self.session.run(views_of(batch, artifact)), artifact)


def roi_shape_of(artifact: Artifact) -> tuple[int, int, int]:
    """Return the shape of a hybrid's ROIs, ``(z, y, x)``."""
    z, y, x = artifact.settings["roi_shape"]
    return int(z), int(y), int(x)


def views_of(batch: UInt8Array, artifact: Artifact) -> UInt8Array:
    """Return all views of ROIs ``(n, z, y, x)`` as network input, ``(views * n, 1, z, y, x)``.

    Raises:
        ValueError: the ROIs are not of the artifact's shape.
    """
    expected = roi_shape_of(artifact)
    if batch.shape[1:] != expected:
        raise ValueError(f"{artifact.name}: ROIs of {batch.shape[1:]}, expected {expected}")
    views = np.concatenate([np.flip(batch, axes) for axes in VIEWS])
    return np.ascontiguousarray(views)[:, None]


def conclude(outputs: Outputs, artifact: Artifact) -> Readings:
    """Average the network's outputs over the views, and calibrate them."""
    logit, log_diameter, malignancy, texture = (_by_view(out) for out in outputs[:4])
    (outline,) = artifact.settings["outline"]
    slope, intercept = artifact.settings["calibration"]
    return Readings(
        probability=sigmoid(slope * _mean(logit) + intercept),
        diameter_mm=np.exp(np.clip(_mean(log_diameter), 0.0, 5.0)),
        malignancy=sigmoid(_mean(malignancy)),
        texture=texture.mean(0).argmax(1),
        mask=np.stack([nearest_piece(one > outline) for one in mask_logits(outputs)]),
    )


def mask_logits(outputs: Outputs) -> npt.NDArray[np.float32]:
    """Return the mean logit over the views of each voxel, ``(n, z, y, x)``."""
    views = _by_view(outputs[4])[:, :, 0]
    # masks are mirrored back before they are summed
    mirrored = (np.flip(one, axes) for one, axes in zip(views, VIEWS, strict=True))
    return np.asarray(sum(mirrored) / np.float32(len(VIEWS)))


def _by_view(output: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Split ``(views * n, …)`` to ``(views, n, …)``."""
    return output.reshape(len(VIEWS), len(output) // len(VIEWS), *output.shape[1:])


def open_second_reader(
    name: str,
    *,
    engine: str = AUTO,
    device: str = "",
    threads: int = 0,
    keys: tuple[Path, ...] = (),
) -> SecondReader:
    """Open the hybrid artifact of that name; the rest and errors as `open_as`."""
    needed = {"calibration": 2, "roi_shape": 3, "outline": 1}
    return SecondReader(
        open_as("hybrid", name, needed, engine=engine, device=device, threads=threads, keys=keys)
    )


def _mean(views: npt.NDArray[np.float32]) -> FloatArray:
    """Average ``(views, n, 1)`` to ``(n,)``."""
    return np.asarray(views.mean(0)[:, 0], np.float64)


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
