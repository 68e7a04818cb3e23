"""The HTTP server of a process: serves any ASGI application, with TLS, and within bounds.

It knows nothing of what is served. The socket is bound before the server starts, so that a taken
port is an error of the start. It runs in a thread of its own, or in the event loop of its caller.
asyncio switches Nagle's algorithm off for each connection.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from process.tls import TlsFiles

MAX_HEADER_BYTES = 16_384
"""Largest head of a request."""

ACCEPTED_S = 0.05
"""Seconds for which more connections than allowed may be open."""

_CERTIFICATE = "certificate"
"""Key in a request's state: the caller's certificate as `ssl` has it, None without one."""


class CannotListen(OSError):
    """An address cannot be listened on; the message names its setting, and the reason."""


class SlowBody(Exception):
    """The body of a request does not arrive."""


class LargeBody(Exception):
    """The body of a request is too large."""


@dataclass(frozen=True)
class Listener:
    """Where to listen, and for whom.

    Attributes:
        address: ``HOST:PORT``; port 0 takes a free one.
        setting: name of the setting that has the address, for messages.
        tls: certificate and key enable TLS; ``ca`` must have signed callers' certificates.
        callers: with a ``ca``, whether a caller must have a certificate, or may.
        connections: largest number of open connections; see `_Listening` for those that are closed.
        quiet_s: a connection that begins no request within this time is closed, at the latest
            after twice it.
        stop_s: time that open requests have at the end.
    """

    address: str
    setting: str = "address"
    tls: TlsFiles = field(default_factory=TlsFiles)
    callers: ssl.VerifyMode = ssl.CERT_REQUIRED
    connections: int = 64
    quiet_s: float = 30.0
    stop_s: float = 1.0

    @property
    def encrypted(self) -> bool:
        """Whether TLS is on."""
        return self.tls.cert is not None


@dataclass(frozen=True)
class Bound:
    """A server that runs: its bound ``HOST:PORT``, its URL, and whether it still runs."""

    address: str
    url: str
    runs: Callable[[], bool]


@contextlib.contextmanager
def serving(app: ASGIApp, at: Listener) -> Iterator[Bound]:
    """Serve from a thread while entered.

    Raises:
        CannotListen: the address cannot be bound, or a file of TLS cannot be used.
    """
    with _bound(at) as listening:
        server = _server(app, at)
        run = _run(server, listening)
        thread = Thread(target=asyncio.run, args=(run,), name=at.setting, daemon=True)
        thread.start()
        try:
            yield _described(at, listening, thread.is_alive)
        finally:
            server.should_exit = True
            thread.join(5 * at.stop_s)  # a function of the application may hang


@contextlib.asynccontextmanager
async def serving_here(app: ASGIApp, at: Listener) -> AsyncIterator[Bound]:
    """Serve from the event loop of the caller while entered; raise `CannotListen` as `serving`."""
    with _bound(at) as listening:
        server = _server(app, at)
        running = asyncio.create_task(_run(server, listening))
        try:
            yield _described(at, listening, lambda: not running.done())
        finally:
            server.should_exit = True
            await running


async def body_parts(
    request: Request, *, idle_s: float, within_s: float = math.inf, most: float = math.inf
) -> AsyncIterator[bytes]:
    """Yield the parts of a request's body while they arrive.

    Raises:
        SlowBody: nothing came for ``idle_s``, or not all of it within ``within_s``.
        LargeBody: it has more than ``most`` bytes.
        ClientDisconnect: the caller went away.
    """
    now_s = asyncio.get_running_loop().time
    stream, size, end_s = request.stream(), 0, now_s() + within_s
    while now_s() < end_s:
        try:
            async with asyncio.timeout_at(min(now_s() + idle_s, end_s)):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            break
        size += len(part)
        if size > most:
            raise LargeBody(f"a body of more than {most:g} bytes")
        yield part
    whole = f", or not all of it within {within_s:g} s" if math.isfinite(within_s) else ""
    raise SlowBody(f"no byte of the body arrived for {idle_s:g} s{whole}")


def certificate_names(request: Request) -> list[str] | None:
    """Return the names in the caller's certificate, None without one.

    The common names come first, then the other names, as gRPC orders them.
    """
    certificate = getattr(request.state, _CERTIFICATE, None)
    if certificate is None:
        return None
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    common = [value for key, value in subject if key == "commonName"]
    return [*common, *(value for _, value in certificate.get("subjectAltName", ()))]


def unbindable(host: str, port: int) -> str:
    """Return why no server could listen here now; empty if one could."""
    try:
        _listen(host, port, 1).close()
    except OSError as error:
        return reason_of(error)
    return ""


def reason_of(error: OSError) -> str:
    """Return the system's reason, without what Python adds to it."""
    # those of host names have numbers of their own, below 0
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno) if known and error.errno else error.strerror or str(error)


def host_and_port(address: str) -> tuple[str, int]:
    """Return both parts of ``HOST:PORT``; an IPv6 address without its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def address_text(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Listening(socket.socket):
    """A listening socket that ends connections while more than ``most`` are open, TLS or not yet.

    They are those of the address that has the most: first the oldest ones without an open request.
    """

    most: int
    open: dict[socket.socket, tuple[str, int]]
    protocols: Collection[Any] = ()
    is_due = False

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection."""
        one, peer = super().accept()
        self.open[one] = peer[:2]
        if len(self.open) > self.most and not self.is_due:
            self.is_due = True  # once a request that has arrived with them is read
            asyncio.get_running_loop().call_later(ACCEPTED_S, self._end_excess)
        return one, peer

    def _end_excess(self) -> None:
        self.is_due = False
        self.open = {one: at for one, at in self.open.items() if one.fileno() >= 0}
        busy = {protocol.client for protocol in self.protocols if protocol.is_busy}
        hosts = defaultdict[str, list[socket.socket]](list)
        for one, at in sorted(self.open.items(), key=lambda item: item[1] in busy):
            hosts[at[0]].append(one)
        for _ in range(len(self.open) - self.most):
            with contextlib.suppress(OSError):  # its caller has left
                max(hosts.values(), key=len).pop(0).shutdown(socket.SHUT_RDWR)


class _Protocol(H11Protocol):
    """A connection that notes its caller's certificate, and ends if it is one too many or quiet."""

    at: Listener

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it too
        super().connection_made(transport)
        self._last: Any = None
        self._timer = self.loop.call_later(self.at.quiet_s, self._close_if_quiet)
        self.app_state = {_CERTIFICATE: transport.get_extra_info("peercert") or None}

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it at once: the timer would hold it, and its buffers, until it fires."""
        super().connection_lost(exc)
        self._timer.cancel()

    @property
    def is_busy(self) -> bool:
        """Whether a request is open."""
        return self.cycle is not None and not self.cycle.response_complete

    def _close_if_quiet(self) -> None:
        """Close it if no request has begun since the last time, and none is open."""
        if not self.is_busy and self.cycle is self._last:
            self.transport.abort()
            return
        self._last = self.cycle
        self._timer = self.loop.call_later(self.at.quiet_s, self._close_if_quiet)


def _server(app: ASGIApp, at: Listener) -> uvicorn.Server:
    context = at.tls.server_context(at.callers)
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Protocol,), {"at": at}),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,  # the application logs its own errors
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=math.ceil(2 * at.quiet_s),
        timeout_graceful_shutdown=math.ceil(at.stop_s),
        ssl_context_factory=None if context is None else lambda _config, _default: context,
    )
    config.load()
    return uvicorn.Server(config)


async def _run(server: uvicorn.Server, listening: _Listening) -> None:
    """Run the server until it should exit: as its ``serve``, but leave the signals alone."""
    listening.protocols = server.server_state.connections
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listening])
    await server.main_loop()
    await server.shutdown(sockets=[listening])


@contextlib.contextmanager
def _bound(at: Listener) -> Iterator[_Listening]:
    if problems := at.tls.problems():
        raise CannotListen("; ".join(problems))
    try:
        listening = _listen(*host_and_port(at.address), at.connections)
    except OSError as error:
        raise CannotListen(f"{at.setting} = {at.address}: {reason_of(error)}") from error
    with listening:
        yield listening


def _listen(host: str, port: int, most: int) -> _Listening:
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.create_server(address, family=family, backlog=most)
    listening = _Listening(fileno=bound.detach())
    listening.most, listening.open = most, {}
    # its connections inherit it: else the second part of an answer waits 40 ms (Nagle)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _described(at: Listener, listening: socket.socket, runs: Callable[[], bool]) -> Bound:
    host = at.address.rpartition(":")[0]
    address = f"{host}:{listening.getsockname()[1]}"
    return Bound(address, f"{'https' if at.encrypted else 'http'}://{address}", runs)
