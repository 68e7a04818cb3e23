"""``overread-eval nothing-lost``: faults at the agent, and whether any image or result is lost.

Without ``--fault`` the agent is killed (SIGKILL) just before and just after each durable step of
`fault_points.STEPS`. With ``--at`` the disk is filled before each step, to the last byte, and with
``--target-away`` the first archive is away for an hour of the agent's clock. A small disk can be
had for the time of the command, without rights::

    unshare -rm sh -c 'mount -t tmpfs -o size=240m none /mnt &&
        overread-eval nothing-lost --at /mnt'

With ``--fault`` the series differ, the cloud answers at random, and the fault comes at random:

- ``kill``: the agent is killed, at a durable step or at any moment, twice before it may finish.
- ``flap``: the link to the cloud is reset, stalls, swallows everything or carries one way only.
- ``disk``: the disk is full for a moment (needs ``--at``).
- ``clock``: the wall clock jumps at every step and at every second reading of it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from evaluation.faults.agent import JUMPS
from evaluation.faults.fault_points import AT_TARGET, NAMES, fill
from evaluation.faults.oracle import Wrong, busy
from evaluation.faults.site import Site
from evaluation.links.proxy import Conditions, State, Trace, proxied
from evaluation.run import Bar, Result, Seed, Table, command, each
from evaluation.sleeping_cloud import program
from evaluation.world import running_cloud

STAND_INS = (
    "Stand-ins: lung box, candidates and cloud. Real: sender, receiver, reader of the series, "
    "database, report, objects, deliveries, audit trail."
)
FULL, AWAY = "disk filled", "archive away for an hour"
AWAY_S, AWAY_STEP_S = 3600.0, 60.0
AWAY_STUDIES = 3
FILL_SHARE = 10
"""Rounds of kills for each round of full disks: all studies of those must fit on the small disk."""

MAX_BYTES = 256 << 20
"""A larger filesystem is refused: it was not made for this test."""

DOWN = (State.RESET, State.STALL, State.HALF_OPEN, State.BLACK_HOLE)
UP_S, DOWN_S = (0.5, 2.0), (0.2, 2.0)
LINK = Conditions(latency_ms=10, jitter_ms=2, up_kbit=20_000, down_kbit=50_000)

Tried = tuple[Site, int]
"""The site after its faults, and how often they came."""


class Fault(StrEnum):
    """What happens at random."""

    KILL = "kill"
    FLAP = "flap"
    DISK = "disk"
    CLOCK = "clock"


def kill(root: Path, times: int, seed: int) -> Tried:
    """Kill the agent ``times`` times; after every second kill, let one agent finish."""
    longest_s = 0.5
    with Site(root, seed, varied=True) as site:
        for number in each(range(times), "kills"):
            # a study that kills the agent three times is quarantined
            site.kill_at_random(longest_s)
            if number % 2 or number + 1 == times:
                began_s = time.monotonic()
                site.rest()
                longest_s = time.monotonic() - began_s
    return site, times


def fill_disk(root: Path, times: int, seed: int) -> Tried:
    """Fill the disk ``times`` times while series come."""
    ballast = root / "ballast"
    with (
        tempfile.TemporaryDirectory() as elsewhere,
        Site(root, seed, log=Path(elsewhere, "log"), varied=True) as site,
    ):
        for _ in each(range(times), "fillings"):
            site.send_rest(*site.new(FULL))
            time.sleep(site.chance.uniform(0.1, 0.5))
            fill(ballast)
            time.sleep(site.chance.uniform(0.05, 0.6))
            ballast.unlink()
        site.rest()
    return site, times


def set_clock(root: Path, times: int, seed: int) -> Tried:
    """Let ``times`` agents work one after another with a clock that jumps."""
    with Site(root, seed, varied=True, jumps=True) as site:
        for number in each(range(times), "agents"):
            if number:
                site.end()
                site.start()  # it finds its work, and another time of day
            for _ in range(2):
                site.send_rest(*site.new("wall clock set"))
            time.sleep(site.chance.uniform(0.0, 0.4))
        site.rest()
    return site, int(site.shared[JUMPS])


def flap(root: Path, times: int, seed: int) -> Tried:
    """Lose the link ``times`` times while series come, no faster than they are read."""
    trace = flapping(times, Random(seed))
    with (
        running_cloud(program(0.0, 0.0)) as cloud,
        proxied(cloud.address, trace, seed=seed) as link,
        Site(root, seed, varied=True, cloud=link.address) as site,
    ):
        link.rewind()
        until_s = time.monotonic() + trace.times_s[-1]
        while time.monotonic() < until_s:
            if sum(1 for _ in (root / "inbox").iterdir()) < 3:
                site.send_rest(*site.new("link lost", usable=site.chance.random() >= 0.05))
            time.sleep(site.chance.uniform(0.1, 0.9))
        site.rest()
    return site, times


def flapping(flaps: int, chance: Random) -> Trace:
    """Return a link that goes down ``flaps`` times, each time in another way, and then stays up."""
    times_s, conditions, now_s = [0.0], [LINK], 0.0
    for number in range(flaps):
        down = replace(LINK, state=DOWN[number % len(DOWN)])
        for span_s, state in ((UP_S, down), (DOWN_S, LINK)):
            now_s += chance.uniform(*span_s)
            times_s.append(now_s)
            conditions.append(state)
    return Trace("flaps", tuple(times_s), tuple(conditions))


AT_RANDOM: Mapping[Fault, tuple[str, int, Callable[[Path, int, int], Tried]]] = {
    Fault.KILL: ("agent killed", 400, kill),
    Fault.FLAP: ("link lost", 50, flap),
    Fault.DISK: (FULL, 50, fill_disk),
    Fault.CLOCK: ("wall clock set", 50, set_clock),
}
"""What each fault is called, how often it comes, and what brings it."""


def at_random(fault: Fault, folder: Path, times: int | None, seed: int) -> dict[str, Any]:
    """Try one fault on a new site in ``folder``; return how often it came, and what is wrong."""
    words, usual, bring = AT_RANDOM[fault]
    site, came = bring(folder / fault.value, times or usual, seed)
    found = {"fault": fault.value, "event": words, "times": came}
    return {**found, "studies": len(site.studies), **site.wrong().as_dict()}


def require_small(at: Path) -> None:
    """Refuse a filesystem that was not made for a test."""
    if (size := shutil.disk_usage(at).total) > MAX_BYTES:
        raise typer.BadParameter(
            f"{at} has a filesystem of {size} bytes, expected at most {MAX_BYTES}"
        )


def fill_at(site: Site, name: str) -> None:
    """Send a series, and fill the disk before this step of it, for a moment."""
    study, files = site.new(FULL, name, "before")
    site.trigger.arm(name, False, fills=True)
    site.send_rest(study, files)
    site.rest()
    if site.trigger.armed:
        raise site.failed(f"never came to: {name}")
    # the last steps need no room any more: the next series does
    site.until(lambda: not site.trigger.fills, "find room on its disk again")


def be_away(site: Site) -> None:
    """Send series while the first archive is away for an hour by the agent's clock."""
    for _ in range(AWAY_STUDIES):
        site.send_rest(*site.new(AWAY))
    waits = ("archive",)
    site.until(lambda: not busy(site.root, waiting=waits), "answer without the archive")

    def delivered() -> bool:
        site.shared[0] += AWAY_STEP_S  # for the pauses between deliveries
        time.sleep(0.02)
        return not busy(site.root)

    for _ in range(round(AWAY_S / AWAY_STEP_S)):
        delivered()
    with site.archive.by_dicom():
        site.until(delivered, "deliver when the archive is back")
        site.end()


def at_steps(
    rounds: int, seed: int, full: Path | None, *, away: bool, steps: Sequence[str] = NAMES
) -> dict[str, Any]:
    """Bring a fault at each of the ``steps``; ``full`` is a small filesystem."""
    sites = list[tuple[Site, Wrong]]()
    points = [(name, after) for name in steps for after in (False, True)]
    inside = [name for name in steps if name != AT_TARGET]
    with tempfile.TemporaryDirectory(prefix="overread-nothing-lost-") as folder:
        with Site(Path(folder) / "killed", seed) as site:
            for name, after in each(points * rounds, "kills"):
                site.kill_at(name, after)
        sites.append((site, site.wrong()))
        if full is not None:
            with Site(full / "site", seed, log=Path(folder) / "log") as site:
                for name in each(inside * max(1, rounds // FILL_SHARE), "full disks"):
                    fill_at(site, name)
            sites.append((site, site.wrong()))
        if away:
            with Site(Path(folder) / "away", seed, away=True) as site:
                be_away(site)
            sites.append((site, site.wrong()))
    return {"stand_ins": STAND_INS, "rounds": rounds, **figures_of(sites)}


def figures_of(sites: Sequence[tuple[Site, Wrong]]) -> dict[str, Any]:
    """Return the figures of sites together: a row for each step, and what is wrong."""
    rows = dict[tuple[str, str, str], dict[str, Any]]()
    studies = [(study, wrong) for site, wrong in sites for study in site.studies]
    for study, wrong in studies:
        where = {"event": study.event, "step": study.step, "when": study.when}
        counts = {"times": 0, "more_associations": 0, "refused": 0, "wrong": 0}
        row = rows.setdefault((study.event, study.step, study.when), {**where, **counts})
        row["times"] += 1
        row["more_associations"] += study.associations - 1
        row["refused"] += study.refused
        row["wrong"] += len(wrong.of(study.study_uid))
    orders = [site.order.counts for site, _ in sites]
    wrongs = [wrong.as_dict() for _, wrong in sites]
    return {
        "kills": sum(study.event == "killed" for study, _ in studies),
        "fillings": sum(study.event == FULL for study, _ in studies),
        "steps": [*rows.values()],
        "studies": len(studies),
        "acknowledged": sum(len(study.acknowledged) for study, _ in studies),
        "order": {key: sum(one[key] for one in orders) for key in orders[0]},
        **{key: sum((one[key] for one in wrongs), type(wrongs[0][key])()) for key in wrongs[0]},
    }


def wrong_of(result: Result) -> list[str]:
    """Return all that is lost, doubled or left, of a fault or of all steps."""
    return [text for key in ("lost", "doubled", "left") for text in result[key]]


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required: nothing wrong."""
    for one in result.get("faults", ()):
        what = f"{one['event']} {one['times']} times: answers lost, doubled or left behind"
        yield Bar(what, len(wrong_of(one)), 0)
    if "steps" in result:
        what = f"killed {result['kills']} times at the durable steps from C-STORE to the archive"
        yield Bar(f"{what}: wrong", len(wrong_of(result)), 0)
        order = result["order"]
        shown = f"{order['wrong']} of {order['checked']}"
        what = "images acknowledged before they are durable"
        yield Bar(what, order["wrong"], 0, shown=shown)


def notes(result: Result) -> Iterator[str]:
    """Yield what is wrong, and how much was checked."""
    for one in (result, *result.get("faults", ())):
        yield from wrong_of(one)[:20] if "lost" in one else ()
    if "steps" in result:
        yield NOTE.format_map(result)


NOTE = (
    "{acknowledged} images of {studies} series were acknowledged; of {order[checked]} checked"
    " acknowledgements {order[repeats]} are of images that were stored before. {amendments}"
    " amendments. The archives have {objects} objects, each counted once by its SOP Instance UID;"
    " {again} came again, with the same bytes. {records} audit records.\n{stand_ins}"
)

FAULTS_TABLE = Table(
    "faults",
    {
        "event": "event",
        "times": "times",
        "studies": "studies",
        "provisional": "provisional",
        "amendments": "amendments",
        "wrong": "wrong",
    },
    lambda result: [{**one, "wrong": len(wrong_of(one))} for one in result.get("faults", ())],
    "Faults at random",
)


@command(FAULTS_TABLE, notes, bars=bars, strict=True)
def nothing_lost(
    fault: Annotated[
        list[Fault] | None,
        typer.Option(help="Fault at random, in place of those at each step; may be repeated."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Kills at each step (20), or times of each --fault."),
    ] = None,
    at: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder on a separate small filesystem, to fill its disk at each step too.",
        ),
    ] = None,
    away: Annotated[
        bool, typer.Option("--target-away", help="Archive that is away for an hour, too.")
    ] = False,
    seed: Seed = 0,
) -> dict[str, Any]:  # fmt: skip
    """Chaos test from C-STORE to the archive: faults of all kinds, counts what is lost."""
    if at is not None:
        require_small(at)
    if not fault:
        return at_steps(rounds or 20, seed, at, away=away)
    if Fault.DISK in fault and at is None:
        raise typer.BadParameter("--fault disk fills a disk: name a small one with --at")
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="overread-nothing-lost-") as folder:
        for one in fault:
            place = at if one is Fault.DISK and at is not None else Path(folder)
            rows.append(at_random(one, place, rounds, seed))
    return {"stand_ins": STAND_INS, "faults": rows}
