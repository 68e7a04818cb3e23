"""What a second replica adds, and what the end of one costs.

Two clouds serve the same callers, who know both addresses and use them in turn, as an edge does.
First the capacity of one and of both, in turn. Then twice the capacity of both. Then edges send
studies while one of the two is stopped (SIGTERM), and while it is killed (SIGKILL): no study may be
late or without an answer for that, and the one that is being stopped must not get new studies.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from edge.escalation.client import open_second_reader
from edge.settings.core import load_settings
from evaluation.load.overload import Plan, capacities, goodput_of, under_load
from evaluation.load.services import Service
from evaluation.load.traffic import noise
from evaluation.run import each
from evaluation.world import Cloud
from protos.deadline import Deadline

RATIO_BAR, GOODPUT_BAR = 1.9, 0.9
"""Required: capacity of both over that of one, and goodput of both at twice their capacity."""

SETTLED_S = 0.1
"""After this time a replica that is being stopped must get no new study."""

BUDGET_S = 5.0
ROIS, SENDERS = 4, 6
ONE, BOTH = "one", "both"

Fault = dict[str, Any]
"""What the end of one replica, by ``fault``, did to the studies that were sent meanwhile."""


def replicas(started: Sequence[Service], plan: Plan) -> dict[str, Any]:
    """Measure one replica and both, and end one; return the figures."""
    clouds = tuple(cloud for one in started for cloud in one.clouds)
    one, both = (
        Service(ONE, clouds[0].address, clouds[:1]),
        Service(BOTH, address_of(clouds), clouds),
    )
    capacity = asyncio.run(capacities([one, both], plan))
    per_s = float(np.median(capacity[BOTH]))
    twice = asyncio.run(under_load([both], replace(plan, loads=(2.0,)), per_s))
    goodput = [goodput_of(run, plan.span_s, per_s) for run in twice]
    turns = [kind for _ in range(plan.rounds) for kind in FAULTS]
    faults = [one_fault(clouds, kind, plan.span_s, per_s / 2) for kind in each(turns, "faults")]
    return {"rounds": plan.rounds, **figures(capacity, goodput, faults)}


def address_of(clouds: Sequence[Cloud]) -> str:
    """Return the address of some replicas, as a setting of the edge has it."""
    return ",".join(one.address for one in clouds)


def one_fault(clouds: Sequence[Cloud], kind: str, seconds: float, rois_per_s: float) -> Fault:
    """Let edges send studies at a rate that one replica carries, and end the first meanwhile.

    Returns:
        How many studies were sent, late, without an answer, or new to the one that had been
        stopped for `SETTLED_S`; and the longest time to an answer.
    """
    victim, stop, address = clouds[0], threading.Event(), address_of(clouds)
    pause_s = SENDERS * ROIS / rois_per_s
    with ThreadPoolExecutor(SENDERS) as pool:
        senders = [pool.submit(send_studies, address, pause_s, stop) for _ in range(SENDERS)]
        time.sleep(seconds / 3)
        new_after = FAULTS[kind](victim)
        time.sleep(seconds / 3)
        victim.start()
        victim.wait()
        time.sleep(seconds / 3)
        stop.set()
        studies = [study for sender in senders for study in sender.result()]
    return {
        "fault": kind,
        "studies": len(studies),
        "unanswered": sum(answered < ROIS for answered, _ in studies),
        "late": sum(took_s > BUDGET_S for _, took_s in studies),
        "new_after": new_after,
        "longest_s": max((took_s for _, took_s in studies), default=0.0),
    }


def send_studies(address: str, pause_s: float, stop: threading.Event) -> list[tuple[int, float]]:
    """Send studies as an edge does until ``stop``; return verdicts and seconds of each."""
    rng, rois, found = np.random.default_rng(), [noise(i) for i in range(ROIS)], []
    with ExitStack() as held:
        second = open_second_reader(load_settings(cloud__address=address), held, time.monotonic)
        while not stop.wait(rng.exponential(pause_s)):
            began_s = time.monotonic()
            answers = second.read_rois(rois, Deadline.after(BUDGET_S), uuid.uuid4().hex)
            found.append((len(answers.verdicts), time.monotonic() - began_s))
    return found


def _stop(victim: Cloud) -> int:
    """Stop it by SIGTERM; return how many studies it got after `SETTLED_S`."""
    began_s, counts = time.monotonic(), list[float]()
    stopping = threading.Thread(target=victim.stop)
    stopping.start()
    while stopping.is_alive():
        with suppress(OSError):  # it has ended
            samples = victim.samples()
            ended = samples.get("overread_cloud_streams_total", 0.0)
            if time.monotonic() - began_s >= SETTLED_S:
                counts.append(ended + samples["overread_cloud_open_streams"])
        time.sleep(0.02)
    stopping.join()
    return int(counts[-1] - counts[0]) if counts else 0


def _kill(victim: Cloud) -> int:
    victim.kill()
    return 0


FAULTS: dict[str, Callable[[Cloud], int]] = {"SIGTERM": _stop, "SIGKILL": _kill}
"""How one replica ends; each returns the studies that it got while it was being stopped."""


def figures(
    capacity: dict[str, list[float]], goodput: Sequence[float], faults: Sequence[Fault]
) -> dict[str, Any]:
    """Return the figures of all rounds."""
    counts = ("studies", "unanswered", "late", "new_after")
    return {
        "capacity_per_s": {name: float(np.median(found)) for name, found in capacity.items()},
        "ratio": float(np.median(np.divide(capacity[BOTH], capacity[ONE]))),
        "ratio_bar": RATIO_BAR,
        "goodput_of_capacity": float(np.median(goodput)),
        "goodput_bar": GOODPUT_BAR,
        "faults": [
            {
                "fault": kind,
                "times": len(those),
                **{name: sum(one[name] for one in those) for name in counts},
                "longest_s": max(one["longest_s"] for one in those),
            }
            for kind in FAULTS
            if (those := [one for one in faults if one["fault"] == kind])
        ],
    }
