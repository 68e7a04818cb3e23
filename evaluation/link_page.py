"""The part of the documents on deadlines, links, recovery and stages, from what was measured.

It adds no number of its own. ``python -m evaluation.link_page docs/results`` prints it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation import stages_page
from evaluation.link import OFF
from models.markdown import commands, number, percent, table

NAMES = (
    "link", "dead_cloud", "detection", "sizes", "kills", "flaps", "full_disk", "clock_jumps",
    "stages",
)  # fmt: skip
"""The files, each ``NAME.json`` with the ``command`` that made it."""


RECOVERY = {
    "kills": ("the agent killed", "kills"),
    "flaps": ("the link lost", "flaps"),
    "full_disk": ("the disk filled", "fillings"),
    "clock_jumps": ("the wall clock set", "jumps"),
}
"""What happened to an agent that owes answers, by result, and which figure says how often."""


def render(results: Path) -> str:
    """The sections for which there is a file in ``results``, in Markdown."""
    found = {
        name: json.loads(path.read_text())
        for name in NAMES
        if (path := results / f"{name}.json").is_file()
    }
    sections: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("link", _link),
        ("dead_cloud", _dead_cloud),
        ("detection", _detection),
        ("sizes", _sizes),
    ]
    parts = [
        section(found[name]) + commands(found, name) for name, section in sections if name in found
    ]
    return "\n".join([*parts, _recovery(found), stages_page.section(found)])


def _link(result: dict[str, Any]) -> str:
    rows = [
        [
            one["trace"], one["studies"], one["late"],
            *(f"{one[f'p{q}_ms']:.0f}" for q in (50, 95, 99)), f"{one['longest_ms']:.0f}",
            percent(one["sensitivity"]), one["escalated"], one["answered"],
            one.get("broken_off", "-"), f"{one['bytes'] / 1e6:.1f}", one["deaths"],
        ]
        for one in result["traces"]
    ]  # fmt: skip
    heads = ["link", "studies", "late", "p50 ms", "p95 ms", "p99 ms", "longest ms", "found",
             "sent", "read again", "broken off", "MB", "deaths"]  # fmt: skip
    head = (
        f"## Deadlines over bad links\n\n{result['late']} of {result['studies']} answers came more "
        f"than {1000 * result['tolerance_s']:.0f} ms after their deadline of "
        f"{result['deadline_s']:g} s ({result['late_unstalled']} without the time in which the "
        f"machine did not let the edge run); the cloud was killed {result['deaths']} times. "
        f"{_waits(result)}{_machine(result)} {result['caveat']}"
    )
    return f"{head}\n\n{table(heads, rows)}"


def _waits(result: dict[str, Any]) -> str:
    """When the wait ends, and over which links there was none."""
    counts = f"{result['from_files']} studies started from files, {result['from_memory']} not. "
    if "reserve_s" not in result:
        return counts
    unsent = [f"`{one['trace']}`" for one in result["traces"] if not one["escalated"]]
    told = (
        f"The wait for the cloud ends {result['reserve_s']:g} s before the deadline (`reserve_s`), "
        f"{result['deadline_s'] - result['reserve_s']:g} s after the study was taken up. {counts}"
    )
    if unsent:
        told += (
            f"Over {', '.join(unsent)} the watch had found no cloud before a study would have sent "
            "anything, so none waited for an answer there. "
        )
    return told + "*Broken off* are studies of which regions were sent and not all answered. "


def _dead_cloud(result: dict[str, Any]) -> str:
    keys = ("median_ms", "p95_ms", "more_median_ms", "more_p95_ms", "more_most_ms",
            "escalate_p95_ms", "first_more_median_ms", "first_more_most_ms",
            "first_escalate_most_ms")  # fmt: skip
    rows = [
        [one["way"], one["studies"], *(number(one.get(key), 1) for key in keys)]
        for one in result["ways"]
    ]
    heads = ["cloud", "studies", "median ms", "p95 ms", "more than off: median", "p95", "most",
             "escalation p95", "first study, more: median", "most",
             "its escalation, most"]  # fmt: skip
    head = (
        f"## What a dead cloud costs\n\nThe same studies, in {result['rounds']} rounds in turn; "
        f"the bar is {result['bar_ms']:.0f} ms more than without a cloud, of the median and of the "
        f"p95. {_kept(result)}The first after a start "
        "knows nothing of the cloud: one that refuses is found out at once, one that has not "
        "answered half a second after the start (`connect_s`) is not waited for. After that the "
        f"edge knows, and no study waits. {_machine(result)}"
    )
    return f"{head}\n\n{table(heads, rows)}"


def _kept(result: dict[str, Any]) -> str:
    """Whether the bar is kept by each way that has a cloud."""
    ways = [one for one in result["ways"] if one["way"] != OFF]
    broken = [one["way"] for one in ways if not one["kept"]]
    return f"Not kept: {', '.join(broken)}. " if broken else "It is kept. "


def _detection(result: dict[str, Any]) -> str:
    links = result["links"]
    keys = ("candidates", "p50_ms", "p95_ms", "p99_ms", "longest_ms")
    rows = [[key, *(f"{one[key]:.1f}" for one in links)] for key in keys]
    rows += [[part, *(_middle(one["parts"][part]) for one in links)] for part in links[0]["parts"]]
    head = (
        f"## One candidate, from its place to its final verdict\n\nThe bar is a p95 of "
        f"{result['bar_ms']:.0f} ms. Parts: median (p95), ms. {_machine(result)} "
        f"Second reader through {result['engine']}."
    )
    return f"{head}\n\n{table(['', *(one['link'] for one in links)], rows)}"


def _sizes(result: dict[str, Any]) -> str:
    keys = ("agreement", "sensitivity", "sensitivity_full", "false_share", "false_share_full")
    rows = [
        [one["size"], one["candidates"], one["nodules"], *(percent(one[key]) for key in keys),
         f"{one['auc']:.3f}", f"{one['auc_full']:.3f}", f"{one['share']:.2f}"]
        for one in result["sizes"]
    ]  # fmt: skip
    heads = ["size", "candidates", "nodules", "same verdict", "found", "found, full",
             "others taken", "others taken, full", "AUC", "AUC, full", "share"]  # fmt: skip
    head = (
        f"## What smaller regions are worth\n\nCandidates in {result['cubes']} cubes "
        f"({result['split']}) that fit the size, each read in that size and in full. The share is "
        "what is left of 2 AUC - 1."
    )
    return f"{head}\n\n{table(heads, rows)}"


def _recovery(found: dict[str, Any]) -> str:
    rows = [
        [words, found[name][key], found[name]["studies"], found[name]["provisional"],
         found[name]["amendments"], *(len(found[name][k]) for k in ("lost", "doubled", "left"))]
        for name, (words, key) in RECOVERY.items()
        if name in found
    ]  # fmt: skip
    if not rows:
        return ""
    heads = ["what happened", "times", "studies", "provisional", "amendments", "lost", "doubled",
             "left behind"]  # fmt: skip
    return f"## Nothing owed is lost or doubled\n\n{table(heads, rows)}{commands(found, *RECOVERY)}"


def _machine(result: dict[str, Any]) -> str:
    return f"Measured on {result['cpu']}, {result['cores']} cores."


def _middle(spread: dict[str, float]) -> str:
    return f"{spread['p50_ms']:.1f} ({spread['p95_ms']:.1f})"


if __name__ == "__main__":
    print(render(Path(sys.argv[1])))
