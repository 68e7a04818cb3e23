"""A fetched model on the disk: its folder ``state/models/VERSION``, and how it is opened.

A folder is like ``models/weights``. A model is opened for the first time in a process of its own at
the lowest priority (``python -m edge.models.folder``). An engine that crashes on it, or needs all
memory, ends that process and not the agent. It also finds the fastest correct engine, which takes
seconds: opening the model later is quick.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from edge.atomic_files import move, remove
from edge.errors import EdgeError
from edge.reader import EdgeReader
from edge.settings.core import EdgeSettings
from edge.site import Site
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry
from models.runtime.errors import ModelError
from models.runtime.package import Package, is_version, read_package
from models.runtime.screener import open_screener

NEW = ".new-"
"""Prefix of a folder that is not complete, or not needed any more."""
TRIAL_S = 300.0
"""Longest time of a trial; that of the shipped model takes about 5 s."""
_SIDE = 96


class ModelUpdateError(EdgeError):
    """A model cannot be fetched, promoted or rolled back."""


class UpdatesOff(ModelUpdateError):
    """Models are not taken from a cloud with these settings, or by this user."""


class FetchFailed(ModelUpdateError):
    """The model did not come, or not whole; what came is kept, and the next fetch continues."""


class RefusedModel(ModelUpdateError):
    """What came from the cloud is not used, and was discarded."""


class NotPromotable(ModelUpdateError):
    """The model may not be promoted, or there is none to go back to."""


def top_of(site: Site) -> Path:
    """Return the folder of all fetched models."""
    return site.folders.state / "models"


def folder_of(site: Site, version: str) -> Path:
    """Return the folder of one version, which may be missing.

    Raises:
        RefusedModel: the text is no version.
    """
    if not is_version(version):
        raise RefusedModel(f"{version!r} is no version of a model")
    return top_of(site) / version


def signed_package(name: str, folder: Path, keys: tuple[Path, ...]) -> Package:
    """Return what the manifest in a folder says; a trusted key must have signed it.

    Raises:
        RefusedModel: there is none, or nobody who is trusted signed it.
    """
    if not keys:
        raise RefusedModel(
            "models.keys is not set: a model from a cloud is used only if somebody who is trusted"
            " signed it; set models.keys to the public keys of who may sign models"
        )
    try:
        return read_package(name, folder, keys)
    except ModelError as error:
        raise RefusedModel(f"{type(error).__name__}: {error}") from error


def is_whole(package: Package) -> bool:
    """Tell whether the model file is there, with the right hash."""
    try:
        return bool(package.model.stored())
    except ModelError:
        return False


def remove_version(folder: Path) -> None:
    """Remove a version; a crash leaves it whole under its name, or not at all."""
    if folder.is_dir():
        doomed = folder.with_name(f"{NEW}{folder.name}-{os.getpid()}")
        remove(doomed)
        move(folder, doomed)
        remove(doomed)


def try_model(package: Package, settings: EdgeSettings) -> str:
    """Open the model of a package and let it read a small box; return the engine that fits.

    Raises:
        RefusedModel: it cannot be opened, or cannot read.
    """
    artifact = package.model
    values = {
        "name": artifact.name,
        "folder": str(artifact.path.parent),
        "engine": settings.engine,
        "threads": settings.threads,
        "keys": [str(key.absolute()) for key in settings.models.keys],
    }
    command = [sys.executable, "-P", "-m", __name__, json.dumps(values)]
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
    paths = {"folder": Path(values["folder"]), "keys": tuple(map(Path, values["keys"]))}
    try:
        screener = open_screener(**(values | paths))
        EdgeReader.of(screener)
        shades = np.linspace(0, 255, _SIDE).astype(np.uint8)
        box = np.broadcast_to(shades, (_SIDE,) * 3).copy()
        screener.screen(Preprocessed(box, Geometry()))
    except (EdgeError, ModelError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(screener.engine)


if __name__ == "__main__":
    main()
