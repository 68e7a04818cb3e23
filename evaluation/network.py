"""How long one pass of a network takes here: artifacts and engines in turn, A B A B."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.runtime import hardware
from models.runtime.artifacts import Artifact, find
from models.runtime.session import Session, open_session


@dataclass(frozen=True, eq=False)
class Contestant:
    """One artifact on one engine, and the time of each of its passes, ``took_s`` (rounds,)."""

    session: Session
    took_s: list[float]

    @property
    def label(self) -> str:
        """Artifact and engine."""
        return f"{self.session.artifact.name} on {self.session.engine}"


def enter(names: Sequence[str], engines: Sequence[str], threads: int) -> list[Contestant]:
    """Every artifact on every engine; errors as `open_session` and `find`.

    ``NAME:stored`` is the artifact of that name run as it is stored, INT4 not laid out as INT8.
    """
    return [
        Contestant(open_session(_named(name), engine=engine, threads=threads), [])
        for name in names
        for engine in engines
    ]


def _named(name: str) -> Artifact:
    plain, _, form = name.partition(":")
    artifact = find(plain)
    return replace(artifact, name=name, expand=False) if form == "stored" else artifact


def run_in_turn(
    contestants: Sequence[Contestant],
    shape: tuple[int, int, int],
    rounds: Iterable[int],
    *,
    batch: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """One pass of each in every round, after two that do not count."""
    inputs = {c.label: _input(c.session.artifact, shape, batch) for c in contestants}
    for contestant in contestants:
        for _ in range(2):
            contestant.session.run(inputs[contestant.label])
    for _ in rounds:
        for contestant in contestants:
            began = clock()
            contestant.session.run(inputs[contestant.label])
            contestant.took_s.append(clock() - began)


def as_json(
    contestants: Sequence[Contestant], shape: tuple[int, int, int], batch: int
) -> dict[str, Any]:
    """Median and 95th percentile in ms of each, and its median ratio to the first, pair by pair."""
    first = np.array(contestants[0].took_s)
    return {
        "cpu": hardware.cpu_name(),
        "threads": contestants[0].session.threads,
        "shape": list(shape),
        "batch": batch,
        "rounds": len(first),
        "passes": [
            {
                "artifact": c.session.artifact.name,
                "engine": c.session.engine,
                "median_ms": float(np.median(c.took_s)) * 1e3,
                "p95_ms": float(np.quantile(c.took_s, 0.95)) * 1e3,
                "ratio_to_first": float(np.median(np.array(c.took_s) / first)),
            }
            for c in contestants
        ],
    }


def _input(artifact: Artifact, shape: tuple[int, int, int], batch: int) -> np.ndarray:
    if artifact.kind == "hybrid":
        z, y, x = artifact.settings["roi_shape"]
        shape = (int(z), int(y), int(x))
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, 1, *shape), dtype=np.uint8)
