"""Who may connect: TLS, and mutual TLS where an authority for callers is given."""

from __future__ import annotations

from pathlib import Path

import grpc

from cloud.errors import BadSettings
from cloud.settings import CloudSettings


def server_credentials(settings: CloudSettings) -> grpc.ServerCredentials | None:
    """What the server shows and asks for; None for no TLS.

    Raises:
        BadSettings: a file cannot be read.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    ca = None if settings.tls_client_ca is None else _pem(settings.tls_client_ca)
    pair = (_pem(settings.tls_key), _pem(settings.tls_cert))
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from error
