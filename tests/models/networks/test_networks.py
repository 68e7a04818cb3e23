import pytest
import torch

from models.networks.hybrid import KNOWN, HybridNetwork, KnownStem
from models.networks.screening import MAPS, ScreeningNetwork
from models.networks.teacher import Kind, TeacherNetwork, TeacherSpec
from models.runtime.second_reader import TEXTURES


def test_the_screening_maps_have_a_quarter_of_the_grid() -> None:
    """Any box of multiples of 16 gives five maps at 1/4, and a sixth in training."""
    network = ScreeningNetwork()
    x = torch.rand(2, 1, 48, 32, 64)
    assert network(x).shape == (2, len(MAPS) + 1, 12, 8, 16)
    assert network.eval()(x).shape == (2, len(MAPS), 12, 8, 16)


def test_the_screening_network_has_one_to_three_million_parameters() -> None:
    """The size that the latency budget was measured with."""
    assert 1e6 < sum(p.numel() for p in ScreeningNetwork().parameters()) < 3e6


def test_the_screening_network_does_not_mind_where_it_looks() -> None:
    torch.manual_seed(0)
    network = ScreeningNetwork().eval()
    x = torch.rand(1, 1, 144, 96, 96)
    with torch.inference_mode():
        here, there = network(x[:, :, :128]), network(x[:, :, 16:])
    torch.testing.assert_close(here[:, :, 14:18], there[:, :, 10:14], atol=1e-4, rtol=1e-3)


def test_the_hybrid_answers_all_its_questions() -> None:
    answers = HybridNetwork()(torch.rand(3, 1, 48, 48, 48))
    shapes = [tuple(answer.shape) for answer in answers]
    assert shapes == [(3, 1), (3, 1), (3, 1), (3, len(TEXTURES)), (3, 1, 48, 48, 48)]


@pytest.mark.parametrize(
    ("network", "trained"),
    [
        (HybridNetwork(), {"encoder", "answer"}),
        (TeacherNetwork(TeacherSpec(Kind.RESIDUAL)), {"trunk4", "trunk8", "answer", "mask"}),
    ],
)
def test_the_screening_networks_stem_is_taken_over_and_frozen(
    network: KnownStem, trained: set[str]
) -> None:
    """Neither its weights nor the statistics of its batch norms move in training."""
    torch.manual_seed(0)
    screening, answer = ScreeningNetwork(), network.answer.weight.clone()
    network.start_from(screening.state_dict())
    for name in KNOWN:
        ours, theirs = (getattr(n, name).state_dict() for n in (network, screening))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(network.answer.weight, answer)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.train()
    answers = network(torch.rand(2, 1, 48, 48, 48))
    torch.stack([answer.square().mean() for answer in answers]).sum().backward()
    optimizer.step()
    moved = {
        n.split(".")[0] for n, v in network.state_dict().items() if not torch.equal(v, before[n])
    }
    assert moved.isdisjoint(KNOWN)
    assert trained <= moved


@pytest.mark.parametrize("place", [(5, 5, 5), (40, 20, 10)])
def test_the_hybrid_sees_the_whole_roi(place: tuple[int, int, int]) -> None:
    """A change anywhere in the region changes the answer: the encoder relates all of it."""
    torch.manual_seed(0)
    network = HybridNetwork().eval()
    x = torch.full((1, 1, 48, 48, 48), 0.2)
    y = x.clone()
    y[0, 0, *(slice(p, p + 4) for p in place)] = 1.0
    with torch.inference_mode():
        assert not torch.equal(network(x)[0], network(y)[0])
