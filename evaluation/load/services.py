"""The services under load: one for each mode that is compared, all running at the same time.

Services and load generator are pinned to disjoint CPU cores, so that neither slows the other.
"""

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from cloud.describe import fetch_description
from edge.link.channel import BALANCED
from evaluation.load.traffic import Edges
from evaluation.sleeping_cloud import AWAKE
from evaluation.world import CLOUD, Cloud, running_cloud
from models.runtime import hardware

EDF = "edf"
"""Beside the settings of a cloud: true for earliest deadline first in place of its own order."""


@dataclass(frozen=True)
class Service:
    """One service: the mode in which it runs, its address, and the clouds that are behind it."""

    mode: str
    address: str
    clouds: tuple[Cloud, ...] = ()

    def connect(self, edges: int) -> Edges:
        """Return simulated edges of the service."""
        scheme = "ipv4:" if "," in self.address else ""  # gRPC's own choice among replicas
        return Edges(scheme + self.address, edges, BALANCED)

    def model_time(self) -> tuple[float, float]:
        """Return the seconds of the model so far, and those of them that were wasted."""
        samples = [cloud.samples() for cloud in self.clouds]
        names = ("overread_cloud_compute_seconds_sum", "overread_cloud_wasted_seconds_total")
        compute_s, wasted_s = (sum(one[name] for one in samples) for name in names)
        return compute_s, wasted_s

    def ran_on(self) -> dict[str, str]:
        """Return the engine that the service names, and the devices in that name."""
        engine = fetch_description(self.clouds[0].address).engine
        devices = (one.partition(":")[2] or "cpu" for one in engine.split(" + "))
        return {"device": ", ".join(dict.fromkeys(devices)), "engine": engine}


@contextmanager
def services(
    modes: Mapping[str, Mapping[str, Any]], program: Sequence[str] = CLOUD, **given: object
) -> Iterator[list[Service]]:
    """Run a cloud for each of ``modes``, with its settings and those ``given`` to all."""
    with ExitStack() as stack:
        started = []
        for mode, own in modes.items():
            settings = {"trusted_proxies": ["*"], **given, **own}
            run = [*program]
            if settings.pop(EDF, False):
                run = [*(AWAKE if program == CLOUD else program), "--edf"]
            cloud = stack.enter_context(running_cloud(run, **settings))
            started.append(Service(mode, cloud.address, (cloud,)))
        yield started


def split_cores(*, shared: bool = False) -> tuple[Set[int], Set[int]]:
    """Return the first half of this process's cores for the service, the rest for the generator.

    Both have all where they cannot be chosen, or if there is but one.
    """
    if not hasattr(os, "sched_getaffinity"):
        cores, shared = list(range(os.cpu_count() or 1)), True
    else:
        cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    whole = shared or not middle
    return set(cores if whole else cores[:middle]), set(cores if whole else cores[middle:])


@contextmanager
def pinned(cores: Set[int]) -> Iterator[None]:
    """Pin this thread, and all threads and processes that it starts meanwhile, to ``cores``."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def placed(service: Set[int], generator: Set[int]) -> dict[str, Any]:
    """Return for a result how the cores were shared."""
    return {
        "cores": hardware.cores() if service == generator else len(service | generator),
        "service_cores": len(service),
        "pinned": not service & generator,
    }
