"""``overread-eval nodules``: sensitivity on cubes of nodules, false positives in equal context.

A cube holds a nodule with its surroundings, a whole scan everything that may be mistaken for one.
The same reader reads both, and one threshold serves both. A nodule scores higher in a cube than in
a whole lung, so scans are read in tiles that are cut as the cubes are. These figures compare
networks; whole scans are the measure that counts.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.accuracy.bootstrap import RATE_COLUMNS, difference, figures
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.options import Data, Marks, MoreScans, Scans, Split, marked_scans
from evaluation.accuracy.readers import STAGES, Reads, Stage, StageOption, open_agent
from evaluation.accuracy.truth import ScanScores, Truth, scan_name, score_scan
from evaluation.run import CloudModel, Model, Table, command, each
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Geometry, triple
from models.data.cubes import Cube, read_cubes
from models.runtime.detection import Candidate, Peaks, strongest
from models.runtime.screener import MAX_CANDIDATES
from models.training.tiles import tiles

CAVEAT = "Only some lesions of each scan are known: a few of the false positives may be true."


@command(
    Table("curves", {"reader": "reader", **RATE_COLUMNS},
          title="Sensitivity in % on {nodules} nodules of {patients} patients, {split}"),
    "{caveat}",
)  # fmt: skip
def nodules(
    data: Data,
    split: Split,
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    stage: StageOption = Stage.EDGE,
    model: Model = None,
    cloud_model: CloudModel = None,
) -> dict[str, Any]:
    """Sensitivity on cubes of nodules against false positives of scans in tiles as large."""
    splits = tuple(split.split(","))
    folders, known = marked_scans(scans, more_scans, truth, splits)
    cubes = read_cubes(data, splits)
    agent = open_agent(stage, model, cloud_model)
    # the outline of a finding may be cut by a face, which would move its centre
    reads = agent.reads(stage, outlined=False)
    by_cube = [read_cube(cube, reads) for cube in each(cubes, "nodules")]
    by_scan = [read_scan(one, known[scan_name(one)], reads) for one in folders]
    of = {one: joined(cubes, by_cube, by_scan, one) for one in by_scan[0]}
    gain = None if stage is Stage.EDGE else difference(of[Stage.EDGE], of[stage])
    return {
        "split": split,
        "model": agent.label,
        "nodules": len(cubes),
        "patients": len({cube.patient for cube in cubes}),
        "scans": [scan_name(folder) for folder in folders],
        "curves": [
            {"reader": STAGES[reader], **at(scored, agent.thresholds.finding), **figures(scored)}
            for reader, scored in each(of.items(), "bootstrap", len(of))
        ],
        "gain": gain,
        "caveat": CAVEAT,
    }


def joined(
    cubes: Sequence[Cube],
    by_cube: Sequence[dict[Stage, float]],
    by_scan: Sequence[dict[Stage, ScanScores]],
    stage: Stage,
) -> Scored:
    """Return the input of the FROC: nodules by patient, false positives by scan."""
    _, group = np.unique([cube.patient for cube in cubes], return_inverse=True)
    scores = np.array([one[stage] for one in by_cube], float)
    return Scored.of(scores, group, [one[stage].false_score for one in by_scan], paired=False)


def at(scored: Scored, least: float) -> dict[str, int]:
    """Return how many nodules and false candidates have a score of ``least`` or more."""
    return {
        "nodules": scored.nodule_score.size,
        "found": int((scored.nodule_score >= least).sum()),
        "false": int((scored.false_score >= least).sum()),
    }


def read_cube(cube: Cube, reads: Reads) -> dict[Stage, float]:
    """Return by stage the highest score of a candidate that hits the nodule, ``-inf`` if none."""
    return {
        stage: max((c.score for c in found if cube.hit_by(c.index_zyx)), default=-np.inf)
        for stage, found in reads(Preprocessed(cube.voxels, Geometry())).items()
    }


def read_scan(folder: Path, truth: Truth, reads: Reads) -> dict[Stage, ScanScores]:
    """Read one whole scan from its files in tiles; return its scores by stage."""
    box = preprocess(read_study(folder).volume, folder)
    return {
        stage: score_scan([(c.centre_mm, c.score) for c in found], truth)
        for stage, found in tiled(reads)(box).items()
    }


def tiled(reads: Reads) -> Reads:
    """Return a reader of boxes in overlapping tiles, each cut as the cubes of nodules are.

    Every network sees the tile alone, and the second reader's ROI ends where the tile ends.
    """

    def read(box: Preprocessed) -> dict[Stage, list[Candidate]]:
        found = defaultdict[Stage, list[Candidate]](list)
        places = list(tiles(box.voxels.shape))
        for place, (low, high) in each(places, "tiles"):
            start = np.array([one.start for one in place], float)
            voxels = np.ascontiguousarray(box.voxels[place])
            tile = Preprocessed(voxels, box.geometry.cropped(start))
            for stage, candidates in reads(tile).items():
                kept = found[stage]
                for candidate in candidates:
                    index = np.array(candidate.index_zyx)
                    whole = index + start
                    # each place lies in the middle of one tile, and counts there
                    in_core = (index >= low - 0.5).all() and (index < high - 0.5).all()
                    if in_core and box.inside(whole[None])[0]:
                        kept.append(replace(candidate, index_zyx=triple(whole)))
        return {stage: strongest_apart(candidates) for stage, candidates in found.items()}

    return read


def strongest_apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the strongest candidates of all tiles, apart as those of one box are."""
    peaks = Peaks(
        np.array([one.score for one in candidates], float),
        np.array([one.index_zyx for one in candidates], float).reshape(-1, 3),
        np.array([one.diameter_mm for one in candidates], float),
    )
    kept = strongest([peaks], MAX_CANDIDATES)
    by_place = {one.index_zyx: one for one in candidates}
    return [by_place[triple(index)] for index in kept.index_zyx]
