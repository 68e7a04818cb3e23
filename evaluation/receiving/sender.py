"""Send series by C-STORE as a scanner does."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydicom import Dataset
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext, build_context

SCANNER, OVERREAD = "SCANNER", "OVERREAD"
"""AE titles of the sender and of the agent."""

STORESCU = "storescu"
"""A sender that is a native program, as that of a scanner is."""

PATIENCE_S = 30.0
"""Longest wait for an association, a response or a PDU."""

Endpoint = tuple[str, int]

Image = TypeVar("Image", Path, Dataset)
"""A DICOM file, or a data set with its file meta information."""


@dataclass(frozen=True)
class Sent(Generic[Image]):
    """What became of images that were sent over one association.

    Attributes:
        acknowledged: those that have a response with success, in the order of their sending.
        refused: how many got another status.
        associated: whether there was an association.
        aborted: whether the association ended before it was released.
    """

    acknowledged: tuple[Image, ...] = ()
    refused: int = 0
    associated: bool = True
    aborted: bool = False


def send(
    endpoint: Endpoint,
    images: Sequence[Image],
    on_acknowledged: Callable[[Image], None] = lambda _image: None,
    called: str = OVERREAD,
) -> Sent[Image]:
    """Send images over one association, and release it."""
    sockets = list[socket.socket]()
    ae = AE(SCANNER)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    ae.requested_contexts = contexts_of(images)

    def opened(event: evt.Event) -> None:
        sockets.append(event.assoc.dul.socket.socket)  # type: ignore[union-attr, arg-type]

    association = ae.associate(
        *endpoint, ae_title=called, evt_handlers=[(evt.EVT_CONN_OPEN, opened)]
    )
    try:
        if not association.is_established:
            return Sent(associated=False)
        acknowledged, refused = list[Image](), 0
        for number, image in enumerate(images):
            try:
                status = association.send_c_store(image, msg_id=1 + number % 65_535)
            except RuntimeError:  # pynetdicom: the association has ended
                break
            if "Status" not in status:
                break
            if status.Status == 0x0000:
                acknowledged.append(image)
                on_acknowledged(image)
            else:
                refused += 1
        aborted = not association.is_established
        association.release()
        return Sent(tuple(acknowledged), refused, aborted=aborted)
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


def contexts_of(images: Sequence[Path] | Sequence[Dataset]) -> list[PresentationContext]:
    """Return a presentation context for each SOP class and transfer syntax of the images."""
    metas = [
        one.file_meta if isinstance(one, Dataset) else read_file_meta_info(one) for one in images
    ]
    kinds = {(str(one.MediaStorageSOPClassUID), str(one.TransferSyntaxUID)) for one in metas}
    return [build_context(*kind) for kind in sorted(kinds)]
