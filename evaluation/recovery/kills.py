"""``overread-eval kills``: kills the edge's daemon again and again, and checks what is left.

In a round some studies arrive, the agent is killed (SIGKILL) twice, at a moment of chance or just
before or after a durable step, and then works in peace until it has nothing left to do. The state
is never cleared between the rounds. Status 1 if anything is amiss.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from edge.store.pending import OwedStep
from edge.store.studies import Step
from evaluation.common.cli import Json, each
from evaluation.errors import ServiceFailed
from evaluation.recovery.agent import Crash, serve
from evaluation.recovery.check import (
    PATIENCE_S,
    Found,
    Studies,
    arrive,
    busy,
    check,
    some_scores,
    tell,
    wait,
)

KILLS_A_ROUND = 2
"""A study whose reading has died three times is blamed, as it should be: so never more than two."""
FIRST_LIFE_S = 0.5
"""An agent lives at most as long as one took to do all there was, in the round before."""


@dataclass(frozen=True)
class Kills:
    """How often the agent was killed: ``at_steps`` by durable step, the rest at random."""

    rounds: int
    kills: int
    at_steps: dict[str, int]


class Site:
    """One inbox, outbox and state folder, and the agents that live and die on it."""

    def __init__(self, root: Path, chance: Random) -> None:
        self.root, self._chance = root, chance
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", "evaluation.recovery.agent"])
        self.studies: Studies = {}
        self.kills = 0
        self.at_steps: dict[str, int] = {}
        self._life_s = FIRST_LIFE_S
        (root / "inbox").mkdir(parents=True)

    def round(self) -> None:
        """Studies arrive, agents are killed, and one works in peace."""
        for _ in range(KILLS_A_ROUND):
            self._arrive()
            self._kill()
        self._work_off()

    def check(self) -> Found:
        """What became of all studies."""
        return check(self.root, self.studies)

    def _arrive(self) -> None:
        scores = some_scores(self._chance, self._chance.randrange(5))
        arrive(self.root, self.studies, None if self._chance.random() < 0.1 else scores)

    def _kill(self) -> None:
        """Let an agent live until the chosen step, or for a time of chance.

        Raises:
            ServiceFailed: it died of something else.
        """
        chance = self._chance
        kinds: tuple[list[Step | OwedStep], ...] = (list(Step), list(OwedStep))
        step = (chance.choice(chance.choice(kinds)), chance.random() < 0.5)
        crash = step if chance.random() < 0.5 else None
        process = self._start(crash)
        if crash is None:
            process.join(chance.uniform(0.0, self._life_s))
        else:
            wait(self._idle, process)
        if process.exitcode not in (None, -signal.SIGKILL):
            raise ServiceFailed(f"an agent ended with {process.exitcode} before it was killed")
        if crash is not None and process.exitcode is not None:
            name = f"{'after' if crash[1] else 'before'} {crash[0].value}"
            self.at_steps[name] = self.at_steps.get(name, 0) + 1
        process.kill()
        process.join(PATIENCE_S)
        self.kills += 1

    def _work_off(self) -> None:
        """Let an agent do all there is, and end it by SIGTERM.

        Raises:
            ServiceFailed: it died, or did not come to an end.
        """
        process, began_s = self._start(None), time.monotonic()
        done = wait(self._idle, process)
        self._life_s = time.monotonic() - began_s
        process.terminate()
        process.join(PATIENCE_S)
        if not done:
            process.kill()
            raise ServiceFailed(f"an agent ended with {process.exitcode}, its work undone")

    def _idle(self) -> bool:
        return not busy(self.root)

    def _start(self, crash: Crash) -> BaseProcess:
        """An agent that has begun, as a process."""
        started = self.root / "started"
        started.unlink(missing_ok=True)
        arguments = (self.root, crash, self._chance.randrange(2**32))
        process = self._context.Process(target=serve, args=arguments)
        process.start()
        wait(started.exists, process)
        return process


def run(root: Path, rounds: int, seed: int) -> tuple[Kills, Found]:
    """Play the rounds on a site below ``root``.

    Raises:
        ServiceFailed: an agent died by itself, or did not finish its work.
    """
    site = Site(root, Random(seed))
    for _ in each(range(rounds), "rounds"):
        site.round()
    return Kills(rounds, site.kills, dict(sorted(site.at_steps.items()))), site.check()


def kills_command(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of two kills each.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of studies, answers and moments.")] = 0,
    as_json: Json = False,
) -> None:
    """Kills the daemon and tells what was lost or doubled."""
    with tempfile.TemporaryDirectory() as folder:
        killed, found = run(Path(folder) / "site", rounds, seed)
    tell(asdict(killed), found, as_json)
