"""Writes `docs/models.md` from what was measured; it adds no number of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.bands_text import bands_markdown
from evaluation.calibration_text import calibration_markdown
from evaluation.memory_page import section as memory_section
from evaluation.model_page_text import HEAD, SURROUNDED, TAIL
from evaluation.published import published_section
from evaluation.rounding_page import rounding_section
from evaluation.scans_text import scans_markdown
from evaluation.time_page import times_section
from models.distillation.compare import section as distillation_section
from models.markdown import commands, interval, number, percents, table
from models.pruning.compare import section as pruning_section
from models.runtime.artifacts import every
from models.training.learning_curve import section as learning_section


def write_page(results: Path, page: Path) -> None:
    """Writes ``page`` from the JSON files of ``results`` and the manifest."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    parts = [HEAD.format(scans=_scan_names(found)), _artifacts()]
    parts += [_froc(found), _cost(found), _scans(found), _without(found), _kinds(found)]
    parts += [published_section(found), _bands(found)]
    parts += [_surrounded(found), scans_markdown(_each(found, "scans_edge", "scans_both"))]
    parts += [_findings(found), _phantoms(found), _calibration(found)]
    parts += [rounding_section(found), pruning_section(found), distillation_section(found)]
    parts += [learning_section(found)]
    parts += [memory_section(found), times_section(found, results / "machines"), _luna16(found)]
    page.write_text("\n".join(part for part in parts if part) + TAIL.format(licence=_licence()))


def _scan_names(found: dict[str, Any]) -> str:
    scans = found.get("nodules_edge_int8", {}).get("scans", [])
    return ", ".join(f"`{scan['scan']}`" for scan in scans) or "none measured yet"


def _artifacts() -> str:
    rows = [
        [f"`{a.name}`", a.version, f"{a.path.stat().st_size / 1e6:.2f} MB", a.parent, a.method]
        for a in every().values()
    ]
    return "## What is served\n\n" + table(["artifact", "version", "file", "made from", "by"], rows)


NODULES = {
    "nodules_edge_fp32": "edge, FP32",
    "nodules_edge_int8": "edge, INT8",
    "nodules_edge_int4": "edge, INT4 mixed",
    "nodules_both_fp32": "edge and cloud, FP32",
    "nodules_both_int8": "edge and cloud, INT8",
}


SURROUNDED_READERS = {
    "nodules_edge_surrounded": "edge, INT8",
    "nodules_both_surrounded": "edge and cloud, INT8",
}


def _froc(found: dict[str, Any]) -> str:
    measured = {key: found[key] for key in NODULES if key in found}
    if not measured:
        return ""
    first = next(iter(measured.values()))
    rates = [f"{point['false_positives_per_scan']:g}" for point in first["sensitivity"]]
    rows = [
        [NODULES[key], *(percents(p) for p in result["sensitivity"]), interval(result["cpm"])]
        for key, result in measured.items()
    ]
    head = f"## Sensitivity at false positives a scan\n\n{first['nodules']} nodules of "
    head += f"{first['patients']} patients (val and test), {len(first['scans'])} whole scans.\n\n"
    plots = "\n\n".join(
        f"![FROC, {NODULES[key]}](results/{key.removeprefix('nodules_')}.png)"
        for key in ("nodules_edge_int8", "nodules_both_int8")
        if key in measured
    )
    return "\n".join(
        [head + table(["reader", *rates, "CPM"], rows), commands(measured, *measured), plots, ""]
    )


def _each(found: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    return [found[name] for name in names if name in found]


def _bands(found: dict[str, Any]) -> str:
    result = found.get("nodules_both_int8", {})
    if "bands" not in result:
        return ""
    head = (
        "## Sensitivity by size, texture, subtlety and slice spacing\n\nEdge and cloud, INT8, in "
    )
    return f"{head}%.\n\n{bands_markdown(result['bands'])}"


def _surrounded(found: dict[str, Any]) -> str:
    names = [name for name in SURROUNDED_READERS if name in found]
    if not names:
        return ""
    rates = [f"{p['false_positives_per_scan']:g}" for p in found[names[0]]["sensitivity"]]
    rows = [
        [SURROUNDED_READERS[name], *(percents(p) for p in found[name]["sensitivity"]),
         interval(found[name]["cpm"])]
        for name in names
    ]  # fmt: skip
    return SURROUNDED + table(["reader", *rates, "CPM"], rows) + commands(found, *names)


def _calibration(found: dict[str, Any]) -> str:
    result = found.get("calibration")
    return calibration_markdown(result, "results/calibration.png") if result else ""


def _cost(found: dict[str, Any]) -> str:
    measured = {key: found[key] for key in NODULES if key in found}
    if not measured:
        return ""
    targets = list(next(iter(measured.values()))["fp_at"])
    rows = [
        [NODULES[key], *(interval(result["fp_at"][t], 1) for t in targets)]
        for key, result in measured.items()
    ]
    heads = ["reader", *(f"{t} %" for t in targets)]
    return "## False positives a scan at a sensitivity\n\n" + table(heads, rows)


def _scans(found: dict[str, Any]) -> str:
    result = found.get("nodules_both_int8")
    if result is None:
        return ""
    rows = [
        [scan["scan"], *(str(scan["false_positives"][r]) for r in ("1", "2", "4", "8")),
         _score(scan["lesion_score"])]
        for scan in result["scans"]
    ]  # fmt: skip
    heads = ["scan", "at 1", "at 2", "at 4", "at 8", "score of its lesion"]
    return "## False positives of each scan, edge and cloud\n\n" + table(heads, rows)


def _without(found: dict[str, Any]) -> str:
    rows = [
        [NODULES[key], one["scan"], *(f"{100 * v:.1f}" for v in one["sensitivity"].values()),
         number(one["cpm"])]
        for key in ("nodules_edge_int8", "nodules_both_int8")
        for one in found.get(key, {}).get("without", [])
    ]  # fmt: skip
    if not rows:
        return ""
    head = "## What hangs on one scan\n\nThe same figures with each scan left out in turn.\n\n"
    heads = ["reader", "without", "0.125", "0.25", "0.5", "1", "2", "4", "8", "CPM"]
    return head + table(heads, rows)


def _findings(found: dict[str, Any]) -> str:
    result = found.get("detect")
    if result is None:
        return ""
    rows = [
        [s["study"], str(s["findings"]), str(s["small_nodules"]),
         *(number(s[key], 0) for key in ("found", "lesions", "false_positives")),
         s["second_reading"] or s["refused"]]
        for s in result["per_study"]
    ]  # fmt: skip
    heads = [
        "scan",
        "findings",
        "small nodules",
        "lesions found",
        "lesions marked",
        "others",
        "second reading",
    ]
    return (
        "## Final reports of whole scans, edge and cloud\n\nThe first four in `scans.csv` are "
        "training scans and prove little; the folder of slabs is refused as one study.\n\n"
        + table(heads, rows)
        + commands(found, "detect")
    )


def _kinds(found: dict[str, Any]) -> str:
    result = found.get("kinds")
    if result is None:
        return ""
    textures = ", ".join(f"{n} {name}" for name, n in result["textures"].items())
    rows = [
        ["malignancy, AUC: ratings of 4 and more against 2 and less",
         interval(result["malignancy_auc"]), f"{result['suspicious']} of {result['rated']}"],
        ["texture, mean recall of the classes", interval(result["texture_recall"]), textures],
        ["outline, median Dice, nodules of 6 mm and more", interval(result["dice_median"]),
         f"{result['outlined']} nodules"],
        ["diameter, mean error in mm", interval(result["diameter_error_mm"], 2), "all"],
        ["diameter, mean bias in mm", interval(result["diameter_bias_mm"], 2), "all"],
    ]  # fmt: skip
    return (
        f"## Kind, size and outline, the second reader\n\n{result['nodules']} nodules of "
        f"{result['patients']} test patients, each read at its own centre, against the readers of "
        "LIDC-IDRI.\n\n"
        + table(["measure", "value", "taken from"], rows)
        + commands(found, "kinds")
    )


def _luna16(found: dict[str, Any]) -> str:
    result = found.get("luna16")
    if result is None:
        return ""
    rows = [
        ["CPM", f"{result['cpm']:.4f}"],
        ["sensitivity", " ".join(f"{value:.4f}" for value in result["sensitivity"])],
        *([name, str(result[name])] for name in ("tp", "fn", "fp", "ignored", "double")),
    ]
    return (
        "## The FROC computation against a published one\n\nDeepLung's candidates on LUNA16; the "
        "paper gives CPM .8420.\n\n" + table(["measure", "value"], rows) + commands(found, "luna16")
    )


def _phantoms(found: dict[str, Any]) -> str:
    result = found.get("phantoms")
    if result is None:
        return ""
    rows = [
        ["sensitivity, nodules of 5 mm and more", interval(result["sensitivity"])],
        ["false positives a scan", interval(result["false_positives_per_scan"], 2)],
    ]
    return (
        "## Phantoms, final report of edge and cloud\n\nSynthetic, and drawn by the generator that "
        "drew the training phantoms, with other seeds.\n\n"
        + table(["measure", "value"], rows)
        + commands(found, "phantoms")
    )


def read_figures(results: Path) -> dict[str, dict[str, Any]]:
    """For the manifest: each artifact's figures with their intervals."""
    sources = {
        "screening-fp32": "nodules_edge_fp32",
        "screening-int8": "nodules_edge_int8",
        "hybrid-fp32": "nodules_both_fp32",
        "hybrid-int8": "nodules_both_int8",
    }
    figures = {}
    for artifact, name in sources.items():
        path = results / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            by_rate = {p["false_positives_per_scan"]: p for p in found["sensitivity"]}
            figures[artifact] = {
                "cpm": found["cpm"],
                **{f"sensitivity_at_{rate}": _values(by_rate[rate]) for rate in (2, 8)},
            }
    return figures


def _values(point: dict[str, Any]) -> dict[str, float]:
    return {key: point[key] for key in ("value", "low", "high")}


def _score(value: float | None) -> str:
    return "not proposed" if value is None else f"{value:.2f}"


def _licence() -> str:
    return "\n\n".join(sorted({f"{a.licence}. {a.attribution}" for a in every().values()}))
