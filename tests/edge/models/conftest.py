"""A hospital that signs its models, and an edge that has fetched one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.models.fetch import fetch
from models.runtime.artifacts import every
from tests.edge.models.signed import SMALL, Edge, Signed, edge, offering, signed


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return signed(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="session")
def fetched(hospital: Signed, tmp_path_factory: pytest.TempPathFactory) -> Edge:
    """An edge with the small model, which is quickly tried, in shadow."""
    with offering(hospital, SMALL) as cloud:
        site = edge(tmp_path_factory.mktemp("edge"), cloud.address, hospital.key)
        fetch(site.site, user="agent")
    return site


@pytest.fixture
def site(fetched: Edge, tmp_path: Path) -> Iterator[Edge]:
    """A copy of that edge."""
    shutil.copytree(fetched.root / "state", tmp_path / "state")
    every.cache_clear()
    cloud, key = fetched.settings.cloud.address or "", fetched.settings.models.keys[0]
    yield edge(tmp_path, cloud, key)
    every.cache_clear()
