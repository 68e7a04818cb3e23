"""Fills the disk under the edge's daemon again and again, and tells what was lost or doubled.

``python -m evaluation.full_disk --at DIR [--json]``, with DIR on a small filesystem of its own,
which is filled to the last byte. One can be had for the time of the command, without rights::

    unshare -rm sh -c 'mount -t tmpfs -o size=240m none /mnt &&
        python -m evaluation.full_disk --at /mnt'

The daemon, its database and its reports are the real ones, and so are the errors that the kernel
and SQLite give. Status 1 if anything is amiss.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from evaluation.demo_processes import log_tail
from evaluation.errors import ServiceFailed
from evaluation.kill_agent import put_study, serve
from evaluation.kill_check import Found, busy, check
from evaluation.progress import each

LARGEST_BYTES = 256 << 20
"""A larger filesystem is not filled: it is not one made for the purpose."""

FULL_S, ROOM_S = (0.05, 0.6), (0.1, 0.5)
PATIENCE_S = 300.0
POLL_S = 0.02

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def fill(ballast: Path) -> None:
    """Writes to ``ballast`` until not one byte more can be written."""
    with ballast.open("ab", buffering=0) as file:
        for block in (1 << 20, 4096, 1):
            try:
                while file.write(b"\0" * block) == block:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def run(root: Path, log: Path, fillings: int, seed: int) -> Found:
    """Fills the filesystem below ``root`` so often while studies arrive; ``log`` lies elsewhere.

    Raises:
        ServiceFailed: the agent died, or did not finish its work when there was room.
    """
    (root / "inbox").mkdir(parents=True)
    log.touch()
    (root / "log").symlink_to(log)
    chance, studies, ballast = Random(seed), dict[str, list[float] | None](), root / "ballast"
    agent: Any = multiprocessing.get_context("spawn").Process(target=serve, args=(root, None, seed))
    agent.start()
    try:
        _await(lambda: (root / "started").exists(), agent, log)
        for _ in each(range(fillings), "fillings"):
            _arrive(root, studies, chance)
            time.sleep(chance.uniform(*ROOM_S))
            fill(ballast)
            time.sleep(chance.uniform(*FULL_S))
            ballast.unlink()
        _await(lambda: not busy(root), agent, log)
    finally:
        ballast.unlink(missing_ok=True)
        agent.terminate()
        agent.join(PATIENCE_S)
    return check(root, studies)


def _arrive(root: Path, studies: dict[str, list[float] | None], chance: Random) -> None:
    name = f"study {len(studies)}"
    scores = sorted((round(chance.uniform(0.02, 0.98), 3) for _ in range(4)), reverse=True)
    studies[name] = scores
    put_study(root / "inbox", name, scores)


def _await(holds: Callable[[], bool], agent: Any, log: Path) -> None:
    """Return when it holds.

    Raises:
        ServiceFailed: the agent has died, or it was in vain.
    """
    until = time.monotonic() + PATIENCE_S
    while not holds():
        if agent.exitcode is not None or time.monotonic() > until:
            raise ServiceFailed(f"the agent (status {agent.exitcode})\n{log_tail(log)}")
        time.sleep(POLL_S)


@app.command()
def full_disk(
    at: Annotated[Path, typer.Option(metavar="DIR", help="On a small filesystem of its own.")],
    fillings: Annotated[int, typer.Option(min=1, help="How often the disk is filled.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of studies, answers and moments.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fills the disk under the daemon and tells what was lost or doubled."""
    if (size := shutil.disk_usage(at).total) > LARGEST_BYTES:
        raise typer.BadParameter(
            f"--at {at}: a filesystem of {size} bytes, {LARGEST_BYTES} may be filled at most"
        )
    with tempfile.TemporaryDirectory() as elsewhere:
        found = run(at / "site", Path(elsewhere) / "log", fillings, seed)
    result = {"fillings": fillings, **asdict(found), "sound": found.sound}
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo("\n".join(f"{key:12} {value}" for key, value in result.items()))
    raise typer.Exit(0 if found.sound else 1)


if __name__ == "__main__":
    app()
