"""A clock by hand, a silent port, and a site with a silent cloud for the tests of pending reads."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.store.studies import StudyStore
from tests.edge.builders import HandClock, SilentCloud, Site, open_store, site_at


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a port that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def cloud() -> SilentCloud:
    return SilentCloud()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with open_store(tmp_path / "s.db") as store:
        yield store


@pytest.fixture
def site(tmp_path: Path, cloud: SilentCloud) -> Iterator[Site]:
    with site_at(tmp_path, cloud) as site:
        yield site
