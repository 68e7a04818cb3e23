"""The training commands: material, task and plan put together, weights left in the run's folder.

The recipes of the two shipped networks: which material, which task, which plan.

Data is laid out as ``DIR/nodules`` (``train.npz``, ``val.npz``, ``index.csv``, ``marks.csv``) and
``DIR/ct`` (a folder for each scan, ``scans.csv`` with its role). Only material of role ``train``
is learnt from; ``val`` is looked at; ``test`` is never opened here.
"""

from __future__ import annotations

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
from models.training.data import NONE, Cubes, Piece, load_box, load_cubes
from models.training.hybrid import HybridTask, Trial
from models.training.loop import Plan, train
from models.training.regions import Ratings, RegionDrawer, without_nodules
from models.training.screening import ScreeningTask, false_alarms, look, nodule_logit
from models.training.warm_start import settle_norms, weights_of_artifact

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
        weights.append(0.08 + sigmoid(peaks.logit[keep] + 2))
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


ARTIFACT = ".onnx"
SETTLED_ON = 64
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Run:
    """What a training command was asked for.

    Attributes:
        data: folder with ``nodules`` and ``ct``.
        out: folder of the run; `averaged.pt` in it is the result.
        minutes: time to spend training, resumptions included.
        rate: highest learning rate.
        resume: go on from the run's checkpoint.
        start: weights to begin with, of a run or a float artifact; None for the network's own
            beginning.
        cache: where phantoms are kept; ``phantoms``: how many of them are learnt from.
        seed: of weights and samples.
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

    def material(self) -> Material:
        """Reads the data, and makes the phantoms that are not there yet."""
        return load_material(self.data, self.cache, self.phantoms)

    def plan(self, decay: float) -> Plan:
        """The loop's plan, with that weight decay."""
        return Plan(self.out, self.minutes, rate=self.rate, decay=decay, seed=self.seed)


def run_screening(run: Run, blocks: tuple[int, int, int] | None = None) -> None:
    """Trains a screening network with so many blocks; as many as its start has, if None."""
    torch.manual_seed(run.seed)
    material = run.material()
    network = ready(make_screening(run.start, blocks), run.start, regions_of(material))
    task = screening_task(material, network)
    if run.start is not None:
        task.refresh(task.network.eval())  # it can raise alarms that are worth mining already
    train(task, run.plan(decay=0.02), resume=run.resume)


def run_hybrid(run: Run, screening: Sequence[Path]) -> None:
    """Trains the hybrid network on the candidates of the screening weights given."""
    torch.manual_seed(run.seed)
    screeners = [make_screening(path).eval() for path in screening]
    material = run.material()
    hybrid = ready(make_hybrid(run.start, screeners[-1]), run.start, regions_of(material))
    task = hybrid_task(material, screeners, hybrid)
    train(task, run.plan(decay=0.05), resume=run.resume)


def task_of(
    network: nn.Module, material: Material, screeners: Sequence[ScreeningNetwork]
) -> ScreeningTask | HybridTask:
    """The task that a trained network goes on with; ``screeners`` find a hybrid's regions."""
    if isinstance(network, HybridNetwork):
        return hybrid_task(material, screeners, network)
    assert isinstance(network, ScreeningNetwork)
    task = screening_task(material, network)
    task.refresh(network.eval())  # it can raise alarms that are worth mining already
    return task


def ready(network: Network, start: Path | None, voxels: Iterable[np.ndarray]) -> Network:
    """The network, fit to be trained on: one out of an artifact has no statistics of its own yet.

    ``voxels`` are uint8 regions ``(z, y, x)`` like those that it will be trained on.
    """
    if start is not None and start.suffix == ARTIFACT:
        settle_norms(network, (torch.from_numpy(one)[None, None].float() / 255 for one in voxels))
    return network


def regions_of(material: Material) -> Iterator[np.ndarray]:
    """Regions around some of the nodules that are learnt from."""
    for cube in material.learnt.pieces[:SETTLED_ON]:
        yield cut_roi(cube.voxels, cube.nodules[0, :3])


def make_screening(
    start: Path | None, blocks: tuple[int, int, int] | None = None
) -> ScreeningNetwork:
    """A network with the weights of ``start``; where it has fewer blocks, the last are left out.

    Raises:
        UnfitArtifact: ``start`` holds another kind of network, or too few blocks.
    """
    if start is None:
        return ScreeningNetwork(ScreeningSpec(blocks=blocks or ScreeningSpec.blocks))
    weights = load_weights(start)
    with refused(start, "screening"):
        spec = ScreeningSpec.of(weights)
        network = ScreeningNetwork(replace(spec, blocks=blocks or spec.blocks))
        wanted = network.state_dict().keys()
        network.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    return network


def make_hybrid(start: Path | None, screening: ScreeningNetwork | None = None) -> HybridNetwork:
    """A network with the weights of ``start``, or a new one with the stem of ``screening``.

    Where ``screening`` is given the known stem stays as it is. That of ``start`` is its own: the
    rest has learnt on it.

    Raises:
        UnfitArtifact: ``start`` holds another kind of network.
    """
    if start is not None:
        weights = load_weights(start)
        with refused(start, "hybrid"):
            network = HybridNetwork(HybridSpec.of(weights))
            network.load_state_dict(weights)
    else:
        known = ScreeningSpec.of(screening.state_dict()) if screening else ScreeningSpec()
        network = HybridNetwork(HybridSpec(known=known))
    if screening is not None:
        network.start_from((network if start else screening).state_dict())
    return network


@contextmanager
def refused(start: Path, kind: str) -> Iterator[None]:
    """Turns what torch says of weights that do not fit into one line."""
    try:
        yield
    except (KeyError, RuntimeError) as error:
        raise UnfitArtifact(f"{start}: holds no {kind} network's weights: {error}") from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """What a run left in ``path``; or, where that is a float artifact, what it was made from."""
    if path.suffix == ARTIFACT:
        return weights_of_artifact(path)
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
