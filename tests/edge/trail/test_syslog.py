"""The trail reaches a real TLS server whole, however often server and link fail on the way."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import struct
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Self
from xml.etree import ElementTree as ET

import pytest

from edge.database import open_database
from edge.errors import BadSettings
from edge.settings.core import EdgeSettings, load_settings
from edge.trail.records import ORIGIN, Event, TrailRecord, digest
from edge.trail.store import TrailStore
from edge.trail.syslog import SyslogSender, SyslogServer
from evaluation.recovery.agent import settings_in
from tests.edge.builders import put
from tests.edge.running_agent import wait_until, work_off
from tests.pki import make_pki

HEADER = re.compile(
    rb"<(\d+)>1 \d{4}-\d\d-\d\dT\S+\+00:00 \S+ overread-edge \d+ DICOM\+RFC3881 - \xef\xbb\xbf"
)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = ("CN=x", "subjectAltName=IP:127.0.0.1")
    return make_pki(tmp_path_factory.mktemp("pki"), server=here, edge=here)


class Server:
    """A syslog server with mutual TLS, which keeps what it has read of each connection.

    The first ``failures`` connections it resets after ``reads`` bytes.
    """

    def __init__(self, pki: Path, *, port: int = 0, failures: int = 0, reads: int = 0) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki / "ca.pem")
        self._context.load_cert_chain(pki / "server.pem", pki / "server.key")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._failures, self._reads = failures, reads
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self.streams: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                with plain, suppress(OSError):
                    self._read(plain)

    def _read(self, plain: socket.socket) -> None:
        with self._context.wrap_socket(plain, server_side=True) as tls:
            stream = b""
            if self._failures:
                self._failures -= 1
                while len(stream) < self._reads:
                    stream += tls.recv(self._reads - len(stream))
                tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            while data := tls.recv(65536):
                stream += data
            self.streams.append(stream)
            tls.unwrap()

    def messages(self) -> list[bytes]:
        """All messages, taken out of their frames (RFC 5425, section 4.3)."""
        found = []
        for stream in self.streams:
            while stream:
                length, _, rest = stream.partition(b" ")
                found.append(rest[: int(length)])
                stream = rest[int(length) :]
        return found

    def records(self) -> list[TrailRecord]:
        """The records that the messages carry."""
        found = []
        for message in self.messages():
            match = HEADER.match(message)
            assert match is not None
            tree = ET.fromstring(message[match.end() :])
            (detail,) = tree.iter("ParticipantObjectDetail")
            line = base64.b64decode(detail.attrib["value"]).decode()
            record = TrailRecord.parse(line)
            assert int(match[1]) == 10 * 8 + (4 if record.event == Event.REJECTED else 5)
            found.append(record)
        return found


def settings_of(pki: Path, port: int, **more: object) -> EdgeSettings:
    files = {"ca": pki / "ca.pem", "cert": pki / "edge.pem", "key": pki / "edge.key"} | more
    given = {f"audit_syslog_{name}": path for name, path in files.items()}
    return load_settings(audit_syslog=f"127.0.0.1:{port}", **given)


def sender_to(port: int, pki: Path, database: Path) -> SyslogSender:
    server = SyslogServer.of(settings_of(pki, port))
    assert server is not None
    return SyslogSender(server, database, "Nord")


def record(database: Path, *names: str) -> None:
    with closing(open_database(database)) as opened:
        trail = TrailStore(opened, database.parent / "trail")
        for name in names:
            trail.record(Event.REJECTED, study_key=name, kind="NotCt")
        trail.flush()


def chained(records: list[TrailRecord]) -> bool:
    """Whether these are all records from the first on, by the hashes in them."""
    previous = ORIGIN
    for one in records:
        if one.previous != previous:
            return False
        previous = digest(one.line)
    return True


def names_of(records: list[TrailRecord]) -> list[str]:
    return [one.fields["study_key"] for one in records if one.event == Event.REJECTED]


def test_each_record_is_sent_once_and_the_server_can_check_the_chain(
    tmp_path: Path, pki: Path
) -> None:
    database = tmp_path / "s.db"
    with Server(pki) as server:
        sender = sender_to(server.port, pki, database)
        assert sender.send_once() == 0
        record(database, "a", "ü\ud800")
        assert sender.send_once() == 3
        assert sender.send_once() == 0
        record(database, "c")
        assert sender_to(server.port, pki, database).send_once() == 1
    assert names_of(server.records()) == ["a", "ü\ud800", "c"]
    assert chained(server.records())


def test_a_server_that_was_away_gets_all_when_it_is_back(tmp_path: Path, pki: Path) -> None:
    database = tmp_path / "s.db"
    with Server(pki) as gone:
        port = gone.port
    record(database, "a")
    with pytest.raises(OSError, match="refused"):
        sender_to(port, pki, database).send_once()
    record(database, "b")
    with Server(pki, port=port) as server:
        assert sender_to(port, pki, database).send_once() == 3
    assert names_of(server.records()) == ["a", "b"]


@pytest.mark.parametrize("reads", [0, 1, 5000])
def test_what_the_server_did_not_confirm_is_sent_again(
    tmp_path: Path, pki: Path, reads: int
) -> None:
    """It dies after the handshake, in the first message, and after some."""
    database = tmp_path / "s.db"
    record(database, *(str(number) for number in range(50)))
    with Server(pki, failures=2, reads=reads) as server:
        sender = sender_to(server.port, pki, database)
        for _ in range(2):
            with pytest.raises(OSError):  # noqa: PT011 - which one depends on the moment
                sender.send_once()
        assert sender.send_once() == 51
    assert names_of(server.records()) == [str(number) for number in range(50)]
    assert chained(server.records())


def test_nothing_is_sent_to_a_server_of_another_authority(
    tmp_path: Path, pki: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = ("CN=x", "subjectAltName=IP:127.0.0.1")
    other = make_pki(tmp_path_factory.mktemp("other"), server=here)
    record(tmp_path / "s.db", "a")
    with Server(other) as server, pytest.raises(ssl.SSLCertVerificationError):
        sender_to(server.port, pki, tmp_path / "s.db").send_once()
    assert server.streams == []


def test_the_agent_sends_its_trail_up_to_its_own_end(tmp_path: Path, pki: Path) -> None:
    put(tmp_path / "inbox", "a", "bad")
    with Server(pki) as server:
        syslog = settings_of(pki, server.port)
        names = [f"audit_syslog{end}" for end in ("", "_ca", "_cert", "_key")]
        work_off(tmp_path, settings={name: getattr(syslog, name) for name in names})
        wait_until(lambda: len(server.streams) > 0)
    events = [one.event for one in server.records()]
    assert events == [Event.FILE, Event.STARTED, Event.RECEIVED, Event.REJECTED, Event.STOPPED]
    assert chained(server.records())


def test_wrong_files_stop_the_start_and_name_the_setting(tmp_path: Path, pki: Path) -> None:
    wrong = [
        ({"key": pki / "server.key"}, "audit_syslog_key"),
        ({"ca": tmp_path}, "audit_syslog_ca"),
    ]
    for change, name in wrong:
        with pytest.raises(BadSettings, match=name):
            SyslogServer.of(settings_of(pki, 6514, **change))
    with pytest.raises(BadSettings, match="must be set together"):
        settings_of(pki, 6514, key=None)
    with pytest.raises(BadSettings, match="expected HOST:PORT"):
        load_settings(audit_syslog="logs")
    assert SyslogServer.of(settings_in(tmp_path)) is None
