"""Channels to a cloud: their options, how one is opened, and the health checks on it.

`edge.escalation` sends studies over them. The checks tell the link when the cloud goes down and
comes up again, so that no study waits for one that is down, and keep the connection open.
"""

import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self, cast

import grpc
import structlog

from edge.errors import BadSettings
from edge.link.link import CONNECT_S, Link
from edge.link.replicas import Replica, Replicas
from edge.settings.core import EdgeSettings
from process.tls import diagnose, replicas_of
from protos import overread_pb2 as pb
from protos.deadline import Clock
from protos.errors import LinkFault, Unreachable, from_status
from protos.overread_pb2_grpc import OverreadStub

log = structlog.get_logger()

GRACE_SHARE = 0.05
"""Part of a study's deadline for which studies wait, after a start, for the first health check."""

DOWN_PAUSE_S = 1.0
"""The longest pause between two checks while the cloud is down."""

# The replicas that an address leads to, in turn: few, see `Replicas`. gRPC's own health checks stay
# off: where a connection ends as it begins they end the process (1.76 to 1.85). One that stops says
# GOAWAY.
BALANCED = (
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
)

# A service that comes back is found again within a second, not within gRPC's two minutes.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # despite its name: how long connecting may take
    ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_S)),
    # a connection that loses all packets is detected and replaced
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),  # never: a study must not wait for a connection
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.enable_retries", 0),  # `Escalator` retries, within the study's budget
    *BALANCED,
)


def open_link(
    address: str, link: Link, settings: EdgeSettings, held: ExitStack, clock: Clock = time.monotonic
) -> grpc.Channel:
    """Open the channel to one cloud, and monitor its link from now on."""
    channel = held.enter_context(open_channel(address, settings))
    if settings.cloud.health_check_s:
        check = partial(start_health_check, channel, why=Diagnosis(address, settings, clock).reason)
        pause_s, grace_s = settings.cloud.health_check_s, GRACE_SHARE * settings.deadline_s
        monitor = HealthMonitor(
            check,
            link,
            pause_s,
            startup_grace_s=min(CONNECT_S, grace_s),
            clock=clock,
            cloud=address,
        )
        held.enter_context(monitor)
    return channel


@dataclass(frozen=True)
class HealthCheck:
    """A started check: ``fault`` waits for its result (None if the cloud answered)."""

    fault: Callable[[], LinkFault | None]
    cancel: Callable[[], object]


def start_health_check(
    channel: grpc.Channel, timeout_s: float, *, why: Callable[[], str] = lambda: ""
) -> HealthCheck:
    """Call the small method Describe; the cloud has ``timeout_s`` for its answer.

    ``why`` is asked for a better reason if the cloud is unreachable; empty if there is none.
    """
    call = OverreadStub(channel).Describe.future(pb.DescribeRequest(), timeout=timeout_s)

    def fault() -> LinkFault | None:
        if (code := call.code()) is grpc.StatusCode.OK:
            return None
        error = from_status(code, call.details(), call.trailing_metadata())
        if isinstance(error, Unreachable) and (reason := why()):
            return Unreachable(reason)
        return error if isinstance(error, LinkFault) else None

    return HealthCheck(fault, call.cancel)


def open_channel(address: str, settings: EdgeSettings, *, alone: bool = False) -> grpc.Channel:
    """Open a channel to ``HOST:PORT``: plain, TLS or mutual TLS. It connects on first use.

    Several addresses with commas between them are replicas, and so is what a name leads to.

    Channels to one address share a connection, except one that is ``alone``: it has one connection
    for itself. Certificates that expire soon are logged; those that are renewed are used for the
    next call.

    Raises:
        BadSettings: a certificate or key cannot be used.
    """
    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", int(alone)))
    files = settings.cloud.tls
    if files.ca is not None:
        if problems := files.problems():
            raise BadSettings("; ".join(problems))
        for warning in files.warnings():
            log.warning("a certificate expires soon", reason=warning)

    def opened(one: Replica) -> grpc.Channel:
        more: tuple[tuple[str, int | str], ...] = options
        if one.address != one.named:  # no proxy for the name, so none for what it leads to
            more = (*more, ("grpc.default_authority", one.named), ("grpc.enable_http_proxy", 0))
        if files.ca is None:
            return grpc.insecure_channel(one.address, options=more)
        credentials = grpc.ssl_channel_credentials(*files.current().contents)
        return grpc.secure_channel(one.address, credentials, options=more)

    seed = f"{socket.gethostname()} {uuid.getnode()}"  # the names of machines may be alike
    most = 1 if alone else settings.cloud.replicas
    common = replicas_of(address), opened, files.current, CONNECT_S
    return cast(grpc.Channel, Replicas(*common, most=most, seed=seed))


DIAGNOSE_EVERY_S = 30.0
"""Shortest time between two diagnoses: each opens a connection."""
DIAGNOSE_S = 1.5
"""Time for each step of a diagnosis: two round trips of a satellite link. A stop waits for it."""


class Diagnosis:
    """Why TLS fails on the way to one cloud, found out again while it fails."""

    def __init__(
        self, address: str, settings: EdgeSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._addresses = replicas_of(address)
        self._files, self._clock = settings.cloud.tls, clock
        self._reason, self._next_s = "", float("-inf")

    def reason(self) -> str:
        """Return the reason; empty if TLS does not fail, or the cloud cannot be reached at all."""
        if self._clock() >= self._next_s:
            reasons = (diagnose(one, self._files, DIAGNOSE_S) for one in self._addresses)
            self._reason = next(filter(None, reasons), "")
            self._next_s = self._clock() + DIAGNOSE_EVERY_S
        return self._reason


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
        while self._goes_on():
            pause_s = self._pause_s if self._up else min(self._pause_s, DOWN_PAUSE_S)
            self._link.suspect.wait(pause_s)
            self._link.suspect.clear()

    def _goes_on(self) -> bool:
        """Check once; a link that cannot be checked must not stay down."""
        try:
            return self._check_once()
        except Exception as error:  # whatever it is, a later check may succeed
            if self._logged != (said := repr(error)):
                self._logged = said
                log.exception("health check failed; each study will probe the cloud itself")
            self._up = False
            self._link.up(None)
            return not self._over.is_set()

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
