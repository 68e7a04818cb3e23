"""The HTTP port of a process: its metrics, whether it is alive, and whether it can work.

/metrics    for Prometheus
/healthz    200 while the main loop makes progress, else 503: restart the process
/readyz     200 while new work can be done, else 503, with what is missing
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from importlib.metadata import version
from socketserver import TCPServer, ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)

Checks = Mapping[str, Callable[[], str]]
"""Checks by name; each returns what is wrong, or an empty text. Another thread calls them."""


class Pulse:
    """Whether a loop makes progress: the loop calls `beat`, and has ``limit_s`` for the next."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock, self._last_s = limit_s, clock, clock()

    def beat(self) -> None:
        """Note progress."""
        self._last_s = self._clock()

    def problem(self, limit_s: float | None = None) -> str:
        """Return how long there was no progress if that is too long, else an empty text.

        A ``limit_s`` takes the place of the pulse's own.
        """
        silent_s = self._clock() - self._last_s
        most_s = self._limit_s if limit_s is None else limit_s
        return f"no progress for {silent_s:.0f} s" if silent_s > most_s else ""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # not WSGIServer's: it looks for the name of the machine, which may take long
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # a caller that sends nothing does not hold its thread for ever

    def log_message(self, *_: Any) -> None:
        """Log nothing: requests come every few seconds."""


def process_registry(prefix: str) -> CollectorRegistry:
    """Return a registry with what every process says of itself.

    These are ``process_*`` (memory, CPU time, open files, start time), ``python_info``, and
    ``<prefix>_build_info`` with the version of this package.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    build = Gauge(f"{prefix}_build_info", "1 for this version", ["version"], registry=registry)
    build.labels(version("overread")).set(1)
    return registry


@contextmanager
def serve(
    registry: CollectorRegistry, host: str, port: int, alive: Checks, ready: Checks
) -> Iterator[str]:
    """Serve while entered; yield the bound address.

    Raises:
        OSError: the address is not known, or cannot be bound.
    """
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    kind = type("Server", (_Server,), {"address_family": family})
    server = kind((address[0], port), _Handler)
    server.set_app(_app(registry, {"/healthz": alive, "/readyz": ready}))
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield address_text(host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unbindable(host: str, port: int) -> str:
    """Return why no server could listen here now; empty if one could."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.create_server(address, family=family):
            return ""
    except OSError as error:
        return reason_of(error)


def reason_of(error: OSError) -> str:
    """Return the system's reason, without what Python adds to it."""
    # those of host names have numbers of their own, below 0
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno) if known and error.errno else error.strerror or str(error)


def address_text(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _app(registry: CollectorRegistry, pages: Mapping[str, Checks]) -> Callable[..., Any]:
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        if path in ("/", "/metrics"):
            return metrics(environ, start_response)
        if path in pages:
            results = {name: _result(check) for name, check in pages[path].items()}
            ok = all(result == "ok" for result in results.values())
            status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
            body: dict[str, Any] = {"status": "ok" if ok else "failed", "checks": results}
        else:
            status, body = HTTPStatus.NOT_FOUND, {"pages": ["/metrics", *pages]}
        content = json.dumps(body).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        start_response(f"{status.value} {status.phrase}", [*headers, ("Cache-Control", "no-store")])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else content]

    return answer


def _result(check: Callable[[], str]) -> str:
    try:
        return check() or "ok"
    except Exception as error:  # whatever fails, the answer says so
        return f"{type(error).__name__}: {error}"
