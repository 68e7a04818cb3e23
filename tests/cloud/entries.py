"""Claims and tickets for tests of the queue: what matters is named, the rest is of no account."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from cloud.scheduling.cost import CostModel
from cloud.scheduling.planner import BatchTiming
from cloud.scheduling.queue import QueuedRoi, QueueEntry
from protos.deadline import Deadline
from protos.messages import Priority

NOW_S = 50.0


def entry(at_s: float, priority: Priority = Priority.ROUTINE, **fields: Any) -> QueueEntry:
    """What came at 50 s, when the clock stands still, and is due at ``at_s``."""
    deadline = Deadline(at_s, lambda: NOW_S)
    return QueueEntry(**{"deadline": deadline, "priority": priority, "arrived_s": NOW_S, **fields})


def queued(
    loop: asyncio.AbstractEventLoop,
    at_s: float,
    priority: Priority = Priority.ROUTINE,
    **fields: Any,
) -> QueuedRoi:
    """The same with a future of ``loop`` to wait for."""
    given = {
        "deadline": Deadline(at_s, lambda: NOW_S),
        "priority": priority,
        "arrived_s": NOW_S,
        "voxels": np.zeros((1, 1, 1), np.uint8),
        "result": loop.create_future(),
    }
    return QueuedRoi(**{**given, **fields})


def timing(
    fixed_s: float = 2.0, each_s: float = 1.0, entrance: float = 1.0, most: int = 4
) -> BatchTiming:
    """A batch takes a fixed time and one for each; its entrance is free after a part of that."""
    answer, until_free = CostModel(), CostModel()
    for n in (1, 8):
        answer.observe(n, fixed_s + n * each_s)
        until_free.observe(n, entrance * (fixed_s + n * each_s))
    return BatchTiming(answer, until_free, most)
