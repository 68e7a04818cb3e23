"""An agent with a quick line, to be killed: what the tests of the daemon are made of."""

from __future__ import annotations

import threading
from pathlib import Path

from edge.daemon.agent import ReadStudy, run_agent
from edge.job import Job
from edge.pipeline import StudyResult
from edge.report.model import Rejection, Report, Status
from edge.report.write import write_report
from edge.store.pending import PersistPending
from evaluation.recovery.agent import Crash, killing, settings_in
from tests.edge.owing import ForgetfulCloud, owing_line


class Stop(threading.Event):
    """The agent's stop, which leaves a file when the agent first asks whether it is set."""

    def __init__(self, asked: Path) -> None:
        super().__init__()
        self._asked = asked

    def is_set(self) -> bool:
        """Whether the agent is to stop."""
        self._asked.touch()
        return super().is_set()


def nothing_pending(*_: object) -> None:
    """Persist nothing."""


def put(inbox: Path, name: str, text: str = "pixels", done: bool = True) -> Path:
    """A study of two files in the inbox, marked as complete if ``done``."""
    folder = inbox / name
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.dcm").write_text(text)
    if done:
        (folder / ".done").touch()
    return folder


def quick_line(job: Job, persist: PersistPending = nothing_pending) -> StudyResult:
    """Does what the study's text says: ``bad`` is rejected, ``boom`` raises, ``owe`` owes."""
    text = "".join(path.read_text() for path in sorted(job.source.glob("*.dcm")))
    if "boom" in text:
        raise RuntimeError("a fault in the line")
    if "owe" in text:
        return owing_line(job, persist)
    rejection = Rejection("NotCt", "this is no CT", "0.dcm") if "bad" in text else None
    report = Report(
        study_key=job.study_key,
        created="2026-01-02T03:04:05+00:00",
        source=job.source,
        deadline_s=10.0,
        status=Status.REJECTED if rejection else Status.FINAL,
        rejection=rejection,
    )
    return StudyResult(report, write_report(report, {}, job.out))


def serve(root: Path, crash: Crash = None, read: ReadStudy = quick_line) -> None:
    """Run the agent in this process; it kills itself at the durable step ``crash``.

    ``started`` lies in ``root`` before it opens anything, ``watching`` once it obeys signals.
    """
    (root / "started").touch()
    run_agent(
        settings_in(root),
        read=read,
        second=ForgetfulCloud(root / "asked"),
        on_step=killing(crash),
        stop=Stop(root / "watching"),
    )
