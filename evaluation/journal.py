"""Results kept line by line as they come, so that a long run may be cut short and go on.

The first line says what the run is, the checksums of the artifacts that read in it too; a file of
another run is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluation.errors import MissingData

Entry = dict[str, Any]


class Journal:
    """The results so far; `add` may be called from several threads."""

    def __init__(self, entries: list[Entry], path: Path | None) -> None:
        self.entries, self._path = entries, path
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Keeps one more."""
        with self._lock:
            self.entries.append(entry)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(f"{json.dumps(entry)}\n")


@contextmanager
def journal(path: Path | None, run: Entry) -> Iterator[Journal]:
    """The journal in ``path``, with what an earlier call has left there; None keeps no file.

    Raises:
        MissingData: the file is of another run, or cannot be read.
    """
    if path is None:
        yield Journal([], None)
        return
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{json.dumps(run)}\n")
    first, *entries = _lines(path)
    if first != json.loads(json.dumps(run)):
        raise MissingData(path, f"it is of another run: {first}, not {run}")
    yield Journal(entries, path)


def _lines(path: Path) -> list[Entry]:
    """All whole lines; a last one that was cut is taken off, so that the next is whole again."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    try:
        lines = [dict(json.loads(line)) for line in whole.splitlines()]
    except ValueError as error:
        raise MissingData(path, f"it is no journal: {error}") from error
    if not lines:
        raise MissingData(path, "it is empty: remove it")
    return lines
