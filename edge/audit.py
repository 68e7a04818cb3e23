"""Which scans without anything to ask about are read again all the same: a random sample.

A filter that calls "nothing found" easy never learns of its misses. The study's random key
decides, so that a study that is read again after a crash is audited again, or again not.
"""

from __future__ import annotations

import hashlib

_RANGE = 2.0**64


def audited(study_key: str, rate: float) -> bool:
    """Whether the study belongs to the sampled part ``rate`` of all.

    Raises:
        ValueError: ``rate`` is not in [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"an audit rate of {rate} is not in [0, 1]")
    digest = hashlib.sha256(f"audit {study_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * _RANGE
