"""A study of several series is sent as scanners do it, and gets one report."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AllStoragePresentationContexts

from edge.dicom_out.deliver import made_objects
from edge.job import Job
from edge.pipeline import PersistPending, StudyResult
from imaging.read import read_study
from tests.dicom_peers import Pacs
from tests.edge.builders import HandClock, report_with
from tests.edge.dicom_in.senders import DICOM, Port, changed
from tests.edge.dicom_in.test_agent_receives import agent, receiving_in, reports_of
from tests.edge.dicom_out.sites import pacs_at
from tests.edge.dicom_out.studies import require_valid
from tests.edge.running_agent import wait_until
from tests.imaging.small_ct import SmallCt

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

OF_STUDY = {"StudyDate": "20260301", "AccessionNumber": "A12", "PatientBirthDate": ""}
LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}


def series(
    number: int, description: str, count: int, spacing_mm: float, **attributes: Any
) -> list[Dataset]:
    orientation = attributes.pop("orientation", (1, 0, 0, 0, 1, 0))
    step = attributes.pop("step_mm", None)
    given = OF_STUDY | {"SeriesNumber": number} | attributes
    return SmallCt(
        count, spacing_mm, str(number), description, orientation, step, attributes=given
    ).images()


THIN = series(2, "thin", 48, 1.25, ConvolutionKernel="B30f")
THICK = series(3, "thick", 12, 5.0, ConvolutionKernel="B30f")
CORONAL = series(4, "coronal", 12, 2.0, orientation=(1, 0, 0, 0, 0, -1), step_mm=(0, 2, 0),
                 ImageType=["DERIVED", "SECONDARY", "MPR"])  # fmt: skip
SCOUT = series(1, "scout", 2, 1.0, **LOCALIZER)
SHARP = series(5, "sharp", 48, 1.25, ConvolutionKernel="B70f")
ALL = [*THIN, *THICK, *CORONAL, *SCOUT, *SHARP]


read_files = partial(report_with, read=read_study)
"""A pipeline that reads the files, and finds the same in each study."""


@dataclass
class Place:
    """An agent with a port, an archive, and a clock."""

    root: Path
    port: Port
    pacs: Pacs
    clock: HandClock

    def send(self, images: Sequence[Dataset]) -> None:
        assert set(DICOM.send(self.port, *images)) == {0}

    def rest(self) -> list[dict[str, Any]]:
        """Let time pass until all that came is read; return the reports."""

        def is_idle() -> bool:
            self.clock.sleep(0.5)
            left = [p for p in (self.root / "inbox").iterdir() if not p.name.startswith(".")]
            return not left and not any((self.root / "state" / "work").iterdir())

        wait_until(is_idle)
        return reports_of(self.root)

    def objects(self, version: int) -> dict[str, Dataset]:
        """The objects of a version of the only report, once the archive has them."""
        folder = self.root / "outbox" / self.out.name / "dicom" / f"v{version}"
        wait_until(lambda: folder.is_dir())
        found = {file.stem: dcmread(file) for file in folder.glob("*.dcm")}
        uids = {str(one.SOPInstanceUID) for one in found.values()}
        wait_until(lambda: uids <= set(self.pacs.received))
        return found

    @property
    def out(self) -> Path:
        (out,) = [path.parent for path in self.root.glob("outbox/*/report.json")]
        return out


@contextmanager
def place(root: Path, read: Any = read_files) -> Iterator[Place]:
    clock = HandClock()
    with Pacs().running(contexts=AllStoragePresentationContexts) as pacs:
        settings = receiving_in(root, targets=(pacs_at(pacs.port),))
        with agent(settings, read, clock=clock, make_objects=made_objects) as (port,):
            yield Place(root, port, pacs, clock)


def texts(data: Dataset) -> list[str]:
    own = [str(data.TextValue)] if "TextValue" in data else []
    return own + [text for item in data.get("ContentSequence", []) for text in texts(item)]


def assert_read(report: dict[str, Any], unread: Sequence[str]) -> None:
    assert report["status"] == "final"
    thin = (THIN[0].SeriesInstanceUID, SHARP[0].SeriesInstanceUID)
    assert report["series_uid"] in thin
    assert sorted(one.split("'")[1] for one in report["other_series"]) == sorted(unread)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_five_series_in_random_order_with_pauses_have_one_report(tmp_path: Path, seed: int) -> None:
    """Over ten minutes: each pause is longer than the quiet time, so that versions follow."""
    images = random.Random(seed).sample(ALL, len(ALL))
    cuts = [0, 30, 60, 90, len(images)]
    with place(tmp_path) as here:
        for begin, end in pairwise(cuts):
            here.send(images[begin:end])
            (report,) = here.rest()
            here.clock.sleep(150.0)
        version = report["version"]
        assert version == 4
        assert_read(report, ["thick", "coronal", "scout", "sharp"])
        structured = here.objects(version)["sr"]
        for text in report["other_series"]:
            assert text in [one.removeprefix("Series not read: ") for one in texts(structured)]
        page = (here.out / "report.html").read_text()
        assert all(f"&#39;{name}&#39;" in page for name in ("thick", "coronal", "scout", "sharp"))
        srs = Counter(path.parent.name for path in here.out.glob("dicom/*/sr.dcm"))
        assert set(srs.values()) == {1}


def test_five_associations_at_once_make_one_version(tmp_path: Path) -> None:
    with place(tmp_path) as here:
        together = Barrier(5)

        def scan(images: list[Dataset]) -> None:
            together.wait()
            here.send(images)

        with ThreadPoolExecutor(5) as scanners:
            list(scanners.map(scan, (THIN, THICK, CORONAL, SCOUT, SHARP)))
        (report,) = here.rest()
        assert report["version"] == 1
        assert_read(report, ["thick", "coronal", "scout", "sharp"])
        assert {"sr", "report"} <= here.objects(1).keys()
        files = [here.out / "dicom" / "v1" / f"{name}.dcm" for name in ("sr", "report")]
    require_valid(*files)


def test_a_localizer_that_comes_first_is_ignored_and_joins_its_study(tmp_path: Path) -> None:
    with place(tmp_path) as here:
        here.send(SCOUT)
        (report,) = here.rest()
        assert report["status"] == "ignored"
        assert report["study"]["patient_name"] == "Test^Chest"
        assert "the chest CT series has not come" in report["second_reading_reason"]
        here.send(THIN)
        (report,) = here.rest()
        assert report["version"] == 2
        assert_read(report, ["scout"])
        here.objects(2)
        assert not (here.out / "dicom" / "v1").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"PixelData": bytes(100)},
         "pixel data: truncated, 100 of 2048 bytes: send the file again"),
        ({"Rows": None}, "Rows is missing: send the file again"),
        ({"Modality": "OT"},
         "modality OT is not CT, but other images of its series are: send only CT images"),
    ],
)  # fmt: skip
def test_a_damaged_series_gives_way_and_is_named(
    tmp_path: Path, damage: dict[str, Any], reason: str
) -> None:
    """In its pixels or its header, so that it was acknowledged."""
    thin = [*THIN[:7], changed(THIN[7], **damage), *THIN[8:]]
    with place(tmp_path) as here:
        here.send([*thin, *THICK])
        (report,) = here.rest()
    assert report["status"] == "final"
    assert report["other_series"]
    for line in report["other_series"]:
        assert line.startswith("'thin'")
        assert line.endswith(f": {THIN[7].SOPInstanceUID}.dcm: {reason}")


def test_a_series_that_comes_while_its_study_is_read_joins_it(tmp_path: Path) -> None:
    sent = list[str]()

    def read(job: Job, persist: PersistPending) -> StudyResult:
        if not sent:
            sent.append("thick")
            here.send(THICK)
        return read_files(job, persist)

    with place(tmp_path, read) as here:
        here.send(THIN)
        wait_until(lambda: bool(here.rest()) and here.rest()[0]["version"] == 2)
        (report,) = here.rest()
    assert_read(report, ["thick"])
