"""``overread-eval sizes``: the value of a second reading of smaller ROIs, for `edge.selection`.

The candidates are those of the edge in cubes of nodules. Each is read in every size in which it
may be sent, as the cloud reads it, and merged with the edge's score. Each size is compared with
the full size on the same candidates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from edge.decide import Thresholds
from edge.merge import MergeWeights
from edge.reader import EdgeReader
from edge.selection import SELECTION_POLICY, Size
from edge.settings.core import load_settings
from evaluation.accuracy.data import Cube, read_cubes
from evaluation.accuracy.readers import RoiReader, Screens, open_second
from evaluation.common.cli import CloudModel, Data, Json, Split, each, show
from evaluation.common.tables import columns_table
from evaluation.policies.cases import as_sent
from imaging.preprocess import Preprocessed
from imaging.volume import FloatArray, Geometry
from models.auc import auc
from models.runtime.screener import open_screener

BATCH = 8


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Candidates ``(n,)``: if each is the cube's nodule, the edge's score, the cloud's by size.

    A score of the cloud is NaN where the candidate may not be sent in that size.
    """

    nodule: npt.NDArray[np.bool_]
    score: FloatArray
    cloud: dict[Size, FloatArray]


def read_sizes(
    cubes: Iterable[Cube], screens: Screens, model: RoiReader, thresholds: Thresholds
) -> Verdicts:
    """Read every candidate of the cubes that is not dismissed, in every size."""
    nodule: list[bool] = []
    score: list[float] = []
    cloud: dict[Size, list[float]] = {size: [] for size in Size}
    full = model.roi_shape
    for cube in cubes:
        screened = screens(Preprocessed(cube.voxels, Geometry()))
        found = [one for one in screened if one.score >= thresholds.dismiss]
        nodule += [cube.hit_by(one.index_zyx) for one in found]
        score += [one.score for one in found]
        for size in Size:
            read = np.full(len(found), np.nan)  # stays where that size may not be sent
            fits = [
                i
                for i, one in enumerate(found)
                if size in SELECTION_POLICY.sizes_for(one.diameter_mm, full)
            ]
            for start in range(0, len(fits), BATCH):
                batch = fits[start : start + BATCH]
                rois = [as_sent(found[i], cube.voxels, size, full) for i in batch]
                read[batch] = model.read(np.stack(rois)).probability
            cloud[size] += read.tolist()
    arrays = {size: np.array(values, float) for size, values in cloud.items()}
    return Verdicts(np.array(nodule, bool), np.array(score, float), arrays)


def as_dict(verdicts: Verdicts, thresholds: Thresholds, weights: MergeWeights) -> dict[str, Any]:
    """Return the figures of each size, and those of the full size on the same candidates."""
    return {
        "candidates": verdicts.nodule.size,
        "nodules": int(verdicts.nodule.sum()),
        "threshold": thresholds.finding,
        "sizes": [_size(verdicts, size, thresholds, weights) for size in Size],
    }


def _size(
    verdicts: Verdicts, size: Size, thresholds: Thresholds, weights: MergeWeights
) -> dict[str, Any]:
    fits = np.isfinite(verdicts.cloud[size])
    nodule, score = verdicts.nodule[fits], verdicts.score[fits]
    cloud = [verdicts.cloud[one][fits] for one in (size, Size.FULL)]
    found, found_full = (
        np.array([weights.merged(*pair, 0.0) for pair in zip(score, scores, strict=True)])
        >= thresholds.finding
        for scores in cloud
    )
    area, area_full = (auc(scores, nodule) for scores in cloud)
    # the share of the full size's power to separate nodules, 2 AUC - 1, that is left
    power, full = 2 * area - 1, 2 * area_full - 1
    return {
        "size": size.value,
        "candidates": int(fits.sum()),
        "nodules": int(nodule.sum()),
        "agreement": float((found == found_full).mean()),
        "sensitivity": float(found[nodule].mean()),
        "sensitivity_full": float(found_full[nodule].mean()),
        "false_share": float(found[~nodule].mean()),
        "false_share_full": float(found_full[~nodule].mean()),
        "auc": area,
        "auc_full": area_full,
        "share": float(np.clip(power / full, 0.0, 1.0)) if full > 0 else 0.0,
    }


COLUMNS = {
    "size": ("size", "{}"),
    "candidates": ("candidates", "{}"),
    "nodules": ("nodules", "{}"),
    "agreement": ("as the full size", "{:.1%}"),
    "sensitivity": ("found", "{:.1%}"),
    "sensitivity_full": ("found, full", "{:.1%}"),
    "false_share": ("others found", "{:.1%}"),
    "false_share_full": ("others, full", "{:.1%}"),
    "auc": ("AUC", "{:.3f}"),
    "auc_full": ("AUC, full", "{:.3f}"),
    "share": ("share", "{:.2f}"),
}


def sizes_command(
    data: Data,
    split: Split = "val",
    every: Annotated[int, typer.Option(min=1, help="Read every Nth cube.")] = 1,
    cloud_model: CloudModel = None,
    as_json: Json = False,
) -> None:
    """The second reader's verdicts on full, reduced and slab ROIs of the same candidates."""
    settings = load_settings()
    screener = open_screener(settings.screening_model, engine=settings.engine)
    reader, second = EdgeReader.of(screener), open_second(cloud_model)
    cubes = read_cubes(data, tuple(split.split(",")))[::every]
    verdicts = read_sizes(each(cubes, "cubes"), reader.screen, second, reader.thresholds)
    result = {
        "split": split,
        "cubes": len(cubes),
        "models": [reader.label, second.name],
        **as_dict(verdicts, reader.thresholds, reader.weights),
    }
    title = f"{len(cubes)} cubes of {split}"
    show(result, as_json, columns_table(COLUMNS, result["sizes"], title))
