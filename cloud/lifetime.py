"""How long the process serves: until one signal, which drains it, or two, which stop it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog

from cloud.server import CloudServer

_log = structlog.get_logger(__name__)


async def serve(server: CloudServer, *, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once.

    ``ready`` is called with the bound address when the service can be used.
    """
    signals = _Signals(asyncio.get_running_loop())
    async with server:
        ready(server.address)
        await signals.first.wait()
        _log.info("draining", again="stops at once")
        drained = asyncio.create_task(server.drain())
        hurried = asyncio.create_task(signals.second.wait())
        await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, hurried):
            task.cancel()
    _log.info("stopped")


class _Signals:
    """The first and the second SIGTERM or SIGINT, as events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
