"""Images that arrive after their study was reported: one study, one report in two versions."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import Dataset
from structlog.testing import capture_logs

from edge.agent import join
from edge.amend.amender import Amender
from edge.atomic_files import move
from edge.audit import Event
from edge.store.pending import PendingStep
from edge.store.record import Step
from edge.trail.records import records_after
from imaging.dicom.arrival import arrived
from tests.edge.builders import UNHURRIED, HandClock, SilentCloud, open_store, report_in
from tests.edge.running_agent import Killed, Reader, database, once_at, statuses, work_off
from tests.imaging.small_ct import SmallCt

IMAGES = SmallCt(count=20).images()
WHOLE = {str(image.SOPInstanceUID) for image in IMAGES}


def send(root: Path, name: str, part: slice, images: Sequence[Dataset] = IMAGES) -> None:
    SmallCt().write(root / "inbox" / name, images[part])
    (root / "inbox" / name / ".done").touch()


FIRST, REST, ALL = slice(0, 12), slice(12, 20), slice(0, 20)


def read_parts(root: Path, reader: Reader, *parts: slice, name: str = "a") -> None:
    for part in parts:
        send(root, name, part)
        work_off(root, reader)


def images_in(folder: Path) -> set[str]:
    return {image.image_uid for image in arrived(folder)}


def assert_one_study(root: Path) -> None:
    """The second report is version 2 of the first one, made from all images, and nothing else."""
    newest, oldest = report_in(root), report_in(root, version=".v1")
    assert (oldest["version"], newest["version"]) == (1, 2)
    assert oldest["study_key"] == newest["study_key"]
    (change,) = newest["changes"]
    assert change["kind"] == "more images arrived"
    assert change["text"].startswith("8 more images were added: the whole study was read again")
    assert change["text"] in (root / "outbox" / "a" / "report.html").read_text()
    assert {path.name for path in (root / "outbox").iterdir() if path.is_dir()} == {"a"}
    assert images_in(root / "state" / "done" / newest["study_key"] / "a") == WHOLE
    assert [path.name for path in (root / "state" / "done").iterdir()] == [newest["study_key"]]
    assert list((root / "state" / "work").iterdir()) == []
    assert [p for p in (root / "inbox").iterdir() if not p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["a", "another folder"])
def test_a_series_in_two_parts_is_one_study_and_its_report_is_amended(
    tmp_path: Path, name: str
) -> None:
    reader = Reader()
    read_parts(tmp_path, reader, FIRST)
    read_parts(tmp_path, reader, REST, name=name)
    assert [len(images) for images in reader.read] == [12, 20]
    assert_one_study(tmp_path)


def test_a_first_part_that_was_refused_is_read_again_with_the_rest(tmp_path: Path) -> None:
    reader = Reader(enough=15)
    read_parts(tmp_path, reader, FIRST)
    assert statuses(tmp_path) == {"a": "rejected"}
    read_parts(tmp_path, reader, REST)
    assert report_in(tmp_path)["rejection"] is None
    assert report_in(tmp_path, version=".v1")["rejection"]["kind"] == "IncompleteSeries"
    assert_one_study(tmp_path)
    assert list((tmp_path / "state" / "quarantine").iterdir()) == []


def test_a_third_part_makes_version_3_with_both_changes(tmp_path: Path) -> None:
    read_parts(tmp_path, Reader(), slice(0, 8), slice(8, 15), slice(15, 20))
    newest = report_in(tmp_path)
    assert newest["version"] == 3
    assert [change["version"] for change in newest["changes"]] == [2, 3]
    assert images_in(tmp_path / "state" / "done") == WHOLE


def test_a_part_that_overlaps_adds_only_its_new_images(tmp_path: Path) -> None:
    reader = Reader()
    read_parts(tmp_path, reader, FIRST, ALL)
    assert reader.read[1] == WHOLE
    key = report_in(tmp_path)["study_key"]
    assert len(list(arrived(tmp_path / "state" / "done" / key))) == 20
    assert len(list(arrived(tmp_path / "state" / "done"))) == 32


def test_a_study_that_is_sent_again_is_a_study_of_its_own(tmp_path: Path) -> None:
    read_parts(tmp_path, Reader(), ALL, ALL)
    assert [report_in(tmp_path, name)["version"] for name in ("a", "a-2")] == [1, 1]


def test_a_study_that_is_sent_whole_after_a_refusal_does_not_join_its_damaged_file(
    tmp_path: Path,
) -> None:
    """The damaged file has no identifiers, so that its sound copy looks like a new image."""
    reader = Reader(enough=20)
    send(tmp_path, "a", slice(0, 20))
    (tmp_path / "inbox" / "a" / "005.dcm").write_bytes(b"damaged")
    (tmp_path / "inbox" / "a" / ".done").touch()
    work_off(tmp_path, reader)
    assert statuses(tmp_path) == {"a": "rejected"}
    read_parts(tmp_path, reader, ALL, name="b")
    assert reader.read[1] == WHOLE
    assert statuses(tmp_path) == {"a": "rejected", "b": "final"}


@pytest.mark.parametrize(
    ("other", "version"),
    [(SmallCt(20, series="2"), 1), (SmallCt(20, attributes={"PatientID": "P2"}), 2)],
)
def test_another_series_and_one_of_another_patient_join_nothing(
    tmp_path: Path, other: SmallCt, version: int
) -> None:
    """A UID that is used twice must not mix two patients, or cost the first one the report.

    Its next version names the other one.
    """
    reader = Reader()
    read_parts(tmp_path, reader, FIRST)
    other.write(tmp_path / "inbox" / "b")
    (tmp_path / "inbox" / "b" / ".done").touch()
    work_off(tmp_path, reader)
    assert [report_in(tmp_path, name)["version"] for name in "ab"] == [version, 1]


def test_what_is_pending_for_the_first_report_is_not_merged_into_the_second(tmp_path: Path) -> None:
    read_parts(tmp_path, Reader(second=SilentCloud()), FIRST, REST)
    assert_one_study(tmp_path)
    with open_store(database(tmp_path)) as store:
        (read,) = store.pending.at(PendingStep.PENDING)
    assert (read.study_key, read.version) == (report_in(tmp_path)["study_key"], 2)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("step", [Step.JOINING, Step.DONE, Step.READING, Step.REPORTED])
def test_killed_at_any_step_no_image_is_lost_and_the_report_is_amended_once(
    tmp_path: Path, step: Step, durable: bool
) -> None:
    reader = Reader()
    read_parts(tmp_path, reader, FIRST)
    send(tmp_path, "a", REST)
    with pytest.raises(Killed):
        work_off(tmp_path, reader, once_at(step, durable))
    work_off(tmp_path, reader)
    assert_one_study(tmp_path)


@pytest.mark.parametrize("at", range(1, 10))  # the study, and eight images
def test_killed_between_any_two_moves_no_image_is_lost(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader()
    read_parts(tmp_path, reader, FIRST)
    send(tmp_path, "a", REST)
    moves = 0

    def fragile(source: Path, target: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == at:
            raise Killed
        move(source, target)

    monkeypatch.setattr(join, "move", fragile)
    with pytest.raises(Killed):
        work_off(tmp_path, reader)
    monkeypatch.undo()
    work_off(tmp_path, reader)
    assert_one_study(tmp_path)


def changed_images(root: Path) -> list[tuple[str, str, int]]:
    fields = [one.fields for one in records_after(root / "state" / "trail", 0)
              if one.event == Event.CHANGED]  # fmt: skip
    return [(one["study_key"], one["part"], one["images"]) for one in fields]


def test_a_changed_image_in_a_later_part_is_told_and_not_read(tmp_path: Path) -> None:
    """It has the same SOP Instance UID as one that was reported, and other content."""
    reader = Reader()
    read_parts(tmp_path, reader, FIRST)
    images = SmallCt(count=20).images()
    images[11].PixelData = bytes(len(images[11].PixelData))
    send(tmp_path, "a", slice(10, 20), images)
    with capture_logs() as lines:
        work_off(tmp_path, reader)
    newest = report_in(tmp_path)
    ((study, part, count),) = changed_images(tmp_path)
    assert (study, count) == (newest["study_key"], 1)
    (line,) = [one for one in lines if one["event"].startswith("changed images received")]
    assert (line["study_key"], line["part"], line["images"]) == (study, part, 1)
    said = "changed images, not read here: 1 of its images came again with other content"
    said = f"{said}, kept as {part}"
    assert newest["other_series"] == [said]
    assert said in (tmp_path / "outbox" / "a" / "report.html").read_text()
    assert len(list(arrived(tmp_path / "state" / "done" / part))) == 2
    assert reader.read[1] == WHOLE


@pytest.mark.parametrize("enough", [0, 30], ids=["read", "refused"])
def test_two_reports_of_one_changed_series_name_each_other(tmp_path: Path, enough: int) -> None:
    reader = Reader(enough)
    read_parts(tmp_path, reader, ALL)
    images = SmallCt(count=20).images()
    images[5].KVP = 99
    send(tmp_path, "b", ALL, images)
    work_off(tmp_path, reader)
    first, second = report_in(tmp_path), report_in(tmp_path, "b")
    key, other = first["study_key"], second["study_key"]
    assert changed_images(tmp_path) == [(key, other, 1)]
    (said,) = second["other_series"]
    assert said == f"changed images: report a (study {key}) has 1 of these with other content"
    (said,) = first["other_series"]
    assert said.endswith("1 of its images came again with other content, report b")
    assert (first["version"], second["version"]) == (2, 1)
    assert report_in(tmp_path, version=".v1")["other_series"] == []
    assert first["changes"][-1]["kind"] == "changed images received"
    page = (tmp_path / "outbox" / "a" / "report.html").read_text()
    assert "report, version 2<br>" in page
    assert said in page


@pytest.mark.parametrize("ids", [("wrong", "right"), ("", "right"), ("wrong", "")])
@pytest.mark.parametrize("enough", [0, 30], ids=["read", "refused"])
def test_reports_of_one_study_with_two_patient_ids_name_each_other(
    tmp_path: Path, ids: tuple[str, str], enough: int
) -> None:
    """Neither replaces the other."""
    reader = Reader(enough)
    for name, patient in zip("ab", ids, strict=True):
        send(tmp_path, name, ALL, of_patient(patient))
        work_off(tmp_path, reader)
    first, second = report_in(tmp_path), report_in(tmp_path, "b")
    said = "same study UID, other patient ID: report"
    assert first["other_series"] == [f"{said} b (study {second['study_key']})"]
    assert second["other_series"] == [f"{said} a (study {first['study_key']})"]
    assert (first["version"], second["version"]) == (2, 1)
    assert first["changes"][-1]["kind"] == "same study with another patient ID received"
    for name, other in zip("ab", "ba", strict=True):
        assert f"{said} {other} (study" in (tmp_path / "outbox" / name / "report.html").read_text()
    other_uid = of_patient("right", study="1.2.840.7")
    send(tmp_path, "c", ALL, other_uid)
    work_off(tmp_path, reader)
    assert report_in(tmp_path, "c")["other_series"] == []
    assert report_in(tmp_path)["version"] == 2


def test_a_pending_report_that_names_another_gets_its_verdicts(tmp_path: Path) -> None:
    """They make the version after the one that names it, and it still does."""
    reader = Reader(second=SilentCloud())
    for name, patient in (("a", "wrong"), ("b", "right")):
        send(tmp_path, name, ALL, of_patient(patient))
    work_off(tmp_path, reader)
    before = report_in(tmp_path)
    assert (before["version"], before["status"]) == (2, "provisional")
    cloud = SilentCloud(answers=[2, 2])
    with open_store(database(tmp_path)) as store:
        clock = HandClock()
        amender = Amender(store, tmp_path / "outbox", cloud, UNHURRIED, clock=clock)
        for _ in range(10):
            amender.run_once()
            clock.sleep(100.0)
    after = report_in(tmp_path)
    assert (after["version"], after["status"]) == (3, "final")
    assert after["other_series"] == before["other_series"]
    assert report_in(tmp_path, version=".v2") == before


def of_patient(patient: str, study: str = "") -> list[Dataset]:
    images = SmallCt(count=20).images()
    for image in images:
        image.PatientID = patient
        if study:
            image.StudyInstanceUID = study
            image.SeriesInstanceUID += ".7"
    return list(images)
