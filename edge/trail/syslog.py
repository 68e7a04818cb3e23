"""Send the audit trail to a syslog server over TLS (RFC 5424 messages, framed as RFC 5425 says).

Syslog has no acknowledgement. So each batch has a connection of its own, which is closed as RFC
5425, section 4.4, demands: the server answers our end of TLS with its own, and does so only after
it has read all before it. Only then the records count as confirmed, and the sequence is noted in
the database. Records that are not confirmed are sent again: the server may get one twice, and
never misses one. A server that is away delays nothing.
"""

import os
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import structlog

from edge.database import open_database
from edge.errors import BadSettings
from edge.settings.core import EdgeSettings
from edge.trail.files import records_after
from edge.trail.messages import OUTCOME_OK, AuditSource, message_of, outcome_of
from edge.trail.records import TrailRecord
from edge.trail.store import FOLDER, TrailStore

POLL_S = 2.0
"""Pause between two looks for new records."""
LONGEST_PAUSE_S = 300.0
"""Longest pause after a failure; it doubles from `POLL_S`."""
TIMEOUT_S = 10.0
"""Time for connecting, for each write, and for the server's end of TLS."""
BATCH = 200
"""Records sent over one connection."""
FACILITY, NOTICE, WARNING = 10, 5, 4
"""Security messages, and their severities (PS3.15, A.6)."""
MESSAGE_ID = "DICOM+RFC3881"

log = structlog.get_logger()


@dataclass(frozen=True)
class SyslogServer:
    """Where messages are sent: host, port, and how TLS is done."""

    host: str
    port: int
    context: ssl.SSLContext

    @classmethod
    def of(cls, settings: EdgeSettings) -> "SyslogServer | None":
        """Return the server of the settings; None if there is none.

        Raises:
            BadSettings: a certificate or key cannot be used.
        """
        if settings.audit_syslog is None:
            return None
        host, _, port = settings.audit_syslog.rpartition(":")
        if problems := settings.audit_tls.problems():
            raise BadSettings("; ".join(problems))
        context = ssl.create_default_context(cafile=settings.audit_syslog_ca)
        if settings.audit_syslog_cert is not None and settings.audit_syslog_key is not None:
            context.load_cert_chain(settings.audit_syslog_cert, settings.audit_syslog_key)
        return cls(host.strip("[]"), int(port), context)

    def send(self, messages: Sequence[bytes]) -> None:
        """Send messages over one connection; the server has them all once this returns.

        Raises:
            OSError: it may have none, some or all of them.
        """
        with socket.create_connection((self.host, self.port), TIMEOUT_S) as plain:
            plain.settimeout(TIMEOUT_S)
            with self.context.wrap_socket(plain, server_hostname=self.host) as tls:
                for message in messages:
                    tls.sendall(b"%d %b" % (len(message), message))
                tls.unwrap().close()


def syslog_message(record: TrailRecord, source: AuditSource) -> bytes:
    """Return a record as a message of RFC 5424 without its frame; empty for an unknown event."""
    text = message_of(record, source)
    if not text:
        return b""
    severity = NOTICE if outcome_of(record) == OUTCOME_OK else WARNING
    host = source.host or "-"
    header = f"<{8 * FACILITY + severity}>1 {record.time} {host} overread-edge {os.getpid()}"
    return f"{header} {MESSAGE_ID} - \ufeff{text}".encode()


class SyslogSender:
    """Sends what a trail has beyond the last confirmed record.

    Args:
        database: of the agent; the trail's files lie beside it.
        site: for the messages; may be empty.
    """

    def __init__(self, server: SyslogServer, database: Path, site: str) -> None:
        self._server, self._database, self._site = server, database, site

    def send_once(self) -> int:
        """Send the next batch; return how many records were confirmed.

        Raises:
            OSError: the server cannot be reached, or did not confirm; or files cannot be read.
            sqlite3.Error: the database cannot be read or written now.
        """
        with closing(open_database(self._database)) as opened:
            trail = TrailStore(opened, self._database.parent / FOLDER)
            head, confirmed = trail.head(), trail.confirmed
            if head is None or head.sequence <= confirmed:
                return 0
            batch = list(islice(records_after(trail.folder, confirmed), BATCH))
            if not batch:
                return 0
            source = AuditSource(head.agent, self._site, socket.gethostname())
            self._server.send([m for one in batch if (m := syslog_message(one, source))])
            trail.confirm(batch[-1].sequence)
            return len(batch)


@contextmanager
def sending(sender: SyslogSender | None) -> Iterator[None]:
    """Send in a thread of its own while entered."""
    if sender is None:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_run, args=(sender, stop), name="audit syslog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2 * TIMEOUT_S)


def _run(sender: SyslogSender, stop: threading.Event) -> None:
    pause_s, said = POLL_S, ""
    while True:
        ends = stop.is_set()  # one look more, for the record of the stop
        if ends and said:
            return  # the server is away: the next start sends it
        try:
            sent = sender.send_once()
            pause_s = 0.0 if sent else POLL_S
            if said and sent:
                log.info("audit trail is sent again")
                said = ""
        except (OSError, sqlite3.Error) as error:
            pause_s = min(LONGEST_PAUSE_S, 2 * max(pause_s, POLL_S / 2))
            if str(error) != said:
                log.warning("audit trail cannot be sent, its records wait", reason=str(error))
            said = str(error)
        if ends:
            return
        stop.wait(pause_s)
