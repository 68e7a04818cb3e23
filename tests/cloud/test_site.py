"""Whose a stream is."""

from __future__ import annotations

from typing import Any

import pytest

from cloud.site import site_of
from protos.site import MAX_SITE_CHARACTERS


class Context:
    """What a caller shows: certificate and metadata."""

    def __init__(self, names: list[bytes], metadata: tuple[tuple[str, str], ...] | None) -> None:
        self._names, self._metadata = names, metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """As grpc gives it."""
        return {"x509_common_name": self._names} if self._names else {}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...] | None:
        """As grpc gives it."""
        return self._metadata


@pytest.mark.parametrize(
    ("names", "metadata", "site"),
    [
        ([], None, "unknown"),
        ([], (("user-agent", "x"),), "unknown"),
        ([], (("overread-site", "north"),), "north"),
        ([b"south"], (("overread-site", "north"),), "south"),
        ([b" "], (("overread-site", "  "),), "unknown"),
        ([], (("overread-site", "n" * 500),), "n" * MAX_SITE_CHARACTERS),
    ],
)
def test_the_certificate_is_believed_before_the_caller(
    names: list[bytes], metadata: tuple[tuple[str, str], ...] | None, site: str
) -> None:
    """Then what it says, cut to a length; then it is unknown."""
    context: Any = Context(names, metadata)
    assert site_of(context) == site
