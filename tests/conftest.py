"""Fixtures that every test may use."""

import fcntl
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
import structlog

from imaging.phantom.phantom import Phantom, PhantomSpec, make_phantom

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

Draw = Callable[[PhantomSpec], Phantom]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT data beside the checkout; the test skips where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real CT data in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Draws a phantom once in all processes of a run of the tests, as it takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def draw(spec: PhantomSpec) -> Phantom:
        with open(folder / sha256(repr(spec).encode()).hexdigest(), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not file.tell():
                pickle.dump(make_phantom(spec), file)
            file.seek(0)
            phantom: Phantom = pickle.load(file)
            return phantom

    return draw


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], set[str]]]:
    """What the programs have told systemd so far, which waits for it."""
    states = set[str]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def heard() -> set[str]:
            with suppress(BlockingIOError):
                while True:
                    states.add(told.recv(100).decode())
            return states

        yield heard


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Whatever a test lets a program do to the logs ends with it: its streams are closed then.

    Tracebacks are as Python writes them: rich takes seconds to draw one.
    """
    *others, _ = structlog.get_config()["processors"]
    plain = structlog.dev.plain_traceback
    drawn = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=plain)
    structlog.configure(processors=[*others, drawn])
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    """A command that runs in the process of the tests takes the right to read from new files."""
    before = os.umask(0o022)
    yield
    os.umask(before)
