"""What the cloud says of its own load in the trailing metadata of every stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

QUEUE_KEY = "overread-queue-s"
COMPUTE_KEY = "overread-compute-s"


@dataclass(frozen=True)
class Load:
    """``queue_s``: what work arriving now would wait; ``compute_s``: spent on the stream."""

    queue_s: float
    compute_s: float

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        """As it travels, in seconds with microseconds."""
        return (
            (QUEUE_KEY, f"{self.queue_s:.6f}"),
            (COMPUTE_KEY, f"{self.compute_s:.6f}"),
        )


def load_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Load | None:
    """The load that trailing metadata tells, or None where it tells none that can be."""
    said = dict(metadata or ())
    try:
        load = Load(float(said[QUEUE_KEY]), float(said[COMPUTE_KEY]))
    except (KeyError, ValueError):
        return None
    sensible = all(math.isfinite(s) and s >= 0 for s in (load.queue_s, load.compute_s))
    return load if sensible else None
