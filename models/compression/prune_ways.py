"""The ways to prune, each from the same start: a task that fine-tunes what is left.

- ``control``: nothing goes.
- ``weights``: the least important single weights of the whole network, once (Taylor).
- ``channels``: whole channels, once (Taylor of gates); the network becomes smaller.
- ``dynamic``: a random part of each layer (Erdős–Rényi), which then moves while it learns (RigL).
- ``dynamic-trained``: the same, starting from each layer's largest weights.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from models.compression.prune_channels import choose, cut
from models.compression.prune_scores import channel_scores, weight_scores
from models.compression.prune_weights import at_random, drawn, most_important
from models.networks.screening import ScreeningNetwork
from models.training.loop import Task
from models.training.screening import ScreeningTask
from models.training.sparse import Regrow, SparseTask

CONTROL = "control"
WAYS = ("weights", "channels", "dynamic", "dynamic-trained")
USUAL = WAYS[:3]

BATCHES = 32
"""Batches that importance is averaged over."""


def pruned(
    task: ScreeningTask, way: str, share: float, minutes: float, *, seed: int, count: int = BATCHES
) -> Task:
    """A task with ``share`` of the parameters gone from a copy of the task's network.

    Raises:
        CannotPrune: so many channels cannot go.
        KeyError: there is no such way.
    """
    network = copy.deepcopy(task.network)
    assert isinstance(network, ScreeningNetwork)
    own = replace(task, network=network)
    if way == CONTROL:
        return own
    if way == "channels":
        keep = choose(network.state_dict(), channel_scores(own, count), share)
        return replace(own, network=cut(network, keep))
    if way == "weights":
        return SparseTask(own, most_important(network, weight_scores(own, count), share))
    scores = {"dynamic": at_random(seed), "dynamic-trained": torch.abs}[way]
    return SparseTask(own, drawn(network, share, scores), Regrow(seconds=60 * minutes))
