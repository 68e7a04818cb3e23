"""Read each study in a process of its own, forked from one that has the libraries loaded.

`imaging.isolation.reader` starts this program and sends it the path of a study and the file for
its arrays. The forked child answers with the study, then with the lung box, or with the error. When
it has ended, the program that forked it says how. It never opens a study itself, and it has one
thread, so that forking is safe. Where the caller chooses among the series, the child sends what the
headers say, and waits for the answer. It may read a study ahead, while that arrives.

Run as ``python -m imaging.isolation.child SOCKET MEMORY_MB SECONDS``.
"""

import gc
import json
import math
import mmap
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK  # noqa: F401 - before the fork, since a child may need it

from imaging.dicom.ahead import ReadAhead
from imaging.errors import StudyError, TooLarge, UnreadableFile, is_machine_fault, is_out_of_memory
from imaging.isolation.transfer import MAX_LINE, Room, Ways, to_json
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.selection import Preference, SelectSeries, SeriesSummary

LOOKING = 5
"""Niceness of a child that reads a study for somebody who looks at it: others have a deadline."""

_LOOK_S, _MAX_S = 0.02, 1.0
"""Between two looks for new files of a study that arrives, at first and at most."""
_FEW = 8
"""More new files than these are decoded by all cores, as those of any other study."""
_ROOM = 32 << 20
"""For the lung box: those of adults take 10 to 30 MB."""
_REHEARSED = 32
"""After this number of images the child reads what has arrived as if it were the whole study."""
_SHARE = 0.5
"""Of the memory, for slices that are decoded ahead."""


def serve(connection: socket.socket, memory_bytes: int, limit_s: float) -> None:
    """Read studies until the other end is closed."""
    gc.freeze()  # the children then copy fewer pages
    gc.enable()  # see `imaging.isolation.reader`
    while (request := _request(connection)) is not None:
        path, ways, file, answers = request
        try:
            if (child := os.fork()) == 0:
                _read(connection, path, ways, file, answers, memory_bytes, limit_s)
            _, status, used = os.wait4(child, 0)
            code, cpu_s = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
            _send(connection, "exit", {"code": code, "cpu_s": cpu_s, "peak_kb": used.ru_maxrss})
        except OSError as error:  # no memory or no process left to fork
            _send(connection, "fault", _fault(error))
            _send(connection, "exit", {"code": 0, "cpu_s": 0.0, "peak_kb": 0})
        finally:
            for handle in (file, answers):
                os.close(handle)


def _request(connection: socket.socket) -> tuple[Any, ...] | None:
    """Return the path of a study, how it is read, the file for arrays, the socket for answers."""
    line, handles = b"", list[int]()
    while not line.endswith(b"\n"):
        part, sent, _flags, _address = socket.recv_fds(connection, 1 << 16, 2)
        if not part:
            return None
        line, handles = line + part, handles + sent
    path, ways = json.loads(line)
    return Path(path), Ways(**ways), *handles


def _asking(connection: socket.socket, file: int, answers: BinaryIO) -> SelectSeries:
    """Return a choice of series that the process at the other end makes.

    It answers in one line of ``answers``, or closes it after an error of its own.
    """

    def select(series: tuple[SeriesSummary, ...]) -> tuple[Preference, ...]:
        told = to_json(series, file)
        if len(json.dumps(told)) > MAX_LINE // 2:
            raise UnreadableFile("too many series: send one study", series[0].folder)
        _send(connection, "series", told)
        return tuple(Preference(*answer) for answer in json.loads(_line(answers)))

    return select


def _line(answers: BinaryIO) -> bytes:
    """Return the next answer; without one nobody waits for the study any more."""
    return answers.readline() or os._exit(0)


def _read_ahead(
    path: Path, ways: Ways, answers: BinaryIO, memory_bytes: int, limit_s: float
) -> ReadAhead:
    """Read what arrives at ``path`` until an answer comes."""
    ahead = ReadAhead(int(_SHARE * memory_bytes), ways.settled_s)
    told = select.poll()
    told.register(answers, select.POLLIN)
    pause_s, rehearsed = 0.0, False
    while not told.poll(1000 * pause_s):
        began_s = time.monotonic()
        new = ahead.new_in(path)
        looked_s = time.monotonic() - began_s
        for file in new:
            _start_clock(limit_s)
            ahead.take_in(file)
            if told.poll(0):
                return ahead
        if not new and not rehearsed and ahead.images >= _REHEARSED:
            _start_clock(limit_s)
            # what runs first in a process takes half as long again
            with suppress(Exception):
                preprocess(read_study(path, ways.series, None, ahead).volume, path)
            rehearsed = True
        _start_clock(0)
        # where nothing comes for long, or a look takes long, looks are rare
        pause_s = 0.0 if new else min(2 * pause_s + _LOOK_S, _MAX_S) + 20 * looked_s
    return ahead


def _read(
    connection: socket.socket,
    path: Path,
    ways: Ways,
    file: int,
    handle: int,
    memory_bytes: int,
    limit_s: float,
) -> None:
    """Read and preprocess one study in the forked child, which ends here.

    What only the report needs comes last, after an answer: the receiver goes on with the lung box.
    """
    headers: Callable[[], bytes] | None = None
    try:
        _limit(memory_bytes, limit_s)
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        answers: BinaryIO = socket.socket(fileno=handle).makefile("rb")
        ahead, room = None, list[Room]()
        if ways.ahead:
            room = [Room(file, _ROOM)]
            ahead = _read_ahead(path, ways, answers, memory_bytes, limit_s)
            path = Path(json.loads(_line(answers)))
            if len(new := ahead.new_in(path)) <= _FEW:
                for one in new:
                    ahead.take_in(one)
        _start_clock(limit_s)
        if ways.whole:
            os.nice(LOOKING)
        select = _asking(connection, file, answers) if ways.selects else None
        study = read_study(path, ways.series, select, ahead)
        volume = replace(study.volume, measures=())
        if ways.whole:
            _send(connection, "study", to_json(replace(study, volume=volume, headers=None), file))
            return
        # the voxels stay here: nothing after preprocessing needs them
        empty = replace(volume, hu=np.empty((0, 0, 0), np.int16))
        headers = study.headers
        told = to_json(replace(study, volume=empty, headers=None), file)
        if len(json.dumps(told)) > MAX_LINE // 2:
            raise UnreadableFile("its header is too long: export the study again", path)
        _send(connection, "study", told)
        box = preprocess(study.volume, path, *room)
        _send(connection, "box", to_json(replace(box, measure=None), file))
        _line(answers)  # the network has all cores first
        _send(connection, "measures", to_json(box.measures, file))
        _send_headers(connection, headers)
    except StudyError as error:
        _send_error(connection, error)
        _send_headers(connection, headers)
    except BaseException as error:  # whatever it is: it is reported, and the child ends
        if is_out_of_memory(error):
            _send_no_memory(connection, path, memory_bytes)
        elif isinstance(error, OSError) and is_machine_fault(error):
            _send(connection, "fault", _fault(error))
        else:
            _send(connection, "failed", traceback.format_exc())
    finally:
        os._exit(0)


def _limit(memory_bytes: int, limit_s: float) -> None:
    """Limit memory and CPU time of this process; the kernel ends it at the limit of time."""
    for kind, limit in (
        # private memory; the shared file has the limit of any file
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, memory_bytes),
        (resource.RLIMIT_CORE, 0),  # a core holds a patient's data
        (resource.RLIMIT_CPU, math.ceil(limit_s) * (os.cpu_count() or 1)),
    ):
        with suppress(OSError, ValueError):  # not every system has every limit
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    with suppress(OSError):  # if the machine runs out of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then it is an OSError


def _start_clock(limit_s: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # SIGALRM ends the process also in C code


def _end_with(connection: socket.socket) -> None:
    """End this process when the other end is closed: nobody waits for the study any more."""
    closed = select.poll()
    closed.register(connection, 0)  # a hang-up is always reported
    closed.poll()
    os._exit(1)


def _send_no_memory(connection: socket.socket, path: Path, memory_bytes: int) -> None:
    """Say whether the limit or the machine was too small for the study."""
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        mmap.mmap(-1, memory_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, ValueError):
        _send(connection, "memory", "the machine has no memory left for this study")
        return
    reason = f"reading it needs more than {memory_bytes >> 20} MB of memory"
    advice = "send one series of the chest, or raise read_memory_mb"
    _send_error(connection, TooLarge(f"{reason}: {advice}", path))


def _send_error(connection: socket.socket, error: StudyError) -> None:
    values = {"kind": error.kind, "reason": error.reason, "file": str(error.file)}
    _send(connection, "error", values)


def _send_headers(connection: socket.socket, headers: Callable[[], bytes] | None) -> None:
    _send(connection, "headers", b64encode(headers() if headers else b"").decode())


def _fault(error: OSError) -> dict[str, object]:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return {"number": error.errno, "text": error.strerror, "file": name}


def _send(connection: socket.socket, kind: str, value: Any) -> None:
    connection.sendall(json.dumps({kind: value}).encode() + b"\n")


if __name__ == "__main__":
    number, megabytes, seconds = sys.argv[1:]
    with socket.socket(fileno=int(number)) as connection:
        serve(connection, int(megabytes) << 20, float(seconds))
