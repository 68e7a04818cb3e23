"""A real cloud that is killed in the midst of its work, and comes back at the same address."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evaluation.demo_processes import log_tail
from evaluation.errors import ServiceFailed
from evaluation.service import CLOUD, START_S, STOP_S

_POLL_S = 0.1


class MortalCloud:
    """The process of one cloud after another; ``deaths`` counts those that were killed.

    ``program`` is the module that serves, with its options.
    """

    def __init__(self, folder: Path, program: Sequence[str] = CLOUD) -> None:
        self._ready, self._log, self._program = folder / "address", folder / "log", program
        self._process: subprocess.Popen[bytes] | None = None
        self.address, self.deaths = "127.0.0.1:0", 0

    @property
    def serves(self) -> bool:
        """Whether it can be asked now.

        Raises:
            ServiceFailed: it has ended by itself.
        """
        if self._process is None:
            return False
        if (status := self._process.poll()) is not None:
            tail = log_tail(self._log)
            raise ServiceFailed(f"the cloud ended with {status} before its time\n{tail}")
        return self._ready.is_file()

    def start(self) -> None:
        """Begins to start it, and does not wait."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", *self._program, "--address", self.address]
        command += ["--ready-file", str(self._ready)]
        with self._log.open("ab") as lines:
            self._process = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Returns when it serves.

        Raises:
            ServiceFailed: it ended, or did not serve within `START_S`.
        """
        until = time.monotonic() + START_S
        while not self.serves:
            if time.monotonic() > until:
                tail = log_tail(self._log)
                raise ServiceFailed(f"the cloud did not serve within {START_S:.0f} s\n{tail}")
            time.sleep(_POLL_S)
        self.address = self._ready.read_text().strip()

    def kill(self) -> None:
        """Ends it as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.deaths += 1

    def stop(self) -> None:
        """Ends it in its own order, or else kills it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


@contextmanager
def mortal_cloud(folder: Path, program: Sequence[str] = CLOUD) -> Iterator[MortalCloud]:
    """A cloud that serves, for the time of the context; its files lie in ``folder``.

    Raises:
        ServiceFailed: it does not come up.
    """
    cloud = MortalCloud(folder, program)
    cloud.start()
    try:
        cloud.wait()
        yield cloud
    finally:
        cloud.stop()
