"""Check regularly whether the cloud is reachable, so that no study waits for one that is down.

The checks keep the connection open, and report to the link when the cloud goes down and comes up
again. This module knows nothing of gRPC: the health check is injected.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import structlog

from edge.link.link import CONNECT_S, Link
from protos.errors import LinkFault

log = structlog.get_logger()

DOWN_PAUSE_S = 1.0
"""The longest pause between two checks while the cloud is down."""


@dataclass(frozen=True)
class HealthCheck:
    """A started check: ``fault`` waits for its result (None if the cloud answered)."""

    fault: Callable[[], LinkFault | None]
    cancel: Callable[[], object]


class HealthMonitor:
    """Run health checks from a thread of its own while it is entered.

    Args:
        check: starts a health check with this time limit in seconds.
        link: gets the results; a failed escalation makes the monitor check at once.
        startup_grace_s: how long after the start studies wait for the first result.
        cloud: the cloud's address, for the log.
    """

    def __init__(
        self,
        check: Callable[[float], HealthCheck],
        link: Link,
        pause_s: float,
        *,
        startup_grace_s: float = CONNECT_S,
        clock: Callable[[], float] = time.monotonic,
        cloud: str = "",
    ) -> None:
        self._check, self._link, self._pause_s, self._clock = check, link, pause_s, clock
        self._cloud, self._logged = cloud, ""
        self._startup_grace_s = startup_grace_s
        self._lock, self._over, self._up = threading.Lock(), threading.Event(), False
        self._running: HealthCheck | None = None
        self._thread = threading.Thread(target=self._run, name="health monitor", daemon=True)

    def __enter__(self) -> Self:
        self._link.monitor_started(self._startup_grace_s)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over.set()
            if self._running is not None:
                self._running.cancel()
        self._link.suspect.set()
        self._thread.join()
        self._link.monitor_stopped()

    def _run(self) -> None:
        try:
            while self._check_once():
                pause_s = self._pause_s if self._up else min(self._pause_s, DOWN_PAUSE_S)
                self._link.suspect.wait(pause_s)
                self._link.suspect.clear()
        except Exception:  # whatever it is, a link without a monitor must not stay down
            log.exception("health monitor stopped; each study will probe the cloud itself")
            self._link.up(None)

    def _check_once(self) -> bool:
        """Check once, unless an escalation is receiving answers; return False when it is over."""
        if self._link.receiving:
            return not self._over.is_set()
        began_s = self._clock()
        with self._lock:
            if self._over.is_set():
                return False
            self._running = check = self._check(self._timeout_s())
        fault = check.fault()
        took_s = self._clock() - began_s
        if self._over.is_set():
            return False
        if fault is None:
            # the first check after a failure includes connecting, and is no round trip
            self._link.up(took_s if self._up else None)
        else:
            self._link.down(fault.text)
        self._up = fault is None
        self._log_change("" if fault is None else fault.reason)
        return True

    def _log_change(self, reason: str) -> None:
        """Log when the cloud goes down, for another reason too, and when it is up."""
        said = reason or "up"
        if said == self._logged:
            return
        self._logged = said
        if reason:
            log.warning("cloud is down", cloud=self._cloud, reason=reason)
        else:
            log.info("cloud is up", cloud=self._cloud)

    def _timeout_s(self) -> float:
        """Return a short timeout while the cloud is up; otherwise allow for connecting."""
        if self._up:
            return min(CONNECT_S, self._link.response_timeout_s())
        return max(CONNECT_S, self._startup_grace_s)
