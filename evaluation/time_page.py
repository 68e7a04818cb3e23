"""What it takes: the sections of `docs/models.md` with times, from files to report and by pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.markdown import commands, table


def times_section(found: dict[str, Any], machines: Path) -> str:
    """Times of this machine, and of others, whose results are in the folder ``machines``."""
    parts = [_latency(found), _network(found), _elsewhere(machines)]
    return "\n".join(part for part in parts if part)


def _latency(found: dict[str, Any]) -> str:
    result = found.get("latency")
    if result is None:
        return ""
    rows = [
        [stage, f"{1e3 * times['median_s']:.0f}", f"{1e3 * times['p95_s']:.0f}"]
        for stage, times in result["stages"].items()
    ]
    head = "## From files to report\n\n`cmb_crc_01068` (100 slices, JPEG-LS), cloud on loopback, "
    head += f"{result['cores']} cores of {result['cpu']}, {result['repeats']} readings.\n\n"
    return head + table(["stage", "median ms", "p95 ms"], rows) + commands(found, "latency")


def _network(found: dict[str, Any]) -> str:
    parts = []
    for key, title in (("pass", "One pass of the screening network, alone"),
        ("network", "The same, in turn with others, which leave the caches cold"),
                       ("hybrid", "One batch of the hybrid network"),
                       ("hybrid_reference", "The same on the reference engine")):  # fmt: skip
        result = found.get(key)
        if result is None:
            continue
        rows = [
            [f"`{p['artifact']}`", p["engine"], f"{p['median_ms']:.0f}", f"{p['p95_ms']:.0f}",
             f"{p['ratio_to_first']:.2f}"]
            for p in result["passes"]
        ]  # fmt: skip
        what = "x".join(map(str, result["shape"])) if "hybrid" not in key else "48x48x48"
        head = f"## {title}\n\n{result['batch']} x {what} voxels, {result['threads']} threads of "
        head += f"{result['cpu']}; {result['rounds']} rounds, in turn.\n\n"
        heads = ["artifact", "engine", "median ms", "p95 ms", "ratio"]
        parts.append(head + table(heads, rows) + commands(found, key))
    return "\n".join(parts)


ELSEWHERE = {
    "pass": "alone",
    "network_int4": "in turn with INT4",
    "network": "in turn, caches cold",
}


def _elsewhere(folder: Path) -> str:
    """Passes that were measured on other machines: a folder each, files as those of this one."""
    rows = []
    for machine in sorted(folder.glob("*")):
        for name, words in ELSEWHERE.items():
            if not (path := machine / f"{name}.json").exists():
                continue
            result = json.loads(path.read_text())
            rows += [
                [result["cpu"], words, f"`{p['artifact']}`", p["engine"],
                 f"{p['median_ms']:.0f}", f"{p['p95_ms']:.0f}"]
                for p in result["passes"]
            ]  # fmt: skip
    if not rows:
        return ""
    head = "## The screening network on other processors\n\nThe same commands, two threads.\n\n"
    heads = ["processor", "how", "artifact", "engine", "median ms", "p95 ms"]
    return head + table(heads, rows)
