"""What the agent says of itself: at its start, at /healthz and /readyz, and in traces."""

import threading
from importlib.metadata import version
from pathlib import Path

import pytest

from edge.job import Job
from edge.models import live
from edge.pipeline import PersistPending, StudyResult
from edge.run import STALLED_S, site_of
from edge.settings.core import load_settings
from evaluation.world import settings_in
from imaging.preprocess import Preprocessed
from models.runtime.detection import Candidate
from models.runtime.errors import ModelFailed
from process.tracing import root_span_id
from tests.edge.builders import FixedScreener, ForgetfulCloud, put
from tests.edge.running_agent import (
    config_in,
    quick_read,
    running,
    unfinished,
    wait_for_log,
    wait_until,
)
from tests.process.test_endpoints import get
from tests.traces import Seen, spans_in

METRICS = {"metrics_address": "127.0.0.1:0"}


def test_the_agent_says_at_its_start_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "open_configured", lambda *_, **__: FixedScreener(()))
    config = config_in(tmp_path, 'cloud.address = "127.0.0.1:1"')
    with running(load_settings(config)) as logs:
        said = wait_for_log(logs, "agent started")
    assert said["inbox"] == str(tmp_path / "inbox")
    assert said["outbox"] == str(tmp_path / "outbox")
    assert (said["cloud"], said["encryption"]) == ("127.0.0.1:1", "none")
    assert said["model"] == "fixed 1 (none)"
    assert (said["version"], said["settings"]) == (version("overread"), str(config))


def test_the_agent_is_ready_once_its_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's first box, an empty one, is read after that; a fault of it ends nothing."""
    loaded, looked = threading.Event(), threading.Event()

    class Slow(FixedScreener):
        def screen(self, box: Preprocessed) -> list[Candidate]:
            assert looked.wait(60), box
            raise ModelFailed("no memory")

    def slowly(*_: object, **__: object) -> FixedScreener:
        assert loaded.wait(60)
        return Slow(())

    monkeypatch.setattr(live, "open_configured", slowly)
    with running(settings_in(tmp_path, **METRICS)) as logs:
        address = wait_for_log(logs, "metrics served")["address"]
        status, body = get(address, "/readyz")
        assert (status, body["checks"]["model"]) == (503, "the model is being loaded")
        loaded.set()
        wait_until(lambda: get(address, "/readyz")[0] == 200)
        names = ["model", "inbox", "outbox", "state_dir", "database"]
        assert list(get(address, "/readyz")[1]["checks"]) == names
        looked.set()
        wait_for_log(logs, "model update failed")
        assert get(address, "/readyz")[0] == 200


def test_the_agent_is_not_ready_without_one_of_its_folders(tmp_path: Path) -> None:
    with running(settings_in(tmp_path, **METRICS), read=quick_read) as logs:
        address = wait_for_log(logs, "metrics served")["address"]
        wait_until(lambda: get(address, "/readyz")[0] == 200)
        (tmp_path / "outbox").rename(tmp_path / "gone")
        status, body = get(address, "/readyz")
        (tmp_path / "gone").rename(tmp_path / "outbox")
        assert get(address, "/readyz")[0] == 200
    assert status == 503
    assert body["checks"]["outbox"] == f"{tmp_path / 'outbox'}: No such file or directory"


def test_a_main_loop_that_hangs_is_not_alive(tmp_path: Path) -> None:
    """A study that takes long is progress for a while, not for ever."""
    now_s, entered, leave = [0.0], threading.Event(), threading.Event()

    def hang(job: Job, persist: PersistPending) -> StudyResult:
        entered.set()
        assert leave.wait(60)
        return quick_read(job, persist)

    put(tmp_path / "inbox", "a")

    def clock() -> float:
        return now_s[0]

    with running(settings_in(tmp_path, **METRICS), read=hang, clock=clock) as logs:
        address = wait_for_log(logs, "metrics served")["address"]
        for _ in range(500):
            now_s[0] += 1.0  # until the study counts as complete
            if entered.wait(0.05):
                break
        now_s[0] += STALLED_S
        assert get(address, "/healthz")[0] == 200
        now_s[0] += 60.0
        status, body = get(address, "/healthz")
        assert (status, body["checks"]["main loop"][:16]) == (503, "no progress for ")
        leave.set()
        wait_until(lambda: get(address, "/healthz")[0] == 200)


def test_a_database_that_is_none_does_not_answer(tmp_path: Path) -> None:
    site = site_of(settings_in(tmp_path))
    assert "unable to open" in site.problem()
    site.folders.make()
    site.database.write_text("no database" * 1000)
    assert site.problem() == f"{site.database}: file is not a database"


def test_retries_and_refusals_are_spans_of_their_studies(tmp_path: Path) -> None:
    """A retry without an answer, one with half of them, one with the rest; and a refusal."""
    put(tmp_path / "inbox", "a", "pending")
    put(tmp_path / "inbox", "b", "bad")
    settings = settings_in(tmp_path, traces=str(tmp_path / "t.jsonl"))
    out, cloud = tmp_path / "outbox", ForgetfulCloud(tmp_path / "asked")
    with running(settings, read=quick_read, second=cloud):
        wait_until(lambda: (out / "b" / "report.json").is_file())
        wait_until(lambda: (out / "a" / "report.v1.json").is_file() and unfinished(tmp_path) == 0)
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
