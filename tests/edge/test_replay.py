from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from edge.decide import Situation, decide
from edge.link.estimate import OFF, LinkEstimate, Pace
from edge.link.link import Link
from edge.replay import EVENT, decide_and_log, replay
from edge.selection import SelectionPolicy, Size
from tests.edge.builders import THRESHOLDS, HandClock, candidate

THIN = LinkEstimate.steady(Pace(0.1, 100_000, 1e6, 0.0, 0.02))


def situation(link: LinkEstimate, budget_s: float = 1.2) -> Situation:
    candidates = tuple(candidate(s, at=i) for i, s in enumerate((0.95, 0.5, 0.31, 0.7, 0.05)))
    return Situation(candidates, THRESHOLDS, link, budget_s, roi_bytes=48**3, max_rois=64)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    yield stream
    structlog.reset_defaults()


def missed() -> LinkEstimate:
    """What a link that was measured and then lost is estimated to be."""
    link = Link(failures=1, clock=HandClock())
    link.queue_reported(0.3)
    link.missed(100_000, 1 / 3)
    return link.estimate()


@pytest.mark.parametrize("link", [LinkEstimate(), THIN, OFF, missed()])
def test_a_decision_is_made_again_from_its_line(logged: io.StringIO, link: LinkEstimate) -> None:
    plan = decide_and_log(situation(link), "key-1")
    (line,) = logged.getvalue().splitlines()
    assert replay(line) == plan == decide(situation(link))
    assert json.loads(line)["plan"]["send"] == list(plan.send)
    assert json.loads(line)["study_key"] == "key-1"


def test_the_line_holds_all_that_was_decided_on(logged: io.StringIO) -> None:
    decide_and_log(situation(THIN), "key-1")
    line = json.loads(logged.getvalue())
    told = line["situation"]
    assert [c["score"] for c in told["candidates"]] == [0.95, 0.5, 0.31, 0.7, 0.05]
    assert told["thresholds"]["alone"] == 0.5
    assert told["link"]["slow"]["bytes_per_s"] == 100_000
    assert (told["budget_s"], told["policy"]["reduced"]) == (1.2, 0.94)
    assert line["plan"] == {
        "routes": ["report", "escalate", "escalate", "escalate", "dismiss"],
        "send": [1, 2, 3],
        "sizes": ["reduced", "reduced", "reduced"],
        "later": [],
        "held_back": "the link was fast enough for 3 in the 1.2 s left",
        "audit": [],
    }


def test_another_policy_can_be_tried_on_the_same_day(logged: io.StringIO) -> None:
    decide_and_log(situation(THIN, budget_s=1.3), "key-1")
    plan = replay(logged.getvalue(), SelectionPolicy(reduced=0.1, slab=0.01))
    assert (plan.send, plan.sizes) == ((1,), (Size.FULL,))
    assert plan.later == (2, 3)


def test_an_audit_is_replayed(logged: io.StringIO) -> None:
    """The line tells that the scan was sampled; one of an older program tells that it was not."""
    faint = (candidate(0.05), candidate(0.09, at=1))
    audit = replace(situation(LinkEstimate()), candidates=faint, audited=True)
    assert decide_and_log(audit, "key-1").audit == (1, 0)
    line = json.loads(logged.getvalue())
    assert replay(json.dumps(line)).send == (1, 0)
    del line["situation"]["audited"]
    assert replay(json.dumps(line)).send == ()


def test_another_line_is_refused() -> None:
    assert EVENT == "decided"
    with pytest.raises(ValueError, match="'stopped' is no decision"):
        replay(json.dumps({"event": "stopped"}))
