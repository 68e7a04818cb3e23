"""The agent reads the next study ahead: one that waits, or one that still arrives."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from edge.agent.loop import SETTLED_S
from edge.folders import DONE, RECEIVED
from imaging.dicom.writer import write_series
from imaging.isolation.in_turn import ReadersInTurn
from tests.edge.builders import report_in, settings_in
from tests.edge.running_agent import running, wait_until
from tests.evaluation.plain_chest import chest


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_series(chest(), folder)
    return folder


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What is begun, by its place and for how long it must be settled; what is read so."""
    told: list[tuple[object, ...]] = []
    begin, read = ReadersInTurn.begin, ReadersInTurn.read

    def begun(readers: ReadersInTurn, path: Path, settled_s: float) -> None:
        told.append(("begun", path.name, path.parent.name == "inbox", settled_s))
        begin(readers, path, settled_s)

    def reads(readers: ReadersInTurn, path: Path, **rest: Any) -> object:
        told.append(("read", path.name, readers.has_begun(path)))
        return read(readers, path, **rest)

    monkeypatch.setattr(ReadersInTurn, "begin", begun)
    monkeypatch.setattr(ReadersInTurn, "read", reads)
    return told


def answered(root: Path, name: str) -> bool:
    return (root / "outbox" / name / "report.json").is_file()


@pytest.mark.parametrize(("received", "settled_s"), [(True, 0.0), (False, SETTLED_S)])
def test_a_study_that_still_arrives_is_read_ahead(
    received: bool, settled_s: float, series: Path, tmp_path: Path, told: list[tuple[object, ...]]
) -> None:
    first, *rest = sorted(series.iterdir())
    study = tmp_path / "inbox" / "a"
    with running(settings_in(tmp_path, quiet_s=60.0, poll_s=0.02)):
        (study / "1").mkdir(parents=True)
        if received:
            (study / "1" / RECEIVED).write_text('{"way": "dicom"}')
        shutil.copy(first, study / "1")
        wait_until(lambda: bool(told))
        for file in rest:
            shutil.copy(file, study / "1")
        (study / DONE).touch()
        wait_until(lambda: answered(tmp_path, "a"))
    assert told == [("begun", "a", True, settled_s), ("read", "a", True)]
    assert report_in(tmp_path, "a")["status"] == "final"


def test_the_next_of_several_is_read_while_the_cloud_reads(
    series: Path, tmp_path: Path, told: list[tuple[object, ...]]
) -> None:
    for name in "abc":
        shutil.copytree(series, tmp_path / "inbox" / name)
        (tmp_path / "inbox" / name / DONE).touch()
    with running(settings_in(tmp_path)):
        wait_until(lambda: all(answered(tmp_path, name) for name in "abc"))
    assert told == [
        ("read", "a", False),
        ("begun", "b", False, 0.0),
        ("read", "b", True),
        ("begun", "c", False, 0.0),
        ("read", "c", True),
    ]


def test_files_that_replace_those_read_ahead_make_their_own_report(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All names, sizes and times stay the same: only the patient is another."""
    patients = {}
    for patient in ("FIRST", "OTHER"):
        shutil.copytree(series, patients.setdefault(patient, tmp_path / patient))
        for file in patients[patient].iterdir():
            image = dcmread(file)
            image.PatientID = patient
            image.save_as(file)
    monkeypatch.setattr("edge.agent.loop.SETTLED_S", 0.0)
    taken = list[object]()
    begin = ReadersInTurn.begin
    monkeypatch.setattr(ReadersInTurn, "begin", lambda *args: (begin(*args), taken.append(args)))
    study = tmp_path / "inbox" / "a"
    with running(settings_in(tmp_path, quiet_s=60.0, poll_s=0.02)):
        shutil.copytree(patients["FIRST"], study)
        wait_until(lambda: bool(taken))
        time.sleep(1.0)  # it reads ahead
        for file in sorted(study.iterdir()):
            status = file.stat()
            file.write_bytes((patients["OTHER"] / file.name).read_bytes())
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        (study / DONE).touch()
        wait_until(lambda: answered(tmp_path, "a"))
    assert report_in(tmp_path, "a")["study"]["patient_id"] == "OTHER"
