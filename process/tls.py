"""The files of TLS, checked before they are used, and the reason why a connection is refused.

gRPC reads its files late and says little: a wrong pair only shows as a lost connection. Here each
mistake has a sentence that names the setting and the file.
"""

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

SOON = timedelta(days=30)
"""A certificate that expires within this time is a warning."""

HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 sends first: the preface and empty settings (RFC 9113, section 3.4)."""

CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL | re.ASCII
)


@dataclass(frozen=True)
class TlsFiles:
    """The files that the settings ``tls_ca``, ``tls_cert`` and ``tls_key`` name.

    ``prefix`` is the beginning of these names.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    prefix: str = "tls"

    def problems(self, now: datetime | None = None) -> list[str]:
        """Return what is wrong with the files, a sentence each; nothing if they can be used."""
        found = [*_unreadable(f"{self.prefix}_key", self.key)]
        for setting, path in self._certificates.items():
            unreadable = list(_unreadable(setting, path))
            found += unreadable or _invalid(setting, path, now or datetime.now(UTC))
        if not found and self.cert is not None and self.key is not None:
            found += _mismatch(self.prefix, self.cert, self.key)
        return found

    def server_context(self) -> ssl.SSLContext | None:
        """Return the context of a server; None without a certificate. Callers need one with ``ca``.

        Raises:
            OSError: the files cannot be used; `problems` says why.
        """
        if self.cert is None or self.key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key)
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the content of authority, key and certificate, in gRPC's order."""
        ca, key, cert = (
            None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert)
        )
        return ca, key, cert

    def expiries(self) -> dict[str, datetime]:
        """Return when each certificate expires, by its setting; of an authority the last one."""
        return {
            setting: max(end for _, end in _validities(path))
            for setting, path in self._certificates.items()
            if path is not None
        }

    def warnings(self, now: datetime | None = None) -> list[str]:
        """Return which certificates expire soon, a sentence each."""
        soon = (now or datetime.now(UTC)) + SOON
        return [
            f"{setting} = {self._certificates[setting]} expires on {end:%Y-%m-%d}: renew it"
            for setting, end in self.expiries().items()
            if end < soon
        ]

    @property
    def _certificates(self) -> dict[str, Path | None]:
        return {f"{self.prefix}_ca": self.ca, f"{self.prefix}_cert": self.cert}


def is_address(text: str) -> bool:
    """Tell whether the text is ``HOST:PORT``, in printable ASCII; a host is not looked up."""
    found = re.fullmatch(r"[!-~]+:([0-9]{1,5})", text)
    return found is not None and int(found[1]) < 65536


def replicas_of(address: str) -> list[str]:
    """Return the addresses of ``HOST:PORT``, or of several with commas between them."""
    return address.split(",")


def grpc_target(address: str) -> str:
    """Return what gRPC connects to: a name, or all of several numbers.

    Raises:
        ValueError: several addresses are not all IPv4, or all IPv6.
    """
    replicas = replicas_of(address)
    if len(replicas) == 1:
        return address
    hosts = [one.rpartition(":")[0].strip("[]") for one in replicas]
    try:
        (version,) = {ipaddress.ip_address(host).version for host in hosts}
    except ValueError:
        raise ValueError(
            "several addresses must be numbers of one kind, IPv4 or IPv6; use a name that leads to"
            " all of them instead"
        ) from None
    return f"ipv{version}:{address}"


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
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if files.ca is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(files.ca)
    if files.cert is not None and files.key is not None:
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
            return _unaccepted(address, host, files, error)
        except OSError as error:
            alert = isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
            if files.ca is None:  # an alert comes from a service that speaks TLS
                return _speaks_tls(address) if alert else ""
            return _refused(address, files) if alert else _speaks_no_tls(address)
        with closing(encrypted):
            if files.ca is None:
                return _speaks_tls(address)
            try:  # in TLS 1.3 the service checks the client's certificate after the handshake
                encrypted.sendall(HTTP2_GREETING)
                return "" if encrypted.recv(1) else _refused(address, files)
            except TimeoutError:
                return ""
            except OSError:
                return _refused(address, files)


def _speaks_tls(address: str) -> str:
    return (
        f"the service at {address} uses TLS: set tls_ca to the authority that signed its"
        " certificate"
    )


def _speaks_no_tls(address: str) -> str:
    return (
        f"the service at {address} does not use TLS: set tls_cert and tls_key in its settings, or"
        " remove tls_ca here"
    )


def _refused(address: str, files: TlsFiles) -> str:
    """Return why the service ends the connection once it knows who calls."""
    if files.cert is None:
        return f"the service at {address} requires a client certificate: set tls_cert and tls_key"
    return (
        f"the service at {address} does not accept tls_cert = {files.cert}: it must be valid, and"
        " signed by an authority in the service's own tls_ca"
    )


def _unaccepted(
    address: str, host: str, files: TlsFiles, error: ssl.SSLCertVerificationError
) -> str:
    """Return why the service's certificate is not accepted, by OpenSSL's X509_V_ERR codes."""
    subject = f"the certificate of the service at {address}"
    match error.verify_code:
        case 9 | 10:
            return f"{subject} has expired, or is not valid yet: renew it, and check both clocks"
        case 62 | 64:
            return f"{subject} does not name {host}: it must, as a subject alternative name"
        case 18 | 19 | 20 | 21:
            return f"{subject} was not signed by an authority in tls_ca = {files.ca}"
        case _:
            return f"{subject} is not accepted: {error.verify_message}"


def _unreadable(setting: str, path: Path | None) -> Iterator[str]:
    if path is not None:
        try:
            path.read_bytes()
        except OSError as error:
            yield f"{setting} = {path}: {error.strerror}"


def _invalid(setting: str, path: Path | None, now: datetime) -> list[str]:
    """Return why no certificate in the file is valid now."""
    if path is None:
        return []
    try:
        periods = _validities(path)
    except (ValueError, IndexError):
        return [f"{setting} = {path} is damaged, expected a certificate as PEM"]
    if not periods:
        return [f"{setting} = {path} holds no certificate, expected PEM"]
    start, end = max(periods, key=lambda period: period[1])
    if now >= end:
        return [f"{setting} = {path} expired on {end:%Y-%m-%d %H:%M} UTC: renew it"]
    if now < start:
        said = f"{setting} = {path} is not valid before {start:%Y-%m-%d %H:%M} UTC"
        return [f"{said}: check the clock of this machine"]
    return []


def _mismatch(prefix: str, cert: Path, key: Path) -> list[str]:
    """Return why certificate and key are no pair."""

    def no_password() -> str:
        raise ValueError("the key has a password")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, no_password)
    except ValueError:
        return [f"{prefix}_key = {key} has a password, expected a private key without one"]
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return [f"{prefix}_key = {key} is not the private key of {prefix}_cert = {cert}"]
        return [f"{prefix}_key = {key} holds no private key, expected PEM"]
    return []


def _validities(path: Path) -> list[tuple[datetime, datetime]]:
    """Return the first and the last moment of each certificate in the file.

    Raises:
        ValueError, IndexError: one is damaged.
    """
    text = path.read_bytes().decode("ascii", "replace")
    return [_validity(ssl.PEM_cert_to_DER_cert(one)) for one in CERTIFICATE.findall(text)]


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """Read when a certificate is valid (RFC 5280, section 4.1).

    Certificate > TBSCertificate > [version], serial number, algorithm, issuer, Validity > two times
    """
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    tag, _, end = _element(der, at)
    if tag == 0xA0:  # the version, which may be left out
        at = end
    for _ in range(3):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)
    start_tag, start_at, start_end = _element(der, at)
    end_tag, end_at, end_end = _element(der, start_end)
    return _time(start_tag, der[start_at:start_end]), _time(end_tag, der[end_at:end_end])


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return tag, start and end of the content of the element that begins at ``at``."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length >= 0x80:  # its lower bits count the bytes of the length
        size = length - 0x80
        length, start = int.from_bytes(der[start : start + size], "big"), start + size
    return tag, start, start + length


def _time(tag: int, content: bytes) -> datetime:
    # 0x17 is UTCTime, with two digits for the year, else GeneralizedTime
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC)
