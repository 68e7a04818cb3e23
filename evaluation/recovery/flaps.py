"""``overread-eval flaps``: interrupts the link repeatedly, and checks reports and files.

The real agent reads studies and amends reports while the link to a real service is reset, stalls,
swallows everything or carries one way only. Then the link stays up, and the agent must finish.
Status 1 if anything is lost or doubled. The service is `evaluation.recovery.flapping_cloud`, whose
verdict on each ROI is known beforehand.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from edge.decide import Plan
from edge.escalation.client import Escalator
from edge.escalation.rois import EscalationResult, cut_one
from edge.link.channel import open_channel, start_health_check
from edge.link.health import HealthMonitor
from edge.link.link import Link
from edge.settings.core import load_settings
from evaluation.common.cli import Json, counting
from evaluation.common.processes import cloud_service
from evaluation.links.proxy import proxied
from evaluation.links.trace import Conditions, State, Trace
from evaluation.recovery.agent import SIDE, logging_below, settings_in, work
from evaluation.recovery.check import Found, Site, check, show_and_exit
from evaluation.recovery.flapping_cloud import DIAMETER_MM, MODEL, probability_of
from imaging.preprocess import Preprocessed
from protos.messages import Verdict

DEADLINE_S, RESERVE_S, HEALTH_CHECK_S = 1.0, 0.2, 0.5

DOWN = (State.RESET, State.STALL, State.HALF_OPEN, State.BLACK_HOLE)
UP_S, DOWN_S = (0.5, 2.0), (0.2, 2.0)
LINK = Conditions(latency_ms=10, jitter_ms=2, up_kbit=20_000, down_kbit=50_000)


def serve(root: Path, address: str) -> None:
    """Work on the site below ``root`` until SIGTERM, with the cloud at ``address``."""
    settings = settings_in(root, deadline_s=DEADLINE_S)
    link = Link(failures=3, cool_off_s=1.0)
    with (
        logging_below(root),
        open_channel(address, settings) as channel,
        HealthMonitor(partial(start_health_check, channel), link, HEALTH_CHECK_S),
    ):
        pipeline = load_settings(cloud__roi_side=SIDE, deadline_s=DEADLINE_S, reserve_s=RESERVE_S)
        second = Escalator(channel, link, pipeline)
        work(root, second, settings=settings, pipeline=pipeline)


def answers(plan: Plan, box: Preprocessed, _study_key: str) -> EscalationResult:
    """Return the service's verdicts on all uncertain candidates of a plan."""
    verdicts = {}
    for number in plan.uncertain:
        probability = probability_of(cut_one(plan, number, box, (SIDE,) * 3).voxels)
        verdicts[number] = Verdict(number, probability, DIAMETER_MM, MODEL, 0.0, 0.0)
    return EscalationResult(verdicts)


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


def run(root: Path, trace: Trace, seed: int, step: Callable[[int, int], None]) -> Found:
    """Play the trace on a site below ``root``; ``step`` gets seconds of the link, and all."""
    site = Site(root, chance := Random(seed))
    with (
        cloud_service(program=("evaluation.recovery.flapping_cloud",)) as cloud,
        proxied(cloud, trace, seed=seed) as link,
        site.working(serve, link.address) as agent,
    ):
        site.require((root / "state" / "spool.sqlite3").exists, agent)
        link.rewind()
        began_s, last_s = time.monotonic(), trace.times_s[-1]
        while (at_s := time.monotonic() - began_s) < last_s:
            step(int(at_s), int(last_s))
            # no faster than they are read, so that studies are read while the link flaps
            if sum(1 for _ in (root / "inbox").iterdir()) < 2:
                scores = site.some_scores(5)
                unusable = chance.random() < 0.05
                site.arrive(None if unusable else scores[: chance.randrange(1, 6)])
            time.sleep(chance.uniform(0.1, 0.9))
        site.require(site.is_idle, agent)
    return check(root, site.studies, answers)


def flaps_command(
    count: Annotated[int, typer.Option("--flaps", min=1, help="Interruptions of the link.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of studies, link and jitter.")] = 0,
    as_json: Json = False,
) -> None:
    """Chaos test of the agent on a link that flaps: counts lost and duplicated reports."""
    trace = flapping(count, Random(seed))
    with tempfile.TemporaryDirectory() as folder, counting("seconds of the link") as step:
        found = run(Path(folder) / "site", trace, seed, step)
    show_and_exit({"flaps": count, "span_s": trace.times_s[-1]}, found, as_json)
