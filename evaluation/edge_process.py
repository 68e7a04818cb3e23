"""The process of `evaluation.link_edge`, as the one who tells it what to read sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluation.demo_processes import log_tail
from evaluation.errors import ServiceFailed

EDGE = ("evaluation.link_edge",)


class EdgeProcess:
    """Asks by a line and waits for the answer."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        """Opens the line of these settings; the model in words.

        With ``replay`` the screening network sees each study once, now.
        """
        return str(self._asked({"open": settings, "replay": replay})["opened"])

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        """What became of one study, as `evaluation.link_edge` tells it."""
        return self._asked({"read": number, "from_files": from_files})

    def ask(self, number: int) -> dict[str, Any]:
        """What one candidate took, as `evaluation.detection_edge` tells it."""
        return self._asked({"ask": number})

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
            status = self._process.wait()
            raise ServiceFailed(f"the edge ended with {status}\n{log_tail(self._log)}")
        return dict(json.loads(answer))


@contextmanager
def edge_process(
    count: int, seed: int, cache: Path, log: Path, program: Sequence[str] = EDGE
) -> Iterator[EdgeProcess]:
    """The edge with ``count`` prepared studies of ``cache``, for the time of the context.

    Raises:
        ServiceFailed: it ended while it was asked.
    """
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", *program, str(count), str(seed), str(cache)]
    with (
        log.open("wb") as lines,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=lines, text=True
        ) as process,
    ):
        try:
            yield EdgeProcess(process, log)
        except BaseException:
            process.kill()
            raise
