"""The cloud under load: a section of `docs/budget.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.markdown import commands, number, table

HEADS = ("load", "service", "in time, of capacity", "rounds", "rejected", "late", "median ms",
         "p99 ms", "work wasted")  # fmt: skip

BAR_LOAD, BAR_GOODPUT, BAR_WASTED = 2.0, 0.9, 0.01
"""At so much load at least so much of the capacity in time, and at most so much work wasted."""

ASLEEP = (
    "## The same with a reader that sleeps\n\nIn this run the reader sleeps {reader} instead (the "
    "first for each batch, the second for each region), so that what the controller does stands by "
    "itself."
)
SHARED = (
    "## The same with edges, service and model on the same cores\n\nWhat making and sending the "
    "regions takes is lost to the service here."
)


def section(found: Mapping[str, Any]) -> str:
    """Throughput and goodput of each way to serve; empty where nothing was measured."""
    parts = []
    if (result := found.get("load")) is not None:
        parts.append(_part(result, "## The cloud under load\n\n" + _batching(result)))
        parts[-1] += commands(found, "load")
    if (result := found.get("load_shared")) is not None:
        parts.append(_part(result, SHARED) + commands(found, "load_shared"))
    if (result := found.get("load_asleep")) is not None:
        head = ASLEEP.format(reader=result["reader"].removeprefix("asleep "))
        parts.append(_part(result, head) + commands(found, "load_asleep"))
    return "\n".join(parts)


def _batching(result: Mapping[str, Any]) -> str:
    """What batches gain over one at a time, beside what was published."""
    gained = next(iter(result["throughput_of_one_at_a_time"].values()))
    rows = [["throughput", "4.7 times", f"{gained:.2f} times"]]
    for one in result["latency_of_one_at_a_time"]:
        told = ", ".join(
            f"{name} {100 * (one[key] - 1):+.0f} %"
            for name, key in (("median", "p50"), ("p95", "p95"))
            if one[key] is not None
        )
        rows.append([f"latency at a load of {one['load']:g}", "-41 %", told or "-"])
    words = (
        "Batches beside one region at a time, in one run (medians of the rounds' ratios). A region "
        "is four views, a batch by itself, and a CPU gains little by more; no GPU was at hand."
    )
    return words + "\n\n" + table(("batching", "published", "here"), rows) + "\n"


def _part(result: Mapping[str, Any], head: str) -> str:
    ratio = result["throughput_of_one_at_a_time"]
    told = ", ".join(
        f"{mode} {rate:.1f} ({ratio[mode]:.2f} of one at a time)"
        for mode, rate in result["capacity_per_s"].items()
    )
    rows = [
        [f"{run['load']:g}", run["mode"], f"{run['goodput_of_capacity']:.0%}",
         ", ".join(f"{one:.0%}" for one in run["goodput_of_capacity_by_round"]), run["rejected"],
         run["late"], *(number(run[f"p{q}_ms"], 0) for q in (50, 99)),
         f"{run['wasted_share']:.1%}"]
        for run in result["runs"]
    ]  # fmt: skip
    return (
        f"{head}\nRegions a second when there is always enough to do: {told}. Poisson arrivals of "
        f"{result['edges']} edges, {result['span_s']:g} s a turn, {result['rounds']} rounds; load "
        f"and goodput are shares of the first service's capacity. {_where(result)} "
        f"{_verdict(result)}\n\n" + table(HEADS, rows)
    )


def _where(result: Mapping[str, Any]) -> str:
    cores, cpu = result["cores"], result["cpu"]
    if not result["apart"]:
        return f"All of it on {cores} cores of {cpu}."
    mine = result["service_cores"]
    return f"The service on {mine} of {cores} cores of {cpu}, the edges on the others."


def _verdict(result: Mapping[str, Any]) -> str:
    """Whether the bars are reached."""
    first = next(iter(result["capacity_per_s"]))
    at = [r for r in result["runs"] if (r["load"], r["mode"]) == (BAR_LOAD, first)]
    if not at:
        return ""
    goodput, wasted = at[0]["goodput_of_capacity"], at[0]["wasted_share"]
    met = goodput >= BAR_GOODPUT and wasted <= BAR_WASTED
    return (
        f"At a load of {BAR_LOAD:g} {goodput:.0%} of the capacity is answered in time and "
        f"{wasted:.1%} of the work wasted; the bars of {BAR_GOODPUT:.0%} and {BAR_WASTED:.0%} are "
        f"{'reached' if met else 'not both reached'}."
    )
