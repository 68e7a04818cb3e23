"""The training commands: material, task and plan put together; weights stay in the run's folder.

Data is laid out as ``DIR/nodules`` (``train.npz``, ``val.npz``, ``index.csv``, ``marks.csv``) and
``DIR/ct`` (a folder for each scan, ``scans.csv`` with its role). Material of role ``train`` is
trained on and ``val`` is measured on; ``test`` is never opened here.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.progress import track
from torch import nn

from imaging.phantom.phantom import TRAINING_SEED, PhantomSpec, make_phantom
from imaging.preprocess import Preprocessed, preprocess
from imaging.roi import cut_roi
from models.networks.hybrid import HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.runtime.errors import UnfitArtifact
from models.runtime.sigmoid import sigmoid
from models.training.augment import Noise
from models.training.compose import Composer
from models.training.data import NONE, Cubes, Piece, away_from_marks, load_box, load_cubes
from models.training.hybrid import HybridTask, Validation
from models.training.loop import Plan, train
from models.training.regions import RegionDrawer, rated
from models.training.screening import ScreeningTask, false_positives, nodule_logit, peaks_of
from models.training.warm_start import settle_norms, weights_of_artifact

PHANTOM_SHARE = 0.25
"""The share of phantoms among crops of whole lungs."""

SOURCE_SHARES = (0.5, 0.38, 0.12)
"""The shares of false positives from cubes (hundreds of scanners), whole scans and phantoms."""

ARTIFACT = ".onnx"

SETTLE_CUBES = 64
"""Training cubes whose regions settle the batch norms of a network from an artifact."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Run:
    """The options of a training command, as `models.cli` describes them.

    ``data`` holds ``nodules`` and ``ct``; `averaged.pt` in ``out`` is the result. ``start`` are
    weights of a run or a float artifact, None for random ones. ``minutes`` include resumptions.
    """

    data: Path
    out: Path
    minutes: float
    rate: float
    resume: bool
    start: Path | None
    cache: Path
    phantoms: int
    seed: int

    def material(self) -> "Material":
        """Read the data, and make the phantoms that the cache lacks."""
        return load_material(self.data, self.cache, self.phantoms)

    def plan(self, decay: float) -> Plan:
        """Return the loop's plan with that weight decay."""
        return Plan(self.out, self.minutes, self.rate, decay, seed=self.seed, resume=self.resume)


def run_screening(run: Run, blocks: tuple[int, int, int] | None = None) -> None:
    """Train a screening network with ``blocks``, or with those of its start if None."""
    torch.manual_seed(run.seed)
    train(make_screening_task(run, blocks), run.plan(decay=0.02))


def run_hybrid(run: Run, screening: Sequence[Path]) -> None:
    """Train the hybrid network on the candidates of the given screening weights."""
    torch.manual_seed(run.seed)
    screeners = [make_screening(path).eval() for path in screening]
    material = run.material()
    hybrid = ready(make_hybrid(run.start, screeners[-1]), run.start, regions_of(material))
    task = hybrid_task(material, screeners, hybrid)
    train(task, run.plan(decay=0.05))


@dataclass(frozen=True, eq=False)
class Material:
    """Cubes and whole scans of training and of validation."""

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


def load_material(data: Path, cache: Path, phantom_count: int) -> Material:
    """Read the data, and make the phantoms that the folder ``cache`` lacks."""
    return Material(
        load_cubes(data / "nodules", "train"),
        scans_of_role(data / "ct", "train"),
        tuple(load_phantoms(cache, phantom_count)),
        load_cubes(data / "nodules", "val").pieces,
        scans_of_role(data / "ct", "val"),
    )


def scans_of_role(folder: Path, role: str) -> tuple[Piece, ...]:
    """Return the lung boxes of the scans with that role in `scans.csv`, lesions marked."""
    return tuple(piece for _, piece in boxes_of_role(folder, role))


def boxes_of_role(folder: Path, role: str) -> list[tuple[Preprocessed, Piece]]:
    """Return them with the boxes as the edge has them."""
    truth = folder / "scans.csv"
    with truth.open(newline="") as file:
        names = [row["scan"] for row in csv.DictReader(file) if row["role"] == role]
    return [load_box(folder / n, truth) for n in track(names, f"reading {role} scans")]


def load_phantoms(cache: Path, count: int) -> list[Piece]:
    """Return the first ``count`` training phantoms as preprocessed lung boxes."""
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


def make_screening_task(run: Run, blocks: tuple[int, int, int] | None = None) -> ScreeningTask:
    """Return the task on the run's data and start; ``blocks`` as for `make_screening`."""
    material = run.material()
    network = ready(make_screening(run.start, blocks), run.start, regions_of(material))
    task = screening_task(material, network)
    if run.start is not None:
        task.refresh(network.eval())  # a trained network has hard negatives from the beginning
    return task


def task_of(
    network: nn.Module, material: Material, screeners: Sequence[ScreeningNetwork]
) -> ScreeningTask | HybridTask:
    """Return the task to train a network further; ``screeners`` propose a hybrid's regions."""
    if isinstance(network, HybridNetwork):
        return hybrid_task(material, screeners, network)
    assert isinstance(network, ScreeningNetwork)
    task = screening_task(material, network)
    task.refresh(network.eval())
    return task


def screening_task(material: Material, network: ScreeningNetwork) -> ScreeningTask:
    """Return the task that trains a screening network on the material's training part."""
    return ScreeningTask(material.composer, material.val_cubes, material.val_scans, network)


def hybrid_task(
    material: Material, screeners: Sequence[nn.Module], network: nn.Module
) -> HybridTask:
    """Return the task that trains a hybrid or a teacher on the screening networks' candidates.

    An early screening network belongs among them: on its own training scans a finished one raises
    fewer and easier false positives than on other scans.
    """
    groups = (material.learnt.pieces, material.scans, material.phantoms)
    sources = [piece for group in groups for piece in group]
    found = [
        find_false_positives(screeners, piece)
        for piece in track(sources, "collecting false positives")
    ]
    drawer = RegionDrawer(
        material.composer, rated(material.learnt), [places for places, _ in found],
        share_sources([odds for _, odds in found], [len(g) for g in groups]), Noise(96, 1),
    )  # fmt: skip
    return HybridTask(drawer, _validation(material, screeners[-1]), network)


def find_false_positives(
    screeners: Sequence[nn.Module], piece: Piece
) -> tuple[np.ndarray, np.ndarray]:
    """Return the false positives ``(n, 3)`` and the odds to draw each, which grow with its score.

    Those of each network follow each other, strongest first.
    """
    places, odds = [np.zeros((0, 3))], [np.zeros(0)]
    middle = np.array(piece.voxels.shape) / 2
    for network in screeners:
        peaks = peaks_of(network, piece.voxels)
        keep = away_from_marks(peaks.index_zyx, piece, 4)
        if max(piece.voxels.shape) < 64:  # near a cube's faces there is more mirror than lung
            keep &= (np.abs(peaks.index_zyx - middle) < middle - 10).all(1)
        places.append(peaks.index_zyx[keep])
        odds.append(0.08 + sigmoid(peaks.logit[keep] + 2))
    return np.concatenate(places), np.concatenate(odds)


def share_sources(odds: list[np.ndarray], counts: list[int]) -> list[np.ndarray]:
    """Scale the odds so that each group of sources has its share of `SOURCE_SHARES`."""
    scaled: list[np.ndarray] = []
    for share, count in zip(SOURCE_SHARES, counts, strict=True):
        group = odds[len(scaled) : len(scaled) + count]
        total = sum(float(one.sum()) for one in group)
        scaled += [one * (share / total) if total else one for one in group]
    return scaled


def _validation(material: Material, screener: nn.Module) -> Validation:
    nodules = [cut_roi(cube.voxels, cube.nodules[0, :3]) for cube in material.val_cubes]
    nodule_logits = [max(nodule_logit(screener, cube), -7.0) for cube in material.val_cubes]
    regions, logits = [], []
    for scan in material.val_scans:
        peaks = false_positives(screener, scan)
        regions += [cut_roi(scan.voxels, centre) for centre in peaks.index_zyx]
        logits.append(peaks.logit)
    return Validation(
        np.stack(nodules), np.array(nodule_logits), np.stack(regions), np.concatenate(logits),
        len(material.val_scans),
    )  # fmt: skip


def ready(network: Network, start: Path | None, voxels: Iterable[np.ndarray]) -> Network:
    """Settle the batch norms of a network that comes from an artifact, and return it.

    ``voxels`` are uint8 regions ``(z, y, x)`` like those that it will be trained on.
    """
    if start is not None and start.suffix == ARTIFACT:
        settle_norms(network, (torch.from_numpy(one)[None, None].float() / 255 for one in voxels))
    return network


def regions_of(material: Material) -> Iterator[np.ndarray]:
    """Yield regions around some of the training nodules."""
    for cube in material.learnt.pieces[:SETTLE_CUBES]:
        yield cut_roi(cube.voxels, cube.nodules[0, :3])


def make_network(kind: str, weights: Path) -> ScreeningNetwork | HybridNetwork:
    """Return a network of ``kind``, ``screening`` or ``hybrid``, with these weights."""
    return make_screening(weights) if kind == "screening" else make_hybrid(weights)


def make_screening(
    start: Path | None, blocks: tuple[int, int, int] | None = None
) -> ScreeningNetwork:
    """Return a network with the weights of ``start``; fewer ``blocks`` leave out the last ones.

    Raises:
        UnfitArtifact: ``start`` holds another kind of network, or too few blocks.
    """
    if start is None:
        return ScreeningNetwork(ScreeningSpec(blocks=blocks or ScreeningSpec.blocks))
    weights = load_weights(start)
    with fitting(start, "screening"):
        spec = ScreeningSpec.of(weights)
        network = ScreeningNetwork(replace(spec, blocks=blocks or spec.blocks))
        wanted = network.state_dict().keys()
        network.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    return network


def make_hybrid(start: Path | None, screening: ScreeningNetwork | None = None) -> HybridNetwork:
    """Return a network with the weights of ``start``, or a new one with the stem of ``screening``.

    If ``screening`` is given the known stem is not trained. A network from ``start`` keeps its own
    stem, on which the rest was trained.

    Raises:
        UnfitArtifact: ``start`` holds another kind of network.
    """
    if start is not None:
        weights = load_weights(start)
        with fitting(start, "hybrid"):
            network = HybridNetwork(HybridSpec.of(weights))
            network.load_state_dict(weights)
    else:
        known = ScreeningSpec.of(screening.state_dict()) if screening else ScreeningSpec()
        network = HybridNetwork(HybridSpec(known=known))
    if screening is not None:
        network.start_from((network if start else screening).state_dict())
    return network


@contextmanager
def fitting(path: Path, kind: str) -> Iterator[None]:
    """Turn torch's errors about weights that do not fit into `UnfitArtifact`."""
    try:
        yield
    except (KeyError, RuntimeError) as error:
        raise UnfitArtifact(f"{path}: no weights of a {kind} network: {error}") from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run, or those that a float artifact was exported from."""
    if path.suffix == ARTIFACT:
        return weights_of_artifact(path)
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
