"""The real service around a reader of set cost: to try the load test without a model.

``python -m evaluation.load.sleeping_service --fixed-ms 20 --each-ms 5 --ready-file FILE``: a batch of n
ROIs takes fixed + n each, asleep. What it answers means nothing.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cloud.server import CloudServer, serve
from cloud.settings import load_settings
from cloud.telemetry import Telemetry, configure_logging
from edge.atomic_files import write_atomically
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings


@dataclass(frozen=True)
class SleepingReader:
    """Takes ``fixed_s`` and ``each_s`` for each ROI, and says that it knows nothing."""

    fixed_s: float
    each_s: float
    name: str = "sleeping"
    version: str = "1"
    engine: str = "none"
    roi_shape: tuple[int, int, int] = (48, 48, 48)

    def read(self, batch: UInt8Array) -> Readings:
        """One half for every probability."""
        count = len(batch)
        time.sleep(self.fixed_s + count * self.each_s)
        half, zeros = np.full(count, 0.5), np.zeros(count)
        return Readings(half, zeros, half, np.zeros(count, np.int64), np.zeros_like(batch, bool))


def main(
    ready_file: Annotated[Path, typer.Option(help="Written with the address when serving.")],
    address: str = "127.0.0.1:0",
    config: Annotated[
        Path | None, typer.Option(help="TOML file with the cloud's settings.")
    ] = None,
    fixed_ms: float = 20.0,
    each_ms: float = 5.0,
) -> None:
    """Serves until SIGTERM."""
    settings = load_settings(config, address=address)
    configure_logging("text")
    reader, telemetry = SleepingReader(fixed_ms / 1e3, each_ms / 1e3), Telemetry()

    async def run() -> None:
        server = CloudServer(settings, reader, telemetry, service_version="synthetic")
        with telemetry.serve(settings.metrics_address, settings.metrics_port):
            await serve(server, ready=lambda bound: write_atomically(ready_file, bound.encode()))

    asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
