"""The cloud service with a reader that sleeps, or another order: measures the scheduler.

``python -m evaluation.load.sleeping_service --fixed-ms 20 --each-ms 5 --ready-file FILE`` serves. A
batch of n ROIs takes fixed + n each on its device. The probabilities are always one half. With
``--model`` a model reads. ``--order`` is a name of `evaluation.load.orders`.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cloud.instances import open_instances, open_reader
from cloud.settings import load_settings
from cloud.workers import OpenOne
from evaluation.common.reader_service import serve_reader
from evaluation.load.orders import ORDERS
from evaluation.load.sleeping_device import SleepingModel


def main(
    ready_file: Annotated[Path, typer.Option(help="File that gets the address when serving.")],
    address: str = "127.0.0.1:0",
    config: Annotated[Path | None, typer.Option(help="Settings file of the cloud.")] = None,
    fixed_ms: float = 20.0,
    each_ms: float = 5.0,
    model: str | None = None,
    order: str = "deadline",
) -> None:
    """Serve until SIGTERM."""
    settings = load_settings(config, address=address, model=model)
    opened: OpenOne = SleepingModel(settings, fixed_ms / 1e3, each_ms / 1e3).open
    if model is not None:
        opened = partial(open_reader, settings)
    with open_instances(settings, opened) as reader:
        serve_reader(reader, settings, ready_file, ORDERS[order])


if __name__ == "__main__":
    typer.run(main)
