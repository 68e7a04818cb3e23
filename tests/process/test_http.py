"""Any application over real HTTP: its address, its callers, and the bounds of its connections."""

import contextlib
import gc
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from process.http import (
    Bound,
    CannotListen,
    LargeBody,
    Listener,
    SlowBody,
    body_parts,
    certificate_names,
    serving,
)
from process.tls import TlsFiles
from tests.cloud.running import until
from tests.pki import make_pki

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def who(request: Request) -> Response:
    return JSONResponse({"names": certificate_names(request), "scheme": request.url.scheme})


async def body(request: Request) -> Response:
    try:
        parts = body_parts(request, idle_s=0.2, within_s=1.0, most=1000)
        said = str(sum([len(part) async for part in parts]))
    except (SlowBody, LargeBody) as error:
        said = str(error)
    return Response(said, headers={"Connection": "close"})


async def patient(request: Request) -> Response:
    parts = body_parts(request, idle_s=300.0)
    return Response(str(sum([len(part) async for part in parts])))


APP = Starlette(
    routes=[
        Route("/", who),
        Route("/", body, methods=["POST"]),
        Route("/patient", patient, methods=["POST"]),
    ]
)
HERE = Listener("127.0.0.1:0", "test_address")


def bounded(**bounds: Any) -> Listener:
    return Listener("127.0.0.1:0", "test", **bounds)


def received(caller: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    parts = list[bytes]()
    with contextlib.suppress(ConnectionError):
        while part := caller.recv(4096):
            parts.append(part)
    return b"".join(parts)


def connected(bound: Bound) -> socket.socket:
    host, _, port = bound.address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=60)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::]"])
def test_the_port_is_bound_where_the_settings_say(host: str) -> None:
    try:
        with serving(APP, Listener(f"{host}:0")) as bound:
            port = bound.address.rpartition(":")[2]
            near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
            assert httpx.get(f"http://{near}:{port}").json()["scheme"] == "http"
    except CannotListen:
        if ":" not in host:
            raise
        pytest.skip("needs IPv6 on this machine")


def test_it_serves_until_the_end_and_its_port_can_be_served_again_at_once() -> None:
    with serving(APP, HERE) as bound:
        assert bound.runs()
        assert httpx.get(bound.url).status_code == 200
    assert not bound.runs()
    with pytest.raises(httpx.ConnectError):
        httpx.get(bound.url)
    for _ in range(3):
        with serving(APP, Listener(bound.address)) as again:
            assert httpx.get(again.url).status_code == 200


def test_no_part_of_an_answer_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections inherit the option of the listening socket; asyncio does not set it there."""
    create, made = socket.create_server, list[socket.socket]()

    def recorded(*args: Any, **named: Any) -> socket.socket:
        one = create(*args, **named)
        made.append(one.dup())
        return one

    monkeypatch.setattr(socket, "create_server", recorded)
    with serving(APP, HERE), made[0] as listening:
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_wrong_files_of_tls_stop_the_start_and_are_named(pki: Path) -> None:
    files = TlsFiles(cert=pki / "server.pem", key=pki / "client.key")
    said = r"tls\.cert = .* and tls\.key = .* cannot be used together"
    with pytest.raises(CannotListen, match=said), serving(APP, bounded(tls=files)):
        pass


def test_an_address_that_cannot_be_bound_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        at = Listener(f"127.0.0.1:{other.getsockname()[1]}", "metrics_address")
        said = rf"metrics_address = {at.address}: Address already in use"
        with pytest.raises(CannotListen, match=said), serving(APP, at):
            pass
    with pytest.raises(CannotListen, match=r"no\.invalid"), serving(APP, Listener("no.invalid:0")):
        pass


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HT", GET, GET + b"GET /v2 HT"])
def test_a_quiet_connection_is_closed(sent: bytes) -> None:
    """Whether it never sent a request, stopped in its head, or had an answer before."""
    with serving(APP, bounded(quiet_s=0.1)) as bound, connected(bound) as quiet:
        quiet.sendall(sent)
        received(quiet)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00", GET[:-2], GET])
@pytest.mark.parametrize("encrypted", [False, True])
def test_silent_connections_lock_nobody_out(pki: Path, *, encrypted: bool, sent: bytes) -> None:
    """One beyond the limit ends the oldest without a request, and none that has one."""
    files = TlsFiles(cert=pki / "server.pem", key=pki / "server.key") if encrypted else TlsFiles()
    trusted = ssl.create_default_context(cafile=pki / "ca.pem")
    with (
        serving(APP, bounded(tls=files, connections=4, quiet_s=300.0)) as bound,
        contextlib.ExitStack() as open_ones,
        httpx.Client(base_url=bound.url, verify=trusted, timeout=60) as busy,
    ):

        def body() -> Iterator[bytes]:
            for _ in range(3):
                silent = [open_ones.enter_context(connected(bound)) for _ in range(4)]
                for one in silent:
                    one.sendall(sent)
                for one in silent if sent == GET and not encrypted else ():
                    one.recv(1)  # until its answer it has a request, and is not ended
                for _ in range(3):
                    assert httpx.get(bound.url, verify=trusted, timeout=60).status_code == 200
                yield b"x"

        assert busy.post("/patient", content=body()).text == "3"


@pytest.mark.parametrize("sent", [b"\x16\x03\x01" + bytes(500), GET[:-2] + b"A: " + b"x" * 40_000])
def test_noise_and_long_heads_end_their_connection_only(sent: bytes) -> None:
    with serving(APP, HERE) as bound:
        with connected(bound) as caller:
            caller.sendall(sent)
            assert received(caller).startswith(b"HTTP/1.1 400")
        assert httpx.get(bound.url).status_code == 200


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"x" * 9, b"9"),
        (b"x" * 2000, b"a body of more than 1000 bytes"),
        (b"x" * 3, b"no byte of the body arrived for 0.2 s, or not all of it within 1 s"),
    ],
)
def test_a_body_is_bounded_in_size_and_time(sent: bytes, said: bytes) -> None:
    with serving(APP, HERE) as bound, connected(bound) as caller:
        size = max(9, len(sent))
        caller.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + sent)
        assert received(caller).endswith(said)


def test_a_body_that_comes_byte_by_byte_is_bounded_too() -> None:
    with serving(APP, HERE) as bound, connected(bound) as caller:
        caller.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n")
        caller.settimeout(0.05)
        for _ in range(900):
            caller.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = caller.recv(1000)
                break
        caller.settimeout(60)
        assert b"not all of it within 1 s" in answer + received(caller)


def test_a_connection_that_is_gone_is_forgotten() -> None:
    """Otherwise callers that come and go would fill the memory."""

    def known() -> int:
        gc.collect()
        # not isinstance: it would ask every object of the process for its class
        return sum(type(one).__name__ == "Protocol" for one in gc.get_objects())

    with serving(APP, bounded(quiet_s=0.5)) as bound:
        before = known()
        for _ in range(20):
            with connected(bound) as caller:
                caller.sendall(GET)
                assert caller.recv(1000)
        until(lambda: known() <= before)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(
        tmp_path_factory.mktemp("pki"),
        server=("CN=server", "subjectAltName=IP:127.0.0.1"),
        client=("CN=pacs-1", "subjectAltName=DNS:pacs.example"),
        nameless=("O=none", "extendedKeyUsage=clientAuth"),
    )


@pytest.mark.parametrize("callers", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
def test_the_names_in_a_certificate_reach_the_application(
    pki: Path, callers: ssl.VerifyMode
) -> None:
    files = TlsFiles(ca=pki / "ca.pem", cert=pki / "server.pem", key=pki / "server.key")
    expected: dict[str, Any] = {"client": ["pacs-1", "pacs.example"], "nameless": [], "": None}
    with serving(APP, bounded(tls=files, callers=callers)) as bound:
        for name, names in expected.items():
            context = ssl.create_default_context(cafile=pki / "ca.pem")
            if name:
                context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
            elif callers is ssl.CERT_REQUIRED:
                with pytest.raises(httpx.TransportError):
                    httpx.get(bound.url, verify=context)
                continue
            answer = httpx.get(bound.url, verify=context).json()
            assert answer == {"names": names, "scheme": "https"}
