"""The files of a training run's folder: a log with a line for each round, and weights."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from models.runtime.errors import DamagedArtifact, UnfitArtifact
from process.files import named

LOG, CHECKPOINT, WEIGHTS = "log.jsonl", "last.pt", "averaged.pt"


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the lines of the log in a folder; none if it has no log.

    Raises:
        DamagedArtifact: a line is damaged.
    """
    path = run / LOG
    found = list[dict[str, Any]]()
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
        try:
            one = json.loads(line)
            found.append(one | {"steps": int(one["steps"]), "core_hours": float(one["core_hours"])})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedArtifact(f"{path}, line {number}: is no round of a run") from error
    return found


def require_same(path: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare what the work in a file was begun with, and what is asked for.

    Raises:
        UnfitArtifact: they differ.
    """
    if absent := [name for name in wanted if name not in begun]:
        raise UnfitArtifact(f"{path}: of an earlier version, does not state {', '.join(absent)}; "
                            "expected a new folder")  # fmt: skip
    if other := [name for name in wanted if begun[name] != wanted[name]]:
        raise UnfitArtifact(f"{path}: begun with another {', '.join(other)}; expected the same, or "
                            "a new folder")  # fmt: skip


def write_log(run: Path, lines: list[dict[str, Any]]) -> None:
    """Replace the log by these lines."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(run / LOG, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that others see whole; several processes may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with named(path), partial.open("wb") as file:
            write(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
