"""``overread-eval nodules``: which cubes and scans are read, by whom, and how it is shown."""

from __future__ import annotations

from typing import Annotated

import typer

from evaluation import nodules
from evaluation.bands import by_band, read_traits
from evaluation.bootstrap import RESAMPLES, figures
from evaluation.cubes import read_cubes
from evaluation.froc import froc
from evaluation.open_readers import Stage, open_reads
from evaluation.options import (
    CloudModel,
    Csv,
    Data,
    Json,
    Model,
    MoreScans,
    Plot,
    Resamples,
    Scans,
    Seed,
    Split,
)
from evaluation.plot import save_curve
from evaluation.progress import counting, each
from evaluation.show import remark_unknown, show
from evaluation.tables import bands_table, cost_table, froc_table, scans_table
from evaluation.truth import read_truth, scan_folders, scan_name


def nodules_command(
    data: Data,
    split: Split,
    scans: Scans,
    truth: Csv,
    more_scans: MoreScans = None,
    stage: Annotated[Stage, typer.Option(help="The edge alone, or edge and cloud.")] = Stage.EDGE,
    model: Model = None,
    cloud_model: CloudModel = None,
    surround: Annotated[
        int, typer.Option(min=0, help="Mirror cubes into boxes of this side; 0: as they are.")
    ] = 0,
    plot: Plot = None,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Sensitivity on cubes of nodules against false positives on whole scans."""
    known = read_truth(truth)
    folders = scan_folders([*scans, *(more_scans or [])], set(known))
    remark_unknown(folders, known)
    cubes = read_cubes(data, tuple(split.split(",")))
    reads = open_reads(stage, model, cloud_model)
    with_truth = [(folder, known.get(scan_name(folder), ())) for folder in folders]
    read = nodules.read_all(each(cubes, "nodules"), each(with_truth, "scans"), reads, surround)
    with counting("bootstrap") as step:
        value = figures(read.scored, resamples=resamples, seed=seed, on_step=step)
    bands = by_band(read.scored, read_traits(data, cubes), resamples=resamples, seed=seed)
    asked = {"stage": stage.value, "split": split, "surround": surround}
    result = {**asked, **nodules.as_json(read, value, bands)}
    counts = f"{len(cubes)} nodules, {len(folders)} scans"
    if plot is not None:
        save_curve(plot, froc(read.scored), f"{stage.value}: {counts}")
    show(
        result,
        as_json,
        froc_table(value, f"{counts}, {stage.value}"),
        cost_table(value),
        bands_table(bands, f"Sensitivity in % by band, {stage.value}"),
        scans_table(result["scans"]),
        nodules.CAVEAT,
    )
