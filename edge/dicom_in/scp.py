"""Receive studies by C-STORE, and answer C-ECHO: the DICOM node of the agent.

Data sets go to the disk as they come, and keep their transfer syntax.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from edge.dicom_in.bounds import BoundedServer, DataSetSink, close
from edge.dicom_in.identity import Refused, checked_uid
from edge.dicom_in.incoming import SOP_CLASSES, Expected, Incoming, Sender, Source
from edge.dicom_in.received import ReceivedStore, ReceiveMetrics
from edge.errors import BadSettings
from edge.settings.core import MB
from edge.settings.receive import Peer, ReceiveSettings, plain_address
from imaging.dicom.pixels import TRANSFER_SYNTAXES
from process.http import address_text, host_and_port, reason_of
from process.logs import quieten

WAY = "dicom"
DRAIN_S = 10.0
"""Longest time that instances on their way have at the end."""
ABORT_S = 2.0
"""Longest time that senders have to close connections after their association was aborted."""
MAX_ASSOCIATIONS = 10
"""Associations that are open at once; more are rejected."""
MAX_PDU_BYTES = 131_072
"""Largest PDU that is received."""
SPARE_CONNECTIONS = 16
"""Connections beyond the open associations: each gets its rejection, or has not asked yet."""

log = structlog.get_logger()


class Rejection(Enum):
    """Why an association is rejected: words of log and metrics, and the answer (PS3.8, table 9-21).

    The answer is result, source and reason.
    """

    CALLING = "calling AE title", (0x01, 0x01, 0x03)
    CALLED = "called AE title", (0x01, 0x01, 0x07)
    LIMIT = "too many associations", (0x02, 0x03, 0x02)
    STOPPING = "stopping", (0x02, 0x03, 0x01)

    def __init__(self, words: str, answer: tuple[int, int, int]) -> None:
        self.words, self.answer = words, answer


@contextmanager
def receiving_by_dicom(
    settings: ReceiveSettings, store: ReceivedStore, metrics: ReceiveMetrics
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Receive studies while entered; yield the bound address, and whether it is served.

    At the end the instances that are on their way have some seconds, and no others are begun.

    Raises:
        BadSettings: the port cannot be bound.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    quieten()
    node = _Node(settings, store, metrics)
    server = node.server()
    thread = threading.Thread(target=server.serve_forever, name="dicom", daemon=True)
    thread.start()
    try:
        host, _ = host_and_port(settings.dicom.address)
        address = address_text(host, server.server_address[1])
        log.info("receiving by DICOM", address=address, ae_title=settings.dicom.ae_title)
        yield address, thread.is_alive
    finally:
        node.drain(server)
        server.shutdown()
        thread.join()


class _Node:
    """Decides who may send, and answers."""

    def __init__(
        self, settings: ReceiveSettings, store: ReceivedStore, metrics: ReceiveMetrics
    ) -> None:
        self._settings, self._store, self._metrics = settings, store, metrics
        self._peers = tuple(map(Peer.of, settings.dicom.peers))
        self._lock = threading.Lock()
        self._senders: dict[Association, Sender] = {}
        self._on_their_way: set[DataSetSink] = set()
        self._stopping = False

    def server(self) -> BoundedServer:
        """Make the server, and bind its port."""
        dicom, timeout_s = self._settings.dicom, self._settings.timeout_s
        ae = AE(dicom.ae_title)
        ae.maximum_pdu_size = MAX_PDU_BYTES
        ae.network_timeout = ae.dimse_timeout = timeout_s
        ae.acse_timeout = timeout_s / 2
        ae.maximum_associations = MAX_ASSOCIATIONS + 2 * SPARE_CONNECTIONS
        ae.add_supported_context(Verification)
        for sop_class in sorted(SOP_CLASSES):
            ae.add_supported_context(sop_class, sorted(TRANSFER_SYNTAXES))
        host, port = host_and_port(dicom.address)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            server = ae.make_server(
                cast(tuple[str, int], found[0][4]),
                ssl_context=dicom.tls.server_context(),
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._on_requested),
                    (evt.EVT_C_ECHO, lambda _event: 0x0000),
                    (evt.EVT_C_STORE, self._on_store),
                    (evt.EVT_RELEASED, self._on_released),
                ],
                server_class=BoundedServer,
                make_sink=self._make_sink,
                max_connections=MAX_ASSOCIATIONS + SPARE_CONNECTIONS,
                on_refused=self._on_refused_connection,
                on_end=self._on_end,
            )
            return cast(BoundedServer, server)
        except OSError as error:
            setting = f"receive.dicom.address = {dicom.address}"
            raise BadSettings(f"{setting}: {reason_of(error)}") from error

    def drain(self, server: BoundedServer) -> None:
        """Reject new associations and instances, wait for those on their way, end the others."""
        self._stopping = True
        self._store.stop()
        until_s = time.monotonic() + DRAIN_S
        while self._on_their_way and time.monotonic() < until_s:
            time.sleep(0.01)
        for association in list(server.open):
            association.abort(block=False)
        until_s = time.monotonic() + ABORT_S
        while server.open and time.monotonic() < until_s:
            time.sleep(0.01)  # the server's thread sees their end
        for association in list(server.open):
            close(association)

    def _on_requested(self, event: evt.Event) -> None:
        """Reject the association, or note who it is from."""
        association = event.assoc
        caller = peer = ""
        rejection: Rejection | None = Rejection.CALLING
        # pynetdicom accepts the association if this raises: until all is checked it is rejected
        try:
            request: Any = association.requestor.primitive
            caller = str(request.calling_ae_title or "").strip()
            called = str(request.called_ae_title or "").strip()
            peer = str(association.requestor.address)
            with self._lock:
                rejection = self._rejection(caller, called, peer)
                if rejection is None:
                    self._senders[association] = Sender(Source(WAY, caller, called, peer))
                    self._metrics.associations.set(len(self._senders))
        finally:
            if rejection is not None:
                association.acse.send_reject(*rejection.answer)
                reason = rejection.words
                self._metrics.refused_associations.labels(reason).inc()
                log.warning("association rejected", peer=peer, caller=caller, reason=reason)
                association.kill()  # returns when the connection is closed

    def _rejection(self, caller: str, called: str, peer: str) -> Rejection | None:
        if self._stopping:
            return Rejection.STOPPING
        admitted = any(one.admits(caller, peer) for one in self._peers)
        if not (admitted if self._peers else plain_address(peer).is_loopback):
            return Rejection.CALLING
        if called != self._settings.dicom.ae_title:
            return Rejection.CALLED
        if len(self._senders) >= MAX_ASSOCIATIONS:
            return Rejection.LIMIT
        return None

    def _on_store(self, event: evt.Event) -> Dataset:
        """Make the instance durable; only then does pynetdicom acknowledge it."""
        request: Any = event.request
        sink = request.DataSet
        expected = Expected(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        response = Dataset()
        response.Status = 0x0000
        try:
            incoming = sink.incoming if isinstance(sink, _StoreSink) else None
            self._store.keep(incoming, expected, self._senders[event.assoc])
        except Refused as refusal:
            response.Status = refusal.reason.status
            response.ErrorComment = str(refusal)[:64]
        finally:
            if isinstance(sink, _StoreSink):
                sink.discard()
        return response

    def _on_released(self, event: evt.Event) -> None:
        if (sender := self._senders.get(event.assoc)) is not None:
            self._store.released(sender, complete=self._settings.complete_at_end)

    def _on_end(self, association: Association) -> None:
        with self._lock:
            sender = self._senders.pop(association, None)
            self._metrics.associations.set(len(self._senders))
        if sender is not None:
            self._store.released(sender, complete=False)

    def _on_refused_connection(self, peer: str, reason: str) -> None:
        self._metrics.refused_associations.labels(reason).inc()
        log.warning("connection refused", peer=peer, reason=reason)

    def _make_sink(self, message: DIMSEMessage, association: Association) -> DataSetSink:
        most = 2 * self._settings.max_instance_mb * MB
        return _StoreSink(message, association, self._store, self._on_their_way, most)


class _StoreSink(DataSetSink):
    """Writes the data set of a C-STORE into the store.

    One that is refused while it arrives is received to its end, so that the sender gets its
    response, but not beyond ``most`` bytes.
    """

    def __init__(
        self,
        message: DIMSEMessage,
        association: Association,
        store: ReceivedStore,
        on_their_way: set[DataSetSink],
        most: int,
    ) -> None:
        super().__init__(message, association)
        self._store, self._on_their_way, self._most = store, on_their_way, most
        self.incoming: Incoming | None = None

    def take(self, data: bytes) -> None:
        """Write the next part; before the first one the file meta information."""
        if self.size > self._most:
            raise ValueError("data set without end")
        if self.incoming is None:
            self.incoming = self._store.begin()
            self._on_their_way.add(self)
            with self.incoming.refusing():
                self.incoming.write(self._file_meta())
                self.incoming.begin_data_set()
        self.incoming.write(data)

    def discard(self) -> None:
        """Remove what has arrived; an instance that is stored stays."""
        if self.incoming is not None:
            self.incoming.discard()
        self._on_their_way.discard(self)

    def _file_meta(self) -> bytes:
        """Return preamble, prefix and file meta information, as the request says."""
        command = self.message.command_set
        contexts = self.association.accepted_contexts
        syntaxes = [one for one in contexts if one.context_id == self.message.context_id]
        if not syntaxes:
            raise ValueError("presentation context was not accepted")
        sop_class = checked_uid(str(command.AffectedSOPClassUID), "Affected SOP Class UID")
        instance = checked_uid(str(command.AffectedSOPInstanceUID), "Affected SOP Instance UID")
        meta = create_file_meta(
            sop_class_uid=UID(sop_class),
            sop_instance_uid=UID(instance),
            transfer_syntax=syntaxes[0].transfer_syntax[0],
        )
        return bytes(128) + b"DICM" + encode_file_meta(meta)
