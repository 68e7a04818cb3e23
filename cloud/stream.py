"""One study's stream while it is open: takes its ROIs in, has them read, merges the outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from cloud.admission import Limits, check_roi
from cloud.answers import Answers, Question
from cloud.batching import Batcher
from cloud.company import Company
from cloud.merger import Merger
from cloud.padding import padded, unpadded
from cloud.queue import UNKNOWN_SITE, Answer
from cloud.telemetry import Telemetry
from models.runtime.readings import Reading
from protos import codec
from protos import overread_pb2 as pb
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, InvalidRequest, OverreadError, TooLarge
from protos.messages import Header, Refusal, Roi, Summary, Verdict

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
        self._to_come = header.roi_count
        desk.company.announce(header.roi_count)

    @property
    def compute_s(self) -> float:
        """Model time spent on this study so far, each batch counted once."""
        return sum(self._batches.values())

    def open(self, requests: AsyncIterator[pb.ReadRequest]) -> None:
        """Begins to receive; outcomes are there to be taken as they finish."""
        self._receiving = asyncio.create_task(self._receive(requests))

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
        """Ends the stream with ``error`` instead of what has not finished."""
        self._merger.fail(error)

    def close(self) -> None:
        """Gives up whatever has not finished; nothing of it is read any more."""
        self._expect_no_more()
        if self._receiving is not None:
            self._receiving.cancel()
        self._merger.cancel()

    async def _receive(self, requests: AsyncIterator[pb.ReadRequest]) -> None:
        try:
            async with asyncio.timeout(self._deadline.remaining_s):
                self._close_if_whole()
                async for request in requests:
                    self._take(request)
                    self._close_if_whole()
        except TimeoutError:
            if not self._whole:
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
        if self._known(request.roi):
            return
        if self._to_come > 0:  # one that was refused may come again
            self._to_come -= 1
            self._desk.company.left()
        try:
            roi = codec.decode_roi(request.roi)
            check_roi(roi, self._desk.limits)
        except OverreadError as error:
            self._merger.put(self._refused(request.roi.roi_id, error))
        else:
            self._checksums[roi.roi_id] = request.roi.checksum
            self._merger.add(self._answer(roi, request.roi.checksum))

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

    async def _answer(self, roi: Roi, checksum: bytes) -> codec.Outcome:
        question = Question(self._header.study_key, roi.roi_id, checksum)
        if (verdict := self._desk.answers.get(question)) is not None:
            self._desk.telemetry.roi_ended("remembered")
            return verdict
        try:
            answer = await self._desk.batcher.submit(
                padded(roi.voxels, self._desk.limits.roi_shape),
                self._deadline,
                self._header.priority,
                self._site,
            )
        except OverreadError as error:
            return self._refused(roi.roi_id, error)
        verdict = self._verdict(roi, answer)
        self._desk.answers.put(question, verdict)
        return verdict

    def _verdict(self, roi: Roi, answer: Answer) -> Verdict:
        self._batches[answer.batch] = answer.compute_s
        self._desk.telemetry.roi_ended("verdict", answer.queue_s)
        reading = answer.reading
        if roi.voxels.shape != self._desk.limits.roi_shape:
            reading = replace(reading, mask=unpadded(reading.mask, roi.voxels.shape))
        return verdict_of(roi.roi_id, reading, self._desk.model, answer.queue_s, answer.compute_s)

    def _refused(self, roi_id: int, error: OverreadError) -> Refusal:
        self._desk.telemetry.roi_ended(error.kind)
        return Refusal(roi_id, error.kind, error.reason)


def verdict_of(
    roi_id: int, reading: Reading, model: str, queue_s: float = 0.0, compute_s: float = 0.0
) -> Verdict:
    """A reading as the contract's verdict on the ROI of that number."""
    return Verdict(
        roi_id=roi_id,
        probability=reading.probability,
        diameter_mm=reading.diameter_mm,
        model=model,
        queue_s=queue_s,
        compute_s=compute_s,
        malignancy=reading.malignancy,
        texture=reading.texture,
        mask=codec.pack_mask(reading.mask),
    )
