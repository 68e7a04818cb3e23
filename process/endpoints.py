"""The HTTP port of a process: its metrics, whether it is alive, and whether it can work.

/metrics    for Prometheus
/healthz    200 while the main loop makes progress, else 503: restart the process
/readyz     200 while new work can be done, else 503, with what is missing
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from process.http import Listener, serving

Checks = Mapping[str, Callable[[], str]]
"""Checks by name; each returns what is wrong, or an empty text. Another thread calls them."""


class Pulse:
    """Whether a loop makes progress: the loop calls `beat`, and has ``limit_s`` for the next."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock, self._last_s = limit_s, clock, clock()

    def beat(self) -> None:
        """Note progress, for systemd's watchdog too."""
        self._last_s = self._clock()
        notify_systemd("WATCHDOG=1")

    def problem(self, limit_s: float | None = None) -> str:
        """Return how long there was no progress if that is too long, else an empty text.

        A ``limit_s`` takes the place of the pulse's own.
        """
        silent_s = self._clock() - self._last_s
        most_s = self._limit_s if limit_s is None else limit_s
        return f"no progress for {silent_s:.0f} s" if silent_s > most_s else ""


def notify_systemd(state: str) -> None:
    """Tell systemd a state of this process, if it waits for it: see sd_notify(3)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, suppress(OSError):
            told.setblocking(False)
            told.sendto(state.encode(), address.replace("@", "\0", 1))


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
def serving_metrics(
    registry: CollectorRegistry, address: str, alive: Checks, ready: Checks
) -> Iterator[str | None]:
    """Serve at ``HOST:PORT`` while entered, where that is not empty; yield the bound address.

    Raises:
        CannotListen: the address is not known, or cannot be bound.
    """
    if not address:
        yield None
        return
    with serving(_app(registry, alive, ready), Listener(address, "metrics_address")) as bound:
        yield bound.address


def _app(registry: CollectorRegistry, alive: Checks, ready: Checks) -> Starlette:
    """Return the application; the pages are functions, which Starlette calls in threads."""

    def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=kind)

    async def unknown(*_: object) -> Response:
        return JSONResponse({"pages": ["/metrics", "/healthz", "/readyz"]}, HTTPStatus.NOT_FOUND)

    routes = [
        Route("/", metrics),
        Route("/metrics", metrics),
        Route("/healthz", lambda _: _answer(alive)),
        Route("/readyz", lambda _: _answer(ready)),
    ]
    packed, missing = [Middleware(GZipMiddleware)], {HTTPStatus.NOT_FOUND: unknown}
    return Starlette(routes=routes, middleware=packed, exception_handlers=missing)


def _answer(checks: Checks) -> Response:
    results = {name: _result(check) for name, check in checks.items()}
    ok = all(result == "ok" for result in results.values())
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    body = {"status": "ok" if ok else "failed", "checks": results}
    return JSONResponse(body, status, {"Cache-Control": "no-store"})


def _result(check: Callable[[], str]) -> str:
    try:
        return check() or "ok"
    except Exception as error:  # whatever fails, the answer says so
        return f"{type(error).__name__}: {error}"
