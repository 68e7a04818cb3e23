"""The cloud service with a reader whose verdict depends on the middle of an ROI alone.

``python -m evaluation.recovery.flapping_cloud --ready-file FILE`` serves. So the verdict on each
ROI is known beforehand, whatever the size in which it is sent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cloud.settings import load_settings
from evaluation.common.reader_service import serve_reader
from evaluation.recovery.agent import SIDE, hashed_probability
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings

DIAMETER_MM = 8.0
MODEL = "middle 1"


@dataclass(frozen=True)
class MiddleReader:
    """Reads ROIs of ``SIDE`` voxels along each axis."""

    name: str = "middle"
    version: str = "1"
    engine: str = "none"
    roi_shape: tuple[int, int, int] = (SIDE, SIDE, SIDE)

    def read(self, batch: UInt8Array) -> Readings:
        """Return `probability_of` each ROI, and the same values for the rest."""
        count = len(batch)
        probability = np.array([probability_of(roi) for roi in batch])
        unsure, outline = np.full(count, 0.5), np.zeros_like(batch, bool)
        diameter_mm = np.full(count, DIAMETER_MM)
        return Readings(probability, diameter_mm, unsure, np.zeros(count, np.int64), outline)


def probability_of(roi: UInt8Array) -> float:
    """Return the `hashed_probability` of the 2 x 2 x 2 voxels in the middle."""
    z, y, x = (side // 2 for side in roi.shape)
    return hashed_probability(roi[z - 1 : z + 1, y - 1 : y + 1, x - 1 : x + 1].tobytes())


def main(
    ready_file: Annotated[Path, typer.Option(help="File that gets the address when serving.")],
    address: str = "127.0.0.1:0",
) -> None:
    """Serve until SIGTERM."""
    serve_reader(MiddleReader(), load_settings(address=address), ready_file)


if __name__ == "__main__":
    typer.run(main)
