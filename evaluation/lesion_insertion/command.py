"""``overread-eval lesion-insertion``: sensitivity to lesions inserted into whole scans."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from evaluation.accuracy.bootstrap import RESAMPLES, gain_table
from evaluation.accuracy.froc import RATES
from evaluation.accuracy.readers import STAGES, Stage, StageOption, open_agent
from evaluation.accuracy.subgroups import share, subgroups_table
from evaluation.accuracy.truth import scans_of_splits
from evaluation.common import cli
from evaluation.common.tables import rate_name
from evaluation.errors import MissingData
from evaluation.lesion_insertion.donors import cut_lesions, read_donors
from evaluation.lesion_insertion.hosts import PreparedHost, load_host
from evaluation.lesion_insertion.scans import as_dict, prepare_host, read_synthetic
from imaging.phantom.phantom import TRAINING_SEED
from imaging.preprocess import Preprocessed, preprocess
from imaging.roi import cut_roi
from imaging.volume import UInt8Array
from models.insertion.donors import Donor
from models.insertion.insert import Insertion, SyntheticScan, insert, plan_masses, plan_nodules
from models.markdown import Rows, interval

GROUPS = {"patients": "scans of patients", "phantoms": "phantoms", "all": "both together"}

_TILE_PX = 150
_COLUMNS = 3
"""Insertions beside each other on the sheet; each takes six tiles."""

_PER_SCAN = 3
"""Insertions of one synthetic scan on the sheet."""


def lesion_insertion_command(
    data: cli.Data,
    split: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Splits of the nodules and of the scans.")
    ],
    scans: cli.Scans,
    truth: cli.Marks,
    more_scans: cli.MoreScans = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Phantoms among the hosts.")] = 3,
    stage: StageOption = Stage.EDGE,
    model: cli.Model = None,
    cloud_model: cli.CloudModel = None,
    together: Annotated[int, typer.Option(min=1, help="Nodules inserted into one scan.")] = 8,
    limit: cli.Limit = 0,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="File for a picture of the insertions.")
    ] = None,
    resamples: cli.Resamples = RESAMPLES,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of positions, phantoms and bootstrap.")
    ] = 0,
    as_json: cli.Json = False,
) -> None:
    """Semi-synthetic whole scans: sensitivity to inserted lesions, and false positives."""
    if seed + phantoms > TRAINING_SEED:
        raise typer.BadParameter(f"--seed: seeds from {TRAINING_SEED} on were used in training")
    splits = tuple(split.split(","))
    folders, known = cli.known_scans(scans, more_scans, truth)
    folders = scans_of_splits(folders, known, splits)
    sources = [*folders, *range(seed, seed + phantoms)]
    donors, traits = read_donors(data, splits, most=limit or None)
    agent = open_agent(stage, model, cloud_model)
    reads = agent.reads(stage)
    hosts = [prepare_host(load_host(one, known), reads) for one in cli.each(sources, "scans")]
    planned, not_placed = _plan(hosts, donors, together, seed)
    if sheet is not None:
        save_sheet(sheet, draw_sheet(planned))
    read = [read_synthetic(scan, reads) for scan in cli.each(planned, "scans with insertions")]
    request = {"stage": stage.value, "split": split, "seed": seed}
    least = agent.thresholds.finding
    figures = as_dict(read, hosts, traits, stage, least, resamples=resamples, seed=seed)
    result: dict[str, Any] = {**request, "not_placed": not_placed, **figures}
    cli.show(result, as_json, *tables(result))


def _plan(
    hosts: Sequence[PreparedHost], donors: Sequence[Donor], together: int, seed: int
) -> tuple[list[SyntheticScan[PreparedHost]], list[str]]:
    """Plan the synthetic scans of every group; also name what could not be placed."""
    large = [*donors, *(one for host in hosts for one in cut_lesions(host.host, host.space.box))]
    scans: list[SyntheticScan[PreparedHost]] = []
    not_placed: list[str] = []
    for group in dict.fromkeys(host.host.group for host in hosts):
        of = [host for host in hosts if host.host.group == group]
        rng = np.random.default_rng([seed, len(scans)])
        for made, rest in (plan_nodules(of, donors, together, rng), plan_masses(of, large, rng)):
            scans += made
            not_placed += [f"{one.donor.name}, {one.diameter_mm:.0f} mm, {group}" for one in rest]
    return scans, not_placed


def tables(result: Mapping[str, Any]) -> list[Rows | str]:
    """Return every table of one result, and the remarks on it."""
    shown: list[Rows | str] = []
    heads = ["", "nodules (patients)", *(f"at {rate_name(rate)}" for rate in RATES), "CPM"]
    for name, group in result["groups"].items():
        reader = STAGES[Stage(result["stage"])]
        title = f"Semi-synthetic whole scans: {GROUPS[name]}, {reader}"
        parts = {"all nodules": group, "5 mm and more": group["from_5_mm"],
                 "masses of 30 to 60 mm": group["masses"]}  # fmt: skip
        cells = [
            [part, f"{one['nodules']} ({one['patients']})",
             *(share(point) for point in one["sensitivity"]), f"{one['cpm']['value']:.3f}"]
            for part, one in parts.items()
            if one is not None
        ]  # fmt: skip
        shipped = [
            [part, reader_name, f"{one['found']} of {one['nodules']}", interval(one["sensitivity"]),
             interval(one["false_positives_per_scan"], 2)]
            for reader_name, of in group["shipped"].items()
            for part, one in of.items()
        ]  # fmt: skip
        subgroups = subgroups_table(group["subgroups"], f"{title}, in % by subgroup")
        shown.append(Rows(heads, cells, title))
        names = ["", "reader", "findings", "share", "false findings a scan"]
        shown.append(Rows(names, shipped, f"{title}: at the threshold of findings"))
        for key, part in (("minus_edge", "all nodules"), ("minus_edge_from_5_mm", "5 mm and more")):
            if group[key] is not None:
                minus = f"{title} minus edge, paired: {part}"
                shown.append(gain_table(group[key], minus))
        shown.append(subgroups)
    rest = result["not_placed"]
    remarks = [f"Not placed for lack of room: {', '.join(rest)}."] if rest else []
    return [*shown, result["semi_synthetic"], result["false_positives"], *remarks]


def draw_sheet(scans: Sequence[SyntheticScan[PreparedHost]], most: int = 24) -> UInt8Array:
    """Draw insertions as uint8 ``(height, width)``: axial, coronal, sagittal; before above after.

    The scans shown are spread over all, with at most `_PER_SCAN` insertions each.
    """
    strips: list[UInt8Array] = []
    for scan in scans[:: max(1, len(scans) // (most // _PER_SCAN + 2))]:
        host = scan.host.host
        after = preprocess(insert(host.volume, scan.insertions), host.name)
        strips += [
            _strip(scan.host.space.box, after, insertion, host.name)
            for insertion in scan.insertions[:_PER_SCAN]
        ]
    strips = strips[:most]
    if not strips:
        return np.zeros((1, 1), np.uint8)
    padded = strips + [np.zeros_like(strips[0])] * (-len(strips) % _COLUMNS)
    rows = [np.hstack(padded[i : i + _COLUMNS]) for i in range(0, len(padded), _COLUMNS)]
    return np.vstack(rows)


def save_sheet(path: Path, sheet: UInt8Array) -> None:
    """Write the sheet as PNG.

    Raises:
        MissingData: the folder does not exist, or the file cannot be written.
    """
    _, png = cv2.imencode(".png", sheet)
    try:
        path.write_bytes(png.tobytes())
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error


def _strip(
    before: Preprocessed, after: Preprocessed, insertion: Insertion, host: str
) -> UInt8Array:
    side = int(max(48, 2 * round(insertion.diameter_mm)))
    rows, middle, size = list[UInt8Array](), side // 2, (_TILE_PX, _TILE_PX)
    for box in (before, after):
        roi = cut_roi(box.voxels, box.geometry.to_index(insertion.centre_mm), (side,) * 3)
        # axial, coronal and sagittal planes through the insertion, head up
        planes = map(np.ascontiguousarray, (roi[middle], roi[::-1, middle], roi[::-1, :, middle]))
        tiles = [cv2.resize(plane, size, interpolation=cv2.INTER_CUBIC) for plane in planes]
        rows.append(np.hstack(tiles))
    strip = np.vstack(rows)
    text = f"{insertion.donor.name} {insertion.diameter_mm:.1f} mm, {host}"
    cv2.putText(strip, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, 255, 1, cv2.LINE_AA)
    return np.asarray(np.pad(strip, 2, constant_values=255), np.uint8)
