"""A study through an archive and back: what ``make demo ARGS=--pacs`` shows.

Orthanc stands for the hospital's archive. The study goes to the agent by C-STORE, as a scanner
sends it. The agent reads it with the cloud, and sends its results to Orthanc. From there they are
fetched by DICOMweb, as a viewer does. Not a medical device.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pynetdicom import AE
from pynetdicom.presentation import build_context

from edge.access import make_folder
from evaluation.common.orthanc import Orthanc, orthanc
from evaluation.common.processes import Process, free_ports, listens, running
from evaluation.errors import MissingData, ServiceFailed
from imaging.dicom.arrival import arrived, files_of
from models.markdown import Rows

SCANNER, OVERREAD = "SCANNER", "OVERREAD"
"""AE titles of the sender and of the agent."""

EXPECTED = frozenset({"SR", "SEG", "OT", "DOC"})
"""Modalities of the results of a study with findings and outlines."""

START_S, ANSWER_S = 180.0, 120.0

CONFIG = """\
inbox = "{folder}/inbox"
outbox = "{folder}/outbox"
state_dir = "{folder}/state"
cloud.address = "{cloud}"
deadline_s = {deadline_s:g}
receive.dicom.address = "127.0.0.1:{port}"
receive.complete_at_end = true
poll_s = 0.1

[[targets]]
name = "by-dicom"
kind = "dicom"
address = "127.0.0.1:{dicom_port}"
called_ae = "{ae_title}"
objects = {by_dicom}

[[targets]]
name = "by-dicomweb"
kind = "dicomweb"
url = "{url}"
objects = {by_web}
"""
BY_DICOM, BY_WEB = ["sr", "seg"], ["capture", "pdf"]
"""Which objects go to Orthanc by C-STORE, and which by STOW-RS."""


@dataclass(frozen=True)
class Site:
    """An agent that receives at ``port`` and sends to an archive; its files are in ``folder``."""

    folder: Path
    port: int
    archive: Orthanc
    edge: Process

    def send(self, study: Path) -> int:
        """Send the images of a folder as a scanner does; return how many there are.

        Raises:
            ServiceFailed: the agent takes no association, or not all images.
        """
        images = [dcmread(file) for file in files_of(study)]
        kinds = {(str(one.SOPClassUID), str(one.file_meta.TransferSyntaxUID)) for one in images}
        ae = AE(SCANNER)
        ae.requested_contexts = [build_context(*kind) for kind in sorted(kinds)]
        association = ae.associate("127.0.0.1", self.port, ae_title=OVERREAD)
        if not association.is_established:
            raise ServiceFailed("the agent takes no association")
        stored = [association.send_c_store(one).get("Status") == 0 for one in images]
        association.release()
        if not all(stored):
            raise ServiceFailed(f"the agent took {sum(stored)} of {len(images)} images")
        return len(images)

    def results(self, study_uid: str, complete: Callable[[Sequence[Dataset]], bool]) -> list[Any]:
        """Wait until what the archive has of a study is complete, and return it.

        Raises:
            ServiceFailed: the agent ended, or it took longer than `ANSWER_S`.
        """
        until = time.monotonic() + ANSWER_S
        while not complete(found := self.find(study_uid)):
            self.edge.require_alive()
            if time.monotonic() > until:
                kinds = sorted({one.Modality for one in found}) or "nothing"
                raise self.edge.failed(f"has sent {kinds} within {ANSWER_S:g} s")
            time.sleep(0.2)
        return found

    def find(self, study_uid: str) -> list[Dataset]:
        """Return the objects that the archive has of a study: QIDO-RS, then WADO-RS."""
        client = DICOMwebClient(self.archive.dicomweb_url)
        series = client.search_for_series(study_uid)
        uids = [one["0020000E"]["Value"][0] for one in series]
        return [one for uid in uids for one in client.retrieve_series(study_uid, uid)]


@contextmanager
def site(out: Path, cloud: str, edge: Sequence[str], *, deadline_s: float) -> Iterator[Site]:
    """Run Orthanc, and an agent between it and the cloud at the address ``cloud``.

    ``edge`` is the command of the agent without its options; the logs are in ``out``.

    Raises:
        MissingProgram: there is no Orthanc.
        ServiceFailed: a process did not start, or ended before its time.
    """
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overread-pacs-")))
        make_folder(folder / "archive")
        archive = held.enter_context(orthanc(folder / "archive"))
        (port,) = free_ports(1)
        config = folder / "edge.toml"
        config.write_text(
            CONFIG.format(
                folder=folder, cloud=cloud, deadline_s=deadline_s, port=port,
                dicom_port=archive.dicom_port, ae_title=archive.ae_title,
                url=archive.dicomweb_url, by_dicom=BY_DICOM, by_web=BY_WEB,
            )
        )  # fmt: skip
        command = (*edge, "--config", str(config))
        agent = held.enter_context(running("edge", command, out / "edge.log"))
        agent.wait_until(lambda: listens(port), "start", START_S)
        yield Site(folder, port, archive, agent)


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
    for number, one in enumerate(objects, 1):
        stem = folder / f"{number:02d}-{one.Modality.lower()}"
        if one.Modality == "CT":
            continue
        if one.Modality == "DOC":
            path = stem.with_suffix(".pdf")
            path.write_bytes(one.EncapsulatedDocument)
        elif one.Modality == "OT":
            path = stem.with_suffix(".png")
            rgb = np.asarray(one.pixel_array, np.uint8)
            path.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
        else:
            path = stem.with_suffix(".dcm")
            buffer = BytesIO()
            one.save_as(buffer, enforce_file_format=True)
            path.write_bytes(buffer.getvalue())
        files.append(path)
    return files


def is_complete(objects: Sequence[Dataset]) -> bool:
    """Return whether all kinds of results are there."""
    return {str(one.Modality) for one in objects} >= EXPECTED


def measurement_groups(item: Dataset) -> Iterator[Dataset]:
    """Yield the measurement groups of a structured report, wherever they are."""
    for one in item.get("ContentSequence", ()):
        name = one.get("ConceptNameCodeSequence", [None])[0]
        if name is not None and name.CodeValue == codes.DCM.MeasurementGroup.value:
            yield one
        yield from measurement_groups(one)
