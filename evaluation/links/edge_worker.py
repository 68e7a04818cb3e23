"""The edge's side of ``overread-eval link``: the agent's own line in a process of its own.

It is told what to do by lines of JSON on stdin and answers each with one on stdout:
``{"open": {settings}, "replay": false}`` opens the line, ``{"read": number, "from_files": true}``
reads a study. Most studies start from their lung box, which is kept in memory; with ``from_files``
from DICOM. With ``replay`` the screening network sees each box once, when the line opens. What a
report owes is kept in a spool, as the daemon does.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import structlog

from edge.assemble import open_pipeline
from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Assessment, Report
from edge.screen import EdgeReader, Screening
from edge.settings import EdgeSettings, load_settings
from edge.store.pending import PersistPending, keep_in
from edge.store.studies import Spool
from evaluation.accuracy.nodules import score_scan
from evaluation.accuracy.reports import ledger_s, refusal
from evaluation.links.studies import Prepared, prepare, prepared_specs
from evaluation.timing.latency import scheduler_delay
from imaging.preprocess import Preprocessed
from imaging.volume import Study, Volume
from models.runtime.detection import Candidate

Opens = Callable[[EdgeSettings], AbstractContextManager[Pipeline]]
"""Opens the line of these settings."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A study as the first two stages leave it."""

    study: Study
    box: Preprocessed


class Studies:
    """The prepared studies of one process, and their lung boxes once they are needed."""

    def __init__(self, prepared: Sequence[Prepared]) -> None:
        self._prepared = list(prepared)
        self._kept: dict[Path, Kept] = {}

    def study(self, number: int) -> Prepared:
        """The study that is read as the ``number``-th; they take turns."""
        return self._prepared[number % len(self._prepared)]

    def keep(self, line: Pipeline) -> None:
        """Reads and preprocesses all of them, as ``line`` does; once."""
        for one in self._prepared[len(self._kept) :]:
            study = line.read(one.folder)
            self._kept[one.folder] = Kept(study, line.preprocess(study.volume, one.folder))

    def replayed(self, line: Pipeline) -> Pipeline:
        """The line whose screening network says again what it said of each box that is kept."""
        seen = [(kept.box, line.reader.screen(kept.box)) for kept in self._kept.values()]
        return replace(
            line, reader=replace(line.reader, screener=_Seen(line.reader.screener, seen))
        )

    def from_memory(self, line: Pipeline) -> Pipeline:
        """The line whose first two stages give what is kept."""

        def read(folder: Path) -> Study:
            return self._kept[folder].study

        def preprocess(_volume: Volume, folder: Path) -> Preprocessed:
            return self._kept[folder].box

        return replace(line, read=read, preprocess=preprocess)


class _Seen:
    """A screening network that has seen some boxes, and runs for others only."""

    def __init__(
        self, screener: Screening, seen: Sequence[tuple[Preprocessed, tuple[Candidate, ...]]]
    ) -> None:
        self._screener, self._seen = screener, {id(box): found for box, found in seen}
        self.name, self.version = screener.name, screener.version
        self.engine, self.settings = screener.engine, screener.settings

    def screen(self, box: Preprocessed) -> Sequence[Candidate]:
        """What was seen in this very box, or what is seen now."""
        found = self._seen.get(id(box))
        return self._screener.screen(box) if found is None else found


def answers(
    commands: Iterable[str], studies: Studies, out: Path, opens: Opens = open_pipeline
) -> Iterator[dict[str, Any]]:
    """The answer to each command; reports are left in ``out``, each in place of the last."""
    with Spool(out.with_suffix(".sqlite3")) as spool, ExitStack() as held:
        line: Pipeline | None = None
        for command in map(json.loads, commands):
            if "open" in command:
                held.close()
                settings = load_settings(**command["open"])
                line = held.enter_context(opens(settings))
                studies.keep(line)
                line = studies.replayed(line) if command.get("replay") else line
                side = settings.roi_side
                keep = keep_in(spool.owed, (side, side, side))
                yield {"opened": line.reader.label}
            elif line is not None:
                used = line if command["from_files"] else studies.from_memory(line)
                yield _read(used, studies.study(command["read"]), out, keep, spool)


def _read(
    line: Pipeline, study: Prepared, out: Path, keep: PersistPending, spool: Spool
) -> dict[str, Any]:
    """One study through the line, timed from outside, and compared with its truth."""
    made: list[Assessment] = []

    def noted(
        report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed
    ) -> None:
        made.append(assessment)
        keep(report, assessment, reader, box)

    began_s = time.monotonic()
    with scheduler_delay() as delay:
        noting = replace(line, persist_pending=noted)
        report = read_and_report(noting, Job(study.folder, out)).report
        took_s = time.monotonic() - began_s
    spool.owed.forget(report.study_key)
    marks = [(finding.centre_mm, finding.probability) for finding in report.findings]
    scores = score_scan(study.folder.name, marks, study.lesions, study.ignored, rim_mm=0.0)
    return {
        "took_s": took_s,
        "stalled_s": delay.took_s,
        "stages_s": ledger_s(report),
        "lesions": len(study.lesions),
        "found": int((scores.lesion_score >= 0).sum()),
        "false": int(scores.false_score.size),
        "escalated": sum(len(assessment.plan.send) for assessment in made),
        "answered": sum(len(assessment.answers.verdicts) for assessment in made),
        "reason": report.second_reading_reason,
        "second_reading": report.second_reading.value,
        "refused": refusal(report),
    }


def serve(
    count: int, seed: int, cache: Path, commands: TextIO, told: TextIO, opens: Opens = open_pipeline
) -> None:
    """Answers until ``commands`` end."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    studies = Studies(prepare(prepared_specs(count, seed), cache))
    with tempfile.TemporaryDirectory(prefix="overread-link-") as folder:
        for answer in answers(commands, studies, Path(folder, "report"), opens):
            told.write(f"{json.dumps(answer)}\n")
            told.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.stdin, sys.stdout)
