"""From stored values to HU: unused bits, padding, rescaling, air."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging.errors import NotCt
from imaging.layout import Layout, Rescale
from imaging.volume import HuArray

AIR_HU, MAX_HU = -1024, 32767

_HIGHEST_AIR_HU, _LOWEST_TISSUE_HU = -200, 0
_TISSUE_HU = (-950.0, 1500.0)
"""What the body consists of; a padding value in it is believed only where it pads."""


def write_hu(stored: npt.NDArray[Any], layout: Layout, rescale: Rescale, out: HuArray) -> None:
    """Write the HU of one slice into ``out``, ``(rows, columns)`` int16.

    Values below -1024 (-2000 and -3024 outside the field of view) and padding become air.
    """
    padded = _padded(stored, layout, rescale)
    np.clip(
        _rescaled(_used_bits(stored, layout), rescale), AIR_HU, MAX_HU, out=out, casting="unsafe"
    )
    if padded is not None:
        out[padded] = AIR_HU


def require_hu(hu: HuArray, file: Path) -> None:
    """Nothing, if the values of a volume can be HU of a body in air.

    Raises:
        NotCt: they hold no air or no tissue, as pictures of 0 to 255 and raw values do.
    """
    low, high = int(hu.min()), int(hu.max())
    if low > _HIGHEST_AIR_HU or high < _LOWEST_TISSUE_HU:
        reason = f"values from {low} to {high} are not HU of a body in air: export the CT series"
        raise NotCt(reason, file)


def _rescaled(stored: npt.NDArray[Any], rescale: Rescale) -> npt.NDArray[Any]:
    whole = rescale.slope == 1 and float(rescale.intercept).is_integer()
    if whole and abs(rescale.intercept) < 2**30:
        return np.asarray(np.add(stored, int(rescale.intercept), dtype=np.int32))
    with np.errstate(over="ignore"):  # absurd factors end at the clip's limits
        return np.asarray(np.rint(stored * rescale.slope + rescale.intercept))


def _used_bits(stored: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """The values without the bits that lie above or below the stored ones, sign extended."""
    if layout.bits_stored == 16:
        return stored
    above, below = 15 - layout.high_bit, 16 - layout.bits_stored
    return np.asarray(np.right_shift(np.left_shift(stored, above), below))


def _padded(
    stored: npt.NDArray[Any], layout: Layout, rescale: Rescale
) -> npt.NDArray[np.bool_] | None:
    """Where padding lies, if there is any.

    Some files state a padding value, 0 above all, that is tissue in their scale. It is believed
    where it is no tissue, or where it fills a corner of the slice, as padding does.
    """
    if layout.padding is None:
        return None
    low, high = layout.padding
    padded = np.asarray((stored >= low) & (stored <= high))
    ends_hu = (v * rescale.slope + rescale.intercept for v in layout.padding)
    is_tissue = any(_TISSUE_HU[0] < v < _TISSUE_HU[1] for v in ends_hu)
    in_corner = padded[:: len(padded) - 1 or 1, :: padded.shape[1] - 1 or 1].any()
    return padded if in_corner or not is_tissue else None
