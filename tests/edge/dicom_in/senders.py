"""Senders for the tests of receiving, and the ports that they send to."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification

from edge.dicom_in import scp, stow
from edge.dicom_in.received import ReceivedStore, ReceiveMetrics
from edge.dicom_out.scu import keep_responses
from edge.telemetry import EdgeTelemetry
from evaluation import world
from tests.imaging.small_ct import SmallCt

IMAGES = SmallCt(count=12).images()
ANYWHERE = "127.0.0.1:0"
BOUNDARY = "boundary-of-a-test"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
_SERIES = count(1000)


settings_in = partial(world.settings_in, receive__min_free_mb=1)
"""Settings of an agent that keeps little of the disk free."""


def new_images(number: int = 2, **attributes: object) -> list[Dataset]:
    """The images of a series that no other test sends."""
    series = str(next(_SERIES))
    own = {"StudyInstanceUID": f"1.2.826.2.{series}", **attributes}
    return SmallCt(number, series=series, attributes=own).images()


def changed(image: Dataset, **attributes: object) -> Dataset:
    other = deepcopy(image)
    for keyword, value in attributes.items():
        setattr(other, keyword, value)
    return other


def file_of(image: Dataset) -> bytes:
    stream = BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@dataclass
class Port:
    """A port that receives, and what lies behind it; ``free`` is the free disk space."""

    address: str
    inbox: Path = Path()
    telemetry: EdgeTelemetry = field(default_factory=EdgeTelemetry)
    free: list[int] = field(default_factory=lambda: [10**12])

    @property
    def endpoint(self) -> tuple[str, int]:
        host, port = self.address.rsplit(":", 1)
        return host.strip("[]"), int(port)

    def counted(self, name: str, **labels: str) -> float:
        """A metric's value; 0 for none."""
        return self.telemetry.registry.get_sample_value(f"overread_edge_{name}", labels) or 0.0

    def files(self, images: Sequence[Dataset]) -> dict[str, Path]:
        """The stored files of the series of these images, by name."""
        found = self.inbox.glob(f"*/{images[0].SeriesInstanceUID}/*.dcm")
        return {path.name: path for path in found}


@dataclass(frozen=True)
class Door:
    """One of the two ways to send.

    Attributes:
        send: sends instances, images or files of bytes; the code for each, 0 for success.
        begin: begins to send an image, and waits half-way; returns what ends it.
    """

    way: str
    receiving: Callable[..., Any]
    send: Callable[..., list[int]]
    begin: Callable[[Port, Dataset], Callable[[], None]]

    @contextmanager
    def open(self, root: Path, max_open: int = 10, **values: object) -> Iterator[Port]:
        """A port without an agent; ``values`` are settings of its own table, or ``receive__…``.

        At most ``max_open`` associations or requests are open at once.
        """
        own = {n if "__" in n else f"receive__{self.way}__{n}": v for n, v in values.items()}
        settings = settings_in(root, **{f"receive__{self.way}__address": ANYWHERE, **own})
        settings.inbox.mkdir(exist_ok=True)
        port, receive = Port("", settings.inbox), settings.receive
        metrics = ReceiveMetrics(port.telemetry)
        store = ReceivedStore(port.inbox, receive, metrics, free_bytes=lambda _: port.free[0])
        with (
            patch.object(scp, "MAX_ASSOCIATIONS", max_open),
            patch.object(stow, "MAX_REQUESTS", max_open),
            self.receiving(receive, store, metrics) as (port.address, _),
        ):
            yield port


def associate(
    port: Port,
    *,
    caller: str = "SCANNER",
    called: str = "OVERREAD",
    sop_class: str = CTImageStorage,
    syntax: str = ExplicitVRLittleEndian,
    tls: object = None,
) -> Association:
    """An association that asks for one storage class, and verification."""
    ae = AE(caller)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    ae.add_requested_context(sop_class, syntax)
    ae.add_requested_context(Verification)
    association = ae.associate(
        *port.endpoint,
        ae_title=called,
        tls_args=tls,  # type: ignore[arg-type]
        evt_handlers=[(evt.EVT_CONN_OPEN, _remember)],
    )
    keep_responses(association)
    return association


CONNECTIONS: list[Any] = []
"""Sockets of associations: pynetdicom leaves those open that the other side has closed."""


def _remember(event: evt.Event) -> None:
    CONNECTIONS.append(event.assoc.dul.socket.socket)  # type: ignore[union-attr]


def _request(data_set: bytes, **fields: object) -> C_STORE:
    message = C_STORE()
    message.MessageID, message.Priority = 1, 2
    message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = CTImageStorage, "1.2"
    message.DataSet = BytesIO(data_set)
    for keyword, value in fields.items():
        setattr(message, keyword, value)
    return message


def _context(association: Association) -> int:
    one = next(c for c in association.accepted_contexts if c.abstract_syntax == CTImageStorage)
    assert one.context_id is not None
    return one.context_id


def store_raw(association: Association, data_set: bytes, **fields: object) -> int:
    """Send a request whose fields need not be those of the data set; its status."""
    association.dimse.send_msg(_request(data_set, **fields), _context(association))
    _, answer = association.dimse.get_msg(block=True)
    return int(getattr(answer, "Status", None) or 0)


def data_set_of(file: bytes) -> bytes:
    stream = BytesIO(file)
    stream.seek(132)
    read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    return file[stream.tell() :]


def by_dicom(port: Port, *instances: Dataset | bytes, **how: Any) -> list[int]:
    association = associate(port, **how)
    if not association.is_established:
        raise ConnectionError
    codes = [
        store_raw(association, data_set_of(instance))
        if isinstance(instance, bytes)
        else int(association.send_c_store(instance).Status)
        for instance in instances
    ]
    association.release()
    return codes


def begin_by_dicom(port: Port, image: Dataset) -> Callable[[], None]:
    association, dimse = associate(port), C_STORE_RQ()
    uid = image.SOPInstanceUID
    dimse.primitive_to_message(_request(data_set_of(file_of(image)), AffectedSOPInstanceUID=uid))
    for part in [*dimse.encode_msg(_context(association), 1000)][:-1]:
        association.dul.send_pdu(part)
    return association.abort


def body(*parts: bytes, kind: str = "application/dicom", closed: bool = True) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode()
    end = f"--{BOUNDARY}--\r\n".encode() if closed else b""
    return b"".join(head + part + b"\r\n" for part in parts) + end


def post(
    port: Port,
    content: Any,
    path: str = "/dicom-web/studies",
    tls: Any = None,
    headers: Mapping[str, Any] = {},
) -> httpx.Response:
    url = f"http://{port.address}" if tls is None else f"https://localhost:{port.endpoint[1]}"
    given = {"Content-Type": TYPE, **headers}
    return httpx.post(url + path, content=content, headers=given, timeout=60, verify=tls or False)


def items(response: httpx.Response, tag: str) -> list[dict[str, Any]]:
    """The items of a sequence, each value by tag."""
    found = response.json().get(tag, {}).get("Value", [])
    return [{key: e["Value"][0] for key, e in item.items() if "Value" in e} for item in found]


def by_stow(port: Port, *instances: Dataset | bytes, tls: Any = None) -> list[int]:
    codes = []
    for instance in instances:
        content = body(instance if isinstance(instance, bytes) else file_of(instance))
        try:
            answer = post(port, content, tls=tls[0] if tls else None)
        except httpx.TransportError as error:
            raise ConnectionError from error
        failed = items(answer, "00081198") + items(answer, "0008119A")
        codes += [item["00081197"] for item in failed] or [0]
    return codes


def begin_by_stow(port: Port, image: Dataset) -> Callable[[], None]:
    sender = socket.create_connection(port.endpoint, 30)
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
    sender.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + body(file_of(image))[:500])
    return sender.close


DICOM = Door("dicom", scp.receiving_by_dicom, by_dicom, begin_by_dicom)
STOW = Door("stow", stow.receiving_by_stow, by_stow, begin_by_stow)


def received(inbox: Path) -> dict[str, list[str]]:
    """The folders in the inbox, and the images in each."""
    folders = [path for path in inbox.iterdir() if not path.name.startswith(".")]
    return {folder.name: sorted(path.name for path in folder.rglob("*.dcm")) for folder in folders}


def names(images: Sequence[Dataset]) -> list[str]:
    return sorted(f"{image.SOPInstanceUID}.dcm" for image in images)


def on_their_way(inbox: Path) -> list[str]:
    return os.listdir(inbox / ".receiving")
