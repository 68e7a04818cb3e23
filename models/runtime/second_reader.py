"""The hybrid network as the cloud uses it: regions in, probability and diameter out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray, UInt8Array
from models.runtime.opened import Opened, open_as
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

    def read(self, batch: UInt8Array) -> tuple[FloatArray, FloatArray]:
        """Calibrated probability ``(n,)`` and diameter in mm ``(n,)`` of ``(n, z, y, x)``.

        Each region is read in four `VIEWS` and the logits are averaged.

        Raises:
            ModelFailed: the engine failed on this batch.
            ValueError: the regions are not of `roi_shape`.
        """
        if batch.shape[1:] != self.roi_shape:
            raise ValueError(f"regions of {batch.shape[1:]}, {self.name} takes {self.roi_shape}")
        views = np.concatenate([np.flip(batch, axes) for axes in VIEWS])
        outputs = self.session.run(np.ascontiguousarray(views)[:, None])
        logit, log_diameter = (out.reshape(len(VIEWS), -1).mean(0) for out in outputs)
        slope, intercept = self.session.artifact.settings["calibration"]
        chance = _sigmoid(slope * logit.astype(np.float64) + intercept)
        return chance, np.exp(np.clip(log_diameter.astype(np.float64), 0.0, 5.0))


def open_second_reader(name: str, *, engine: str = AUTO, threads: int = 0) -> SecondReader:
    """The hybrid artifact of that name, opened; errors as `open_as`."""
    needed = {"calibration": 2, "roi_shape": 3}
    return SecondReader(open_as("hybrid", name, needed, engine=engine, threads=threads))


def _sigmoid(logit: npt.NDArray[np.float64]) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-logit)))
