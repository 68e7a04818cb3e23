"""``overread-eval kills``: kills the edge's agent repeatedly, and checks reports and files.

In a round studies arrive, and the agent is killed (SIGKILL) twice, at a random moment or just
before or after a durable step. Then it works undisturbed until it is idle. The state is never
cleared between rounds. Status 1 if anything is lost or doubled.
"""

import multiprocessing
import signal
import tempfile
import time
from collections import Counter
from enum import Enum
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from edge.store.pending import PendingStep
from edge.store.steps import Step
from evaluation.common.cli import Json, each
from evaluation.errors import ServiceFailed
from evaluation.recovery.agent import Crash, serve
from evaluation.recovery.check import PATIENCE_S, Site, check, show_and_exit, wait


class Killings(Site):
    """A site whose agents are killed: ``at_steps`` counts the kills at durable steps."""

    def __init__(self, root: Path, chance: Random) -> None:
        super().__init__(root, chance)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", "evaluation.recovery.agent"])
        self.kills, self.at_steps = 0, Counter[str]()
        self._life_s = 0.5  # the longest; later the working time of the round before

    def round(self) -> None:
        """Let studies arrive, kill agents, and let one finish."""
        for _ in range(2):  # a study that kills the agent three times is quarantined
            scores = self.some_scores(self.chance.randrange(5))
            self.arrive(None if self.chance.random() < 0.1 else scores)
            self._kill()
        self._finish()

    def _kill(self) -> None:
        """Let an agent live until a random step, or for a random time."""
        chance = self.chance
        kinds: tuple[list[Enum], ...] = (list(Step), list(PendingStep))
        step = (chance.choice(chance.choice(kinds)), chance.random() < 0.5)
        crash = step if chance.random() < 0.5 else None
        process = self._start(crash)
        if crash is None:
            process.join(chance.uniform(0.0, self._life_s))
        else:
            wait(self.is_idle, process)
        if process.exitcode not in (None, -signal.SIGKILL):
            raise ServiceFailed(f"an agent ended with {process.exitcode} before it was killed")
        if crash is not None and process.exitcode is not None:
            self.at_steps[f"{'after' if crash[1] else 'before'} {crash[0].value}"] += 1
        process.kill()
        process.join(PATIENCE_S)
        self.kills += 1

    def _finish(self) -> None:
        """Let an agent work until it is idle, and end it by SIGTERM."""
        process, began_s = self._start(None), time.monotonic()
        done = wait(self.is_idle, process)
        self._life_s = time.monotonic() - began_s
        process.terminate()
        process.join(PATIENCE_S)
        if not done:
            process.kill()
            raise ServiceFailed(f"an agent ended with {process.exitcode} and did not finish")

    def _start(self, crash: Crash) -> BaseProcess:
        """Start an agent as a process, and wait until it works."""
        started = self.root / "started"
        started.unlink(missing_ok=True)
        arguments = (self.root, crash, self.chance.randrange(2**32))
        process = self._context.Process(target=serve, args=arguments)
        process.start()
        wait(started.exists, process)
        return process


def kills_command(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of two kills each.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of studies, answers and times.")] = 0,
    as_json: Json = False,
) -> None:
    """Chaos test of the agent, killed at random: counts lost and duplicated reports."""
    with tempfile.TemporaryDirectory() as folder:
        site = Killings(Path(folder) / "site", Random(seed))
        for _ in each(range(rounds), "rounds"):
            site.round()
        found = check(site.root, site.studies)
    at_steps = dict(sorted(site.at_steps.items()))
    show_and_exit({"rounds": rounds, "kills": site.kills, "at_steps": at_steps}, found, as_json)
