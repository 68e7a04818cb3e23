"""Persist what is pending for a report that is about to go out, and read it back.

`edge.store.pending` has it as bytes: the amendment context, ROIs and verdicts as they cross the
wire. The checksum of the wire is stored with an ROI, so that one that the disk damaged is detected.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from edge.amend.amendment import AmendmentContext
from edge.decide import Plan
from edge.escalation.rois import EscalationResult, cut_rois
from edge.findings import Route
from edge.pipeline import PersistPending
from edge.reader import EdgeReader
from edge.report.compose import Assessment
from edge.report.model import Report
from edge.store.pending import CHARACTERIZATION, PendingStore, RoiRow, VerdictRow
from imaging.preprocess import Preprocessed
from protos import overread_pb2 as pb
from protos.codec import (
    decode_response,
    decode_roi,
    encode_response,
    encode_roi,
    pack_mask,
    unpack_mask,
)
from protos.messages import Roi, Verdict

FAST = 0
"""zlib level of an ROI while the report waits: 0.1 ms at 48 voxels a side."""


def persist_in(store: PendingStore) -> PersistPending:
    """Return the stage that saves the ROIs without a verdict in ``store``."""

    def persist(
        report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed
    ) -> None:
        plan, answers = assessment.plan, assessment.answers
        context = AmendmentContext(report, plan, reader.thresholds, reader.weights, box.geometry)
        pending = replace(plan, send=pending_candidates(plan, answers), sizes=())
        save(store, context, answers, cut_rois(pending, box))

    return persist


def save(
    store: PendingStore, context: AmendmentContext, answers: EscalationResult, rois: Sequence[Roi]
) -> None:
    """Save what is pending for a report.

    ``answers`` are those that came in time, ``rois`` the pending ROIs, most valuable first,
    those to characterize last. Nothing is saved if there are none.
    """
    key, version = context.report.study_key, context.report.version
    if not rois:
        store.delete(key)
        return
    least = context.plan.characterize
    rows = [
        RoiRow(roi.roi_id, i + CHARACTERIZATION * (roi.roi_id in least), _packed(roi))
        for i, roi in enumerate(rois)
    ]
    store.save(key, version, answers.reason, context.to_bytes(), rows, verdict_rows(answers))


def pending_candidates(plan: Plan, answers: EscalationResult) -> tuple[int, ...]:
    """Return the candidates whose second reading is pending, most valuable first.

    A candidate is pending if the cloud was to read it and no verdict came by the deadline: time
    was short, or the cloud did not answer, or refused. An audit is never pending. Findings of the
    edge come last: their verdicts change no decision.
    """
    if answers.switched_off:
        return ()
    requested = dict.fromkeys((*plan.send, *plan.later, *plan.uncertain))
    undecided = [i for i in requested if plan.decisions[i].route is Route.ESCALATE]
    return tuple(i for i in (*undecided, *plan.characterize) if i not in answers.verdicts)


def verdict_rows(answers: EscalationResult) -> list[VerdictRow]:
    """Return the verdicts as they are stored."""
    rows = []
    for roi_id, verdict in answers.verdicts.items():
        mask = answers.masks.get(roi_id)
        packed, (z, y, x) = (b"", (0, 0, 0)) if mask is None else (pack_mask(mask), mask.shape)
        stored = encode_response(replace(verdict, mask=packed)).SerializeToString()
        rows.append(VerdictRow(roi_id, stored, z, y, x))
    return rows


def answers_of(rows: Iterable[VerdictRow], reason: str) -> EscalationResult:
    """Return stored verdicts, and the ``reason`` why there are no more."""
    verdicts, masks = {}, {}
    for row in rows:
        verdict = decode_response(pb.ReadResponse.FromString(row.verdict))
        if not isinstance(verdict, Verdict):
            raise TypeError(f"expected a stored verdict, got {verdict!r}")
        verdicts[row.roi_id] = verdict
        if verdict.mask:
            masks[row.roi_id] = unpack_mask(verdict.mask, (row.z, row.y, row.x))
    return EscalationResult(verdicts, masks=masks, reason=reason)


def unpacked(data: bytes) -> Roi:
    """Return a stored ROI.

    Raises:
        zlib.error, ChecksumMismatch: the disk damaged it.
    """
    return decode_roi(pb.ReadRequest.FromString(zlib.decompress(data)).roi)


def _packed(roi: Roi) -> bytes:
    return zlib.compress(encode_roi(roi).SerializeToString(), FAST)


def follow(store: PendingStore, key: str, report: Report) -> None:
    """Note that a version is out that differs only in its changes and in what was not read."""
    if not store.has(key) or (read := store.get(key)).version >= report.version:
        return
    out = {name: getattr(report, name) for name in ("version", "changes", "other_series")}
    context = AmendmentContext.from_bytes(store.context(key))
    context = replace(context, report=replace(context.report, **out))
    store.follow(read, report.version, context.to_bytes())
