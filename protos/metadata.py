"""The contract's gRPC metadata: the caller's site, the ROIs accepted, and the cloud's load."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

SITE_KEY = "overread-site"
"""Request metadata: the caller's site, where no certificate names it."""

MAX_SITE_CHARACTERS = 64

ACCEPTED_KEY = "overread-accepted"
"""Initial metadata: how many of the announced ROIs could be answered in time."""

QUEUE_KEY = "overread-queue-s"
COMPUTE_KEY = "overread-compute-s"


def accepted_metadata(rois: int) -> tuple[tuple[str, str], ...]:
    """Return the initial metadata that says how many of the first ROIs can be answered in time."""
    return ((ACCEPTED_KEY, str(rois)),)


def accepted_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> int | None:
    """Return the number in initial metadata; None if there is none, or it cannot be read."""
    for key, value in metadata or ():
        if key == ACCEPTED_KEY:
            text = value.decode(errors="replace") if isinstance(value, bytes) else value
            return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return None


@dataclass(frozen=True)
class Load:
    """The wait of an ROI that arrived now, and the model time that was spent on the stream."""

    queue_s: float
    compute_s: float

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the trailing metadata, in seconds with microseconds."""
        return ((QUEUE_KEY, f"{self.queue_s:.6f}"), (COMPUTE_KEY, f"{self.compute_s:.6f}"))


def load_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Load | None:
    """Return the load in trailing metadata; None if there is none, or it is not finite and >= 0."""
    values = dict(metadata or ())
    try:
        load = Load(float(values[QUEUE_KEY]), float(values[COMPUTE_KEY]))
    except (KeyError, ValueError):
        return None
    valid = all(math.isfinite(s) and s >= 0 for s in (load.queue_s, load.compute_s))
    return load if valid else None
