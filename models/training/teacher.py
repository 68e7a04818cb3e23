"""Training a teacher, and taking a trained one's weights back into a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.networks.hybrid import HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.networks.teacher import Kind, TeacherNetwork, TeacherSpec
from models.runtime.errors import UnfitArtifact
from models.training.loop import train
from models.training.recipe import hybrid_task
from models.training.runs import Run, load_weights, make_screening

HYBRID = "hybrid"
"""What a teacher that is a hybrid network is called among the kinds."""

AVERAGE = 0.98
"""A teacher has some hundred steps: a longer average of weights would still hold the first."""


def run_teacher(run: Run, screening: Sequence[Path], kind: Kind) -> None:
    """Trains a teacher as the hybrid is trained: same regions, same losses, same judge."""
    torch.manual_seed(run.seed)
    screeners = [make_screening(path).eval() for path in screening]
    teacher = make_teacher(run.start, kind, screeners[-1])
    task = hybrid_task(run.material(), screeners, teacher)
    train(task, replace(run.plan(decay=0.05), average=AVERAGE), resume=run.resume)


def make_teacher(start: Path | None, kind: Kind, screening: ScreeningNetwork) -> TeacherNetwork:
    """A teacher with the weights of ``start``; its known stem is that of ``screening``.

    Raises:
        UnfitArtifact: the weights of ``start`` are another kind's.
    """
    if start is None:
        known = ScreeningSpec.of(screening.state_dict())
        network = TeacherNetwork(TeacherSpec.usual(kind, known))
    else:
        found = open_teacher(start)
        if not isinstance(found, TeacherNetwork) or found.spec.kind is not kind:
            raise UnfitArtifact(f"{start}: weights of a {kind_of(found)}, asked for {kind}")
        network = found
    network.start_from(screening.state_dict())
    return network


def open_teacher(path: Path) -> HybridNetwork | TeacherNetwork:
    """The trained teacher of whatever kind that a run left in ``path``.

    Raises:
        UnfitArtifact: the weights are no teacher's.
    """
    weights = load_weights(path)
    try:
        network = _empty(weights)
        network.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise UnfitArtifact(f"{path}: no weights of a teacher: {error}") from error
    return network


def kind_of(network: nn.Module) -> str:
    """What kind of teacher it is."""
    return network.spec.kind.value if isinstance(network, TeacherNetwork) else HYBRID


def _empty(weights: Mapping[str, torch.Tensor]) -> HybridNetwork | TeacherNetwork:
    if "place" in weights:
        return HybridNetwork(HybridSpec.of(weights))
    return TeacherNetwork(TeacherSpec.of(weights))
