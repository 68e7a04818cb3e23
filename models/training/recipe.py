"""The recipes of the two shipped networks: which material, which task, which plan.

Data is laid out as ``DIR/nodules`` (``train.npz``, ``val.npz``, ``index.csv``, ``marks.csv``) and
``DIR/ct`` (a folder for each scan, ``scans.csv`` with its role). Only material of role ``train``
is learnt from; ``val`` is looked at; ``test`` is never opened here.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from imaging.phantom.phantom import TRAINING_SEED, PhantomSpec, make_phantom
from imaging.preprocess import Preprocessed, preprocess
from imaging.roi import cut_roi
from models.networks.screening import ScreeningNetwork
from models.training.augment import Noise
from models.training.compose import Composer
from models.training.hybrid import HybridTask, Trial
from models.training.material import Cubes, load_box, load_cubes
from models.training.piece import NONE, Piece
from models.training.regions import Ratings, RegionDrawer, without_nodules
from models.training.screening import ScreeningTask, false_alarms, look, nodule_logit

PHANTOM_SHARE = 0.25
"""How often a crop of a whole lung is one of a phantom's."""

ALARM_SHARES = (0.5, 0.38, 0.12)
"""How often a false alarm comes from a cube (hundreds of scanners), a whole scan, a phantom."""


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that the recipes use: cubes and whole scans of training and of validation."""

    learnt: Cubes
    scans: tuple[Piece, ...]
    phantoms: tuple[Piece, ...]
    val_cubes: tuple[Piece, ...]
    val_scans: tuple[Piece, ...]

    @property
    def composer(self) -> Composer:
        """The sampler over the training part."""
        weights = [(1 - PHANTOM_SHARE) / len(self.scans)] * len(self.scans)
        weights += [PHANTOM_SHARE / max(len(self.phantoms), 1)] * len(self.phantoms)
        return Composer(self.learnt.pieces, (*self.scans, *self.phantoms), scan_weights=weights)


def load_material(data: Path, phantoms: Path, phantom_count: int) -> Material:
    """Reads the data; makes the phantoms that ``phantoms`` (a cache folder) lacks."""
    return Material(
        load_cubes(data / "nodules", "train"),
        scans_of_role(data / "ct", "train"),
        tuple(load_phantoms(phantoms, phantom_count)),
        load_cubes(data / "nodules", "val").pieces,
        scans_of_role(data / "ct", "val"),
    )


def scans_of_role(folder: Path, role: str) -> tuple[Piece, ...]:
    """The lung boxes of the scans that `scans.csv` gives that role, lesions marked."""
    return tuple(piece for _, piece in boxes_of_role(folder, role))


def boxes_of_role(folder: Path, role: str) -> list[tuple[Preprocessed, Piece]]:
    """The same beside the boxes as the edge has them."""
    truth = folder / "scans.csv"
    with truth.open(newline="") as file:
        names = [row["scan"] for row in csv.DictReader(file) if row["role"] == role]
    return [load_box(folder / n, truth) for n in track(names, f"reading {role} scans")]


def load_phantoms(cache: Path, count: int) -> list[Piece]:
    """The first ``count`` training phantoms as preprocessed lung boxes with their nodules."""
    cache.mkdir(parents=True, exist_ok=True)
    return [_phantom(cache, number) for number in track(range(count), "making phantoms")]


def _phantom(cache: Path, number: int) -> Piece:
    path = cache / f"phantom_{number:03d}.npz"
    if not path.exists():
        rng = np.random.default_rng(TRAINING_SEED + number)
        pixel = float(rng.uniform(0.65, 0.9))
        phantom = make_phantom(
            PhantomSpec(
                seed=TRAINING_SEED + number,
                spacing_mm=(float(rng.choice([1.0, 1.25, 2.0, 3.0])), pixel, pixel),
                nodule_count=int(rng.integers(3, 10)),
                kernel="sharp" if rng.random() < 0.5 else "soft",
                dose_noise_hu=float(rng.uniform(8, 45)),
            )
        )
        box = preprocess(phantom.volume, path)
        marks = [[*box.geometry.to_index(n.centre_mm), n.diameter_mm] for n in phantom.nodules]
        np.savez_compressed(path, voxels=box.voxels, nodules=np.array(marks).reshape(-1, 4))
    with np.load(path) as found:
        return Piece(found["voxels"], np.zeros_like(found["voxels"]), found["nodules"], NONE)


def screening_task(material: Material, network: ScreeningNetwork) -> ScreeningTask:
    """Trains a screening network on the material's training part."""
    return ScreeningTask(material.composer, material.val_cubes, material.val_scans, network)


def hybrid_task(
    material: Material, screeners: Sequence[torch.nn.Module], network: torch.nn.Module
) -> HybridTask:
    """Trains a hybrid, or a teacher of another kind, on candidates of the screening networks.

    Those of an early one are added to the last one's: on its own training scans a finished
    network raises fewer and easier alarms than it will on a stranger's.
    """
    groups = (material.learnt.pieces, material.scans, material.phantoms)
    sources = [piece for group in groups for piece in group]
    found = [find_alarms(screeners, piece) for piece in track(sources, "collecting false alarms")]
    drawer = RegionDrawer(
        material.composer, Ratings.of(material.learnt), [places for places, _ in found],
        share_alarms([odds for _, odds in found], [len(g) for g in groups]), Noise(96, 1),
    )  # fmt: skip
    trial = _trial(material, screeners[-1])
    return HybridTask(drawer, trial, network)


def share_alarms(odds: list[np.ndarray], counts: list[int]) -> list[np.ndarray]:
    """The odds scaled so that each group of sources has its share of `ALARM_SHARES`."""
    scaled: list[np.ndarray] = []
    for share, count in zip(ALARM_SHARES, counts, strict=True):
        group = odds[len(scaled) : len(scaled) + count]
        total = sum(float(one.sum()) for one in group)
        scaled += [one * (share / total) if total else one for one in group]
    return scaled


def find_alarms(
    screeners: Sequence[torch.nn.Module], piece: Piece
) -> tuple[np.ndarray, np.ndarray]:
    """Places without a nodule and how often to draw each: the stronger the alarm the oftener."""
    places, weights = [np.zeros((0, 3))], [np.zeros(0)]
    middle = np.array(piece.voxels.shape) / 2
    for network in screeners:
        peaks = look(network, piece.voxels)
        keep = without_nodules(peaks.index_zyx, piece)
        if max(piece.voxels.shape) < 64:  # near a cube's faces there is more mirror than lung
            keep &= (np.abs(peaks.index_zyx - middle) < middle - 10).all(1)
        places.append(peaks.index_zyx[keep])
        weights.append(0.08 + 1 / (1 + np.exp(-(peaks.logit[keep] + 2))))
    return np.concatenate(places), np.concatenate(weights)


def _trial(material: Material, screener: torch.nn.Module) -> Trial:
    nodules = [cut_roi(cube.voxels, cube.nodules[0, :3]) for cube in material.val_cubes]
    logit = [max(nodule_logit(screener, cube), -7.0) for cube in material.val_cubes]
    alarms, alarm_logit = [], []
    for scan in material.val_scans:
        peaks = false_alarms(screener, scan)
        alarms += [cut_roi(scan.voxels, place) for place in peaks.index_zyx]
        alarm_logit.append(peaks.logit)
    return Trial(
        np.stack(nodules), np.array(logit), np.stack(alarms), np.concatenate(alarm_logit),
        len(material.val_scans),
    )  # fmt: skip
