"""A real cloud service on loopback, for the time of one evaluation."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evaluation.errors import ServiceFailed

START_S = 120.0
STOP_S = 30.0
_POLL_S = 0.1


CLOUD = ("cloud", "serve")
"""The module that serves, and its command."""


@contextmanager
def cloud_service(
    model: str | None = None, *, program: Sequence[str] = CLOUD, config: Path | None = None
) -> Iterator[str]:
    """Starts ``overread-cloud serve`` as its own process; its ``HOST:PORT`` once it serves.

    ``program`` is another module that serves, with its options; ``config`` its settings in TOML.

    Raises:
        ServiceFailed: it ended, or did not serve within `START_S`.
    """
    with tempfile.TemporaryDirectory(prefix="overread-cloud-") as folder:
        ready, log = Path(folder, "address"), Path(folder, "log")
        command = [sys.executable, "-m", *program, "--address", "127.0.0.1:0"]
        command += ["--ready-file", str(ready), *(["--model", model] if model else [])]
        command += ["--config", str(config)] if config else []
        with log.open("wb") as lines:
            process = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT)
        try:
            yield _address(process, ready, log)
        finally:
            _stop(process)


def _address(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if ready.is_file() and (address := ready.read_text().strip()):
            return address
        if process.poll() is not None:
            raise ServiceFailed(f"the cloud ended with {process.returncode}: {_tail(log)}")
        time.sleep(_POLL_S)
    raise ServiceFailed(f"the cloud did not serve within {START_S:.0f} s: {_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path, lines: int = 5) -> str:
    return " / ".join(log.read_text(errors="replace").split("\n")[-lines:]).strip(" /")
