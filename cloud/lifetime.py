"""How long the process serves: until one signal, which drains it, or two, which stop it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine

import structlog

from cloud.server import CloudServer

_log = structlog.get_logger(__name__)


async def serve(server: CloudServer, *, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once.

    ``ready`` is called with the bound address when the service can be used.

    Raises:
        ReadingEnded: the service cannot read any more, and has stopped; open studies are told.
    """
    signals = _Signals(asyncio.get_running_loop())
    async with server:
        ready(server.address)
        await _first(signals.first.wait(), server.watched())
        _log.info("draining", again="stops at once")
        await _first(server.drain(), signals.second.wait(), server.watched())
    _log.info("stopped")


async def _first(*ends: Coroutine[None, None, object]) -> None:
    """Returns with the first to end, or raises what it raises; the others are given up."""
    tasks = [asyncio.create_task(end) for end in ends]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


class _Signals:
    """The first and the second SIGTERM or SIGINT, as events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
