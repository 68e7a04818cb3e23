"""The cloud service with a reader that sleeps: measures the scheduler without a model.

``python -m evaluation.load.sleeping_service --fixed-ms 20 --each-ms 5 --ready-file FILE`` serves. A
batch of n ROIs takes fixed + n each. The probabilities are always one half.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cloud.settings import load_settings
from evaluation.common.reader_service import serve_reader
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings


@dataclass(frozen=True)
class SleepingReader:
    """Sleeps ``fixed_s``, and ``each_s`` for each ROI."""

    fixed_s: float
    each_s: float
    name: str = "sleeping"
    version: str = "1"
    engine: str = "none"
    roi_shape: tuple[int, int, int] = (48, 48, 48)

    def read(self, batch: UInt8Array) -> Readings:
        """Sleep, and return one half for every probability."""
        count = len(batch)
        time.sleep(self.fixed_s + count * self.each_s)
        half, diameter_mm = np.full(count, 0.5), np.full(count, 6.0)
        solid, nothing = np.zeros(count, np.int64), np.zeros_like(batch, bool)
        return Readings(half, diameter_mm, half, solid, nothing)


def main(
    ready_file: Annotated[Path, typer.Option(help="File that gets the address when serving.")],
    address: str = "127.0.0.1:0",
    config: Annotated[Path | None, typer.Option(help="Settings file of the cloud.")] = None,
    fixed_ms: float = 20.0,
    each_ms: float = 5.0,
) -> None:
    """Serve until SIGTERM."""
    reader = SleepingReader(fixed_ms / 1e3, each_ms / 1e3)
    serve_reader(reader, load_settings(config, address=address), ready_file)


if __name__ == "__main__":
    typer.run(main)
