"""The servicer: opens streams and closes them, and turns errors into status.

What happens in between is `cloud.stream`'s.

Which site a caller is of: by its certificate, else by what it says, else unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import structlog

from cloud.limits import check_header
from cloud.scheduling.queue import UNKNOWN_SITE
from cloud.scheduling.quota import Room
from cloud.stream import Desk, StudyStream
from protos import codec, overread_pb2_grpc
from protos import metadata as accepted
from protos import overread_pb2 as pb
from protos.deadline import Clock, Deadline
from protos.errors import BusyFault, Draining, InvalidRequest, Metadata, OverreadError, to_status
from protos.messages import Description, Header
from protos.metadata import MAX_SITE_CHARACTERS, SITE_KEY, Load

_CERTIFICATE = "x509_pem_cert"
_NAMES = ("x509_common_name", "x509_subject_alternative_name")


def site_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The name in the caller's certificate, common or alternative, and ``unknown`` if it has none.

    Who shows no certificate is believed what its ``overread-site`` says. So with mutual TLS nobody
    can spend another site's quota by giving its name.
    """
    shown = context.auth_context()
    if _CERTIFICATE in shown or any(name in shown for name in _NAMES):
        named: list[str | bytes] = [value for name in _NAMES for value in shown.get(name, ())]
    else:
        named = [value for key, value in context.invocation_metadata() or () if key == SITE_KEY]
    for name in named:
        text = name.decode(errors="replace") if isinstance(name, bytes) else name
        if text := text.strip()[:MAX_SITE_CHARACTERS]:
            return text
    return UNKNOWN_SITE


Context = grpc.aio.ServicerContext[pb.ReadRequest, pb.ReadResponse]

_log = structlog.get_logger(__name__)


class OverreadService(overread_pb2_grpc.OverreadServicer):
    """The contract's service.

    Args:
        desk: what its streams share.
        description: what it says of itself.
        room: how many studies may be open at once.
        max_budget_s: longer budgets are cut to this.
        header_wait_s: a stream that has sent no header by then is closed, and so is one that has
            sent no ROI so long after its header.
        return_s: kept of each budget for the answer's way back, half of it at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        desk: Desk,
        description: Description,
        *,
        room: Room,
        max_budget_s: float,
        header_wait_s: float,
        return_s: float = 0.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._desk, self._description, self._clock = desk, description, clock
        self._room, self._max_budget_s = room, max_budget_s
        self._header_wait_s, self._return_s = header_wait_s, return_s
        self._draining = False
        self._open = 0
        self._streams: set[StudyStream] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_streams(self) -> int:
        """Studies open now."""
        return self._open

    def drain(self) -> None:
        """From now on refuses new studies as `Draining`; open ones go on."""
        self._draining = True

    async def idle(self) -> None:
        """Returns when no study is open."""
        await self._idle.wait()

    def cut(self) -> None:
        """Ends open studies as `Draining`."""
        for stream in self._streams:
            stream.fail(Draining("the service stopped before this study was finished"))

    async def Describe(  # noqa: N802 - named by the contract
        self,
        request: pb.DescribeRequest,  # noqa: ARG002 - it holds nothing
        context: grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeResponse],  # noqa: ARG002 - nothing to say beside the answer
    ) -> pb.DescribeResponse:
        """What is served, and the limits."""
        return codec.encode_description(self._description)

    async def Read(  # noqa: N802 - named by the contract
        self, request_iterator: AsyncIterator[pb.ReadRequest], context: Context
    ) -> AsyncIterator[pb.ReadResponse]:
        """One study: outcomes as they finish, then the summary."""
        with self._counted() as counted:
            try:
                site = site_of(context)
                counted.enter_context(self._place(site))
                requests = aiter(request_iterator)
                header = await self._header(requests)
                deadline = self._deadline(header, context)
                told = self._accepted(header, deadline, site)
                stream = counted.enter_context(self._opened(header, deadline, site))
                stream.open(requests, self._header_wait_s)
                await context.send_initial_metadata(told)  # so a caller knows the round trip too
                async for outcome in stream.outcomes():
                    yield codec.encode_response(outcome)
                yield codec.encode_response(stream.summary())
                context.set_trailing_metadata(self._load(stream.compute_s).to_metadata())
                self._desk.telemetry.stream_ended("complete")
            except OverreadError as error:
                await self._abort(context, error)
            except Exception as error:  # a fault of ours: the caller is told UNKNOWN by gRPC
                self._desk.telemetry.stream_ended(type(error).__name__)
                _log.exception("study failed", peer=context.peer())
                raise

    @contextlib.contextmanager
    def _counted(self) -> Iterator[contextlib.ExitStack]:
        """Counts a study as open, until it ends in whatever way."""
        self._open += 1
        self._idle.clear()
        try:
            with contextlib.ExitStack() as stack:
                yield stack
        except (asyncio.CancelledError, GeneratorExit):
            self._desk.telemetry.stream_ended("cancelled")
            raise
        finally:
            self._open -= 1
            if self._open == 0:
                self._idle.set()

    def _place(self, site: str) -> contextlib.AbstractContextManager[None]:
        if self._draining:
            raise Draining("the service is about to stop; try another, or later")
        return self._room.place(site)

    def _accepted(self, header: Header, deadline: Deadline, site: str) -> Metadata:
        """How many of the announced ROIs can be met, told; raises where none can.

        What is remembered of the study costs nothing, and is met whatever the load.
        """
        self._room.check(site, header.priority)
        if not (rois := header.roi_count):
            return accepted.to_metadata(0)
        remembered = self._desk.answers.of(header.study_key)
        try:
            met = self._desk.batcher.check(deadline, header.priority, site, rois=rois)
        except BusyFault:
            if not remembered:
                raise
            met = 0
        return accepted.to_metadata(min(rois, met + remembered))

    @contextlib.contextmanager
    def _opened(self, header: Header, deadline: Deadline, site: str) -> Iterator[StudyStream]:
        """The stream that ``header`` opens, closed when it is left."""
        stream = StudyStream(header, deadline, self._desk, site)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            stream.close()

    def _deadline(self, header: Header, context: Context) -> Deadline:
        """The shortest of what is asked, granted and waited for, less the answer's way back."""
        budget_s = min(header.budget_s, self._max_budget_s)
        if (left_s := context.time_remaining()) is not None:
            budget_s = max(0.0, min(budget_s, left_s))
        return Deadline.after(budget_s - min(self._return_s, budget_s / 2), self._clock)

    async def _header(self, requests: AsyncIterator[pb.ReadRequest]) -> Header:
        """The header, if the study may be sent at all."""
        try:
            async with asyncio.timeout(self._header_wait_s):
                header = codec.decode_header(await anext(requests))
        except TimeoutError:
            raise InvalidRequest(f"no header within {self._header_wait_s} s") from None
        except StopAsyncIteration:
            raise InvalidRequest("the stream ended before its header") from None
        check_header(header, self._desk.limits)
        return header

    def _load(self, compute_s: float = 0.0) -> Load:
        return Load(self._desk.batcher.queue_s, compute_s)

    async def _abort(self, context: Context, error: OverreadError) -> None:
        self._desk.telemetry.stream_ended(error.kind)
        _log.info("study ended", error=error.kind, reason=error.reason, peer=context.peer())
        code, details, metadata = to_status(error)
        await context.abort(code, details, metadata + self._load().to_metadata())
