from __future__ import annotations

import grpc
import pytest

from edge.escalation.client import CHANNEL_OPTIONS, Escalator
from edge.escalation.stream import EscalationSettings
from edge.settings import load_settings
from evaluation.errors import ServiceFailed
from evaluation.timing.detection import _table, escalate_all, row
from evaluation.timing.detection_worker import Case, RecordingLink, escalate
from protos.messages import Refusal, Roi, Verdict
from tests.edge.builders import SHAPE, THRESHOLDS, WEIGHTS, box, candidate
from tests.edge.fake_cloud import FakeCloud


def slow(roi: Roi) -> Verdict | Refusal:
    """A verdict that waited 2 ms and took 3 ms, by the cloud's clock."""
    return Verdict(roi.roi_id, 0.9, 8.0, "slow", queue_s=0.002, compute_s=0.003)


def test_parts_add_up_to_the_whole() -> None:
    case = Case(box(), [candidate(0.2), candidate(0.8)], THRESHOLDS, WEIGHTS)
    link = RecordingLink()
    with (
        FakeCloud(answer=slow) as cloud,
        grpc.insecure_channel(cloud.address, options=CHANNEL_OPTIONS) as channel,
    ):
        second = Escalator(channel, link, EscalationSettings(SHAPE, 1.0))
        took = escalate(case, 3, second, link, load_settings(deadline_s=60.0))
    parts = took["parts_s"]
    assert parts["queue"] == pytest.approx(0.002)
    assert parts["compute"] == pytest.approx(0.003)
    assert sum(parts.values()) == pytest.approx(took["total_s"], abs=0.005)
    assert len(cloud.headers) == 1


def test_a_refused_candidate_ends_the_measurement() -> None:
    case = Case(box(), [candidate(0.5)], THRESHOLDS, WEIGHTS)
    link = RecordingLink()
    with (
        FakeCloud(answer=lambda roi: Refusal(roi.roi_id, "ModelFailed", "nan")) as cloud,
        grpc.insecure_channel(cloud.address, options=CHANNEL_OPTIONS) as channel,
    ):
        second = Escalator(channel, link, EscalationSettings(SHAPE, 1.0))
        took = escalate(case, 0, second, link, load_settings(deadline_s=60.0))
    assert took["reason"] == "1 ROIs refused: ModelFailed: nan"

    class Edge:
        def escalate(self, _number: int) -> dict[str, object]:
            return took

    with pytest.raises(ServiceFailed, match="nan"):
        escalate_all(Edge(), range(2), 0)


def test_figures_of_a_link_by_hand() -> None:
    class Edge:
        def escalate(self, number: int) -> dict[str, object]:
            return {"total_s": 0.01 * number, "parts_s": {"link": 0.001, "compute": 0.001 * number}}

    found = row("fibre", escalate_all(Edge(), range(11), 1))
    assert (found["candidates"], found["p50_ms"], found["longest_ms"]) == (
        10,
        pytest.approx(55.0),
        pytest.approx(100.0),
    )
    assert found["p95_ms"] == pytest.approx(95.5)
    assert not found["kept"]
    assert found["parts"]["compute"]["p50_ms"] == pytest.approx(5.5)
    result = {"cpu": "x", "cores": 2, "engine": "e", "links": [found]}
    assert len(_table(result).cells) == 7
