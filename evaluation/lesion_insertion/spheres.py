"""``overread-eval characterization``: readings of nodules, and spheres of known size.

The spheres are inserted into whole scans with a scanner's blur and read as the agent reads them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import typer

from evaluation.accuracy.characterization import (
    MALIGNANCY,
    MEASURES,
    TRUTH,
    fit_both,
    malignancy,
    measures,
    read_characterization,
)
from evaluation.accuracy.options import Data, Marks, MoreScans, Scans, Split, marked_scans
from evaluation.accuracy.readers import Agent, Stage, open_agent, open_second
from evaluation.lesion_insertion.scans import Host, PreparedHost, free_places, load_host
from evaluation.result import SHARE, Table
from evaluation.run import CloudModel, command, each
from imaging.preprocess import preprocess
from imaging.volume import FloatArray, Nodule
from models.insertion.donors import PLAIN_LUNG_HU, Donor
from models.insertion.insert import insert, plan_nodules

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
    return Donor(name, name, density, cover, (a, b, c), diameter_mm, reach_mm, PLAIN_LUNG_HU, 0.0)


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
            for one in scan.insertions:
                hit = Nodule(one.centre_mm, one.diameter_mm).hit_by
                edge = next((c.diameter_mm for c in reading.candidates if hit(c.centre_mm)), np.nan)
                sizes = [(f.diameter_mm, bool(f.volume_mm3)) for f in listed if hit(f.centre_mm)]
                yield density, one.diameter_mm, edge, *(sizes or [(np.nan, False)])[0]


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
