"""A refused study says whose it is, and the archive gets the document that says why."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AllStoragePresentationContexts

from edge.dicom_out.deliver import made_objects
from edge.folders import DONE
from edge.job import Job
from edge.pipeline import PersistPending, StudyResult
from evaluation.world import settings_in
from imaging.read import read_study
from tests.dicom_peers import Pacs
from tests.edge.builders import report_with
from tests.edge.dicom_out.sites import pacs_at
from tests.edge.dicom_out.studies import require_valid
from tests.edge.running_agent import Killed, running, wait_until, work_off
from tests.imaging.small_ct import SmallCt

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

OF_STUDY = {"StudyDate": "20260301", "AccessionNumber": "A12"}


def images(count: int = 12, **attributes: Any) -> list[Dataset]:
    made = SmallCt(count, attributes=OF_STUDY | attributes).images()
    for one in made:
        one.PatientName = "Doe^Jane"
    return made


def tilted() -> list[Dataset]:
    return SmallCt(12, orientation=(1, 0, 0, 0, 0, -1), step_mm=(0, 2, 0),
                   attributes=OF_STUDY | {"PatientName": "Doe^Jane"}).images()  # fmt: skip


def damaged() -> list[Dataset]:
    made = images()
    made[5].PixelData = bytes(100)
    return made


KNOWN: dict[str, tuple[str, list[Dataset]]] = {
    "no series is readable": ("IrregularGeometry", tilted()),
    "wrong modality": ("NotCt", images(Modality="MR")),
    "too few slices": ("IncompleteSeries", images(2)),
    "damaged pixel data": ("UnreadableFile", damaged()),
    "crash": ("RepeatedCrash", images()),
    "fault": ("InternalError", images()),
}
UNKNOWN = {
    "two patients": ("NotCt", [*images(6), *images(6, PatientID="P2")]),
    "two studies": ("NotCt", [*images(2), *images(2, StudyInstanceUID="1.2.9")]),
    "no DICOM": ("UnreadableFile", []),
}


def read(job: Job, persist: PersistPending) -> StudyResult:
    if job.source.name == "crash":
        raise Killed
    if job.source.name == "fault":
        raise RuntimeError("a fault")
    return report_with(job, persist, read_study)


Place = tuple[Path, Pacs]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An agent has refused each study, and sent what it has to say."""
    root = tmp_path_factory.mktemp("refused")

    def put(name: str, content: Sequence[Dataset]) -> None:
        folder = root / "inbox" / name
        SmallCt().write(folder, list(content))
        if not content:
            (folder / "a.dcm").write_bytes(b"no DICOM")
        (folder / DONE).touch()

    put("crash", KNOWN["crash"][1])
    for _ in range(3):
        with pytest.raises(Killed):
            work_off(root, read)
    for name, (_, content) in (KNOWN | UNKNOWN).items():
        if name != "crash":
            put(name, content)
    with Pacs().running(contexts=AllStoragePresentationContexts) as pacs:
        settings = settings_in(root, targets=(pacs_at(pacs.port),))
        with running(settings, read=read, make_objects=made_objects):
            expected = len(KNOWN) + len(UNKNOWN)
            wait_until(lambda: len(list(root.glob("state/quarantine/*/reason.json"))) == expected)
            wait_until(lambda: len(pacs.received) >= 2 * len(KNOWN))
    return root, pacs


def report_of(root: Path, name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "outbox" / name / "report.json").read_text())
    return report


@pytest.mark.parametrize("name", KNOWN)
def test_a_refused_study_says_whose_it_is_and_its_archive_why(name: str, place: Place) -> None:
    root, pacs = place
    report, out = report_of(root, name), root / "outbox" / name
    assert report["rejection"]["kind"] == KNOWN[name][0]
    known = {key: report["study"][key] for key in ("patient_id", "patient_name", "accession")}
    assert known == {"patient_id": "P1", "patient_name": "Doe^Jane", "accession": "A12"}
    assert (report["study"]["study_date"], report["study"]["study_uid"]) == (
        "20260301",
        "1.2.826.1",
    )
    page = (out / "report.html").read_text()
    assert all(text in page for text in ("Doe Jane", "P1", "2026-03-01", "A12"))
    file, document = sorted((out / "dicom" / "v1").glob("*.dcm"))
    made = dcmread(file)
    assert dcmread(document).SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert "'Failed'" in str(dcmread(document))
    assert made.SOPClassUID.name == "Encapsulated PDF Storage"
    assert made.DocumentTitle == "Overread report, version 1: the study was not read"
    assert (made.PatientName, made.PatientID, made.AccessionNumber) == ("Doe^Jane", "P1", "A12")
    assert (made.StudyInstanceUID, made.StudyDate) == ("1.2.826.1", "20260301")
    assert str(made.SOPInstanceUID) in pacs.received
    require_valid(file, document)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_refused_study_of_which_it_is_not_known_whose_it_is_says_so(
    name: str, place: Place
) -> None:
    root, pacs = place
    report = report_of(root, name)
    assert report["rejection"]["kind"] == UNKNOWN[name][0]
    assert not any(report["study"][key] for key in ("patient_id", "patient_name", "study_uid"))
    assert report["next_steps"][-1].startswith("The files do not say whose study this is")
    assert report["next_steps"][-1] in (root / "outbox" / name / "report.html").read_text()
    assert not (root / "outbox" / name / "dicom").exists()
    assert len(pacs.received) == 2 * len(KNOWN)
