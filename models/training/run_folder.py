"""The files of a training run's folder: a log with a line for each round, weights, and results."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from models.runtime.errors import DamagedArtifact, UnfitArtifact
from process.files import named

LOG, CHECKPOINT, WEIGHTS = "log.jsonl", "last.pt", "averaged.pt"

DATA_FILES = (
    "nodules/*.csv", "nodules/train.npz", "nodules/val.npz", "ct/scans.csv", "ct/marks.csv",
    "ct/*/**/*", "lidc/scans.csv", "lidc/marks.csv", "lidc/*/**/*",
)  # fmt: skip
"""What results depend on in a data folder; every scan is taken, whatever its role."""


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


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON of a file, which is made and written first if it is missing."""
    if not path.exists():
        text = json.dumps(make(), indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DamagedArtifact(f"{path}: no JSON ({error}); remove it to have it made") from error
    return found


def check_plan(folder: Path, wanted: Mapping[str, Any], data: Path) -> None:
    """Compare what a folder's results are of with ``wanted``; one without results may be taken.

    A path stands for the content of its file, ``data`` for all files of a data folder.

    Raises:
        UnfitArtifact: the folder has results of something else.
    """
    found = hashlib.sha256()
    for file in sorted({file for pattern in DATA_FILES for file in data.glob(pattern)}):
        if file.is_file():
            found.update(f"{file.relative_to(data)} {digest(file)} ".encode())
    named = json.dumps(
        {**wanted, "data": found.hexdigest()[:12]},
        default=lambda v: digest(v) if isinstance(v, Path) else asdict(v),
    )
    path, stated = folder / "plan.json", json.loads(named)
    if not any(one.is_file() and one != path for one in folder.glob("**/*")):
        path.unlink(missing_ok=True)  # of a comparison that ended before its first result
    elif not path.exists():
        raise UnfitArtifact(f"{folder}: has files and no {path.name}; expected a new folder")
    require_same(path, kept(path, lambda: stated), stated)


def digest(path: Path) -> str:
    """Return twelve hexadecimal digits of the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
