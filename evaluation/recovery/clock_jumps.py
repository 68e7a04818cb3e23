"""``overread-eval clock-jumps``: sets the agent's wall clock at random, and checks all reports.

In a round studies arrive, and an agent works on them and on pending reads. Then it is ended, and
the next one finds its work and another time of day. The clock jumps by an hour up to more than a
year, both ways, at every durable step and at every second reading of it. No read may be lost,
duplicated, or given up too early; status 1 otherwise.

The time of day is replaced in every module of the edge. Monotonic time stays, as it does where an
administrator or a time server sets a clock.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from enum import Enum
from pathlib import Path
from random import Random
from typing import Annotated, Self

import typer

from evaluation.common.cli import Json, each
from evaluation.recovery.agent import RandomCloud, logging_below, work
from evaluation.recovery.check import Found, Site, check, show_and_exit

SHORTEST_S, LONGEST_S = 3600.0, 400 * 24 * 3600.0
"""Of a jump: the longest is longer than pending reads are kept."""

COUNTS = "clock.json"


class WallClock:
    """A time of day that jumps at random when it is read.

    ``jumps`` counts how often it was set, ``looks`` how often it was read.
    """

    def __init__(self, chance: Random, real_s: float) -> None:
        self._chance, self._ahead_s = chance, 0.0
        self._began_s = real_s - time.monotonic()
        self.jumps = self.looks = 0

    def jump(self) -> None:
        """Set the clock before or after the right time."""
        by_s = SHORTEST_S * (LONGEST_S / SHORTEST_S) ** self._chance.random()
        self._ahead_s = self._chance.choice((-1.0, 1.0)) * by_s
        self.jumps += 1

    def now_s(self) -> float:
        """Return the seconds since 1970 by this clock."""
        self.looks += 1
        if self._chance.random() < 0.5:
            self.jump()
        return self._began_s + time.monotonic() + self._ahead_s


def serve(root: Path, seed: int) -> None:
    """Work on the site below ``root`` until SIGTERM, and add the clock's counts to its file."""
    clock = WallClock(Random(seed), time.time())

    def on_step(_step: Enum, _durable: bool) -> None:
        clock.jump()  # before and after every step, even if the clock is not read

    with edge_clock(clock), logging_below(root):
        work(root, RandomCloud(Random(seed)), on_step=on_step)
    before = counts(root)
    now = {"jumps": before["jumps"] + clock.jumps, "looks": before["looks"] + clock.looks}
    (root / COUNTS).write_text(json.dumps(now))


def counts(root: Path) -> dict[str, int]:
    """Return the jumps and looks of all agents that have ended."""
    path = root / COUNTS
    return dict(json.loads(path.read_text())) if path.is_file() else {"jumps": 0, "looks": 0}


@contextmanager
def edge_clock(clock: WallClock) -> Iterator[None]:
    """Replace the time of day in the edge by ``clock`` for the time of the context."""

    class Jumping(datetime):
        """The time of day by that clock."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            """As `datetime.now`."""
            return cls.fromtimestamp(clock.now_s(), tz)

    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "edge"]
    dated = [module for module in modules if getattr(module, "datetime", None) is datetime]
    real = time.time
    for module in dated:
        module.datetime = Jumping  # type: ignore[attr-defined] # each imports it by this name
    time.time = clock.now_s
    try:
        yield
    finally:
        time.time = real
        for module in dated:
            module.datetime = datetime  # type: ignore[attr-defined] # put back, by the same name


def run(root: Path, rounds: int, seed: int) -> Found:
    """Play the rounds on a site below ``root``."""
    site, started = Site(root, chance := Random(seed)), root / "started"
    for left in each(range(rounds - 1, -1, -1), "rounds"):
        for _ in range(2):
            site.arrive(site.some_scores(chance.randrange(1, 6)))
        started.unlink(missing_ok=True)
        with site.working(serve, chance.randrange(2**32)) as agent:
            site.require(started.exists, agent)
            time.sleep(chance.uniform(0.0, 0.4))  # the last agent works until it is idle
            if left == 0:
                site.require(site.is_idle, agent)
    return check(root, site.studies)


def clock_jumps_command(
    rounds: Annotated[int, typer.Option(min=1, help="Agents, one after another.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of studies, answers and jumps.")] = 0,
    as_json: Json = False,
) -> None:
    """Chaos test of the agent with a wall clock that jumps: counts lost and duplicated reports."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "site"
        found = run(root, rounds, seed)
        counted = counts(root)
    show_and_exit({"rounds": rounds, **counted}, found, as_json)
