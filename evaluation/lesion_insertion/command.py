"""``overread-eval lesion-insertion``: sensitivity to lesions inserted into whole scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from evaluation.accuracy.bootstrap import RESAMPLES
from evaluation.accuracy.data import read_truth, scan_folders
from evaluation.accuracy.froc import RATES
from evaluation.accuracy.subgroups import share, subgroups_table
from evaluation.common.cli import (
    CloudModel,
    Csv,
    Data,
    Json,
    Model,
    MoreScans,
    Resamples,
    Scans,
    each,
    show,
)
from evaluation.common.readers import Stage, open_reads
from evaluation.common.tables import rate_name
from evaluation.errors import MissingData
from evaluation.lesion_insertion.donors import Donor, cut_lesions, read_donors
from evaluation.lesion_insertion.hosts import host_makers, of_splits
from evaluation.lesion_insertion.insert import (
    Copy,
    Implant,
    Ready,
    implanted,
    plan_masses,
    plan_nodules,
)
from evaluation.lesion_insertion.scans import as_dict as figures
from evaluation.lesion_insertion.scans import read_copies, read_host
from imaging.phantom.phantom import TRAINING_SEED
from imaging.preprocess import Preprocessed, preprocess
from imaging.roi import cut_roi
from imaging.volume import UInt8Array
from models.markdown import Rows

_SIDE_PX = 150


_COLUMNS = 3
"""Implants beside each other; each takes six tiles."""


_EACH = 3
"""Implants of one copy."""


def draw_sheet(copies: Sequence[Copy], most: int = 24) -> UInt8Array:
    """uint8 ``(height, width)``: axial, coronal and sagittal, above as it was, below with it.

    The copies it is drawn from are spread over all; of each come three implants at most.
    """
    strips: list[UInt8Array] = []
    for copy in copies[:: max(1, len(copies) // (most // _EACH + 2))]:
        host = copy.ready.host
        before = copy.ready.room.box
        after = preprocess(implanted(host.volume, list(copy.implants)), host.name)
        shown = copy.implants[:_EACH]
        strips += [_strip(before, after, implant, host.name) for implant in shown]
    return _grid(strips[:most])


def save_sheet(path: Path, sheet: UInt8Array) -> None:
    """Writes the sheet as PNG.

    Raises:
        MissingData: there is no such folder, or it cannot be written.
    """
    _, png = cv2.imencode(".png", sheet)
    try:
        path.write_bytes(png.tobytes())
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error


def _strip(before: Preprocessed, after: Preprocessed, implant: Implant, host: str) -> UInt8Array:
    side = int(max(48, 2 * round(implant.diameter_mm)))
    rows = [
        np.hstack([_tile(plane) for plane in _planes(box, implant, side)])
        for box in (before, after)
    ]
    strip = np.vstack(rows)
    text = f"{implant.donor.name} {implant.diameter_mm:.1f} mm, {host}"
    cv2.putText(strip, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, 255, 1, cv2.LINE_AA)
    return np.asarray(np.pad(strip, 2, constant_values=255), np.uint8)


def _planes(box: Preprocessed, implant: Implant, side: int) -> list[UInt8Array]:
    """Axial, coronal and sagittal through the implant, head up."""
    roi = cut_roi(box.voxels, box.geometry.to_index(implant.centre_mm), (side,) * 3)
    middle = side // 2
    return [roi[middle], roi[::-1, middle], roi[::-1, :, middle]]


def _tile(plane: UInt8Array) -> UInt8Array:
    size = (_SIDE_PX, _SIDE_PX)
    return np.asarray(cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_CUBIC))


def _grid(strips: list[UInt8Array]) -> UInt8Array:
    if not strips:
        return np.zeros((1, 1), np.uint8)
    blank = np.zeros_like(strips[0])
    padded = strips + [blank] * (-len(strips) % _COLUMNS)
    rows = [np.hstack(padded[i : i + _COLUMNS]) for i in range(0, len(padded), _COLUMNS)]
    return np.vstack(rows)


TITLE = "Semi-synthetic whole scans"


GROUPS = {"patients": "scans of patients", "phantoms": "phantoms", "all": "both together"}


STAGES = {"edge": "edge", "both": "edge and cloud"}


def lesion_insertion_command(
    data: Data,
    split: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Whose nodules, whose scans.")],
    scans: Scans,
    truth: Csv,
    more_scans: MoreScans = None,
    phantoms: Annotated[int, typer.Option(min=0, help="How many phantoms as hosts too.")] = 3,
    stage: Annotated[Stage, typer.Option(help="The edge alone, or edge and cloud.")] = Stage.EDGE,
    model: Model = None,
    cloud_model: CloudModel = None,
    together: Annotated[int, typer.Option(min=1, help="Nodules in one copy of a scan.")] = 8,
    limit: Annotated[int, typer.Option(min=0, help="So many nodules only; 0: all.")] = 0,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Picture the implants.")] = None,
    resamples: Resamples = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Of places, phantoms and bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Semi-synthetic whole scans: sensitivity on implants against the scans' own alarms."""
    if seed + phantoms > TRAINING_SEED:
        raise typer.BadParameter(f"--seed: phantoms from {TRAINING_SEED} on were learnt from")
    splits = tuple(split.split(","))
    known = read_truth(truth)
    folders = of_splits(scan_folders([*scans, *(more_scans or [])], set(known)), truth, splits)
    makers = host_makers(folders, known, range(seed, seed + phantoms))
    donors, traits = read_donors(data, splits, most=limit or None)
    reads = open_reads(stage, model, cloud_model)
    hosts = [read_host(make(), reads) for make in each(makers, "untouched scans")]
    copies, left = _planned([one.ready for one in hosts], donors, together, seed)
    if sheet is not None:
        save_sheet(sheet, draw_sheet(copies))
    read = read_copies(each(copies, "scans with implants"), hosts, reads)
    result: dict[str, Any] = {
        "stage": stage.value,
        "split": split,
        "seed": seed,
        "not_placed": left,
    }
    result |= figures(read, hosts, traits, resamples=resamples, seed=seed)
    show(result, as_json, *tables(result))


def _planned(
    hosts: Sequence[Ready], donors: Sequence[Donor], together: int, seed: int
) -> tuple[list[Copy], list[str]]:
    """The copies of every group, and what found no room in one."""
    large = [*donors, *(d for ready in hosts for d in cut_lesions(ready.host, ready.room.box))]
    copies: list[Copy] = []
    left: list[str] = []
    for group in dict.fromkeys(ready.host.group for ready in hosts):
        of = [ready for ready in hosts if ready.host.group == group]
        rng = np.random.default_rng([seed, len(copies)])
        for made, without in (plan_nodules(of, donors, together, rng), plan_masses(of, large, rng)):
            copies += made
            left += [f"{one.donor.name}, {one.diameter_mm:.0f} mm, {group}" for one in without]
    return copies, left


def tables(result: Mapping[str, Any]) -> list[Rows | str]:
    """Every table of one result, and what must be said of it."""
    shown: list[Rows | str] = []
    for name, group in result["groups"].items():
        title = f"{TITLE}: {GROUPS[name]}, {STAGES[result['stage']]}"
        shown += [
            Rows(["", *_heads()], _rows(group), title),
            subgroups_table(group["subgroups"], f"{title}, in % by subgroup"),
        ]
    left = result["not_placed"]
    remark = [f"No room was found for: {', '.join(left)}."] if left else []
    return [*shown, result["semi_synthetic"], result["false_positives"], *remark]


def _heads() -> list[str]:
    return ["nodules (patients)", *(f"at {rate_name(rate)}" for rate in RATES), "CPM"]


def _rows(group: Mapping[str, Any]) -> list[list[str]]:
    lines = {"all nodules": group, "5 mm and more": group["from_5_mm"],
             "masses of 30 to 60 mm": group["masses"]}  # fmt: skip
    return [
        [name, f"{one['nodules']} ({one['patients']})",
         *(share(point) for point in one["sensitivity"]), f"{one['cpm']['value']:.3f}"]
        for name, one in lines.items()
        if one is not None
    ]  # fmt: skip
