"""The channel to the cloud: plain, TLS or mutual TLS, as it is set."""

from __future__ import annotations

from pathlib import Path

import grpc

from edge.errors import BadSettings
from edge.settings import EdgeSettings

# A service that comes back is found again within a second, not within gRPC's two minutes.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 3000),  # despite its name: how long connecting may take
    # a connection that swallows everything is found out and made anew
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.enable_retries", 0),  # `edge.escalate` retries, within the study's budget
)


def open_channel(address: str, settings: EdgeSettings) -> grpc.Channel:
    """A channel to ``HOST:PORT``; nothing is connected before the first study needs it.

    Raises:
        BadSettings: a certificate or key file cannot be read.
    """
    if settings.tls_ca is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_content(settings.tls_ca),
        private_key=_content(settings.tls_key),
        certificate_chain=_content(settings.tls_certificate),
    )
    return grpc.secure_channel(address, credentials, options=OPTIONS)


def _content(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise BadSettings(f"{file}: {error.strerror}") from error
