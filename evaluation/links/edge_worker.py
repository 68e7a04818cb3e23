"""An edge that reads on command, in a process of its own: the agent's own pipeline.

Studies are read from DICOM, or start from their lung boxes in memory. With ``replay`` the screening
network sees each box once, when the pipeline opens. Pending reads are persisted as in the agent.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.amend.persist import persist_in
from edge.assemble import open_pipeline
from edge.database import Schema
from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.reader import EdgeReader
from edge.report.compose import Assessment
from edge.report.model import Report
from edge.settings.core import EdgeSettings, load_settings
from edge.store.studies import StudyStore
from evaluation.accuracy.detect import against_truth
from evaluation.accuracy.readers import ScreenedOnce
from evaluation.accuracy.truth import truth_of
from evaluation.phantoms import STUDIES, Prepared, prepare, whole_chest
from imaging.preprocess import Preprocessed
from imaging.volume import Study

PHANTOMS = 4
"""Different chests, read in turn."""

Opens = Callable[[EdgeSettings], AbstractContextManager[Pipeline]]
"""Opens the pipeline of these settings."""


class Edge:
    """An edge for prepared studies, which are read in turn; for `evaluation.world.apart`.

    ``work`` is a folder for its last report and its database.
    """

    def __init__(
        self, prepared: Sequence[Prepared], work: Path, opens: Opens = open_pipeline
    ) -> None:
        self._prepared, self._opens = list(prepared), opens
        self._out, self._held = work / "report", ExitStack()
        self._loaded: dict[Path, tuple[Study, Preprocessed]] = {}

    @classmethod
    def of_phantoms(cls, work: Path) -> "Edge":
        """Return an edge for some whole chests."""
        work.mkdir()
        return cls(prepare(map(whole_chest, range(PHANTOMS)), STUDIES), work)

    def close(self) -> None:
        """Close what `open` opened."""
        self._held.close()

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        """Open the pipeline with these settings; return the name of the model.

        With ``replay`` the screening network reads each study once, now.
        """
        self.close()
        values = load_settings(**settings)
        pipeline = self._held.enter_context(self._opens(values))
        for prepared in self._prepared[len(self._loaded) :]:
            study = pipeline.read(prepared.folder)
            box = pipeline.preprocess(study.volume, prepared.folder)
            self._loaded[prepared.folder] = study, box
            _ = box.measures  # they go with the process that read it
        if replay:
            reader = pipeline.reader
            boxes = (box for _, box in self._loaded.values())
            once = replace(reader, screener=ScreenedOnce(reader.screener, boxes))
            pipeline = replace(pipeline, reader=once)
        path = self._out.with_suffix(".sqlite3")
        self._store = self._held.enter_context(StudyStore(path, Schema()))
        self._keep = persist_in(self._store.pending)
        self._pipeline = pipeline
        return pipeline.reader.label

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        """Run one study through the pipeline, time it from outside, compare it with its truth."""
        study, made = self._prepared[number % len(self._prepared)], list[Assessment]()

        def noted(
            report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed
        ) -> None:
            made.append(assessment)
            self._keep(report, assessment, reader, box)

        pipeline = self._pipeline if from_files else self._from_memory(self._pipeline)
        began_s, delay_s = time.monotonic(), scheduler_delay_s()
        noting = replace(pipeline, persist_pending=noted)
        report = read_and_report(noting, Job(study.folder, self._out)).report
        took_s, delay_s = time.monotonic() - began_s, scheduler_delay_s() - delay_s
        self._store.pending.discard(report.study_key)
        return {
            "took_s": took_s,
            "scheduler_delay_s": delay_s,
            "escalated": sum(len(assessment.plan.send) for assessment in made),
            "answered": sum(len(assessment.answers.verdicts) for assessment in made),
            **against_truth(report, truth_of(study.nodules)),
        }

    def _from_memory(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline with first stages that give the loaded boxes."""
        return replace(
            pipeline,
            read=lambda folder: self._loaded[folder][0],
            preprocess=lambda _volume, folder: self._loaded[folder][1],
        )


def scheduler_delay_s(threads: Path = Path("/proc/self/task")) -> float:
    """Return the scheduler delay of this thread since it began; 0 where none is counted.

    It is the time for which the thread could have run but waited for a processor. Linux counts it
    for each thread (`schedstat`, the second number). It tells a slow program from a busy machine.
    What a hypervisor takes is not seen.
    """
    try:
        text = (threads / str(threading.get_native_id()) / "schedstat").read_text()
        return int(text.split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
