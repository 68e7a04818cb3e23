"""Takes steps of a study in the source tree of PYTHONPATH, for `evaluation.timing.latency`.

It runs by its path, and knows only what the trees of two commits share. Each line of its input is
a step and its argument in JSON. The answer is the seconds of CPU and of the clock, and the stages.
"""

import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import imagecodecs
import pydicom

from edge.assemble import open_pipeline
from edge.job import Job
from edge.pipeline import read_and_report
from edge.settings.core import load_settings
from imaging.isolation.in_turn import ReadersInTurn
from imaging.isolation.reader import ReadLimits
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.roi import cut_roi
from imaging.volume import WINDOW_HU
from models.runtime.screener import open_screener
from protos.deadline import Deadline
from protos.messages import Roi

REGIONS = {"region": 1, "regions": 23}

ARRIVAL_S = 1.5
"""A series but for its last slice arrives in this time, and is read."""


@dataclass(frozen=True)
class Step:
    """What takes a step, and what comes before and is not timed."""

    run: Callable[[], Any]
    before: Callable[[], None] = lambda: None


@cache
def _pipeline(cloud: str, held: ExitStack) -> Any:
    settings = load_settings(cloud__address=cloud, deadline_s=60.0)
    return held.enter_context(open_pipeline(settings))


@cache
def prepared(step: str, path: str, cloud: str, held: ExitStack) -> Step:
    """Open and read what a step needs."""
    study = Path(path)
    if step == "read":
        return Step(partial(read_study, study))
    if step == "decode":  # JPEG-LS, and nothing else
        files = [pydicom.dcmread(file) for file in sorted(study.glob("*.dcm"))]
        frames = [next(pydicom.encaps.generate_frames(one.PixelData)) for one in files]
        return Step(lambda: list(map(imagecodecs.jpegls_decode, frames)))
    if step in ("study", "alone"):
        line = _pipeline(cloud if step == "study" else "off", held)
        out = Path(held.enter_context(tempfile.TemporaryDirectory()))
        return Step(partial(_report, line, study, out))
    volume, screener = read_study(study).volume, open_screener("screening-int8")
    if step == "arrive":
        return _arriving(study, screener, held)
    if step == "detect":
        return Step(lambda: screener.screen(preprocess(volume, study)))
    box = preprocess(volume, study)
    if step == "box":
        return Step(partial(screener.screen, box))
    rois = [
        Roi(
            n, cut_roi(box.voxels, candidate.index_zyx), (1.0, 1.0, 1.0), WINDOW_HU, candidate.score
        )
        for n, candidate in enumerate(screener.screen(box)[: REGIONS[step]])
    ]
    return Step(partial(_verdicts, _pipeline(cloud, held).second_reader, rois))


def _arriving(study: Path, screener: Any, held: ExitStack) -> Step:
    """Find the candidates of a study of which the last slice has just arrived."""
    readers = held.enter_context(ReadersInTurn(ReadLimits(3500)))
    *files, last = sorted(study.glob("*.dcm"))
    root, folders = held.enter_context(tempfile.TemporaryDirectory()), list[Path]()

    def before() -> None:
        for file in folders[-1].iterdir() if folders else ():
            file.unlink()
        folders.append(Path(tempfile.mkdtemp(dir=root)))  # none of a number that was used before
        readers.begin(folders[-1], 0.0)
        for file in files:
            shutil.copyfile(file, folders[-1] / file.name)
        time.sleep(ARRIVAL_S)

    def run() -> None:
        shutil.copyfile(last, folders[-1] / last.name)
        volume = readers.read(folders[-1]).volume
        screener.screen(readers.preprocess(volume, folders[-1]))

    return Step(run, before)


def _report(line: Any, study: Path, out: Path) -> dict[str, float]:
    report = read_and_report(line, Job(study, out)).report
    if report.rejection is not None or report.second_reading.value not in ("complete", "off"):
        raise SystemExit(f"{study}: {report.rejection} {report.second_reading_reason}")
    return {entry.stage: entry.took_s for entry in report.ledger}


def _verdicts(second: Any, rois: list[Roi]) -> None:
    found = second.read_rois(rois, Deadline.after(60.0), uuid.uuid4().hex)
    if len(found.verdicts) < len(rois):
        raise SystemExit(f"{len(found.verdicts)} of {len(rois)} regions: {found.reason}")


def main(cloud: str) -> None:
    """Take the steps that the input names, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the program logs is no answer
    with ExitStack() as held:
        for line in sys.stdin:
            step, path = json.loads(line)
            taken = prepared(step, path, cloud, held)
            taken.before()
            cpu_s, began_s = time.process_time(), time.perf_counter()
            found = taken.run()
            took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
            stages_s = found if step == "study" else {}
            answer = {"cpu_s": cpu_s, "wall_s": took_s, "stages_s": stages_s}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
