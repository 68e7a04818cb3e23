"""An agent under a wall clock that is set by hours and days, forwards and back, while it works.

As in `evaluation.kill_agent` the studies say themselves what the edge sees in them. What every
module of the edge takes for the time of day is replaced; monotonic time is left as it is, as it
is where an administrator or a time server sets a clock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from random import Random
from typing import Self

from edge.daemon.agent import run_agent
from edge.job import Job
from edge.pipeline import Reading, read_and_report
from edge.store.pending import OwedStep
from edge.store.studies import Step
from edge.telemetry import configure_logging
from evaluation.kill_agent import ChanceCloud, line_of, settings_in

HOUR_S = 3600.0
SHORTEST_S, LONGEST_S = HOUR_S, 400 * 24 * HOUR_S
"""Of a jump: the longest is more than what is owed is kept for."""

COUNTS = "clock.json"


class WallClock:
    """The time of day, which is set anew by chance whenever somebody looks.

    ``jumps`` counts how often it was set, ``looks`` how often it was asked for.
    """

    def __init__(self, chance: Random, real_s: float) -> None:
        self._chance, self._ahead_s = chance, 0.0
        self._began_s = real_s - time.monotonic()
        self.jumps = self.looks = 0

    def jump(self) -> None:
        """Sets it forwards or back, from what is right."""
        by_s = SHORTEST_S * (LONGEST_S / SHORTEST_S) ** self._chance.random()
        self._ahead_s = self._chance.choice((-1.0, 1.0)) * by_s
        self.jumps += 1

    def now_s(self) -> float:
        """Seconds since 1970, as far as this clock knows."""
        self.looks += 1
        if self._chance.random() < 0.5:
            self.jump()
        return self._began_s + time.monotonic() + self._ahead_s


def serve(root: Path, seed: int) -> None:
    """Work on the site below ``root`` until SIGTERM; the clock's counts are added to its file."""
    chance = Random(seed)
    cloud, clock = ChanceCloud(chance), WallClock(Random(seed), time.time())

    def read(job: Job) -> Reading:
        return read_and_report(line_of(job.source, cloud), job)

    def on_step(_step: Step | OwedStep, _durable: bool) -> None:
        clock.jump()  # before and after every step, whether or not anybody looks

    with (root / "log").open("a") as log, told_by(clock):
        configure_logging("text", log)
        (root / "started").touch()
        run_agent(settings_in(root), line=read, second=cloud, on_step=on_step)
    before = counts(root)
    now = {"jumps": before["jumps"] + clock.jumps, "looks": before["looks"] + clock.looks}
    (root / COUNTS).write_text(json.dumps(now))


def counts(root: Path) -> dict[str, int]:
    """How often the clock was set, and how often somebody looked, in all lives that have ended."""
    path = root / COUNTS
    return dict(json.loads(path.read_text())) if path.is_file() else {"jumps": 0, "looks": 0}


@contextmanager
def told_by(clock: WallClock) -> Iterator[None]:
    """For the time of the context the edge takes the time of day from ``clock``."""

    class Told(datetime):
        """The time of day by that clock."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            """As `datetime.now`."""
            return cls.fromtimestamp(clock.now_s(), tz)

    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "edge"]
    asking = [module for module in modules if getattr(module, "datetime", None) is datetime]
    real = time.time
    for module in asking:
        module.datetime = Told  # type: ignore[attr-defined] # each imports it by this name
    time.time = clock.now_s
    try:
        yield
    finally:
        time.time = real
        for module in asking:
            module.datetime = datetime  # type: ignore[attr-defined] # put back, by the same name
