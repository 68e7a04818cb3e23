"""What the agent says of itself: at its start, and at /healthz and /readyz."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge.checks import database_problem, folder_problem
from edge.job import Job
from edge.models import live
from edge.pipeline import StudyResult
from edge.run import STALLED_S, run_agent
from edge.settings.core import EdgeSettings, load_settings
from edge.store.pending import PersistPending
from tests.edge.builders import FixedScreener, put
from tests.edge.running_agent import quick_read, wait_until
from tests.process.test_endpoints import get

Logs = list[Any]


@contextmanager
def running(settings: EdgeSettings, **parts: Any) -> Iterator[Logs]:
    """The agent in a thread, and what it logs; entered when it serves its checks."""
    stop = threading.Event()
    with structlog.testing.capture_logs() as logs:
        thread = threading.Thread(
            target=run_agent, args=(settings,), kwargs={"stop": stop, **parts}
        )
        thread.start()
        try:
            wait_until(lambda: any(log["event"] == "metrics served" for log in logs))
            yield logs
        finally:
            stop.set()
            thread.join()


def settings_below(root: Path, **more: object) -> EdgeSettings:
    folders = {name: root / name for name in ("inbox", "outbox", "state_dir")}
    return load_settings(
        **folders, metrics_address="127.0.0.1:0", poll_s=0.01, quiet_s=0.01, **more
    )


def event(logs: Logs, name: str) -> Any:
    return next(log for log in list(logs) if log["event"] == name)


def test_the_agent_says_at_its_start_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "open_configured", lambda *_, **__: FixedScreener(()))
    config = tmp_path / "edge.toml"
    lines = [f'{name} = "{tmp_path / name}"' for name in ("inbox", "outbox", "state_dir")]
    config.write_text(
        "\n".join([*lines, 'cloud.address = "127.0.0.1:1"', 'metrics_address = "127.0.0.1:0"'])
    )
    with running(load_settings(config)) as logs:
        wait_until(lambda: any(log["event"] == "agent started" for log in logs))
    said = event(logs, "agent started")
    assert said["inbox"] == str(tmp_path / "inbox")
    assert said["outbox"] == str(tmp_path / "outbox")
    assert (said["cloud"], said["encryption"]) == ("127.0.0.1:1", "none")
    assert said["model"] == "fixed 1 (none)"
    assert (said["version"], said["settings"]) == (version("overread"), str(config))


def test_the_agent_is_ready_once_its_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()

    def slowly(*_: object, **__: object) -> FixedScreener:
        assert loaded.wait(60)
        return FixedScreener(())

    monkeypatch.setattr(live, "open_configured", slowly)
    with running(settings_below(tmp_path)) as logs:
        address = event(logs, "metrics served")["address"]
        status, body = get(address, "/readyz")
        assert (status, body["checks"]["model"]) == (503, "the model is being loaded")
        loaded.set()
        wait_until(lambda: get(address, "/readyz")[0] == 200)
        names = ["model", "inbox", "outbox", "state_dir", "database"]
        assert list(get(address, "/readyz")[1]["checks"]) == names


def test_the_agent_is_not_ready_without_one_of_its_folders(tmp_path: Path) -> None:
    with running(settings_below(tmp_path), read=quick_read) as logs:
        address = event(logs, "metrics served")["address"]
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

    with running(settings_below(tmp_path), read=hang, clock=clock) as logs:
        address = event(logs, "metrics served")["address"]
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
    path = tmp_path / "spool.sqlite3"
    assert "unable to open" in database_problem(path)
    path.write_text("no database" * 1000)
    assert database_problem(path) == f"{path}: file is not a database"


def test_writing_to_find_out_leaves_nothing(tmp_path: Path) -> None:
    assert folder_problem(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
