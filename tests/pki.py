"""Certificates for tests of TLS, made by openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest


def make_pki(
    folder: Path, *, days: int = 2, period: tuple[str, str] | None = None, **names: tuple[str, str]
) -> Path:
    """An authority ``ca`` in ``folder``, and of each name a certificate: subject, extension.

    They are valid for some days, or in the period between two times as YYYYMMDDHHMMSSZ.
    """
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl to make certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(("openssl", *arguments), cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-x509")
    openssl(*new, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    valid = ("-days", str(days))
    if period is not None:
        valid = ("-not_before", period[0], "-not_after", period[1])
        used = subprocess.run(("openssl", "req", "-help"), capture_output=True, text=True)
        if "-not_before" not in used.stderr:
            pytest.skip("needs openssl 3.4 to make certificates of another time")
    for name, (subject, extension) in names.items():
        signed = (*valid, "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", f"/{subject}")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl(*new, *signed, "-addext", extension, *files)
    return folder
