import pytest
import torch
from torch import nn

from evaluation.training.pruning import (
    SparseTask,
    apply_masks,
    importance_masks,
    multiply_adds,
    parameters_left,
    prunable,
    weight_scores,
)
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.pruning.channels import channel_scores, widths
from models.training.data import Batch
from models.training.loop import fine_tune
from tests.models.small_networks import SmallTask, square_error


def magnitudes(network: nn.Module) -> dict[str, torch.Tensor]:
    """Scores of which one knows the order: ``|w|`` of every weight that may go."""
    return {name: conv.weight.detach().abs() for name, conv in prunable(network).items()}


@pytest.fixture
def network() -> ScreeningNetwork:
    torch.manual_seed(0)
    return ScreeningNetwork(ScreeningSpec((8, 8, 16, 16), (1, 1, 1)))


@pytest.mark.parametrize("share", [0.2, 0.42, 0.6, 0.8])
def test_the_requested_share_is_removed(network: ScreeningNetwork, share: float) -> None:
    """The network itself is left alone, no buffer stays behind."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    masks = importance_masks(network, magnitudes(network), share)
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert gone == round(share * parameters_left(network))
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


def test_the_least_important_go_wherever_they_are(network: ScreeningNetwork) -> None:
    scores = magnitudes(network)
    masks = importance_masks(network, scores, 0.5)
    stays = torch.cat([scores[name][mask] for name, mask in masks.items()])
    goes = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert stays.min() >= goes.max()


def test_what_is_left_out_costs_nothing_in_theory(network: ScreeningNetwork) -> None:
    whole, work = parameters_left(network), multiply_adds(network)
    apply_masks(network, importance_masks(network, magnitudes(network), 0.42))
    assert parameters_left(network) == whole - round(0.42 * whole)
    assert multiply_adds(network) < work
    assert not {"head.weight", "share.weight"} & prunable(network).keys()


def test_shut_channels_and_their_weights_do_not_matter() -> None:
    """A channel inside a block that nothing gets through, and a shut one of a stage."""
    torch.manual_seed(0)
    task = SmallTask(
        ScreeningNetwork(ScreeningSpec((4, 8, 8, 8), (1, 1, 1))),
        lambda generator: {"voxels": torch.rand(2, 1, 32, 32, 32, generator=generator)},
        lambda network, batch: network(batch["voxels"]).float().square().mean(),
    )
    parts = dict(task.network.named_modules())
    with torch.no_grad():
        for part, channel in (("down8.1.first.1", 3), ("down8.0.1", 5), ("down8.1.second.1", 5)):
            parts[part].weight[channel] = parts[part].bias[channel] = 0
        parts["lateral8"].weight[5] = parts["lateral8"].bias[5] = 0
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    weights, channels = weight_scores(task, 2), channel_scores(task, 1)
    assert all(torch.equal(v, before[n]) for n, v in task.network.state_dict().items())
    assert not weights["down8.1.first.0.weight"][3].any()
    assert weights["down8.1.first.0.weight"][0].any()
    assert {group: len(score) for group, score in channels.items()} == widths(before)
    assert channels["down8.1"][3] == channels["eighth"][5] == 0
    assert int((channels["eighth"] > 0).sum()) == 7
    assert float(channels["quarter"].max()) > 0


def plane() -> SmallTask:
    """Learns y = W x, of which the true W uses the last four inputs only."""
    truth = torch.zeros(2, 8)
    truth[:, 4:] = 3.0

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(32, 8, generator=generator)
        return {"x": x, "y": x @ truth.T}

    torch.manual_seed(0)
    return SmallTask(nn.Linear(8, 2, bias=False), draw, square_error)


MASK = torch.tensor([[True] * 4 + [False] * 4] * 2)


def test_what_is_left_out_stays_zero() -> None:
    task = SparseTask(plane(), {"weight": MASK})
    averaged = fine_tune(task.network, task.batches(0), task.losses, steps=50, rate=1e-2)
    apply_masks(averaged, task.masks)
    for weight in (task.network.weight, averaged.weight):
        assert not weight[~MASK].any()
        assert weight[MASK].all()
