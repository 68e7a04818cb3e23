import math

import pytest
import torch

from evaluation.timing.network import BOX
from evaluation.training.pruning import multiply_adds, parameters_left
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.pruning.channels import CannotPrune, choose, cost, cut, groups_of, is_gate, widths

SPEC = ScreeningSpec((8, 8, 16, 16), (1, 2, 1))


@pytest.fixture
def network() -> ScreeningNetwork:
    """A small network whose batch norms are not the identity."""
    torch.manual_seed(0)
    made = ScreeningNetwork(SPEC).double()
    for _ in range(3):
        made(torch.rand(2, 1, 32, 32, 32, dtype=torch.float64))
    return made.eval()


def shut(network: ScreeningNetwork, gone: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Zeroes everything that writes to those channels; the others, by group."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            group = groups_of(name)[0]
            if group in gone and is_gate(name, weight):
                weight[gone[group]] = 0
    return {
        group: torch.tensor([c for c in range(width) if c not in gone.get(group, [])])
        for group, width in widths(network.state_dict()).items()
    }


def test_channels_that_are_shut_go_without_a_change(network: ScreeningNetwork) -> None:
    gone = {
        "half": [1], "quarter": [0, 5], "eighth": [3, 4, 15], "sixteenth": [2],
        "down8.1": [0, 1, 7], "down16.1": [9], "smooth": [2, 3], "down4.1": [7],
    }  # fmt: skip
    keep = shut(network, gone)
    x = torch.rand(1, 1, 48, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        whole, smaller = network(x), cut(network, keep)(x)
    torch.testing.assert_close(whole, smaller, rtol=0, atol=1e-12)
    assert float(whole.std()) > 0


def test_a_cut_network_is_read_back_from_its_weights(network: ScreeningNetwork) -> None:
    keep = {"down8.2": torch.arange(4), "quarter": torch.arange(6)}
    smaller = cut(network, keep)
    spec = ScreeningSpec.of(smaller.state_dict())
    assert spec.widths == (8, 6, 16, 16)
    assert spec.inner == ((8,), (16, 4), (16,), (8,))
    ScreeningNetwork(spec).load_state_dict(smaller.state_dict())
    assert ScreeningSpec.of(network.state_dict()) == SPEC


@pytest.mark.parametrize("share", [0.2, 0.42, 0.6])
def test_the_requested_share_is_removed(network: ScreeningNetwork, share: float) -> None:
    weights = network.state_dict()
    scores = {group: torch.rand(width) for group, width in widths(weights).items()}
    smaller = cut(network, choose(weights, scores, share, step=2))
    gone = 1 - parameters_left(smaller) / parameters_left(network)
    assert share <= gone < share + 0.1


def test_what_matters_least_goes_first(network: ScreeningNetwork) -> None:
    weights = network.state_dict()
    scores = {group: torch.full((width,), 1e9) for group, width in widths(weights).items()}
    scores["down16.1"] = torch.tensor([float(i % 4) for i in range(16)])
    kept = choose(weights, scores, 0.05, step=4)
    assert kept["down16.1"].tolist() == [i for i in range(16) if i % 4]


def test_more_than_there_is_cannot_go(network: ScreeningNetwork) -> None:
    weights = network.state_dict()
    scores = {group: torch.ones(width) for group, width in widths(weights).items()}
    with pytest.raises(CannotPrune, match="at most"):
        choose(weights, scores, 0.95, step=8)


def test_the_cost_that_choices_go_by_is_the_networks(network: ScreeningNetwork) -> None:
    weights = network.state_dict()
    parameters, multiply = cost(weights, widths(weights))
    assert parameters == parameters_left(network)
    less_training_head = multiply - 8 / 64
    assert less_training_head * math.prod(BOX) == pytest.approx(multiply_adds(network))
