"""Places to which objects are sent: a Storage SCP, a STOW-RS service, and small DICOM files."""

import re
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import uvicorn
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.dicom_out.scu import send_at_once

FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def write_object(path: Path, *names: str, sop_class: str = EncapsulatedPDFStorage) -> str:
    """Write a small object, and return its UID; the same ``names`` make the same one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    uid = generate_uid(entropy_srcs=[*names, str(sop_class)])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[names[0], "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*names, str(sop_class), "series"])
    dataset.PatientName, dataset.PatientID = "Nobody^Known", "P1"
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.save_as(path, enforce_file_format=True)
    return str(dataset.SOPInstanceUID)


@dataclass
class Pacs:
    """A Storage SCP that keeps the UIDs of what it gets.

    ``answer`` is the status for an object, ``aborts`` says for which it aborts the association.
    """

    port: int = 0
    answer: Callable[[Dataset], int | Dataset] = lambda _dataset: 0x0000
    aborts: Callable[[Dataset], bool] = lambda _dataset: False
    received: list[str] = field(default_factory=list)
    associations: int = 0
    server: Any = None

    def take(self, *classes: str) -> None:
        """Accept these classes alone from now on."""
        self.server.contexts = [build_context(kind) for kind in (*classes, Verification, FIND)]

    @property
    def kept(self) -> list[str]:
        """The UIDs without those that came again."""
        return list(dict.fromkeys(self.received))

    @contextmanager
    def running(
        self,
        tls: ssl.SSLContext | None = None,
        contexts: Sequence[Any] | None = None,
        **limits: Any,
    ) -> Iterator["Pacs"]:
        """Listen for the time of the context, on the same port each time."""

        def store(event: evt.Event) -> int | Dataset:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            if self.aborts(dataset):
                event.assoc.abort()
                return 0x0000
            status = self.answer(dataset)
            code = status if isinstance(status, int) else status.Status
            if code == 0 or code >> 12 == 0xB:
                self.received.append(str(dataset.SOPInstanceUID))
            return status

        def opened(_event: evt.Event) -> None:
            self.associations += 1

        entity = AE("PACS")
        if contexts is None:
            kinds = (EncapsulatedPDFStorage, SecondaryCaptureImageStorage, Verification, FIND)
            contexts = [build_context(kind) for kind in kinds]
        entity.supported_contexts = [*contexts]
        for name, value in limits.items():
            setattr(entity, name, value)

        def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
            if event.identifier.SOPInstanceUID in self.received:
                yield 0xFF00, event.identifier

        handlers = [(evt.EVT_C_STORE, store), (evt.EVT_C_FIND, find), (evt.EVT_ACCEPTED, opened)]
        server = self.server = entity.make_server(
            ("127.0.0.1", self.port), ssl_context=tls, server_class=ThreadedAssociationServer,
            evt_handlers=[*handlers, (evt.EVT_CONN_OPEN, send_at_once)],
        )  # fmt: skip
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            socketserver.TCPServer.shutdown(server)
            server.server_close()


@dataclass
class StowService:
    """A STOW-RS service that keeps the UIDs of what it gets.

    ``answer`` makes the response to an object, None for the usual one.
    """

    answer: Callable[[Dataset], Response | None] = lambda _dataset: None
    token: str = ""
    received: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self, **tls: Any) -> Iterator["StowService"]:
        """Serve for the time of the context; ``tls`` are options of uvicorn."""
        routes = [
            Route("/dicom-web/studies", self._store, methods=["POST"]),
            Route("/dicom-web/studies", self._search, methods=["GET"]),
            Route("/dicom-web/studies/{study}/series/{series}/instances", self._search),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), "127.0.0.1", 0, log_level="critical", lifespan="off", **tls
        )
        server = uvicorn.Server(config)
        sockets = [config.bind_socket()]
        port = sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/dicom-web"
        thread = threading.Thread(target=server.run, args=(sockets,))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()

    def _admits(self, request: Request) -> bool:
        self.hosts.append(request.headers["host"])
        return not self.token or request.headers.get("authorization") == f"Bearer {self.token}"

    async def _search(self, request: Request) -> Response:
        uid = request.query_params.get("SOPInstanceUID")
        found = [{"00080018": {"vr": "UI", "Value": [uid]}}] if uid in self.received else []
        return JSONResponse(found) if self._admits(request) else Response(status_code=401)

    async def _store(self, request: Request) -> Response:
        body = await request.body()
        if not self._admits(request):
            return Response(status_code=401)
        boundary = re.search(r'boundary="([^"]+)"', request.headers["content-type"])
        assert boundary is not None
        (part,) = body.split(f"\r\n--{boundary[1]}".encode())[1:-1]
        dataset = pydicom.dcmread(BytesIO(part.partition(b"\r\n\r\n")[2]))
        if (response := self.answer(dataset)) is not None:
            return response
        self.received.append(str(dataset.SOPInstanceUID))
        return stow_answer(dataset, "ReferencedSOPSequence")


def stow_answer(dataset: Dataset, sequence: str, status: int = 200, reason: int = 0) -> Response:
    """The response module of STOW-RS with the object in one of its sequences."""
    item = Dataset()
    item.ReferencedSOPClassUID = dataset.SOPClassUID
    item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    if reason:
        item.FailureReason = reason
    answer = Dataset()
    setattr(answer, sequence, [item])
    return Response(answer.to_json(), status, media_type="application/dicom+json")
