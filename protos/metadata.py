"""How many of a study's ROIs the cloud can answer in time, told with its first sign of life.

How a caller names its site: a hospital, or one scanner's edge.

What the cloud says of its own load in the trailing metadata of every stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

KEY = "overread-accepted"


def to_metadata(rois: int) -> tuple[tuple[str, str], ...]:
    """For initial metadata: so many of the announced ROIs, the first that come, can be met."""
    return ((KEY, str(rois)),)


def accepted_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> int | None:
    """What a cloud told in its initial metadata, None where it told nothing that can be read."""
    for key, value in metadata or ():
        if key == KEY:
            text = value.decode(errors="replace") if isinstance(value, bytes) else value
            return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return None


SITE_KEY = "overread-site"
"""The caller's metadata that names its site where no certificate does."""

MAX_SITE_CHARACTERS = 64

QUEUE_KEY = "overread-queue-s"
COMPUTE_KEY = "overread-compute-s"


@dataclass(frozen=True)
class Load:
    """``queue_s``: what work arriving now would wait; ``compute_s``: spent on the stream."""

    queue_s: float
    compute_s: float

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        """As it travels, in seconds with microseconds."""
        return ((QUEUE_KEY, f"{self.queue_s:.6f}"), (COMPUTE_KEY, f"{self.compute_s:.6f}"))


def load_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Load | None:
    """The load that trailing metadata tells, or None where it tells none that can be."""
    said = dict(metadata or ())
    try:
        load = Load(float(said[QUEUE_KEY]), float(said[COMPUTE_KEY]))
    except (KeyError, ValueError):
        return None
    sensible = all(math.isfinite(s) and s >= 0 for s in (load.queue_s, load.compute_s))
    return load if sensible else None
