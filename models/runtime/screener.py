"""The screening network as the edge uses it: a lung box in, candidates out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import cv2
import numpy as np

from imaging.preprocess import Preprocessed
from imaging.volume import FloatArray, UInt8Array
from models.runtime.detection import Candidate, Peaks, find_peaks, strongest, to_candidates
from models.runtime.session import Opened, Opening, open_as

PAD_TO = 16
"""The network halves the grid four times."""

READING = 5
"""Increase it if boxes are read differently: calibrations of another reading are void."""

COARSE_MM = 2.0
"""Voxel size of the reading at half the resolution."""

LARGE_MM = 28.0
"""The least diameter of candidates at half the resolution: four cells of its maps."""

MIN_LOGIT = -7.0
MAX_CANDIDATES = 100
"""The weakest peak and the most candidates of a scan (LUNA16 takes 100 a scan too)."""


class Screener(Opened):
    """Reads lung boxes with one opened screening artifact."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The manifest's settings: ``calibration``, ``thresholds``, ``merge``."""
        return self.session.artifact.settings

    def screen(self, box: Preprocessed) -> list[Candidate]:
        """Return the candidates inside the lung, strongest first.

        The box is read once more at half the resolution, for nodules larger than the network's
        field of view.

        Raises:
            ModelFailed: the engine failed on this box.
        """
        voxels = padded(box.voxels)
        readings = [self._peaks(voxels)]
        if min(box.voxels.shape) >= 2 * LARGE_MM:  # else no such nodule is whole
            coarse = self._peaks(padded(halved(voxels)), COARSE_MM)
            # voxel centres lie at halves
            index = (coarse.index_zyx + 0.5) * COARSE_MM - 0.5
            readings.append(replace(coarse, index_zyx=index).at(coarse.diameter_mm >= LARGE_MM))
        # twice as many as are returned: some lie outside the lungs or in the mirrored padding
        found = strongest(readings, 2 * MAX_CANDIDATES)
        at = found.index_zyx
        size = np.array(box.voxels.shape)
        keep = box.inside(at, found.diameter_mm) & (at >= -0.5).all(1) & (at <= size - 0.5).all(1)
        calibration = self.settings["calibration"]
        return to_candidates(found.at(keep), box.geometry, calibration)[:MAX_CANDIDATES]

    def _peaks(self, voxels: UInt8Array, voxel_mm: float = 1.0) -> Peaks:
        """Return the peaks in a box of that voxel size."""
        (maps,) = self.session.run(voxels[None, None])
        return find_peaks(
            maps[0],
            least_logit=MIN_LOGIT,
            most=2 * MAX_CANDIDATES,
            prior=size_prior,
            voxel_mm=voxel_mm,
        )


def size_prior(diameter_mm: FloatArray) -> FloatArray:
    """Return the bonus on the logits of large peaks ``(n,)``: 0.25 for each mm above 18, at most 2.

    Chosen on training and validation scans, where such large peaks in lungs are lesions only.
    """
    return np.clip((diameter_mm - 18.0) * 0.25, 0.0, 2.0)


def read_by(version: str) -> str:
    """Return an artifact's version and the reading, as the calibration states them."""
    return f"{version}, reading {READING}"


def open_screener(name: str, **opening: Unpack[Opening]) -> Screener:
    """Open the screening artifact of that name; the rest and errors as `open_as`."""
    return Screener(open_as("screening", name, **opening))


def padded(voxels: UInt8Array) -> UInt8Array:
    """Pad the box at its far ends to multiples of `PAD_TO` by mirroring."""
    deep, high, wide = (-n % PAD_TO for n in voxels.shape)
    out = np.empty([n + -n % PAD_TO for n in voxels.shape], np.uint8)
    for image, to in zip(voxels, out, strict=False):
        cv2.copyMakeBorder(image, 0, high, 0, wide, cv2.BORDER_REFLECT, dst=to)
    mirrored = np.pad(np.arange(len(voxels)), (0, deep), mode="symmetric")
    out[len(voxels) :] = out[mirrored[len(voxels) :]]
    return out


def halved(voxels: UInt8Array) -> UInt8Array:
    """Average each 2 x 2 x 2 voxels; the sides must be even."""
    deep, high, wide = voxels.shape
    # all slices as one picture, then pairs of them as two
    rows = cv2.resize(
        voxels.reshape(-1, wide), (wide // 2, deep * high // 2), interpolation=cv2.INTER_AREA
    )
    pairs = rows.reshape(deep // 2, 2, -1)
    mean = cv2.addWeighted(pairs[:, 0], 0.5, pairs[:, 1], 0.5, 0)
    return np.asarray(mean, np.uint8).reshape(deep // 2, high // 2, wide // 2)
