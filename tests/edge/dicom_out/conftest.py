"""An archive, and the end of the sockets of associations that failed."""

import gc
from collections.abc import Iterator

import pytest

from tests.dicom_peers import Pacs


@pytest.fixture(autouse=True)
def sockets_are_closed() -> Iterator[None]:
    """Pynetdicom drops the socket of a connection that failed, and python closes it some time.

    Modules that let connections fail ignore the warning.
    """
    yield
    gc.collect()


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with Pacs().running() as pacs:
        yield pacs
