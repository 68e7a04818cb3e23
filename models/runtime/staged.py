"""The hybrid network in parts, each with a session, an engine and threads of its own.

The parts are artifacts of kind ``part``, cut by ``overread-models split``: each says in its
settings which tensors it ``takes`` and ``gives``, and of which ``whole`` file it is a part.
"""

from __future__ import annotations

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
from models.runtime.second_reader import Readings, conclude, views_of
from models.runtime.session import AUTO, Session, chosen_engine, open_session

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class StagedReader:
    """Reads regions with ``parts`` of one hybrid artifact, ``whole``, one after another."""

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
        """The engines of the parts, in their order; one where they are the same."""
        return " + ".join(dict.fromkeys(part.engine for part in self.parts))

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """What `read` takes, ``(z, y, x)``."""
        z, y, x = self.whole.settings["roi_shape"]
        return int(z), int(y), int(x)

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        """The parts at work: regions uint8 ``(n, z, y, x)`` into the first, readings at last."""
        first, *others = (self._step(part) for part in self.parts)
        middle, last = others[:-1], others[-1]
        return (
            lambda batch: first(self._begin(batch)),
            *middle,
            lambda tensors: self._conclude(last(tensors)),
        )

    def read(self, batch: UInt8Array) -> Readings:
        """What all parts in turn say of regions ``(n, z, y, x)``, as the whole would.

        Raises:
            ModelFailed: an engine failed on this batch.
            ValueError: the regions are not of `roi_shape`.
        """
        work: Any = batch
        for step in self.steps:
            work = step(work)
        readings: Readings = work
        return readings

    def _begin(self, batch: UInt8Array) -> Tensors:
        if batch.shape[1:] != self.roi_shape:
            raise ValueError(f"regions of {batch.shape[1:]}, {self.name} takes {self.roi_shape}")
        return {self.input: views_of(batch)}

    def _step(self, part: Session) -> Callable[[Tensors], Tensors]:
        takes, gives = part.artifact.settings["takes"], part.artifact.settings["gives"]

        def step(tensors: Tensors) -> Tensors:
            made = part.run(*(tensors[name] for name in takes))
            return {**tensors, **dict(zip(gives, made, strict=True))}

        return step

    def _conclude(self, tensors: Tensors) -> Readings:
        outputs = tuple(np.asarray(tensors[name]) for name in self.outputs)
        return conclude(outputs, self.whole)


def open_staged(
    name: str,
    count: int,
    *,
    engine: str = AUTO,
    engines: Sequence[str] = (),
    threads: int = 0,
    folder: Path = WEIGHTS,
) -> StagedReader:
    """The hybrid artifact of that name in ``count`` parts, two at least, errors as `open_session`.

    ``engines`` has one for each part; empty, all run on ``engine``, and ``auto`` is the fastest
    for the whole. ``threads`` are shared out among the parts; 0 means every core.

    Raises:
        UnfitArtifact: it was not split so, or was exported again since.
    """
    whole = find(name, folder)
    parts = [_part(whole, i, count, folder) for i in range(1, count + 1)]
    usual = chosen_engine(whole, engine, threads)
    each = max(1, (threads or hardware.cores()) // count)
    sessions = tuple(
        open_session(part, engine=chosen, threads=each)
        for part, chosen in zip(parts, engines or [usual] * count, strict=True)
    )
    settings = parts[-1].settings
    return StagedReader(whole, sessions, settings["input"], tuple(settings["outputs"]))


def part_name(whole: str, number: int, count: int) -> str:
    """The name of a part, ``number`` from 1 to ``count``."""
    return f"{whole}-part{number}of{count}"


def _part(whole: Artifact, number: int, count: int, folder: Path) -> Artifact:
    name, mend = part_name(whole.name, number, count), f"overread-models split {whole.name}"
    part = every(folder).get(name)
    if part is None:
        raise UnfitArtifact(f"{whole.name} is not in {count} parts: {mend} --parts {count}")
    if part.settings.get("whole") != whole.sha256:
        raise UnfitArtifact(f"{name} is part of another {whole.name}: {mend} --parts {count}")
    return part
