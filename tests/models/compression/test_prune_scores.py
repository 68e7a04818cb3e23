"""How much weights and channels matter: not at all where they are shut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models.compression.prune_channels import widths
from models.compression.prune_scores import channel_scores, weight_scores
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.training.stream import Batch


class Heat:
    """A small network whose loss is the mean square of its maps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = ScreeningNetwork(ScreeningSpec((4, 8, 8, 8), (1, 1, 1)))

    def batches(self, seed: int) -> Iterator[Batch]:
        """Noise."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield {"voxels": torch.rand(2, 1, 32, 32, 32, generator=generator)}

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Mean square of all maps."""
        return {"square": network(batch["voxels"]).float().square().mean()}

    def refresh(self, network: nn.Module) -> None:
        """Nothing to learn from the network."""

    def judge(self, network: nn.Module) -> dict[str, float]:
        """How many parameters it has."""
        return {"parameters": float(sum(p.numel() for p in network.parameters()))}


@pytest.fixture(scope="module")
def task() -> Heat:
    """One whose blocks have a channel inside that nothing gets through, and a shut stage one."""
    made = Heat()
    parts = dict(made.network.named_modules())
    with torch.no_grad():
        for part, channel in (("down8.1.first.1", 3), ("down8.0.1", 5), ("down8.1.second.1", 5)):
            parts[part].weight[channel] = parts[part].bias[channel] = 0
        parts["lateral8"].weight[5] = parts["lateral8"].bias[5] = 0
    return made


def test_a_shut_channel_does_not_matter(task: Heat) -> None:
    """Its score is zero, that of others is not; every group has a score for each channel."""
    scores = channel_scores(task, 1)
    assert {group: len(score) for group, score in scores.items()} == widths(
        task.network.state_dict()
    )
    assert scores["down8.1"][3] == 0
    assert scores["eighth"][5] == 0
    assert int((scores["eighth"] > 0).sum()) == 7
    assert float(scores["quarter"].max()) > 0


def test_weights_of_a_shut_channel_do_not_matter(task: Heat) -> None:
    """Nothing comes back through them; the network that was weighed is as it was."""
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    scores = weight_scores(task, 2)
    assert not scores["down8.1.first.0.weight"][3].any()
    assert scores["down8.1.first.0.weight"][0].any()
    assert all(torch.equal(v, before[n]) for n, v in task.network.state_dict().items())
