"""The server around the service: address, TLS, health, reflection, signals and drain."""

import asyncio
import gc
import math
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.cache import VerdictCache
from cloud.calls import BoundedCalls
from cloud.connections import Connections, allowed
from cloud.inference_protocol import rpc
from cloud.inference_protocol.inference import Inference
from cloud.inference_protocol.rest import RestService
from cloud.instances import Reader, stages_of
from cloud.limits import REQUESTS, STUDIES, Bounds, OpenStreams
from cloud.models import ModelTransfers
from cloud.scheduling.arrivals import Rules
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.scheduler import Scheduler
from cloud.service import OverreadService
from cloud.settings import AddressUnusable, BadSettings, BatcherFailed, CloudSettings
from cloud.stream import Backend
from cloud.telemetry import CloudTelemetry
from process.http import Listener, serving_here, unbindable
from process.memory import share_free_memory
from process.tls import Loaded
from protos import inference_pb2_grpc, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.deadline import Clock
from protos.errors import ModelFailed
from protos.messages import Description

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Overread"].full_name

MESSAGE_MARGIN = 4096
"""Bytes of an ROI's message besides its voxels, at most."""

JSON_BYTES = 6
"""Bytes of a voxel as a number in JSON, at most."""

STREAMS_OF_CONNECTION = 32
"""Calls that one connection may have open."""

CALLER_CONNECTIONS, CALLERS = 64, 64
"""How many connections one caller may have open (more where ``max_streams`` needs more), and how
many callers may have all of theirs open at the same time."""

HANDSHAKE_S = 5.0
"""Seconds in which a connection must be encrypted, and speak HTTP/2."""

MAX_PENDING_CALLS = 3072
"""Calls that may wait for the service; gRPC cancels all further ones. Its default is 1,000."""

WINDOW = 128 * 1024
"""Bytes of a study that are received ahead: enough for 50 Mbit/s at 20 ms there and back."""

NOT_OURS = "it is taken, or not an address of this machine"
"""Why an address cannot be bound, where the system does not say it."""

_log = structlog.get_logger(__name__)


async def serve(
    server: "CloudServer",
    *,
    ready: Callable[[str], None],
    draining: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once.

    ``ready`` is called with the bound address when the service can be used, ``draining`` when it
    can no longer be used: at the first signal, and when the model cannot read any more.

    Raises:
        BatcherFailed: batches are no longer formed; the service has stopped, and open studies got
            `Draining`.
    """
    first, second = asyncio.Event(), asyncio.Event()
    async with server:
        # not before: while a model is loaded, a signal ends the process at once
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(
                number, lambda: (second if first.is_set() else first).set()
            )
        _bound_memory()
        ready(server.address)
        try:
            await _first_of(first.wait(), server.wait_for_failure())
        finally:
            draining()
        _log.info("draining", hint="a second signal stops at once")
        await _first_of(server.drain(), second.wait(), server.wait_for_failure())
    _log.info("stopped")


def _bound_memory() -> None:
    """Leave what was loaded out of the search for cycles, and have threads share what is free.

    Studies that have ended are cycles, see `cloud.service.COLLECT_EVERY`.
    """
    gc.collect()
    gc.freeze()
    share_free_memory()


async def _first_of(*ends: Coroutine[None, None, object]) -> None:
    """Wait for the first to end, cancel the others, and raise its error if it failed."""
    tasks = [asyncio.create_task(end) for end in ends]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


class CloudServer:
    """A service that listens while it is entered as an async context.

    ``reader`` is the model; ``service_version`` is the version of this package in `Describe`.
    ``scheduler`` orders the queue; others than the own are for comparison. While it is entered,
    ``service`` is what answers studies, and ``batcher`` what reads ROIs.
    """

    def __init__(
        self,
        settings: CloudSettings,
        reader: Reader,
        telemetry: CloudTelemetry,
        *,
        service_version: str,
        clock: Clock = time.monotonic,
        bounds: Bounds | None = None,
        scheduler: type[Scheduler] = Scheduler,
    ) -> None:
        self._settings, self._reader, self._telemetry = settings, reader, telemetry
        self._version, self._clock = service_version, clock
        self._bounds, self._scheduler = bounds or Bounds(), scheduler
        self.address = self.inference_address = self.http_address = ""
        self._servers = list[grpc.aio.Server]()
        # in bytes: an ROI of a study; a batch of raw ROIs in one inference request; over HTTP that,
        # or an ROI in JSON
        roi, most = math.prod(reader.roi_shape), settings.max_batch
        self._largest_message = roi + MESSAGE_MARGIN
        self._largest_request = most * roi + MESSAGE_MARGIN
        self._largest_body = max(self._largest_request, JSON_BYTES * roi + MESSAGE_MARGIN)
        most = max(CALLER_CONNECTIONS, settings.max_streams // STREAMS_OF_CONNECTION)
        self._most_connections = allowed(most * CALLERS)
        self._connections = Connections(self._most_connections, most)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # grpc-stubs omits it
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> "CloudServer":
        """Warm up the model, then listen; `address` is then the bound ``HOST:PORT``.

        `inference_address` and `http_address` are those of the Open Inference Protocol, empty where
        it is off.

        Raises:
            AddressUnusable, CannotListen: an address cannot be listened on.
            BadSettings: a TLS file cannot be used.
            ModelFailed: the model cannot read.
            ModelError: the model that is offered to the edges cannot be.
        """
        settings = self._settings
        async with AsyncExitStack() as parts:
            self.batcher = await self._open_batcher(parts)
            self.streams = OpenStreams(settings.max_streams)  # one for both protocols
            backend, models = self._make_backend(), ModelTransfers(settings, self._bounds)
            study = f"/{SERVICE_NAME}/Read"
            idle_s = self._bounds.idle_timeout_s
            bounds = settings, idle_s, study, backend.refusals
            self._calls = BoundedCalls(*bounds, self._connections)
            parts.callback(asyncio.create_task(self._connections.watch()).cancel)
            self.service, self._inference = OverreadService(backend, models), Inference(backend)
            self._add_gauges()
            own = "address", self._largest_message, SERVICE_NAME
            self.address = await self._serve(parts, *own)
            if settings.inference_address:
                inference = "inference_address", self._largest_request, rpc.SERVICE_NAME
                self.inference_address = await self._serve(parts, *inference)
            if settings.http_address:
                app = RestService(self._inference, self._largest_body).app()
                most = settings.max_streams + CALLER_CONNECTIONS
                at = Listener(settings.http_address, "http_address", settings.tls, connections=most)
                http = serving_here(app, at)
                self.http_address = (await parts.enter_async_context(http)).address
            for name in ("", SERVICE_NAME, rpc.SERVICE_NAME):
                await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.streams.stop()
        self.service.abort_streams()
        await self._parts.aclose()

    async def wait_for_failure(self) -> None:
        """Wait as long as the service can read; when it cannot, health is NOT_SERVING.

        Raises:
            BatcherFailed: the model hangs or fails every time, or a fault of the program ended the
                loop that forms batches; it is logged.
        """
        try:
            await self.batcher.wait_for_failure()
        except Exception as error:  # whatever it is, a service that cannot read must not stay
            await self._health.enter_graceful_shutdown()
            if isinstance(error, ModelFailed):
                _log.error("the model cannot read any more, stopping", reason=error.reason)
                raise BatcherFailed(error.reason) from error
            _log.exception("batcher failed, stopping")
            raise BatcherFailed(f"no more batches are formed: {error!r}") from error

    async def drain(self) -> None:
        """Take no new studies, and wait until open ones are finished or the grace period is over.

        Callers get GOAWAY and use another replica; their open studies go on.
        """
        await self._health.enter_graceful_shutdown()
        self.streams.drain()
        grace_s = self._settings.grace_s
        # begins at once, and ends with this server: what is still open then gets its error before
        stopping = (one.stop(grace_s + 1.0) for one in self._servers)
        self._stopping = asyncio.gather(*stopping)
        try:
            async with asyncio.timeout(grace_s):
                await self.streams.wait_until_idle()
        except TimeoutError:
            counts = self.streams.counts
            left = {kind: counts[kind] for kind in (STUDIES, REQUESTS)}
            _log.warning("grace period is over", **left)

    async def _open_batcher(self, parts: AsyncExitStack) -> Batcher:
        settings = self._settings
        stages = stages_of(self._reader, self._clock)
        self._instances = len(stages)
        for one in stages:
            parts.push_async_callback(one.close)
        batcher = Batcher(
            stages,
            self._telemetry,
            max_batch=settings.max_batch,
            rules=Rules(self._bounds.max_queued_rois * len(stages), settings.site_weights),
            scheduler=self._scheduler,
            clock=self._clock,
        )
        await batcher.warm_up(self._reader.roi_shape)
        return await parts.enter_async_context(batcher)

    def _make_backend(self) -> Backend:
        reader = self._reader
        return Backend(
            batcher=self.batcher,
            cache=VerdictCache(clock=self._clock),
            limits=Description(
                service_version=self._version,
                models={reader.name: reader.version},
                engine=reader.engine,
                max_rois=self._bounds.max_rois,
                max_roi_voxels=math.prod(reader.roi_shape),
                max_message_bytes=self._largest_message,
                roi_shape=reader.roi_shape,
            ),
            telemetry=self._telemetry,
            model=f"{reader.name} {reader.version}",
            settings=self._settings,
            bounds=self._bounds,
            streams=self.streams,
        )

    def _add_gauges(self) -> None:
        reader, telemetry = self._reader, self._telemetry
        telemetry.model.labels(reader.name, reader.version, reader.engine).set(1)
        queue, counts, add = self.batcher.queue, self.streams.counts, telemetry.add_gauge
        add("queued_rois", "ROIs that wait now", lambda: len(queue))
        add("open_streams", "Studies open now", lambda: counts[STUDIES])
        add("open_requests", "Inference requests open now", lambda: counts[REQUESTS])
        reading = queue.busy_until_s
        add("instances", "Instances that read", lambda: len(reading))
        of_connections = "Part of the allowed connections that is open"
        add("connections_ratio", of_connections, lambda: self._connections.used)
        add("dropped_instances", "Instances that broke", lambda: self._instances - len(reading))

    async def _serve(self, parts: AsyncExitStack, setting: str, largest: int, name: str) -> str:
        """Serve the service ``name`` at the address of a setting; return the bound address.

        ``largest`` is the largest message in bytes: gRPC knows one limit for all of a server.
        """
        settings = self._settings
        server = grpc.aio.server(
            interceptors=[self._calls],
            options=(
                ("grpc.max_receive_message_length", largest),
                ("grpc.so_reuseport", 0),  # otherwise a second service could share the port
                ("grpc.max_connection_age_ms", round(1e3 * settings.max_connection_age_s)),
                # what an address may have unfinished is bounded: a window for each stream
                ("grpc.max_concurrent_streams", STREAMS_OF_CONNECTION),
                ("grpc.max_allowed_incoming_connections", self._most_connections),
                ("grpc.server_handshake_timeout_ms", round(1e3 * HANDSHAKE_S)),
                ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
                # and so is what is received ahead of its turn, for each stream
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", WINDOW),
                ("grpc.max_connection_idle_ms", 300_000),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ),
        )
        if name == SERVICE_NAME:
            overread_pb2_grpc.add_OverreadServicer_to_server(self.service, server)
        else:
            servicer = rpc.InferenceService(self._inference)
            inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        address = self._bind(server, setting)
        await server.start()
        parts.push_async_callback(server.stop, 1.0)
        self._servers.append(server)
        port = address.rpartition(":")[2]
        if port.isdigit():  # not that of a socket of this machine
            self._connections.ports.add(int(port))
        return address

    def _bind(self, server: grpc.aio.Server, setting: str) -> str:
        address: str = getattr(self._settings, setting)
        credentials = server_credentials(self._settings)
        host, _, wanted = address.rpartition(":")
        is_socket = address.startswith("unix:")
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            why = "its folder is missing or may not be written, or another service listens there"
            if not is_socket:
                why = unbindable(host.strip("[]"), int(wanted)) or NOT_OURS
            raise AddressUnusable(f"{address} cannot be bound: {why}") from error
        return address if is_socket else f"{host}:{port}"


def server_credentials(settings: CloudSettings) -> grpc.ServerCredentials | None:
    """Return the TLS credentials, None without TLS; raise `BadSettings` for an unusable file.

    Each handshake uses the files as they are then.
    """
    files = settings.tls
    if problems := files.problems():
        raise BadSettings("; ".join(problems))
    if files.cert is None:
        return None
    used: list[Loaded] = []

    def renewed() -> Any:  # None, which grpc-stubs omits, keeps those before
        if (now := files.current()) in used:
            return None
        used[:] = [now]
        ca, key, cert = now.contents
        return grpc.ssl_server_certificate_configuration([(key or b"", cert or b"")], ca)

    return grpc.dynamic_ssl_server_credentials(
        renewed(), renewed, require_client_authentication=files.ca is not None
    )
