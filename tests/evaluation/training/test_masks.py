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
)
from models.networks.screening import ScreeningNetwork, ScreeningSpec
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
