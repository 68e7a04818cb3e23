"""A site without studies, and its pages behind a password."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.builders import HandClock
from tests.edge.status.site import Site, Visit, visiting


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def visit(site: Site, clock: HandClock) -> Iterator[Visit]:
    """The pages with a password; their clock moves by hand."""
    with visiting(site.app(site.authenticator(clock=clock))) as visit:
        yield visit
