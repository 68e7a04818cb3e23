"""The parts of pynetdicom with bounds on time and memory, against hostile or faulty senders.

By itself pynetdicom believes the length that a PDU states, collects a message in memory whatever
its size, waits forever for the rest of a PDU and for a TLS handshake, and ends its thread with a
traceback where a message cannot be decoded. It also sleeps a millisecond between two looks at its
connection and its queues, which is most of the time that an image takes.
"""

import queue
import select
import socket
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from socketserver import BaseServer
from typing import Any, cast

import structlog
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

MAX_REQUEST_BYTES = 1 << 20
"""Largest PDU that requests an association, and largest message that is no C-STORE."""
MAX_WAITING = 2
"""Requests of one association that wait: a sender must wait for each response."""
INVALID = "Evt19"
"""The event of the state machine by which an association is aborted (PS3.8, table 9-10)."""

_LOOK_S = 0.02
"""Longest sleep of a thread of an association; what it waits for wakes it at once."""

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Acknowledges what was received at once: a sender with Nagle's algorithm waits 40 ms otherwise.

The system takes it back, so it is set with each receipt. Only Linux has it.
"""

log = structlog.get_logger()


class DataSetSink(BytesIO, ABC):
    """Takes the place of a message's data set, which pynetdicom fills while it arrives.

    Nothing is held in memory. That of a C-STORE goes to `take`; any other is dropped, and has at
    most `MAX_REQUEST_BYTES`.
    """

    def __init__(self, message: DIMSEMessage, association: Association) -> None:
        super().__init__()
        self.message, self.association = message, association
        self.size = 0

    def write(self, data: Any) -> int:
        """Take the next part; the command is known before it."""
        self.size += len(data)
        if isinstance(self.message, C_STORE_RQ):
            self.take(bytes(data))
        elif self.size > MAX_REQUEST_BYTES:
            raise ValueError("message too large")
        return len(data)

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Take the next part of the data set of a C-STORE."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what has arrived."""


MakeSink = Callable[[DIMSEMessage, Association], DataSetSink]


class BoundedSocket(AssociationSocket):
    """A connection that receives no PDU larger than agreed on, and none for longer than allowed.

    Attributes:
        connection: the socket itself, which pynetdicom forgets without closing it where the peer
            was faster.
    """

    def __init__(self, assoc: Association, connection: socket.socket) -> None:
        super().__init__(assoc, client_socket=connection)
        self.connection = connection

    def recv(self, nr_bytes: int) -> bytearray:
        """Receive bytes; fewer at the end of the connection.

        Raises:
            OSError: they are too many, or take too long.
        """
        association = self.assoc
        limit = MAX_REQUEST_BYTES
        if association.is_established:
            limit = association.ae.maximum_pdu_size
        if nr_bytes > limit:
            raise OSError(f"a PDU of {nr_bytes} bytes, expected at most {limit}")
        connection = cast(socket.socket, self.socket)
        until_s = time.monotonic() + (association.network_timeout or 0.0)
        received = bytearray()
        while len(received) < nr_bytes:
            connection.settimeout(max(0.01, until_s - time.monotonic()))
            part = connection.recv(min(nr_bytes - len(received), 1 << 16))
            if _QUICKACK is not None:
                connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            if not part:
                break
            received += part
            if time.monotonic() > until_s:
                raise TimeoutError("the PDU takes too long")
        connection.settimeout(association.network_timeout)
        return received


class BoundedDul(DULServiceProvider):
    """The upper layer, whose thread ends without a traceback and does not keep the process.

    It sleeps until the peer sends, or there is something to send.
    """

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._run_loop_delay = 0.0  # `_is_transport_event` waits
        self._woken, self._wake = socket.socketpair()
        for one in (self._woken, self._wake):
            one.setblocking(False)

    def run_reactor(self) -> None:
        """Run until the connection ends, whatever the peer sends."""
        try:
            super().run_reactor()
        except Exception as error:  # of any kind: pynetdicom promises none
            log.warning("connection ended by invalid data", error=type(error).__name__)
            close(self.assoc)
        finally:
            self._woken.close()
            self._wake.close()

    def send_pdu(self, primitive: Any) -> None:
        """Queue what is to be sent, and wake the thread that sends it."""
        super().send_pdu(primitive)
        with suppress(OSError):  # it is awake, or has ended
            self._wake.send(b"1")

    def _is_transport_event(self) -> bool:
        """Wait until there is something to do; receive what the peer has sent."""
        transport = cast(AssociationSocket, self.socket)
        if self.event_queue.empty() and not transport.ready:
            try:
                ends = [cast(socket.socket, transport.socket), self._woken]
                ready, _, _ = select.select(ends, [], [], _LOOK_S)
                if self._woken in ready:
                    self._woken.recv(4096)
            except (OSError, ValueError, TypeError):  # the connection is closed
                time.sleep(0.001)
        return super()._is_transport_event()


class BoundedDimse(DIMSEServiceProvider):
    """Assembles messages whose data sets go into sinks."""

    def __init__(self, assoc: Association, make_sink: MakeSink) -> None:
        super().__init__(assoc)
        self._make_sink = make_sink
        self._sink: DataSetSink | None = None

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message, or two None; wait for it a little in any case."""
        with suppress(queue.Empty):
            return self.msg_queue.get(timeout=self.dimse_timeout if block else _LOOK_S)
        return None, None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Process a part of a message; abort the association if it is invalid."""
        try:
            if self.msg_queue.qsize() >= MAX_WAITING:
                raise ValueError("requests without waiting for responses")
            if self.message is None:
                self.message = DIMSEMessage()
                self._sink = self._make_sink(self.message, self.assoc)
                self.message.data_set = self._sink
            if self.message.encoded_command_set.tell() > MAX_REQUEST_BYTES:
                raise ValueError("command too large")
            super().receive_primitive(primitive)
            for _, message in list(self.msg_queue.queue):
                if message is not None and not message.is_valid_request:
                    raise ValueError("incomplete request")  # pynetdicom would not respond to it
        except Exception as error:  # of any kind: pynetdicom promises none
            log.warning("association aborted, invalid message", error=type(error).__name__)
            self.discard()
            self.dul.event_queue.put(INVALID)

    def discard(self) -> None:
        """Remove what has arrived of a data set that will not be complete, or is not wanted."""
        if self._sink is not None:
            self._sink.discard()
        with suppress(queue.Empty):
            while True:
                _, message = self.msg_queue.get_nowait()
                sink = getattr(message, "DataSet", None)
                if isinstance(sink, DataSetSink):
                    sink.discard()


def close(association: Association) -> None:
    """Close the connection of an association, whose threads end then."""
    with suppress(Exception):  # it is closed already, or never was open
        cast(AssociationSocket, association.dul.socket).close()


class BoundedServer(ThreadedAssociationServer):
    """Accepts connections: not too many, and without waiting for one of them.

    Attributes:
        open: the associations whose threads run.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        ae: ApplicationEntity,
        address: Any,
        ae_title: str,
        contexts: Any,
        ssl_context: ssl.SSLContext | None = None,
        *,
        evt_handlers: Any,
        make_sink: MakeSink,
        max_connections: int,
        on_refused: Callable[[str, str], None],
        on_end: Callable[[Association], None],
    ) -> None:
        self.make_sink, self.max_connections = make_sink, max_connections
        self._on_refused, self._on_end = on_refused, on_end
        self.open: set[Association] = set()
        self._tls = ssl_context
        self._handshakes = threading.BoundedSemaphore(max_connections)
        super().__init__(
            ae,
            address,
            ae_title,
            contexts,
            None,  # the handshake is not for the thread that accepts
            evt_handlers=evt_handlers,
            request_handler=BoundedHandler,
        )

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse a connection where too many are open."""
        del request
        if len(self.open) < self.max_connections and self._handshakes.acquire(blocking=False):
            return True
        self._on_refused(str(client_address[0]), "too many connections")
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make the TLS handshake, and start the association."""
        try:
            request.settimeout(self.ae.acse_timeout)
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True)
            request.settimeout(self.ae.network_timeout)
            self.finish_request(request, client_address)
        except Exception as error:  # of any kind: the next connection must be served
            kind = "TLS" if isinstance(error, ssl.SSLError) else type(error).__name__
            self._on_refused(str(client_address[0]), kind)
            self.shutdown_request(request)
        finally:
            self._handshakes.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what kept a connection from being served, for example no more threads."""
        del request
        log.error("connection failed", peer=str(client_address[0]), exc_info=True)

    def shutdown(self) -> None:
        """Stop to accept connections."""
        BaseServer.shutdown(self)
        self.server_close()

    def service_actions(self) -> None:
        """Look after associations that have ended, every half second.

        Pynetdicom collects garbage here, which would hold up the study that is being read.
        """
        for association in list(self.open):
            # one that was not started yet has no identifier
            if association.ident is None or association.is_alive() or association.dul.is_alive():
                continue
            self.open.discard(association)
            cast(BoundedSocket, association.dul.socket).connection.close()
            cast(BoundedDimse, association.dimse).discard()
            self._on_end(association)


class BoundedHandler(RequestHandler):
    """Makes an association of bounded parts."""

    def _create_association(self) -> Association:
        server = cast(BoundedServer, self.server)
        association = super()._create_association()
        association.dul = BoundedDul(association)
        association.dimse = BoundedDimse(association, server.make_sink)
        # they are kept in the upper layer, which is new
        association.acse_timeout = server.ae.acse_timeout
        association.network_timeout = server.ae.network_timeout
        association.set_socket(BoundedSocket(association, self.request))
        server.open.add(association)
        return association
