"""Send series by C-STORE as a scanner does, and copy them so that each is a series of its own."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext, build_context

SCANNER, OVERREAD = "SCANNER", "OVERREAD"
"""AE titles of the sender and of the agent."""

STORESCU = "storescu"
"""A sender that is a native program, as that of a scanner is."""

PATIENCE_S = 30.0
"""Longest wait for an association, a response or a PDU."""

Endpoint = tuple[str, int]


@dataclass(frozen=True)
class Series:
    """The files of a series, and whose it is."""

    files: tuple[Path, ...]
    study_uid: str
    patient_id: str


@dataclass(frozen=True)
class Sent:
    """What became of files that were sent over one association.

    Attributes:
        acknowledged: those that have a response with success, in the order of their sending.
        refused: how many got another status.
        associated: whether there was an association.
    """

    acknowledged: tuple[Path, ...] = ()
    refused: int = 0
    associated: bool = True


def copied(files: Sequence[Path], folder: Path) -> Series:
    """Write files into a new folder as another series, of another study and patient."""
    folder.mkdir(parents=True)
    study, series, copies = generate_uid(), generate_uid(), []
    patient = str(study[-16:])
    for number, file in enumerate(files):
        image = dcmread(file)
        image.PatientID = patient
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        copies.append(folder / f"{number:05d}.dcm")
        image.save_as(copies[-1])
    return Series(tuple(copies), str(study), patient)


def send(
    endpoint: Endpoint,
    files: Sequence[Path],
    on_acknowledged: Callable[[Path], None] = lambda _file: None,
    called: str = OVERREAD,
    record: Callable[[bytes], None] = lambda _pdu: None,
) -> Sent:
    """Send files over one association, and release it; ``record`` gets each PDU that is sent."""
    sockets = list[socket.socket]()
    ae = AE(SCANNER)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    ae.requested_contexts = contexts_of(files)

    def opened(event: evt.Event) -> None:
        sockets.append(event.assoc.dul.socket.socket)  # type: ignore[union-attr, arg-type]

    def sent(event: evt.Event) -> None:
        record(event.data)

    handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, opened), (evt.EVT_DATA_SENT, sent)]
    association = ae.associate(*endpoint, ae_title=called, evt_handlers=handlers)
    try:
        if not association.is_established:
            return Sent(associated=False)
        acknowledged, refused = list[Path](), 0
        for number, file in enumerate(files):
            try:
                status = association.send_c_store(file, msg_id=1 + number % 65_535)
            except RuntimeError:  # pynetdicom: the association has ended
                break
            if "Status" not in status:
                break
            if status.Status == 0x0000:
                acknowledged.append(file)
                on_acknowledged(file)
            else:
                refused += 1
        association.release()
        return Sent(tuple(acknowledged), refused)
    finally:
        if association.is_alive():
            association.abort()
        for one in sockets:  # pynetdicom leaves those open that the other side has closed
            one.close()


def send_files(endpoint: Endpoint, files: Sequence[Path]) -> bool:
    """Send a series, by DCMTK where it is installed; return whether all of it is acknowledged."""
    if storescu := shutil.which(STORESCU):
        titles = ["-aet", SCANNER, "-aec", OVERREAD, "-ta", "30", "-td", "30"]
        host, port = endpoint
        command = [storescu, "--required", *titles, host, str(port), *map(str, files)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return len(send(endpoint, files).acknowledged) == len(files)


def sender_name() -> str:
    """Return what `send_files` sends with."""
    return STORESCU if shutil.which(STORESCU) else "pynetdicom"


def contexts_of(files: Sequence[Path]) -> list[PresentationContext]:
    """Return a presentation context for each SOP class and transfer syntax of the files."""
    metas = map(read_file_meta_info, files)
    kinds = {(str(one.MediaStorageSOPClassUID), str(one.TransferSyntaxUID)) for one in metas}
    return [build_context(*kind) for kind in sorted(kinds)]
