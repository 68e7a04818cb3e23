"""The server around the service: address, message limits, health, reflection and drain.

Who may connect: TLS, and mutual TLS where an authority for callers is given.

How long the process serves: until one signal, which drains it, or two, which stop it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.cache import Answers
from cloud.errors import AddressUnusable, BadSettings, ReadingEnded
from cloud.limits import Limits
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.queue import Rules
from cloud.scheduling.quota import Room
from cloud.service import OverreadService
from cloud.settings import CloudSettings
from cloud.stream import Company, Desk
from cloud.telemetry import Telemetry
from cloud.workers import PartedReader, PipelineStage, Reader, ReaderStage
from protos import overread_pb2 as pb
from protos import overread_pb2_grpc
from protos.deadline import Clock
from protos.messages import Description


def server_credentials(settings: CloudSettings) -> grpc.ServerCredentials | None:
    """What the server shows and asks for; None for no TLS.

    Raises:
        BadSettings: a file cannot be read.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    ca = None if settings.tls_client_ca is None else _pem(settings.tls_client_ca)
    pair = (_pem(settings.tls_key), _pem(settings.tls_cert))
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from error


SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Overread"].full_name

_log = structlog.get_logger(__name__)


class CloudServer:
    """A service that listens while it is entered as an async context.

    ``reader`` is the model, run as a pipeline where it has several steps; ``service_version`` is
    what `Describe` says of this package.
    """

    def __init__(
        self,
        settings: CloudSettings,
        reader: Reader,
        telemetry: Telemetry,
        *,
        service_version: str,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings, self._reader, self._telemetry = settings, reader, telemetry
        self._version, self._clock = service_version, clock
        self.address, self._company = "", Company()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # grpc-stubs omits it
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> CloudServer:
        """Warms the model, then listens; `address` is then the bound ``HOST:PORT``.

        Raises:
            AddressUnusable: the address is none or taken.
            BadSettings: a TLS file cannot be read.
            ModelFailed: the model cannot read.
        """
        async with AsyncExitStack() as parts:
            self._batcher = await self._open_batcher(parts)
            self._service = self._make_service(self._batcher)
            self._server = self._make_server()
            self.address = self._bind()
            await self._server.start()
            parts.push_async_callback(self._server.stop, 1.0)
            await self._set_health(health_pb2.HealthCheckResponse.SERVING)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._service.cut()
        await self._parts.aclose()

    async def watched(self) -> None:
        """Lasts as long as the service can read.

        Raises:
            ReadingEnded: a fault of ours ended the loop that forms batches; it is logged.
        """
        try:
            await self._batcher.watched()
        except Exception as error:  # whatever it is: a service that reads nothing must not stay
            _log.exception("batches are read no more")
            raise ReadingEnded(f"batches are read no more: {error!r}") from error

    async def drain(self) -> None:
        """Refuses new studies, and returns when open ones are finished or the grace is over."""
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await self._service.idle()
        except TimeoutError:
            _log.warning("grace is over", open_studies=self._service.open_streams)

    async def _open_batcher(self, parts: AsyncExitStack) -> Batcher:
        stage = self._stage()
        parts.callback(stage.close)
        batcher = Batcher(
            stage,
            self._telemetry,
            max_batch=self._settings.max_batch,
            max_wait_s=self._settings.max_wait_s,
            max_waiting=self._settings.max_waiting,
            rules=self._rules(),
            coming=lambda: self._company.coming,
            clock=self._clock,
        )
        await batcher.warm_up(self._reader.roi_shape)
        return await parts.enter_async_context(batcher)

    def _stage(self) -> ReaderStage | PipelineStage:
        if isinstance(self._reader, PartedReader) and len(self._reader.steps) > 1:
            return PipelineStage(self._reader, clock=self._clock)
        return ReaderStage(self._reader, clock=self._clock)

    def _rules(self) -> Rules:
        return Rules(
            by_deadline=self._settings.scheduling == "deadline",
            routine_wait_s=self._settings.routine_wait_s,
            site_share=self._settings.site_share,
            site_weights=self._settings.site_weights,
        )

    def _make_service(self, batcher: Batcher) -> OverreadService:
        settings, reader = self._settings, self._reader
        limits = Limits(
            settings.max_rois, settings.max_roi_voxels, reader.roi_shape, reader.version
        )
        answers = Answers(settings.cached_answers, settings.cached_for_s, self._clock)
        model = f"{reader.name} {reader.version}"
        service = OverreadService(
            Desk(batcher, answers, limits, self._telemetry, model, self._company),
            self._describe(),
            room=Room(settings.max_streams, settings.site_share),
            max_budget_s=settings.max_budget_s,
            header_wait_s=settings.header_wait_s,
            return_s=settings.return_s,
            clock=self._clock,
        )
        self._telemetry.watch("waiting_rois", "ROIs that wait", lambda: batcher.waiting)
        learnt = "Expected time of a batch, learnt: "
        self._telemetry.watch(
            "batch_fixed_seconds", learnt + "whatever its size", lambda: batcher.line[0]
        )
        self._telemetry.watch("batch_roi_seconds", learnt + "each ROI", lambda: batcher.line[1])
        self._telemetry.watch("open_streams", "Studies open", lambda: service.open_streams)
        return service

    def _describe(self) -> Description:
        return Description(
            service_version=self._version,
            models={self._reader.name: self._reader.version},
            engine=self._reader.engine,
            max_rois=self._settings.max_rois,
            max_roi_voxels=self._settings.max_roi_voxels,
            max_message_bytes=self._settings.max_message_bytes,
            roi_shape=self._reader.roi_shape,
        )

    def _make_server(self) -> grpc.aio.Server:
        size = self._settings.max_message_bytes
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),  # or a second service would share the port unnoticed
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            )
        )
        overread_pb2_grpc.add_OverreadServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _bind(self) -> str:
        address, credentials = self._settings.address, server_credentials(self._settings)
        host, colon, _ = address.rpartition(":")
        if not (host and colon):
            raise AddressUnusable(f"{address!r} is no address: HOST:PORT is right")
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressUnusable(f"{address} cannot be bound: {error}") from error
        return f"{host}:{port}"

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


async def serve(server: CloudServer, *, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once.

    ``ready`` is called with the bound address when the service can be used.

    Raises:
        ReadingEnded: the service cannot read any more, and has stopped; open studies are told.
    """
    signals = _Signals(asyncio.get_running_loop())
    async with server:
        ready(server.address)
        await _first(signals.first.wait(), server.watched())
        _log.info("draining", again="stops at once")
        await _first(server.drain(), signals.second.wait(), server.watched())
    _log.info("stopped")


async def _first(*ends: Coroutine[None, None, object]) -> None:
    """Returns with the first to end, or raises what it raises; the others are given up."""
    tasks = [asyncio.create_task(end) for end in ends]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


class _Signals:
    """The first and the second SIGTERM or SIGINT, as events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
