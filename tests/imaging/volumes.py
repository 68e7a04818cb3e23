"""Volumes with a known HU everywhere, and the window of the networks applied plainly."""

import numpy as np
import numpy.typing as npt

from imaging.volume import WINDOW_HU, Geometry, UInt8Array, Volume


def ramp(geometry: Geometry, shape: tuple[int, int, int]) -> Volume:
    """A volume whose HU is a linear function of the place in the patient."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = geometry.to_world(index)
    return Volume((world @ [2.0, -3.0, 1.5] - 300).round().astype(np.int16), geometry)


def to_window(hu: npt.NDArray[np.generic]) -> UInt8Array:
    """HU of any shape as uint8 of the window: round((HU - low) * 255 / (high - low)), clipped."""
    low, high = WINDOW_HU
    scaled = (hu.astype(np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
