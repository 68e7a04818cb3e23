"""The cloud under load: a section of `docs/budget.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.markdown import commands, number, table

HEADS = ("load", "service", "in time, of capacity", "rejected", "late", "median ms", "p99 ms",
         "work wasted")  # fmt: skip

ASLEEP = (
    "## The same with a reader that sleeps\n\nEdges, service and model share the cores here, and "
    "what the edges take is lost to the service. In this run the reader sleeps {reader} instead "
    "(the first for each batch, the second for each region), so that what the controller does "
    "stands by itself."
)


def section(found: Mapping[str, Any]) -> str:
    """Throughput and goodput of each way to serve; empty where nothing was measured."""
    parts = []
    if (result := found.get("load")) is not None:
        head = "## The cloud under load\n\nPublished for batching: 4.7 times the throughput."
        parts.append(_part(result, head) + commands(found, "load"))
    if (result := found.get("load_asleep")) is not None:
        head = ASLEEP.format(reader=result["reader"].removeprefix("asleep "))
        parts.append(_part(result, head) + commands(found, "load_asleep"))
    return "\n".join(parts)


def _part(result: Mapping[str, Any], head: str) -> str:
    ratio = result["throughput_of_one_at_a_time"]
    told = ", ".join(
        f"{mode} {rate:.1f} ({ratio[mode]:.2f} of one at a time)"
        for mode, rate in result["capacity_per_s"].items()
    )
    rows = [
        [f"{run['load']:g}", run["mode"], f"{run['goodput_of_capacity']:.0%}", run["rejected"],
         run["late"], *(number(run[f"p{q}_ms"], 0) for q in (50, 99)),
         f"{run['wasted_share']:.1%}"]
        for run in result["runs"]
    ]  # fmt: skip
    return (
        f"{head} Regions a second when there is always enough to do: {told}. Poisson arrivals from "
        f"{result['edges']} edges, {result['span_s']:g} s a turn, {result['rounds']} rounds; load "
        f"and goodput are shares of the first service's capacity. {result['cores']} cores of "
        f"{result['cpu']}.\n\n" + table(HEADS, rows)
    )
