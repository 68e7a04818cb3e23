"""The hybrid network in parts, each with its own session, engine and threads.

The parts are artifacts of kind ``part``, cut by ``overread-models split``. The settings of each
list the tensors that it ``takes`` and ``gives``, and the hash of the ``whole`` file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging.volume import UInt8Array
from models.runtime import hardware
from models.runtime.artifacts import WEIGHTS, Artifact, every, find
from models.runtime.errors import UnfitArtifact
from models.runtime.second_reader import VIEWS, Readings, conclude, roi_shape_of, views_of
from models.runtime.session import AUTO, Session, chosen_engine, open_session

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class StagedReader:
    """Reads ROIs with ``parts`` of one hybrid artifact, ``whole``, one after another."""

    whole: Artifact
    parts: tuple[Session, ...]
    input: str
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The whole artifact's name."""
        return self.whole.name

    @property
    def version(self) -> str:
        """The whole artifact's version."""
        return self.whole.version

    @property
    def engine(self) -> str:
        """The engines of the parts, in their order; one if they are the same."""
        return " + ".join(dict.fromkeys(part.engine for part in self.parts))

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """The shape of an ROI, ``(z, y, x)``."""
        return roi_shape_of(self.whole)

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        """One function for each part: ROIs uint8 ``(n, z, y, x)`` to tensors to `Readings`."""
        first, *middle, last = (self._step(part) for part in self.parts)

        def finish(tensors: Tensors) -> Readings:
            found = last(tensors)
            outputs = tuple(np.asarray(found[name]) for name in self.outputs)
            # the views of all ROIs follow each other, the first as it is
            rois = np.asarray(tensors[self.input])[:, 0]
            return conclude(outputs, self.whole, rois[: len(rois) // len(VIEWS)])

        return (
            lambda batch: first({self.input: views_of(batch, self.whole)}), *middle, finish
        )  # fmt: skip

    def read(self, batch: UInt8Array) -> Readings:
        """Read ROIs ``(n, z, y, x)`` with all parts in turn, as the whole would.

        Raises:
            ModelFailed: an engine failed on this batch.
            ValueError: the ROIs are not of `roi_shape`.
        """
        work: Any = batch
        for step in self.steps:
            work = step(work)
        readings: Readings = work
        return readings

    def _step(self, part: Session) -> Callable[[Tensors], Tensors]:
        takes, gives = part.artifact.settings["takes"], part.artifact.settings["gives"]

        def step(tensors: Tensors) -> Tensors:
            made = part.run(*(tensors[name] for name in takes))
            return {**tensors, **dict(zip(gives, made, strict=True))}

        return step


def open_staged(
    name: str,
    count: int,
    *,
    engine: str = AUTO,
    engines: Sequence[str] = (),
    device: str = "",
    threads: int = 0,
    folder: Path = WEIGHTS,
    keys: tuple[Path, ...] = (),
) -> StagedReader:
    """Open a hybrid artifact in ``count`` >= 2 parts; errors as `open_session`.

    With files of public ``keys``, one of them must have signed the manifest.

    ``engines`` has one for each part; if empty, all run on ``engine`` and ``device``, where
    ``auto`` is the fastest for the whole. ``threads`` are divided among the parts; 0 means every
    core.

    Raises:
        UnfitArtifact: it was not split so, or was exported again since.
        UntrustedManifest, InvalidKey: see `models.runtime.artifacts.every`.
    """
    whole = find(name, folder, keys)
    parts = [_part(whole, i, count, folder, keys) for i in range(1, count + 1)]
    usual = chosen_engine(whole, engine, threads, device=device)
    each = max(1, (threads or hardware.cores()) // count)
    sessions = tuple(
        open_session(part, engine=chosen, threads=each)
        for part, chosen in zip(parts, engines or [usual] * count, strict=True)
    )
    settings = parts[-1].settings
    return StagedReader(whole, sessions, settings["input"], tuple(settings["outputs"]))


def part_name(whole: str, number: int, count: int) -> str:
    """Return the name of a part, ``number`` from 1 to ``count``."""
    return f"{whole}-part{number}of{count}"


def _part(
    whole: Artifact, number: int, count: int, folder: Path, keys: tuple[Path, ...]
) -> Artifact:
    name = part_name(whole.name, number, count)
    remedy = f"run: overread-models split {whole.name} --parts {count}"
    part = every(folder, keys).get(name)
    if part is None:
        raise UnfitArtifact(f"{whole.name} is not split into {count} parts; {remedy}")
    if part.settings.get("whole") != whole.sha256:
        raise UnfitArtifact(f"{name} is part of another {whole.name}; {remedy}")
    return part
