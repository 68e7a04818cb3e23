"""The processes around an evaluation: clouds and agents, monitored and always stopped.

`running` runs any command, `running_cloud` a cloud that can be killed and started again,
`running_agent` the agent as it is installed, and `apart` an object of an evaluation. A process that
fails raises `ServiceFailed`, which quotes the end of its log.
"""

import json
import logging
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from prometheus_client.parser import text_string_to_metric_families

from edge.dicom_in.identity import Identity
from edge.settings.core import EdgeSettings, load_settings
from evaluation.errors import ServiceFailed

CLOUD = ("cloud", "serve")
"""The module that serves, and its command."""
AGENT = ("edge", "run")

START_S = 180.0
"""Time to start; the first start on a machine compares the inference engines."""
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
            raise self.failed(f"ended with {status_text(status)} before its time")

    def wait_until(
        self, ready: Callable[[], bool], what: str, limit_s: float, poll_s: float = 0.05
    ) -> None:
        """Wait until ``ready()`` is true; ``what`` names the awaited action in the error.

        Raises:
            ServiceFailed: the process ended first, or ``limit_s`` passed.
        """
        until = time.monotonic() + limit_s
        while not ready():
            self.require_alive()
            if time.monotonic() > until:
                raise self.failed(f"did not {what} within {limit_s:.0f} s")
            time.sleep(poll_s)

    def failed(self, what: str) -> ServiceFailed:
        """Return an error with ``what`` is wrong, the end of the log, and a known remedy."""
        tail = log_tail(self.log)
        known = (f"\nWhat to do: {remedy}" for word, remedy in _REMEDIES.items() if word in tail)
        return ServiceFailed(f"{self.name} {what}\n{tail}{next(known, '')}")

    def wait(self) -> int:
        """Wait for its end and return the exit status; stop it if the wait is interrupted."""
        try:
            status = self._process.wait()
        except BaseException:
            self.stop()
            raise
        if status < 0:
            raise self.failed(f"ended with {status_text(status)}")
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


@contextmanager
def running(name: str, command: Sequence[str], log: Path, **options: Any) -> Iterator[Process]:
    """Run a command, isolated, for the time of the context; ``options`` are those of `Process`.

    Raises:
        ServiceFailed: it cannot be started, or did not end cleanly after SIGTERM, while the
            context itself raised no error.
    """
    process = Process(name, command, log, isolated=True, **options)
    try:
        yield process
    except BaseException:
        process.stop()
        raise
    process.require_alive()
    if (status := process.stop()) != 0:
        raise process.failed(f"ended with {status_text(status)} after SIGTERM, not with 0")


class Cloud:
    """One cloud process after another at the same ``address``; ``kills`` counts those killed.

    `require_alive` and `restart` may be called from several threads.
    """

    def __init__(
        self, folder: Path, program: Sequence[str] = CLOUD, address: str = "127.0.0.1:0",
        **settings: object,
    ) -> None:  # fmt: skip
        self._ready, self._log, self._program = folder / "address", folder / "log", program
        metrics = f"127.0.0.1:{free_ports(1)[0]}"
        self._config = folder / "cloud.toml"
        self._settings = {"metrics_address": metrics, **settings}
        self.metrics = f"http://{metrics}/metrics"
        self._lock = threading.Lock()
        self.address, self.kills = address, 0
        self.process: Process | None = None

    @property
    def serves(self) -> bool:
        """Return whether it accepts requests now; raise `ServiceFailed` if it has ended."""
        if self.process is None:
            return False
        self.process.require_alive()
        return self._ready.is_file()

    def samples(self) -> dict[str, float]:
        """Return its metrics, summed over labels; raise OSError if it does not answer."""
        found: dict[str, float] = {}
        for (name, *_), value in scraped(self.metrics).items():
            found[name] = found.get(name, 0.0) + value
        return found

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
        write_toml(self._config, self._settings)
        command = [sys.executable, "-m", *self._program, "--config", str(self._config)]
        command += ["--address", self.address, "--ready-file", str(self._ready)]
        self.process = Process("the cloud", command, self._log)

    def wait(self) -> None:
        """Wait until it serves, at most for `START_S`."""
        if self.process is not None:
            self.process.wait_until(self._ready.is_file, "serve", START_S)
            self.address = self._ready.read_text().strip()

    def kill(self) -> None:
        """Kill it, as a power failure would."""
        if self.process is not None:
            self.process.kill()
            self.process = None
            self.kills += 1

    def stop(self) -> None:
        """Stop it, or kill it if it does not end."""
        if self.process is not None:
            self.process.stop()
            self.process = None


def scraped(url: str) -> dict[tuple[str, ...], float]:
    """Return the metrics of an agent or a cloud, by name and values of labels."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


@contextmanager
def running_cloud(
    program: Sequence[str] = CLOUD, address: str = "127.0.0.1:0", **settings: object
) -> Iterator[Cloud]:
    """Run a cloud on loopback for the time of the context.

    ``program`` is the module that serves, with its options.

    Raises:
        ServiceFailed: it ended, or did not serve within `START_S`.
    """
    with tempfile.TemporaryDirectory(prefix="overread-cloud-") as folder:
        cloud = Cloud(Path(folder), program, address, **settings)
        cloud.start()
        try:
            cloud.wait()
            yield cloud
        finally:
            cloud.stop()


@dataclass(frozen=True)
class Agent:
    """A running agent that receives by C-STORE at ``port``; its folders are below ``folder``."""

    folder: Path
    port: int
    process: Process

    @property
    def endpoint(self) -> tuple[str, int]:
        """Where it receives."""
        return "127.0.0.1", self.port

    @property
    def inbox(self) -> Path:
        """Its inbox."""
        return self.folder / "inbox"

    def out(self, study_uid: str, patient_id: str) -> Path:
        """Return the folder where the report of a received study will be."""
        return self.folder / "outbox" / Identity(0, "", "", study_uid, "", patient_id).folder


@contextmanager
def running_agent(
    folder: Path, log: Path, program: Sequence[str] = (sys.executable, "-m", *AGENT),
    **settings: object,
) -> Iterator[Agent]:  # fmt: skip
    """Run the installed agent below ``folder`` for the time of the context.

    It has no cloud, unless ``settings`` name one.

    Raises:
        ServiceFailed: it did not start, or did not end cleanly.
    """
    (port,) = free_ports(1)
    values = {
        "inbox": str(folder / "inbox"),
        "outbox": str(folder / "outbox"),
        "state_dir": str(folder / "state"),
        "receive__dicom__address": f"127.0.0.1:{port}",
        "receive__complete_at_end": True,
        "poll_s": 0.05,
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    command = (*program, "--config", str(write_toml(folder / "edge.toml", values)))
    with running("edge", command, log) as process:
        process.wait_until(lambda: listens(port), "start", START_S)
        yield Agent(folder, port, process)


Made = TypeVar("Made")
_made: list[Any] = []  # of this process, if it is one of `apart`


class _Apart:
    """Calls the methods of the object in another process, one after another."""

    def __init__(self, pool: ProcessPoolExecutor, log: Path) -> None:
        self._pool, self._log = pool, log

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._call, name)

    def _call(self, *arguments: Any, **options: Any) -> Any:
        try:
            return self._pool.submit(_call_made, *arguments, **options).result()
        except BrokenProcessPool as error:
            raise ServiceFailed(
                f"a process ended before its time\n{log_tail(self._log)}"
            ) from error


@contextmanager
def apart(make: Callable[[], Made], log: Path) -> Iterator[Made]:
    """Make an object in a process of its own, and yield what calls its methods there.

    What goes there and comes back is pickled; ``log`` gets all that the process prints.

    Raises:
        ServiceFailed: the process ended, or a method raised an error.
    """
    log.touch()
    with ProcessPoolExecutor(1, get_context("spawn"), _make, (make, log)) as pool:
        yield cast(Made, _Apart(pool, log))


def _make(make: Callable[[], Any], log: Path) -> None:
    with log.open("ab") as lines:
        for stream in (1, 2):
            os.dup2(lines.fileno(), stream)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    _made.append(make())


def _call_made(name: str, *arguments: Any, **options: Any) -> Any:
    try:
        return getattr(_made[0], name)(*arguments, **options)
    except Exception as error:  # not every error can be pickled
        raise ServiceFailed(f"{type(error).__name__}: {error}") from error


def settings_in(root: Path, **more: object) -> EdgeSettings:
    """Return settings of an agent in this process: folders below ``root``, and short pauses.

    ``more`` goes before.
    """
    given = {
        "inbox": root / "inbox",
        "outbox": root / "outbox",
        "state_dir": root / "state",
        "quiet_s": 0.02,
        "poll_s": 0.005,
    }
    return load_settings(None, **(given | more))


_PORTS = iter(random.SystemRandom().sample(range(20_000, 32_000), 12_000))
"""Below those that a kernel gives to connections and to servers that ask for any; none twice."""


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that were free a moment ago, none twice in this process."""
    return list(islice(filter(_is_free, _PORTS), count))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    """Return whether a port of loopback is served."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            # a connection to a free port may get this port for itself, and reach itself
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


def write_toml(path: Path, settings: Mapping[str, Any]) -> Path:
    """Write settings as TOML; return the file. ``a__b`` is the value ``b`` of the table ``a``."""
    lines, tables = list[str](), list[str]()
    for name, value in settings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for table in value:
                tables += [f"[[{name}]]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
        else:  # as JSON, of which TOML takes this part
            lines.append(f"{name.replace('__', '.')} = {json.dumps(value)}")
    path.write_text("\n".join([*lines, *tables, ""]))
    return path


def log_tail(log: Path) -> str:
    """Return the last lines of a log, indented, or a remark that it is empty."""
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - 65536))
        text = lines.read().decode(errors="replace")
    last = text.rstrip().splitlines()[-12:]
    return "\n".join(f"  | {line}" for line in last) or "  | (its log is empty)"


def status_text(status: int) -> str:
    """Return an exit status in words; a negative one is a signal."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"
