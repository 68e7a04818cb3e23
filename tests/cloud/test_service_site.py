"""Whose a stream is."""

from __future__ import annotations

from typing import Any

import pytest

from cloud.service import site_of
from protos.metadata import MAX_SITE_CHARACTERS

CN, ALT, PEM = "x509_common_name", "x509_subject_alternative_name", "x509_pem_cert"


class Context:
    """What a caller shows: certificate and metadata."""

    def __init__(
        self, shown: dict[str, list[bytes]], metadata: tuple[tuple[str, str], ...] | None
    ) -> None:
        self._shown, self._metadata = shown, metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """As grpc gives it."""
        return self._shown

    def invocation_metadata(self) -> tuple[tuple[str, str], ...] | None:
        """As grpc gives it."""
        return self._metadata


@pytest.mark.parametrize(
    ("shown", "metadata", "site"),
    [
        ({}, None, "unknown"),
        ({}, (("user-agent", "x"),), "unknown"),
        ({}, (("overread-site", "north"),), "north"),
        ({}, (("overread-site", "n" * 500),), "n" * MAX_SITE_CHARACTERS),
        ({"transport_security_type": [b"ssl"]}, (("overread-site", "north"),), "north"),
        ({CN: [b"south"]}, (("overread-site", "north"),), "south"),
        ({PEM: [b"..."], CN: [b""], ALT: [b"east", b"e2"]}, (("overread-site", "n"),), "east"),
        ({PEM: [b"..."], CN: [b"south"], ALT: [b"east"]}, None, "south"),
        ({PEM: [b"..."]}, (("overread-site", "north"),), "unknown"),
        ({CN: [b" "]}, (("overread-site", "north"),), "unknown"),
    ],
)
def test_the_certificate_is_believed_before_the_caller(
    shown: dict[str, list[bytes]], metadata: tuple[tuple[str, str], ...] | None, site: str
) -> None:
    """What it says counts only where it shows none, cut to a length; else it is unknown."""
    context: Any = Context(shown, metadata)
    assert site_of(context) == site
