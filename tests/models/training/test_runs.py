from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.networks.hybrid import HybridNetwork
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.runtime.errors import UnfitArtifact
from models.training import runs
from models.training.data import Cubes
from models.training.runs import (
    PHANTOM_SHARE,
    SOURCE_SHARES,
    Material,
    load_phantoms,
    make_hybrid,
    make_screening,
    scans_of_role,
    share_sources,
)
from tests.models.small_networks import SMALL_HYBRID
from tests.models.training.test_data import even

SMALL = ScreeningSpec((8, 16, 16, 32), (2, 1, 1))


def saved(network: torch.nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("make", "network"),
    [
        (make_screening, ScreeningNetwork(SMALL)),
        (make_hybrid, HybridNetwork(replace(SMALL_HYBRID, known=SMALL))),
    ],
    ids=["screening", "hybrid"],
)
def test_a_network_comes_back_as_it_was(
    make: Callable[[Path], torch.nn.Module], network: torch.nn.Module, tmp_path: Path
) -> None:
    back, weights = make(saved(network, tmp_path / "w.pt")).state_dict(), network.state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in back.items())


def test_a_shallower_network_starts_from_a_deeper_one(tmp_path: Path) -> None:
    """The last block at 1/4 is left out; what stays has its weights.

    A deeper one does not start from it: blocks that nobody trained are no start.
    """
    deep = ScreeningNetwork(SMALL)
    shallow = make_screening(saved(deep, tmp_path / "w.pt"), blocks=(1, 1, 1))
    assert len(shallow.down4) == len(deep.down4) - 1
    assert all(torch.equal(v, deep.state_dict()[n]) for n, v in shallow.state_dict().items())
    with pytest.raises(UnfitArtifact, match="Missing key"):
        make_screening(tmp_path / "w.pt", blocks=(3, 1, 1))


def test_without_start_weights_the_blocks_are_the_requested_ones() -> None:
    assert ScreeningSpec.of(make_screening(None).state_dict()) == ScreeningSpec()
    asked = make_screening(None, blocks=(1, 3, 4))
    assert ScreeningSpec.of(asked.state_dict()).blocks == (1, 3, 4)


def test_a_new_hybrid_knows_the_screening_networks_stem() -> None:
    screening = ScreeningNetwork(SMALL)
    hybrid = make_hybrid(None, screening)
    assert torch.equal(hybrid.down8[0][0].weight, screening.down8[0][0].weight)
    assert not hybrid.down8[0][0].weight.requires_grad


def test_false_positives_are_shared_between_the_groups() -> None:
    odds = [np.array([1.0, 1.0]), np.array([]), np.array([30.0]), np.array([0.5, 0.5, 1.0])]
    shared = share_sources(odds, [2, 1, 1])
    assert shared[0].sum() + shared[1].sum() == pytest.approx(SOURCE_SHARES[0])
    assert shared[2].sum() == pytest.approx(SOURCE_SHARES[1])
    np.testing.assert_allclose(shared[3] / shared[3].sum(), [0.25, 0.25, 0.5])
    without_phantoms = share_sources([np.array([2.0]), np.array([])], [1, 1, 0])
    assert [s.tolist() for s in without_phantoms] == [[SOURCE_SHARES[0]], []]


def test_phantoms_have_their_share_of_the_whole_lungs() -> None:
    nothing = Cubes((), (), np.zeros(0), np.zeros(0))
    lung = even((60, 60, 60))
    composer = Material(nothing, (lung,), (lung,) * 3, (), ()).composer
    weights = np.array(composer.scan_weights) / sum(composer.scan_weights)
    assert weights[0] == pytest.approx(1 - PHANTOM_SHARE)
    assert len(weights) == 4


def test_a_phantom_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_phantoms(tmp_path, 1)[0]
    monkeypatch.setattr(runs, "make_phantom", None)
    again = load_phantoms(tmp_path, 1)[0]
    np.testing.assert_array_equal(first.voxels, again.voxels)
    np.testing.assert_array_equal(first.nodules, again.nodules)
    assert 3 <= len(first.nodules) <= 9


def test_only_scans_of_the_role_are_read(shared_data: Path) -> None:
    (scan,) = scans_of_role(shared_data / "ct", "val")
    ((z, y, x, _),) = scan.nodules
    assert scan.voxels[round(z), round(y), round(x)] > 120
