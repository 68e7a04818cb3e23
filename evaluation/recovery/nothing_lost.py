"""``overread-eval nothing-lost``: kills the agent at every durable step, archive to archive.

A scanner sends series by C-STORE, and two archives get the results: one by C-STORE, one by STOW-RS.
The agent is killed (SIGKILL) just before and just after each durable step of `moments.STEPS`. Then
it is started again, and the scanner sends what was not acknowledged. With ``--disk-full`` the disk
is filled before each step, to the last byte, and with ``--target-away`` the first archive is away
for an hour of the agent's clock. The state is never cleared. Status 1 if anything is wrong.
"""

import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from random import Random
from typing import Annotated, Any, Self

import numpy as np
import typer
from pydicom import dcmread

from evaluation.common.cli import Json, each, show
from evaluation.common.processes import free_ports, listens, log_tail
from evaluation.errors import ServiceFailed
from evaluation.receiving.archive import Archive
from evaluation.receiving.sender import send
from evaluation.recovery.check import PATIENCE_S, wait
from evaluation.recovery.full_disk import require_small
from evaluation.recovery.moments import (
    ACKNOWLEDGED,
    AT_TARGET,
    NAMES,
    STAND_INS,
    Order,
    Ports,
    Trigger,
    processes,
    serve,
)
from evaluation.recovery.nothing_lost_check import Wrong, busy, check
from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume
from models.markdown import Rows

IMAGES, SIDE = 6, 48
SPACING_MM = (5.0, 2.0, 2.0)

FULL_S = 0.3
"""For so long the disk stays full."""
AWAY_S, AWAY_STEP_S = 3600.0, 60.0
AWAY_STUDIES = 3
MAX_SENDINGS = 200
"""After this number of associations for one series a scanner gives up."""

KILL, FULL, AWAY = "killed", "disk filled", "archive away for an hour"
FILL_SHARE = 10
"""Rounds of kills for each round of full disks: all studies of those must fit on the small disk."""


@dataclass
class Study:
    """A series that was sent: what happened meanwhile, and its acknowledged images by UID."""

    event: str
    step: str
    when: str
    study_uid: str
    acknowledged: set[str] = field(default_factory=set)
    associations: int = 0
    refused: int = 0


class Site:
    """An agent between a scanner and two archives, below ``root``, which must not exist yet.

    With ``away`` the first archive is not there yet.
    """

    def __init__(
        self, root: Path, seed: int, *, log: Path | None = None, away: bool = False
    ) -> None:
        self.root, self.chance, self._away = root, Random(seed), away
        self.studies: list[Study] = []
        self.trigger, self.order, self._ahead_s = Trigger(), Order(), RawArray("d", [0.0])
        self.archive, self.web = Archive(), Archive()
        self.archive.on_object = lambda kept: self._kill_if(AT_TARGET, kept)
        self._context, self._held = processes(), ExitStack()
        self._agent: Any = None
        (root / "inbox").mkdir(parents=True)
        (root / "sent").mkdir()
        if log is not None:
            log.touch()
            (root / "log").symlink_to(log)

    def __enter__(self) -> Self:
        with ExitStack() as held:
            port, self.archive.port = free_ports(2)
            if not self._away:
                held.enter_context(self.archive.by_dicom())
            held.enter_context(self.web.by_web())
            self._ports = Ports(port, self.archive.port, self.web.url)
            self._held = held.pop_all()
        self._held.callback(self._end)
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def kill_at(self, name: str, after: bool) -> None:
        """Send a series, and kill the agent at this step of it."""
        several = {"instance written", "instance stored in its series", ACKNOWLEDGED}
        skip = self.chance.randrange(IMAGES) if name in several else 0
        skip = self.chance.randrange(3) if name == AT_TARGET else skip
        study, files = self._new(KILL, name, "after" if after else "before")
        self.trigger.arm(name, after, skip=skip)
        left = self._send(study, files)
        if not wait(lambda: not self.trigger.armed, self._agent) and self.trigger.armed:
            raise self._failed(f"never came to: {study.when} {name}")
        self._agent.join(PATIENCE_S)
        if self._agent.exitcode != -signal.SIGKILL:
            raise self._failed("ended before it was killed")
        self._start()
        self._finish(study, left)

    def fill_at(self, name: str) -> None:
        """Send a series, and fill the disk before this step of it."""
        study, files = self._new(FULL, name, "before")
        ballast = self.root / "ballast"
        self.trigger.arm(name, False, fills=True)
        with _freeing(ballast):
            left = self._send(study, files)
            self._finish(study, left)
        if self.trigger.armed:
            raise self._failed(f"never came to: {name}")

    def be_away(self) -> None:
        """Send series while the first archive is away for an hour by the agent's clock."""
        sent = [self._new(AWAY, "", "") for _ in range(AWAY_STUDIES)]
        for study, files in sent:
            self._require_all(study, self._send(study, files))
        self._until(lambda: not busy(self.root, waiting=("archive",)), "answer without the archive")
        for _ in range(round(AWAY_S / AWAY_STEP_S)):
            self._pass_time()
        with self.archive.by_dicom():
            self._until(self._has_delivered, "deliver when the archive is back")
            self._end()

    def _pass_time(self) -> None:
        self._ahead_s[0] += AWAY_STEP_S
        time.sleep(0.02)

    def _has_delivered(self) -> bool:
        """Let time pass, for the pauses of deliveries, and return whether all is delivered."""
        self._pass_time()
        return not busy(self.root)

    def _new(self, event: str, step: str, when: str) -> tuple[Study, list[Path]]:
        number = len(self.studies)
        hu = np.random.default_rng(number).integers(-1000, 400, (IMAGES, SIDE, SIDE))
        volume = Volume(hu.astype(np.int16), Geometry(SPACING_MM))
        header = StudyHeader(patient_id=f"P{number}", study_uid=f"1.2.826.0.1.{number + 1}")
        folder = self.root / "sent" / str(number)
        files = write_series(volume, folder, header=header, seed=number)
        self.studies.append(study := Study(event, step, when, header.study_uid))
        return study, files

    def _send(self, study: Study, files: Sequence[Path]) -> list[Path]:
        """Send files over one association; return those without an acknowledgement."""

        def acknowledged(file: Path) -> None:
            study.acknowledged.add(_uid_of(file))
            self._kill_if(ACKNOWLEDGED, True)

        done = send(("127.0.0.1", self._ports.agent), files, acknowledged)
        study.associations += 1
        study.refused += done.refused
        return [file for file in files if file not in done.acknowledged]

    def _finish(self, study: Study, left: Sequence[Path]) -> None:
        """Send what is left, and wait until the agent has nothing left to do."""
        for _ in range(MAX_SENDINGS):
            if not left:
                break
            left = self._send(study, left)
            if left:
                time.sleep(0.05)
        self._require_all(study, left)
        self._until(lambda: not busy(self.root), "come to an end")

    def _require_all(self, study: Study, left: Sequence[Path]) -> None:
        if left:
            what = f"has not taken {len(left)} images within {study.associations} associations"
            raise self._failed(what)

    def _kill_if(self, name: str, after: bool) -> None:
        """Kill the agent from outside, if this is the moment."""
        if self._agent is not None and self.trigger.met(name, after):
            self._agent.kill()

    def _start(self) -> None:
        started = self.root / "started"
        started.unlink(missing_ok=True)
        arguments = (self.root, self._ports, self.trigger, self.order, self._ahead_s)
        self._agent = self._context.Process(target=serve, args=arguments)
        self._agent.start()
        port = self._ports.agent
        if not wait(lambda: listens(port), self._agent):
            raise self._failed("did not start")

    def _end(self) -> None:
        """End the agent by SIGTERM."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.terminate()
            agent.join(PATIENCE_S)
            agent.kill()

    def _until(self, holds: Any, what: str) -> None:
        if not wait(holds, self._agent):
            raise self._failed(f"did not {what}")

    def _failed(self, what: str) -> ServiceFailed:
        return ServiceFailed(
            f"the agent (status {self._agent.exitcode}) {what}\n{log_tail(self.root / 'log')}"
        )

    def wrong(self) -> Wrong:
        """Return what is lost, doubled or left, by step."""
        sent = {study.study_uid: study.acknowledged for study in self.studies}
        return check(self.root, sent, {"archive": self.archive.kept, "web": self.web.kept})


@contextmanager
def _freeing(ballast: Path) -> Iterator[None]:
    """Remove the ballast some time after it has appeared."""
    stop = threading.Event()

    def free() -> None:
        while not stop.wait(0.01):
            if ballast.exists():
                time.sleep(FULL_S)
                ballast.unlink()

    thread = threading.Thread(target=free)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        ballast.unlink(missing_ok=True)


def _uid_of(file: Path) -> str:
    return str(dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def measure(
    rounds: int, seed: int, full: Path | None, *, away: bool, steps: Sequence[str] = NAMES
) -> dict[str, Any]:
    """Run all parts, and return what is wrong by step; ``full`` is a small filesystem.

    Raises:
        ServiceFailed: an agent did not start, was not killed, or did not come to an end.
    """
    parts = list[tuple[Site, Wrong]]()
    moments = [(name, after) for name in steps for after in (False, True)]
    inside = [name for name in steps if name != AT_TARGET]
    with tempfile.TemporaryDirectory(prefix="overread-nothing-lost-") as folder:
        with Site(Path(folder) / "killed", seed) as site:
            for name, after in each(moments * rounds, "kills"):
                site.kill_at(name, after)
        parts.append((site, site.wrong()))
        if full is not None:
            with Site(full / "site", seed, log=Path(folder) / "log") as site:
                for name in each(inside * max(1, rounds // FILL_SHARE), "full disks"):
                    site.fill_at(name)
            parts.append((site, site.wrong()))
        if away:
            with Site(Path(folder) / "away", seed, away=True) as site:
                site.be_away()
            parts.append((site, site.wrong()))
    return _result(rounds, parts)


def _result(rounds: int, parts: Sequence[tuple[Site, Wrong]]) -> dict[str, Any]:
    studies = [(study, wrong) for site, wrong in parts for study in site.studies]
    rows = dict[tuple[str, str, str], dict[str, Any]]()
    for study, wrong in studies:
        row = rows.setdefault(
            (study.event, study.step, study.when),
            {"event": study.event, "step": study.step, "when": study.when, "times": 0,
             "more_associations": 0, "refused": 0, "wrong": []},
        )  # fmt: skip
        row["times"] += 1
        row["more_associations"] += study.associations - 1
        row["refused"] += study.refused
        row["wrong"] += wrong.of(study.study_uid)
    orders = [site.order.counts for site, _ in parts]
    order = {key: sum(one[key] for one in orders) for key in orders[0]}
    found = {
        key: [
            text for _, wrong in parts for texts in getattr(wrong, key).values() for text in texts
        ]
        for key in ("lost", "doubled")
    }
    left = [text for _, wrong in parts for text in wrong.left]
    return {
        "stand_ins": STAND_INS,
        "rounds": rounds,
        "kills": sum(study.event == KILL for study, _ in studies),
        "fillings": sum(study.event == FULL for study, _ in studies),
        "steps": [*rows.values()],
        "studies": len(studies),
        "acknowledged": sum(len(study.acknowledged) for study, _ in studies),
        "order": order,
        **{key: sum(getattr(wrong, key) for _, wrong in parts)
           for key in ("provisional", "amendments", "objects", "again", "records")},
        **found,
        "left": left,
        "sound": not (found["lost"] or found["doubled"] or left or order["wrong"]),
    }  # fmt: skip


def table(result: dict[str, Any]) -> Rows:
    """Return a row for each step and moment."""
    cells = [
        [one["step"] or "-", f"{one['event']} {one['when']}".strip(), str(one["times"]),
         str(one["more_associations"]), str(one["refused"]), str(len(one["wrong"])),
         "no" if one["wrong"] else "yes"]
        for one in result["steps"]
    ]  # fmt: skip
    heads = ["durable step", "event", "times", "again", "refused", "wrong", "met"]
    return Rows(heads, cells, "From association to archive: required 0 wrong")


NOTE = (
    "{acknowledged} images of {studies} series were acknowledged, {order[checked]} acknowledgements"
    " were checked for the order of synchronisation ({order[wrong]} wrong; {order[repeats]} of"
    " images that were stored before). {amendments} amendments. The archives have {objects}"
    " objects, each counted once by its SOP Instance UID; {again} came again, with the same bytes."
    " {records} audit records.\n{stand_ins}\nLost {lost}, doubled {doubled}, left {left}:"
    " {verdict}."
)


def nothing_lost_command(
    rounds: Annotated[int, typer.Option(min=1, help="Kills before and after each step.")] = 20,
    at: Annotated[
        Path | None,
        typer.Option(
            "--disk-full",
            "--at",
            metavar="DIR",
            help="Folder on a separate small filesystem, to fill its disk at each step too.",
        ),
    ] = None,
    away: Annotated[
        bool, typer.Option("--target-away", help="Archive that is away for an hour, too.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images that are met.")] = 0,
    as_json: Json = False,
) -> None:
    """Chaos test from C-STORE to the archive: kills at each durable step, counts what is lost."""
    if at is not None:
        require_small(at)
    result = measure(rounds, seed, at, away=away)
    counts = {key: len(result[key]) for key in ("lost", "doubled", "left")}
    verdict = "met" if result["sound"] else "not met"
    note = NOTE.format(**(result | counts), verdict=verdict)
    wrong = [text for key in counts for text in result[key]][:20]
    show(result, as_json, table(result), "\n".join([note, *wrong]))
    raise typer.Exit(0 if result["sound"] else 1)
