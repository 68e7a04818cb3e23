"""Two archives that keep what they get: one by C-STORE, one by STOW-RS.

They keep the SHA-256 of each object by its SOP Instance UID, every time that it comes.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

from pydicom import Dataset, dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from evaluation.errors import ServiceFailed
from process.http import Listener, serving

AE_TITLE = "ARCHIVE"


@dataclass
class Archive:
    """What came to an archive: digests by SOP Instance UID, one for each time.

    ``on_object`` is called before an object is kept, with False, and before it is acknowledged,
    with True.
    """

    kept: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    on_object: Callable[[bool], None] = lambda _kept: None
    port: int = 0

    def keep(self, uid: str, content: bytes) -> None:
        """Keep an object."""
        self.on_object(False)
        self.kept[uid].append(hashlib.sha256(content).hexdigest())
        self.on_object(True)

    @contextmanager
    def by_dicom(self) -> Iterator["Archive"]:
        """Listen as a Storage SCP for the time of the context, on the same port each time."""

        def store(event: evt.Event) -> int:
            uid = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]
            self.keep(uid, event.encoded_dataset(include_meta=False))
            return 0x0000

        entity = AE(AE_TITLE)
        entity.supported_contexts = [*AllStoragePresentationContexts]
        entity.add_supported_context(Verification)
        server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
        )
        if server is None:  # pynetdicom returns one where it does not block
            raise ServiceFailed("the archive does not listen")
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()

    @contextmanager
    def by_web(self) -> Iterator["Archive"]:
        """Serve STOW-RS, and a search that finds nothing, for the time of the context."""
        path = "/dicom-web/studies"
        search = Route(path, lambda _request: JSONResponse([]), methods=["GET"])
        app = Starlette(routes=[Route(path, self._post, methods=["POST"]), search])
        with serving(app, Listener(f"127.0.0.1:{self.port}")) as bound:
            self.port = int(bound.address.rpartition(":")[2])
            yield self

    @property
    def url(self) -> str:
        """The address of the DICOMweb service."""
        return f"http://127.0.0.1:{self.port}/dicom-web"

    async def _post(self, request: Request) -> Response:
        body = await request.body()
        boundary = re.search(r'boundary="?([^";]+)"?', request.headers["content-type"])
        if boundary is None:
            return Response(status_code=415)
        stored = []
        for part in body.split(f"--{boundary[1]}".encode())[1:-1]:
            content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            image = dcmread(BytesIO(content), specific_tags=["SOPClassUID", "SOPInstanceUID"])
            self.keep(str(image.SOPInstanceUID), content)
            item = Dataset()
            item.ReferencedSOPClassUID = image.SOPClassUID
            item.ReferencedSOPInstanceUID = image.SOPInstanceUID
            stored.append(item)
        answer = Dataset()
        answer.ReferencedSOPSequence = stored
        return Response(answer.to_json(), media_type="application/dicom+json")
