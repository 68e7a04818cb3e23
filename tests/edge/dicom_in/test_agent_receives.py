"""The agent receives series: which make a study, join one, or are known already."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset

from edge.audit import Event
from edge.job import Job
from edge.pipeline import PersistPending, StudyResult
from edge.settings.core import EdgeSettings
from edge.trail.records import TrailRecord, records_after
from imaging.dicom.arrival import arrived
from imaging.errors import NotCt
from imaging.volume import Study
from tests.edge.builders import report_with, study_at
from tests.edge.dicom_in.senders import ANYWHERE, DICOM, IMAGES, Port, changed, names, settings_in
from tests.edge.running_agent import running, wait_until
from tests.imaging.small_ct import SmallCt


def receiving_in(root: Path, **values: object) -> EdgeSettings:
    """Settings of an agent with a DICOM node that looks often."""
    given = {"receive__dicom__address": ANYWHERE, "quiet_s": 1.0, "poll_s": 0.02}
    return settings_in(root, **given | values)


def list_images(job: Job, persist: PersistPending) -> StudyResult:
    """A pipeline whose report needs no pixels."""
    return report_with(job, persist, study_at)


@contextmanager
def agent(
    settings: EdgeSettings,
    read: Callable[[Job, PersistPending], StudyResult] | None = None,
    **parts: Any,
) -> Iterator[list[Port]]:
    """The agent in a thread; yields its ports, that of DICOM first."""
    expected = bool(settings.receive.dicom.address) + bool(settings.receive.stow.address)

    def ports() -> list[Port]:
        found = [line for line in lines if line["event"].startswith("receiving by")]
        return [Port(line["address"]) for line in found]

    with running(settings, read=read, **parts) as lines:
        wait_until(lambda: len(ports()) == expected)
        yield ports()


def reports_of(root: Path) -> list[dict[str, Any]]:
    paths = sorted(root.glob("outbox/*/report.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def versions(root: Path) -> list[int]:
    return [report["version"] for report in reports_of(root)]


def by_dicom(ports: list[Port], images: list[Dataset]) -> None:
    assert set(DICOM.send(ports[0], *images)) == {0x0000}


def by_stow(ports: list[Port], images: list[Dataset]) -> None:
    """By a client of DICOMweb, in one request."""
    answer = DICOMwebClient(f"http://{ports[1].address}/dicom-web").store_instances(images)
    stored = [one.ReferencedSOPInstanceUID for one in answer.ReferencedSOPSequence]
    assert stored == [image.SOPInstanceUID for image in images]
    assert "FailedSOPSequence" not in answer


def test_images_that_come_after_the_folder_was_claimed_amend_its_report(tmp_path: Path) -> None:
    """The folder of the series is made again, and the agent joins it with its study."""
    done = tmp_path / "state" / "done"
    with agent(receiving_in(tmp_path), list_images) as ports:
        by_dicom(ports, IMAGES[:7])
        wait_until(lambda: versions(tmp_path) == [1] and len(os.listdir(done)) == 1)
        assert set(DICOM.send(ports[0], *IMAGES[7:], caller="OTHER")) == {0x0000}
        wait_until(lambda: versions(tmp_path) == [2])
    (report,) = reports_of(tmp_path)
    assert report["changes"][-1]["text"].startswith("5 more images were added")
    (study,) = done.iterdir()
    assert study.name == report["study_key"]
    assert {image.image_uid for image in arrived(study)} == {
        str(image.SOPInstanceUID) for image in IMAGES
    }
    assert sorted(path.name for path in study.rglob("*.dcm")) == names(IMAGES)
    files = sorted(study.rglob(".received.json"))
    assert [json.loads(file.read_text())["calling_ae"] for file in files] == ["SCANNER", "OTHER"]


def read_and_repeat(root: Path, images: list[Dataset]) -> list[TrailRecord]:
    settings, trail = receiving_in(root), root / "state" / "trail"
    with agent(settings, list_images) as ports:
        by_dicom(ports, IMAGES)
        wait_until(lambda: len(os.listdir(root / "state" / "done")) == 1)
        by_dicom(ports, images)
        wait_until(lambda: len(os.listdir(root / "state" / "done")) == 2)
        ends = (Event.REPEATED, Event.READ, Event.JOINED)
        wait_until(lambda: sum(one.event in ends for one in records_after(trail, 0)) == 2)
    return list(records_after(trail, 0))


@pytest.mark.parametrize(
    ("images", "late_s", "repeated"),
    [(IMAGES, 600.0, True), (IMAGES[-1:], -1.0, True), (IMAGES, -1.0, False)],
    ids=["all", "last, much later", "all, much later"],
)
def test_what_is_sent_again_unchanged_makes_no_study(
    tmp_path: Path,
    images: list[Dataset],
    late_s: float,
    repeated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But a whole study that comes long after its report is read again."""
    monkeypatch.setattr("edge.agent.join.RESENT_S", late_s)
    trail = read_and_repeat(tmp_path, images)
    again = [one.fields["study_key"] for one in trail if one.event == Event.REPEATED]
    assert versions(tmp_path) == [1] * (1 if repeated else 2)
    assert again == [one["study_key"] for one in reports_of(tmp_path) if repeated]


@pytest.mark.parametrize("sent", [by_dicom, by_stow])
def test_the_end_of_its_sender_completes_a_study_where_the_setting_says_so(
    tmp_path: Path, sent: Callable[[list[Port], list[Dataset]], None]
) -> None:
    """Of two series, by STOW-RS in one request; a poll would find it in an hour."""
    on = {"receive__stow__address": ANYWHERE, "receive__complete_at_end": True}
    thin, thick = SmallCt(count=12).images(), SmallCt(5, 5.0, series="2").images()
    images = [*thin[:7], *thick, *thin[7:]]
    for image in images:
        image.preamble = bytes(128)
    with agent(receiving_in(tmp_path, quiet_s=3600, poll_s=3600, **on), list_images) as ports:
        sent(ports, images)
        wait_until(lambda: versions(tmp_path) == [1])
    assert versions(tmp_path) == [1]
    (report,) = reports_of(tmp_path)
    files = (tmp_path / "state").rglob(f"{report['study_key']}/**/*.dcm")
    assert sorted(path.name for path in files) == names(images)


def refuse_all(job: Job, persist: PersistPending) -> StudyResult:
    """A pipeline that refuses every study, and leaves a file for each that it reads."""

    def read(source: Path) -> Study:
        (job.out.parent.parent / f"read-{job.study_key}").touch()
        raise NotCt("no CT, expected one", source)

    return report_with(job, persist, read)


def rejections(root: Path) -> list[TrailRecord]:
    return [one for one in records_after(root / "state" / "trail", 0)
            if one.event == Event.REJECTED]  # fmt: skip


CHANGED = [*IMAGES[:3], changed(IMAGES[3], KVP=99), *IMAGES[4:]]


@pytest.mark.parametrize(
    ("images", "reads"),
    [(IMAGES, 1), (IMAGES[-1:], 1), (CHANGED, 2)],
    ids=["all", "last", "changed"],
)
def test_a_refused_series_that_is_sent_again_unchanged_is_refused_again_unread(
    tmp_path: Path, images: list[Dataset], reads: int
) -> None:
    """One that is changed is read again, and kept."""
    with agent(receiving_in(tmp_path), refuse_all) as ports:
        by_dicom(ports, IMAGES)
        wait_until(lambda: len(rejections(tmp_path)) == 1)
        by_dicom(ports, images)
        wait_until(lambda: len(rejections(tmp_path)) == 2)
    first, again = (report["rejection"] for report in reports_of(tmp_path))
    assert len(list(tmp_path.glob("read-*"))) == reads
    assert again["kind"] == first["kind"] == "NotCt"
    unread = "it was sent again unchanged, and was refused before: " if reads == 1 else ""
    assert again["reason"] == f"{unread}no CT, expected one"
    said, repeated = (record.fields for record in rejections(tmp_path))
    assert repeated["kind"] == "NotCt"
    assert repeated["study_key"] != said["study_key"]
    kept = tmp_path / "state" / "quarantine" / repeated["study_key"] / "study"
    assert len(list(kept.rglob("*.dcm"))) == len(images)
