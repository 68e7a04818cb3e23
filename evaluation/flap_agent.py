"""An agent on a link that comes and goes: the real daemon with the real escalation to a cloud.

As in `evaluation.kill_agent` the studies say themselves what the edge sees in them; here the cloud
is a service, and what it says of each region is known beforehand (`evaluation.flap_cloud`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from edge.assemble import open_channel
from edge.budget import Budget
from edge.daemon.agent import run_agent
from edge.escalation.client import Asking, Escalator, Knock
from edge.escalation.rois import Escalated, cut_one
from edge.job import Job
from edge.link.health import Watch
from edge.link.link import Link
from edge.merge import merge
from edge.pipeline import Reading, judge, read_and_report
from edge.telemetry import configure_logging
from evaluation.flap_cloud import DIAMETER_MM, MODEL, probability_of
from evaluation.kill_agent import SIDE, ChanceCloud, line_of, settings_in, the_box
from evaluation.kill_check import Said, said_of
from protos.deadline import Deadline
from protos.messages import Verdict

DEADLINE_S, RESERVE_S = 1.0, 0.2
WATCH_S = 0.5


def serve(root: Path, address: str) -> None:
    """Work on the site below ``root`` until SIGTERM, with the cloud at ``address``."""
    settings = settings_in(root).model_copy(update={"deadline_s": DEADLINE_S})
    link = Link(failures=3, cool_off_s=1.0)
    asking = Asking((SIDE,) * 3, RESERVE_S)
    with (
        (root / "log").open("a") as log,
        open_channel(address, settings) as channel,
        Watch(partial(Knock, channel), link, WATCH_S),
    ):
        second = Escalator(channel, link, asking)

        def read(job: Job) -> Reading:
            line = line_of(job.source, second)
            ingest = partial(Budget, Deadline.after(DEADLINE_S))
            return read_and_report(replace(line, ingest=ingest, reserve_s=RESERVE_S), job)

        configure_logging("text", log)
        run_agent(settings, line=read, second=second)


def expected(source: Path, study_key: str) -> list[Said]:
    """What is a finding once every uncertain region has its verdict."""
    line, box = line_of(source, ChanceCloud(Random(0))), the_box()
    plan = judge(line, box, Budget(Deadline.after(60.0)), study_key).plan
    verdicts = {}
    for place in plan.uncertain:
        voxels = cut_one(plan, place, box, (SIDE,) * 3).voxels
        probability = probability_of(voxels)
        verdicts[place] = Verdict(place, probability, DIAMETER_MM, MODEL, 0.0, 0.0)
    whole = replace(plan, send=plan.uncertain, sizes=(), later=())
    reader = line.reader
    return said_of(
        merge(whole, Escalated(verdicts), reader.thresholds, reader.weights, box.geometry)
    )
