"""The cloud service with a reader that sleeps: measures the scheduler without a model.

``python -m evaluation.load.sleeping_service --fixed-ms 20 --each-ms 5 --ready-file FILE`` serves. A
batch of n ROIs takes fixed + n each on its device. The probabilities are always one half.
"""

from pathlib import Path
from typing import Annotated

import typer

from cloud.instances import open_instances
from cloud.settings import load_settings
from evaluation.common.reader_service import serve_reader
from evaluation.load.sleeping_device import SleepingModel


def main(
    ready_file: Annotated[Path, typer.Option(help="File that gets the address when serving.")],
    address: str = "127.0.0.1:0",
    config: Annotated[Path | None, typer.Option(help="Settings file of the cloud.")] = None,
    fixed_ms: float = 20.0,
    each_ms: float = 5.0,
) -> None:
    """Serve until SIGTERM."""
    settings = load_settings(config, address=address)
    model = SleepingModel(settings, fixed_ms / 1e3, each_ms / 1e3)
    with open_instances(settings, model.open) as reader:
        serve_reader(reader, settings, ready_file)


if __name__ == "__main__":
    typer.run(main)
