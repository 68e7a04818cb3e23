"""The fault proxy beside a program that is not asyncio: in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from evaluation.proxy import Carried, Proxy
from evaluation.trace import Trace


class Proxied:
    """A running proxy, as another thread sees it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    @property
    def address(self) -> str:
        """``HOST:PORT`` for the edge to connect to."""
        return self._proxy.address

    @property
    def carried(self) -> Carried:
        """What has crossed the link so far."""
        return self._proxy.carried

    def rewind(self) -> None:
        """Begins the trace anew."""
        self._proxy.rewind()


@contextmanager
def proxied(upstream: str, trace: Trace, *, seed: int = 0) -> Iterator[Proxied]:
    """A proxy to ``HOST:PORT`` for the time of the context.

    Raises:
        OSError: it cannot listen.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    proxy = Proxy(upstream, trace, seed=seed)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
        try:
            yield Proxied(proxy)
        finally:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
