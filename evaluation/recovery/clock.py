"""``overread-eval clock-jumps``: sets the daemon's wall clock at random, and checks what is left.

In a round studies arrive and an agent works on them and on what earlier reports owe; then it is
ended, and the next one finds its work and a clock that says something else. The clock jumps by an
hour up to more than a year, both ways, at every durable step of studies and debts and at every
second look. Nothing may be lost, doubled, or given up before its time. Status 1 if anything is
amiss.

An agent under a wall clock that is set by hours and days, forwards and back, while it works.

As in `evaluation.recovery.agent` the studies say themselves what the edge sees in them. What every
module of the edge takes for the time of day is replaced; monotonic time is left as it is, as it
is where an administrator or a time server sets a clock.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from random import Random
from typing import Annotated, Self

import typer

from edge.daemon.agent import run_agent
from edge.job import Job
from edge.pipeline import StudyResult, read_and_report
from edge.store.pending import OwedStep, PersistPending
from edge.store.studies import Step
from edge.telemetry import configure_logging
from evaluation.common.cli import Json, each
from evaluation.recovery.agent import ChanceCloud, line_of, settings_in
from evaluation.recovery.check import (
    Found,
    Studies,
    arrive,
    busy,
    check,
    require,
    some_scores,
    tell,
    working,
)

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

    def read(job: Job, persist: PersistPending) -> StudyResult:
        line = replace(line_of(job.source, cloud), persist_pending=persist)
        return read_and_report(line, job)

    def on_step(_step: Step | OwedStep, _durable: bool) -> None:
        clock.jump()  # before and after every step, whether or not anybody looks

    with (root / "log").open("a") as log, told_by(clock):
        configure_logging("text", log)
        (root / "started").touch()
        run_agent(settings_in(root), read=read, second=cloud, on_step=on_step)
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


STUDIES_A_ROUND = 2


LIFE_S = (0.0, 0.4)
"""An agent works for so long after it has begun; the last one until there is nothing to do."""


def run(root: Path, rounds: int, seed: int) -> Found:
    """Plays the rounds on a site below ``root``; what became of its studies.

    Raises:
        ServiceFailed: an agent died, or did not finish its work.
    """
    (root / "inbox").mkdir(parents=True)
    chance, studies = Random(seed), Studies()
    for left in each(range(rounds - 1, -1, -1), "rounds"):
        for _ in range(STUDIES_A_ROUND):
            arrive(root, studies, some_scores(chance, chance.randrange(1, 6)))
        _live(root, chance, to_the_end=left == 0)
    return check(root, studies)


def _live(root: Path, chance: Random, *, to_the_end: bool) -> None:
    started, log = root / "started", root / "log"
    started.unlink(missing_ok=True)
    with working(serve, root, chance.randrange(2**32)) as agent:
        require(started.exists, agent, log)
        time.sleep(chance.uniform(*LIFE_S))
        if to_the_end:
            require(lambda: not busy(root), agent, log)


def clock_jumps_command(
    rounds: Annotated[int, typer.Option(min=1, help="Agents, one after the other.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of studies, answers and jumps.")] = 0,
    as_json: Json = False,
) -> None:
    """Sets the wall clock under the daemon and tells what was lost or doubled."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "site"
        found = run(root, rounds, seed)
        counted = counts(root)
    tell({"rounds": rounds, **counted}, found, as_json)
