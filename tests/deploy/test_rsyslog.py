"""The example for rsyslog sends the records of a trail over mutual TLS, and misses none."""

import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.audit import Event
from edge.trail.records import files_in
from edge.trail.store import TrailStore
from tests.edge.builders import open_store
from tests.pki import make_pki

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "rsyslog" / "overread-trail.conf"
WAIT_S = 20


@contextmanager
def rsyslog(root: Path, pki: Path, port: int) -> Iterator[None]:
    """Run rsyslog with the example, changed in its names and files only."""
    changes = {
        "/var/lib/overread/state/trail": str(root / "trail"),
        "logs.hospital.example": "localhost",
        "6514": str(port),
        "/etc/overread/syslog-ca.pem": str(pki / "ca.pem"),
        "/etc/overread/syslog.": f"{pki}/edge.",
    }
    text = EXAMPLE.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (root / "rsyslog.conf").write_text(f'global(workDirectory="{root}")\n{text}')
    command = ("rsyslogd", "-n", "-f", root / "rsyslog.conf", "-i", root / "pid")
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(WAIT_S)


def lines_from(listener: socket.socket, pki: Path, count: int) -> list[str]:
    """Accept a connection, read ``count`` messages (RFC 5425), and return what they carry."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki / "ca.pem")
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    listener.settimeout(WAIT_S)
    plain, _ = listener.accept()
    found: list[str] = []
    with context.wrap_socket(plain, server_side=True) as tls, tls.makefile("rb") as stream:
        while len(found) < count:
            length = int(b"".join(iter(lambda: stream.read(1), b" ")))
            header, _, line = stream.read(length).decode().partition(" overread-edge - trail - ")
            assert re.fullmatch(r"<85>1 \d{4}-\d\d-\d\dT\S+ \S+", header)  # authpriv, notice
            found.append(line.strip())
    return found


def record(root: Path, *names: str) -> list[str]:
    """Record studies of these names, each in a file of its own; return all lines of the files."""
    with open_store(root / "s.db") as store:
        trail = TrailStore(store.database, root / "trail", max_file_bytes=1)
        for name in names:
            trail.record(Event.RECEIVED, study_key=name)
        trail.flush()
        return [line for one in files_in(trail.folder) for line in one.read_text().splitlines()]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("rsyslogd") is None, reason="rsyslogd is not installed")
def test_each_record_is_sent_once_also_those_of_the_time_without_rsyslog(tmp_path: Path) -> None:
    here = ("CN=x", "subjectAltName=DNS:localhost")
    pki = make_pki(tmp_path, server=here, edge=here)
    record(tmp_path, "a")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with rsyslog(tmp_path, pki, listener.getsockname()[1]):
            sent = lines_from(listener, pki, 2)
        lines = record(tmp_path, "ü\ud800", "c" * 20_000)
        with rsyslog(tmp_path, pki, listener.getsockname()[1]):
            sent += lines_from(listener, pki, 4)
    # rsyslog reads files that are new when it starts in any order; the sequence gives it back
    assert sorted(sent, key=lambda line: int(json.loads(line)["sequence"])) == lines
