"""A synthetic chest CT with nodules whose place, size and kind are known exactly.

`make_phantom` draws a random patient from a seed, grows the trees of the lungs, puts nodules in,
and takes the picture as a scanner would. The same specification gives the same voxels. It is not
a model of any real patient and shows no disease but the nodules and, sometimes, emphysema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from imaging.phantom.anatomy import Anatomy, make_anatomy
from imaging.phantom.fields import Lattice, make_lattice
from imaging.phantom.implant import Implant, draw_implant, mark_implant, plan_implants
from imaging.phantom.layers import LungLayer, Raster, paint
from imaging.phantom.lungs import Trees, draw_trees, grow_trees
from imaging.phantom.nodules import Site
from imaging.phantom.patient import Patient, draw_patient
from imaging.phantom.scanner import KERNELS, Kernel, Scanner, scan
from imaging.volume import (
    FloatArray,
    Geometry,
    HuArray,
    Nodule,
    StudyHeader,
    Triple,
    UInt8Array,
    Volume,
)

Progress = Callable[[float, str], None]
"""Called with the part done, 0..1, and what is being done."""

TRAINING_SEED = 100_000
"""Phantoms of this seed and above are learnt from; what is measured is measured on smaller ones."""

_FINE_MM = 1.25
_MIDDLE_MM = (0.0, 12.0, -38.0)


@dataclass(frozen=True)
class PhantomSpec:
    """What is to be made.

    Attributes:
        seed: everything random follows from it.
        spacing_mm: voxel spacing ``(z, y, x)``.
        size_mm: field of view ``(z, y, x)``, around the middle of the chest.
        nodule_count: how many nodules; fewer only where the field of view has no room.
        diameter_mm: range of their diameters.
        kernel: sharpness of edges and grain of the noise: soft, standard or sharp.
        dose_noise_hu: standard deviation of the noise in the chest.
        slice_thickness_mm: over what the scanner averages along z; None means the spacing.
    """

    seed: int
    spacing_mm: Triple = (1.0, 0.75, 0.75)
    size_mm: Triple = (300.0, 360.0, 360.0)
    nodule_count: int = 5
    diameter_mm: tuple[float, float] = (4.0, 30.0)
    kernel: Kernel = "soft"
    dose_noise_hu: float = 18.0
    slice_thickness_mm: float | None = None

    def __post_init__(self) -> None:
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm={self.spacing_mm} must be positive")
        if min(self.shape) < 2:
            raise ValueError(f"size_mm={self.size_mm} makes only {self.shape} voxels")
        if not 0 < self.diameter_mm[0] <= self.diameter_mm[1]:
            raise ValueError(f"diameter_mm={self.diameter_mm} must be a rising positive range")
        if not 0 <= self.nodule_count <= 255:
            raise ValueError(f"nodule_count={self.nodule_count} must lie in 0..255")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel={self.kernel!r} is none of {KERNELS}")
        if self.dose_noise_hu < 0:
            raise ValueError(f"dose_noise_hu={self.dose_noise_hu} must not be negative")
        if self.slice_thickness_mm is not None and self.slice_thickness_mm <= 0:
            raise ValueError(f"slice_thickness_mm={self.slice_thickness_mm} must be positive")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels ``(z, y, x)``."""
        z, y, x = (round(n / s) for n, s in zip(self.size_mm, self.spacing_mm, strict=True))
        return z, y, x


@dataclass(frozen=True, eq=False)
class Phantom:
    """A phantom with its truth.

    Attributes:
        volume: the CT, int16 HU, patient axes (x to the left, y to the back, z to the head).
        nodules: centre (centroid) and diameter (of the sphere of equal volume) of every nodule
            as it was drawn, cut off at the pleura and without its spicules.
        nodule_mask: uint8 ``(z, y, x)``, i + 1 inside ``nodules[i]``, 0 elsewhere.
    """

    volume: Volume
    nodules: tuple[Nodule, ...]
    nodule_mask: UInt8Array


def make_phantom(spec: PhantomSpec, progress: Progress | None = None) -> Phantom:
    """The phantom that ``spec`` describes."""
    say = progress or _silent
    seeds = np.random.SeedSequence(spec.seed).spawn(6)
    rngs = [np.random.default_rng(s) for s in seeds[:5]]
    patient = draw_patient(rngs[0])
    say(0.0, "anatomy")
    fine, corner = _fine_raster(spec), _corner(spec)
    lattice = _lattice(fine, corner, patient, rngs[1])
    anatomy = make_anatomy(lattice, patient, rngs[1])
    say(0.15, "vessels and airways")
    trees = grow_trees(lattice, anatomy.lungs, rngs[2])
    hu = _painted(anatomy, trees, fine, corner, patient, say)
    say(0.6, "nodules")
    site = Site(lattice, anatomy.lungs.lungs, anatomy.thorax.cavity, trees)
    implants = plan_implants(site, spec.nodule_count, spec.diameter_mm, rngs[3])
    for implant in implants:
        draw_implant(hu, fine, corner, site, implant, rngs[3])
    scanned = scan(
        hu,
        fine.spacing_mm[0],
        spec.shape[0],
        _scanner(spec),
        seeds[5],
        lambda part: say(0.65 + 0.35 * part, "scan"),
    )
    return _result(spec, scanned, implants, site, corner, rngs[4])


def varied_spec(seed: int) -> PhantomSpec:
    """A phantom by a scanner and a protocol drawn from the seed too, as training wants them.

    Slices of 0.75 to 2.5 mm, every kernel, doses from screening to diagnostic.
    """
    rng = np.random.default_rng([seed, 1])
    pixel = float(np.round(rng.uniform(0.62, 0.86), 3))
    kernel = KERNELS[int(rng.integers(len(KERNELS)))]
    noise = {"soft": (8, 25), "standard": (12, 35), "sharp": (25, 70)}[kernel]
    slice_mm = float(rng.choice([0.75, 1.0, 1.25, 1.5, 2.0, 2.5]))
    return PhantomSpec(
        seed=seed,
        spacing_mm=(slice_mm, pixel, pixel),
        size_mm=(300.0, 360.0, 360.0),
        nodule_count=int(rng.integers(3, 9)),
        kernel=kernel,
        dose_noise_hu=float(rng.uniform(*noise)),
        slice_thickness_mm=float(np.round(slice_mm * rng.uniform(1.0, 1.25), 2)),
    )


def phantom_header(spec: PhantomSpec) -> StudyHeader:
    """A header that says what it is wherever a patient would be named."""
    return StudyHeader(
        patient_id=f"PHANTOM-{spec.seed}",
        patient_name="SYNTHETIC^PHANTOM",
        sex="O",
        manufacturer="Overread phantom",
        kernel=spec.kernel,
        series_description=f"SYNTHETIC PHANTOM seed {spec.seed}",
    )


def _silent(part: float, what: str) -> None:
    """Nobody watches."""


def _fine_raster(spec: PhantomSpec) -> Raster:
    """The anatomy's voxels: those of the result, thinner along z where its slices are thick."""
    per_slice = int(np.ceil(spec.spacing_mm[0] / _FINE_MM))
    z, y, x = spec.shape
    return Raster((z * per_slice, y, x), (spec.spacing_mm[0] / per_slice, *spec.spacing_mm[1:]))


def _corner(spec: PhantomSpec) -> FloatArray:
    """World point ``(x, y, z)`` of the outer corner of voxel (0, 0, 0)."""
    size = np.asarray(spec.shape) * spec.spacing_mm
    return np.asarray(_MIDDLE_MM) - size[::-1] / 2


def _lattice(
    raster: Raster, corner: FloatArray, patient: Patient, rng: np.random.Generator
) -> Lattice:
    size = np.asarray(raster.shape) * raster.spacing_mm
    return make_lattice(corner, size[::-1], patient.scale, rng)


def _painted(
    anatomy: Anatomy,
    trees: Trees,
    fine: Raster,
    corner: FloatArray,
    patient: Patient,
    say: Progress,
) -> HuArray:
    solid, lumens = draw_trees(trees, fine, corner)
    reach = np.maximum(anatomy.thorax.cavity, -anatomy.thorax.diaphragm)
    found = anatomy.lungs
    lungs = LungLayer(
        found.lungs, found.tissue_hu, found.fissures, reach, solid, lumens, patient.blood_hu
    )
    return paint(fine, anatomy.under, lungs, anatomy.over, lambda p: say(0.3 + 0.3 * p, "tissues"))


def _scanner(spec: PhantomSpec) -> Scanner:
    thick = spec.slice_thickness_mm or spec.spacing_mm[0]
    return Scanner(spec.spacing_mm, thick, spec.kernel, spec.dose_noise_hu)


def _result(
    spec: PhantomSpec,
    hu: HuArray,
    implants: list[Implant],
    site: Site,
    corner: FloatArray,
    rng: np.random.Generator,
) -> Phantom:
    """The scan in a patient's coordinates: the table stands somewhere along z."""
    shift = np.array([0.0, -150.0, float(np.round(rng.uniform(-400, 100), 1))])
    first = corner + np.asarray(spec.spacing_mm)[::-1] / 2 + shift
    mask = np.zeros(spec.shape, dtype=np.uint8)
    raster = Raster(spec.shape, spec.spacing_mm)
    for i, implant in enumerate(implants):
        mark_implant(mask, raster, corner, site, implant, i + 1)
    x, y, z = first.tolist()
    geometry = Geometry(spec.spacing_mm, (x, y, z))
    volume = Volume(hu, geometry, description=f"SYNTHETIC PHANTOM seed {spec.seed}")
    nodules = tuple(_shifted(implant.truth, shift) for implant in implants)
    return Phantom(volume, nodules, mask)


def _shifted(nodule: Nodule, shift: FloatArray) -> Nodule:
    x, y, z = (np.asarray(nodule.centre_mm) + shift).tolist()
    return replace(nodule, centre_mm=(x, y, z))
