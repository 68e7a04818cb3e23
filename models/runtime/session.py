"""Opens an artifact on an engine: the one that is named, or the fastest correct one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from models.runtime.artifacts import WEIGHTS, Artifact, find
from models.runtime.choice import AUTO, choose
from models.runtime.contract import require_fit, require_shapes
from models.runtime.engines import Outputs, Runner, start
from models.runtime.errors import ModelFailed


@dataclass(frozen=True, eq=False)
class Session:
    """An artifact on an engine, ready to run, and its number of threads."""

    artifact: Artifact
    engine: str
    threads: int
    _run: Runner

    def run(self, *batch: npt.NDArray[Any]) -> Outputs:
        """Return the model's outputs, float32, for its inputs, both in the order of the file.

        Raises:
            ModelFailed: the engine failed, or an output is not finite.
        """
        shape = batch[0].shape
        try:
            outputs = self._run(*batch)
        except Exception as error:  # an engine's own errors have no common class
            raise ModelFailed(f"{self.engine} failed on an input of {shape}: {error}") from error
        if not all(np.isfinite(out).all() for out in outputs):
            raise ModelFailed(f"{self.engine} gave values that are not finite for {shape}")
        return outputs


@dataclass(frozen=True, eq=False)
class Opened:
    """The base of readers with one opened artifact."""

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
    def signed_by(self) -> str:
        """The trusted key that signed its manifest; empty where none was required."""
        return self.session.artifact.signed_by

    @property
    def engine(self) -> str:
        """The engine that it runs on."""
        return self.session.engine


class Opening(TypedDict, total=False):
    """How a reader is opened: see `open_session`, and `models.runtime.artifacts.find`."""

    engine: str
    device: str
    threads: int
    keys: tuple[Path, ...]
    folder: Path


def open_as(kind: str, name: str, **opening: Unpack[Opening]) -> Session:
    """Open the artifact of that name for a reader of ``kind``; errors as `open_session`.

    Raises:
        UnknownArtifact: the manifest lacks it.
        UnfitArtifact: it is of another kind, a setting is missing or invalid, or its file breaks
            the contract.
        UntrustedManifest, InvalidKey: see `models.runtime.artifacts.every`.
    """
    artifact = find(name, opening.get("folder", WEIGHTS), opening.get("keys", ()))
    require_fit(artifact, kind)
    session = open_session(
        artifact,
        engine=opening.get("engine", AUTO),
        device=opening.get("device", ""),
        threads=opening.get("threads", 0),
    )
    require_shapes(artifact, session.run)
    return session


def open_session(
    artifact: Artifact, *, engine: str = AUTO, device: str = "", threads: int = 0
) -> Session:
    """Open ``artifact`` on ``engine``, one of `models.runtime.hardware.engines()` or ``auto``.

    With a ``device``, ``engine`` is one without: see `models.runtime.hardware.engines_on`.
    ``threads`` 0 means those that `overread-models probe` chose, or every core that the process may
    use. The choice of ``auto`` is kept, if there is a home folder.

    Raises:
        DamagedArtifact: the file is not what the manifest says.
        EngineUnavailable: the engine is missing or rejects the model.
    """
    way = choose(artifact, engine, threads, device=device)
    run = start(way.engine, artifact.content(), way.threads, half=way.half)
    return Session(artifact, way.engine, way.threads, run)
