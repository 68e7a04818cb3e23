"""Later parts with which a study cannot be read: the report that was read stands."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from structlog.testing import capture_logs

from edge.agent import join, study
from edge.queue import queued, requeue
from edge.run import site_of
from edge.store.pending import PendingStep
from edge.store.record import Step
from evaluation.world import settings_in
from imaging.dicom.arrival import arrived, files_of
from imaging.read import read_study
from imaging.volume import Study
from tests.edge.builders import SilentCloud, Site, open_store, report_in
from tests.edge.running_agent import (
    Killed,
    Reader,
    a_version_for_each_verdict,
    database,
    killed,
    once_at,
    statuses,
    work_off,
)
from tests.imaging.small_ct import SmallCt

NUMBERED = SmallCt(count=20)
FIRST = {str(image.SOPInstanceUID) for image in NUMBERED.images()}


def files(path: Path) -> Study:
    """The real reader of files; the screener sees three places."""
    return replace(found := read_study(path), header=replace(found.header, age="060Y"))


def reader_with(second: Any = None) -> Reader:
    return Reader(files=files, second=second)


def send(root: Path, name: str, images: Sequence[Dataset]) -> Path:
    folder = root / "inbox" / name
    SmallCt().write(folder, list(images))
    (folder / ".done").touch()
    return folder


def changed(image: Dataset, uid: int, shift: int = 1, **attributes: object) -> Dataset:
    """Another image: its own SOP Instance UID, and pixels that differ by ``shift``."""
    image.SOPInstanceUID = f"1.2.826.0.7.{uid}"
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    pixels = np.frombuffer(image.PixelData, "<i2") + np.int16(shift)
    image.PixelData = pixels.astype("<i2").tobytes()
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def some(count: int = 1, **given: Any) -> Callable[[], list[Dataset]]:
    return lambda: [changed(one, i, **given) for i, one in enumerate(NUMBERED.images()[:count])]


def beyond(**given: Any) -> Callable[[], list[Dataset]]:
    """The slice that would follow, and another one that is not as it should be."""
    last, odd = SmallCt(count=22).images()[20:]
    return lambda: [last, changed(odd, 1, **given)]


def half() -> list[Dataset]:
    (image,) = some()()
    image.PixelData = image.PixelData[: len(image.PixelData) // 2]
    return [image]


def moved(mm: tuple[float, float, float]) -> Callable[[], list[Dataset]]:
    return some(ImagePositionPatient=list(mm))


DERIVED = ["DERIVED", "SECONDARY", "AXIAL"]
UNREADABLE: dict[str, Callable[[], list[Dataset]]] = {
    "stray": some(),
    "derived, other pixels": some(ImageType=DERIVED),
    "all again, other UIDs and pixels": some(20),
    "one of another patient among its own": beyond(PatientID="P2"),
    "one of another study among its own": beyond(StudyInstanceUID="1.2.826.9"),
    "half the pixels": half,
    "twice": lambda: [*some()(), *some(2)()[1:], *some(3)()[2:]],
    "far away": moved((0, 0, 900)),
    "beside the stack": moved((90, 0, 20)),
    "another matrix": some(Rows=16, Columns=64),
    "another orientation": some(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
    "another scale": some(RescaleIntercept=-1000),
    "another modality": some(Modality="MR"),
    "colours": some(PhotometricInterpretation="RGB"),
    "digits in place of a number": some(RescaleSlope="9" * 16),
}
READABLE: dict[str, Callable[[], list[Dataset]]] = {
    "derived, equal pixels": some(shift=0, ImageType=DERIVED),
    "all again, other UIDs": some(20, shift=0),
    "half again, other UIDs": some(10, shift=0),
    "all again, other UIDs, series and number": some(
        20, shift=0, SeriesInstanceUID="1.2.826.0.9", SeriesNumber=1
    ),
    "a localizer": some(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "the slice that follows": lambda: SmallCt(count=21).images()[20:],
}


def first_before(
    root: Path, reader: Reader, part: Callable[[], list[Dataset]] = UNREADABLE["stray"]
) -> dict[str, Any]:
    """Have a study read, and send a later part of it; return the first report."""
    send(root, "a", NUMBERED.images())
    work_off(root, reader)
    first = report_in(root)
    assert first["version"] == 1
    assert first["findings"]
    send(root, "b", part())
    return first


def first_and(root: Path, reader: Reader, part: Callable[[], list[Dataset]]) -> dict[str, Any]:
    """Have a study read, then a later part of it; return the first report."""
    first = first_before(root, reader, part)
    settle(root, reader)
    return first


def settle(root: Path, reader: Reader) -> None:
    """Have everything done, also what follows from the studies in the inbox."""
    work_off(root, reader)
    with open_store(database(root)) as store:
        is_left = bool(store.at(Step.QUARANTINING)) and not store.pending.keys()
    if is_left:
        work_off(root, reader)


def assert_apart(root: Path, first: dict[str, Any], count: int) -> None:
    """The first report stands, all say what was set apart, and nothing is lost."""
    newest, folder = report_in(root), root / "state" / "quarantine"
    assert newest["version"] == 2
    fixed = first.keys() - {"version", "created", "changes", "other_series"}
    assert {key: newest[key] for key in fixed} == {key: first[key] for key in fixed}
    (change,) = newest["changes"]
    assert change["kind"] == "later images not read"
    assert f"with {count} that came later" in change["text"]
    assert newest["other_series"] == [*first["other_series"], change["text"]]
    page = (root / "outbox" / "a" / "report.html").read_text()
    assert "report, version 2<br>" in page
    assert "was not read:" not in page
    assert [*(root / "outbox" / "a").glob("*.jpg")]
    assert {path.name for path in (root / "outbox").iterdir() if path.is_dir()} == {"a"}
    (key,) = (path.name for path in folder.iterdir())
    reason = json.loads((folder / key / "reason.json").read_bytes())
    assert reason["kind"] in change["text"]
    assert len([*files_of(folder / key / "study" / "b")]) == count
    done = root / "state" / "done" / newest["study_key"] / "a"
    assert {image.image_uid for image in arrived(done)} == FIRST
    assert list((root / "state" / "work").iterdir()) == []
    (row,) = queued(site_of(settings_in(root)))
    assert (row.state, row.study_key, row.name) == ("refused", key, "b")
    assert first["study_key"] in row.reason


@pytest.mark.parametrize("part", UNREADABLE.values(), ids=UNREADABLE)
def test_a_report_that_was_read_is_never_replaced_by_a_refusal(
    tmp_path: Path, part: Callable[[], list[Dataset]]
) -> None:
    with capture_logs() as lines:
        first = first_and(tmp_path, reader_with(), part)
    assert_apart(tmp_path, first, len(part()))
    assert [one["log_level"] for one in lines if one["event"] == "later images set apart"]
    assert not [one for one in lines if one["event"] == "study failed"]


@pytest.mark.parametrize("part", READABLE.values(), ids=READABLE)
def test_a_part_that_can_be_read_makes_the_next_version(
    tmp_path: Path, part: Callable[[], list[Dataset]]
) -> None:
    """Images with the pixels of others show nothing new: the first ones are read."""
    reader = reader_with()
    first = first_and(tmp_path, reader, part)
    newest = report_in(tmp_path) if len(reader.read[1]) > 20 else report_in(tmp_path, "b")
    assert newest["rejection"] is None
    assert len(newest["findings"]) == len(first["findings"])
    assert newest["series_uid"] == first["series_uid"] or len(reader.read[1]) == 20
    assert not [*(tmp_path / "state" / "quarantine").iterdir()]


def test_an_image_that_cannot_be_read_costs_no_report_where_another_series_could_be(
    tmp_path: Path,
) -> None:
    """Without it, the series that was read is still the best one."""
    reader = reader_with()
    thick = SmallCt(count=11, spacing_mm=5.0, series="2").images()
    send(tmp_path, "a", [*NUMBERED.images(), *thick])
    work_off(tmp_path, reader)
    first = report_in(tmp_path)
    send(tmp_path, "b", some()())
    work_off(tmp_path, reader)
    newest = report_in(tmp_path)
    assert newest["series_uid"] == first["series_uid"]
    assert newest["changes"][0]["kind"] == "later images not read"


def test_a_refused_study_is_refused_again_with_a_part_that_mends_nothing(tmp_path: Path) -> None:
    reader = reader_with()
    send(tmp_path, "a", [*NUMBERED.images(), *some()()])
    work_off(tmp_path, reader)
    send(tmp_path, "b", SmallCt(count=21).images()[20:])
    work_off(tmp_path, reader)
    assert (report_in(tmp_path)["version"], statuses(tmp_path)) == (2, {"a": "rejected"})


def test_requeue_reads_what_the_report_has_and_the_same_part_again_adds_no_version(
    tmp_path: Path,
) -> None:
    reader, site = reader_with(), site_of(settings_in(tmp_path))
    first_and(tmp_path, reader, UNREADABLE["stray"])
    assert requeue(None, site) == ["b"]
    settle(tmp_path, reader)
    assert report_in(tmp_path)["version"] == 2
    send(tmp_path, "a", some(2)()[1:])
    settle(tmp_path, reader)
    assert report_in(tmp_path)["version"] == 3
    assert requeue("a", site) == ["a"]
    work_off(tmp_path, reader)
    assert reader.read[-1] == FIRST
    names = {path.name for path in (tmp_path / "outbox").iterdir() if path.is_dir()}
    (other,) = names - {"a"}
    again = report_in(tmp_path, other)
    assert (again["rejection"], again["other_series"]) == (None, [])


def test_what_the_part_has_twice_stays_with_it(tmp_path: Path) -> None:
    """A part that brings some of the images again, and one that is wrong."""
    first = first_and(tmp_path, reader_with(), lambda: [*NUMBERED.images()[:5], *some()()])
    (place,) = (tmp_path / "state" / "quarantine").glob("*/study/b")
    assert len([*arrived(place)]) == 6
    assert not [*(tmp_path / "state" / "done").rglob("b")]
    assert len([*arrived(tmp_path / "state" / "done" / first["study_key"])]) == 20


@pytest.mark.parametrize("stays", [False, True])
def test_what_is_pending_for_the_report_amends_it_still(tmp_path: Path, stays: bool) -> None:
    """A part comes while the cloud is away; with one that can be read, the newer read counts."""
    cloud = SilentCloud()
    part = UNREADABLE["stray"] if stays else READABLE["the slice that follows"]
    first = first_and(tmp_path, reader_with(cloud), part)
    second = report_in(tmp_path)
    assert (first["status"], second["status"]) == ("provisional", "provisional")
    cloud.answers += [2]
    with a_version_for_each_verdict(), open_store(database(tmp_path)) as store:
        (read,) = store.pending.at(PendingStep.PENDING)
        assert read.version == 2
        assert Site(tmp_path, store, cloud).amender.run_once()
    last = report_in(tmp_path)
    assert (last["version"], last["status"]) == (3, "final")
    assert last["other_series"] == second["other_series"]
    assert last["changes"][:1] == second["changes"]
    assert {one["version"] for one in last["changes"][1:]} == {3}


def test_a_report_is_not_amended_while_its_study_is_read_again(tmp_path: Path) -> None:
    reader = reader_with(SilentCloud([2]))
    first_before(tmp_path, reader)
    with pytest.raises(Killed):
        work_off(tmp_path, reader, once_at(Step.READING, True))
    with a_version_for_each_verdict(), open_store(database(tmp_path)) as store:
        Site(tmp_path, store, reader.second).amender.run_once()
    assert report_in(tmp_path)["version"] == 1


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("step", [Step.DONE, Step.READING, Step.QUARANTINING, Step.REPORTED])
def test_killed_at_any_step_the_report_stands(tmp_path: Path, step: Step, durable: bool) -> None:
    reader = reader_with()
    first = first_before(tmp_path, reader)
    with pytest.raises(Killed):
        work_off(tmp_path, reader, once_at(step, durable))
    settle(tmp_path, reader)
    assert_apart(tmp_path, first, 1)


@pytest.mark.parametrize(
    ("module", "name"),
    [(join, "refer_to"), (join, "make_folder"), (join, "move"), (study, "put_apart")],
)
@pytest.mark.parametrize("is_done", [False, True])
def test_killed_between_two_steps_the_report_stands(
    tmp_path: Path, module: Any, name: str, is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, act = reader_with(), getattr(module, name)
    first = first_before(tmp_path, reader)

    def fragile(*given: Any) -> Any:
        if is_done:
            act(*given)
        killed()

    monkeypatch.setattr(module, name, fragile)
    with pytest.raises(Killed):
        work_off(tmp_path, reader)
    monkeypatch.undo()
    settle(tmp_path, reader)
    assert_apart(tmp_path, first, 1)


def test_a_lost_database_in_between_costs_nothing(tmp_path: Path) -> None:
    reader = reader_with()
    first = first_before(tmp_path, reader)
    with pytest.raises(Killed):
        work_off(tmp_path, reader, once_at(Step.QUARANTINING, True))
    for file in database(tmp_path).parent.glob(f"{database(tmp_path).name}*"):
        file.unlink()
    work_off(tmp_path, reader)
    newest = report_in(tmp_path)
    assert newest["findings"] == first["findings"]
    assert newest["rejection"] is None
    (place,) = (tmp_path / "state" / "quarantine").glob("*/study/*")
    assert len([*arrived(place)]) == 1
    assert dcmread(next(iter(files_of(place)))).SOPInstanceUID == "1.2.826.0.7.0"
