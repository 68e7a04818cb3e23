"""Processes that an evaluation starts: watched while they run, and stopped whatever happens.

`running` runs any command, `cloud_service` the cloud, `restartable_cloud` a cloud that can be
killed, and `edge_process` an edge that is told what to read. A process that fails is a
`ServiceFailed` that quotes the end of its log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evaluation.errors import ServiceFailed

CLOUD = ("cloud", "serve")
"""The module that serves, and its command."""

EDGE = ("evaluation.links.edge_worker",)
"""The module that `edge_process` runs."""

START_S = 120.0
STOP_S = 30.0
"""Time to end after SIGTERM; a process that takes longer is killed."""

_POLL_S = 0.05
_TAIL_LINES = 12
_TAIL_BYTES = 65536
_SETTINGS = "OVERREAD_"
_RESTORE = "the models are missing, damaged or unfitted: git checkout -- models/weights"
_REMEDIES = {
    "UnknownArtifact": _RESTORE,
    "DamagedArtifact": _RESTORE,
    "UnfitArtifact": _RESTORE,
    "UnfitModel": _RESTORE,
    "ModuleNotFoundError": "the environment is incomplete: make clean, then make demo",
    "ImportError": "the environment is damaged: make clean, then make demo",
    "AddressUnusable": "the port is taken or forbidden: see which program has it",
    "No space left": "the disk is full: make room, or give another folder with --out",
    "Killed": "the machine has too little memory: close other programs",
}
"""A word in a log, and what to do about it."""


class Process:
    """One running process: ``name`` is for people, ``log`` gets all that it prints.

    An ``isolated`` process has a session of its own, so that Ctrl-C does not reach it, and does
    not see the ``OVERREAD_*`` settings of the environment. With ``output`` its standard output
    goes to that file instead of the log; ``environment`` is added to its own.

    Raises:
        ServiceFailed: it cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        isolated: bool = False,
        output: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.log = name, log
        passed_on = {
            name: value
            for name, value in os.environ.items()
            if not (isolated and name.upper().startswith(_SETTINGS))
        }
        with log.open("ab") as lines, (output or log).open("ab") as printed:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=lines,
                    env={**passed_on, **(environment or {})},
                    start_new_session=isolated,
                )
            except OSError as error:
                raise ServiceFailed(f"{name} cannot be started: {error}") from error

    def require_alive(self) -> None:
        """Do nothing as long as it runs.

        Raises:
            ServiceFailed: it has ended.
        """
        if (status := self._process.poll()) is not None:
            raise self.failed(f"ended with {_status(status)} before its time")

    def wait_until(
        self,
        ready: Callable[[], bool],
        what: str,
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Return when ``ready`` says so; ``what`` is what the process should do by then.

        Raises:
            ServiceFailed: the process ended first, or ``limit_s`` went by.
        """
        until = clock() + limit_s
        while not ready():
            self.require_alive()
            if clock() > until:
                raise self.failed(f"did not {what} within {limit_s:.0f} s")
            time.sleep(_POLL_S)

    def failed(self, what: str) -> ServiceFailed:
        """The error that says what is wrong, what the log said last, and what to do if known."""
        tail = log_tail(self.log)
        known = (f"\nWhat to do: {remedy}" for word, remedy in _REMEDIES.items() if word in tail)
        return ServiceFailed(f"{self.name} {what}\n{tail}{next(known, '')}")

    def wait(self) -> int:
        """Its exit status when it ends by itself; it is stopped if the wait is interrupted.

        Raises:
            ServiceFailed: a signal ended it.
        """
        try:
            status = self._process.wait()
        except BaseException:
            self.stop()
            raise
        if status < 0:
            raise self.failed(f"ended with {_status(status)}")
        return status

    def stop(self) -> int:
        """Its exit status after SIGTERM, or after SIGKILL when that did not help."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return self.kill()
        except BaseException:  # a second Ctrl-C: it must not outlive us for that
            self.kill()
            raise

    def kill(self) -> int:
        """Its exit status after SIGKILL."""
        self._process.kill()
        return self._process.wait()


@contextmanager
def running(name: str, command: Sequence[str], log: Path) -> Iterator[Process]:
    """Runs a command, isolated, for the time of the context.

    Raises:
        ServiceFailed: it cannot be started, or it did not end cleanly after SIGTERM (where the
            context itself ended well).
    """
    process = Process(name, command, log, isolated=True)
    try:
        yield process
    except BaseException:
        process.stop()
        raise
    process.require_alive()
    if (status := process.stop()) != 0:
        raise process.failed(f"ended with {_status(status)} after SIGTERM, not with 0")


class RestartableCloud:
    """One cloud process after another at the same address; ``kills`` counts those killed.

    `require_alive` and `restart` may be called from several threads.
    """

    def __init__(self, folder: Path, program: Sequence[str] = CLOUD, *options: str) -> None:
        self._ready, self._log = folder / "address", folder / "log"
        self._program, self._options = program, options
        self._process: Process | None = None
        self._lock = threading.Lock()
        self.address, self.kills = "127.0.0.1:0", 0

    @property
    def serves(self) -> bool:
        """Return whether it accepts requests now.

        Raises:
            ServiceFailed: it has ended by itself.
        """
        if self._process is None:
            return False
        self._process.require_alive()
        return self._ready.is_file()

    def require_alive(self) -> None:
        """Do nothing as long as it serves or starts.

        Raises:
            ServiceFailed: it has ended by itself.
        """
        with self._lock:
            self.serves  # noqa: B018 - it raises

    def restart(self) -> None:
        """Kill it if it serves, and start it again without waiting."""
        with self._lock, suppress(ServiceFailed):  # the next `require_alive` raises it
            if self.serves:
                self.kill()
                self.start()

    def start(self) -> None:
        """Start it without waiting."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", *self._program, *self._options]
        command += ["--address", self.address, "--ready-file", str(self._ready)]
        self._process = Process("the cloud", command, self._log)

    def wait(self) -> None:
        """Return when it serves.

        Raises:
            ServiceFailed: it ended, or did not serve within `START_S`.
        """
        if self._process is not None:
            self._process.wait_until(self._ready.is_file, "serve", START_S)
            self.address = self._ready.read_text().strip()

    def kill(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            self.kills += 1

    def stop(self) -> None:
        """Stop it, or kill it if it does not end."""
        if self._process is not None:
            self._process.stop()
            self._process = None


@contextmanager
def restartable_cloud(
    folder: Path, program: Sequence[str] = CLOUD, *options: str
) -> Iterator[RestartableCloud]:
    """A cloud that serves, for the time of the context; its log and ready file are in ``folder``.

    Raises:
        ServiceFailed: it ended, or did not serve within `START_S`.
    """
    cloud = RestartableCloud(folder, program, *options)
    cloud.start()
    try:
        cloud.wait()
        yield cloud
    finally:
        cloud.stop()


@contextmanager
def cloud_service(
    model: str | None = None, *, program: Sequence[str] = CLOUD, config: Path | None = None
) -> Iterator[str]:
    """The ``HOST:PORT`` of a cloud service on loopback, for the time of the context.

    ``program`` is another module that serves, with its options; ``config`` its settings in TOML.

    Raises:
        ServiceFailed: it ended, or did not serve within `START_S`.
    """
    options = (
        *(("--model", model) if model else ()),
        *(("--config", str(config)) if config else ()),
    )
    with (
        tempfile.TemporaryDirectory(prefix="overread-cloud-") as folder,
        restartable_cloud(Path(folder), program, *options) as cloud,
    ):
        yield cloud.address


class EdgeProcess:
    """An edge in a process of its own: takes commands and gives answers as lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        """Open the pipeline with these settings; the model in words.

        With ``replay`` the screening network sees each study once, now.
        """
        return str(self._asked({"open": settings, "replay": replay})["opened"])

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        """The result of one study, as `evaluation.links.edge_worker` gives it."""
        return self._asked({"read": number, "from_files": from_files})

    def escalate(self, number: int) -> dict[str, Any]:
        """The times of one candidate, as `evaluation.timing.detection_worker` gives them."""
        return self._asked({"escalate": number})

    def _asked(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{json.dumps(command)}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = _status(self._process.wait())
            raise ServiceFailed(f"the edge ended with {status}\n{log_tail(self._log)}")
        return dict(json.loads(answer))


@contextmanager
def edge_process(
    count: int, seed: int, cache: Path, log: Path, program: Sequence[str] = EDGE
) -> Iterator[EdgeProcess]:
    """An edge with ``count`` prepared studies of ``cache``, for the time of the context.

    Raises:
        ServiceFailed: it ended while it was asked.
    """
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", *program, str(count), str(seed), str(cache)]
    pipe = subprocess.PIPE
    with (
        log.open("wb") as lines,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=lines, text=True) as process,
    ):
        try:
            yield EdgeProcess(process, log)
        except BaseException:
            process.kill()
            raise


def log_tail(log: Path) -> str:
    """The last lines of a log, indented, or a word that there are none."""
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = lines.read().decode(errors="replace")
    last = text.rstrip().splitlines()[-_TAIL_LINES:]
    return "\n".join(f"  | {line}" for line in last) or "  | (its log is empty)"


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
