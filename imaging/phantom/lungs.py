"""The lungs: lobes, fissures and tissue, and the trees of airways, arteries and veins.

The trees grow after Kitaoka, Takaki and Suki (J Appl Physiol 87:2207-2217, 1999): a branch serves a
region and grows towards its centre; a plane through the branch splits the region in two, and a
daughter branch grows into each part. The radius of a branch follows from the number of ends that it
serves (Murray's cube law).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imaging.phantom.body import Patient, Thorax, cupula
from imaging.phantom.fields import Field, Lattice, smooth_noise
from imaging.phantom.layers import Raster, stamp_cones
from imaging.phantom.mediastinum import Mediastinum
from imaging.volume import FloatArray, Triple, UInt8Array

_ENDS_MM = 9.5
"""Distance of the ends of the trees: one for every 0.9 ml of lung, as a secondary lobule has."""
_SUBPLEURAL_MM = 2.5
_VESSEL_MM, _AIRWAY_MM = 0.54, 0.42
_AIRWAY_ENDS = 9.0
_EXPONENT = 3.0
_REACH = (0.3, 0.48)
_SHARE = (0.22, 0.78)
_PIECE_MM = 7.0
_BEND = 0.28
_FADE = 0.5  # a last branch tapers to the radius of this many ends


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs on the lattice.

    Attributes:
        lungs: both lungs as one distance field.
        fissures: signed distance to the nearest fissure.
        lobes: 1 right upper, 2 right middle, 3 right lower, 4 left upper, 5 left lower lobe,
            0 outside the lungs.
        tissue_hu: density of the parenchyma.
    """

    lungs: Field
    fissures: Field
    lobes: UInt8Array
    tissue_hu: Field


_HILA: tuple[tuple[Triple, Triple, Triple, Triple], ...] = (
    ((-24, 19, -18), (-1.0, -0.1, 0.5), (-35, -4, -30), (-1.0, -0.4, 0.8)),
    ((-36, 14, -44), (-0.6, -0.9, -0.5), (-35, -4, -32), (-0.8, -0.7, -0.6)),
    ((-34, 19, -26), (-0.3, 0.2, -1.0), (-35, 16, -54), (-0.8, 0.6, -0.6)),
    ((40, 24, -28), (0.8, -0.5, 0.5), (35, -2, -28), (0.8, -0.6, 0.6)),
    ((42, 24, -29), (0.3, 0.2, -1.0), (35, 18, -52), (0.8, 0.5, -0.6)),
)
"""Root and first direction of each lobe's bronchus and of its vein, in the reference body."""


@dataclass(frozen=True, eq=False)
class Tree:
    """Straight pieces of branches.

    Attributes:
        points: ``(n, 2, 3)`` world mm of both ends of every piece.
        along: ``(n, 2, 3)`` unit direction of the branch there.
        ends: ``(n, 2)`` number of ends that the branch serves there; below 1 where it tapers off.
    """

    points: FloatArray
    along: FloatArray
    ends: FloatArray

    def radii(self, terminal_mm: float) -> FloatArray:
        """Compute the radius in mm at both ends of every piece ``(n, 2)``.

        A branch that serves one end has the radius ``terminal_mm``.
        """
        return np.asarray(terminal_mm * self.ends ** (1 / _EXPONENT))


@dataclass(frozen=True, eq=False)
class Trees:
    """Pieces ``(n, 2, 3)`` in world mm with radii ``(n, 2)``: vessels, and airways with walls."""

    vessels: FloatArray
    vessel_radii: FloatArray
    airways: FloatArray
    lumen_radii: FloatArray
    wall_radii: FloatArray


def make_lungs(
    lattice: Lattice,
    patient: Patient,
    thorax: Thorax,
    mediastinum: Mediastinum,
    rng: np.random.Generator,
) -> Lungs:
    """Make the lungs of one patient: the space between chest wall, diaphragm and mediastinum."""
    walls = np.maximum(thorax.cavity + 1.5, cupula(lattice))
    lungs = np.maximum(np.maximum(walls, -thorax.diaphragm), -mediastinum.envelope).astype(
        np.float32
    )
    fissures, lobes = _lobes(lattice, rng)
    lobes = np.where(lungs < 0, lobes, 0).astype(np.uint8)
    return Lungs(lungs, fissures, lobes, _tissue(lattice, patient, lungs, rng))


def _lobes(lattice: Lattice, rng: np.random.Generator) -> tuple[Field, UInt8Array]:
    """Make the oblique fissures of both lungs, the horizontal one of the right, and the lobes."""
    x, y, z = lattice.body
    right = x < 0
    # the fissures are planes with a wave and a bulge, tilted and placed at random
    wave = 1.5 * smooth_noise(lattice.shape, lattice.step_mm, 45.0, rng)
    bulge = 0.0012 * (np.abs(x) - 75) ** 2
    tilt = float(rng.uniform(0.95, 1.1))
    top = np.where(right, -26, -14) + float(rng.uniform(-8, 8))
    oblique = ((z - top - tilt * y) / np.hypot(1, tilt) + wave + bulge).astype(np.float32)
    level = float(rng.uniform(-34, -22))
    horizontal = (z - level + 0.1 * (y + 40) + wave + bulge).astype(np.float32)
    lower = oblique < 0
    lobes = np.where(
        right, np.where(lower, 3, np.where(horizontal < 0, 2, 1)), np.where(lower, 5, 4)
    )
    middle = np.where(right & ~lower, np.abs(horizontal), np.float32(25))
    signed = np.where(np.abs(oblique) <= middle, oblique, horizontal)
    return signed.astype(np.float32), lobes.astype(np.uint8)


def _tissue(lattice: Lattice, patient: Patient, lungs: Field, rng: np.random.Generator) -> Field:
    """Make tissue that is denser towards the back, uneven on every scale, with emphysema."""
    shape, step = lattice.shape, lattice.step_mm
    hu = patient.lung_hu + patient.gravity_hu_per_mm * lattice.body[1]
    # uneven on four scales, from lobes to lobules
    for length, deviation in ((60.0, 9.0), (18.0, 7.0), (6.0, 11.0), (2.6, 14.0)):
        hu = hu + np.float32(deviation) * smooth_noise(shape, step, length, rng)
    # dependent density: a rim along the back wall that fades within millimetres
    behind = np.clip((lattice.body[1] - 40) / 40, 0, 1)
    rim = np.exp(np.minimum(lungs, 0) / 5) * behind
    hu = hu + np.float32(patient.gravity_hu_per_mm * 160) * rim
    if patient.emphysema > 0:
        holes = smooth_noise(shape, step, 9.0, rng) + 0.006 * lattice.body[2] - 1.9
        hu = hu - np.clip(holes + patient.emphysema, 0, 1) * 120
    return np.asarray(np.maximum(hu, -990), dtype=np.float32)


def grow_trees(lattice: Lattice, lungs: Lungs, rng: np.random.Generator) -> Trees:
    """Grow the trees of all lobes in the field of view."""
    bronchial, venous, beside = [], [], []
    for number, (bronchus, bronchus_heading, vein, vein_heading) in enumerate(_HILA, start=1):
        tree = _tree(lattice, lungs, number, bronchus, bronchus_heading, rng)
        bronchial.append(tree)
        beside.append(_beside(tree, side=-1.0 if number <= 3 else 1.0))
        venous.append(_tree(lattice, lungs, number, vein, vein_heading, rng))
    airways, veins = joined_trees(bronchial), joined_trees(venous)
    conducting = airways.ends.min(axis=1) >= _AIRWAY_ENDS
    lumen = airways.radii(_AIRWAY_MM)[conducting]
    return Trees(
        vessels=np.concatenate([*beside, veins.points]),
        vessel_radii=np.concatenate([airways.radii(_VESSEL_MM), veins.radii(_VESSEL_MM)]),
        airways=airways.points[conducting],
        lumen_radii=lumen,
        wall_radii=lumen * 1.15 + 0.4,
    )


def draw_trees(trees: Trees, raster: Raster) -> tuple[UInt8Array, UInt8Array]:
    """Draw the coverage, 0 to 255, of vessels and airway walls, and of lumens, ``(z, y, x)``."""
    solid = np.zeros(raster.shape, dtype=np.uint8)
    lumens = np.zeros(raster.shape, dtype=np.uint8)
    stamp_cones(solid, raster, trees.vessels, trees.vessel_radii)
    stamp_cones(solid, raster, trees.airways, trees.wall_radii)
    stamp_cones(lumens, raster, trees.airways, trees.lumen_radii)
    return solid, lumens


def _tree(
    lattice: Lattice,
    lungs: Lungs,
    lobe: int,
    root: Triple,
    heading: Triple,
    rng: np.random.Generator,
) -> Tree:
    """Grow a tree to ends that fill a lobe evenly, not too near to its surface."""
    # the ends: a grid with random offsets
    size = np.asarray(lattice.shape[::-1]) * lattice.step_mm
    counts = np.maximum((size / _ENDS_MM).astype(int), 1)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in counts], indexing="ij"), axis=-1)
    jittered = grid.reshape(-1, 3) + rng.uniform(0, 1, (counts.prod(), 3))
    points = lattice.start_mm - lattice.step_mm / 2 + jittered * _ENDS_MM
    points = points[lattice.sample(lungs.lungs, points) < -_SUBPLEURAL_MM]
    cell = np.rint((points - lattice.start_mm) / lattice.step_mm).astype(int)
    x, y, z = np.clip(cell, 0, np.asarray(lattice.shape[::-1]) - 1).T
    points = points[lungs.lobes[z, y, x] == lobe]
    return grow(lattice.to_world(root), np.asarray(heading), points, rng)


def _beside(tree: Tree, side: float) -> FloatArray:
    """Place the pieces of the artery ``(n, 2, 3)`` beside the airway, outwards and above."""
    outward = np.array([side, -0.5, 0.8])
    # the part of the direction that is perpendicular to the branch
    across = outward - (tree.along @ outward)[..., None] * tree.along
    across /= np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-6)
    apart = tree.radii(_VESSEL_MM) + tree.radii(_AIRWAY_MM) * 1.1
    apart = np.where(tree.ends >= 2, apart, apart * 0.5)
    return np.asarray(tree.points + across * apart[..., None])


def grow(
    root: FloatArray, heading: FloatArray, points: FloatArray, rng: np.random.Generator
) -> Tree:
    """Grow a tree from ``root`` (3,), first along ``heading`` (3,), to every point ``(n, 3)``."""
    # of each grown branch: a quadratic Bezier curve, and the ends served at its start and stop
    curves: list[FloatArray] = []
    ends: list[tuple[float, float]] = []
    pending = [(root, _unit(heading), points)] if len(points) else []
    while pending:
        start, ahead, served = pending.pop()
        stop, parts = _split(start, served, rng)
        bend = start + ahead * (np.sqrt(((stop - start) ** 2).sum()) * _BEND)
        curves.append(np.array([start, bend, stop]))
        ends.append((len(served), max((len(p) for p in parts), default=_FADE)))
        pending += [(stop, _unit(stop - bend), part) for part in parts]
    return _straightened(np.array(curves).reshape(-1, 3, 3), np.array(ends).reshape(-1, 2))


def joined_trees(trees: Sequence[Tree]) -> Tree:
    """Join the pieces of several trees."""
    trees = [Tree(np.empty((0, 2, 3)), np.empty((0, 2, 3)), np.empty((0, 2))), *trees]
    points, along, ends = (
        np.concatenate([getattr(tree, name) for tree in trees])
        for name in ("points", "along", "ends")
    )
    return Tree(points, along, ends)


def _split(
    start: FloatArray, points: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, list[FloatArray]]:
    """Choose where a branch from ``start`` ends, and the points that each daughter serves."""
    if len(points) == 1:
        return np.asarray(points[0]), []
    to_centre = points.mean(axis=0) - start
    stop = start + to_centre * rng.uniform(*_REACH)
    # sort the points along the widest direction across the branch, the first principal component,
    # and cut at a random share
    along = _unit(to_centre)
    across = points - stop
    across = across - np.outer(across @ along, along)
    widest = across[1] - across[0]
    if len(across) > 2:
        widest = np.linalg.eigh(across.T @ across)[1][:, -1]
    order = np.argsort(across @ widest, kind="stable")
    cut = min(max(round(len(points) * rng.uniform(*_SHARE)), 1), len(points) - 1)
    return stop, [points[order[:cut]], points[order[cut:]]]


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.maximum(length, 1e-9))


def _straightened(curves: FloatArray, ends: FloatArray) -> Tree:
    """Cut all branches into straight pieces, longer branches into more of them."""
    length = np.linalg.norm(curves[:, 2] - curves[:, 0], axis=1)
    counts = np.clip(np.ceil(length / _PIECE_MM), 1, 8).astype(int)
    parts = [_pieces(curves[counts == n], ends[counts == n], n) for n in np.unique(counts).tolist()]
    return joined_trees(parts)


def _pieces(curves: FloatArray, ends: FloatArray, count: int) -> Tree:
    """Cut curves ``(n, 3, 3)`` into ``count`` pieces each, in all ``n * count``."""
    t = np.linspace(0, 1, count + 1)[:, None]
    start, bend, stop = (curves[:, i, None] for i in range(3))
    line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
    along = _unit((1 - t) * (bend - start) + t * (stop - bend))
    served = ends[:, :1] + t[:, 0] * (ends[:, 1:] - ends[:, :1])
    pairs = [np.stack([a[:, :-1], a[:, 1:]], axis=2) for a in (line, along, served)]
    points, directions, served = (p.reshape(-1, *p.shape[2:]) for p in pairs)
    return Tree(points, directions, served)
