"""A cloud for the tests of a module that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.cloud.running import RunningCloud, run_cloud


@pytest.fixture(scope="module")
def cloud() -> Iterator[RunningCloud]:
    with run_cloud() as one:
        yield one
