"""A synthetic chest CT with nodules whose position, size and kind are known exactly.

`make_phantom` draws a random patient from a seed, paints the anatomy in layers, grows the trees of
the lungs, draws nodules, and scans the result. The same specification gives the same voxels. It
is not a model of any real patient, and shows no disease but nodules.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from imaging.phantom.body import (
    abdomen_layers,
    bone_layers,
    draw_patient,
    make_mediastinum,
    make_thorax,
    wall_layers,
)
from imaging.phantom.fields import make_lattice, smooth_noise
from imaging.phantom.layers import AIR_HU, Layer, Raster, paint
from imaging.phantom.lungs import draw_trees, grow_trees, make_lungs, tissue_hu
from imaging.phantom.nodules import Surroundings, draw_nodule, place_nodules
from imaging.phantom.scanner import scan
from imaging.volume import Geometry, Nodule, StudyHeader, Triple, Volume, triple

Progress = Callable[[float, str], None]
"""Called with the share done, from 0 to 1, and the current step."""

TRAINING_SEED = 100_000
"""Phantoms of this seed and above are for training; measurements use smaller seeds."""

_FINE_MM = 1.25
_CENTRE_MM = (0.0, 12.0, -38.0)


@dataclass(frozen=True)
class PhantomSpec:
    """Specification of a phantom.

    Attributes:
        seed: determines everything random.
        spacing_mm: voxel spacing ``(z, y, x)``.
        size_mm: field of view ``(z, y, x)``, around the centre of the chest.
        nodule_count: number of nodules; fewer only if the field of view has no room.
        diameter_mm: range of their diameters.
        dose_noise_hu: standard deviation of the noise in the chest.
    """

    seed: int
    spacing_mm: Triple = (1.0, 0.75, 0.75)
    size_mm: Triple = (300.0, 360.0, 360.0)
    nodule_count: int = 5
    diameter_mm: tuple[float, float] = (4.0, 30.0)
    dose_noise_hu: float = 18.0

    def __post_init__(self) -> None:
        low_mm, high_mm = self.diameter_mm
        checks = {
            "spacing_mm": (min(self.spacing_mm) > 0, "positive"),
            "size_mm": (min(self.shape) >= 2, "at least 2 voxels"),
            "diameter_mm": (0 < low_mm <= high_mm, "a rising positive range"),
            "nodule_count": (0 <= self.nodule_count <= 255, "0 to 255"),
            "dose_noise_hu": (self.dose_noise_hu >= 0, "0 or more"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {expected}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels ``(z, y, x)``."""
        z, y, x = (
            round(n / max(s, 0.1)) for n, s in zip(self.size_mm, self.spacing_mm, strict=True)
        )
        return z, y, x


@dataclass(frozen=True, eq=False)
class Phantom:
    """A phantom with its truth.

    Attributes:
        volume: the CT, int16 HU, patient axes (x to the left, y to the back, z to the head).
        nodules: centre (centroid) and diameter (of the sphere of equal volume) of every nodule
            as drawn, cut off at the pleura.
    """

    volume: Volume
    nodules: tuple[Nodule, ...]


def make_phantom(spec: PhantomSpec, progress: Progress | None = None) -> Phantom:
    """Make the phantom that ``spec`` describes."""
    report = progress or (lambda _share, _step: None)
    # one generator per stage, so that a change in one leaves the others alone
    seeds = np.random.SeedSequence(spec.seed).spawn(6)
    rngs = [np.random.default_rng(s) for s in seeds[:5]]
    report(0.0, "anatomy")
    patient = draw_patient(rngs[0])
    size_mm = np.asarray(spec.shape) * spec.spacing_mm
    corner_mm = triple(_CENTRE_MM - size_mm[::-1] / 2)
    # the anatomy has thinner voxels where slices are thick
    slices, thin = spec.shape[0], int(np.ceil(spec.spacing_mm[0] / _FINE_MM))
    fine_mm = (spec.spacing_mm[0] / thin, *spec.spacing_mm[1:])
    fine = Raster((slices * thin, *spec.shape[1:]), fine_mm, corner_mm)
    lattice = make_lattice(np.asarray(corner_mm), size_mm[::-1], patient.scale)
    grain = smooth_noise(lattice, 7.0, rngs[1])
    thorax = make_thorax(lattice, patient)
    mediastinum, organs = make_mediastinum(lattice, patient)
    lungs = make_lungs(lattice, thorax, mediastinum)
    report(0.15, "vessels and airways")
    trees = grow_trees(lattice, lungs, rngs[2])
    vessels, lumens = draw_trees(trees, fine)
    # vessels also cross the fat of the mediastinum
    above_diaphragm = np.maximum(thorax.cavity, -thorax.diaphragm)
    # a table with a soft shell, a shallow trough under the back
    x, y, _ = lattice.axes
    table = np.broadcast_to(np.abs(y - 176 + 0.00055 * x**2) - 10, lattice.shape)
    report(0.3, "tissues")
    hu = paint(
        fine,
        [
            Layer(np.asarray(table, np.float32), -920.0, shell_hu=-150.0),
            *wall_layers(lattice, patient, thorax, grain),
            *abdomen_layers(lattice, patient, thorax, grain, rngs[1]),
            *bone_layers(lattice, thorax, grain),
            Layer(lungs, tissue_hu(lattice, patient, lungs, rngs[1])),
            Layer(above_diaphragm, patient.blood_hu, drawn=vessels),
            Layer(above_diaphragm, AIR_HU, drawn=lumens),
            *organs,
        ],
    )
    report(0.6, "nodules")
    site = Surroundings(lattice, lungs, thorax.cavity, trees)
    placed = place_nodules(site, spec.nodule_count, spec.diameter_mm, rngs[3])
    for nodule in placed:
        draw_nodule(hu, fine, site, nodule, rngs[3])
    report(0.65, "scan")
    scanned = scan(hu, spec.spacing_mm, slices, spec.dose_noise_hu, seeds[5])
    report(1.0, "scan")
    # patient coordinates: the position of the table along z is random
    shift = np.array([0.0, -150.0, float(np.round(rngs[4].uniform(-400, 100), 1))])
    first = np.asarray(corner_mm) + np.asarray(spec.spacing_mm)[::-1] / 2 + shift
    geometry = Geometry(spec.spacing_mm, triple(first))
    volume = Volume(scanned, geometry, description=f"SYNTHETIC PHANTOM seed {spec.seed}")
    truths = (nodule.truth for nodule in placed)
    nodules = (replace(t, centre_mm=triple(np.asarray(t.centre_mm) + shift)) for t in truths)
    return Phantom(volume, tuple(nodules))


def phantom_header(spec: PhantomSpec) -> StudyHeader:
    """Make a header that says "phantom" in the fields of the patient."""
    return StudyHeader(
        patient_id=f"PHANTOM-{spec.seed}",
        patient_name="SYNTHETIC^PHANTOM",
        sex="O",
        age="060Y",
        manufacturer="Overread phantom",
        kernel="STANDARD",
        series_description=f"SYNTHETIC PHANTOM seed {spec.seed}",
    )
