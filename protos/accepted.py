"""How many of a study's ROIs the cloud can answer in time, told with its first sign of life."""

from __future__ import annotations

from collections.abc import Iterable

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
