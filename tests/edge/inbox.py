"""An inbox with its clock, and what is complete in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edge.daemon.inbox import Inbox
from tests.edge.cases import HandClock

QUIET_S = 5.0


def watch(folder: Path, wall: Callable[[], float] = time.time) -> tuple[Inbox, HandClock]:
    """An inbox and its clock; ``wall`` is that by which files are dated."""
    clock = HandClock()
    folder.mkdir(exist_ok=True)
    return Inbox(folder, QUIET_S, clock, wall), clock


def names(inbox: Inbox) -> list[str]:
    """What is complete now."""
    return [arrival.name for arrival in inbox.complete()]
