"""The traces of an agent: a refused study, retries that amend, and results of a folder study."""

import threading
from pathlib import Path

from edge.run import run_agent
from evaluation.world import settings_in
from process.tracing import root_span_id
from tests.edge.builders import ForgetfulCloud, put
from tests.edge.running_agent import quick_read, unfinished, wait_until
from tests.traces import Seen, spans_in


def test_retries_and_refusals_are_spans_of_their_studies(tmp_path: Path) -> None:
    """A retry without an answer, one with half of them, one with the rest; and a refusal."""
    put(tmp_path / "inbox", "a", "pending")
    put(tmp_path / "inbox", "b", "bad")
    settings = settings_in(tmp_path, traces=str(tmp_path / "t.jsonl"))
    stop, out = threading.Event(), tmp_path / "outbox"
    agent = threading.Thread(
        target=run_agent,
        args=(settings,),
        kwargs={"read": quick_read, "second": ForgetfulCloud(tmp_path / "asked"), "stop": stop},
    )
    agent.start()
    try:
        wait_until(lambda: (out / "b" / "report.json").is_file())
        wait_until(lambda: (out / "a" / "report.v1.json").is_file() and unfinished(tmp_path) == 0)
    finally:
        stop.set()
        agent.join()
    spans = spans_in(tmp_path / "t.jsonl")
    roots = {one.trace_id: one for one in spans if one.name == "study"}
    assert sorted(root.attributes["overread.status"] for root in roots.values()) == [
        "provisional",
        "rejected",
    ]
    assert all(root.span_id == root_span_id(key) for key, root in roots.items())
    (refused,) = [one for one in roots.values() if "overread.kind" in one.attributes]
    assert refused.attributes["overread.kind"] == "NotCt"
    retries = [one for one in spans if one.name == "amend"]
    assert [verdicts(one) for one in retries] == ["0", "1", "1"]
    assert {roots[one.trace_id].attributes["overread.status"] for one in retries} == {"provisional"}
    assert all(one.parent_id == root_span_id(one.trace_id) for one in retries)
    # without a receiver a study begins with its claim
    assert {"receive", "inbox"} & {one.name for one in spans} == set()
    waits = {one.trace_id: one for one in spans if one.name == "wait"}
    assert {key: one.start_s for key, one in waits.items()} == {
        key: root.start_s for key, root in roots.items()
    }
    assert str(tmp_path) not in (tmp_path / "t.jsonl").read_text()


def verdicts(span: Seen) -> str:
    return str(span.attributes["overread.verdicts"])
