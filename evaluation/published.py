"""The published system's claims, each beside the figure measured here: a section of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.markdown import interval, percents, table

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """What was published, and how our figure is told from the results that it needs."""

    what: str
    published: str
    needs: tuple[str, ...]
    ours: Callable[[Found], str]


def published_section(found: Found) -> str:
    """Claim, our number with its interval, the command; "not measured" where a result lacks."""
    rows = []
    for claim in CLAIMS:
        there = all(name in found for name in claim.needs)
        ours = claim.ours(found) if there else "not measured"
        lines = {found[name]["command"].split(" --")[0] for name in claim.needs if there}
        rows.append([claim.what, claim.published, ours, ", ".join(f"`{x}`" for x in sorted(lines))])
    return "## The published claims\n\n" + table(["claim", "published", "here", "command"], rows)


def _sensitivity(found: Found) -> str:
    result = found["nodules_both_int8"]
    at = {p["false_positives_per_scan"]: p for p in result["sensitivity"]}
    told = f"{percents(at[2])} % at 2 false positives a scan"
    cost = result["fp_at"].get("97.2")
    return f"{told}; 97.2 % at {interval(cost, 1)}" if cost else told


def _detection(found: Found) -> str:
    links = found["detection"]["links"]
    told = [f"{one['link']} {one['p50_ms']:.0f}, p95 {one['p95_ms']:.0f}" for one in links]
    return f"ms: {'; '.join(told)}"


def _cheaper(found: Found) -> str:
    edge, both = (found[f"nodules_{n}_int8"]["cpm"]["value"] for n in ("edge", "both"))
    saved = found["cost"]["saved"]
    return f"{saved:.0%} fewer multiply-adds a region; CPM {edge / both:.0%} of edge and cloud's"


def _distilled(found: Found) -> str:
    gained = found["distillation"]["gained"]
    told = {arm: {**gain["mean"], "value": gain["mean"]["points"]} for arm, gain in gained.items()}
    return "; ".join(f"{arm} {_points(gain)}" for arm, gain in told.items())


def _pruned(found: Found) -> str:
    runs = [r for r in found["pruning"]["runs"] if r["share"] == found["pruning"]["claim"]["share"]]
    return "; ".join(f"{r['way']} {_points(r['at_8_lost'])}" for r in runs)


def _points(point: Mapping[str, float]) -> str:
    return f"{point['value']:+.1f} ({point['low']:+.1f} to {point['high']:+.1f})"


def _faster(found: Found) -> str:
    by_engine: dict[str, dict[str, float]] = {}
    for one in (*found["hybrid"]["passes"], *found["hybrid_reference"]["passes"]):
        by_engine.setdefault(one["engine"], {})[one["artifact"]] = one["median_ms"]
    told = [
        f"{engine} {1 - times['hybrid-int8'] / times['hybrid-fp32']:.0%}"
        for engine, times in by_engine.items()
    ]
    return f"hybrid, INT8 against FP32: {', '.join(told)}"


def _rounded(found: Found) -> str:
    told = []
    for stage in ("edge", "both"):
        whole, small = (found[f"nodules_{stage}_{p}"]["sensitivity"] for p in ("fp32", "int8"))
        lost = [100 * (a["value"] - b["value"]) for a, b in zip(whole, small, strict=True)]
        told.append(f"{stage} at most {max(lost):.1f} of the seven rates")
    return "; ".join(told)


def _saved(found: Found) -> str:
    rows = [row for row in found["memory"]["variants"] if row["published"]]
    return "; ".join(f"{row['name']} {row['peak_bytes_saved']:.0%}" for row in rows)


def _batched(found: Found) -> str:
    ratio = found["load"]["throughput_of_one_at_a_time"]
    return "; ".join(f"{mode} {value:.2f}x" for mode, value in ratio.items())


CLAIMS = (
    Claim("sensitivity", "97.2 %", ("nodules_both_int8",), _sensitivity),
    Claim("time of one detection", "85 ms", ("detection",), _detection),
    Claim("the student costs less", "78 % less, 95 % of the performance",
          ("cost", "nodules_edge_int8", "nodules_both_int8"), _cheaper),
    Claim("distillation, points gained", "+2.3", ("distillation",), _distilled),
    Claim("pruning 42 % of the parameters, points lost", "1.2", ("pruning",), _pruned),
    Claim("INT8 takes less time", "58 % less", ("hybrid", "hybrid_reference"), _faster),
    Claim("INT8, points lost", "0.8",
          ("nodules_edge_fp32", "nodules_edge_int8", "nodules_both_fp32", "nodules_both_int8"),
          _rounded),
    Claim("memory of a training step", "checkpointing 60-70, recomputation 50-60, mixed precision "
          "40-50, sharing 30-40, pooled buffers 20-30 % less", ("memory",), _saved),
    Claim("batching, throughput", "4.7x, pipeline 3.2x", ("load",), _batched),
)  # fmt: skip
