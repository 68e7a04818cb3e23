"""An edge that reads on command, in a process of its own: the agent's own pipeline.

Each command is a line of JSON on stdin, each answer one on stdout. ``{"open": {settings},
"replay": false}`` opens the pipeline; ``{"read": number, "from_files": true}`` reads a study. With
``from_files`` a study is read from DICOM, else from its lung box in memory. With ``replay`` the
screening network sees each box once, when the pipeline opens. Pending reads are persisted as in
the agent. `edge_process` starts it, `EdgeProcess` speaks to it.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from edge.assemble import open_pipeline
from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.reader import EdgeReader, Screening
from edge.report.compose import Assessment
from edge.report.model import Report
from edge.settings.core import EdgeSettings, load_settings
from edge.store.pending import PersistPending, persist_in
from edge.store.studies import StudyStore
from evaluation.accuracy.detect import ledger_s, refusal
from evaluation.accuracy.truth import score_scan, truth_of
from evaluation.errors import ServiceFailed
from evaluation.links.scheduler_delay import scheduler_delay_s
from evaluation.phantoms import Prepared, prepare, whole_chest
from evaluation.world import log_tail, status_text
from imaging.preprocess import Preprocessed
from imaging.volume import Study, Volume
from models.runtime.detection import Candidate

OFF = "off"
"""In place of a cloud's address: no cloud, the edge alone."""

Opens = Callable[[EdgeSettings], AbstractContextManager[Pipeline]]
"""Opens the pipeline of these settings."""


class EdgeProcess:
    """An edge in another process: commands and answers are lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        """Open the pipeline with these settings; return the name of the model.

        With ``replay`` the screening network reads each study once, now.
        """
        return str(self._answer({"open": settings, "replay": replay})["opened"])

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        """Return the result of one study, as `evaluation.links.edge_worker` gives it."""
        return self._answer({"read": number, "from_files": from_files})

    def escalate(self, number: int) -> dict[str, Any]:
        """Return the times of one candidate, as `evaluation.timing.detection_worker` gives them."""
        return self._answer({"escalate": number})

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{json.dumps(command)}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = status_text(self._process.wait())
            raise ServiceFailed(f"the edge ended with {status}\n{log_tail(self._log)}")
        return dict(json.loads(answer))


@contextmanager
def edge_process(
    count: int, seed: int, cache: Path, log: Path,
    program: Sequence[str] = ("evaluation.links.edge_worker",),
) -> Iterator[EdgeProcess]:  # fmt: skip
    """Run an edge with ``count`` prepared studies of ``cache`` for the time of the context.

    Raises:
        ServiceFailed: it ended during a command.
    """
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", *program, str(count), str(seed), str(cache)]
    pipe = subprocess.PIPE
    with (
        log.open("wb") as lines,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=lines, text=True) as process,
    ):
        try:
            yield EdgeProcess(process, log)
        except BaseException:
            process.kill()
            raise


class Studies:
    """The prepared studies of one process, and their lung boxes after `load`."""

    def __init__(self, prepared: Sequence[Prepared]) -> None:
        self._prepared = list(prepared)
        self._loaded: dict[Path, tuple[Study, Preprocessed]] = {}

    def study(self, number: int) -> Prepared:
        """Return the study to read as the ``number``-th; they are used in turn."""
        return self._prepared[number % len(self._prepared)]

    def scan_bytes(self, study: Prepared) -> int:
        """Return the size of its voxels; 0 where they are not in memory."""
        loaded = self._loaded.get(study.folder)
        return loaded[0].volume.hu.nbytes if loaded else 0

    def load(self, pipeline: Pipeline) -> None:
        """Read and preprocess all studies, once."""
        for one in self._prepared[len(self._loaded) :]:
            study = pipeline.read(one.folder)
            self._loaded[one.folder] = study, pipeline.preprocess(study.volume, one.folder)

    def replayed(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline with a screening network that repeats its candidates of each box."""
        reader = pipeline.reader
        seen = {id(box): reader.screen(box) for _, box in self._loaded.values()}
        return replace(pipeline, reader=replace(reader, screener=_Replay(reader.screener, seen)))

    def from_memory(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline with first stages that give the loaded boxes."""

        def read(folder: Path) -> Study:
            return self._loaded[folder][0]

        def preprocess(_volume: Volume, folder: Path) -> Preprocessed:
            return self._loaded[folder][1]

        return replace(pipeline, read=read, preprocess=preprocess)


class _Replay:
    """A screening network that repeats its candidates of some boxes, and runs for others."""

    def __init__(self, screener: Screening, seen: Mapping[int, Sequence[Candidate]]) -> None:
        self._screener, self._seen = screener, seen
        self.name, self.version = screener.name, screener.version
        self.engine, self.settings = screener.engine, screener.settings

    def screen(self, box: Preprocessed) -> Sequence[Candidate]:
        """Return the candidates of this very box."""
        found = self._seen.get(id(box))
        return self._screener.screen(box) if found is None else found


def answers(
    commands: Iterable[str], studies: Studies, out: Path, opens: Opens = open_pipeline
) -> Iterator[dict[str, Any]]:
    """Answer each command; ``out`` holds the last report."""
    with StudyStore(out.with_suffix(".sqlite3")) as store, ExitStack() as held:
        pipeline: Pipeline | None = None
        for command in map(json.loads, commands):
            if "open" in command:
                held.close()
                settings = load_settings(**command["open"])
                pipeline = held.enter_context(opens(settings))
                studies.load(pipeline)
                pipeline = studies.replayed(pipeline) if command.get("replay") else pipeline
                keep = persist_in(store.pending)
                yield {"opened": pipeline.reader.label}
            elif pipeline is not None:
                used = pipeline if command["from_files"] else studies.from_memory(pipeline)
                study = studies.study(command["read"])
                read = _read(used, study, out, keep, store)
                yield {"scan_bytes": studies.scan_bytes(study), **read}


def _read(
    pipeline: Pipeline, study: Prepared, out: Path, keep: PersistPending, store: StudyStore
) -> dict[str, Any]:
    """Run one study through the pipeline, time it from outside, and compare it with its truth."""
    made: list[Assessment] = []

    def noted(
        report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed
    ) -> None:
        made.append(assessment)
        keep(report, assessment, reader, box)

    began_s, delay_s = time.monotonic(), scheduler_delay_s()
    noting = replace(pipeline, persist_pending=noted)
    report = read_and_report(noting, Job(study.folder, out)).report
    took_s, delay_s = time.monotonic() - began_s, scheduler_delay_s() - delay_s
    store.pending.discard(report.study_key)
    findings = [(finding.centre_mm, finding.probability) for finding in report.findings]
    truth = truth_of(study.nodules)
    scores = score_scan(findings, truth, rim_mm=0.0)
    return {
        "took_s": took_s,
        "scheduler_delay_s": delay_s,
        "stages_s": ledger_s(report),
        "lesions": len(truth.lesions),
        "found": scores.found,
        "false": scores.false_score.size,
        "escalated": sum(len(assessment.plan.send) for assessment in made),
        "answered": sum(len(assessment.answers.verdicts) for assessment in made),
        "reason": report.second_reading_reason,
        "second_reading": report.second_reading.value,
        "refused": refusal(report),
    }


def main(count: int, seed: int, cache: Path) -> None:
    """Answer until stdin ends."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    specs = map(whole_chest, range(seed, seed + count))
    studies = Studies(prepare(specs, cache))
    with tempfile.TemporaryDirectory(prefix="overread-link-") as folder:
        for answer in answers(sys.stdin, studies, Path(folder, "report")):
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
