"""Masks of single weights: the share asked for goes, and the least important of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.compression.prune_cost import multiply_adds, parameters_left
from models.compression.prune_weights import (
    at_random,
    drawn,
    erdos_renyi,
    most_important,
    prunable,
)
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.training.sparse import leave_out


def magnitudes(network: nn.Module) -> dict[str, torch.Tensor]:
    """Scores of which one knows the order: ``|w|`` of every weight that may go."""
    return {name: conv.weight.detach().abs() for name, conv in prunable(network).items()}


@pytest.fixture
def network() -> ScreeningNetwork:
    """A small one."""
    torch.manual_seed(0)
    return ScreeningNetwork(ScreeningSpec((8, 8, 16, 16), (1, 1, 1)))


@pytest.mark.parametrize("share", [0.2, 0.42, 0.6, 0.8])
def test_the_share_asked_for_goes(network: ScreeningNetwork, share: float) -> None:
    """By importance and at random, of all parameters, to one weight."""
    whole = parameters_left(network)
    for masks in (
        most_important(network, magnitudes(network), share),
        drawn(network, share, at_random(0)),
    ):
        assert sum(int((~mask).sum()) for mask in masks.values()) == round(share * whole)


def test_the_least_important_go_wherever_they_are(network: ScreeningNetwork) -> None:
    """One threshold parts what stays from what goes, over all layers."""
    scores = magnitudes(network)
    masks = most_important(network, scores, 0.5)
    stays = torch.cat([scores[name][mask] for name, mask in masks.items()])
    goes = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert stays.min() >= goes.max()


def test_the_network_itself_is_left_alone(network: ScreeningNetwork) -> None:
    """Masks are made, nothing is applied, no buffer stays behind."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    most_important(network, magnitudes(network), 0.5)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


def test_small_layers_stay_denser() -> None:
    """Every weight that may stay is given out, no layer more than it has."""
    shapes = {"small": (4, 4, 1, 3, 3), "large": (64, 64, 1, 3, 3), "tiny": (2, 1, 2, 2, 2)}
    sizes = {"small": 144, "large": 36864, "tiny": 16}
    kept = erdos_renyi(shapes, 30000)
    assert sum(kept.values()) == sum(sizes.values()) - 30000
    density = {name: kept[name] / sizes[name] for name in sizes}
    assert density["large"] < density["small"] <= density["tiny"] == 1.0


def test_what_is_left_out_costs_nothing_in_theory(network: ScreeningNetwork) -> None:
    """Parameters and multiply-adds fall with the weights that are zero; answers stay whole."""
    whole, work = parameters_left(network), multiply_adds(network, (32, 32, 32))
    leave_out(network, most_important(network, magnitudes(network), 0.42))
    assert parameters_left(network) == whole - round(0.42 * whole)
    assert multiply_adds(network, (32, 32, 32)) < work
    assert not {"head.weight", "share.weight"} & prunable(network).keys()
