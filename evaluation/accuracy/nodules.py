"""Sensitivity on cubes of nodules against false positives on whole scans, at one threshold.

A cube holds a nodule with its surroundings, a whole scan everything that is taken for one by
mistake; the same reader goes over both. The computation is here, the reading is not: a reader is
any function from a box to candidates (`evaluation.common.readers` gives the agent's own).

Only some lesions of a scan are known, so a few of the false positives may be true.

What the marks on one whole scan are worth, given the lesions that are known of it.

``overread-eval nodules``: which cubes and scans are read, by whom, and how it is shown.

An FROC curve as a chart: false positives per scan on a log scale, sensitivity upwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.accuracy.bootstrap import RESAMPLES, Figures, cost_table, figures, froc_table
from evaluation.accuracy.data import (
    RIM_MM,
    Cube,
    Lesion,
    read_cubes,
    read_truth,
    scan_folders,
    scan_name,
)
from evaluation.accuracy.froc import (
    RATES,
    TARGETS,
    Curve,
    Scored,
    froc,
    sensitivity_at,
    threshold_at,
    threshold_within,
)
from evaluation.accuracy.subgroups import by_subgroup, read_traits, subgroups_table
from evaluation.common.cli import (
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
    counting,
    each,
    remark_unknown,
    show,
)
from evaluation.common.readers import Reads, Stage, open_reads
from evaluation.common.tables import rate_name
from evaluation.errors import MissingData
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, Geometry, Triple
from models.charts import new_figure, save_png
from models.markdown import Rows


def scans_table(scans: Sequence[Mapping[str, Any]]) -> Rows:
    """Each scan with its false positives at the seven rates and the score of its lesion."""
    cells = [
        [scan["scan"], *scan["false_positives"].values(),
         _list([lesion["score"] for lesion in scan["lesions"]], "{:.3f}"),
         _list([lesion["false_positives_above"] for lesion in scan["lesions"]], "{}")]
        for scan in scans
    ]  # fmt: skip
    heads = ["scan", *(rate_name(rate) for rate in RATES), "lesion's score", "false above it"]
    return Rows(heads, cells, "False positives of each scan at the operating points")


def _list(values: Sequence[float | None], form: str) -> str:
    return (
        ", ".join("not proposed" if v is None else form.format(v) for v in values) or "none known"
    )


Mark = tuple[Triple, float]
"""A place ``(x, y, z)`` LPS mm and its score."""


@dataclass(frozen=True, eq=False)
class ScanScores:
    """One scan: scores of its false positives ``(m,)``, highest score on each known lesion.

    ``lesion_score`` ``(len(lesions),)`` is ``-inf`` where no mark hit the lesion.
    """

    name: str
    false_score: FloatArray
    lesions: tuple[Lesion, ...]
    lesion_score: FloatArray

    def false_above(self, threshold: float) -> int:
        """How many false positives score `threshold` or more."""
        return int((self.false_score >= threshold).sum())


def score_scan(
    name: str,
    marks: Iterable[Mark],
    lesions: tuple[Lesion, ...],
    ignored: tuple[Lesion, ...] = (),
    *,
    rim_mm: float = RIM_MM,
) -> ScanScores:
    """The marks of one scan, sorted into hits of `lesions` and false positives.

    A mark within a lesion's reach scores for it, the highest one counts. Within `rim_mm` outside
    it, and on what is `ignored`, a mark counts neither way. Every other mark is false.
    """
    found = list(marks)
    known = (*lesions, *ignored)
    false = [score for place, score in found if not any(x.covers(place, rim_mm) for x in known)]
    best = [
        max((score for place, score in found if lesion.hit_by(place)), default=-np.inf)
        for lesion in lesions
    ]
    return ScanScores(name, np.array(false, float), lesions, np.array(best, float))


CAVEAT = "Only some lesions of each scan are known: a few of the false positives may be true."


@dataclass(frozen=True, eq=False)
class NoduleScores:
    """Everything that was read; ``nodule_score`` ``(n,)``, ``patients`` names each one's."""

    nodule_score: FloatArray
    patients: tuple[str, ...]
    scans: tuple[ScanScores, ...]

    @property
    def scored(self) -> Scored:
        """What the FROC is made of: nodules by patient, false positives by scan."""
        _, group = np.unique(self.patients, return_inverse=True)
        counts = [scan.false_score.size for scan in self.scans]
        return Scored(
            nodule_score=self.nodule_score,
            nodule_group=group.astype(np.int64),
            false_score=np.concatenate([scan.false_score for scan in self.scans]),
            false_scan=np.repeat(np.arange(len(self.scans)), counts),
            scans=len(self.scans),
            paired=False,
        )


def read_cube(cube: Cube, reads: Reads, surround: int = 0) -> float:
    """The highest score of a candidate that hits the cube's nodule, ``-inf`` if none does.

    ``surround`` is as for `surrounded`.
    """
    seen = surrounded(cube, surround)
    found = reads(Preprocessed(seen.voxels, Geometry()))
    return max((c.score for c in found if seen.hit_by(c.index_zyx)), default=-np.inf)


def surrounded(cube: Cube, side: int) -> Cube:
    """The cube in the middle of a box of ``side`` voxels, filled with its own mirror images.

    A network sees the faces of a small box, and with them that a nodule is in its middle; a scan
    gives no such hint. A side that is no larger leaves the cube as it is.
    """
    grown = [max(0, side - n) for n in cube.voxels.shape]
    pad = [(n // 2, n - n // 2) for n in grown]
    z, y, x = (at + before for at, (before, _) in zip(cube.centre_zyx, pad, strict=True))
    return replace(cube, voxels=np.pad(cube.voxels, pad, mode="symmetric"), centre_zyx=(z, y, x))


def read_scan(folder: Path, lesions: tuple[Lesion, ...], reads: Reads) -> ScanScores:
    """One whole scan from its files, read as the agent reads it.

    Raises:
        StudyError: the scan cannot be read.
    """
    box = preprocess(read_study(folder).volume, folder)
    marks = [(candidate.centre_mm, candidate.score) for candidate in reads(box)]
    return score_scan(scan_name(folder), marks, lesions)


def read_all(
    cubes: Iterable[Cube],
    scans: Iterable[tuple[Path, tuple[Lesion, ...]]],
    reads: Reads,
    surround: int = 0,
) -> NoduleScores:
    """Everything through one reader: cubes, and whole scans with what is known of them.

    ``surround`` is as for `surrounded`.

    Raises:
        StudyError: a scan cannot be read.
    """
    found = [(read_cube(cube, reads, surround), cube.patient) for cube in cubes]
    read = tuple(read_scan(folder, lesions, reads) for folder, lesions in scans)
    score = np.array([score for score, _ in found], float)
    return NoduleScores(score, tuple(patient for _, patient in found), read)


def as_dict(
    scores: NoduleScores, figures: Figures, subgroups: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The result for machines; a figure that no threshold reaches is None.

    ``subgroups`` are the figures of `evaluation.accuracy.subgroups`, where they were taken.
    """
    curve = froc(scores.scored)
    by_rate, by_target = threshold_within(curve), threshold_at(curve)
    return {
        "nodules": scores.nodule_score.size,
        "patients": len(set(scores.patients)),
        "proposed": int(np.isfinite(scores.nodule_score).sum()),
        "sensitivity": [
            {"false_positives_per_scan": rate, "threshold": _finite(t), **value.as_dict()}
            for rate, t, value in zip(RATES, by_rate, figures.sensitivity, strict=True)
        ],
        "cpm": figures.cpm.as_dict(),
        "fp_at": {
            f"{100 * target:g}": {"threshold": _finite(t), **value.as_dict()}
            for target, t, value in zip(TARGETS, by_target, figures.false_positives, strict=True)
        },
        "scans": [_scan_json(scan, by_rate, by_target) for scan in scores.scans],
        "without": without_each(scores),
        "caveat": CAVEAT,
        **({} if subgroups is None else {"subgroups": subgroups}),
    }


def without_each(scores: NoduleScores) -> list[dict[str, Any]]:
    """The sensitivities and the CPM with each scan left out in turn: what hangs on one scan."""
    found = []
    for left_out in scores.scans if len(scores.scans) > 1 else ():
        rest = tuple(scan for scan in scores.scans if scan is not left_out)
        at = sensitivity_at(froc(replace(scores, scans=rest).scored))
        by_rate = {f"{rate:g}": float(value) for rate, value in zip(RATES, at, strict=True)}
        found.append({"scan": left_out.name, "sensitivity": by_rate, "cpm": float(at.mean())})
    return found


def _scan_json(scan: ScanScores, by_rate: FloatArray, by_target: FloatArray) -> dict[str, Any]:
    best = scan.lesion_score.max(initial=-np.inf)
    return {
        "scan": scan.name,
        "proposed_false": scan.false_score.size,
        "false_positives": {
            f"{rate:g}": scan.false_above(t) for rate, t in zip(RATES, by_rate, strict=True)
        },
        "false_positives_at": {
            f"{100 * target:g}": scan.false_above(t) if np.isfinite(t) else None
            for target, t in zip(TARGETS, by_target, strict=True)
        },
        "lesion_score": _finite(best),
        "lesions": [
            {
                "centre_mm": list(lesion.centre_mm),
                "diameter_mm": lesion.diameter_mm,
                "score": _finite(score),
                "false_positives_above": scan.false_above(score) if np.isfinite(score) else None,
            }
            for lesion, score in zip(scan.lesions, scan.lesion_score, strict=True)
        ],
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def draw_curve(curve: Curve, title: str) -> Any:
    """The figure, with the seven rates as grid lines."""
    figure = new_figure(9, 6.4)
    axes = figure.subplots()
    shown = curve.false_per_scan <= RATES[-1]
    # The last threshold within the axes holds up to their end; zero has no place on a log scale.
    rate = np.append(curve.false_per_scan[shown], RATES[-1])
    sensitivity = np.append(curve.sensitivity[shown], curve.sensitivity[shown][-1])
    axes.step(np.maximum(rate, RATES[0]), sensitivity, where="post", linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, [rate_name(rate) for rate in RATES])
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set(xlim=(RATES[0], RATES[-1]), ylim=(0, 1.01), title=f"FROC curve, {title}")
    axes.set(xlabel="false positives per scan", ylabel="sensitivity")
    axes.grid(alpha=0.3)
    return figure


def save_curve(path: Path, curve: Curve, title: str) -> None:
    """Writes the chart as PNG; errors as `save_chart`."""
    save_chart(draw_curve(curve, title), path)


def save_chart(figure: Any, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
        MissingData: there is no such folder, or it cannot be written.
    """
    try:
        save_png(figure, path)
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error


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
    read = read_all(each(cubes, "nodules"), each(with_truth, "scans"), reads, surround)
    with counting("bootstrap") as step:
        value = figures(read.scored, resamples=resamples, seed=seed, on_step=step)
    subgroups = by_subgroup(read.scored, read_traits(data, cubes), resamples=resamples, seed=seed)
    asked = {"stage": stage.value, "split": split, "surround": surround}
    result = {**asked, **as_dict(read, value, subgroups)}
    counts = f"{len(cubes)} nodules, {len(folders)} scans"
    if plot is not None:
        save_curve(plot, froc(read.scored), f"{stage.value}: {counts}")
    show(
        result,
        as_json,
        froc_table(value, f"{counts}, {stage.value}"),
        cost_table(value),
        subgroups_table(subgroups, f"Sensitivity in % by subgroup, {stage.value}"),
        scans_table(result["scans"]),
        CAVEAT,
    )
