"""Closes what the senders of a test leave open."""

from collections.abc import Iterator

import pytest

from tests.edge.dicom_in.senders import CONNECTIONS


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    while CONNECTIONS:
        CONNECTIONS.pop().close()
