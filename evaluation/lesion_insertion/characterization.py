"""``overread-eval characterization``: readings of nodules, and spheres of known size.

The second reader reads every cube at the nodule's own centre, so that detection plays no part. Its
readings are compared with the readers of LIDC-IDRI. Ratings and outlines whose centre lies more
than 5 mm from the nodule's may belong to a neighbour and are not used. Readers draw wider than the
report measures, by `READERS_MM`. The cubes state neither age nor sex, so the Brock model gets
diameter and type from the second reader, and its reference value for everything else.

The spheres are inserted into whole scans with a scanner's blur and read as the agent reads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import typer

from edge.clinical.brock import BrockInputs, probability
from edge.findings import READERS_MM, DecidedBy, Finding, Route
from edge.merge import outlined
from evaluation.accuracy.bootstrap import by_patient
from evaluation.accuracy.options import Data, Marks, MoreScans, Scans, Split, marked_scans
from evaluation.accuracy.readers import Agent, Stage, open_agent, open_second
from evaluation.lesion_insertion.scans import Host, PreparedHost, free_places, load_host
from evaluation.run import SHARE, CloudModel, Table, command, each
from imaging.preprocess import preprocess
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry, Triple
from models.calibration.statistics import auc, logistic
from models.data.cubes import read_cubes
from models.insertion.donors import PLAIN_LUNG_HU, Donor
from models.insertion.insert import insert, plan_nodules
from models.runtime.errors import MissingData
from models.runtime.second_reader import TEXTURES, Reading, SecondReader, nearest_piece

VOTES = 2
"""Readers of four that must have drawn a voxel of the nodule."""

TRUTH = (
    "The truth is the mean rating of the readers, 4 and more against 2 and less: their impression"
    " of the images, not pathology. The score of the network was trained on such ratings, so it is"
    " favoured. Size is one of the things that readers rate by. A published 92.3 % for the fusion"
    " of images with clinical data cannot be reproduced here: age, sex, smoking and pathology are"
    " not in the data. What is fused here is known from the image alone."
)

_FORM = "{:.3f}"
MEASURES = Table(
    "measures", {"measure": "measure", "figure": ("value", _FORM), "from": "taken from"},
    title="{nodules} nodules of {patients} patients, each read at its own centre",
)  # fmt: skip
MALIGNANCY = Table(
    "malignancy",
    {"score": "score", "auc": ("AUC", _FORM), "minus_image": ("minus the image alone", _FORM)},
    title="{malignant} malignant of {rated} rated nodules of {rated_patients} patients",
)

FITTED_ON = "val"
"""The split whose nodules the combination of both scores is fitted on."""

SIZES_MM = (4, 6, 8, 10, 15, 20, 30)
DENSITIES_HU = {"solid": 30.0, "part-solid": -300.0, "ground glass": -650.0}
_BLUR_MM = 0.6


@command(
    MEASURES,
    Table("spheres", {
        "density": "sphere", "diameter_mm": "mm", "measured": "measured", "spheres": "of",
        "bias_mm": ("bias in mm", "{:.2f}"), "error_mm": ("error in mm", "{:.2f}"),
        "volume_error": ("error of the volume", SHARE),
        "edge_bias_mm": ("bias of the edge alone in mm", "{:.2f}"),
    }, title="Spheres of known size in {scans} scans, medians"),
    MALIGNANCY,
    "{truth}",
)  # fmt: skip
def characterization(
    data: Data,
    split: Split,
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    cloud_model: CloudModel = None,
) -> dict[str, Any]:
    """Size, type, outline and malignancy by the second reader; the Brock model; known spheres."""
    splits = tuple(split.split(","))
    if FITTED_ON in splits:
        raise typer.BadParameter(f"--split: the combination is fitted on {FITTED_ON}")
    folders, known = marked_scans(scans, more_scans, truth, splits)
    reader = open_second(cloud_model)
    weights = fit_both(read_characterization(data, (FITTED_ON,), reader))
    read = read_characterization(data, splits, reader)
    agent, rng = open_agent(Stage.BOTH, None, cloud_model), np.random.default_rng(0)
    hosts = (load_host(folder, known) for folder in each(folders, "scans with spheres"))
    return {
        "split": split,
        "fitted_on": FITTED_ON,
        "nodules": len(read.patients),
        "patients": len(set(read.patients)),
        "measures": measures(read),
        "scans": len(folders),
        "spheres": spheres_json([one for host in hosts for one in read_spheres(host, agent, rng)]),
        "rated": read.rated.size,
        "malignant": int(read.malignant[read.rated].sum()),
        "rated_patients": len({read.patients[i] for i in read.rated}),
        "malignancy": malignancy(read, weights),
        "weights": dict(zip(("bias", "image", "brock"), map(float, weights), strict=True)),
        "truth": TRUTH,
    }


@dataclass(frozen=True, eq=False)
class Characterization:
    """Readings of the second reader and of the readers, each ``(n,)``; NaN where there is none.

    ``malignancy`` and ``texture`` are the readers' means, 1 to 5; ``dice`` is the overlap with
    their outline. ``consensus_mm3`` is the volume of the readers' outlines, ``reported_mm3`` and
    ``reported_mm`` are volume and diameter of a report; NaN where a report states no volume.
    """

    patients: tuple[str, ...]
    diameter_mm: FloatArray
    malignancy: FloatArray
    texture: FloatArray
    predicted_diameter_mm: FloatArray
    predicted_malignancy: FloatArray
    predicted_texture: npt.NDArray[np.int64]
    dice: FloatArray
    consensus_mm3: FloatArray
    reported_mm3: FloatArray
    reported_mm: FloatArray

    @property
    def rated(self) -> npt.NDArray[np.int64]:
        """The numbers of the nodules that the readers call malignant or benign."""
        rating = self.malignancy
        return np.flatnonzero(np.isfinite(rating) & ((rating >= 4) | (rating <= 2)))

    @property
    def malignant(self) -> npt.NDArray[np.bool_]:
        """Whether the readers call each nodule malignant."""
        return np.asarray(self.malignancy > 3)


def read_characterization(
    folder: Path, splits: tuple[str, ...], reader: SecondReader
) -> Characterization:
    """Read every cube of ``splits``; errors as `models.data.cubes.read_cubes`.

    Raises:
        MissingData: the readers call no nodule malignant, or none benign.
    """
    # of an index without these columns all figures would be of nothing
    cubes = read_cubes(folder, splits, ("match_mm", "malignancy_mean", "texture_mean"))
    malignancy, texture = (
        np.array([cube.rated(name) for cube in cubes]) for name in ("malignancy", "texture")
    )
    if not ((malignancy >= 4).any() and (malignancy <= 2).any()):
        reason = f"no nodule of {', '.join(splits)} is rated malignant (4 and more), or none benign"
        raise MissingData(folder / "index.csv", reason)
    readings, dice, sizes = [], [], []
    for cube in each(cubes, "nodules"):
        region = cut_roi(cube.voxels, cube.centre_zyx, reader.roi_shape)
        readings.append(reader.read(region[None])[0])
        truth = cut_roi(cube.votes, cube.centre_zyx, reader.roi_shape) >= VOTES
        # of a smaller nodule a voxel's rim is half
        drawn = cube.sure and cube.diameter_mm >= 6.0
        dice.append(overlap(readings[-1], truth) if drawn else np.nan)
        consensus_mm3 = float(nearest_piece(truth).sum()) if drawn else np.nan
        finding = _finding(readings[-1], cube.centre_zyx)
        sizes.append((consensus_mm3, finding.volume_mm3 or np.nan, finding.diameter_mm))
    consensus_mm3, reported_mm3, reported_mm = np.array(sizes).T
    return Characterization(
        patients=tuple(cube.patient for cube in cubes),
        diameter_mm=np.array([cube.diameter_mm for cube in cubes]),
        malignancy=malignancy,
        texture=texture,
        predicted_diameter_mm=np.array([one.diameter_mm for one in readings]),
        predicted_malignancy=np.array([one.malignancy for one in readings]),
        predicted_texture=np.array([TEXTURES.index(one.texture) for one in readings]),
        dice=np.array(dice),
        consensus_mm3=consensus_mm3,
        reported_mm3=reported_mm3,
        reported_mm=reported_mm,
    )


def _finding(reading: Reading, index_zyx: Triple) -> Finding:
    """Return what a report states of a candidate at this place, with this reading."""
    z, y, x = index_zyx
    finding = Finding(
        (x, y, z), reading.diameter_mm, reading.probability, 1.0, DecidedBy.CLOUD, "",
        index_zyx, Route.ESCALATE,
    )  # fmt: skip
    return outlined(finding, reading.mask if reading.mask.any() else None, Geometry())


def overlap(reading: Reading, truth: npt.NDArray[np.bool_]) -> float:
    """Return Dice's coefficient of the outline and the truth, both bool ``(z, y, x)``."""
    both = int((reading.mask & truth).sum())
    return 2 * both / max(int(reading.mask.sum()) + int(truth.sum()), 1)


def measures(read: Characterization) -> Any:
    """Return the rows of `MEASURES`, each with its interval by bootstrap over patients."""
    stated = np.isfinite(read.consensus_mm3) & np.isfinite(read.reported_mm3)
    wider_mm = np.cbrt(6 / np.pi * read.consensus_mm3) - read.reported_mm
    left_mm = wider_mm - READERS_MM
    volume_left = (read.reported_mm / (read.reported_mm + left_mm)) ** 3 - 1
    textured, drawn = np.isfinite(read.texture), np.isfinite(read.dice)
    classes = np.digitize(np.where(textured, read.texture, 5.0), [2.5, 4.0])
    error = read.predicted_diameter_mm - read.diameter_mm
    counts = ((textured & (classes == number)).sum() for number in range(len(TEXTURES)))
    outlines, volumes = f"{drawn.sum()} nodules of 6 mm and more", f"{stated.sum()} nodules"
    rows = {
        "malignancy, AUC: ratings of 4 and more against 2 and less":
            f"{read.malignant[read.rated].sum()} of {read.rated.size}",
        "texture, mean recall of the classes":
            ", ".join(f"{n} {name}" for n, name in zip(counts, TEXTURES, strict=True)),
        "outline against that of readers, who draw wider, median Dice": outlines,
        "volume in the report against the voxels that two of four readers drew, median ratio":
            volumes,
        "diameter of those voxels less that in the report, median in mm": volumes,
        f"error of the diameter when {READERS_MM:g} mm are added to the report's, median in mm":
            volumes,
        "the same as a part of the volume, median": volumes,
        "network's diameter against LUNA16's, mean error in mm": "all",
        "network's diameter against LUNA16's, mean bias in mm": "all",
    }  # fmt: skip

    def figures(chosen: npt.NDArray[np.int64]) -> list[float]:
        rating = chosen[np.isin(chosen, read.rated)]
        texture, outline, volume = (chosen[mask[chosen]] for mask in (textured, drawn, stated))
        right = read.predicted_texture[texture] == classes[texture]
        return [
            auc(read.predicted_malignancy[rating], read.malignant[rating]),
            _mean_recall(right, classes[texture]),
            _median(read.dice[outline]),
            _median(read.reported_mm3[volume] / read.consensus_mm3[volume]),
            _median(wider_mm[volume]),
            _median(np.abs(left_mm[volume])),
            _median(np.abs(volume_left[volume])),
            float(np.abs(error[chosen]).mean()),
            float(error[chosen].mean()),
        ]

    found = by_patient(read.patients, figures)
    return [
        {"measure": measure, "figure": value.as_dict(), "from": source}
        for (measure, source), value in zip(rows.items(), found, strict=True)
    ]


def _mean_recall(right: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64]) -> float:
    """Return the mean over the classes present of the share that was recognised."""
    there = np.unique(classes)
    return float(np.mean([right[classes == one].mean() for one in there])) if there.size else np.nan


def _median(values: FloatArray) -> float:
    return float(np.median(values)) if values.size else np.nan


def brock_scores(read: Characterization) -> FloatArray:
    """Return the Brock model's probability of each nodule ``(n,)``, from diameter and type."""
    given = zip(read.reported_mm.tolist(), read.predicted_texture.tolist(), strict=True)
    inputs = (BrockInputs(diameter_mm=mm, texture=TEXTURES[texture]) for mm, texture in given)
    return np.array([probability(one) for one in inputs])


def fit_both(read: Characterization) -> FloatArray:
    """Fit bias and the weights of both logits ``(3,)`` on the rated nodules."""
    return logistic(_features(read)[read.rated], read.malignant[read.rated])


def _features(read: Characterization) -> FloatArray:
    chances = np.stack([read.predicted_malignancy, brock_scores(read)], axis=1)
    inside = np.clip(chances, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


def malignancy(read: Characterization, weights: FloatArray) -> list[dict[str, Any]]:
    """Return the rows of `MALIGNANCY`: the image alone, the Brock model, and both.

    ``weights`` are those of `fit_both`, fitted on other patients. A difference is of the same draw.
    """
    scores: dict[str, FloatArray] = {
        "malignancy score of the second reader, the image alone": read.predicted_malignancy,
        "Brock model with diameter and type": brock_scores(read),
        "both, by logistic regression": weights[0] + _features(read) @ weights[1:],
    }
    rated = read.rated

    def areas(chosen: npt.NDArray[np.int64]) -> Sequence[float]:
        of = rated[chosen]
        found = [auc(score[of], read.malignant[of]) for score in scores.values()]
        return [*found, *(one - found[0] for one in found[1:])]

    patients = np.array(read.patients)[rated].tolist()
    found = [one.as_dict() for one in by_patient(patients, areas)]
    minus = [None, *found[len(scores) :]]
    return [
        {"score": name, "auc": area, "minus_image": gain}
        for name, area, gain in zip(scores, found, minus, strict=False)
    ]


def sphere(diameter_mm: float, hu: float, shift: FloatArray) -> Donor:
    """Return a blurred sphere, its middle ``shift`` voxels ``(z, y, x)`` from that of its cube."""
    side = int(diameter_mm) + 14
    # the part of each voxel inside, from 4 x 4 x 4 points
    middle, fine = (side - 1) / 2 + shift, (np.arange(4 * side) + 0.5) / 4 - 0.5
    z, y, x = ((fine - centre) ** 2 for centre in middle)
    inside = z[:, None, None] + y[:, None] + x < (diameter_mm / 2) ** 2
    parts = inside.reshape((side, 4) * 3).mean((1, 3, 5), dtype=np.float32)
    cover = np.stack([cv2.GaussianBlur(plane, (0, 0), _BLUR_MM) for plane in parts])
    name, density, (a, b, c) = f"{diameter_mm:g} mm", np.full_like(cover, hu), middle.tolist()
    reach_mm = diameter_mm / 2 + 1.5
    return Donor(name, name, density, cover, (a, b, c), diameter_mm, reach_mm, PLAIN_LUNG_HU)


def read_spheres(
    host: Host, agent: Agent, rng: np.random.Generator
) -> Iterator[tuple[str, float, float, float, bool]]:
    """Yield density, diameter, that of the edge alone, that of the report, and if it is measured.

    The diameters of a sphere that is not found are NaN. A sphere for which there is no room is
    left out.
    """
    space, occupied = free_places(host, preprocess(host.volume, host.name))
    for density, hu in DENSITIES_HU.items():
        donors = [sphere(size, hu, rng.uniform(-0.5, 0.5, 3)) for size in SIZES_MM]
        scans, _ = plan_nodules([PreparedHost(host, space, occupied, {})], donors, 99, rng)
        for scan in scans:
            box = preprocess(insert(host.volume, scan.insertions), host.name)
            reading = agent.read(box, Stage.BOTH)
            merged = (reading.both or reading.alone).merged
            listed = (*merged.findings, *merged.possible)
            for insertion in scan.insertions:
                hit = insertion.hit_by
                edge = next((c.diameter_mm for c in reading.candidates if hit(c.centre_mm)), np.nan)
                sizes = [(f.diameter_mm, bool(f.volume_mm3)) for f in listed if hit(f.centre_mm)]
                yield density, insertion.diameter_mm, edge, *(sizes or [(np.nan, False)])[0]


def spheres_json(read: Sequence[tuple[str, float, float, float, bool]]) -> list[dict[str, Any]]:
    """Return medians by density and size; errors of volumes are parts of it, None is for none."""
    rows = []
    for density, size in ((density, size) for density in DENSITIES_HU for size in SIZES_MM):
        of = np.array([one[1:] for one in read if one[:2] == (density, size)]).reshape(-1, 4)
        _, edge_mm, report_mm, measured = of.T
        values = {
            "bias_mm": report_mm - size,
            "error_mm": np.abs(report_mm - size),
            "volume_error": np.abs((report_mm / size) ** 3 - 1),
            "edge_bias_mm": edge_mm - size,
        }
        known = {name: value[np.isfinite(value)] for name, value in values.items()}
        medians = {n: round(float(np.median(v)), 3) if v.size else None for n, v in known.items()}
        counts = {"spheres": len(of), "measured": int(measured.sum())}
        rows.append({"density": density, "diameter_mm": size, **counts, **medians})
    return rows
