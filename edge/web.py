"""Serve a web application from a thread of its own, with TLS and client certificates where set.

It knows nothing of what is served. The socket is bound before the thread starts, so that a taken
port is an error of the start.
"""

import logging
import socket
import ssl
from asyncio import BaseTransport
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.errors import BadSettings
from process.http import address_text
from process.tls import TlsFiles, is_loopback

CLIENT = "client_name"
"""Key in the request's state: the name in the caller's certificate, empty without one."""

CONCURRENT = 64
"""Open connections beyond which callers are told to come back."""
STOP_S = 2.0
"""Time that open requests have to finish at the end."""


@dataclass(frozen=True)
class Listener:
    """Where to listen, and the files of TLS.

    Attributes:
        port: 0 takes a free one.
        tls: certificate and key enable TLS; ``ca`` must have signed callers' certificates.
        requires_certificate: whether a caller without a certificate is refused at once.
        setting: that has the address, for messages.
    """

    address: str
    port: int
    tls: TlsFiles = field(default_factory=TlsFiles)
    requires_certificate: bool = False
    setting: str = ""

    @property
    def encrypted(self) -> bool:
        """Whether TLS is on."""
        return self.tls.cert is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        return is_loopback(address_text(self.address, self.port))

    def problems(self) -> list[str]:
        """Return what is wrong with the files of TLS, a sentence each."""
        return self.tls.problems() if self.encrypted else []

    def warnings(self) -> list[str]:
        """Return which certificates expire soon, a sentence each."""
        return self.tls.warnings() if self.encrypted else []


class _Protocol(H11Protocol):
    """HTTP/1.1 that tells the application whose certificate the caller has shown."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        tls = transport.get_extra_info("ssl_object")
        name = _common_name(tls.getpeercert() or {}) if tls is not None else ""
        self.app_state = {**self.app_state, CLIENT: name}


@contextmanager
def serving(app: ASGIApp, at: Listener, name: str) -> Iterator[str]:
    """Serve while entered, in a thread called ``name``; yield the address as a URL.

    Raises:
        BadSettings: the address cannot be bound, or a file of TLS cannot be used.
    """
    if problems := at.problems():
        raise BadSettings("; ".join(problems))
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,  # the application logs its own errors
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONCURRENT,
        timeout_graceful_shutdown=round(STOP_S),
        **_tls_options(at),
    )
    config.load()
    listening = _bound(at)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, args=([listening],), name=name, daemon=True)
    thread.start()
    try:
        port = listening.getsockname()[1]
        yield f"{'https' if at.encrypted else 'http'}://{address_text(at.address, port)}"
    finally:
        server.should_exit = True
        thread.join(5 * STOP_S)
        server.force_exit = True
        thread.join(STOP_S)
        if not thread.is_alive():  # else its loop still looks at the socket
            listening.close()


def _bound(at: Listener) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            at.address, at.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, number)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(CONCURRENT)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        where = address_text(at.address, at.port)
        raise BadSettings(f"{at.setting} = {where}: {error.strerror}") from error
    return listening


def _tls_options(at: Listener) -> dict[str, Any]:
    if not at.encrypted:
        return {}
    options = {"ssl_certfile": str(at.tls.cert), "ssl_keyfile": str(at.tls.key)}
    if at.tls.ca is None:
        return options
    wanted = ssl.CERT_REQUIRED if at.requires_certificate else ssl.CERT_OPTIONAL
    return {**options, "ssl_ca_certs": str(at.tls.ca), "ssl_cert_reqs": wanted}


def _common_name(certificate: Any) -> str:
    """Return the common name of a certificate's subject, or its whole subject without one."""
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    names = [value for key, value in subject if key == "commonName"]
    return next(iter(names), ", ".join(value for _, value in subject))
