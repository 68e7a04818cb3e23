"""Certificates for a trial: an authority, and a pair each for the cloud and for an edge.

Whoever holds them can pretend to be the cloud or the edge. They expire soon, and the authority's
own key is not kept: it can sign nothing else.
"""

import ipaddress
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge.errors import EdgeError

FILES = ("ca.pem", "cloud.pem", "cloud.key", "edge.pem", "edge.key")
HOSTS = ("localhost", "127.0.0.1", "::1")
HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
TRIAL = "Overread trial - not for patients"

_CONFIG = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[cloud]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = {names}
[edge]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = clientAuth
"""


class CertificatesFailed(EdgeError):
    """The trial certificates cannot be made; the message says why."""


def make_certificates(folder: Path, hosts: Sequence[str], days: int) -> None:
    """Write `FILES` into the folder, keys for their owner alone; replace nothing.

    ``hosts`` are further names and numbers under which edges reach the cloud.

    Raises:
        CertificatesFailed: a host is none, a file exists, or openssl is missing or fails.
        OSError: the folder cannot be written.
    """
    own = [name for name in (socket.gethostname(),) if HOST_NAME.fullmatch(name)]
    names = [_subject_name(host) for host in dict.fromkeys((*HOSTS, *own, *hosts))]
    if existing := [name for name in FILES if (folder / name).exists()]:
        raise CertificatesFailed(f"{folder / existing[0]} exists: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".certs-") as made:
        work = Path(made)
        (work / "trial.cnf").write_text(_CONFIG.format(names=", ".join(names)))
        _sign(work, days)
        for name in FILES:
            (work / name).chmod(0o600 if name.endswith(".key") else 0o644)
            (work / name).rename(folder / name)


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


def _sign(work: Path, days: int) -> None:
    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "trial.cnf")
    valid = ("-days", str(days), "-sha256")
    subject = f"/O={TRIAL}/CN="
    ca = ("-x509", "-extensions", "ca", "-subj", f"{subject}Overread trial CA", *valid)
    _openssl(work, "req", *ec, *ca, "-keyout", "ca.key", "-out", "ca.pem")
    for serial, name in ((1, "cloud"), (2, "edge")):
        request = ("-subj", f"{subject}trial-{name}", "-keyout", f"{name}.key", "-out", "request")
        _openssl(work, "req", "-new", *ec, *request)
        by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", str(serial), *valid)
        form = ("-extfile", "trial.cnf", "-extensions", name, "-out", f"{name}.pem")
        _openssl(work, "x509", "-req", "-in", "request", *by, *form)


def _openssl(work: Path, *arguments: str) -> None:
    if shutil.which("openssl") is None:
        raise CertificatesFailed("the command openssl is missing: install the package openssl")
    ran = subprocess.run(
        ("openssl", *arguments), cwd=work, umask=0o077, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise CertificatesFailed(f"openssl {arguments[0]} failed: {ran.stderr.strip()[-300:]}")


def _subject_name(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host.strip('[]'))}"
    except ValueError:
        pass
    if not HOST_NAME.fullmatch(host):
        raise CertificatesFailed(f"host {host!r}: expected a host name or an IP address, no port")
    return f"DNS:{host}"
