"""The HTTP server of the Open Inference Protocol, in the event loop of the service."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cloud.errors import AddressUnusable
from cloud.inference_protocol.rest import CERTIFICATE_NAMES
from cloud.settings import CloudSettings
from process.endpoints import address_text, reason_of

QUIET_S = 30.0
"""A connection that begins no request within this time is closed, at the latest after twice it."""

STOP_S = 1.0
"""Time that open requests have to get their error at the end."""


@contextlib.asynccontextmanager
async def serving_http(app: ASGIApp, settings: CloudSettings) -> AsyncIterator[str]:
    """Serve while entered; yield the bound ``HOST:PORT``, empty if it is off.

    Raises:
        AddressUnusable: the port cannot be bound.
    """
    if settings.http_port is None:
        yield ""
        return
    listener = _listen(settings.http_address, settings.http_port)
    context = settings.tls.server_context()
    most = settings.max_streams + 64  # connections, as the gRPC server admits
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Protocol,), {"most": most}),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,  # the application logs its own errors
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=16_384,
        timeout_keep_alive=round(2 * QUIET_S),
        timeout_graceful_shutdown=round(STOP_S),
        ssl_context_factory=None if context is None else lambda _config, _default: context,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        if task.done():
            task.result()
        yield address_text(settings.http_address, listener.getsockname()[1])
    finally:
        server.should_exit = True
        await asyncio.wait([task], timeout=5 * STOP_S)
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=64)
    except OSError as error:
        where = address_text(host, port)
        raise AddressUnusable(
            f"HTTP at {where}: {reason_of(error)} (http_address, http_port)"
        ) from error


class _Server(uvicorn.Server):
    """A server that leaves the signals of the process alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """A connection that tells the application whose certificate it has, and ends if it is quiet.

    ``most`` may be open; more are closed.
    """

    most = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it too
        """Note who calls."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        certificate = transport.get_extra_info("peercert")
        names = _names(certificate) if certificate else None
        self.app_state = {**self.app_state, CERTIFICATE_NAMES: names}
        self._last: Any = None
        self._timer = self.loop.call_later(QUIET_S, self._close_if_quiet)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it at once: the timer would hold it, and its buffers, until it fires."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _close_if_quiet(self) -> None:
        """Close it if no request has begun since the last time, and none is open."""
        if self.transport.is_closing():
            return
        is_open = self.cycle is not None and not self.cycle.response_complete
        if not is_open and self.cycle is self._last:
            self.transport.abort()
            return
        self._last = self.cycle
        self._timer = self.loop.call_later(QUIET_S, self._close_if_quiet)


def _names(certificate: Any) -> list[str]:
    """Return the common names of a certificate, then its other names, as gRPC orders them."""
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    common = [value for key, value in subject if key == "commonName"]
    return [*common, *(value for _, value in certificate.get("subjectAltName", ()))]
