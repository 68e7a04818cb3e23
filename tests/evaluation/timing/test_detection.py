from collections.abc import Callable
from typing import Any

import grpc
import pytest

from edge.escalation.client import Escalator
from edge.link.channel import CHANNEL_OPTIONS
from edge.settings.core import load_settings
from evaluation.errors import ServiceFailed
from evaluation.timing.detection import _table, escalate_all, row
from evaluation.timing.detection_worker import Case, RecordingLink, escalate
from protos.messages import Refusal, Roi, Verdict
from tests.edge.builders import THRESHOLDS, WEIGHTS, box, candidate
from tests.edge.fake_cloud import FakeCloud


def slow(roi: Roi) -> Verdict | Refusal:
    """A verdict that waited 2 ms and took 3 ms, by the cloud's clock."""
    return Verdict(roi.roi_id, 0.9, 8.0, "slow", queue_s=0.002, compute_s=0.003)


def escalated(answer: Callable[[Roi], Verdict | Refusal], number: int) -> dict[str, Any]:
    """What it took to escalate two candidates to a cloud that answers so."""
    case, link = Case(box(), [candidate(0.2), candidate(0.8)], THRESHOLDS, WEIGHTS), RecordingLink()
    with (
        FakeCloud(answer=answer) as cloud,
        grpc.insecure_channel(cloud.address, options=CHANNEL_OPTIONS) as channel,
    ):
        settings = load_settings(deadline_s=60.0, reserve_s=1.0)
        second = Escalator(channel, link, settings)
        took = escalate(case, number, second, link, settings)
    assert len(cloud.headers) == 1
    return took


class Edge:
    """Takes so long to escalate each candidate."""

    def __init__(self, took: Callable[[int], dict[str, Any]]) -> None:
        self.escalate = took


def test_parts_add_up_to_the_whole() -> None:
    took = escalated(slow, 1)
    parts = took["parts_s"]
    assert parts["queue"] == pytest.approx(0.002)
    assert parts["compute"] == pytest.approx(0.003)
    assert sum(parts.values()) == pytest.approx(took["total_s"], abs=0.005)


def test_a_refused_candidate_ends_the_measurement() -> None:
    took = escalated(lambda roi: Refusal(roi.roi_id, "ModelFailed", "nan"), 0)
    assert took["reason"] == "the cloud refused 1 ROI: the cloud's model failed (nan)"
    with pytest.raises(ServiceFailed, match="nan"):
        escalate_all(Edge(lambda _: took), range(2), 0)


def test_figures_of_a_link_by_hand() -> None:
    edge = Edge(lambda n: {"total_s": 0.01 * n, "parts_s": {"link": 0.001, "compute": 0.001 * n}})
    found = row("fibre", escalate_all(edge, range(11), 1))
    assert found["candidates"] == 10
    figures = [found[name] for name in ("p50_ms", "p95_ms", "longest_ms")]
    assert figures == pytest.approx([55.0, 95.5, 100.0])
    assert not found["kept"]
    assert found["parts"]["compute"]["p50_ms"] == pytest.approx(5.5)
    result = {"cpu": "x", "cores": 2, "engine": "e", "links": [found]}
    assert len(_table(result).cells) == 7
