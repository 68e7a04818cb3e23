"""Open a new model for the first time, in a process of its own at the lowest priority.

An engine that crashes on a model, or needs all memory, ends that process and not the agent. It also
finds the fastest correct engine, which takes seconds: opening the model later is quick.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from edge.errors import EdgeError
from edge.models.errors import RefusedModel
from edge.reader import EdgeReader
from edge.settings.core import EdgeSettings
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry
from models.runtime.errors import ModelError
from models.runtime.package import Package
from models.runtime.screener import open_screener

TRIAL_S = 300.0
"""Longest time of a trial; that of the shipped model takes about 5 s."""
_SIDE = 96


def try_model(package: Package, settings: EdgeSettings) -> str:
    """Open the model of a package and let it read a small box; return the engine that fits.

    Raises:
        RefusedModel: it cannot be opened, or cannot read.
    """
    artifact = package.model
    values = {
        "folder": str(artifact.path.parent),
        "name": artifact.name,
        "engine": settings.engine,
        "threads": settings.threads,
        "keys": [str(key.absolute()) for key in settings.models.keys],
    }
    command = [sys.executable, "-P", "-m", "edge.models.smoke_test", json.dumps(values)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TRIAL_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RefusedModel(f"{artifact.name} was not opened within {TRIAL_S:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise RefusedModel(f"{artifact.name} cannot be used here: {lines[-1]}")
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Try the model that the argument names, and print its engine."""
    os.nice(19)
    values = json.loads(sys.argv[1])
    keys = tuple(map(Path, values["keys"]))
    try:
        screener = open_screener(
            values["name"],
            engine=values["engine"],
            threads=values["threads"],
            keys=keys,
            folder=Path(values["folder"]),
        )
        EdgeReader.of(screener)
        shades = np.linspace(0, 255, _SIDE).astype(np.uint8)
        box = np.broadcast_to(shades, (_SIDE,) * 3).copy()
        screener.screen(Preprocessed(box, Geometry()))
    except (EdgeError, ModelError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(screener.engine)


if __name__ == "__main__":
    main()
