"""Channels to a cloud: their options, how one is opened, and the health check on it.

`edge.escalation` sends studies over them.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import grpc
import structlog

from edge.errors import BadSettings
from edge.link.health import HealthCheck, HealthMonitor
from edge.link.link import CONNECT_S, Link
from edge.settings.core import EdgeSettings
from process.tls import diagnose, grpc_target, replicas_of
from protos import overread_pb2 as pb
from protos.deadline import Clock
from protos.errors import LinkFault, Unreachable, from_status
from protos.overread_pb2_grpc import OverreadStub

log = structlog.get_logger()

GRACE_SHARE = 0.05
"""Part of a study's deadline for which studies wait, after a start, for the first health check."""

# All replicas that an address leads to, in turn; not those whose health is NOT_SERVING.
BALANCED = (
    (
        "grpc.service_config",
        '{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}',
    ),
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

    Behind a name, or several addresses with commas between them, may be several replicas.

    Channels to one address share a connection, except one that is ``alone``. Certificates that
    expire soon are logged.

    Raises:
        BadSettings: a certificate or key cannot be used.
    """
    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", int(alone)))
    if settings.cloud.tls.ca is None:
        return grpc.insecure_channel(grpc_target(address), options=options)
    if problems := check_credentials(settings):
        raise BadSettings("; ".join(problems))
    for warning in settings.cloud.tls.warnings():
        log.warning("a certificate expires soon", reason=warning)
    credentials = grpc.ssl_channel_credentials(*settings.cloud.tls.contents())
    return grpc.secure_channel(grpc_target(address), credentials, options=options)


DIAGNOSE_EVERY_S = 30.0
"""Shortest time between two diagnoses: each opens a connection."""
DIAGNOSE_S = 1.5
"""Time for each step of a diagnosis: two round trips of a satellite link. A stop waits for it."""


def check_credentials(settings: EdgeSettings) -> list[str]:
    """Return what is wrong with the TLS files, a sentence each; nothing if they can be used."""
    return settings.cloud.tls.problems()


class Diagnosis:
    """Why TLS fails on the way to one cloud, found out again while it fails."""

    def __init__(
        self, address: str, settings: EdgeSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = replicas_of(address)[0]  # all have the same certificates
        self._files, self._clock = settings.cloud.tls, clock
        self._reason, self._next_s = "", float("-inf")

    def reason(self) -> str:
        """Return the reason; empty if TLS does not fail, or the cloud cannot be reached at all."""
        if self._clock() >= self._next_s:
            self._reason = diagnose(self._address, self._files, DIAGNOSE_S)
            self._next_s = self._clock() + DIAGNOSE_EVERY_S
        return self._reason
