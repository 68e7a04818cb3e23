"""``overread-eval characterization``: what is said of nodules, and the sizes of known spheres.

Spheres are inserted into whole scans with a scanner's blur, and read as the agent reads them. Their
size is known, whereas readers of nodules draw wider than the surface of half contrast.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from evaluation.accuracy.bootstrap import RESAMPLES
from evaluation.accuracy.characterization import (
    as_dict,
    characterization_table,
    read_characterization,
)
from evaluation.accuracy.truth import scans_of_splits
from evaluation.common import cli
from evaluation.common.readers import Agent, Stage, open_agent, open_second
from evaluation.lesion_insertion.donors import Donor
from evaluation.lesion_insertion.hosts import FreeSpace, Host, Occupied, load_host
from evaluation.lesion_insertion.insert import APART_MM, PreparedHost, insert, plan_nodules
from imaging.preprocess import preprocess
from imaging.volume import FloatArray, Nodule
from models.markdown import Rows, number

SIZES_MM = (4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)
DENSITIES_HU = {"solid": 30.0, "part-solid": -300.0, "ground glass": -650.0}
BLUR_MM = 0.6
"""Standard deviation of the blur in a slice; voxels and slices add theirs."""
_LUNG_HU, _FINE = -850.0, 4


@dataclass(frozen=True)
class SphereReading:
    """A sphere with its diameters: by the edge alone, and in the report; NaN where there is none.

    ``measured`` says whether the report states a volume.
    """

    density: str
    diameter_mm: float
    edge_mm: float
    reported_mm: float
    measured: bool


def characterization_command(
    data: cli.Data,
    split: cli.Split,
    scans: cli.Scans,
    truth: cli.Marks,
    more_scans: cli.MoreScans = None,
    cloud_model: cli.CloudModel = None,
    resamples: cli.Resamples = RESAMPLES,
    seed: cli.Seed = 0,
    as_json: cli.Json = False,
) -> None:
    """Malignancy, texture, diameter, outline and volume by the second reader, and known spheres."""
    splits = tuple(split.split(","))
    folders, known = cli.known_scans(scans, more_scans, truth)
    folders = scans_of_splits(folders, known, splits)
    read = read_characterization(data, splits, open_second(cloud_model))
    agent, rng = open_agent(Stage.BOTH, None, cloud_model), np.random.default_rng(seed)
    spheres = [
        sphere
        for folder in cli.each(folders, "scans with spheres")
        for sphere in read_spheres(load_host(folder, known), agent, rng)
    ]
    figures = as_dict(read, resamples=resamples, seed=seed)
    result = {"split": split, **figures, "spheres": spheres_json(spheres), "scans": len(folders)}
    cli.show(result, as_json, characterization_table(result), spheres_table(result["spheres"]))


def sphere(diameter_mm: float, hu: float, shift: FloatArray) -> Donor:
    """Return a blurred sphere, its middle ``shift`` voxels ``(z, y, x)`` from that of its cube."""
    side = int(diameter_mm) + 14
    middle = (side - 1) / 2 + shift
    fine = (np.arange(_FINE * side) + 0.5) / _FINE - 0.5
    z, y, x = ((fine - centre) ** 2 for centre in middle)
    inside = z[:, None, None] + y[:, None] + x < (diameter_mm / 2) ** 2
    parts = inside.reshape((side, _FINE) * 3).mean((1, 3, 5), dtype=np.float32)
    cover = np.stack([cv2.GaussianBlur(plane, (0, 0), BLUR_MM) for plane in parts])
    name, reach_mm = f"sphere of {diameter_mm:g} mm", diameter_mm / 2 + 1.5
    density, (a, b, c) = np.full_like(cover, hu), middle.tolist()
    return Donor(name, name, density, cover, (a, b, c), diameter_mm, reach_mm, _LUNG_HU, 0.0)


def read_spheres(host: Host, agent: Agent, rng: np.random.Generator) -> Iterator[SphereReading]:
    """Insert spheres of every size and density, as far as there is room, and read them."""
    space = FreeSpace.of(preprocess(host.volume, host.name))
    known = (*host.truth.lesions, *host.truth.ignored)
    occupied = tuple(Occupied(one.centre_mm, one.reach_mm + APART_MM) for one in known)
    prepared = PreparedHost(host, space, occupied, {})
    for density, hu in DENSITIES_HU.items():
        donors = [sphere(size, hu, rng.uniform(-0.5, 0.5, 3)) for size in SIZES_MM]
        for scan in plan_nodules([prepared], donors, len(donors), rng)[0]:
            box = preprocess(insert(host.volume, scan.insertions), host.name)
            reading = agent.read(box, Stage.BOTH)
            merged = reading.both.merged if reading.both else reading.alone.merged
            listed = (*merged.findings, *merged.possible)
            for one in scan.insertions:
                hit = Nodule(one.centre_mm, one.diameter_mm).hit_by
                edge = next((c.diameter_mm for c in reading.candidates if hit(c.centre_mm)), np.nan)
                found = next((f for f in listed if hit(f.centre_mm)), None)
                yield SphereReading(
                    density,
                    one.diameter_mm,
                    edge,
                    found.diameter_mm if found else np.nan,
                    bool(found and found.volume_mm3),
                )


def spheres_json(spheres: Sequence[SphereReading]) -> list[dict[str, Any]]:
    """Return medians by density and size, errors in mm and parts of the volume; None for none."""
    rows = []
    for density in DENSITIES_HU:
        for size in SIZES_MM:
            of = [one for one in spheres if (one.density, one.diameter_mm) == (density, size)]
            reported, edge = (
                np.array([getattr(one, name) for one in of]) - size
                for name in ("reported_mm", "edge_mm")
            )
            rows.append({
                "density": density,
                "diameter_mm": size,
                "spheres": len(of),
                "listed": int(np.isfinite(reported).sum()),
                "measured": sum(one.measured for one in of),
                "bias_mm": _median(reported),
                "error_mm": _median(np.abs(reported)),
                "volume_error": _median(np.abs((1 + reported / size) ** 3 - 1)),
                "edge_bias_mm": _median(edge),
            })  # fmt: skip
    return rows


def _median(values: FloatArray) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(np.median(known)), 3) if known.size else None


def spheres_table(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the errors of the reported sizes, with the bias of the edge alone."""
    names = ("bias_mm", "error_mm", "volume_error", "edge_bias_mm")
    cells = [
        [row["density"], f"{row['diameter_mm']:g}", f"{row['measured']} of {row['spheres']}",
         *("" if row[name] is None else number(row[name], 2) for name in names)]
        for row in rows
    ]  # fmt: skip
    heads = ["sphere", "mm", "measured", "bias, mm", "error, mm", "error of volume", "edge's bias"]
    return Rows(heads, cells, "Spheres of known size in whole scans, medians")
