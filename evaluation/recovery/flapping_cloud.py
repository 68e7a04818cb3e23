"""The real service around a reader whose verdict follows from the middle of a region alone.

``python -m evaluation.recovery.flapping_cloud --ready-file FILE``: so it is known beforehand what the cloud says
of each region, in whatever size it is sent. What it says means nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cloud.server import CloudServer, serve
from cloud.settings import load_settings
from cloud.telemetry import Telemetry, configure_logging
from edge.atomic_files import write_atomically
from evaluation.recovery.agent import SIDE
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings

DIAMETER_MM = 8.0
MODEL = "middle 1"


@dataclass(frozen=True)
class MiddleReader:
    """Reads regions of ``SIDE`` voxels along each axis."""

    name: str = "middle"
    version: str = "1"
    engine: str = "none"
    roi_shape: tuple[int, int, int] = (SIDE, SIDE, SIDE)

    def read(self, batch: UInt8Array) -> Readings:
        """A probability by `probability_of`, and nothing else."""
        count = len(batch)
        probability = np.array([probability_of(region) for region in batch])
        unsure, outline = np.full(count, 0.5), np.zeros_like(batch, bool)
        diameter_mm = np.full(count, DIAMETER_MM)
        return Readings(probability, diameter_mm, unsure, np.zeros(count, np.int64), outline)


def probability_of(region: UInt8Array) -> float:
    """One in [0.01, 0.99] that follows from the 2 x 2 x 2 voxels in the middle."""
    z, y, x = (side // 2 for side in region.shape)
    middle = np.ascontiguousarray(region[z - 1 : z + 1, y - 1 : y + 1, x - 1 : x + 1])
    digest = hashlib.blake2b(middle.tobytes(), digest_size=4).digest()
    return 0.01 + 0.98 * int.from_bytes(digest, "big") / 2**32


def main(
    ready_file: Annotated[Path, typer.Option(help="Written with the address when serving.")],
    address: str = "127.0.0.1:0",
) -> None:
    """Serves until SIGTERM."""
    settings, telemetry = load_settings(address=address), Telemetry()
    configure_logging("text")
    server = CloudServer(settings, MiddleReader(), telemetry, service_version="middle")
    asyncio.run(serve(server, ready=lambda bound: write_atomically(ready_file, bound.encode())))


if __name__ == "__main__":
    typer.run(main)
