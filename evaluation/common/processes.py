"""Processes that an evaluation starts: monitored while they run, and always stopped.

`running` runs any command, `cloud_service` the cloud, `restartable_cloud` a cloud that can be
killed, and `edge_process` an edge that reads on command. A process that fails raises
`ServiceFailed`, which quotes the end of its log.
"""

import json
import os
import socket
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

START_S = 120.0
STOP_S = 30.0
"""Time limit after SIGTERM; then the process is killed."""

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
"""Words in a log, and the remedy for each."""


class Process:
    """One running process: ``name`` is for messages, ``log`` gets all that it prints.

    An ``isolated`` process has its own session, so that Ctrl-C does not reach it, and does not see
    the ``OVERREAD_*`` settings of the environment. With ``output`` its standard output goes to that
    file instead of the log; ``environment`` is added to the environment.

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
            if not (isolated and name.upper().startswith("OVERREAD_"))
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

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self._process.pid

    def require_alive(self) -> None:
        """Raise `ServiceFailed` if it has ended."""
        if (status := self._process.poll()) is not None:
            raise self.failed(f"ended with {_status(status)} before its time")

    def wait_until(
        self,
        ready: Callable[[], bool],
        what: str,
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wait until ``ready()`` is true; ``what`` names the awaited action in the error.

        Raises:
            ServiceFailed: the process ended first, or ``limit_s`` passed.
        """
        until = clock() + limit_s
        while not ready():
            self.require_alive()
            if clock() > until:
                raise self.failed(f"did not {what} within {limit_s:.0f} s")
            time.sleep(0.05)

    def failed(self, what: str) -> ServiceFailed:
        """Return an error with ``what`` is wrong, the end of the log, and a known remedy."""
        tail = log_tail(self.log)
        known = (f"\nWhat to do: {remedy}" for word, remedy in _REMEDIES.items() if word in tail)
        return ServiceFailed(f"{self.name} {what}\n{tail}{next(known, '')}")

    def wait(self) -> int:
        """Wait for its end and return the exit status; stop it if the wait is interrupted.

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
        """End it by SIGTERM, or by SIGKILL after `STOP_S`; return the exit status."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return self.kill()
        except BaseException:  # a second Ctrl-C: it must not outlive us for that
            self.kill()
            raise

    def kill(self) -> int:
        """End it by SIGKILL; return the exit status."""
        self._process.kill()
        return self._process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that were free a moment ago."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


def listens(port: int) -> bool:
    """Return whether a port of loopback is served."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            # a connection to a free port may get this port for itself, and reach itself
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


@contextmanager
def running(name: str, command: Sequence[str], log: Path) -> Iterator[Process]:
    """Run a command, isolated, for the time of the context.

    Raises:
        ServiceFailed: it cannot be started, or did not end cleanly after SIGTERM, while the
            context itself raised no error.
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
        """Return whether it accepts requests now; raise `ServiceFailed` if it has ended."""
        if self._process is None:
            return False
        self._process.require_alive()
        return self._ready.is_file()

    def require_alive(self) -> None:
        """Raise `ServiceFailed` if it has ended."""
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
        """Wait until it serves, at most for `START_S`."""
        if self._process is not None:
            self._process.wait_until(self._ready.is_file, "serve", START_S)
            self.address = self._ready.read_text().strip()

    def kill(self) -> None:
        """Kill it, as a power failure would."""
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
    """Run a cloud for the time of the context; its log and ready file are in ``folder``.

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
    """Run a cloud service on loopback for the time of the context; yield its ``HOST:PORT``.

    ``program`` is the module that serves, with its options; ``config`` its settings in TOML.
    """
    given = {"--model": model, "--config": config}
    options = [str(word) for pair in given.items() if pair[1] for word in pair]
    with (
        tempfile.TemporaryDirectory(prefix="overread-cloud-") as folder,
        restartable_cloud(Path(folder), program, *options) as cloud,
    ):
        yield cloud.address


class EdgeProcess:
    """An edge in another process: commands and answers are lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        """Open the pipeline with these settings; return the name of the model.

        With ``replay`` the screening network reads each study once, now.
        """
        return str(self._answer({"open": settings, "replay": replay})["opened"])

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        """Return the result of one study, as `evaluation.links.edge_worker` gives it."""
        return self._answer({"read": number, "from_files": from_files})

    def escalate(self, number: int) -> dict[str, Any]:
        """Return the times of one candidate, as `evaluation.timing.candidate_worker` gives them."""
        return self._answer({"escalate": number})

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
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
    count: int,
    seed: int,
    cache: Path,
    log: Path,
    program: Sequence[str] = ("evaluation.links.edge_worker",),
) -> Iterator[EdgeProcess]:
    """Run an edge with ``count`` prepared studies of ``cache`` for the time of the context.

    Raises:
        ServiceFailed: it ended during a command.
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
    """Return the last lines of a log, indented, or a remark that it is empty."""
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - 65536))
        text = lines.read().decode(errors="replace")
    last = text.rstrip().splitlines()[-12:]
    return "\n".join(f"  | {line}" for line in last) or "  | (its log is empty)"


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
