"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT data beside the checkout; the test skips where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real CT data in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Whatever a test lets a program do to the logs ends with it: its streams are closed then."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    """A command that runs in the process of the tests takes the right to read from new files."""
    before = os.umask(0o022)
    yield
    os.umask(before)
