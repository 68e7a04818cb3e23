"""The part of the documents on deadlines, links and recovery, from what was measured.

It adds no number of its own. ``python -m evaluation.link_page docs/results`` prints it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.markdown import commands, percent, table

NAMES = ("link", "dead_cloud", "detection", "sizes", "kills", "flaps", "full_disk")
"""The files, each ``NAME.json`` with the ``command`` that made it."""


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
    return "\n".join([*parts, _recovery(found)])


def _link(result: dict[str, Any]) -> str:
    rows = [
        [
            one["trace"], one["studies"], one["late"],
            *(f"{one[f'p{q}_ms']:.0f}" for q in (50, 95, 99)), f"{one['longest_ms']:.0f}",
            percent(one["sensitivity"]), one["escalated"], one["answered"],
            f"{one['bytes'] / 1e6:.1f}", one["deaths"],
        ]
        for one in result["traces"]
    ]  # fmt: skip
    heads = ["link", "studies", "late", "p50 ms", "p95 ms", "p99 ms", "longest ms", "found",
             "sent", "read again", "MB", "deaths"]  # fmt: skip
    head = (
        f"## Deadlines over bad links\n\n{result['late']} of {result['studies']} answers came more "
        f"than {1000 * result['tolerance_s']:.0f} ms after their deadline of "
        f"{result['deadline_s']:g} s ({result['late_unstalled']} without the time in which the "
        f"machine did not let the edge run); the cloud was killed {result['deaths']} times. "
        f"{_machine(result)} {result['caveat']}"
    )
    return f"{head}\n\n{table(heads, rows)}"


def _dead_cloud(result: dict[str, Any]) -> str:
    keys = ("median_ms", "p95_ms", "more_median_ms", "more_p95_ms", "escalate_p95_ms",
            "first_more_median_ms", "first_more_most_ms", "first_escalate_most_ms")  # fmt: skip
    rows = [
        [one["way"], one["studies"], *(f"{one[key]:.1f}" for key in keys)] for one in result["ways"]
    ]
    heads = ["cloud", "studies", "median ms", "p95 ms", "more than off: median", "p95",
             "escalation p95", "first study, more: median", "most",
             "its escalation, most"]  # fmt: skip
    head = (
        f"## What a dead cloud costs\n\nThe same studies, in {result['rounds']} rounds in turn; "
        f"the bar is {result['bar_ms']:.0f} ms more than without a cloud. The first after a start "
        "knows nothing of the cloud: one that refuses is found out at once, one that has not "
        "answered half a second after the start (`connect_s`) is not waited for. After that the "
        f"edge knows, and no study waits. {_machine(result)}"
    )
    return f"{head}\n\n{table(heads, rows)}"


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
    what = {
        "kills": ("the agent killed", "kills"),
        "flaps": ("the link lost", "flaps"),
        "full_disk": ("the disk filled", "fillings"),
    }
    rows = [
        [words, found[name][key], found[name]["studies"], found[name]["provisional"],
         found[name]["amendments"], *(len(found[name][k]) for k in ("lost", "doubled", "left"))]
        for name, (words, key) in what.items()
        if name in found
    ]  # fmt: skip
    if not rows:
        return ""
    heads = ["what happened", "times", "studies", "provisional", "amendments", "lost", "doubled",
             "left behind"]  # fmt: skip
    return f"## Nothing owed is lost or doubled\n\n{table(heads, rows)}{commands(found, *what)}"


def _machine(result: dict[str, Any]) -> str:
    return f"Measured on {result['cpu']}, {result['cores']} cores."


def _middle(spread: dict[str, float]) -> str:
    return f"{spread['p50_ms']:.1f} ({spread['p95_ms']:.1f})"


if __name__ == "__main__":
    print(render(Path(sys.argv[1])))
