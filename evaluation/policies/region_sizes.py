"""What a second reading of a smaller region is worth beside that of the full one.

The candidates are those that the edge sees in cubes of nodules: the nodule itself, and what it
takes for one beside it. Each is read in every size in which it may be sent, as the cloud reads it,
and merged with the edge's score. Only a candidate that fits is counted, and beside the full size
only the same ones are.

``overread-eval sizes``: what smaller regions are worth; `edge.selection` holds what it gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from cloud.limits import pad
from edge.decide import Thresholds
from edge.merge import MergeWeights
from edge.screen import EdgeReader
from edge.selection import SELECTION_POLICY, Size
from edge.settings import load_settings
from evaluation.accuracy.data import Cube, read_cubes
from evaluation.common.cli import CloudModel, Data, Json, Split, each, show
from evaluation.common.readers import Reads, ReadsRegions, open_second
from evaluation.common.tables import columns_table
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry
from models.auc import auc
from models.markdown import Rows
from models.runtime.detection import Candidate
from models.runtime.screener import open_screener

BATCH = 8


@dataclass(frozen=True, eq=False)
class Asked:
    """Candidates ``(n,)``: whether each is the cube's nodule, its score, and its probabilities.

    ``said`` holds the second reader's word by size, NaN where a candidate does not fit.
    """

    nodule: npt.NDArray[np.bool_]
    score: FloatArray
    said: dict[Size, FloatArray]


def read_sizes(
    cubes: Iterable[Cube], screens: Reads, model: ReadsRegions, thresholds: Thresholds
) -> Asked:
    """Every candidate of the cubes that is not dismissed, in every size."""
    nodule: list[bool] = []
    score: list[float] = []
    said: dict[Size, list[float]] = {size: [] for size in Size}
    for cube in cubes:
        found = [
            candidate
            for candidate in screens(Preprocessed(cube.voxels, Geometry()))
            if candidate.score >= thresholds.dismiss
        ]
        nodule += [cube.hit_by(candidate.index_zyx) for candidate in found]
        score += [candidate.score for candidate in found]
        for size in Size:
            said[size] += _said(cube, found, size, model)
    arrays = {size: np.array(values, float) for size, values in said.items()}
    return Asked(np.array(nodule, bool), np.array(score, float), arrays)


def as_dict(asked: Asked, thresholds: Thresholds, weights: MergeWeights) -> dict[str, Any]:
    """How each size agrees with the full one, and the share of its worth."""
    return {
        "candidates": asked.nodule.size,
        "nodules": int(asked.nodule.sum()),
        "threshold": thresholds.final,
        "sizes": [_size(asked, size, thresholds, weights) for size in Size],
    }


def _said(cube: Cube, found: Sequence[Candidate], size: Size, model: ReadsRegions) -> list[float]:
    """The second reader's probability of each candidate; NaN where that size may not be sent."""
    full = model.roi_shape
    fits = [size in SELECTION_POLICY.sizes_for(one.diameter_mm, full) for one in found]
    regions = [
        pad(cut_roi(cube.voxels, one.index_zyx, size.shape_of(full)), full)
        for one, may in zip(found, fits, strict=True)
        if may
    ]
    read: list[float] = []
    for start in range(0, len(regions), BATCH):
        read += model.read(np.stack(regions[start : start + BATCH])).probability.tolist()
    answers = iter(read)
    return [next(answers) if may else float("nan") for may in fits]


def _size(
    asked: Asked, size: Size, thresholds: Thresholds, weights: MergeWeights
) -> dict[str, Any]:
    fits = np.isfinite(asked.said[size])
    nodule, score = asked.nodule[fits], asked.score[fits]
    here, full = (
        np.array([weights.merged(*pair) for pair in zip(score, asked.said[s][fits], strict=True)])
        for s in (size, Size.FULL)
    )
    found, found_full = here >= thresholds.final, full >= thresholds.final
    return {
        "size": size.value,
        "candidates": int(fits.sum()),
        "nodules": int(nodule.sum()),
        "agreement": float((found == found_full).mean()),
        "sensitivity": float(found[nodule].mean()),
        "sensitivity_full": float(found_full[nodule].mean()),
        "false_share": float(found[~nodule].mean()),
        "false_share_full": float(found_full[~nodule].mean()),
        "auc": auc(asked.said[size][fits], nodule),
        "auc_full": auc(asked.said[Size.FULL][fits], nodule),
        "share": _share(asked, size, fits),
    }


def _share(asked: Asked, size: Size, fits: npt.NDArray[np.bool_]) -> float:
    """What of the full reading's power to tell nodules apart is left: of 2 AUC - 1, in [0, 1]."""
    nodule = asked.nodule[fits]
    here, full = (2 * auc(asked.said[s][fits], nodule) - 1 for s in (size, Size.FULL))
    return float(np.clip(here / full, 0.0, 1.0)) if full > 0 else 0.0


_COLUMNS = {
    "size": ("size", "{}"),
    "candidates": ("candidates", "{}"),
    "nodules": ("nodules", "{}"),
    "agreement": ("as the full one", "{:.1%}"),
    "sensitivity": ("found", "{:.1%}"),
    "sensitivity_full": ("found, full", "{:.1%}"),
    "false_share": ("others taken", "{:.1%}"),
    "false_share_full": ("others, full", "{:.1%}"),
    "auc": ("AUC", "{:.3f}"),
    "auc_full": ("AUC, full", "{:.3f}"),
    "share": ("share", "{:.2f}"),
}


def sizes_command(
    data: Data,
    split: Split = "val",
    every: Annotated[int, typer.Option(min=1, help="Every so many-th cube only.")] = 1,
    cloud_model: CloudModel = None,
    as_json: Json = False,
) -> None:
    """The second reader's verdicts on full, reduced and slab regions of the same candidates."""
    settings = load_settings()
    screener = open_screener(settings.screening_model, engine=settings.engine)
    reader, second = EdgeReader.of(screener), open_second(cloud_model)
    cubes = read_cubes(data, tuple(split.split(",")))[::every]
    asked = read_sizes(each(cubes, "cubes"), reader.screen, second, reader.thresholds)
    result = {
        "split": split,
        "cubes": len(cubes),
        "models": [reader.label, second.name],
        **as_dict(asked, reader.thresholds, reader.weights),
    }
    show(result, as_json, _table(result))


def _table(result: dict[str, Any]) -> Rows:
    title = f"{result['cubes']} cubes of {result['split']}"
    return columns_table(_COLUMNS, result["sizes"], title)
