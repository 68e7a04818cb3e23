"""Read studies in child processes, with limits of memory and time.

The decoders are C and C++ libraries, and the bytes come from anywhere. A crash, a leak, a loop or
a bomb ends with the child, and the caller gets a typed error. The voxels in HU never leave the
child: the study comes without them, and the lung box comes in shared memory.
"""

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from base64 import b64decode
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from imaging import errors
from imaging.errors import StudyError, TookTooLong, UnreadableFile
from imaging.files import anonymous_file
from imaging.isolation.transfer import MAX_LINE, UnexpectedData, Ways, from_json
from imaging.preprocess import ChestMeasures, Preprocessed, preprocess
from imaging.selection import SelectSeries, SeriesSummary
from imaging.volume import Study, Volume

_PROGRAM = (
    "import gc, runpy, sys; gc.disable(); sys.modules['requests'] = None;"
    "runpy.run_module('imaging.isolation.child', {}, '__main__')"
)
"""To look for garbage in what is loaded would take a quarter of the time; pydicom would load what
downloads its examples."""

_GRACE_S = 10.0
"""After its limit of time a child is killed by the kernel; its end is reported within this time."""

T = TypeVar("T")


class ReaderFailed(RuntimeError):
    """The reading process has a fault of its own; the notes have its traceback."""


@dataclass(frozen=True)
class ReadLimits:
    """The most that reading and preprocessing one study may take: memory, and time in seconds."""

    memory_mb: int
    seconds: float = 60.0


class IsolatedReader:
    """Reads one study after another, each in a child process; used by one thread, in a ``with``.

    Its process starts with the context and forks a child for each study. It is started again
    when it has died.
    """

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes]
        self._file: BinaryIO
        self._volume: Volume | None = None
        self._busy = False
        self._to_child: socket.socket | None = None
        self._ahead: tuple[int, int] | None = None
        self._later: dict[str, Any] = {}
        self.peak_mb = 0.0
        """Peak memory of the last child that ended."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: Path, series: str = "", select: SelectSeries | None = None) -> Study:
        """Read the study at ``path`` as `imaging.read.read_study` does; ``volume.hu`` is empty.

        ``select`` is called in this process, with what the child has read of the headers.

        Raises:
            StudyError: the study cannot be read, or not within the limits; and what ``select``
                raises.
            OSError, MemoryError: a fault of the machine; the study may be read later.
            ReaderFailed: a fault of the program.
        """
        if self.has_begun(path):  # its child finishes it
            self._ahead = None
            self._tell(str(path))
        else:
            self._request(path, Ways(series, selects=select is not None), _anonymous())
        study = self._study_of(path, select)
        self._volume = study.volume
        return replace(study, headers=partial(self._headers, path, self._file))

    def read_whole(self, path: Path, file: BinaryIO, series: str = "") -> Study:
        """Read a study with its voxels, which are appended to ``file``, opened for both ways.

        ``volume.hu`` is a private map of the file. The child has a low priority.

        Raises:
            As `read`.
        """
        self._request(path, Ways(series, whole=True), file)
        return self._study_of(path, None)

    def begin(self, path: Path, series: str = "", *, selects: bool, settled_s: float) -> None:
        """Read ahead what arrives in the folder ``path``, until it is read from there or elsewhere.

        ``selects`` says whether that reading will choose among the series; ``settled_s`` is for
        `imaging.dicom.ahead.ReadAhead`.
        """
        self._request(path, Ways(series, False, selects, True, settled_s), _anonymous())
        self._ahead = identity(path)

    def has_begun(self, path: Path) -> bool:
        """Return whether the folder ``path``, which may have been moved, is being read ahead."""
        if self._ahead is None or self._ahead != identity(path):
            return False
        # a child that has ended has told something: the study is then read as any other
        return not select.select([self._connection], [], [], 0)[0]

    def cancel(self) -> None:
        """Let the reading that runs in another thread fail now, as if memory had run out."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _request(self, path: Path, ways: Ways, file: BinaryIO) -> None:
        """Have a child read the study; the arrays of its answers are in ``file``.

        After a study without voxels the child goes on with its lung box.
        """
        self._volume, self._ahead, self._later = None, None, {}
        self._finish()
        if self._process.poll() is not None:
            self._start()
        self._file.close()
        self._file = file
        request = json.dumps([str(path), asdict(ways)]).encode() + b"\n"
        self._to_child, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._connection, [request], [file.fileno(), theirs.fileno()])
            except ConnectionError:  # it has ended in this moment
                raise self._lost() from None
        self._busy = True

    def _tell(self, answer: Any) -> None:
        """Send the child a line that it waits for."""
        with suppress(BrokenPipeError):  # it has ended, and the next message says how
            if self._to_child:
                self._to_child.sendall(json.dumps(answer).encode() + b"\n")

    def _study_of(self, path: Path, choose: SelectSeries | None) -> Study:
        """Return the study that the child reads, after the choice among its series."""
        try:
            if choose is not None:
                found = self._answer("series", tuple[SeriesSummary, ...], path)
                self._tell([astuple(one) for one in choose(found)])
            return self._answer("study", Study, path)
        except BaseException:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        """Send nothing to the child any more; one that waits for an answer ends."""
        if self._to_child:
            self._to_child.close()
            self._to_child = None

    def preprocess(self, volume: Volume, source: Path) -> Preprocessed:
        """Return the lung box of the study that was read last; once for each study.

        A volume from elsewhere is preprocessed in this process.

        Raises:
            NoLung: the volume holds no lung; and all that `read` raises.
        """
        if volume is not self._volume:
            return preprocess(volume, source)
        self._volume = None
        box = self._answer("box", Preprocessed, source)
        measure = partial(self._measures, source, self._file)
        return replace(box, measure=measure, proceed=partial(self._proceed, self._file))

    def _proceed(self, file: BinaryIO) -> None:
        """Let the child measure, and make the headers, of the study that was read into ``file``."""
        if file is self._file:
            self._tell("")
            self._hang_up()

    def _measures(self, path: Path, file: BinaryIO) -> ChestMeasures:
        """Return what the volume of the lung box shows.

        Raises:
            As `read`; ReaderFailed: another study is being read.
        """
        if "measures" not in self._later:
            if file is not self._file:
                raise ReaderFailed("what the volume shows was not asked for in time")
            self._proceed(file)
            return self._answer("measures", ChestMeasures, path)
        return from_json(ChestMeasures, self._later["measures"], file.fileno())

    def _headers(self, path: Path, file: BinaryIO) -> bytes:
        """Return the headers of the study that was read into ``file``; once, after its lung box.

        They are empty for a volume file, where the child could not make them, and when another
        study is being read.

        Raises:
            OSError, MemoryError: a fault of the machine.
            StudyError: the time of the study is over.
        """
        if file is not self._file or self._volume is not None or not self._busy:
            return b""
        self._proceed(file)
        answer = self._receive(path)
        if "measures" in answer:
            self._later, answer = answer, self._receive(path)
        if "exit" in answer:
            self._ended(answer["exit"])
        try:
            return b64decode(answer.get("headers", ""), validate=True)
        except (TypeError, ValueError):
            return b""

    def _answer(self, name: str, kind: type[T], path: Path) -> T:
        """Return the child's next message, which should be ``name``, as a ``kind``."""
        try:
            answer = self._receive(path)
            if name in answer:
                return from_json(kind, answer[name], self._file.fileno())
            if "error" in answer:
                error = _study_error(**answer["error"])
                self._volume = None
                raise error
        except (UnexpectedData, ValueError, TypeError, KeyError) as error:
            self._stop()
            raise ReaderFailed(f"the reading process sent nonsense: {error}") from error
        if "fault" in answer:
            fault = answer["fault"]
            raise OSError(fault["number"], fault["text"], fault["file"] or str(path))
        if "memory" in answer:
            raise MemoryError(answer["memory"])
        if "exit" in answer:
            self._ended(answer["exit"])
            raise self._death(answer["exit"]["code"], answer["exit"]["cpu_s"], path)
        failed = ReaderFailed("reading the study failed")
        failed.add_note(str(answer.get("failed", answer)))
        raise failed

    def _death(self, code: int, cpu_s: float, path: Path) -> Exception:
        """Say why a child ended without an answer."""
        limit_s = self._limits.seconds
        if code in (-signal.SIGALRM, -signal.SIGXCPU):
            if cpu_s < limit_s / 20:  # it has waited
                return _silent(limit_s, path)
            advice = "send one series of the chest"
            return TookTooLong(f"reading it takes more than {limit_s:g} s: {advice}", path)
        if code == -signal.SIGKILL:  # by the kernel, which had no memory left
            return MemoryError(f"the system killed the process that read {path.name}")
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
        return UnreadableFile(f"a decoder crashed on it ({name}): export the study again", path)

    def _receive(self, path: Path) -> dict[str, Any]:
        """Receive one message of the child or of its parent."""
        try:
            line = self._answers.readline(MAX_LINE)
        except TimeoutError:  # not even the kernel could end it: the disk does not answer
            self._stop()
            raise _silent(self._limits.seconds, path) from None
        except ConnectionError:  # it has ended before it read the request
            line = b""
        if not line:
            raise self._lost()
        message: dict[str, Any] = json.loads(line)
        return message

    def _lost(self) -> Exception:
        """Say why the process that forks the children has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        code = self._process.returncode
        self._errors.seek(0)
        told = self._errors.read()[-2000:].decode(errors="replace")
        self._stop()
        if code == -signal.SIGKILL:
            return MemoryError("the system killed the reading process")
        failed = ReaderFailed(f"the reading process ended with status {code}")
        failed.add_note(told)
        return failed

    def _finish(self) -> None:
        """Wait until the child of the study before has ended; one that still works is killed."""
        self._hang_up()
        if not self._busy:
            return
        try:
            self._connection.settimeout(1.0)
            while "exit" not in (message := json.loads(self._answers.readline(MAX_LINE))):
                pass
            self._ended(message["exit"])
            self._connection.settimeout(self._limits.seconds + _GRACE_S)
        except (OSError, ValueError):
            self._stop()

    def _ended(self, how: dict[str, Any]) -> None:
        self._busy = False
        self.peak_mb = how["peak_kb"] / 1024

    def _start(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(self._limits.seconds + _GRACE_S)
        self._answers: BinaryIO = self._connection.makefile("rb")
        self._errors, self._file, self._busy = _anonymous(), _anonymous(), False
        limits = (str(self._limits.memory_mb), str(self._limits.seconds))
        number = theirs.fileno()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(number), *limits],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                # one thread until the fork; and the packages of this process, in their order
                env={
                    **os.environ,
                    "OPENBLAS_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(one or os.getcwd() for one in sys.path),
                },
                start_new_session=True,  # a Ctrl-C is for the caller, which finishes its study
            )

    def _stop(self) -> None:
        """End the process and its child, whatever they do."""
        self._ahead, self._busy = None, False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self._hang_up()
        for part in (self._answers, self._connection, self._errors, self._file):
            part.close()


def identity(path: Path) -> tuple[int, int] | None:
    """Return what stays the same where a folder is moved; None where there is none."""
    with suppress(OSError):
        found = path.lstat()
        return found.st_dev, found.st_ino
    return None


def _study_error(kind: str, reason: str, file: str) -> StudyError:
    made = getattr(errors, kind)(reason, file)
    if not isinstance(made, StudyError):
        raise TypeError(f"{kind} is no error of a study")
    return made


def _anonymous() -> BinaryIO:
    return os.fdopen(anonymous_file(), "r+b", buffering=0)


def _silent(limit_s: float, path: Path) -> OSError:
    reason = f"no answer from the disk or network share within {limit_s:g} s"
    return OSError(errno.ETIMEDOUT, reason, str(path))
