"""A synthetic chest CT with nodules whose position, size and kind are known exactly.

`make_phantom` draws a random patient from a seed, paints the anatomy in layers, grows the trees of
the lungs, draws nodules, and scans the result. The same specification gives the same voxels. It
is not a model of any real patient, and shows no disease but nodules and sometimes emphysema.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from imaging.phantom.body import (
    Bones,
    Patient,
    Thorax,
    draw_patient,
    make_abdomen,
    make_bones,
    make_thorax,
)
from imaging.phantom.fields import Field, Lattice, make_lattice, smooth_noise
from imaging.phantom.layers import AIR_HU, Layer, Raster, paint
from imaging.phantom.lungs import draw_trees, grow_trees, make_lungs
from imaging.phantom.mediastinum import Mediastinum, make_mediastinum
from imaging.phantom.nodules import (
    PlacedNodule,
    Surroundings,
    draw_nodule,
    label_nodule,
    place_nodules,
)
from imaging.phantom.scanner import IMITATED, KERNELS, Kernel, Scanner, scan
from imaging.volume import (
    Geometry,
    HuArray,
    Nodule,
    StudyHeader,
    Triple,
    UInt8Array,
    Volume,
    triple,
)

Progress = Callable[[float, str], None]
"""Called with the share done, from 0 to 1, and the current step."""

TRAINING_SEED = 100_000
"""Phantoms of this seed and above are for training; measurements use smaller seeds."""

_FINE_MM = 1.25
_CENTRE_MM = (0.0, 12.0, -38.0)
_MUSCLE_HU = 52.0


@dataclass(frozen=True)
class PhantomSpec:
    """Specification of a phantom.

    Attributes:
        seed: determines everything random.
        spacing_mm: voxel spacing ``(z, y, x)``.
        size_mm: field of view ``(z, y, x)``, around the centre of the chest.
        nodule_count: number of nodules; fewer only if the field of view has no room.
        diameter_mm: range of their diameters.
        kernel: sharpness of edges and grain of the noise: soft, standard or sharp.
        dose_noise_hu: standard deviation of the noise in the chest.
    """

    seed: int
    spacing_mm: Triple = (1.0, 0.75, 0.75)
    size_mm: Triple = (300.0, 360.0, 360.0)
    nodule_count: int = 5
    diameter_mm: tuple[float, float] = (4.0, 30.0)
    kernel: Kernel = "soft"
    dose_noise_hu: float = 18.0

    def __post_init__(self) -> None:
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm={self.spacing_mm} must be positive")
        if min(self.shape) < 2:
            raise ValueError(f"size_mm={self.size_mm} gives {self.shape} voxels, at least 2 needed")
        if not 0 < self.diameter_mm[0] <= self.diameter_mm[1]:
            raise ValueError(f"diameter_mm={self.diameter_mm} must be a rising positive range")
        if not 0 <= self.nodule_count <= 255:
            raise ValueError(f"nodule_count={self.nodule_count} must be 0 to 255")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel={self.kernel!r} must be one of {KERNELS}")
        if self.dose_noise_hu < 0:
            raise ValueError(f"dose_noise_hu={self.dose_noise_hu} must not be negative")

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
            as drawn, cut off at the pleura and without its spicules.
        nodule_mask: uint8 ``(z, y, x)``, i + 1 inside ``nodules[i]``, 0 elsewhere.
    """

    volume: Volume
    nodules: tuple[Nodule, ...]
    nodule_mask: UInt8Array


def make_phantom(spec: PhantomSpec, progress: Progress | None = None) -> Phantom:
    """Make the phantom that ``spec`` describes."""
    report = progress or (lambda _share, _step: None)
    # one generator per stage, so that a change in one leaves the others alone
    seeds = np.random.SeedSequence(spec.seed).spawn(6)
    rngs = [np.random.default_rng(s) for s in seeds[:5]]
    patient = draw_patient(rngs[0])
    report(0.0, "anatomy")
    corner_mm = triple(_CENTRE_MM - (np.asarray(spec.shape) * spec.spacing_mm)[::-1] / 2)
    raster = Raster(spec.shape, spec.spacing_mm, corner_mm)
    # the anatomy has thinner voxels where slices are thick
    per_slice = int(np.ceil(spec.spacing_mm[0] / _FINE_MM))
    fine = Raster(
        (spec.shape[0] * per_slice, *spec.shape[1:]),
        (spec.spacing_mm[0] / per_slice, *spec.spacing_mm[1:]),
        corner_mm,
    )
    size_mm = np.asarray(fine.shape) * fine.spacing_mm
    lattice = make_lattice(np.asarray(corner_mm), size_mm[::-1], patient.scale, rngs[1])
    thorax = make_thorax(lattice, patient)
    bones = make_bones(lattice, patient, thorax)
    mediastinum = make_mediastinum(lattice, patient, bones)
    abdomen = make_abdomen(lattice, thorax, rngs[1])
    lungs = make_lungs(lattice, patient, thorax, mediastinum, rngs[1])
    grain = smooth_noise(lattice.shape, lattice.step_mm, 7.0, rngs[1])
    report(0.15, "vessels and airways")
    trees = grow_trees(lattice, lungs, rngs[2])
    vessels, lumens = draw_trees(trees, fine)
    above_diaphragm = np.maximum(thorax.cavity, -thorax.diaphragm)
    hu = paint(
        fine,
        [
            *_tissues(lattice, patient, thorax, bones, mediastinum, abdomen, grain),
            Layer(lungs.lungs, lungs.tissue_hu),
            Layer(lungs.fissures, -600.0, sheet_mm=0.4, within=lungs.lungs),
            # vessels also cross the fat of the mediastinum
            Layer(above_diaphragm, patient.blood_hu, drawn=vessels),
            Layer(above_diaphragm, AIR_HU, drawn=lumens),
            Layer(mediastinum.airway - 1.6, 20.0, opacity=0.9),
            Layer(mediastinum.airway, AIR_HU),
        ],
        lambda share: report(0.3 + 0.3 * share, "tissues"),
    )
    report(0.6, "nodules")
    site = Surroundings(lattice, lungs.lungs, thorax.cavity, trees)
    nodules = place_nodules(site, spec.nodule_count, spec.diameter_mm, rngs[3])
    for nodule in nodules:
        draw_nodule(hu, fine, site, nodule, rngs[3])
    scanned = scan(
        hu,
        fine.spacing_mm[0],
        spec.shape[0],
        Scanner(spec.spacing_mm, spec.kernel, spec.dose_noise_hu),
        seeds[5],
        lambda share: report(0.65 + 0.35 * share, "scan"),
    )
    return _result(spec, scanned, nodules, site, raster, rngs[4])


def phantom_header(spec: PhantomSpec) -> StudyHeader:
    """Make a header that says "phantom" in the fields of the patient."""
    return StudyHeader(
        patient_id=f"PHANTOM-{spec.seed}",
        patient_name="SYNTHETIC^PHANTOM",
        sex="O",
        age="060Y",
        manufacturer="Overread phantom",
        kernel=IMITATED[spec.kernel],
        series_description=f"SYNTHETIC PHANTOM seed {spec.seed}",
    )


def _result(
    spec: PhantomSpec,
    hu: HuArray,
    placed: list[PlacedNodule],
    site: Surroundings,
    raster: Raster,
    rng: np.random.Generator,
) -> Phantom:
    """Move the scan to patient coordinates: the table position along z is random."""
    shift = np.array([0.0, -150.0, float(np.round(rng.uniform(-400, 100), 1))])
    first = np.asarray(raster.corner_mm) + np.asarray(spec.spacing_mm)[::-1] / 2 + shift
    mask = np.zeros(spec.shape, dtype=np.uint8)
    for label, nodule in enumerate(placed, start=1):
        label_nodule(mask, raster, site, nodule, label)
    geometry = Geometry(spec.spacing_mm, triple(first))
    volume = Volume(hu, geometry, description=f"SYNTHETIC PHANTOM seed {spec.seed}")
    truths = (nodule.truth for nodule in placed)
    nodules = (replace(t, centre_mm=triple(np.asarray(t.centre_mm) + shift)) for t in truths)
    return Phantom(volume, tuple(nodules), mask)


def _tissues(
    lattice: Lattice,
    patient: Patient,
    thorax: Thorax,
    bones: Bones,
    mediastinum: Mediastinum,
    abdomen: tuple[Field, ...],
    grain: Field,
) -> list[Layer]:
    """Layer everything but the lungs and the airways, in the order of painting."""
    fat = (-102 + 7 * grain).astype(np.float32)
    marbled = (_MUSCLE_HU + 9 * grain).astype(np.float32)
    liver, spleen, stomach, fluid, gas = abdomen
    enhanced = 45.0 if patient.blood_hu > 60 else 0.0
    midriff = np.abs(np.maximum(thorax.diaphragm, thorax.cavity) + 1) - 1.2
    spongy = (190 + 45 * grain).astype(np.float32)
    calcified = (95 + 160 * patient.calcium * np.clip(grain - 1, 0, 3)).astype(np.float32)
    # the two shells of the table, shallow troughs under the back
    counts, steps, starts = lattice.shape[:0:-1], lattice.step_mm[:2], lattice.start_mm[:2]
    x, y = (np.arange(n) * s + a for n, s, a in zip(counts, steps, starts, strict=True))
    below = (y[:, None] - 166.0 + 0.00055 * x**2).astype(np.float32)
    shells = [np.broadcast_to(below - depth, lattice.shape) for depth in (0.0, 19.0)]
    return [
        # the wall: skin, fat and muscles in sheets, and fat in the cavity before its organs
        Layer(thorax.skin, fat, shell_hu=20.0, shell_mm=1.8),
        Layer(thorax.muscle, marbled),
        Layer(np.maximum(np.abs(thorax.cavity - 13.5) - 0.8, thorax.muscle), -85.0, opacity=0.8),
        Layer(np.maximum(np.abs(thorax.cavity - 29) - 1.0, thorax.muscle), -85.0, opacity=0.8),
        Layer(thorax.cavity, fat),
        Layer(np.maximum(midriff, thorax.cavity), _MUSCLE_HU),
        Layer(liver, (58 + enhanced + 5 * grain).astype(np.float32)),
        Layer(spleen, 50.0 + enhanced),
        Layer(stomach, 45.0),
        Layer(fluid, 15.0),
        Layer(gas, -960.0),
        Layer(mediastinum.nodes, 45.0),
        Layer(mediastinum.oesophagus, 40.0),
        Layer(mediastinum.heart, 50.0 if patient.blood_hu < 60 else 90.0),
        Layer(mediastinum.blood, patient.blood_hu),
        Layer(bones.cartilage, calcified),
        Layer(bones.vertebrae, spongy, shell_hu=460.0, shell_mm=1.4),
        Layer(bones.discs, 85.0),
        Layer(bones.arches, spongy + 120, shell_hu=560.0, shell_mm=1.4),
        Layer(bones.canal, 28.0),
        Layer(bones.ribs, spongy, shell_hu=620.0, shell_mm=1.5),
        Layer(bones.sternum, (spongy - 60).astype(np.float32), shell_hu=380.0, shell_mm=1.2),
        Layer(bones.shoulder, spongy, shell_hu=640.0, shell_mm=1.6),
        *(Layer(shell.astype(np.float32), -150.0, sheet_mm=1.6) for shell in shells),
    ]
