"""The training commands: material, task and plan put together; weights stay in the run's folder.

Material of role ``train`` is trained on and ``val`` is measured on; ``test`` is never opened here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.progress import track
from torch import nn

from imaging.roi import cut_roi
from models.networks.hybrid import HybridNetwork, HybridSpec, scales, without_spare_decoders
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.runtime.errors import DamagedArtifact, UnfitArtifact
from models.training.compose import Composer, odds_of
from models.training.data import Cubes, Piece, load_cubes, scans_of_role, thickened
from models.training.hybrid import HybridTask, validation_of
from models.training.insertions import copies_of_scans
from models.training.loop import Plan, load, train
from models.training.regions import RegionDrawer, rated
from models.training.run_folder import WEIGHTS
from models.training.screening import ScreeningTask, peaks_of
from models.training.warm_start import settle_norms, weights_of_artifact

COPIES = 60
"""Copies of whole training scans with insertions; half of the crops of whole lungs are theirs."""

ARTIFACT = ".onnx"

SETTLE_CUBES = 64
"""Training cubes whose regions settle the batch norms of a network from an artifact."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Run:
    """The options of a training command, as `models.cli` describes them.

    ``data`` holds ``nodules``, ``ct`` and ``lidc``; `averaged.pt` in ``out`` is the result.
    ``start`` are weights of runs or float artifacts, none for random ones: one file, or several
    whose members a hybrid joins. ``steps`` include those before an interruption.
    """

    data: Path
    out: Path
    rate: float
    start: tuple[Path, ...]
    seed: int = 0
    steps: int = 0
    resume: bool = False

    def material(self) -> "Material":
        """Read the data, and insert nodules into copies of scans."""
        learnt = load_cubes(self.data / "nodules", "train")
        return Material(
            learnt,
            scans_of_role(self.data, "train"),
            load_cubes(self.data / "nodules", "val").pieces,
            scans_of_role(self.data, "val"),
            copies_of_scans(self.data, learnt, COPIES, self.seed),
        )

    def plan(self, material: "Material", decay: float, round_steps: int = 500, **more: Any) -> Plan:
        """Return the loop's plan on the material, and ``more`` facts, such as lists of files."""
        facts = {
            "patients": len(set(material.learnt.patients)),
            "nodules": len(material.learnt.pieces),
            "start": [str(path) for path in self.start],
            **more,
        }
        files = (one for value in facts.values() if isinstance(value, list) for one in value)
        facts["inputs"] = material.digest(*map(Path, files))
        return Plan(
            self.out, self.steps, self.rate, decay, round_steps=round_steps, seed=self.seed,
            resume=self.resume, facts=facts,
        )  # fmt: skip


def run_screening(run: Run, spec: ScreeningSpec | None = None) -> None:
    """Train a screening network of that size, or as large as its start if None."""
    torch.manual_seed(run.seed)
    start = only(run.start) if run.start else None
    network = make_screening(start, spec)  # what does not fit ends it before the data is read
    material = run.material()
    ready(network, run.start, material)
    task = screening_task(material, network, trained=start is not None)
    train(task, run.plan(material, decay=0.02, round_steps=1000))


def run_hybrid(run: Run, screening: Sequence[Path], reads: Sequence[int] = ()) -> None:
    """Train a hybrid, or members of one, on the candidates of the given screening weights."""
    torch.manual_seed(run.seed)
    hybrid = make_hybrid(run.start, reads)
    screeners = [make_screening(path).eval() for path in screening]
    material = run.material()
    task = hybrid_task(material, screeners, ready(hybrid, run.start, material))
    train(task, run.plan(material, decay=0.05, screening=[str(one) for one in screening]))


@dataclass(frozen=True, eq=False)
class Material:
    """Cubes and whole scans of training and of validation; ``copies`` of the former's scans."""

    learnt: Cubes
    scans: tuple[Piece, ...]
    val_cubes: tuple[Piece, ...]
    val_scans: tuple[Piece, ...]
    copies: tuple[Piece, ...] = ()

    def digest(self, *files: Path) -> str:
        """Return twelve digits that change with any voxel, mark or rating, or a file of weights."""
        found, learnt = hashlib.sha256(), self.learnt
        parts: list[Any] = [learnt.patients, learnt.malignancy, learnt.texture]
        for pieces in (learnt.pieces, self.scans, self.val_cubes, self.val_scans):
            parts.append([one.name for one in pieces])
            parts += [x for p in pieces for x in (p.voxels, p.mask, p.nodules, p.ignored)]
        # what is in a copy follows from the others and from where it is
        parts += [x for copy in self.copies for x in ([copy.name], copy.nodules)]
        for part in (*map(np.asarray, parts), *(np.fromfile(file, np.uint8) for file in files)):
            found.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        return found.hexdigest()[:12]

    @property
    def composer(self) -> Composer:
        """The sampler over the training part."""
        weights = [1 / len(some) for some in (self.scans, self.copies) for _ in some]
        # a copy has no name there: what to err on is in the scan itself
        copies = (replace(copy, name="") for copy in self.copies)
        return Composer(
            self.learnt.pieces, (*self.scans, *copies), scan_weights=weights,
            odds=odds_of(self.learnt),
        )  # fmt: skip


def task_of(
    network: nn.Module, material: Material, screeners: Sequence[nn.Module]
) -> ScreeningTask | HybridTask:
    """Return the task to train a network further; ``screeners`` give a hybrid's regions."""
    if isinstance(network, HybridNetwork):
        return hybrid_task(material, screeners, network)
    return screening_task(material, network)


def trained_task(run: Run) -> ScreeningTask:
    """Return the task that trains the run's start, a screening network, further."""
    material = run.material()
    network = make_screening(only(run.start))
    return screening_task(material, ready(network, run.start, material))


def screening_task(
    material: Material, network: nn.Module, *, trained: bool = True
) -> ScreeningTask:
    """Return the task that trains a screening network on the material's training part.

    A ``trained`` network has hard negatives from the beginning.
    """
    task = ScreeningTask(material.composer, material.val_cubes, material.val_scans, network)
    if trained:
        task.refresh(network.eval())
    return task


def hybrid_task(
    material: Material, screeners: Sequence[nn.Module], network: nn.Module
) -> HybridTask:
    """Return the task that trains a hybrid on the screening networks' candidates."""
    held = validation_of(screeners[-1], material.val_cubes, material.val_scans)
    task = HybridTask(region_drawer(material, screeners), held, network)
    task.refresh(network.eval())
    return task


def region_drawer(material: Material, screeners: Sequence[nn.Module]) -> RegionDrawer:
    """Return what draws regions around the candidates of screening networks."""
    composer, rng = material.composer, np.random.default_rng(0)
    scans = list(composer.scans)
    for number in range(1, len(scans), 2):  # half of them have thick slices
        scans[number] = replace(scans[number], voxels=thickened(scans[number].voxels, rng))
    peaks = [
        [peaks_of(screener, scan.voxels) for scan in track(scans, "screening scans")]
        for screener in screeners
    ]
    return RegionDrawer(replace(composer, scans=scans), rated(material.learnt), screeners, peaks)


def ready(network: Network, start: Sequence[Path], material: Material) -> Network:
    """Settle the batch norms of a network that comes from an artifact, and return it.

    It reads regions around some of the training nodules.
    """
    if any(path.suffix == ARTIFACT for path in start):
        regions = (cut_roi(one.voxels, one.nodules[0, :3]) for one in material.learnt.pieces)
        batches = (torch.from_numpy(one)[None, None].float() / 255 for one in regions)
        settle_norms(network, islice(batches, SETTLE_CUBES))
    return network


def make_network(kind: str, weights: Sequence[Path]) -> ScreeningNetwork | HybridNetwork:
    """Return a network of ``kind``, ``screening`` or ``hybrid``, that can become an artifact.

    Raises:
        UnfitArtifact: the weights are of another kind of network, in too many files, or of members
            none of which reads a whole region.
    """
    if kind == "screening":
        return make_screening(only(weights))
    network = make_hybrid(weights)
    if max(network.spec.reads) < network.spec.side:
        raise UnfitArtifact(
            f"{_named(weights)}: the widest member reads {max(network.spec.reads)} mm, expected "
            f"one that reads the whole region of {network.spec.side} mm"
        )
    return network


def only(weights: Sequence[Path]) -> Path:
    """Return the one file of a screening network's weights.

    Raises:
        UnfitArtifact: there are more.
    """
    if len(weights) != 1:
        raise UnfitArtifact(f"{_named(weights)}: {len(weights)} files, expected one: only a hybrid "
                            "is joined from several")  # fmt: skip
    return weights[0]


def make_screening(start: Path | None, spec: ScreeningSpec | None = None) -> ScreeningNetwork:
    """Return a network with the weights of ``start``, or a new one of the size ``spec``.

    Raises:
        UnfitArtifact: ``start`` holds another kind of network.
    """
    if start is None:
        return ScreeningNetwork(spec)
    weights = load_weights(start)
    with fitting(start, "screening"):
        network = ScreeningNetwork(ScreeningSpec.of(weights))
        network.load_state_dict(weights)
    return network


def make_hybrid(start: Sequence[Path], reads: Sequence[int] = ()) -> HybridNetwork:
    """Return a network with all members of the files, or a new one whose members read these mm.

    With both, the members of the files that read these mm are taken, the widest among them.

    Raises:
        UnfitArtifact: a file holds another kind of network, two members have the same scale, or
            there is none that reads some of these mm, or the widest is left out.
    """
    if not start:
        return HybridNetwork(HybridSpec(reads=tuple(reads) or HybridSpec.reads))
    joined: dict[str, torch.Tensor] = {}
    for path in start:
        weights = load_weights(path)
        if not scales(weights):
            raise UnfitArtifact(f"{path}: no weights of a hybrid network")
        if twice := set(scales(joined)) & set(scales(weights)):
            raise UnfitArtifact(f"{path}: a second member that reads {min(twice)} mm, expected one "
                                "of each scale")  # fmt: skip
        joined |= weights
    own = scales(joined)
    if reads:
        if others := set(reads) - set(own):
            raise UnfitArtifact(f"{_named(start)}: no member that reads {min(others)} mm; expected "
                                f"some of {list(own)}")  # fmt: skip
        if max(reads) < max(own):
            raise UnfitArtifact(f"{_named(start)}: expected the widest member, of {max(own)} mm, "
                                "too: no other draws outlines")  # fmt: skip
        kept = tuple(f"members.{mm}." for mm in reads)
        joined = {name: value for name, value in joined.items() if name.startswith(kept)}
    with fitting(_named(start), "hybrid"):
        network = HybridNetwork(HybridSpec.of(joined))
        network.load_state_dict(without_spare_decoders(joined))
    return network


@contextmanager
def fitting(where: Path | str, kind: str) -> Iterator[None]:
    """Turn torch's errors about weights that do not fit into `UnfitArtifact`."""
    try:
        yield
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())[:200]
        raise UnfitArtifact(f"{where}: no weights of a {kind} network: {told}") from error


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run, or those that a float artifact was exported from.

    Raises:
        UnfitArtifact, DamagedArtifact: the file holds none.
    """
    if path.suffix == ARTIFACT:
        return weights_of_artifact(path)
    found = load(path)
    if not all(isinstance(name, str) and torch.is_tensor(one) for name, one in found.items()):
        raise DamagedArtifact(f"{path}: expected the weights of a network, such as {WEIGHTS}")
    if bad := [name for name, one in found.items() if not one.isfinite().all()]:
        raise DamagedArtifact(f"{path}: {bad[0]} has values that are not finite")
    return found
