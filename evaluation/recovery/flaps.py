"""``overread-eval flaps``: interrupts the link again and again, and checks what is left.

The real daemon reads studies and amends reports while the link to a real service is reset, stalls,
swallows everything or carries one way only. Then the link stays, and the daemon has to come to its
end. Status 1 if anything is amiss.

An agent on a link that comes and goes: the real daemon with the real escalation to a cloud.

As in `evaluation.recovery.agent` the studies say themselves what the edge sees in them; here the cloud
is a service, and what it says of each region is known beforehand (`evaluation.recovery.flapping_cloud`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from edge.budget import Budget
from edge.daemon.agent import run_agent
from edge.escalation.client import Escalator, open_channel, start_health_check
from edge.escalation.rois import EscalationResult, cut_one
from edge.escalation.stream import EscalationSettings
from edge.job import Job
from edge.link.health import HealthMonitor
from edge.link.link import Link
from edge.merge import merge
from edge.pipeline import StudyResult, detect, read_and_report
from edge.store.pending import PersistPending
from edge.telemetry import configure_logging
from evaluation.common.cli import Json, counting
from evaluation.common.processes import cloud_service
from evaluation.links.proxy import proxied
from evaluation.links.trace import Conditions, State, Trace
from evaluation.recovery.agent import SIDE, ChanceCloud, line_of, settings_in, the_box
from evaluation.recovery.check import (
    Found,
    Said,
    Studies,
    arrive,
    busy,
    check,
    require,
    said_of,
    some_scores,
    tell,
    working,
)
from evaluation.recovery.flapping_cloud import DIAMETER_MM, MODEL, probability_of
from protos.deadline import Deadline
from protos.messages import Verdict

DEADLINE_S, RESERVE_S = 1.0, 0.2


WATCH_S = 0.5


def serve(root: Path, address: str) -> None:
    """Work on the site below ``root`` until SIGTERM, with the cloud at ``address``."""
    settings = settings_in(root).model_copy(update={"deadline_s": DEADLINE_S})
    link = Link(failures=3, cool_off_s=1.0)
    asking = EscalationSettings((SIDE,) * 3, RESERVE_S)
    with (
        (root / "log").open("a") as log,
        open_channel(address, settings) as channel,
        HealthMonitor(partial(start_health_check, channel), link, WATCH_S),
    ):
        second = Escalator(channel, link, asking)

        def read(job: Job, persist: PersistPending) -> StudyResult:
            line = replace(
                line_of(job.source, second),
                start_budget=partial(Budget, Deadline.after(DEADLINE_S)),
                persist_pending=persist,
                reserve_s=RESERVE_S,
            )
            return read_and_report(line, job)

        configure_logging("text", log)
        run_agent(settings, read=read, second=second)


def expected(source: Path, study_key: str) -> list[Said]:
    """What is a finding once every uncertain region has its verdict."""
    line, box = line_of(source, ChanceCloud(Random(0))), the_box()
    plan = detect(line, box, Budget(Deadline.after(60.0)), study_key).plan
    verdicts = {}
    for place in plan.uncertain:
        voxels = cut_one(plan, place, box, (SIDE,) * 3).voxels
        probability = probability_of(voxels)
        verdicts[place] = Verdict(place, probability, DIAMETER_MM, MODEL, 0.0, 0.0)
    whole = replace(plan, send=plan.uncertain, sizes=(), later=())
    reader = line.reader
    return said_of(
        merge(whole, EscalationResult(verdicts), reader.thresholds, reader.weights, box.geometry)
    )


CLOUD = ("evaluation.recovery.flapping_cloud",)


DOWN = (State.RESET, State.STALL, State.HALF_OPEN, State.BLACK_HOLE)


UP_S, DOWN_S = (0.5, 2.0), (0.2, 2.0)


LINK = Conditions(latency_ms=10, jitter_ms=2, up_kbit=20_000, down_kbit=50_000)


STUDY_EVERY_S = (0.1, 0.9)


MOST_WAITING = 2
"""Studies come no faster than they are read: they are to be read while the link flaps."""


def flapping(flaps: int, chance: Random) -> Trace:
    """A link that goes so often, each time in another way and for another while, then stays."""
    times_s, conditions, now_s = [0.0], [LINK], 0.0
    for number in range(flaps):
        now_s += chance.uniform(*UP_S)
        down = replace(LINK, state=DOWN[number % len(DOWN)])
        times_s.append(now_s)
        conditions.append(down)
        now_s += chance.uniform(*DOWN_S)
        times_s.append(now_s)
        conditions.append(LINK)
    return Trace("flaps", tuple(times_s), tuple(conditions))


def run(root: Path, trace: Trace, seed: int, step: Callable[[int, int], None]) -> Found:
    """Plays the trace on a site below ``root``; what became of its studies.

    Raises:
        ServiceFailed: the agent died, or did not finish its work.
    """
    (root / "inbox").mkdir(parents=True)
    chance, studies = Random(seed), Studies()
    with (
        cloud_service(program=CLOUD) as cloud,
        proxied(cloud, trace, seed=seed) as link,
        working(serve, root, link.address) as agent,
    ):
        require((root / "state" / "spool.sqlite3").exists, agent, root / "log")
        link.rewind()
        began_s, last_s = time.monotonic(), trace.times_s[-1]
        while (at_s := time.monotonic() - began_s) < last_s:
            step(int(at_s), int(last_s))
            if sum(1 for _ in (root / "inbox").iterdir()) < MOST_WAITING:
                arrive(root, studies, _study(chance))
            time.sleep(chance.uniform(*STUDY_EVERY_S))
        require(lambda: not busy(root), agent, root / "log")
    return check(root, studies, expected)


def _study(chance: Random) -> list[float] | None:
    scores = some_scores(chance, 5)
    return None if chance.random() < 0.05 else scores[: chance.randrange(1, 6)]


def flaps_command(
    count: Annotated[int, typer.Option("--flaps", min=1, help="How often the link goes.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of studies, link and jitter.")] = 0,
    as_json: Json = False,
) -> None:
    """Lets the link flap and tells what was lost or doubled."""
    trace = flapping(count, Random(seed))
    with tempfile.TemporaryDirectory() as folder, counting("seconds of the link") as step:
        found = run(Path(folder) / "site", trace, seed, step)
    tell({"flaps": count, "span_s": trace.times_s[-1]}, found, as_json)
