"""The hybrid network as the cloud uses it: regions in, readings out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray, UInt8Array
from models.runtime.artifacts import Artifact
from models.runtime.engines import Outputs
from models.runtime.opened import Opened, open_as
from models.runtime.readings import Readings, nearest_piece
from models.runtime.session import AUTO

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
        probability=_sigmoid(slope * _mean(logit) + intercept),
        diameter_mm=np.exp(np.clip(_mean(log_diameter), 0.0, 5.0)),
        malignancy=_sigmoid(_mean(malignancy)),
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


def _sigmoid(logit: npt.NDArray[np.float64]) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-logit)))
