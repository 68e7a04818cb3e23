"""``overread-eval nodules``: sensitivity on cubes of nodules, false positives on whole scans.

A cube holds a nodule with its surroundings, a whole scan everything that may be mistaken for one.
The same reader reads both, and one threshold serves both. A reader is any function from a lung box
to candidates; `evaluation.accuracy.readers` has the product's own.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.accuracy.bootstrap import (
    RESAMPLES,
    Figures,
    cost_table,
    difference,
    figures,
    finite,
    froc_table,
    gain_table,
)
from evaluation.accuracy.data import Cube, read_cubes
from evaluation.accuracy.froc import (
    RATES,
    TARGETS,
    Curve,
    Scored,
    froc,
    match_scan,
    sensitivity_at,
    threshold_at,
    threshold_within,
)
from evaluation.accuracy.readers import STAGES, Reads, Stage, StageOption, open_agent
from evaluation.accuracy.subgroups import by_subgroup, read_traits, subgroups_table
from evaluation.accuracy.truth import RIM_MM, UNKNOWN, Lesion, Truth, scan_name, scans_of_splits
from evaluation.common import cli
from evaluation.common.tables import rate_name
from evaluation.errors import MissingData
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, Geometry, Triple, triple
from models.charts import new_figure, save_png
from models.markdown import Rows
from models.runtime.detection import Candidate, Peaks, strongest
from models.runtime.screener import MOST_CANDIDATES
from models.training.tiles import tiles

CAVEAT = "Only some lesions of each scan are known: a few of the false positives may be true."

Detection = tuple[Triple, float]
"""A location ``(x, y, z)`` LPS mm and its score."""


@dataclass(frozen=True, eq=False)
class ScanScores:
    """One scan: scores of its false positives ``(m,)``, highest score on each known lesion.

    ``lesion_score`` ``(len(lesions),)`` is ``-inf`` where no detection hit the lesion.
    """

    name: str
    false_score: FloatArray
    lesions: tuple[Lesion, ...]
    lesion_score: FloatArray

    def false_above(self, threshold: float) -> int:
        """Return the number of false positives at or above ``threshold``."""
        return int((self.false_score >= threshold).sum())


@dataclass(frozen=True, eq=False)
class NoduleScores:
    """All cubes and scans as one reader read them.

    ``nodule_score`` is ``(n,)``, ``patients`` names the patient of each nodule.
    """

    nodule_score: FloatArray
    patients: tuple[str, ...]
    scans: tuple[ScanScores, ...]

    @property
    def scored(self) -> Scored:
        """Return the input of the FROC: nodules by patient, false positives by scan."""
        _, group = np.unique(self.patients, return_inverse=True)
        false = [scan.false_score for scan in self.scans]
        return Scored.of(self.nodule_score, group, false, paired=False)


class Context(Enum):
    """The surroundings in which false positives are read."""

    WHOLE = "whole"
    SAME = "same"


def nodules_command(
    data: cli.Data,
    split: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Splits of the cubes and of the scans.")
    ],
    scans: cli.Scans,
    truth: cli.Marks,
    more_scans: cli.MoreScans = None,
    stage: StageOption = Stage.EDGE,
    context: Annotated[
        Context,
        typer.Option(help="False positives of whole scans, or of tiles as large as the cubes."),
    ] = Context.WHOLE,
    model: cli.Model = None,
    cloud_model: cli.CloudModel = None,
    plot: cli.Plot = None,
    limit: cli.Limit = 0,
    resamples: cli.Resamples = RESAMPLES,
    seed: cli.Seed = 0,
    as_json: cli.Json = False,
) -> None:
    """Sensitivity on cubes of nodules against false positives on whole scans."""
    splits = tuple(split.split(","))
    folders, known = cli.known_scans(scans, more_scans, truth)
    folders = scans_of_splits(folders, known, splits)
    cubes = read_cubes(data, splits)[: limit or None]
    same = context is Context.SAME
    agent = open_agent(stage, model, cloud_model)
    reads, least = agent.reads(stage, outlined=not same), agent.thresholds.finding
    cube_scores = [read_cube(cube, reads) for cube in cli.each(cubes, "nodules")]
    # tiles have a progress bar for each scan
    scan_scores = [
        read_scan(folder, known.get(scan_name(folder), UNKNOWN), tiled(reads) if same else reads)
        for folder in (folders if same else cli.each(folders, "scans"))
    ]
    patients = tuple(cube.patient for cube in cubes)
    by_stage = {
        one: NoduleScores(
            np.array([scores[one] for scores in cube_scores], float),
            patients,
            tuple(scores[one] for scores in scan_scores),
        )
        for one in scan_scores[0]
    }
    read = by_stage[stage]
    with cli.counting("bootstrap") as step:
        value = figures(read.scored, resamples=resamples, seed=seed, on_step=step)
    subgroups = by_subgroup(read.scored, read_traits(data, cubes), resamples=resamples, seed=seed)
    result: dict[str, Any] = {
        "stage": stage.value,
        "split": split,
        "context": context.value,
        **as_dict(read, value),
        "findings": {
            STAGES[one]: {
                "nodules": int((of.nodule_score >= least).sum()),
                "false": sum(scan.false_above(least) for scan in of.scans),
            }
            for one, of in by_stage.items()
        },
        "subgroups": subgroups,
    }
    counts = f"{len(cubes)} nodules, {len(folders)} scans"
    heads = ["reader", "nodules that are findings", "false findings"]
    cells = [[name, one["nodules"], one["false"]] for name, one in result["findings"].items()]
    shown: list[Rows | str] = [Rows(heads, cells, f"At the threshold of findings, {least:.3f}")]
    if stage is not Stage.EDGE:
        edge = by_stage[Stage.EDGE].scored
        gain = difference(edge, read.scored, resamples=resamples, seed=seed).as_dict()
        result["minus_edge"] = gain
        shown.append(gain_table(gain, f"{STAGES[stage]} minus edge, paired"))
    if plot is not None:
        save_chart(draw_curves({"": froc(read.scored)}, f"{stage.value}: {counts}"), plot)
    cli.show(
        result,
        as_json,
        froc_table(value, f"{counts}, {STAGES[stage]}"),
        *shown,
        cost_table(value),
        subgroups_table(subgroups, f"Sensitivity in % by subgroup, {STAGES[stage]}"),
        scans_table(result["scans"]),
        CAVEAT,
    )


def read_cube(cube: Cube, reads: Reads) -> dict[Stage, float]:
    """Return by stage the highest score of a candidate that hits the nodule, ``-inf`` if none."""
    return {
        stage: max((c.score for c in found if cube.hit_by(c.index_zyx)), default=-np.inf)
        for stage, found in reads(Preprocessed(cube.voxels, Geometry())).items()
    }


def read_scan(folder: Path, truth: Truth, reads: Reads) -> dict[Stage, ScanScores]:
    """Read one whole scan from its files, as the agent reads it; return its scores by stage."""
    box = preprocess(read_study(folder).volume, folder)
    return {
        stage: score_scan(scan_name(folder), [(c.centre_mm, c.score) for c in found], truth)
        for stage, found in reads(box).items()
    }


def tiled(reads: Reads) -> Reads:
    """Return a reader of boxes in overlapping tiles, each cut as the cubes of nodules are.

    Every network sees the tile alone, and the second reader's ROI ends where the tile ends.
    """

    def read(box: Preprocessed) -> dict[Stage, list[Candidate]]:
        found = defaultdict[Stage, list[Candidate]](list)
        places = list(tiles(box.voxels.shape))
        for place, (low, high) in cli.each(places, "tiles"):
            start = np.array([one.start for one in place], float)
            voxels = np.ascontiguousarray(box.voxels[place])
            tile = Preprocessed(voxels, box.geometry.cropped(start))
            for stage, candidates in reads(tile).items():
                kept = found[stage]
                for one in candidates:
                    index = np.array(one.index_zyx)
                    whole = index + start
                    # each place lies in the middle of one tile, and counts there
                    in_core = (index >= low - 0.5).all() and (index < high - 0.5).all()
                    if in_core and box.inside(whole[None])[0]:
                        kept.append(replace(one, index_zyx=triple(whole)))
        return {stage: strongest_apart(candidates) for stage, candidates in found.items()}

    return read


def strongest_apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the strongest candidates of all tiles, apart as those of one box are."""
    peaks = Peaks(
        np.array([one.score for one in candidates], float),
        np.array([one.index_zyx for one in candidates], float).reshape(-1, 3),
        np.array([one.diameter_mm for one in candidates], float),
    )
    kept = strongest([peaks], MOST_CANDIDATES)
    by_place = {one.index_zyx: one for one in candidates}
    return [by_place[triple(index)] for index in kept.index_zyx]


def score_scan(
    name: str, detections: Iterable[Detection], truth: Truth, *, rim_mm: float = RIM_MM
) -> ScanScores:
    """Sort the detections of one scan into hits and false positives, by the rules of LUNA16.

    A lesion has the highest score of the detections that hit it. A detection within ``rim_mm``
    outside a lesion, or on an ignored place, is not counted. Every other one is a false positive.
    """
    rows = [(*location, score) for location, score in detections]
    found = np.array(rows, np.float64).reshape(-1, 4)
    best, false, _, _ = match_scan(found, *truth.spheres(rim_mm))
    return ScanScores(name, false, truth.lesions, best)


def as_dict(scores: NoduleScores, figures: Figures) -> dict[str, Any]:
    """Return the result for JSON; a figure that no threshold reaches is None."""
    curve = froc(scores.scored)
    by_rate, by_target = threshold_within(curve), threshold_at(curve)
    return {
        "nodules": scores.nodule_score.size,
        "patients": len(set(scores.patients)),
        "proposed": int(np.isfinite(scores.nodule_score).sum()),
        "sensitivity": figures.points(by_rate),
        "cpm": figures.cpm.as_dict(),
        "fp_at": figures.costs(by_target),
        "scans": [_scan_json(scan, by_rate, by_target) for scan in scores.scans],
        "without": _without_each(scores),
        "caveat": CAVEAT,
    }


def _without_each(scores: NoduleScores) -> list[dict[str, Any]]:
    """Return the sensitivities and the CPM with each scan left out in turn."""
    found = []
    for left_out in scores.scans if len(scores.scans) > 1 else ():
        rest = tuple(scan for scan in scores.scans if scan is not left_out)
        at = sensitivity_at(froc(replace(scores, scans=rest).scored))
        by_rate = {f"{rate:g}": float(value) for rate, value in zip(RATES, at, strict=True)}
        found.append({"scan": left_out.name, "sensitivity": by_rate, "cpm": float(at.mean())})
    return found


def _scan_json(scan: ScanScores, by_rate: FloatArray, by_target: FloatArray) -> dict[str, Any]:
    def false_above(threshold: float) -> int | None:
        return scan.false_above(threshold) if np.isfinite(threshold) else None

    return {
        "scan": scan.name,
        "proposed_false": scan.false_score.size,
        "false_positives": {
            f"{rate:g}": scan.false_above(t) for rate, t in zip(RATES, by_rate, strict=True)
        },
        "false_positives_at": {
            f"{100 * target:g}": false_above(t)
            for target, t in zip(TARGETS, by_target, strict=True)
        },
        "lesion_score": finite(scan.lesion_score.max(initial=-np.inf)),
        "lesions": [
            {
                "centre_mm": list(lesion.centre_mm),
                "diameter_mm": lesion.diameter_mm,
                "score": finite(score),
                "false_positives_above": false_above(score),
            }
            for lesion, score in zip(scan.lesions, scan.lesion_score, strict=True)
        ],
    }


def scans_table(scans: Sequence[Mapping[str, Any]]) -> Rows:
    """Return each scan with its false positives at the seven rates, and its lesions' scores."""

    def joined(lesions: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
        values = [lesion[key] for lesion in lesions]
        texts = ["not proposed" if value is None else form.format(value) for value in values]
        return ", ".join(texts) or "none known"

    cells = [
        [scan["scan"], *scan["false_positives"].values(),
         joined(scan["lesions"], "score", "{:.3f}"),
         joined(scan["lesions"], "false_positives_above", "{}")]
        for scan in scans
    ]  # fmt: skip
    heads = ["scan", *(rate_name(rate) for rate in RATES), "lesion's score", "false above it"]
    return Rows(heads, cells, "False positives of each scan at the operating points")


def draw_curves(curves: Mapping[str, Curve], title: str) -> Any:
    """Draw curves by name with the seven rates as grid lines; return the figure."""
    figure = new_figure(9, 6.4)
    axes = figure.subplots()
    for name, curve in curves.items():
        shown = curve.false_per_scan <= RATES[-1]
        # The last threshold within the axes holds to their end; a log scale does not show zero.
        rate = np.append(curve.false_per_scan[shown], RATES[-1])
        sensitivity = np.append(curve.sensitivity[shown], curve.sensitivity[shown][-1])
        axes.step(np.maximum(rate, RATES[0]), sensitivity, where="post", linewidth=2, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, [rate_name(rate) for rate in RATES])
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set(xlim=(RATES[0], RATES[-1]), ylim=(0, 1.01), title=f"FROC curve, {title}")
    axes.set(xlabel="false positives per scan", ylabel="sensitivity")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(loc="lower right")
    return figure


def save_chart(figure: Any, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        MissingData: the folder does not exist, or the file cannot be written.
    """
    try:
        save_png(figure, path)
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error
