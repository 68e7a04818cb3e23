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
from functools import cache
from pathlib import Path
from typing import Any

CLOUD = sys.argv[1] if __name__ == "__main__" else ""
"""Address of the cloud."""

ARRIVAL_S = 1.5
"""A series but for its last slice arrives in this time, and is read."""

Step = Callable[[], Any]
"""Takes a step that is prepared; that of a whole study returns the seconds by stage."""

_held = ExitStack()


@cache
def _pipeline(cloud: str) -> Any:
    from edge.assemble import open_pipeline

    try:
        from edge.settings.core import load_settings

        settings = load_settings(cloud__address=cloud, deadline_s=60.0)
    except ImportError:  # before settings were nested
        from edge.settings import load_settings as load_flat  # type: ignore[attr-defined]

        settings = load_flat(cloud=cloud, deadline_s=60.0)
    return _held.enter_context(open_pipeline(settings))


@cache
def _screener() -> Any:
    from models.runtime.screener import open_screener

    return open_screener("screening-int8")


@cache
def _volume(path: str) -> Any:
    from imaging.read import read_study

    return read_study(Path(path)).volume


@cache
def _rois(path: str, count: int) -> Any:
    from imaging.preprocess import preprocess
    from imaging.roi import cut_roi
    from imaging.volume import WINDOW_HU
    from protos.messages import Roi

    box = preprocess(_volume(path), path)
    return [
        Roi(n, cut_roi(box.voxels, one.index_zyx), (1.0, 1.0, 1.0), WINDOW_HU, one.score)
        for n, one in enumerate(_screener().screen(box)[:count])
    ]


def read(path: str) -> Step:
    """Read the files of a study."""
    from imaging.read import read_study

    return lambda: read_study(Path(path))


def decode(path: str) -> Step:
    """Decode the JPEG-LS frames of a study, and nothing else."""
    import imagecodecs
    import pydicom

    files = [pydicom.dcmread(file) for file in sorted(Path(path).glob("*")) if file.is_file()]
    frames = [next(pydicom.encaps.generate_frames(one.PixelData)) for one in files]
    return lambda: [imagecodecs.jpegls_decode(one) for one in frames]


def detect(path: str) -> Step:
    """Find the candidates of a volume in HU."""
    from imaging.preprocess import preprocess

    volume, screener = _volume(path), _screener()
    return lambda: screener.screen(preprocess(volume, path))


def arrive(path: str) -> Step:
    """Find the candidates of a study of which the last slice has just arrived.

    An earlier program, which reads nothing ahead, gets the whole volume in HU.
    """
    try:
        from imaging.isolation.in_turn import ReadersInTurn
    except ImportError:
        return detect(path)
    from imaging.isolation.reader import ReadLimits

    readers, screener = _held.enter_context(ReadersInTurn(ReadLimits(3500))), _screener()
    *files, last = (file for file in sorted(Path(path).iterdir()) if file.is_file())
    folder = Path(_held.enter_context(tempfile.TemporaryDirectory())) / "arriving"

    def run() -> None:
        (folder / last.name).write_bytes(last.read_bytes())
        volume = readers.read(folder).volume
        screener.screen(readers.preprocess(volume, folder))

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        readers.begin(folder, 0.0)
        for file in files:
            shutil.copyfile(file, folder / file.name)
        time.sleep(ARRIVAL_S)

    run.prepare = prepare  # type: ignore[attr-defined]
    return run


def study(path: str, cloud: str = CLOUD) -> Step:
    """Read a study from its files to its report."""
    from edge.job import Job
    from edge.pipeline import read_and_report

    pipeline, out = _pipeline(cloud), _held.enter_context(tempfile.TemporaryDirectory())

    def run() -> dict[str, float]:
        report = read_and_report(pipeline, Job(Path(path), Path(out))).report
        if report.rejection is not None or (
            cloud != "off" and report.second_reading.value != "complete"
        ):
            raise SystemExit(f"{path}: {report.rejection} {report.second_reading_reason}")
        return {entry.stage: entry.took_s for entry in report.ledger}

    return run


def alone(path: str) -> Step:
    """Read a study without a cloud."""
    return study(path, "off")


def regions(path: str, count: int = 23) -> Step:
    """Have the cloud read the strongest candidates of a study."""
    from protos.deadline import Deadline

    rois, second = _rois(path, count), _pipeline(CLOUD).second_reader

    def run() -> None:
        found = second.read_rois(rois, Deadline.after(60.0), uuid.uuid4().hex)
        if len(found.verdicts) < count:
            raise SystemExit(f"{len(found.verdicts)} of {count} regions: {found.reason}")

    return run


def region(path: str) -> Step:
    """Have the cloud read the strongest candidate of a study."""
    return regions(path, 1)


def main() -> None:
    """Take the steps that the input names, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the program logs is no answer
    every = (read, decode, detect, arrive, study, alone, region, regions)
    steps = {one.__name__: cache(one) for one in every}
    with _held:
        for line in sys.stdin:
            name, argument = json.loads(line)
            run = steps[name](argument)
            getattr(run, "prepare", lambda: None)()
            cpu_s, began_s = time.process_time(), time.perf_counter()
            found = run()
            took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
            stages = found if name == "study" else {}
            answer = {"cpu_s": cpu_s, "wall_s": took_s, "stages_s": stages}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
