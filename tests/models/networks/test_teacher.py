import pytest
import torch

from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.networks.teacher import Kind, TeacherNetwork, TeacherSpec
from models.runtime.second_reader import TEXTURES

KNOWN_SPEC = ScreeningSpec((4, 8, 8, 16), (1, 1, 0))


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_answers_all_questions_and_learns_in_bf16(kind: Kind) -> None:
    """The weights tell the spec; every gradient is finite."""
    torch.manual_seed(0)
    network = TeacherNetwork(TeacherSpec(kind, KNOWN_SPEC, (4, 8, 16), (1, 2)))
    assert TeacherSpec.of(network.state_dict()) == network.spec
    with torch.autocast("cpu", torch.bfloat16):
        answers = network(torch.rand(2, 1, 48, 48, 48))
    shapes = [tuple(answer.shape) for answer in answers]
    assert shapes == [(2, 1), (2, 1), (2, 1), (2, len(TEXTURES)), (2, 1, 48, 48, 48)]
    torch.stack([answer.float().square().mean() for answer in answers]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in network.trunk8.parameters())


def test_a_stem_that_was_pruned_comes_back() -> None:
    pruned = ScreeningSpec((4, 8, 8, 16), (1, 1, 0), inner=((4,), (8,), (), ()))
    network = TeacherNetwork(TeacherSpec(Kind.RESIDUAL, pruned, (4, 8, 16), (1, 2)))
    weights = network.state_dict()
    TeacherNetwork(TeacherSpec.of(weights)).load_state_dict(weights)


def test_weights_of_another_network_are_no_teachers() -> None:
    with pytest.raises(KeyError):
        TeacherSpec.of(ScreeningNetwork(ScreeningSpec((4, 8, 8, 16), (1, 1, 1))).state_dict())
