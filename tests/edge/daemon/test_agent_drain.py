"""What two signals do to the daemon."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from edge.daemon.agent import draining
from edge.job import Job
from edge.pipeline import StudyResult
from edge.store.pending import PersistPending
from tests.edge.killable import put, quick_line, serve
from tests.edge.running_agent import PATIENCE_S, PROCESSES, drain, wait_until, whereabouts


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    """It dies of the signal, the study is read at the next start."""
    put(tmp_path / "inbox", "a")
    process = PROCESSES.Process(target=serve, args=(tmp_path, None, endless_line))
    process.start()
    wait_until(lambda: (tmp_path / "outbox" / "begun").exists())
    process.terminate()
    wait_until(lambda: (tmp_path / "outbox" / "told").exists())
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGTERM
    drain(tmp_path)
    assert whereabouts(tmp_path) == {"a": ["done"]}


def endless_line(job: Job, persist: PersistPending) -> StudyResult:
    """Never comes to an end; leaves a sign when it has begun and when it was told to stop."""
    (job.out.parent / "begun").touch()
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        time.sleep(0.001)
    (job.out.parent / "told").touch()
    time.sleep(PATIENCE_S)
    return quick_line(job, persist)


def test_a_signal_in_the_midst_of_a_wait_does_not_meet_the_events_lock() -> None:
    """The handler returns although the thread that it interrupts holds the event's lock."""
    stop = threading.Event()
    with draining(stop):
        with stop._cond:  # type: ignore[attr-defined]  # the lock that a wait holds
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(10)
