"""Networks as runs make them: from nothing, from weights, from a deeper network's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.networks.hybrid import HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.runtime.errors import UnfitArtifact
from models.training.runs import make_hybrid, make_screening

SMALL = ScreeningSpec((8, 16, 16, 32), (2, 1, 1))


def saved(network: torch.nn.Module, path: Path) -> Path:
    """The network's weights as a run leaves them."""
    torch.save(network.state_dict(), path)
    return path


def test_a_screening_network_comes_back_as_it_was(tmp_path: Path) -> None:
    """Widths and blocks are told by the weights."""
    network = ScreeningNetwork(SMALL)
    back = make_screening(saved(network, tmp_path / "w.pt"))
    assert ScreeningSpec.of(back.state_dict()) == SMALL
    for ours, theirs in zip(back.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_shallower_network_starts_from_a_deeper_one(tmp_path: Path) -> None:
    """The last block at 1/4 is left out; what stays has its weights."""
    deep = ScreeningNetwork(SMALL)
    shallow = make_screening(saved(deep, tmp_path / "w.pt"), blocks=(1, 1, 1))
    assert len(shallow.down4) == len(deep.down4) - 1
    assert all(torch.equal(v, deep.state_dict()[n]) for n, v in shallow.state_dict().items())


def test_a_deeper_network_does_not_start_from_a_shallower_one(tmp_path: Path) -> None:
    """Blocks that nobody trained are no start."""
    with pytest.raises(UnfitArtifact, match="Missing key"):
        make_screening(saved(ScreeningNetwork(SMALL), tmp_path / "w.pt"), blocks=(3, 1, 1))


def test_from_nothing_the_blocks_are_those_asked_for() -> None:
    """Or those of the spec."""
    assert ScreeningSpec.of(make_screening(None).state_dict()) == ScreeningSpec()
    asked = make_screening(None, blocks=(1, 3, 4))
    assert ScreeningSpec.of(asked.state_dict()).blocks == (1, 3, 4)


@pytest.mark.parametrize("dial", [0.5, 1.0])
def test_a_hybrid_comes_back_as_it_was(tmp_path: Path, dial: float) -> None:
    """Of whatever size, with whatever stem it knows."""
    spec = HybridSpec.sized(dial, SMALL)
    network = HybridNetwork(spec)
    back = make_hybrid(saved(network, tmp_path / "w.pt"))
    assert back.spec.channels == spec.channels
    for ours, theirs in zip(back.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_new_hybrid_knows_the_screening_networks_stem() -> None:
    """Its stem is of that network's spec and has its weights."""
    screening = ScreeningNetwork(SMALL)
    hybrid = make_hybrid(None, screening)
    assert torch.equal(hybrid.down8[0][0].weight, screening.down8[0][0].weight)
    assert not hybrid.down8[0][0].weight.requires_grad
