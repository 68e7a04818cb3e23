"""The gRPC servicer: opens and closes streams, and turns errors into status codes.

What happens while a stream is open is in `cloud.stream`.
"""

import asyncio
import contextlib
import gc
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, cast

import grpc
import structlog

from cloud.callers import INTERNAL, caller_of, deadline_of
from cloud.limits import STUDIES, check_header
from cloud.models import ModelTransfers
from cloud.scheduling.waiting import WaitingRoi
from cloud.stream import ABANDON_AFTER_S, Backend, StudyStream
from cloud.study_trace import StudyTrace
from cloud.telemetry import CANCELLED, COMPLETE
from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.deadline import Deadline
from protos.errors import (
    BusyFault,
    Draining,
    InvalidRequest,
    OverreadError,
    ServiceFault,
    to_status,
)
from protos.messages import Accepted, Header, Load, Priority

Context = grpc.aio.ServicerContext[pb.ReadRequest, pb.ReadResponse]

COLLECT_EVERY = 16
"""Studies with ROIs after whose end Python frees cycles: it does not know the size of ROIs.

Other calls cause no search: it takes long while many calls are open.
"""

_log = structlog.get_logger(__name__)


class OverreadService(overread_pb2_grpc.OverreadServicer):
    """Implements the contract's service."""

    def __init__(self, backend: Backend, models: ModelTransfers) -> None:
        self._backend, self.models = backend, models
        self._open, self._settings = backend.streams, backend.settings
        self._clock = backend.batcher.clock
        self._ended = 0  # studies with ROIs that were open
        self._streams: set[StudyStream] = set()
        self._opening: set[asyncio.Task[Any]] = set()  # calls that wait for their header

    def abort_streams(self) -> None:
        """End all open calls as `Draining`, once the service is stopped.

        A caller thus learns what happened. A call that gRPC ends by itself has no details.
        """
        for stream in self._streams:
            stream.fail(_stopped())
        for call in self._opening:
            call.cancel()

    async def Describe(  # noqa: N802 - named by the contract
        self,
        request: pb.DescribeRequest,  # noqa: ARG002 - it is empty
        context: grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeResponse],  # noqa: ARG002
    ) -> pb.DescribeResponse:
        """Answer with what the service offers, and its limits."""
        return codec.encode_description(self._backend.limits)

    async def GetModel(  # noqa: N802 - named by the contract
        self,
        request: pb.GetModelRequest,
        context: grpc.aio.ServicerContext[pb.GetModelRequest, pb.GetModelResponse],
    ) -> AsyncIterator[pb.GetModelResponse]:
        """Send the offered model for the edge."""
        longest_s = self._backend.bounds.transfer_timeout_s + ABANDON_AFTER_S
        # a caller that reads nothing takes no error either, and would hold its place for ever
        abandon = asyncio.get_running_loop().call_later(longest_s, _this_call().cancel)
        try:
            self._open.check_draining()
            site = caller_of(context, self._settings).site
            responses = self.models.responses(request, site, lambda: len(self._open) > 0)
            async with contextlib.aclosing(responses) as sent:
                async for response in sent:
                    yield response
                    if self._open.stopped.done():
                        raise _stopped()
        finally:
            abandon.cancel()

    async def Read(  # noqa: N802 - named by the contract
        self, request_iterator: AsyncIterator[pb.ReadRequest], context: Context
    ) -> AsyncIterator[pb.ReadResponse]:
        """Read one study: yield what is accepted, outcomes as they finish, then the summary."""
        metadata, telemetry = context.invocation_metadata(), self._backend.telemetry
        trace = StudyTrace(self._clock, metadata, telemetry)
        with self._followed(trace) as stack:
            try:
                # whatever rejects the study comes before its ROIs are received
                caller = caller_of(context, self._settings)
                trace.site = site = caller.site
                stack.enter_context(self._open.opened(site, STUDIES))
                requests = aiter(request_iterator)
                header = await self._receive_header(requests)
                trace.named(header.study_key)
                check_header(header, self._backend.limits)
                if header.priority is Priority.STAT and not caller.may_stat:
                    telemetry.demoted.inc()
                    header = replace(header, priority=Priority.ROUTINE)
                trace.began(header)
                left_s, bounds = context.time_remaining(), self._backend.bounds
                deadline = deadline_of(header.budget_s, left_s, bounds, self._clock)
                accepted, kept = self._reserve(header, deadline, site)
                stream = StudyStream(header, deadline, self._backend, site, trace, kept)
                trace.on_end = stream.end
                self._streams.add(stream)
                stack.callback(stream.close)
                stack.callback(self._streams.discard, stream)
                stream.open(requests, _this_call().cancel)
                # sent at once, so that the caller can measure the round trip too
                await context.send_initial_metadata(())
                yield telemetry.encoded(Accepted(accepted))
                async for outcome in stream.outcomes():
                    trace.answered()
                    yield telemetry.encoded(outcome)
                summary = replace(stream.summary(), load=self._load(trace))
                trace.end(COMPLETE, summary)  # the edge may end the call once it has all
                counts = {"answered": summary.answered, "refused": summary.refused}
                _log.info("study read", **counts, **trace.ids)
                yield telemetry.encoded(summary)
            except Exception as error:  # whatever it is: the caller gets a status, the log the rest
                trace.end(
                    error.outcome if isinstance(error, OverreadError) else type(error).__name__
                )
                event = "study failed" if trace.has_header else "call rejected"
                ids = {**trace.ids, "peer": context.peer()}
                if not isinstance(error, OverreadError):
                    _log.exception("internal error", **ids)
                    error = ServiceFault(INTERNAL)
                elif (more := self._backend.refusals.more(event, error.kind)) is not None:
                    _log.info(event, error=error.kind, reason=error.reason, **ids, **more)
                load = codec.encode_load(self._load(trace))
                await context.abort(*to_status(error, load))

    @contextlib.contextmanager
    def _followed(self, trace: StudyTrace) -> Iterator[contextlib.ExitStack]:
        """Note the end of a cancelled study, and free its memory, however it ends."""
        try:
            with contextlib.ExitStack() as stack:
                yield stack
        except (asyncio.CancelledError, GeneratorExit):
            if trace.end(CANCELLED) and trace.has_header:
                _log.info("study cancelled", **trace.ids)
            raise
        finally:
            if trace.has_rois:
                self._ended += 1
                if self._ended % COLLECT_EVERY == 0:
                    gc.collect()

    async def _receive_header(self, requests: AsyncIterator[pb.ReadRequest]) -> Header:
        """Return the header; raise `InvalidRequest` if none arrived in time."""
        timeout_s, call = self._backend.bounds.idle_timeout_s, _this_call()
        self._opening.add(call)
        try:
            async with asyncio.timeout(timeout_s):
                return codec.decode_header(await anext(requests))
        except asyncio.CancelledError:
            if not self._open.stopped.done():
                raise
            call.uncancel()
            raise _stopped() from None
        except TimeoutError:
            late = f"no header arrived within {timeout_s} s"
            raise InvalidRequest(late, field="header") from None
        except StopAsyncIteration:
            raise InvalidRequest("the stream ended before its header", field="header") from None
        finally:
            self._opening.discard(call)

    def _load(self, trace: StudyTrace) -> Load:
        """Return the queue now, and the model time of the study."""
        return Load(self._backend.batcher.queue.queue_s, trace.compute_s)

    def _reserve(
        self, header: Header, deadline: Deadline, site: str
    ) -> tuple[int, deque[WaitingRoi]]:
        """Return how many announced ROIs can be answered in time, and the places kept for them.

        Raise `BusyFault` if none can.
        """
        self._open.check_priority(site, header.priority)
        kept, rois = deque[WaitingRoi](), header.roi_count
        if not rois:
            return 0, kept
        cached = self._backend.cache.count((site, header.study_key))  # they always can
        try:
            kept = self._backend.batcher.reserve(deadline, header.priority, site, rois)
        except BusyFault:
            if not cached:
                raise
        return min(rois, len(kept) + cached), kept


def _this_call() -> asyncio.Task[Any]:
    """Return the task that handles the call: every coroutine of gRPC has one."""
    return cast("asyncio.Task[Any]", asyncio.current_task())


def _stopped() -> Draining:
    return Draining("the service stopped before this was finished")
