"""An edge and a cloud whose every answer is written down, for tests of what goes on around them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.common.processes import RestartableCloud

RESULT = {
    "trace": "t",
    "number": 0,
    "bytes": 0,
    "death": False,
    "took_s": 0.1,
    "scheduler_delay_s": 0.0,
    "lesions": 2,
    "found": 1,
    "false": 1,
    "escalated": 3,
    "answered": 2,
    "second_reading": "complete",
    "refused": "",
}
GIVEN = ("trace", "number", "bytes", "death")
"""What the edge does not tell."""


@dataclass
class WrittenEdge:
    """Answers each study after ``wait_s``."""

    wait_s: float = 0.0
    opened: list[dict[str, Any]] = field(default_factory=list)
    files: list[bool] = field(default_factory=list)

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        self.opened.append({"replay": replay, **settings})
        return "written"

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:  # noqa: ARG002 - the shape of the real one
        self.files.append(from_files)
        time.sleep(self.wait_s)
        return {key: RESULT[key] for key in RESULT if key not in GIVEN}


class WrittenCloud(RestartableCloud):
    """Counts its kills and starts; serves again ``back_after`` looks after a start."""

    def __init__(self, back_after: int = 0) -> None:
        super().__init__(Path())
        self.address, self.back_after, self.starts, self.looks = "127.0.0.1:9", back_after, 0, 0

    @property
    def serves(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def kill(self) -> None:
        self.kills += 1

    def start(self) -> None:
        self.starts += 1
        self.looks = self.back_after
