"""Sockets of failed associations are closed before the next test."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def sockets_are_closed() -> Iterator[None]:
    """Pynetdicom drops the socket of a connection that failed, and python closes it some time.

    Modules that let connections fail ignore the warning.
    """
    yield
    gc.collect()
