from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge.escalation.client import Escalator
from edge.link.channel import CHANNEL_OPTIONS
from edge.settings.core import load_settings
from evaluation.accuracy.detect import ledger_s, stage_times
from evaluation.errors import MissingData, ServiceFailed
from evaluation.timing.latency import (
    Case,
    RecordingLink,
    bars,
    escalate,
    escalate_all,
    latency,
    link_rows,
    repeat_study,
)
from protos.messages import Refusal, Roi, Verdict
from tests.edge.builders import THRESHOLDS, WEIGHTS, box, candidate
from tests.edge.fake_cloud import FakeCloud
from tests.evaluation.scripted_screen import scripted_pipeline


def test_every_stage_is_timed(shared_data: Path, tmp_path: Path) -> None:
    slab = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0003"
    reports = repeat_study(scripted_pipeline([]), slab, tmp_path, range(2))
    times = {one["stage"]: one for one in stage_times([ledger_s(one) for one in reports])}
    stages = [one["median_ms"] for name, one in times.items() if name != "total"]
    assert times["total"]["median_ms"] == pytest.approx(sum(stages), rel=0.5)
    assert times["read"]["p95_ms"] >= times["read"]["median_ms"]


def test_unreadable_study_has_no_latency(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingData, match="empty"):
        repeat_study(scripted_pipeline([]), tmp_path / "empty", tmp_path / "out", range(1))


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
        escalate_all(lambda _: took, range(2), 0)


def test_figures_of_a_link_by_hand() -> None:
    def took(number: int) -> dict[str, Any]:
        parts_s = {"link": 0.001, "compute": 0.001 * number}
        return {"total_s": 0.01 * number, "parts_s": parts_s}

    whole, link, compute = link_rows("fibre", escalate_all(took, range(11), 1))
    figures = [whole[name] for name in ("p50_ms", "p95_ms", "longest_ms")]
    assert figures == pytest.approx([55.0, 95.5, 100.0])
    assert (link["part"], compute["p50_ms"]) == ("link", pytest.approx(5.5))
    result = {"candidates": 10, "links": [whole, link, compute]}
    assert [(one.what, one.met) for one in bars(result)] == [
        ("from candidate to verdict, fibre, p95", False)
    ]
    assert len(latency.table("links").of(result).cells) == 3
