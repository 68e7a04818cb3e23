"""What rounding to INT8 and INT4 costs and saves: a section of `docs/models.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.markdown import commands, table

READERS = {
    "edge, INT8": ("nodules_edge_fp32", "nodules_edge_int8"),
    "edge, INT4 mixed": ("nodules_edge_fp32", "nodules_edge_int4"),
    "edge and cloud, INT8": ("nodules_both_fp32", "nodules_both_int8"),
}

HEAD = """## INT8 and INT4

Three phases: the quantiser puts rounding into the graph; ranges are found on training material;
weights and ranges are trained to answer as the float network does (`overread-models qat`). From
the INT8 weights some layers go to INT4, those first that mind least, in three steps with training
after each (`overread-models int4`). What the files say is what the training simulated: the
simulation in torch and the file on the reference engine agree but for values at a rounding's edge.
"""


def rounding_section(found: Mapping[str, Any]) -> str:
    """The section from the results by name; empty where none of them is there."""
    parts = [_lost(found), _ranges(found), _layers(found), _times(found)]
    told = [part for part in parts if part]
    return "\n".join([HEAD, *told]) if told else ""


def _lost(found: Mapping[str, Any]) -> str:
    """Points of sensitivity lost at each rate against FP32, on the same cubes and scans."""
    rows, rates = [], []
    for name, (whole, small) in READERS.items():
        if whole not in found or small not in found:
            continue
        pairs = list(zip(found[whole]["sensitivity"], found[small]["sensitivity"], strict=True))
        rates = [f"{a['false_positives_per_scan']:g}" for a, _ in pairs]
        lost = [100 * (a["value"] - b["value"]) for a, b in pairs]
        cpm = found[whole]["cpm"]["value"] - found[small]["cpm"]["value"]
        rows.append([name, *(f"{value:+.1f}" for value in lost), f"{cpm:+.3f}"])
    if not rows:
        return ""
    said = "Points of sensitivity lost against FP32 at equal false positives a scan (0.4 is one "
    return f"{said}nodule of 244):\n\n" + table(["reader", *rates, "CPM"], rows)


def _ranges(found: Mapping[str, Any]) -> str:
    rows = [
        [kind, row["ranges"], *(f"{row[name]:.4f}" for name in list(row)[1:])]
        for kind in ("screening", "hybrid")
        for row in found.get(f"ranges_{kind}", {"ranges": ()})["ranges"]
    ]
    if not rows:
        return ""
    width = max(len(row) for row in rows)
    filled = [row + [""] * (width - len(row)) for row in rows]
    heads = ["network", "ranges from", "heat or logit", *["other answers"] * (width - 3)]
    said = "\nHow far INT8 is from float on validation (smooth L1; the lower the better):\n\n"
    return said + table(heads, filled) + commands(found, "ranges_screening", "ranges_hybrid")


def _layers(found: Mapping[str, Any]) -> str:
    result = found.get("layers_screening")
    if result is None:
        return ""
    worst = sorted(result["layers"], key=lambda row: row["int8"] - row["int4"])[:3]
    names = ", ".join(f"`{row['layer']}`" for row in worst)
    said = f"\nThe layers of the screening network that mind INT4 most: {names}.\n\n"
    picture = "![difference by layer](results/layers_screening.png)\n"
    return said + picture + commands(found, "layers_screening")


def _times(found: Mapping[str, Any]) -> str:
    result = found.get("network_int4")
    if result is None:
        return ""
    rows = [
        [f"`{p['artifact']}`", f"{p['median_ms']:.0f}", f"{p['p95_ms']:.0f}",
         f"{p['ratio_to_first']:.2f}"]
        for p in result["passes"]
    ]  # fmt: skip
    said = "\nAn INT4 file is laid out as INT8 when it is loaded; `stored` is the same file run as "
    said += f"it is. {result['threads']} threads of {result['cpu']}, in turn:\n\n"
    return (
        said
        + table(["artifact", "median ms", "p95 ms", "ratio to the first"], rows)
        + commands(found, "network_int4")
    )
