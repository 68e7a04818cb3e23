"""Certificates for a trial: an authority, and a pair each for the cloud and for an edge.

Whoever holds them can pretend to be the cloud or the edge. They expire soon, and the authority's
own key is not kept: it can sign nothing else.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.errors import EdgeError

FILES = ("ca.pem", "cloud.pem", "cloud.key", "edge.pem", "edge.key")
HOSTS = ("localhost", "127.0.0.1", "::1")
HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
TRIAL, AUTHORITY = "Overread trial - not for patients", "Overread trial CA"
_SIGNS = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
    encipher_only=False, decipher_only=False,
)  # fmt: skip


class CertificatesFailed(EdgeError):
    """The trial certificates cannot be made; the message says why."""


def make_certificates(folder: Path, hosts: Sequence[str], days: int) -> None:
    """Write `FILES` into the folder, keys for their owner alone; replace nothing.

    ``hosts`` are further names and numbers under which edges reach the cloud.

    Raises:
        CertificatesFailed: a host is none, or a file exists.
        OSError: the folder cannot be written.
    """
    own = [name for name in (socket.gethostname(),) if HOST_NAME.fullmatch(name)]
    names = [_general_name(host) for host in dict.fromkeys((*HOSTS, *own, *hosts))]
    if existing := [name for name in FILES if (folder / name).exists()]:
        raise CertificatesFailed(f"{folder / existing[0]} exists: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _contents(names, days).items():
        path = folder / name
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(content)
        path.chmod(0o600 if name.endswith(".key") else 0o644)


def settings_for(folder: Path) -> str:
    """Return the lines of both files of settings that use the certificates in the folder."""
    return "\n".join(
        line
        for program, tls in (("cloud", "tls."), ("edge", "cloud.tls."))
        for line in (
            f"\n# {program}.toml",
            f'{tls}ca = "{folder / "ca.pem"}"',
            f'{tls}cert = "{folder / f"{program}.pem"}"',
            f'{tls}key = "{folder / f"{program}.key"}"',
        )
    )


def _contents(names: Sequence[x509.GeneralName], days: int) -> dict[str, bytes]:
    """Return the content of each of `FILES`, signed by a new authority."""
    by, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> bytes:
        issuer, subject = (
            x509.Name([
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, TRIAL),
                x509.NameAttribute(NameOID.COMMON_NAME, one),
            ])
            for one in (AUTHORITY, name)
        )  # fmt: skip
        serial, until = x509.random_serial_number(), now + timedelta(days)
        made = x509.CertificateBuilder(issuer, subject, key.public_key(), serial, now, until)
        of_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        of_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key())
        for one in (*extensions, of_key, of_issuer):
            is_critical = isinstance(one, x509.BasicConstraints | x509.KeyUsage)
            made = made.add_extension(one, critical=is_critical)
        return made.sign(by, SHA256()).public_bytes(Encoding.PEM)

    signs = x509.BasicConstraints(ca=True, path_length=None), _SIGNS
    contents = {"ca.pem": certificate(AUTHORITY, by, *signs)}
    serves = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    calls = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    uses = {"cloud": (serves, x509.SubjectAlternativeName(names)), "edge": (calls,)}
    for name, extensions in uses.items():
        key, leaf = ec.generate_private_key(ec.SECP256R1()), x509.BasicConstraints(False, None)
        form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        contents[f"{name}.key"] = key.private_bytes(*form)
        contents[f"{name}.pem"] = certificate(f"trial-{name}", key, leaf, *extensions)
    return contents


def _general_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate names it; raise `CertificatesFailed` if it is none."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not HOST_NAME.fullmatch(host):
        raise CertificatesFailed(f"host {host!r}: expected a host name or an IP address, no port")
    return x509.DNSName(host)
