"""One study's stream while it is open: receives its ROIs, has them read, and sends the outcomes.

A reading becomes a verdict, an error becomes a refusal of that ROI alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial

from cloud.cache import CacheKey, VerdictCache
from cloud.limits import Bounds, check_roi, crop_mask, pad
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.scheduler import UNKNOWN_SITE, RoiResult
from cloud.study_trace import StudyTrace
from cloud.telemetry import Telemetry
from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from protos import codec
from protos import overread_pb2 as pb
from protos.codec import Outcome, pack_mask, verify
from protos.deadline import Clock, Deadline
from protos.errors import (
    CallerFault,
    DeadlinePassed,
    DeadlineUnmeetable,
    InvalidRequest,
    ModelFailed,
    OverreadError,
)
from protos.messages import Description, Header, Refusal, Summary, Verdict

MakeOutcome = Callable[[asyncio.Future[RoiResult]], Outcome]

CLOSE_AFTER_S = 0.5
"""Seconds after its deadline at which a stream is closed; late outcomes are sent until then."""

ABANDON_AFTER_S = 0.25
"""Seconds after that at which the call of a caller that reads nothing is abandoned."""

HALF_CLOSE_S = 0.25
"""Seconds after the last announced ROI in which its caller closes its side, or sends too many."""


@dataclass(frozen=True, eq=False)
class Backend:
    """What all streams of a service share.

    ``limits`` is the answer to `Describe`; ``model`` names the model in verdicts.
    """

    batcher: Batcher
    cache: VerdictCache
    limits: Description
    telemetry: Telemetry
    model: str
    bounds: Bounds = field(default_factory=Bounds)


class StudyStream:
    """The stream of one study of ``site``, from its accepted header to its summary.

    Its outcomes, and the error that ends it, are in ``responses``.
    """

    def __init__(
        self,
        header: Header,
        deadline: Deadline,
        backend: Backend,
        site: str = UNKNOWN_SITE,
        trace: StudyTrace | None = None,
    ) -> None:
        self._header, self._deadline, self._backend, self._site = header, deadline, backend, site
        self._trace = trace or StudyTrace(deadline.clock)
        self.responses = ResponseMultiplexer(deadline.clock)
        self._checksums: dict[int, bytes] = {}  # of the ROIs that were accepted, by number
        self.received = 0  # ROIs, the repeated and the refused too
        self._uncounted = 0  # ROIs that arrived and have no outcome yet
        self._receiver: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._idle_timeout_s = 0.0
        self._announced = header.roi_count  # and not received yet
        backend.batcher.announced_rois += header.roi_count

    def open(
        self,
        requests: AsyncIterator[pb.ReadRequest],
        idle_timeout_s: float,
        abandon: Callable[[], object] = lambda: None,
    ) -> None:
        """Start to receive; an ROI must arrive within ``idle_timeout_s`` while none is pending.

        Half a second after its deadline the stream fails, whatever is still pending. If its caller
        does not take that error, because it reads nothing, ``abandon`` is called.
        """
        loop, late_s = asyncio.get_running_loop(), self._deadline.remaining_s + CLOSE_AFTER_S
        late = DeadlinePassed(f"not all ROIs were answered {CLOSE_AFTER_S} s after the deadline")
        self._timers = [
            loop.call_later(late_s, self.fail, late),
            loop.call_later(late_s + ABANDON_AFTER_S, abandon),
        ]
        self._idle_timeout_s = idle_timeout_s
        self._receiver = asyncio.create_task(self._receive(requests))

    def fail(self, error: OverreadError) -> None:
        """End the stream with ``error``: cancel pending ROIs, and receive no more."""
        if self._receiver is not None:
            self._receiver.cancel()
        self.responses.fail(error)

    def end(self, how: str) -> None:
        """Receive no more, and count ROIs without an outcome under the end of their stream."""
        if self._receiver is not None:
            self._receiver.cancel()
        self._backend.telemetry.rois.labels(how, self._header.priority.value).inc(self._uncounted)
        self._uncounted = 0

    def close(self) -> None:
        """Cancel all pending ROIs, so that none of them is read."""
        self._expect_no_more()
        for running in (self._receiver, *self._timers):
            if running is not None:
                running.cancel()
        self.responses.cancel()

    async def _receive(self, requests: AsyncIterator[pb.ReadRequest]) -> None:
        next_request: asyncio.Future[pb.ReadRequest] | None = None
        closed = False
        try:
            while True:
                next_request = next_request or asyncio.ensure_future(anext(requests))
                wait_s = min(self._idle_timeout_s, self._deadline.remaining_s)
                if self._is_complete and not closed:
                    wait_s = min(wait_s, HALF_CLOSE_S)
                await asyncio.wait((next_request,), timeout=wait_s)
                if next_request.done():
                    self._take(next_request.result())
                    next_request = None
                elif self._is_complete:
                    # the study ends with its last outcome, even if its caller keeps the stream open
                    self.responses.close()
                    closed = True
                    if self._deadline.passed:
                        return
                elif self._deadline.passed:
                    late = "the deadline passed before the last ROI arrived"
                    self.responses.fail(DeadlinePassed(late))
                    return
                elif not self.responses.pending:
                    idle = f"no ROI arrived within {self._idle_timeout_s} s, and none was pending"
                    self.responses.fail(InvalidRequest(idle))
                    return
        except StopAsyncIteration:
            self.responses.close()
        except Exception as error:  # the servicer raises it, and logs a fault of the program
            self.responses.fail(error)
        finally:
            if next_request is not None:
                next_request.cancel()
            self._expect_no_more()

    @property
    def _is_complete(self) -> bool:
        """Whether all announced ROIs were accepted."""
        return len(self._checksums) == self._header.roi_count

    def _expect_no_more(self) -> None:
        self._backend.batcher.announced_rois -= self._announced
        self._announced = 0

    def _take(self, request: pb.ReadRequest) -> None:
        if (kind := request.WhichOneof("request")) != "roi":
            unexpected = f"expected an ROI, not {kind or 'an empty message'}"
            raise InvalidRequest(unexpected, field=kind or "request")
        self._trace.received()
        self._uncounted += 1
        message = request.roi
        if self._is_repeated(message):
            self._count("repeated")
            return
        # a refused ROI may be sent again: the shared count must not fall twice for it
        if self._announced > 0:
            self._announced -= 1
            self._backend.batcher.announced_rois -= 1
        try:
            self._submit(message)
        except CallerFault as error:  # it may be corrected and sent again
            self.responses.put(self._refused(message.roi_id, error))
            return
        except OverreadError as error:
            self.responses.put(self._refused(message.roi_id, error))
        self._checksums[message.roi_id] = message.checksum

    def _is_repeated(self, message: pb.Roi) -> bool:
        """Tell whether the ROI was accepted before; raise `InvalidRequest` to end the stream."""
        announced = self._header.roi_count
        self.received += 1
        accepted = self._checksums.get(message.roi_id)
        if accepted is None and len(self._checksums) >= announced:
            beyond = f"ROI {message.roi_id} is beyond the {announced} announced"
            raise InvalidRequest(beyond, field="roi.roi_id", limit=announced)
        if self.received > 2 * announced:  # each may be sent twice, on average
            many = f"{self.received} ROIs were sent, {announced} were announced"
            raise InvalidRequest(many, field="roi", limit=2 * announced)
        if accepted is not None and accepted != message.checksum:
            other = f"ROI {message.roi_id} was sent before with other voxels"
            raise InvalidRequest(other, field="roi.checksum")
        return accepted is not None

    def _submit(self, message: pb.Roi) -> None:
        """Answer an ROI from the cache, or queue it; cheap checks come before costly ones."""
        backend = self._backend
        roi = codec.decode_unverified(message)
        check_roi(roi, backend.limits)
        key = CacheKey((self._site, self._header.study_key), roi.roi_id, message.checksum)
        if (verdict := backend.cache.get(key)) is not None:
            verify(roi, message.checksum)  # who knows the checksum alone gets no verdict
            self._count("cached")
            self.responses.put(verdict)
            return

        def voxels() -> UInt8Array:  # called after admission: a rejected ROI costs neither
            verify(roi, message.checksum)
            return pad(roi.voxels, backend.limits.roi_shape)

        result = backend.batcher.submit(voxels, self._deadline, self._header.priority, self._site)
        self.responses.add(result, partial(self._outcome, key, roi.voxels.shape))

    def _outcome(
        self, key: CacheKey, shape: tuple[int, ...], result: asyncio.Future[RoiResult]
    ) -> Outcome:
        backend = self._backend
        try:
            roi = result.result()
        except OverreadError as error:
            return self._refused(key.roi_id, error)
        except asyncio.CancelledError:  # by the batcher; an aborted stream needs no outcome
            return self._refused(key.roi_id, ModelFailed("the batch ended without an answer"))
        self._trace.read(roi)
        self._count("verdict")
        backend.telemetry.queue_s.observe(roi.queue_s)
        reading = roi.reading
        if shape != backend.limits.roi_shape:
            reading = replace(reading, mask=crop_mask(reading.mask, shape))
        verdict = verdict_of(key.roi_id, reading, backend.model, roi.queue_s, roi.compute_s)
        backend.cache.put(key, verdict)
        return verdict

    def _refused(self, roi_id: int, error: OverreadError) -> Refusal:
        self._count(error.kind)
        bound_s = error.bound_s if isinstance(error, DeadlineUnmeetable) else None
        return Refusal(roi_id, error.kind, error.reason, bound_s, error.field)

    def _count(self, outcome: str) -> None:
        """Count the outcome of an ROI; after the end of its stream it is counted already."""
        if self._uncounted:
            self._uncounted -= 1
            self._backend.telemetry.rois.labels(outcome, self._header.priority.value).inc()


class ResponseMultiplexer:
    """The pending and finished outcomes of one study's stream.

    Work is added while ROIs are received; `outcomes` ends when all of it has finished and the
    multiplexer is closed.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._began_s = clock, clock()
        self._finished: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        self._pending: set[asyncio.Future[RoiResult]] = set()
        self._closed = self._cancelled = False
        self._answered: dict[int, bool] = {}

    def add(self, work: asyncio.Future[RoiResult], outcome: MakeOutcome) -> None:
        """Send ``outcome(work)`` when ``work`` has finished, or was cancelled by another party.

        An exception of ``outcome`` ends the study.
        """
        self._pending.add(work)
        work.add_done_callback(partial(self._finish, outcome))
        if self._cancelled:
            work.cancel()

    @property
    def pending(self) -> int:
        """How many outcomes are still to come."""
        return len(self._pending)

    def put(self, outcome: Outcome) -> None:
        """Send an outcome that is known already."""
        self._finished.put_nowait(outcome)

    def close(self) -> None:
        """Signal that nothing more will be added."""
        self._closed = True
        self._end_if_done()

    def fail(self, error: BaseException) -> None:
        """End the study with ``error``, which `outcomes` raises, and cancel pending work."""
        self._finished.put_nowait(error)
        self.cancel()

    def cancel(self) -> None:
        """Cancel all pending work, and work that is added later."""
        self._cancelled = True
        for work in self._pending:
            work.cancel()

    async def outcomes(self) -> AsyncIterator[Outcome]:
        """Yield verdicts and refusals as they finish, in any order."""
        while (item := await self._finished.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._answered[item.roi_id] = isinstance(item, Verdict)
            yield item

    def summary(self) -> Summary:
        """Return how many ROIs were answered and refused, by their last outcome, and the time."""
        answered = sum(self._answered.values())
        refused = len(self._answered) - answered
        return Summary(answered, refused, self._clock() - self._began_s)

    def _finish(self, outcome: MakeOutcome, work: asyncio.Future[RoiResult]) -> None:
        self._pending.discard(work)
        if not (self._cancelled and work.cancelled()):
            try:
                self._finished.put_nowait(outcome(work))
            except Exception as error:  # `outcomes` raises it in the servicer
                self._finished.put_nowait(error)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closed and not self._pending:
            self._finished.put_nowait(None)


def verdict_of(
    roi_id: int, reading: Reading, model: str, queue_s: float = 0.0, compute_s: float = 0.0
) -> Verdict:
    """Return the verdict on an ROI that ``model`` read as ``reading``."""
    return Verdict(
        roi_id=roi_id,
        probability=reading.probability,
        diameter_mm=reading.diameter_mm,
        model=model,
        queue_s=queue_s,
        compute_s=compute_s,
        malignancy=reading.malignancy,
        texture=reading.texture,
        mask=pack_mask(reading.mask),
    )
