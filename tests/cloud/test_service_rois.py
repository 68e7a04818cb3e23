"""ROIs at the service: the wrong, the small, the damaged and those sent again."""

from __future__ import annotations

import queue
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from protos import codec
from protos import overread_pb2 as pb
from protos.messages import Refusal, Roi, Summary, Verdict
from tests.cloud.calling import (
    MakeRoi,
    MakeStream,
    StartCloud,
    Until,
    read,
    refused,
    taken,
)
from tests.cloud.running import MeanReader


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"window_hu": (-160.0, 240.0)}, "InvalidRequest"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "InvalidRequest"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "InvalidRequest"),
        ({"edge_score": 1.5}, "InvalidRequest"),
        ({"edge_score": float("nan")}, "InvalidRequest"),
    ],
)
def test_an_roi_that_cannot_be_read_is_refused_alone(
    start_cloud: StartCloud,
    make_roi: MakeRoi,
    make_stream: MakeStream,
    fields: dict[str, Any],
    kind: str,
) -> None:
    """One wrong ROI gets a refusal; the rest of the study gets its verdicts."""
    with start_cloud() as cloud:
        requests = make_stream(make_roi(1, **fields), make_roi(2))
        answers = {a.roi_id: a for a in read(cloud, requests) if not isinstance(a, Summary)}
    refusal = answers[1]
    assert isinstance(refusal, Refusal)
    assert refusal.error == kind
    assert isinstance(answers[2], Verdict)


def test_an_roi_of_another_shape_or_size_is_refused(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The reason names the shape that came and the one that is read."""
    small, large = make_roi(1), make_roi(2)
    small = Roi(1, small.voxels[:1], small.spacing_mm, small.window_hu, 0.5)
    large = Roi(2, large.voxels.repeat(2, axis=0), large.spacing_mm, large.window_hu, 0.5)
    with start_cloud(max_roi_voxels=512) as cloud:
        outcomes = read(cloud, make_stream(small, large))
    refusals = {a.roi_id: a for a in outcomes if isinstance(a, Refusal)}
    assert refusals[1].error == "InvalidRequest"
    assert "(1, 8, 8)" in refusals[1].reason
    assert refusals[2].error == "TooLarge"


def test_a_smaller_roi_is_mirrored_and_its_mask_cut_back(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The model reads its own shape, and the mask that comes back has the shape that was sent."""

    class Outliner(MeanReader):
        def read(self, batch: UInt8Array) -> Readings:
            assert batch.shape[1:] == (8, 8, 8)
            return replace(super().read(batch), mask=batch == 99)

    voxels = np.full((4, 8, 6), 51, np.uint8)
    voxels[1, 2, 3] = 99
    with start_cloud(Outliner()) as cloud:
        verdict, _ = read(cloud, make_stream(make_roi(1, voxels=voxels)))
    assert isinstance(verdict, Verdict)
    np.testing.assert_array_equal(codec.unpack_mask(verdict.mask, (4, 8, 6)), voxels == 99)


def test_an_roi_sent_twice_is_read_and_answered_once(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """A repeat within a stream changes nothing."""
    header, roi = make_stream(make_roi(1))
    with start_cloud() as cloud:
        verdict, summary = read(cloud, [header, roi, roi])
        assert taken(cloud) == 1
    assert isinstance(verdict, Verdict)
    assert isinstance(summary, Summary)
    assert summary.answered == 1


def test_a_study_sent_again_costs_nothing(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """After a lost connection the same study gets the same verdicts without being read again."""
    requests = make_stream(make_roi(1), make_roi(2, 102))
    with start_cloud() as cloud:
        first = {a.roi_id: a for a in read(cloud, requests) if isinstance(a, Verdict)}
        again = {a.roi_id: a for a in read(cloud, requests) if isinstance(a, Verdict)}
        assert taken(cloud) == 2
        other = read(cloud, make_stream(make_roi(1), study_key="k2"))
        assert taken(cloud) == 3
    assert {i: v.probability for i, v in first.items()} == {1: 0.2, 2: 0.4}
    assert {i: v.probability for i, v in again.items()} == {1: 0.2, 2: 0.4}
    assert all(v.queue_s == v.compute_s == 0.0 for v in again.values())
    assert isinstance(other[0], Verdict)


def test_more_rois_than_announced_end_the_stream(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The header's count is a promise, and an ROI's number stands for one content."""
    with start_cloud() as cloud:
        cloud.reader.gate.clear()  # or the study could end before the rest is there
        more = make_stream(make_roi(1), make_roi(2), roi_count=1)
        assert refused(cloud, more).kind == "InvalidRequest"
        other = make_stream(make_roi(1), make_roi(1, 200))
        assert refused(cloud, other).kind == "InvalidRequest"
        header, roi = make_stream(make_roi(1))
        assert refused(cloud, [header, roi, roi, roi]).kind == "TooLarge"


def test_a_refused_roi_that_comes_again_is_not_counted_as_company_twice(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """What one stream repeats takes nothing from what another has announced."""
    header, wrong = make_stream(make_roi(1, edge_score=1.5))
    outbox: queue.SimpleQueue[pb.ReadRequest | None] = queue.SimpleQueue()
    with start_cloud() as cloud, cloud.stub() as stub:
        company = cloud.server._company
        company.announce(5)
        answers = stub.Read(iter(outbox.get, None), timeout=20)
        for request in (header, wrong, wrong):
            outbox.put(request)
        assert [next(answers).refusal.roi_id for _ in range(2)] == [1, 1]
        assert company.coming == 5
        outbox.put(None)
        assert next(answers).summary.refused == 1
        until(lambda: company.coming == 5)
