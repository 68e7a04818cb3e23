"""The real cloud service around a reader that stands in for the model."""

import asyncio
import sys
from pathlib import Path

from cloud.scheduling.scheduler import Scheduler
from cloud.server import CloudServer, serve
from cloud.settings import CloudSettings
from cloud.telemetry import Telemetry
from cloud.workers import Reader
from edge.atomic_files import write_atomically
from process.logs import configure_logging


def serve_reader(
    reader: Reader,
    settings: CloudSettings,
    ready_file: Path,
    scheduler: type[Scheduler] = Scheduler,
) -> None:
    """Serve ``reader`` until SIGTERM; ``ready_file`` gets the address when it serves."""
    configure_logging("text", sys.stderr)
    telemetry = Telemetry()

    async def run() -> None:
        server = CloudServer(
            settings, reader, telemetry, service_version=reader.name, scheduler=scheduler
        )
        with telemetry.serve(settings.metrics_address):
            await serve(server, ready=lambda bound: write_atomically(ready_file, bound.encode()))

    asyncio.run(run())
