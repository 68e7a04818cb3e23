"""One stage against several: a section of `docs/budget.md`, from `python -m evaluation.stages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.markdown import commands, table

PUBLISHED = (
    "Published for a pipeline of stages: 3.2 times the throughput; for batching 4.7 times; for the "
    "time of an answer 41 % less."
)
HEADS = ("stages", "regions a second", "of one stage", "a batch then, ms", "of one stage",
         "a batch alone, ms", "of one stage")  # fmt: skip


def section(found: Mapping[str, Any]) -> str:
    """Throughput and latency by the number of stages; empty where they were not measured."""
    if (result := found.get("stages")) is None:
        return ""
    rows = [
        [one["name"], f"{one['rois_per_s']:.1f}", f"{one['throughput_ratio']:.2f}x",
         f"{one['busy_ms']:.0f}", _more(one["busy_ratio"]), f"{one['alone_ms']:.0f}",
         _more(one["alone_ratio"])]
        for one in result["contestants"]
    ]  # fmt: skip
    best = max(result["contestants"], key=lambda one: one["throughput_ratio"])
    served = "One stage is what the cloud runs as it comes (`stages`)."
    head = (
        f"## The second reader in stages\n\n{PUBLISHED} Here {best['name']} reads most: "
        f"{best['throughput_ratio']:.2f} times the regions of one stage. {served} Stages pay where "
        "each has a processor of its own; here all share the same cores, and one stage uses them "
        f"all. `{result['model']}` whole and in parts, in turn, {result['rounds']} rounds of "
        f"{result['batches']} batches of {result['batch']} regions with always the next one at "
        f"hand. {result['cores']} cores of {result['cpu']}."
    )
    return f"{head}\n\n{table(HEADS, rows)}{commands(found, 'stages')}"


def _more(ratio: float) -> str:
    return f"{ratio - 1:+.0%}"
