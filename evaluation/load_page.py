"""The cloud under load: a section of `docs/budget.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.markdown import commands, number, table


def section(found: Mapping[str, Any]) -> str:
    """Throughput and goodput of each way to serve; empty where `load` was not measured."""
    result = found.get("load")
    if result is None:
        return ""
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
    heads = ["load", "service", "in time, of capacity", "rejected", "late", "median ms", "p99 ms",
             "work wasted"]  # fmt: skip
    return (
        f"## The cloud under load\n\nRegions a second when there is always enough to do: {told}. "
        f"Published for batching: 4.7 times the throughput. Poisson arrivals from "
        f"{result['edges']} edges, {result['span_s']:g} s a turn, {result['rounds']} rounds; load "
        "and goodput are shares of the first service's capacity.\n\n"
        + table(heads, rows)
        + commands(found, "load")
    )
