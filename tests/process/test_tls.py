"""The usual mistakes with TLS each get a sentence, against real services."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from process.tls import TlsFiles, diagnose, is_loopback
from tests.pki import make_pki

HERE = ("CN=x", "subjectAltName=IP:127.0.0.1")
NO_TLS = TlsFiles()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(tmp_path_factory.mktemp("pki"), service=HERE, edge=HERE)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(tmp_path_factory.mktemp("other"), service=HERE, edge=HERE)


@contextmanager
def service(pki: Path | None, *, mutual: bool = False) -> Iterator[str]:
    """The address of a real gRPC server: plain, with TLS, or with mutual TLS."""
    server = grpc.server(ThreadPoolExecutor(1))
    if pki is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = ((pki / "service.key").read_bytes(), (pki / "service.pem").read_bytes())
        ca = (pki / "ca.pem").read_bytes() if mutual else None
        credentials = grpc.ssl_server_credentials([pair], ca, require_client_auth=mutual)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def edge_files(pki: Path) -> TlsFiles:
    return TlsFiles(ca=pki / "ca.pem", cert=pki / "edge.pem", key=pki / "edge.key")


def test_files_that_fit_have_no_problem(pki: Path) -> None:
    assert edge_files(pki).problems() == []
    with service(pki, mutual=True) as address:
        assert diagnose(address, edge_files(pki), 20.0) == ""
    with service(pki) as address:
        assert diagnose(address, TlsFiles(ca=pki / "ca.pem"), 20.0) == ""
    with service(None) as address:
        assert diagnose(address, NO_TLS, 20.0) == ""


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("service.key", "key values mismatch"),
        ("edge.pem", "unreadable"),
        ("locked.key", "unreadable"),
    ],
)
def test_a_pair_that_does_not_fit_is_named(pki: Path, key: str, why: str) -> None:
    """Another key, none, and one with a password, which nobody is asked for."""
    lock = ("openssl", "pkey", "-in", pki / "edge.key", "-aes256", "-passout", "pass:x")
    subprocess.run((*lock, "-out", pki / "locked.key"), check=True, capture_output=True)
    (said,) = TlsFiles(ca=pki / "ca.pem", cert=pki / "edge.pem", key=pki / key).problems()
    both = f"tls.cert = {pki / 'edge.pem'} and tls.key = {pki / key} cannot be used together ({why}"
    assert said.startswith(both)
    assert "private key without a password" in said


def test_a_file_of_another_kind_is_named(pki: Path, tmp_path: Path) -> None:
    swapped = TlsFiles(ca=pki / "edge.key", cert=pki / "edge.key", key=pki / "edge.pem").problems()
    assert swapped == [
        f"{name} = {pki / 'edge.key'} is damaged or holds no certificate, expected PEM"
        for name in ("tls.ca", "tls.cert")
    ]
    damaged = tmp_path / "ca.pem"
    text = (pki / "ca.pem").read_text().splitlines()
    damaged.write_text("\n".join([text[0], "QUJD", *text[-1:]]))
    said = f"tls.ca = {damaged} is damaged or holds no certificate, expected PEM"
    assert TlsFiles(ca=damaged).problems() == [said]
    whole, second = (pki / "ca.pem").read_text(), (pki / "edge.pem").read_text()
    damaged.write_text(whole + second[:300])  # of a bundle that is copied at this moment
    assert diagnose("127.0.0.1:1", TlsFiles(ca=damaged), 1.0) == said
    version_4 = ssl.PEM_cert_to_DER_cert(whole).replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\3")
    damaged.write_text(ssl.DER_cert_to_PEM_cert(version_4))
    assert TlsFiles(ca=damaged).problems() == [said]
    assert TlsFiles(ca=tmp_path / "no").problems() == [
        f"tls.ca = {tmp_path / 'no'}: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("edge.pem", None, "No such file"),
        ("ca.pem", b"", "holds no certificate"),
        ("edge.pem", b"-----BEGIN CERTIFICATE-----\nAAAA", "damaged"),
        ("edge.key", b"-----BEGIN EC PRIVATE KEY-----", "cannot be used together"),
        ("edge.key", "service.key", "key values mismatch"),
    ],
)
def test_files_that_cannot_be_used_leave_those_before_in_use(
    pki: Path, tmp_path: Path, name: str, content: bytes | str | None, words: str
) -> None:
    """With one warning; and when they are put right, the next ones count."""
    shutil.copytree(pki, live := tmp_path / "live")
    files = edge_files(live)
    before = files.current()
    (live / name).unlink()
    if content is not None:
        (live / name).write_bytes(
            content if isinstance(content, bytes) else (pki / content).read_bytes()
        )
    with capture_logs() as logs:
        assert files.current() is files.current() is before
    assert [words in log["reason"] for log in logs] == [True]
    shutil.copy(pki / name, live / name)
    assert files.current() is not before
    assert files.current().contents == before.contents


def test_a_key_that_is_too_short_is_named(pki: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "weak.pem", pki / "weak.key"
    new = ("openssl", "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=x")
    subprocess.run((*new, "-keyout", key, "-out", cert), check=True, capture_output=True)
    (said,) = TlsFiles(cert=cert, key=key).problems()
    assert "ee key too small" in said


def test_of_a_chain_the_certificate_of_this_side_counts(tmp_path: Path) -> None:
    """It comes first, and those that signed it are often valid for longer."""
    pki = make_pki(tmp_path, days=1, edge=HERE)
    chain, bundle = tmp_path / "chain.pem", tmp_path / "bundle.pem"
    chain.write_bytes((pki / "edge.pem").read_bytes() + (pki / "ca.pem").read_bytes())
    bundle.write_bytes(chain.read_bytes())
    files = TlsFiles(ca=bundle, cert=chain, key=pki / "edge.key")
    assert files.problems() == []
    assert files.expiries()["tls.ca"] > files.expiries()["tls.cert"]
    (late,) = files.problems(datetime.now(UTC) + timedelta(days=1.5))
    assert late.startswith(f"tls.cert = {chain} expired on")


def test_an_expired_certificate_is_told_and_so_is_one_that_expires_soon(pki: Path) -> None:
    """The certificates are valid for 2 days from now."""
    files, now = edge_files(pki), datetime.now(UTC)
    assert [one.split()[0] for one in files.warnings(now)] == ["tls.ca", "tls.cert"]
    assert "renew it" in files.warnings(now)[0]
    assert files.warnings(now - timedelta(days=60)) == []
    assert now < files.expiries()["tls.cert"] < now + timedelta(days=3)
    late = files.problems(now + timedelta(days=3))
    assert [one.split()[0] for one in late] == ["tls.ca", "tls.cert"]
    assert f"{pki / 'ca.pem'} expired on" in late[0]
    early = files.problems(now - timedelta(days=3))
    assert "is not valid before" in early[0]
    assert "check this machine's clock" in early[0]


@pytest.mark.parametrize(
    ("serves", "calls", "said"),
    [
        ("TLS", "plain", "uses TLS: set tls.ca to the authority that signed its certificate"),
        ("mutual", "plain", "uses TLS: set tls.ca to the authority that signed its certificate"),
        ("plain", "edge", "does not use TLS: set tls.cert and tls.key in its settings"),
        ("mutual", "TLS", "requires a client certificate: set tls.cert and tls.key"),
        ("mutual", "other", "does not accept tls.cert = "),
    ],
)
def test_a_mistake_between_a_caller_and_a_service_is_named(
    pki: Path, other: Path, serves: str, calls: str, said: str
) -> None:
    files = {
        "plain": NO_TLS,
        "TLS": TlsFiles(ca=pki / "ca.pem"),
        "edge": edge_files(pki),
        "other": TlsFiles(ca=pki / "ca.pem", cert=other / "edge.pem", key=other / "edge.key"),
    }
    own = None if serves == "plain" else pki
    with service(own, mutual=serves == "mutual") as address:
        found = diagnose(address, files[calls], 20.0)
    assert found.startswith(f"the service at {address} {said}")


def test_a_service_of_another_authority_or_another_name(pki: Path, other: Path) -> None:
    with service(pki) as address:
        said = diagnose(address, TlsFiles(ca=other / "ca.pem"), 20.0)
        assert f"is not accepted by tls.ca = {other / 'ca.pem'}: unable to get" in said
        named = address.replace("127.0.0.1", "localhost")
        assert "not valid for 'localhost'" in diagnose(named, TlsFiles(ca=pki / "ca.pem"), 20.0)


@pytest.mark.parametrize(
    ("period", "why"),
    [
        (("20200101000000Z", "20200201000000Z"), "has expired"),
        (("20990101000000Z", "20990201000000Z"), "is not yet valid"),
    ],
)
def test_an_expired_certificate_of_the_service(
    period: tuple[str, str], why: str, tmp_path: Path
) -> None:
    old = make_pki(tmp_path, period=period, service=HERE)
    with service(old) as address:
        said = diagnose(address, TlsFiles(ca=old / "ca.pem"), 20.0)
    assert said.startswith(f"the certificate of the service at {address} ")
    assert f"certificate {why}" in said
    own = TlsFiles(cert=old / "service.pem", key=old / "service.key").problems()
    assert [one.startswith(f"tls.cert = {old / 'service.pem'} ") for one in own] == [True]


def test_where_nothing_answers_tls_is_not_the_reason(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert diagnose(address, NO_TLS, 0.2) == ""
        assert diagnose(address, edge_files(pki), 0.2) == ""
    assert diagnose(address, edge_files(pki), 0.2) == ""


def test_a_peer_that_speaks_neither_ends_the_diagnosis(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(10)
                    connection.sendall(b"\x1b]0;owned\x07 SSH-2.0\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert diagnose(address, NO_TLS, 20.0) == ""
        assert "does not use TLS" in diagnose(address, edge_files(pki), 20.0)
        thread.join()


def test_only_names_and_numbers_of_this_machine_are_loopback() -> None:
    here = "localhost LOCALHOST 127.0.0.1 127.8.9.10 [::1] 127.0.0.1:5,127.0.0.2"
    others = "0.0.0.0 [::] 10.0.0.1 reader.example localhost.example 127.0.0.1.example"
    others += " dns:///localhost 127.0.0.1:5,10.0.0.1"
    near = [host for host in f"{here} {others}".split() if is_loopback(f"{host}:5")]
    assert near == here.split()
    assert is_loopback("unix:/run/overread.sock")
