"""Any web application, served from a thread: plain, with TLS, and with client certificates."""

from __future__ import annotations

import shutil
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from edge.cli.trial_certificates import make_certificates
from edge.errors import BadSettings
from edge.web import CLIENT, Listener, serving
from process.tls import TlsFiles


def who(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.scope['state'][CLIENT]}|{request.url.scheme}")


APP = Starlette(routes=[Route("/", who)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for a trial; the pair of the cloud serves."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, (), 30)
    return folder


def encrypted(files: Path, *, asks: bool, requires: bool = False) -> Listener:
    ca = files / "ca.pem" if asks else None
    tls = TlsFiles(ca=ca, cert=files / "cloud.pem", key=files / "cloud.key")
    return Listener("127.0.0.1", 0, tls, requires, "status")


def context(files: Path, *, with_certificate: bool) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=files / "ca.pem")
    if with_certificate:
        made.load_cert_chain(files / "edge.pem", files / "edge.key")
    return made


def test_it_serves_until_the_end_of_the_context() -> None:
    with serving(APP, Listener("127.0.0.1", 0, setting="page.address"), "test") as url:
        assert httpx.get(url).text == "|http"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_taken_port_names_the_settings() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        at = Listener("127.0.0.1", port, setting="page.address")
        with (
            pytest.raises(BadSettings, match=r"page\.address = 127.0.0.1:\d+: Address already"),
            serving(APP, at, "test"),
        ):
            pass


def test_the_name_in_a_client_certificate_reaches_the_application(files: Path) -> None:
    with serving(APP, encrypted(files, asks=True), "test") as url:
        assert url.startswith("https://")
        for shows, name in ((True, "trial-edge"), (False, "")):
            verify = context(files, with_certificate=shows)
            assert httpx.get(url, verify=verify).text == f"{name}|https"


def test_a_caller_without_the_required_certificate_is_refused(files: Path) -> None:
    with serving(APP, encrypted(files, asks=True, requires=True), "test") as url:
        assert httpx.get(url, verify=context(files, with_certificate=True)).text.startswith("trial")
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=context(files, with_certificate=False))


def test_wrong_files_of_tls_stop_the_start_and_are_named(files: Path) -> None:
    tls = TlsFiles(cert=files / "cloud.pem", key=files / "edge.key").named("page.tls.")
    with (
        pytest.raises(
            BadSettings, match=r"page\.tls\.key = .* is not the private key of page\.tls\.cert"
        ),
        serving(APP, Listener("127.0.0.1", 0, tls, setting="page.address"), "test"),
    ):
        pass
