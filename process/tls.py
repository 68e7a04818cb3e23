"""The files of TLS, checked before they are used, and the reason why a connection is refused.

gRPC reads its files late and says little: a wrong pair only shows as a lost connection. Here each
mistake has a sentence that names the setting and the file. Files that are renewed are used from the
next handshake on.
"""

import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self, cast

import structlog
from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from process.files import state_of

SOON = timedelta(days=30)
"""A certificate that expires within this time is a warning."""

log = structlog.get_logger()

_LOADING = threading.Lock()

HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 sends first: the preface and empty settings (RFC 9113, section 3.4)."""


@dataclass(frozen=True)
class Loaded:
    """Files of TLS in use: authority, key and certificate, when each setting's expires, marks."""

    contents: tuple[bytes | None, ...] = field(repr=False)
    expiries: Mapping[str, datetime]
    marks: tuple[object, ...]


class TlsFiles(BaseModel):
    """The files of TLS: the table ``[tls]`` of the settings, or a table of this kind.

    Attributes:
        ca: PEM authority that signed the certificates of the other side.
        cert: PEM certificate of this side.
        key: its private key, PEM without a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    _prefix: str = PrivateAttr("tls.")
    _loaded: Loaded | None = PrivateAttr(None)
    _refused: tuple[object, ...] = PrivateAttr(())

    def named(self, prefix: str) -> Self:
        """Let messages begin the names of these settings with ``prefix``; return the same files."""
        self._prefix = prefix
        return self

    @property
    def prefix(self) -> str:
        """What the names of these settings begin with in messages."""
        return self._prefix

    @model_validator(mode="after")
    def _is_pair(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key must be set together")
        return self

    @property
    def encryption(self) -> str:
        """How a client with these files calls a service."""
        if self.ca is None:
            return "none"
        return "TLS" if self.cert is None else "mutual TLS"

    def problems(self, now: datetime | None = None) -> list[str]:
        """Return what is wrong with the files, a sentence each; nothing if they can be used."""
        files, at = {f"{self.prefix}key": self.key, **self._certificates}, now or datetime.now(UTC)
        found = [_problem_of(setting, path, at) for setting, path in files.items() if path]
        return [*filter(None, found)] or self._refused_by_openssl()

    def _refused_by_openssl(self) -> list[str]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        what = f"{self.prefix}ca = {self.ca} cannot be used"
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.cert is not None:
                what = f"{self.prefix}cert = {self.cert} and {self.prefix}key = {self.key}"
                what += " cannot be used together"
                context.load_cert_chain(self.cert, self.key, password="")  # else it would ask
        except OSError as error:
            why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            why = (why or "unreadable").replace("_", " ").lower()
            fit = "expected certificates, and a private key without a password, as PEM"
            return [f"{what} ({why}): {fit}"]
        return []

    def current(self) -> Loaded:
        """Return the files to use: those on the disk, once certificate and key fit, and are valid.

        Until then those before are used, and why is logged once. The first files must be usable:
        `problems` says whether they are.
        """
        with _LOADING:
            marks = self._marks()
            if self._loaded is None:
                self._loaded = self._read(marks)
            elif marks != self._loaded.marks:
                with suppress(OSError, ValueError):  # removed meanwhile: those in use stay
                    self._renew(marks)
            return self._loaded

    def _renew(self, marks: tuple[object, ...]) -> None:
        """Use the files on the disk if they can be used, and nobody writes them meanwhile."""
        if problems := self.problems():
            if marks != self._refused:
                log.warning("renewed certificate cannot be used", reason="; ".join(problems))
            self._refused = marks
            return
        read = self._read(marks)
        if marks == self._marks():
            self._loaded = read
            ends = {name: f"{end:%Y-%m-%d}" for name, end in read.expiries.items()}
            log.info("certificate renewed", expires=ends)

    def _read(self, marks: tuple[object, ...]) -> Loaded:
        paths = (self.ca, self.key, self.cert)
        contents = tuple(None if path is None else path.read_bytes() for path in paths)
        return Loaded(contents, self.expiries(), marks)

    def server_context(self, callers: ssl.VerifyMode = ssl.CERT_REQUIRED) -> ssl.SSLContext | None:
        """Return the context of a server, whose handshakes use `current` files; None without any.

        With ``ca``, ``callers`` says whether a caller must have a certificate, or may.

        Raises:
            OSError: the files cannot be used; `problems` says why.
        """
        if self.cert is None:
            return None
        used, context = self.current(), self._context(callers)

        def renew(handshake: ssl.SSLObject | ssl.SSLSocket, _name: object, _first: object) -> None:
            nonlocal used, context
            with suppress(OSError):  # written meanwhile: the next handshake tries again
                if (now := self.current()) is not used:
                    context = self._context(callers)
                    used = now
            handshake.context = context

        context.sni_callback = renew  # called in each handshake, with and without a name
        return context

    def _context(self, callers: ssl.VerifyMode) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cast(Path, self.cert), self.key)
        if self.ca is not None:
            context.verify_mode = callers
            context.load_verify_locations(self.ca)
        return context

    def expiries(self) -> dict[str, datetime]:
        """Return when each certificate expires, by its setting."""
        return {
            setting: _validity(setting, path.read_bytes())[1]
            for setting, path in self._certificates.items()
            if path is not None
        }

    def expiry_s(self, setting: str) -> float:
        """Return when the certificate that is in use expires, in seconds since 1970."""
        return self.current().expiries[setting].timestamp()

    def warnings(self, now: datetime | None = None) -> list[str]:
        """Return which certificates expire soon, a sentence each."""
        soon = (now or datetime.now(UTC)) + SOON
        return [
            f"{setting} = {self._certificates[setting]} expires on {end:%Y-%m-%d}: renew it"
            for setting, end in self.expiries().items()
            if end < soon
        ]

    def _marks(self) -> tuple[object, ...]:
        """Return what differs once a file was written or replaced."""
        marks: list[object] = []
        for path in filter(None, (self.ca, self.cert, self.key)):
            with suppress(OSError):
                marks.append((path, state_of(path.stat())))
        return tuple(marks)

    @property
    def _certificates(self) -> dict[str, Path | None]:
        return {f"{self.prefix}ca": self.ca, f"{self.prefix}cert": self.cert}


class ServerTlsFiles(TlsFiles):
    """The files of TLS of a server: with ``ca`` its callers need certificates too."""

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.ca is not None and self.cert is None:
            raise ValueError("ca requires cert and key")
        return self

    @property
    def encryption(self) -> str:
        """How the server is called."""
        if self.cert is None:
            return "none"
        return "TLS" if self.ca is None else "mutual TLS"


def is_address(text: str) -> bool:
    """Tell whether the text is ``HOST:PORT``, in printable ASCII; a host is not looked up."""
    found = re.fullmatch(r"([!-~]+):([0-9]{1,5})", text)
    if found is None or text.startswith(("unix:", "unix-abstract:")):  # of a socket for gRPC
        return False
    return int(found[2]) < 65536 and is_host(found[1])


def is_host(name: str) -> bool:
    """Tell whether a host can be looked up: no part between its dots is empty or too long."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def replicas_of(address: str) -> list[str]:
    """Return the addresses of ``HOST:PORT``, or of several with commas between them."""
    return address.split(",")


def is_loopback(address: str) -> bool:
    """Tell whether ``HOST:PORT`` cannot be reached from another machine, by name or number.

    A name is not looked up: what it leads to may change while the process runs.
    """
    if len(replicas := replicas_of(address)) > 1:
        return all(map(is_loopback, replicas))
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def diagnose(address: str, files: TlsFiles, timeout_s: float) -> str:
    """Connect to a service as the files say, and return why TLS fails; empty if it does not.

    Also empty if no connection could be made: then TLS is not the reason. It takes up to three
    times ``timeout_s``.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if problems := files.problems():
        return problems[0]
    if not port.isdecimal():  # a socket of this machine
        return ""
    service, ca, cert = f"the service at {address}", f"{files.prefix}ca", f"{files.prefix}cert"
    speaks_tls = f"{service} uses TLS: set {ca} to the authority that signed its certificate"
    speaks_none = (
        f"{service} does not use TLS: set tls.cert and tls.key in its settings, or remove {ca} here"
    )
    # why the service ends the connection once it knows who calls
    refused = f"{service} requires a client certificate: set {cert} and {files.prefix}key"
    if files.cert is not None:
        refused = (
            f"{service} does not accept {cert} = {files.cert}: it must be valid, and signed by an"
            " authority in the service's own tls.ca"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if files.ca is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(files.ca)
    if files.cert is not None:
        context.load_cert_chain(files.cert, files.key)
    try:
        connection = socket.create_connection((host, int(port)), timeout_s)
    except OSError:
        return ""
    with closing(connection):
        try:
            encrypted = context.wrap_socket(connection, server_hostname=host)
        except TimeoutError:
            return ""
        except ssl.SSLCertVerificationError as error:
            not_accepted = f"the certificate of {service} is not accepted by {ca} = {files.ca}"
            return f"{not_accepted}: {error.verify_message}"
        except OSError as error:
            # an alert comes from a service that speaks TLS
            if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
                return speaks_tls if files.ca is None else refused
            return "" if files.ca is None else speaks_none
        with closing(encrypted):
            if files.ca is None:
                return speaks_tls
            try:  # in TLS 1.3 the service checks the client's certificate after the handshake
                encrypted.sendall(HTTP2_GREETING)
                return "" if encrypted.recv(1) else refused
            except OSError as error:
                return "" if isinstance(error, TimeoutError) else refused


def _problem_of(setting: str, path: Path, now: datetime) -> str:
    """Return why a file cannot be read or why its certificate is not valid; empty for neither."""
    said = f"{setting} = {path}"
    try:
        content = path.read_bytes()
        start, end = (now, now + SOON) if setting.endswith("key") else _validity(setting, content)
    except OSError as error:
        return f"{said}: {error.strerror}"
    except ValueError:
        return f"{said} is damaged or holds no certificate, expected PEM"
    if now >= end:
        return f"{said} expired on {end:%Y-%m-%d %H:%M} UTC: renew it"
    if now < start:
        return f"{said} is not valid before {start:%Y-%m-%d %H:%M} UTC: check this machine's clock"
    return ""


def _validity(setting: str, content: bytes) -> tuple[datetime, datetime]:
    """Return first and last moment of the certificate that counts: of authorities the last one.

    The first of other certificates is that of this side, before those that signed it.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    # here, since most need none
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    try:
        found = load_pem_x509_certificates(content)
    except InvalidVersion as error:
        raise ValueError(str(error)) from error
    if len(found) < content.count(b"-----BEGIN CERTIFICATE-----"):
        raise ValueError("the last certificate is cut off")
    periods = [(one.not_valid_before_utc, one.not_valid_after_utc) for one in found]
    return max(periods, key=lambda period: period[1]) if setting.endswith("ca") else periods[0]
