"""The table at the top of `docs/budget.md`: what was asked, what was measured, met or not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.dead_cloud import BAR_MS
from evaluation.detection import BAR_MS as DETECTION_MS
from evaluation.link import OFF, TOLERANCE_S
from evaluation.link_page import RECOVERY
from evaluation.load_page import BAR_GOODPUT, BAR_WASTED
from models.calibration.risk_control import ALPHA, DELTA
from models.markdown import percent, table

BEGIN, END = "<!-- summary -->", "<!-- /summary -->"
HEADS = ("what", "asked", "measured", "met", "command")
NOT_MEASURED = "not measured"

BATCHING, STAGES = 4.7, 3.2
"""Times the throughput, as published."""

Found = Mapping[str, Any]
Told = tuple[str, str] | None
"""What was measured and whether that is met, in words; None where it was not measured."""


@dataclass(frozen=True)
class Asked:
    """One thing that was asked, the results that tell of it, and how they are told."""

    what: str
    asked: str
    needs: tuple[str, ...]
    told: Callable[[Found], Told]


def section(found: Found) -> str:
    """A row for each thing that was asked; one says "not measured" where its result lacks."""
    rows = []
    for one in ASKED:
        there = [name for name in one.needs if name in found]
        measured, met = (one.told(found) if there else None) or (NOT_MEASURED, "-")
        typed = ", ".join(f"`{line}`" for line in sorted({_short(found[x]) for x in there})) or "-"
        rows.append((one.what, one.asked, measured, met, typed))
    return f"## What was asked, what was measured\n\n{table(HEADS, rows)}"


def write_section(page: Path, found: Found) -> None:
    """Writes the table between its marks in ``page``; a page without them stays as it is."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        page.write_text(f"{before}{BEGIN}\n{section(found)}{END}{after}")


def _short(result: Mapping[str, Any]) -> str:
    """The command without its options and what is around it."""
    command = str(result["command"])
    told = re.search(r"(overread-eval|python -m) \S+", command)
    return told.group() if told else command


def _deadline(found: Found) -> Told:
    result = found["link"]
    longest_ms = max(one["longest_ms"] for one in result["traces"])
    told = (
        f"{result['late']} of {result['studies']} over {len(result['traces'])} links later than "
        f"{1000 * TOLERANCE_S:.0f} ms after {result['deadline_s']:g} s, the longest "
        f"{longest_ms:.0f} ms"
    )
    return told, _yes(result["late"] == 0)


def _dead_cloud(found: Found) -> Told:
    ways = [one for one in found["dead_cloud"]["ways"] if one["way"] != OFF]
    told = "; ".join(
        f"{one['way']} {one['more_median_ms']:.0f} ms, p95 {one['more_p95_ms']:.0f} ms"
        for one in ways
    )
    kept = all(max(one["more_median_ms"], one["more_p95_ms"]) <= BAR_MS for one in ways)
    return told, _yes(kept)


def _guarantee(found: Found) -> Told:
    served = found["guarantee"]["served"]
    terms, test = served["guarantee"], served["test"]
    told = f"of {terms['patients']} patients {percent(terms['alpha'])} can be promised"
    splits = found["guarantee"]["carried"]["splits"]
    told += (
        f"; a level that they carry holds in {percent(splits['kept'])} of {splits['resamples']} "
    )
    told += "splits"
    if test is None:
        return told, _yes(terms["holds"])
    told += f"; {percent(test['miss_rate'])} missed of {test['patients']} test patients"
    holds = splits["kept"] >= 1 - terms["delta"] and test["kept"]
    return told, f"{_yes(terms['holds'])}; what is promised holds: {_yes(holds)}"


def _escalation(found: Found) -> Told:
    """Each kind of fixed threshold with its ratios; what asks nothing is named."""
    ratio = found["policies"].get("escalation_ratio", {})
    told, met = [], []
    for side, words in (("verdicts", "verdicts alone"), ("described", "with descriptions")):
        against = _opponents(ratio.get(side) or {}, ratio.get("trace", ""))
        if not against:
            continue
        parts = [f"{name} {_parts(one)}" for name, one in against.items()]
        told.append(f"{words}: {', '.join(parts)}")
        each = ", ".join(f"{name} {_yes(_half(one))}" for name, one in against.items())
        met.append(f"{words}: {each}")
    return ("; ".join(told), "; ".join(met)) if told else None


def _opponents(side: Mapping[str, Any], trace: str) -> dict[str, Mapping[str, Any]]:
    """What ours is held against over ``trace``, by name."""
    if "rois" in side:
        return {"fixed": side}
    each = side.get(trace) or {}
    names = {"single": "a single one", "pair": "a pair", "cut": "a cut of the edge's own"}
    return {words: each[name] for name, words in names.items() if each.get(name)}


def _half(one: Mapping[str, Any]) -> bool:
    """Whether the bar is met, or the opponent asks nothing and does not find as much."""
    asks = one.get("asks", True)
    return bool(one.get("met")) if asks else not one.get("as_good")


def _parts(one: Mapping[str, Any]) -> str:
    parts = [one.get(key) for key in ("rois", "bytes")]
    if any(part is None for part in parts):
        return f"asks nothing, finds {'as much' if one.get('as_good') else 'less'}"
    return ", ".join(f"{part:.2f}" for part in parts)


def _detection(found: Found) -> Told:
    links = found["detection"]["links"]
    told = "; ".join(f"{one['link']} {one['p95_ms']:.0f} ms" for one in links)
    return told, _yes(all(one["p95_ms"] <= DETECTION_MS for one in links))


def _overload(found: Found) -> Told:
    told, met = [], []
    ways = {"load": "on cores of its own", "load_shared": "on the edges' cores",
            "load_asleep": "with a reader that sleeps"}  # fmt: skip
    for name, words in ways.items():
        runs = [run for run in found.get(name, {}).get("runs", ()) if run.get("load") == 2]
        ours = [run for run in runs if run.get("mode") == "deadline"]
        for run in ours[:1] or runs[:1]:
            share, wasted = run.get("goodput_of_capacity"), run.get("wasted_share")
            if share is None or wasted is None:
                continue
            told.append(f"{words} {share:.0%}, {wasted:.1%} for nothing")
            met.append(f"{words}: {_yes(share >= BAR_GOODPUT and wasted <= BAR_WASTED)}")
    return ("; ".join(told), "; ".join(met)) if told else None


def _batching(found: Found) -> Told:
    ratios = found["load"].get("throughput_of_one_at_a_time") or {}
    gained = ratios.get("deadline")
    return (f"{gained:.2f}x", _yes(gained >= BATCHING)) if gained is not None else None


def _stages(found: Found) -> Told:
    several = [one for one in found["stages"]["contestants"] if one["stages"] > 1]
    told = "; ".join(f"{one['name']} {one['throughput_ratio']:.2f}x" for one in several)
    return told, _yes(max(one["throughput_ratio"] for one in several) >= STAGES)


def _recovery(found: Found) -> Told:
    told = []
    for name, (words, key) in RECOVERY.items():
        if (result := found.get(name)) is None:
            told.append(f"{words}: {NOT_MEASURED}")
            continue
        amiss = sum(len(result[kind]) for kind in ("lost", "doubled", "left"))
        told.append(f"{words} {result[key]} times: {amiss}")
    there = [found[name] for name in RECOVERY if name in found]
    sound = all(not (one["lost"] or one["doubled"] or one["left"]) for one in there)
    missing = len(there) < len(RECOVERY)
    return "; ".join(told), "as far as measured" if sound and missing else _yes(sound)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


ASKED: Sequence[Asked] = (
    Asked("deadline", "every answer by its deadline, whatever the link", ("link",), _deadline),
    Asked("dead cloud", f"at most {BAR_MS:.0f} ms more than without a cloud, median and p95",
          ("dead_cloud",), _dead_cloud),
    Asked("guarantee", f"at most {percent(ALPHA)} of nodules missed, with {1 - DELTA:.0%} "
          "confidence", ("guarantee",), _guarantee),
    Asked("escalation", "at most 0.50 of the regions, and of the bytes, that fixed thresholds ask",
          ("policies",), _escalation),
    Asked("one detection", f"p95 of {DETECTION_MS:.0f} ms from place to verdict", ("detection",),
          _detection),
    Asked("overload", f"offered twice its capacity: {BAR_GOODPUT:.0%} of it answered in time, at "
          f"most {BAR_WASTED:.0%} of the work for nothing", ("load", "load_shared", "load_asleep"),
          _overload),
    Asked("batching", f"published: {BATCHING} times the throughput", ("load",), _batching),
    Asked("stages", f"published: {STAGES} times the throughput", ("stages",), _stages),
    Asked("recovery", "nothing owed lost, doubled or left behind", tuple(RECOVERY), _recovery),
)  # fmt: skip
