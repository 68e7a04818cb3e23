"""``overread-eval load``: the cloud under load, one scenario at a time.

A scenario names the services that are compared, what is measured, the reader, and how the cores are
shared. A reader that sleeps stands in for a GPU: a batch of eight costs little more than one ROI.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from cloud.settings import CloudSettings
from evaluation.load.overload import SINGLE, Plan, overload
from evaluation.load.replicas import replicas
from evaluation.load.services import EDF, Service, pinned, placed, services, split_cores
from evaluation.load.traffic import Outcomes
from evaluation.run import SHARE, Bar, Result, Table, command, each
from evaluation.sleeping_cloud import program
from evaluation.world import CLOUD

GOODPUT_BAR, WASTED_BAR, BAR_LOAD = 0.95, 0.01, 2.0
REFUSED_BARS, STAT_BARS = {0.5: 0.01}, {2.0: 0.01, 5.0: 0.08}
"""Required by load: the part of all that is refused, and of stat that is not answered."""
DROPPED_BAR, ADMISSION_BAR_MS, REFUSAL_BAR_MS = 0.02, 0.3, 10.0
BATCHES = "batches"
"""The service that all but `SINGLE` are compared with, where gains are measured."""


Gains = Sequence[tuple[float, float, float]]
"""Of one service in each round: ROIs a second at saturation; of a study that is alone, the seconds
of its last answer, and of the mean one."""


def gains(started: Sequence[Service], plan: Plan, rois: int) -> dict[str, Any]:
    """Measure what batches, stages, instances, Ray and early answers gain; return the figures.

    The same studies of ``rois`` ROIs are sent to each service in turn, A B C A B C. An edge that
    merges each answer as it arrives waits for their mean; one that merges when all are there waits
    for the last.
    """
    found = asyncio.run(_compare(started, plan, rois))
    engines = {one.mode: one.ran_on()["engine"] for one in started}
    about = {"rois_a_study": rois, "rounds": plan.rounds, "span_s": plan.span_s}
    return {**about, "services": rows(found, engines)}


async def _compare(started: Sequence[Service], plan: Plan, rois: int) -> Mapping[str, Gains]:
    found = defaultdict[str, list[tuple[float, float, float]]](list)
    for service in each([*started] * plan.rounds, "services"):
        async with service.connect(16) as edges:
            outcomes = await edges.saturate(rois, plan.span_s, budget_s=60.0, at_once=plan.at_once)
            alone = await edges.saturate(rois, plan.span_s / 2, budget_s=60.0, at_once=1)
        per_s = len(outcomes.in_time) / outcomes.span_s
        found[service.mode].append((per_s, *answer_times(alone, rois)))
    return found


def answer_times(outcomes: Outcomes, rois: int) -> tuple[float, float]:
    """Return the medians over studies of the last answer's seconds and of the mean of all.

    The studies came one after another, so each is the next ``rois`` outcomes.
    """
    took_s = np.array([one.took_s for one in outcomes.rois]).reshape(-1, rois)
    return float(np.median(took_s.max(axis=1))), float(np.median(took_s.mean(axis=1)))


def rows(figures: Mapping[str, Gains], engines: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the medians over the rounds; ratios are taken round by round.

    ``added_ms`` is the time of the last answer over that of `BATCHES`.
    """
    rounds = {name: np.array(gains).T for name, gains in figures.items()}
    found = []
    for name, (per_s, last_s, mean_s) in rounds.items():
        base = rounds[SINGLE if name in (SINGLE, BATCHES) else BATCHES]
        medians = {
            "rois_per_s": per_s,
            "throughput_ratio": per_s / base[0],
            "last_ms": 1e3 * last_s,
            "added_ms": 1e3 * (last_s - rounds[BATCHES][1]),
            "mean_ms": 1e3 * mean_s,
            "merging": mean_s / last_s - 1.0,
        }
        taken = {key: float(np.median(values)) for key, values in medians.items()}
        found.append({"name": name, "engine": engines[name], **taken})
    return found


@dataclass(frozen=True)
class Scenario:
    """What is compared, and how.

    Attributes:
        where: for people: how reader and cores are.
        services: settings of each cloud, by its name.
        reader: milliseconds of a reader that sleeps, a batch and an ROI; None: the model.
        shared: whether services and generator run on the same cores.
    """

    measure: Callable[[Sequence[Service], Plan], dict[str, Any]]
    where: str
    services: Mapping[str, Mapping[str, Any]]
    plan: Plan = field(default_factory=Plan)
    reader: tuple[float, float] | None = None
    shared: bool = False


Modes = Mapping[str, Mapping[str, Any]]
ORDERS: Modes = {"deadline": {}, "edf": {EDF: True}, SINGLE: {"max_batch": 1}}
PAIR: Modes = {SINGLE: {"max_batch": 1}, BATCHES: {}}
FAKES = [f"fake:{i}" for i in range(3)]
SHORT = Plan(rounds=3, span_s=4.0)
BATCH = int(CloudSettings.model_fields["max_batch"].default)

SCENARIOS: Mapping[str, Scenario] = {
    "overload": Scenario(overload, "service on its own core", ORDERS, SHORT),
    "overload-shared": Scenario(
        overload, "service on the edges' cores", ORDERS,
        Plan((BAR_LOAD,), rounds=3, span_s=4.0), shared=True,
    ),
    "overload-asleep": Scenario(
        overload, "reader that sleeps", ORDERS, Plan(), (2.0, 14.0)
    ),
    "devices": Scenario(
        partial(gains, rois=3 * BATCH), "asleep, a device each",
        {**PAIR, "3 stages": {"stage_engines": FAKES, "stages": 3},
         "3 instances": {"devices": FAKES}},
        SHORT, (100.0, 5.0),
    ),
    "instances": Scenario(
        partial(gains, rois=BATCH), "the model, on the processor",
        {**PAIR, "2 instances": {"instances": 2}}, SHORT, shared=True,
    ),
    "ray": Scenario(
        partial(gains, rois=BATCH), "asleep, with Ray",
        {**PAIR, "2 instances": {"devices": FAKES[:2]},
         "Ray, 1 worker": {"ray": "local", "instances": 1},
         "Ray, 2 workers": {"ray": "local", "instances": 2}},
        SHORT, (100.0, 5.0), shared=True,
    ),
    "replicas": Scenario(
        replicas, "two clouds", {"first": {"grace_s": 10.0}, "second": {"grace_s": 10.0}},
        Plan(span_s=5.0, at_once=32), (2.0, 14.0), shared=True,
    ),
}  # fmt: skip


def _bars_of_runs(result: Result) -> Iterator[Bar]:
    """Yield what is required of our mode at each load."""
    for run in result.get("runs", ()):
        if run["mode"] != "deadline":
            continue
        load, what = run["load"], f"load {run['load']:g}, {result['where']}"
        if load >= BAR_LOAD:
            goodput = run["goodput_of_capacity"]
            yield Bar(f"{what}: answered in time", goodput, GOODPUT_BAR, "{:.0%} of capacity", True)
            yield Bar(f"{what}: work wasted", run["wasted_share"], WASTED_BAR, SHARE)
        if load in REFUSED_BARS:
            refused = run["rejected"] / max(run["offered"], 1)
            yield Bar(f"{what}: refused", refused, REFUSED_BARS[load], SHARE)
        if load in STAT_BARS:
            yield Bar(f"{what}: stat not answered", run["stat_lost_share"], STAT_BARS[load], SHARE)
        yield Bar(f"{what}: accepted and dropped", run["dropped_share"], DROPPED_BAR, SHARE)
        yield Bar(f"{what}: late", run["late"], 0)
        if (median := run["refusal_p50_ms"]) is not None:
            yield Bar(f"{what}: median time to a refusal", median, REFUSAL_BAR_MS, "{:.1f} ms")


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required of the cloud: goodput, the worst of all loads, or two replicas."""
    facts: dict[tuple[str, float], list[Bar]] = {}
    for bar in _bars_of_runs(result):
        facts.setdefault((bar.what.partition(", ")[2], bar.bar), []).append(bar)
    for (what, _), same in facts.items():
        worst = (min if same[0].least else max)(same, key=lambda bar: bar.value or 0.0)
        several = f"worst of {len(same)} loads, {what}"
        yield replace(worst, what=several if len(same) > 1 else worst.what)
    if "admission_ms" in result:
        cost = result["admission_ms"]
        yield Bar("an ROI is admitted, 400 wait", cost, ADMISSION_BAR_MS, "{:.2f} ms")
    if "ratio" in result:
        what, ratio = "two replicas against one: ROIs a second", result["ratio"]
        yield Bar(what, ratio, result["ratio_bar"], "{:.2f} times", least=True)
        what = "two replicas at twice their capacity: answered in time"
        goodput, bar = result["goodput_of_capacity"], result["goodput_bar"]
        yield Bar(what, goodput, bar, "{:.0%} of capacity", least=True)
    for one in result.get("faults", ()):
        wrong = one["late"] + one["unanswered"] + one["new_after"]
        what = f"one replica ends by {one['fault']}, {one['times']} times: studies late, without"
        shown = f"{wrong} of {one['studies']}"
        yield Bar(f"{what} an answer, or new to it", wrong, 0, shown=shown)


CAPACITY = Table(
    "capacity",
    {"mode": "service", "per_s": ("ROIs a second, saturated", "{:.1f}")},
    lambda result: [
        {"mode": mode, "per_s": rate} for mode, rate in result.get("capacity_per_s", {}).items()
    ],
    "{where}: {reader}; {cpu}, {service_cores} of {cores} cores for the service",
)
RUNS = Table(
    "runs",
    {
        "load": ("load", "{:g}"), "mode": "service",
        "goodput": ("goodput", SHARE), "refused": ("refused", SHARE), "late_share": ("late", SHARE),
        "p50_ms": ("median ms", "{:.0f}"), "stat_p50_ms": ("stat median ms", "{:.0f}"),
        "stat_p95_ms": ("stat p95 ms", "{:.0f}"), "refusal_p50_ms": ("refusal median ms", "{:.0f}"),
        "stat_lost_share": ("stat not answered", SHARE),
        "dropped_share": ("accepted and dropped", SHARE), "fairness": ("Jain", "{:.3f}"),
        "wasted_share": ("work wasted", SHARE),
    },
    lambda result: [
        {
            **run,
            "goodput": {"value": run["goodput_of_capacity"], "low": run["goodput_low"],
                        "high": run["goodput_high"]},
            "refused": run["rejected"] / max(run["offered"], 1),
            "late_share": run["late"] / max(run["offered"], 1),
        }
        for run in result.get("runs", ())
    ],
    "Goodput of the best capacity; - where that many had no answer in time",
)  # fmt: skip
GAINS = Table(
    "services",
    {
        "name": "service", "rois_per_s": ("ROIs a second", "{:.1f}"),
        "throughput_ratio": ("ratio", "{:.2f}"), "last_ms": ("last answer ms", "{:.0f}"),
        "added_ms": ("added ms", "{:+.1f}"), "merging": ("merging", "{:+.0%}"),
    },
    title="{where}: {reader}; {cpu}",
)  # fmt: skip
FAULTS = Table(
    "faults",
    {
        "fault": "one ends by", "times": "times", "studies": "studies",
        "unanswered": "without an answer", "late": "late", "new_after": "new",
        "longest_s": ("longest s", "{:.2f}"),
    },
    title="One of two replicas ends; new are studies that it got 0.1 s after SIGTERM",
)  # fmt: skip


@command(CAPACITY, RUNS, GAINS, FAULTS, bars=bars)
def load(
    scenario: Annotated[
        str, typer.Option(metavar="NAME", help=f"One of {', '.join(SCENARIOS)}.")
    ] = "overload",
) -> dict[str, Any]:
    """The cloud under load: goodput, refusals, batches, instances, replicas."""
    if (chosen := SCENARIOS.get(scenario)) is None:
        raise typer.BadParameter(
            f"no scenario {scenario!r}, expected one of {', '.join(SCENARIOS)}"
        )
    times_ms = chosen.reader
    asleep = times_ms and f"asleep {times_ms[0]:g} ms a batch and {times_ms[1]:g} ms an ROI"
    service, generator = split_cores(shared=chosen.shared)
    about: dict[str, Any] = {
        "scenario": scenario,
        "where": chosen.where,
        "reader": asleep or "the cloud's own",
        **placed(service, generator),
    }
    with ExitStack() as held:
        with Console(stderr=True).status("starting the services"), pinned(service):
            run = program(*times_ms) if times_ms else CLOUD
            started = held.enter_context(services(chosen.services, run))
            about |= started[0].ran_on()
        held.enter_context(pinned(generator))
        return about | chosen.measure(started, chosen.plan)
