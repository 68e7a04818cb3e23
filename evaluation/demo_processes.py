"""The processes of a demonstration: started, watched, and stopped whatever happens."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evaluation.errors import ServiceFailed

GRACE_S = 20.0
"""What a process has to end in after SIGTERM before it is killed."""

_POLL_S = 0.05
_TAIL_LINES = 12
_TAIL_BYTES = 65536
_OURS = "OVERREAD_"
_RESTORE = "the models are missing, damaged or unfitted: git checkout -- models/weights"
_REMEDIES = {
    "UnknownArtifact": _RESTORE,
    "DamagedArtifact": _RESTORE,
    "UnfitArtifact": _RESTORE,
    "UnfitModel": _RESTORE,
    "ModuleNotFoundError": "the environment is incomplete: make clean, then make demo",
    "ImportError": "the environment is damaged: make clean, then make demo",
    "AddressUnusable": "no port of 127.0.0.1 can be had: see what forbids it",
    "No space left": "the disk is full: make room, or give another folder with --out",
    "Killed": "the machine has too little memory: close other programs",
}
"""A word in the log, and what to do about it."""


class DemoProcess:
    """One running process: ``name`` is for people, ``log`` takes all that it says."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self.log = name, log
        self._process = process

    def require_alive(self) -> None:
        """Nothing, as long as it runs.

        Raises:
            ServiceFailed: it has ended.
        """
        if (status := self._process.poll()) is not None:
            raise self.failed(f"ended with {_status(status)} before its time")

    def failed(self, what: str) -> ServiceFailed:
        """The error that says what is wrong, what the log said last, and what to do."""
        tail = log_tail(self.log)
        known = (remedy for word, remedy in _REMEDIES.items() if word in tail)
        advice = next(known, "the log says more; mend what it complains of and start again")
        return ServiceFailed(f"{self.name} {what}\n{tail}\nWhat to do: {advice} ({self.log})")

    def stop(self) -> int:
        """Its exit status after SIGTERM, or after SIGKILL when that did not help."""
        self._process.terminate()
        try:
            return self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return self._kill()
        except BaseException:  # a second Ctrl-C: it must not outlive us for that
            self._kill()
            raise

    def _kill(self) -> int:
        self._process.kill()
        return self._process.wait()


@contextmanager
def running(name: str, command: Sequence[str], log: Path) -> Iterator[DemoProcess]:
    """Runs a command for the time of the context; its output goes to ``log``.

    It has a session of its own: Ctrl-C reaches us alone, and we stop it in our order. Settings
    in the environment (``OVERREAD_*``) do not reach it: a demonstration is set up by us alone.

    Raises:
        ServiceFailed: it cannot be started, or it did not end cleanly after SIGTERM (where the
            context itself ended well).
    """
    with log.open("wb") as lines:
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if not k.upper().startswith(_OURS)},
                start_new_session=True,
            )
        except OSError as error:
            raise ServiceFailed(f"{name} cannot be started: {error}") from error
    process = DemoProcess(name, popen, log)
    try:
        yield process
    except BaseException:
        process.stop()
        raise
    if (status := process.stop()) != 0:
        raise process.failed(f"ended with {_status(status)} after SIGTERM, not with 0")


def wait_until(
    ready: Callable[[], bool],
    process: DemoProcess,
    what: str,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Returns when ``ready`` says so; ``what`` is what the process should have done by then.

    Raises:
        ServiceFailed: the process ended first, or ``limit_s`` went by.
    """
    until = clock() + limit_s
    while not ready():
        process.require_alive()
        if clock() > until:
            raise process.failed(f"did not {what} within {limit_s:.0f} s")
        time.sleep(_POLL_S)


def log_tail(log: Path) -> str:
    """The last lines of a log, indented, or a word that there are none."""
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = lines.read().decode(errors="replace")
    last = text.rstrip().splitlines()[-_TAIL_LINES:]
    return "\n".join(f"  | {line}" for line in last) or "  | (its log is empty)"


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
