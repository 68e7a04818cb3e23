"""A study through an archive and back: what ``make demo ARGS=--pacs`` shows.

Orthanc stands for the hospital's archive. The study goes to the agent by C-STORE, as a scanner
sends it. The agent reads it with the cloud, and sends its results to Orthanc. From there they are
fetched by DICOMweb, as a viewer does. Not a medical device.
"""

import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from pydicom.sr.codedict import codes

from edge.access import make_folder
from evaluation.errors import MissingProgram, ServiceFailed
from evaluation.markdown import Rows
from evaluation.receiving.sender import send
from evaluation.world import AGENT, Agent, free_ports, running, running_agent
from imaging.dicom.arrival import arrived, files_of
from models.runtime.errors import MissingData

EXPECTED = frozenset({"SR", "SEG", "OT", "DOC"})
"""Modalities of the results of a study with findings and outlines."""
BY_DICOM, BY_WEB = ["sr", "seg"], ["capture", "pdf"]
"""Which objects go to Orthanc by C-STORE, and which by STOW-RS."""

START_S, ANSWER_S = 60.0, 120.0
DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
REMEDY = "Install it (Debian: apt-get install orthanc orthanc-dicomweb)"


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc that takes what anybody on this machine sends."""

    ae_title: str
    dicom_port: int
    http_port: int

    @property
    def url(self) -> str:
        """Of its own interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        """Of QIDO-RS, WADO-RS and STOW-RS."""
        return f"{self.url}/dicom-web"

    def answers(self) -> bool:
        """Return whether it has started."""
        try:
            self.get("system")
        except OSError:
            return False
        return True

    def get(self, path: str) -> Any:
        """Return what its interface answers, as JSON."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as answer:
            return json.load(answer)

    def found(self, sop_instance_uid: str) -> list[dict[str, Any]]:
        """Return what QIDO-RS finds of one instance, as DICOM JSON."""
        path = f"dicom-web/instances?SOPInstanceUID={sop_instance_uid}"
        instances: list[dict[str, Any]] = self.get(path)
        return instances


def is_installed() -> bool:
    """Return whether Orthanc and its DICOMweb plugin are on this machine."""
    return shutil.which("Orthanc") is not None and DICOMWEB_PLUGIN.is_file()


@contextmanager
def orthanc(folder: Path, **configuration: Any) -> Iterator[Orthanc]:
    """Run an Orthanc with all its files in ``folder``, on free ports of this machine alone.

    Raises:
        MissingProgram: it is not installed.
        ServiceFailed: it did not start.
    """
    if not is_installed():
        raise MissingProgram("Orthanc with DICOMweb", REMEDY)
    server = Orthanc("ORTHANC", *free_ports(2))
    config = folder / "orthanc.json"
    values = {
        "Name": "Overread",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "Plugins": [str(DICOMWEB_PLUGIN)],
        "DicomAet": server.ae_title,
        "DicomPort": server.dicom_port,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomCheckCalledAet": False,
        "HttpPort": server.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    config.write_text(json.dumps(values | configuration))
    with running("Orthanc", ("Orthanc", str(config)), folder / "orthanc.log") as process:
        process.wait_until(server.answers, "answer", START_S)
        yield server


@dataclass(frozen=True)
class Site:
    """An agent that sends its results to an archive."""

    agent: Agent
    archive: Orthanc

    def send(self, study: Path) -> int:
        """Send the images of a folder as a scanner does; return how many there are.

        Raises:
            ServiceFailed: the agent does not take all images.
        """
        files = files_of(study)
        if (taken := len(send(self.agent.endpoint, files).acknowledged)) != len(files):
            raise ServiceFailed(f"the agent took {taken} of {len(files)} images")
        return len(files)

    def results(self, study_uid: str, complete: Callable[[Sequence[Dataset]], bool]) -> list[Any]:
        """Wait until what the archive has of a study is complete, and return it.

        Raises:
            ServiceFailed: the agent ended, or it took longer than `ANSWER_S`.
        """
        until = time.monotonic() + ANSWER_S
        while not complete(found := self.find(study_uid)):
            self.agent.process.require_alive()
            if time.monotonic() > until:
                kinds = sorted({one.Modality for one in found}) or "nothing"
                raise self.agent.process.failed(f"has sent {kinds} within {ANSWER_S:g} s")
            time.sleep(0.2)
        return found

    def find(self, study_uid: str) -> list[Dataset]:
        """Return the objects that the archive has of a study: QIDO-RS, then WADO-RS."""
        client = DICOMwebClient(self.archive.dicomweb_url)
        series = client.search_for_series(study_uid)
        uids = [one["0020000E"]["Value"][0] for one in series]
        return [one for uid in uids for one in client.retrieve_series(study_uid, uid)]


@contextmanager
def site(
    out: Path,
    cloud: str,
    program: Sequence[str] = (sys.executable, "-m", *AGENT),
    *,
    deadline_s: float,
) -> Iterator[Site]:
    """Run Orthanc, and an agent between it and the cloud at the address ``cloud``.

    ``program`` is the command of the agent without its options; the logs are in ``out``.

    Raises:
        MissingProgram: there is no Orthanc.
        ServiceFailed: a process did not start, or ended before its time.
    """
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overread-pacs-")))
        make_folder(folder / "archive")
        archive = held.enter_context(orthanc(folder / "archive"))
        by_dicom = {
            "name": "by-dicom",
            "kind": "dicom",
            "address": f"127.0.0.1:{archive.dicom_port}",
            "called_ae": archive.ae_title,
            "objects": BY_DICOM,
        }
        by_web = {"name": "by-dicomweb", "kind": "dicomweb", "url": archive.dicomweb_url}
        targets = [by_dicom, by_web | {"objects": BY_WEB}]
        settings: dict[str, Any] = {
            "cloud__address": cloud,
            "deadline_s": deadline_s,
            "targets": targets,
        }
        running_one = running_agent(folder, out / "edge.log", program, **settings)
        yield Site(held.enter_context(running_one), archive)


def study_uid_of(study: Path) -> str:
    """Return the StudyInstanceUID of the first image of a folder.

    Raises:
        MissingData: it holds no DICOM image.
    """
    for image in arrived(study):
        return image.study_uid
    raise MissingData(study, "holds no DICOM image, which --pacs needs")


def table(objects: Sequence[Dataset]) -> Rows:
    """Return a row for each series that came back: what it is, and what it says."""
    series: dict[str, list[Dataset]] = {}
    for one in sorted(objects, key=lambda one: int(one.SeriesNumber or 0)):
        series.setdefault(str(one.SeriesInstanceUID), []).append(one)
    rows = [
        (group[0].Modality, group[0].get("SeriesDescription", ""), describe(group))
        for group in series.values()
    ]
    return Rows(("modality", "series", "content"), rows, "Back from the archive")


def describe(series: Sequence[Dataset]) -> str:
    """Return in a few words what the objects of a series say; the first stands for all."""
    made = series[0]
    match made.Modality:
        case "SR":
            groups = [*measurement_groups(made)]
            return f"{len(groups)} measurement groups, {made.CompletionFlag.lower()}"
        case "SEG":
            return f"{len(made.SegmentSequence)} outlines in {made.NumberOfFrames} frames"
        case "DOC":
            return f"PDF, {len(made.EncapsulatedDocument) // 1000} kB"
        case "OT":
            return f"{len(series)} pictures"
        case _:
            return f"{len(series)} images"


def save(objects: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write pictures as PNG, the report as PDF and the other results as DICOM; return the files."""
    make_folder(folder)
    files = []
    for number, item in enumerate(objects, 1):
        stem = folder / f"{number:02d}-{item.Modality.lower()}"
        if item.Modality == "CT":
            continue
        if item.Modality == "DOC":
            path = stem.with_suffix(".pdf")
            path.write_bytes(item.EncapsulatedDocument)
        elif item.Modality == "OT":
            path = stem.with_suffix(".png")
            rgb = np.asarray(item.pixel_array, np.uint8)
            path.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
        else:
            path = stem.with_suffix(".dcm")
            item.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def is_complete(objects: Sequence[Dataset]) -> bool:
    """Return whether all kinds of results are there."""
    return {str(one.Modality) for one in objects} >= EXPECTED


def measurement_groups(item: Dataset) -> Iterator[Dataset]:
    """Yield the measurement groups of a structured report, wherever they are."""
    for part in item.get("ContentSequence", ()):
        name = part.get("ConceptNameCodeSequence", [None])[0]
        if name is not None and name.CodeValue == codes.DCM.MeasurementGroup.value:
            yield part
        yield from measurement_groups(part)
