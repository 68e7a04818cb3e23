"""The line as its settings put it together."""

from __future__ import annotations

import pytest
import structlog

from edge import assemble
from edge.assemble import open_line
from edge.escalate import NoSecondReader
from edge.exchange import cut_rois
from edge.replay import decided, decided_on_record
from edge.settings import EdgeSettings
from protos.deadline import Deadline
from tests.edge.cases import SHAPE, FixedScreener, box, plan_of
from tests.edge.fake_cloud import FakeCloud


@pytest.fixture(autouse=True)
def _fixed_screener(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is opened."""
    monkeypatch.setattr(assemble, "open_screener", lambda *_, **__: FixedScreener(()))


def test_decisions_are_on_record_where_logs_are_for_machines() -> None:
    """With JSON logs every decision is told, with logs for people none is."""
    with open_line(EdgeSettings(log_format="json")) as line:
        assert line.decide is decided_on_record
    with open_line(EdgeSettings(log_format="text")) as line:
        assert line.decide is decided


def test_without_a_cloud_nobody_reads_again() -> None:
    """The stand-in takes the place of the second reader."""
    with open_line(EdgeSettings()) as line:
        assert isinstance(line.second_reader, NoSecondReader)


def test_the_hedge_answers_for_a_cloud_that_is_gone() -> None:
    """Both addresses are opened, each with its own link."""
    with FakeCloud() as gone:
        pass
    with FakeCloud() as other:
        settings = EdgeSettings(cloud=gone.address, cloud_hedge=other.address)
        with open_line(settings) as line:
            rois = cut_rois(plan_of(0.4), box(), SHAPE)
            came = line.second_reader.ask(rois, Deadline.after(60.0), "key")
    assert (list(came.verdicts), came.reason) == ([0], "")


def test_a_hedge_without_a_cloud_is_told() -> None:
    """Nobody should believe in a second reader that is never asked."""
    settings = EdgeSettings(cloud_hedge="reader.example:50051")
    with structlog.testing.capture_logs() as logs, open_line(settings) as line:
        assert isinstance(line.second_reader, NoSecondReader)
    assert [log["event"] for log in logs] == ["cloud_hedge is never asked: cloud is not set"]
