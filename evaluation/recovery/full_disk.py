"""``overread-eval full-disk``: fills the disk under the agent, and checks reports and files.

The option ``--at`` names a folder on a small filesystem of its own, which is filled to the last
byte. One can be had for the time of the command, without rights::

    unshare -rm sh -c 'mount -t tmpfs -o size=240m none /mnt &&
        overread-eval full-disk --at /mnt'

The agent, its database and its reports are the real ones, and so are the errors that the kernel
and SQLite give. Status 1 if anything is amiss.
"""

import errno
import shutil
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from evaluation.common.cli import Json, each
from evaluation.recovery.agent import serve
from evaluation.recovery.check import Found, Site, check, show_and_exit

LARGEST_BYTES = 256 << 20
"""A larger filesystem is refused: it was not made for this test."""

FULL_S, FREE_S = (0.05, 0.6), (0.1, 0.5)
"""Ranges of the times for which the disk is full, and is not."""


def fill(ballast: Path) -> None:
    """Write to ``ballast`` until the disk is full to the last byte."""
    with ballast.open("ab", buffering=0) as file:
        for block in (1 << 20, 4096, 1):
            try:
                while file.write(b"\0" * block) == block:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def require_small(at: Path) -> None:
    """Refuse a filesystem that was not made for a test.

    Raises:
        typer.BadParameter: it is larger than `LARGEST_BYTES`.
    """
    if (size := shutil.disk_usage(at).total) > LARGEST_BYTES:
        raise typer.BadParameter(
            f"{at} has a filesystem of {size} bytes, expected at most {LARGEST_BYTES}"
        )


def run(root: Path, log: Path, fillings: int, seed: int) -> Found:
    """Fill the filesystem below ``root`` while studies arrive; ``log`` lies on another."""
    site, ballast = Site(root, chance := Random(seed)), root / "ballast"
    log.touch()
    (root / "log").symlink_to(log)
    with site.working(serve, None, seed) as agent:
        try:
            site.require((root / "started").exists, agent)
            for _ in each(range(fillings), "fillings"):
                site.arrive(site.some_scores(4))
                time.sleep(chance.uniform(*FREE_S))
                fill(ballast)
                time.sleep(chance.uniform(*FULL_S))
                ballast.unlink()
            site.require(site.is_idle, agent)
        finally:
            ballast.unlink(missing_ok=True)
    return check(root, site.studies)


def full_disk_command(
    at: Annotated[Path, typer.Option(metavar="DIR", help="Folder on a separate small filesystem.")],
    fillings: Annotated[
        int, typer.Option(min=1, help="Number of times that the disk is filled.")
    ] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of studies, answers and times.")] = 0,
    as_json: Json = False,
) -> None:
    """Chaos test of the agent on a disk that fills up: counts lost and duplicated reports."""
    require_small(at)
    with tempfile.TemporaryDirectory() as elsewhere:
        found = run(at / "site", Path(elsewhere) / "log", fillings, seed)
    show_and_exit({"fillings": fillings}, found, as_json)
