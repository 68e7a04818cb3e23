import io
import json
from dataclasses import replace
from importlib.metadata import version

import pytest

from edge.decide import Situation, decide
from edge.link.estimate import OFF, LinkEstimate, Pace
from edge.link.link import Link
from edge.replay import EVENT, decide_and_log, replay
from edge.selection import SelectionPolicy, Size
from process.logs import configure_logging
from tests.edge.builders import THRESHOLDS, HandClock, candidate

THIN = LinkEstimate.steady(Pace(0.1, 100_000, 1e6, 0.0, 0.02))


def situation(link: LinkEstimate, budget_s: float = 1.2) -> Situation:
    candidates = tuple(candidate(s, at=i) for i, s in enumerate((0.95, 0.5, 0.31, 0.7, 0.05)))
    return Situation(candidates, THRESHOLDS, link, budget_s, roi_bytes=48**3, max_rois=64)


class Log(io.StringIO):
    """A log that can be emptied."""

    def take(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@pytest.fixture(params=["text", "json"])
def logged(request: pytest.FixtureRequest) -> Log:
    stream = Log()
    configure_logging(request.param, stream)
    return stream


AS_JSON = pytest.mark.parametrize("logged", ["json"], indirect=True)


def missed() -> LinkEstimate:
    """What a link that was measured and then lost is estimated to be."""
    link = Link(failures=1, clock=HandClock())
    link.queue_reported(0.3)
    link.missed(100_000, 1 / 3)
    return link.estimate()


@pytest.mark.parametrize("link", [LinkEstimate(), THIN, OFF, missed()])
@pytest.mark.parametrize("before", ["", "Nov 26 10:00:00 host overread-edge[1]: "])
def test_a_decision_is_made_again_from_its_line(
    logged: Log, link: LinkEstimate, before: str
) -> None:
    plan = decide_and_log(situation(link), "key-1")
    (line,) = logged.take().splitlines()
    assert replay(before + line) == plan == decide(situation(link))
    assert "key-1" in line
    assert logged.take() == ""  # the same version made it: no warning


def test_another_policy_can_be_tried_on_the_same_day(logged: Log) -> None:
    decide_and_log(situation(THIN, budget_s=1.3), "key-1")
    plan = replay(logged.getvalue(), SelectionPolicy(reduced=0.1, slab=0.01))
    assert (plan.send, plan.sizes) == ((1,), (Size.FULL,))
    assert plan.later == (2, 3)


def test_a_decision_of_another_version_is_told(
    logged: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules may have differed; so may those of a program that did not log its version."""
    monkeypatch.setattr("edge.replay.version", lambda _name: "0.0.7")
    decide_and_log(situation(THIN), "key-1")
    line = logged.take()
    monkeypatch.undo()
    replay(line)
    told = logged.take()
    assert "another version made this decision" in told
    assert "0.0.7" in told
    assert version("overread") in told


@AS_JSON
def test_an_audit_is_replayed(logged: Log) -> None:
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
    with pytest.raises(ValueError, match="no decision, and no JSON: '2026"):
        replay("2026-11-26 [info     ] stopped")
