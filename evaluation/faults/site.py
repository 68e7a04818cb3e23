"""The site of a fault test: a scanner, an agent that may die, and two archives.

The scanner sends series by C-STORE, and sends again what was not acknowledged. One archive gets the
results by C-STORE, the other by STOW-RS. The state is never cleared.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from random import Random
from typing import Any, Self

import numpy as np
from pydicom import dcmread

from edge.amend.amender import QUIET_S
from edge.dicom_in.identity import Identity
from evaluation.errors import ServiceFailed
from evaluation.faults.agent import Life, serve
from evaluation.faults.fault_points import ACKNOWLEDGED, AT_TARGET, NAMES, Order, Trigger
from evaluation.faults.oracle import Sent, Wrong, busy, check, pending
from evaluation.receiving.archive import Archive
from evaluation.receiving.sender import send
from evaluation.world import free_ports, listens, log_tail
from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume

IMAGES, PIXELS = 6, 48
SPACING_MM = (5.0, 2.0, 2.0)

PATIENCE_S = 900.0
"""Longest wait for an agent."""
MINUTE_S = 0.5
"""For so long an agent waits in place of `QUIET_S`, where it waits for nothing but verdicts."""
MAX_SENDINGS = 200
"""After this number of associations for one series a scanner gives up."""


@dataclass(kw_only=True)
class Study(Sent):
    """A series that was sent, and what happened meanwhile."""

    event: str
    step: str
    when: str
    study_uid: str
    associations: int = 0
    refused: int = 0


class Site:
    """An agent between a scanner and two archives, below ``root``, which must not exist yet.

    ``life`` has settings of `Life` that hold for each agent. With ``away`` the first archive is not
    there yet, with ``jumps`` the wall clock jumps. ``log`` lies on another disk than ``root``.
    """

    def __init__(
        self,
        root: Path,
        seed: int,
        *,
        log: Path | None = None,
        away: bool = False,
        jumps: bool = False,
        **life: Any,
    ) -> None:
        self.root, self.chance = root, Random(seed)
        self._away, self._jumps, self._life = away, jumps, life
        self.studies: list[Study] = []
        self.trigger, self.order = Trigger(), Order()
        self.shared: Any = RawArray("d", [0.0, 0.0, 0.0])
        self.archive, self.web = Archive(), Archive()
        self.archive.on_object = lambda kept: self._kill_if(AT_TARGET, kept)
        # all that agents import is loaded once
        self._context, self._held = multiprocessing.get_context("forkserver"), ExitStack()
        agents = ["__main__", serve.__module__, "edge.dicom_out.objects"]
        self._context.set_forkserver_preload(agents)
        self.agent: Any = None
        (root / "inbox").mkdir(parents=True)
        (root / "sent").mkdir()
        if log is not None:
            log.touch()
            (root / "log").symlink_to(log)

    def __enter__(self) -> Self:
        with ExitStack() as held:
            self._port, self.archive.port = free_ports(2)
            if not self._away:
                held.enter_context(self.archive.by_dicom())
            held.enter_context(self.web.by_web())
            self._held = held.pop_all()
        self._held.callback(self.end)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def start(self) -> None:
        """Start an agent, and wait until it receives."""
        chance = self.chance
        life = Life(
            self.root,
            self._port,
            self.archive.port,
            self.web.url,
            seed=chance.randrange(2**32),
            clock_seed=chance.randrange(2**32) if self._jumps else None,
            **self._life,
        )
        arguments = (life, self.trigger, self.order, self.shared)
        self.agent = self._context.Process(target=serve, args=arguments)
        self.agent.start()
        self.until(lambda: listens(self._port), "start")

    def end(self) -> None:
        """End the agent by SIGTERM."""
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.terminate()
            agent.join(PATIENCE_S)
            agent.kill()

    def restart_after_kill(self) -> None:
        """Start an agent in place of one that was killed."""
        self.agent.join(PATIENCE_S)
        if self.agent.exitcode != -signal.SIGKILL:
            raise self.failed("ended before it was killed")
        self.start()

    def new(
        self, event: str, step: str = "", when: str = "", *, usable: bool = True
    ) -> tuple[Study, list[Path]]:
        """Make the next series; one that is not ``usable`` lacks what makes its values HU."""
        number = len(self.studies)
        hu = np.random.default_rng(number).integers(-1000, 400, (IMAGES, PIXELS, PIXELS))
        volume = Volume(hu.astype(np.int16), Geometry(SPACING_MM))
        header = StudyHeader(patient_id=f"P{number}", study_uid=f"1.2.826.0.1.{number + 1}")
        folder = self.root / "sent" / str(number)
        files = write_series(volume, folder, header=header, seed=number)
        for file in files if not usable else ():
            image = dcmread(file)
            del image.RescaleSlope
            image.save_as(file)
        name = Identity(0, "", "", header.study_uid, "", header.patient_id).folder
        study = Study(
            set(), name, usable, event=event, step=step, when=when, study_uid=header.study_uid
        )
        self.studies.append(study)
        return study, files

    def send(self, study: Study, files: Sequence[Path]) -> list[Path]:
        """Send files over one association; return those without an acknowledgement."""

        def acknowledged(file: Path) -> None:
            tags = dcmread(file, specific_tags=["SOPInstanceUID"])
            study.acknowledged.add(str(tags.SOPInstanceUID))
            self._kill_if(ACKNOWLEDGED, True)

        done = send(("127.0.0.1", self._port), files, acknowledged)
        study.associations += 1
        study.refused += done.refused
        return [file for file in files if file not in done.acknowledged]

    def send_rest(self, study: Study, left: Sequence[Path]) -> None:
        """Send what was not acknowledged, until all of it is."""
        for _ in range(MAX_SENDINGS):
            if not left:
                return
            if left := self.send(study, left):
                time.sleep(0.05)
        what = f"has not taken {len(left)} images within {study.associations} associations"
        raise self.failed(what)

    def rest(self) -> None:
        """Wait until the agent has nothing left to do."""
        self.until(lambda: not busy(self.root), "come to an end")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds."""
        if not self.wait(holds):
            raise self.failed(f"did not {what}")

    def wait(self, holds: Callable[[], bool]) -> bool:
        """Wait until it holds, the agent has died, or `PATIENCE_S`; return whether it holds."""
        until, next_s = time.monotonic() + PATIENCE_S, time.monotonic() + MINUTE_S
        while not (held := holds()) and self.agent.exitcode is None and time.monotonic() < until:
            time.sleep(0.005)
            if time.monotonic() > next_s:  # amendments that wait for more verdicts
                self.shared[0] += QUIET_S if pending(self.root) else 0.0
                next_s += MINUTE_S
        return held or holds()

    def failed(self, what: str) -> ServiceFailed:
        """Return an error with the end of the agent's log."""
        log = log_tail(self.root / "log")
        return ServiceFailed(f"the agent (status {self.agent.exitcode}) {what}\n{log}")

    def wrong(self) -> Wrong:
        """Return what is lost, doubled or left."""
        sent = {study.study_uid: study for study in self.studies}
        kept = {"archive": self.archive.kept, "web": self.web.kept}
        return check(self.root, sent, kept, varied=self._life.get("varied", False))

    def kill_at(self, name: str, after: bool) -> None:
        """Send a series, and kill the agent at this step of it."""
        several = {"instance written", "instance stored in its series", ACKNOWLEDGED}
        skip = self.chance.randrange(IMAGES) if name in several else 0
        skip = self.chance.randrange(3) if name == AT_TARGET else skip
        study, files = self.new("killed", name, "after" if after else "before")
        self.trigger.arm(name, after, skip=skip)
        left = self.send(study, files)
        while left and self.trigger.armed and self.agent.exitcode is None:
            left = self.send(study, left)  # an association broke off by itself
        if not self.wait(lambda: not self.trigger.armed):
            raise self.failed(f"never came to: {study.when} {name}")
        self.restart_after_kill()
        self.send_rest(study, left)
        self.rest()

    def kill_at_random(self, longest_s: float) -> None:
        """Send a series, and kill the agent at a random step of it, or within ``longest_s``."""
        chance = self.chance
        study, files = self.new("killed", usable=chance.random() >= 0.1)
        if chance.random() < 0.5:
            study.step, after = chance.choice(NAMES), chance.random() < 0.5
            study.when = "after" if after else "before"
            self.trigger.arm(study.step, after)
            left = self.send(study, files)
            self.wait(lambda: not self.trigger.armed or not busy(self.root))
        else:
            killing = threading.Timer(chance.uniform(0.0, longest_s), self.agent.kill)
            killing.start()
            left = self.send(study, files)
            killing.join()
        if self.trigger.armed:  # this series does not come to that step
            self.trigger.disarm()
            study.step = study.when = ""
            self.agent.kill()
        self.restart_after_kill()
        self.send_rest(study, left)

    def _kill_if(self, name: str, after: bool) -> None:
        if self.agent is not None and self.trigger.met(name, after):
            self.agent.kill()
