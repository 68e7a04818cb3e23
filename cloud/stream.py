"""One study's stream while it is open: takes its ROIs in, has them read, merges the outcomes.

What became of an ROI, as the contract says it: a reading as a verdict, an error as a refusal.

How many ROIs the open streams have announced and not sent yet: whom a batch may wait for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial

from cloud.cache import Answers, Question
from cloud.limits import Limits, check_roi, padded, unpadded
from cloud.multiplexer import Merger
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.queue import UNKNOWN_SITE, Answer
from cloud.telemetry import Telemetry
from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from protos import codec
from protos import overread_pb2 as pb
from protos.codec import pack_mask, verify
from protos.deadline import Deadline
from protos.errors import (
    CallerFault,
    DeadlinePassed,
    DeadlineUnmeetable,
    InvalidRequest,
    ModelFailed,
    OverreadError,
    TooLarge,
)
from protos.messages import Header, Refusal, Summary, Verdict


def verdict_of(
    roi_id: int, reading: Reading, model: str, queue_s: float = 0.0, compute_s: float = 0.0
) -> Verdict:
    """A reading as the verdict on the ROI of that number."""
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


def refusal_of(roi_id: int, error: OverreadError) -> Refusal:
    """An error as the refusal of the ROI of that number, with the estimate if it has one."""
    known_s = error.estimate_s if isinstance(error, DeadlineUnmeetable) else None
    return Refusal(roi_id, error.kind, error.reason, known_s or 0.0)


class Company:
    """A count that all streams of a service share."""

    def __init__(self) -> None:
        self._coming = 0

    @property
    def coming(self) -> int:
        """ROIs that may still come on streams that are open."""
        return self._coming

    def announce(self, rois: int) -> None:
        """A stream says that it will send so many."""
        self._coming += rois

    def left(self, rois: int = 1) -> None:
        """So many of those that were announced have come, or never will."""
        self._coming -= rois


LATE_S = 1.0
"""What is answered so long after the deadline is still given on; then the stream ends."""

SENDINGS = 2
"""How often each ROI of a study may be sent in one stream, on average."""


@dataclass(frozen=True, eq=False)
class Desk:
    """What all streams of a service share.

    ``model`` names the model in verdicts; ``company`` counts what the streams will still send.
    """

    batcher: Batcher
    answers: Answers
    limits: Limits
    telemetry: Telemetry
    model: str
    company: Company = field(default_factory=Company)


class StudyStream:
    """From an accepted header of ``site`` to the summary."""

    def __init__(
        self, header: Header, deadline: Deadline, desk: Desk, site: str = UNKNOWN_SITE
    ) -> None:
        self._header, self._deadline, self._desk, self._site = header, deadline, desk, site
        self._merger = Merger(deadline.clock)
        self._checksums: dict[int, bytes] = {}
        self._received = 0
        self._batches: dict[int, float] = {}
        self._receiving: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._to_come = header.roi_count
        desk.company.announce(header.roi_count)

    @property
    def compute_s(self) -> float:
        """Model time spent on this study so far, each batch counted once."""
        return sum(self._batches.values())

    def open(self, requests: AsyncIterator[pb.ReadRequest], first_wait_s: float = math.inf) -> None:
        """Begins to receive; outcomes are there to be taken as they finish.

        The first ROI has to be there in ``first_wait_s``. Not long after its deadline the stream
        fails, whatever became of its work.
        """
        late = DeadlinePassed(f"not all was answered {LATE_S} s after the deadline")
        end_s = self._deadline.remaining_s + LATE_S
        self._ending = asyncio.get_running_loop().call_later(end_s, self.fail, late)
        self._receiving = asyncio.create_task(self._receive(requests, first_wait_s))

    def outcomes(self) -> AsyncIterator[codec.Outcome]:
        """Verdicts and refusals as they finish.

        Raises:
            OverreadError: the stream as a whole cannot go on.
        """
        return self._merger.outcomes()

    def summary(self) -> Summary:
        """What became of the study's ROIs."""
        return self._merger.summary()

    def fail(self, error: OverreadError) -> None:
        """Ends the stream with ``error`` instead of what has not finished, and takes no more."""
        if self._receiving is not None:
            self._receiving.cancel()
        self._merger.fail(error)

    def close(self) -> None:
        """Gives up whatever has not finished; nothing of it is read any more."""
        self._expect_no_more()
        for running in (self._receiving, self._ending):
            if running is not None:
                running.cancel()
        self._merger.cancel()

    async def _receive(self, requests: AsyncIterator[pb.ReadRequest], first_wait_s: float) -> None:
        left_s = self._deadline.remaining_s
        until_s = asyncio.get_running_loop().time() + left_s
        try:
            async with asyncio.timeout(min(first_wait_s, left_s)) as limit:
                self._close_if_whole()
                async for request in requests:
                    limit.reschedule(until_s)
                    self._take(request)
                    self._close_if_whole()
        except TimeoutError:
            if not self._received and first_wait_s < left_s:
                silent = InvalidRequest(f"no ROI within {first_wait_s} s of the header")
                self._merger.fail(silent)
            elif not self._whole:
                self._merger.fail(DeadlinePassed("time ran out before the last ROI came"))
        except Exception as error:  # the servicer meets it: one of ours is logged there
            self._merger.fail(error)
        else:
            self._merger.close()
        finally:
            self._expect_no_more()

    @property
    def _whole(self) -> bool:
        """Whether all ROIs that were announced have come and can be read."""
        return len(self._checksums) == self._header.roi_count

    def _close_if_whole(self) -> None:
        """Lets the study end with its last outcome, though its caller may not hang up."""
        if self._whole:
            self._merger.close()

    def _expect_no_more(self) -> None:
        self._desk.company.left(self._to_come)
        self._to_come = 0

    def _take(self, request: pb.ReadRequest) -> None:
        if (kind := request.WhichOneof("request")) != "roi":
            raise InvalidRequest(f"an ROI should follow, not {kind or 'an empty message'}")
        message = request.roi
        if self._known(message):
            return
        if self._to_come > 0:  # one that was refused may come again
            self._to_come -= 1
            self._desk.company.left()
        try:
            self._ask(message)
        except CallerFault as error:  # put right it may come again
            self._merger.put(self._refused(message.roi_id, error))
            return
        except OverreadError as error:
            self._merger.put(self._refused(message.roi_id, error))
        self._checksums[message.roi_id] = message.checksum

    def _ask(self, message: pb.Roi) -> None:
        """Has an ROI answered; what may refuse it goes before what costs time."""
        desk, asked = self._desk, (self._deadline, self._header.priority, self._site)
        roi = codec.decode_unverified(message)
        check_roi(roi, desk.limits)
        question = Question(self._header.study_key, roi.roi_id, message.checksum)
        if (verdict := desk.answers.get(question)) is not None:
            desk.telemetry.roi_ended("remembered")
            self._merger.put(verdict)
            return

        def voxels() -> UInt8Array:
            verify(roi, message.checksum)
            return padded(roi.voxels, desk.limits.roi_shape)

        answer = desk.batcher.submit(voxels, *asked)
        self._merger.add(answer, partial(self._outcome, question, roi.voxels.shape))

    def _known(self, roi: pb.Roi) -> bool:
        """Whether ``roi`` is being read already; raises when it cannot belong to this study."""
        self._received += 1
        if self._received > SENDINGS * self._header.roi_count:
            raise TooLarge(f"{self._received} ROIs sent, {self._header.roi_count} were announced")
        if (before := self._checksums.get(roi.roi_id)) is not None:
            if before != roi.checksum:
                raise InvalidRequest(f"ROI {roi.roi_id} was sent before with other voxels")
            return True
        if len(self._checksums) >= self._header.roi_count:
            raise InvalidRequest(
                f"ROI {roi.roi_id} is one more than the {self._header.roi_count} announced"
            )
        return False

    def _outcome(
        self, question: Question, shape: tuple[int, ...], answer: asyncio.Future[Answer]
    ) -> codec.Outcome:
        try:
            verdict = self._verdict(question.roi_id, shape, answer.result())
        except OverreadError as error:
            return self._refused(question.roi_id, error)
        except asyncio.CancelledError:  # by the batcher: who gives up a stream does not ask
            return self._refused(question.roi_id, ModelFailed("the batch ended without an answer"))
        self._desk.answers.put(question, verdict)
        return verdict

    def _verdict(self, roi_id: int, shape: tuple[int, ...], answer: Answer) -> Verdict:
        self._batches[answer.batch] = answer.compute_s
        self._desk.telemetry.roi_ended("verdict", answer.queue_s)
        reading = answer.reading
        if shape != self._desk.limits.roi_shape:
            reading = replace(reading, mask=unpadded(reading.mask, shape))
        return verdict_of(roi_id, reading, self._desk.model, answer.queue_s, answer.compute_s)

    def _refused(self, roi_id: int, error: OverreadError) -> Refusal:
        self._desk.telemetry.roi_ended(error.kind)
        return refusal_of(roi_id, error)
