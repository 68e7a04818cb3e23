"""One study's stream while it is open: receives its ROIs, has them read, and sends the outcomes.

A reading becomes a verdict, an error becomes a refusal of that ROI alone.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial

from cloud.cache import CacheKey, VerdictCache
from cloud.limits import Bounds, OpenStreams, check_roi, crop_mask, pad
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.waiting import RoiResult, WaitingRoi
from cloud.settings import CloudSettings
from cloud.study_trace import StudyTrace
from cloud.telemetry import CloudTelemetry
from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from process.logs import Sparse
from protos import codec
from protos import overread_pb2 as pb
from protos.codec import Outcome, pack_mask, verify
from protos.deadline import Deadline
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

CANCELLED_S = 0.01
"""Seconds in which a cancelled call is known to be one, and no study that ends early."""

PATIENCE = 0.25
"""Part of its budget for which a study may let the service wait for ROIs while none is pending."""

HALF_CLOSE_S = 0.25
"""Seconds after the last announced ROI in which its caller closes its side, or sends too many."""


@dataclass(frozen=True, eq=False)
class Backend:
    """What all streams and requests of a service share.

    ``limits`` is the answer to `Describe`; ``model`` names the model in verdicts; ``refusals``
    chooses the lines of refusals that are logged.
    """

    batcher: Batcher
    cache: VerdictCache
    limits: Description
    telemetry: CloudTelemetry
    model: str
    settings: CloudSettings
    bounds: Bounds
    streams: OpenStreams
    refusals: Sparse = field(default_factory=Sparse)


class StudyStream:
    """The stream of one study of ``site``, from its accepted header to its summary.

    `outcomes` ends when all ROIs that were received have one, and no more are expected.
    """

    def __init__(
        self,
        header: Header,
        deadline: Deadline,
        backend: Backend,
        site: str,
        trace: StudyTrace,
        kept: deque[WaitingRoi],
    ) -> None:
        self._header, self._deadline, self._backend, self._site = header, deadline, backend, site
        self._trace, self._began_s, self._kept = trace, deadline.clock(), kept
        self._done_s = self._began_s  # when an ROI was last done
        self._finished: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        self._pending: set[asyncio.Future[RoiResult]] = set()
        self._closed = self._cancelled = False
        self._answered: dict[int, bool] = {}  # by number: whether by a verdict
        self._checksums: dict[int, bytes] = {}  # of the ROIs that were accepted, by number
        self._received = 0  # ROIs, the repeated and the refused too
        self._uncounted = 0  # ROIs that arrived and have no outcome yet
        self._receiver: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._announced = header.roi_count  # and not received yet
        backend.batcher.announced_rois += header.roi_count

    def open(self, requests: AsyncIterator[pb.ReadRequest], abandon: Callable[[], object]) -> None:
        """Start to receive.

        Half a second after its deadline the stream fails, whatever is still pending. If its caller
        does not take that error, because it reads nothing, ``abandon`` is called.
        """
        loop, late_s = asyncio.get_running_loop(), self._deadline.remaining_s + CLOSE_AFTER_S
        late = DeadlinePassed(f"not all ROIs were answered {CLOSE_AFTER_S} s after the deadline")
        self._timers = [
            loop.call_later(late_s, self.fail, late),
            loop.call_later(late_s + ABANDON_AFTER_S, abandon),
        ]
        self._receiver = asyncio.create_task(self._receive(requests))

    async def outcomes(self) -> AsyncIterator[Outcome]:
        """Yield verdicts and refusals as they finish, in any order; raise what ends the study."""
        while (item := await self._finished.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._answered[item.roi_id] = isinstance(item, Verdict)
            yield item

    def summary(self) -> Summary:
        """Return how many ROIs were answered and refused, by their last outcome, and the time."""
        answered = sum(self._answered.values())
        took_s = self._deadline.clock() - self._began_s
        return Summary(answered, len(self._answered) - answered, took_s)

    def fail(self, error: BaseException) -> None:
        """End the study with ``error``: cancel pending ROIs, and receive no more."""
        self._finished.put_nowait(error)
        self._cancel()

    def end(self, how: str) -> None:
        """Receive no more, and count ROIs without an outcome under the end of their stream."""
        if self._receiver is not None:
            self._receiver.cancel()
        self._backend.telemetry.rois.labels(how, self._header.priority.value).inc(self._uncounted)
        self._uncounted = 0

    def close(self) -> None:
        """Cancel all pending ROIs, so that none of them is read."""
        self._expect_no_more()
        for timer in self._timers:
            timer.cancel()
        self._cancel()

    def _cancel(self) -> None:
        """Receive no more, and cancel what is pending and what is added later."""
        self._cancelled = True
        if self._receiver is not None:
            self._receiver.cancel()
        for work in self._pending:
            work.cancel()

    async def _receive(self, requests: AsyncIterator[pb.ReadRequest]) -> None:
        """Receive ROIs; while none is pending one must arrive in time, and all in some more."""
        next_request: asyncio.Future[pb.ReadRequest] | None = None
        idle_timeout_s, clock = self._backend.bounds.idle_timeout_s, self._deadline.clock
        waited_s = 0.0  # for ROIs while none was pending
        patience_s = max(3 * idle_timeout_s, PATIENCE * self._deadline.remaining_s)
        try:
            while True:
                next_request = next_request or asyncio.ensure_future(anext(requests))
                wait_s = min(idle_timeout_s, self._deadline.remaining_s)
                is_complete = len(self._checksums) == self._header.roi_count
                if is_complete and not self._closed:
                    wait_s = min(wait_s, HALF_CLOSE_S)
                began_s = clock()
                await asyncio.wait((next_request,), timeout=wait_s)
                if not (self._pending or is_complete):
                    waited_s += clock() - max(began_s, self._done_s)
                if waited_s > patience_s:
                    raise InvalidRequest(
                        f"the ROIs come too slowly: for {waited_s:.1f} s none was pending, the"
                        f" limit is {patience_s:.1f} s for this budget"
                    )
                if next_request.done():
                    self._take(next_request.result())
                    next_request = None
                elif is_complete:
                    # the study ends with its last outcome, even if its caller keeps the stream open
                    self._close_when_done()
                    if self._deadline.passed:
                        return
                elif self._deadline.passed:
                    raise DeadlinePassed("the deadline passed before the last ROI arrived")
                elif not self._pending:
                    raise InvalidRequest(
                        f"no ROI arrived within {idle_timeout_s} s, and none was pending"
                    )
        except StopAsyncIteration:
            # a call that is cancelled looks for a moment as if its caller had sent all
            if len(self._checksums) < self._header.roi_count and not self._pending:
                await asyncio.sleep(CANCELLED_S)
            self._close_when_done()
        except Exception as error:  # the servicer raises it, and logs a fault of the program
            self.fail(error)
        finally:
            if next_request is not None:
                next_request.cancel()
            self._expect_no_more()

    def _expect_no_more(self) -> None:
        self._backend.batcher.announced_rois -= self._announced
        self._announced = 0
        self._release()

    def _release(self) -> None:
        """Give back the places that are kept for more ROIs than are to come."""
        while len(self._kept) > self._announced:
            self._backend.batcher.queue.release((self._kept.pop(),))

    def _take(self, request: pb.ReadRequest) -> None:
        if (kind := request.WhichOneof("request")) != "roi":
            unexpected = f"expected an ROI, not {kind or 'an empty message'}"
            raise InvalidRequest(unexpected, field=kind or "request")
        self._trace.received()
        self._backend.telemetry.bytes.labels("received").inc(request.ByteSize())
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
            self._finished.put_nowait(self._refused(message.roi_id, error))
            return
        except OverreadError as error:
            self._finished.put_nowait(self._refused(message.roi_id, error))
        finally:
            self._release()
        self._checksums[message.roi_id] = message.checksum

    def _is_repeated(self, message: pb.Roi) -> bool:
        """Tell whether the ROI was accepted before; raise `InvalidRequest` to end the stream."""
        announced = self._header.roi_count
        self._received += 1
        accepted = self._checksums.get(message.roi_id)
        if accepted is None and len(self._checksums) >= announced:
            beyond = f"ROI {message.roi_id} is beyond the {announced} announced"
            raise InvalidRequest(beyond, field="roi.roi_id", limit=announced)
        if self._received > 2 * announced:  # each may be sent twice, on average
            many = f"{self._received} ROIs were sent, {announced} were announced"
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
            self._finished.put_nowait(verdict)
            return

        def voxels() -> UInt8Array:  # called after admission: a rejected ROI costs neither
            verify(roi, message.checksum)
            return pad(roi.voxels, backend.limits.roi_shape)

        given = (voxels, self._deadline, self._header.priority, self._site, self._kept)
        result = backend.batcher.submit(*given)
        self._add(result, partial(self._outcome, key, roi.voxels.shape))

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
        self._count(error.outcome)
        bound_s = error.bound_s if isinstance(error, DeadlineUnmeetable) else None
        return Refusal(roi_id, error.kind, error.reason, bound_s, error.field)

    def _count(self, outcome: str) -> None:
        """Count the outcome of an ROI; after the end of its stream it is counted already."""
        if self._uncounted:
            self._uncounted -= 1
            self._backend.telemetry.rois.labels(outcome, self._header.priority.value).inc()

    def _add(self, work: asyncio.Future[RoiResult], outcome: MakeOutcome) -> None:
        """Send ``outcome(work)`` when ``work`` has finished, or was cancelled by another party."""
        self._pending.add(work)
        work.add_done_callback(partial(self._finish, outcome))
        if self._cancelled:
            work.cancel()

    def _finish(self, outcome: MakeOutcome, work: asyncio.Future[RoiResult]) -> None:
        self._pending.discard(work)
        self._done_s = self._deadline.clock()
        if not (self._cancelled and work.cancelled()):
            try:
                self._finished.put_nowait(outcome(work))
            except Exception as error:  # `outcomes` raises it in the servicer
                self._finished.put_nowait(error)
        if self._closed:
            self._close_when_done()

    def _close_when_done(self) -> None:
        """Let `outcomes` end after the last pending one: nothing more will be added."""
        self._closed = True
        if not self._pending:
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
