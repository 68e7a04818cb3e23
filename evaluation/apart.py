"""Cores of their own for a service and for those who load it, so that neither takes the other's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """Numbers of the cores of each; both are all of them where there is but one, or no choice."""

    service: frozenset[int]
    callers: frozenset[int]

    @property
    def apart(self) -> bool:
        """Whether they have none in common."""
        return not self.service & self.callers


def halves(*, shared: bool = False) -> Cores:
    """The first half of this process's cores for the service, the rest for its callers."""
    if not hasattr(os, "sched_getaffinity"):
        every = frozenset(range(os.cpu_count() or 1))
        return Cores(every, every)
    cores = sorted(os.sched_getaffinity(0))
    if shared or len(cores) < 2:
        return Cores(frozenset(cores), frozenset(cores))
    middle = len(cores) // 2
    return Cores(frozenset(cores[:middle]), frozenset(cores[middle:]))


@contextmanager
def on_cores(cores: Set[int]) -> Iterator[None]:
    """This thread, and the threads and processes that it starts meanwhile, run on ``cores``."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
