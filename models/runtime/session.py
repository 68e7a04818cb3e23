"""The one place that opens an artifact: which engine, how many threads, and what was chosen.

What both readers are: an artifact opened for its kind, that can say what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.runtime import hardware
from models.runtime.artifacts import Artifact, find
from models.runtime.engines import Outputs, Runner, checked, start
from models.runtime.errors import UnfitArtifact
from models.runtime.probe import fastest

AUTO = "auto"

PROBE_CACHE = Path("~/.cache/overread/engines.json")


@dataclass(frozen=True, eq=False)
class Session:
    """An artifact that is ready to answer, the engine it runs on and its threads."""

    artifact: Artifact
    engine: str
    threads: int
    _run: Runner

    def run(self, *batch: npt.NDArray[Any]) -> Outputs:
        """The model's outputs, float32, in the order of the file; inputs in its order too.

        Raises:
            ModelFailed: the engine failed, or an output is not finite.
        """
        return self._run(*batch)


def open_session(
    artifact: Artifact,
    *,
    engine: str = AUTO,
    threads: int = 0,
    probe_cache: Path | None = PROBE_CACHE,
) -> Session:
    """Opens ``artifact`` on ``engine``; ``auto`` is the fastest correct one here.

    ``threads`` 0 means every core that the process may use. ``engine`` is one of
    `models.runtime.hardware.engines()`. What the probe found is kept in ``probe_cache``, or
    nowhere if that lies in a home folder and there is none.

    Raises:
        DamagedArtifact: the file is not what the manifest says.
        EngineUnavailable: the engine is not here or does not take the model.
    """
    count = threads or hardware.cores()
    chosen = chosen_engine(artifact, engine, threads, probe_cache)
    run = start(chosen, artifact.content(), count, half=artifact.half)
    return Session(artifact, chosen, count, checked(chosen, run))


def chosen_engine(
    artifact: Artifact, engine: str, threads: int = 0, probe_cache: Path | None = PROBE_CACHE
) -> str:
    """``engine`` itself, or for ``auto`` the fastest correct one; errors as `open_session`."""
    if engine != AUTO:
        return engine
    count = threads or hardware.cores()
    return fastest(artifact, probe_input(artifact), count, _at_home(probe_cache))


def _at_home(cache: Path | None) -> Path | None:
    try:
        return cache and cache.expanduser()
    except RuntimeError:  # a system user without an entry and without HOME
        return None


def probe_input(artifact: Artifact) -> npt.NDArray[np.uint8]:
    """A fixed input that is neither empty nor noise: smooth shapes over the whole range."""
    side = 96 if artifact.kind == "screening" else int(artifact.settings["roi_shape"][0])
    z, y, x = np.meshgrid(*([np.linspace(0, 6, side)] * 3), indexing="ij")
    shapes = np.sin(2 * z + y) * np.cos(3 * y - x) + np.sin(x * z / 2)
    grey = np.asarray(np.clip(shapes * 64 + 128, 0, 255).astype(np.uint8))
    pair = np.stack([grey, grey[::-1].copy()])[:, None]
    return pair if artifact.kind == "screening" else np.concatenate([pair] * 4)


@dataclass(frozen=True, eq=False)
class Opened:
    """Reads with one opened artifact."""

    session: Session

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.session.artifact.name

    @property
    def version(self) -> str:
        """The artifact's version."""
        return self.session.artifact.version

    @property
    def engine(self) -> str:
        """The engine that it runs on."""
        return self.session.engine


def open_as(
    kind: str, name: str, needed: Mapping[str, int], *, engine: str, threads: int
) -> Session:
    """The artifact of that name, opened for a reader of that ``kind``; errors as `open_session`.

    ``needed`` are the settings that the reader cannot do without, and how many numbers each has.

    Raises:
        UnknownArtifact: it is not in the manifest.
        UnfitArtifact: it is of another kind, or a setting is missing or cannot be.
    """
    artifact = find(name)
    if artifact.kind != kind:
        raise UnfitArtifact(f"{name} is of kind {artifact.kind!r}, {kind!r} is needed")
    for setting, count in needed.items():
        given = artifact.settings.get(setting)
        if not _are_numbers(given, count):
            raise UnfitArtifact(f"{name}: {setting} = {given!r}, {count} numbers are needed")
    return open_session(artifact, engine=engine, threads=threads)


def _are_numbers(given: object, count: int) -> bool:
    if not isinstance(given, Sequence) or len(given) != count:
        return False
    return all(isinstance(n, int | float) and math.isfinite(n) for n in given)
