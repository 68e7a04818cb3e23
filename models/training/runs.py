"""The training commands: material, task and plan put together, weights left in the run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from imaging.roi import cut_roi
from models.networks.hybrid import HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.runtime.errors import UnfitArtifact
from models.training.from_artifact import settle_norms, weights_of_artifact
from models.training.hybrid import HybridTask
from models.training.loop import Plan, train
from models.training.recipe import Material, hybrid_task, load_material, screening_task
from models.training.screening import ScreeningTask

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
