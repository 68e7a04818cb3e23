"""Pauses between attempts: they double with each failure, up to a longest one, with jitter.

Jitter: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
"""

import random
from collections.abc import Callable

Jitter = Callable[[float, float], float]
"""Draws a number between two bounds."""


def doubled(first: float, most: float, times: int) -> float:
    """Return ``first``, doubled ``times`` times, at most ``most``."""
    return min(most, first * 2.0 ** min(times, 30))


def pause_s(
    failures: int,
    first_s: float,
    longest_s: float,
    jitter: Jitter = random.uniform,
    least: float = 0.5,
) -> float:
    """Return the pause after this number of failures in a row, at least one.

    It is drawn between the part ``least`` of what is allowed and all of it, so that callers do not
    try in step; 1 is the whole pause.
    """
    allowed_s = doubled(first_s, longest_s, failures - 1)
    return jitter(least * allowed_s, allowed_s)
