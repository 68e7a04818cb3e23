from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.networks.hybrid import HybridNetwork, scales
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.runtime.errors import DamagedArtifact, UnfitArtifact
from models.training.data import NONE, Cubes, Piece
from models.training.runs import Material, Run, make_hybrid, make_network, make_screening
from tests.models.small_networks import SMALL_HYBRID, TINY_HYBRID

SMALL = ScreeningSpec((8, 16, 16, 32), (2, 1, 1))


def saved(network: torch.nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def test_what_a_run_is_made_of_is_in_its_facts(tmp_path: Path) -> None:
    """Any voxel, mark or weight of a start: a run does not go on with another."""
    start = tmp_path / "start.pt"
    start.write_bytes(b"weights")
    piece = Piece(*np.zeros((2, 4, 4, 4), np.uint8), np.zeros((1, 4)), NONE)
    rated = np.array([3.0])
    material = Material(Cubes((piece,), ("p",), rated, rated), (piece,), (piece,), ())
    run = Run(tmp_path, tmp_path / "out", 1e-3, (start,))
    before = run.plan(material, 0.0).facts
    assert (before["patients"], before["start"], len(before["inputs"])) == (1, [str(start)], 12)
    assert run.plan(material, 0.0).facts == before
    moved = replace(piece, nodules=np.ones((1, 4)))
    changed = [replace(material, scans=(moved,)), replace(material, val_scans=(piece,))]
    other = replace(material.learnt, texture=np.array([1.0]))
    changed += [replace(material, learnt=other), replace(material, copies=(piece,))]
    ignored = replace(piece, nodules=NONE, ignored=piece.nodules)
    changed.append(replace(material, scans=(ignored,)))
    found = {run.plan(one, 0.0).facts["inputs"] for one in (material, *changed)}
    start.write_bytes(b"other weights")
    found.add(run.plan(material, 0.0).facts["inputs"])
    assert len(found) == 7


def test_a_file_that_is_no_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DamagedArtifact, match=r"notes\.txt: no weights of a run"):
        make_screening(tmp_path / "notes.txt")
    torch.save({"plan": 1}, tmp_path / "last.pt")
    with pytest.raises(DamagedArtifact, match=r"last\.pt: expected the weights of a network, such"):
        make_screening(tmp_path / "last.pt")
    torch.save({"stem.weight": torch.tensor([torch.nan])}, tmp_path / "nan.pt")
    with pytest.raises(DamagedArtifact, match=r"nan\.pt: stem\.weight has values that are not fin"):
        make_screening(tmp_path / "nan.pt")


@pytest.mark.parametrize("kind", ["screening", "hybrid"])
def test_a_network_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    network = ScreeningNetwork(SMALL) if kind == "screening" else HybridNetwork(TINY_HYBRID)
    path = saved(network, tmp_path / "w.pt")
    back, weights = make_network(kind, [path]).state_dict(), network.state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in back.items())


def test_a_new_network_has_the_requested_size() -> None:
    assert ScreeningSpec.of(make_screening(None, SMALL).state_dict()) == SMALL


def test_some_members_are_taken_of_several(tmp_path: Path) -> None:
    several = saved(HybridNetwork(SMALL_HYBRID), tmp_path / "two.pt")
    assert list(make_hybrid([several], reads=(48,)).members) == ["48"]
    with pytest.raises(
        UnfitArtifact, match=r"two\.pt: no member that reads 32 mm; expected some of \[24, 48\]"
    ):
        make_hybrid([several], reads=(32, 48))
    with pytest.raises(UnfitArtifact, match="the widest member, of 48 mm"):
        make_hybrid([several], reads=(24,))


def member(reads: int, path: Path, seed: int = 0) -> Path:
    """The weights of one member that was trained by itself."""
    torch.manual_seed(seed)
    return saved(HybridNetwork(replace(TINY_HYBRID, reads=(reads,))), path)


def test_members_of_runs_of_their_own_are_joined(tmp_path: Path) -> None:
    """In any order; each answers as before, and the widest alone keeps its decoder."""
    paths = [member(mm, tmp_path / f"{mm}.pt", mm) for mm in (48, 24, 32)]
    joined = make_network("hybrid", paths).eval()
    assert isinstance(joined, HybridNetwork)
    assert joined.spec == TINY_HYBRID
    region = torch.rand(1, 1, 48, 48, 48)
    with torch.inference_mode():
        each = joined.each(region)
        for path, mm in zip(paths, (48, 24, 32), strict=True):
            alone = make_hybrid([path]).eval()(region)
            found = each[TINY_HYBRID.reads.index(mm)]
            torch.testing.assert_close(found.logit, alone.logit)
        torch.testing.assert_close(joined(region).mask, make_hybrid(paths[:1]).eval()(region).mask)
    again = make_hybrid([saved(joined, tmp_path / "all.pt")])
    assert scales(again.state_dict()) == [24, 32, 48]


def test_two_members_of_one_scale_are_refused(tmp_path: Path) -> None:
    one, other = (member(24, tmp_path / f"{n}.pt") for n in "ab")
    with pytest.raises(UnfitArtifact, match=r"b\.pt: a second member that reads 24 mm"):
        make_hybrid([one, other])
    with pytest.raises(UnfitArtifact, match="a second member"):
        make_hybrid([one, one])


def test_a_hybrid_that_does_not_read_the_whole_region_becomes_no_artifact(tmp_path: Path) -> None:
    """A member may be trained alone; its mask would not be the region's."""
    narrow = member(32, tmp_path / "narrow.pt")
    assert make_hybrid([narrow]).spec.reads == (32,)
    with pytest.raises(UnfitArtifact, match=r"narrow\.pt: the widest member reads 32 mm"):
        make_network("hybrid", [narrow])


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    screening = saved(ScreeningNetwork(SMALL), tmp_path / "s.pt")
    with pytest.raises(UnfitArtifact, match=r"s\.pt: no weights of a hybrid network"):
        make_hybrid([member(48, tmp_path / "m.pt"), screening])
    with pytest.raises(UnfitArtifact, match=r"m\.pt: no weights of a screening network"):
        make_screening(tmp_path / "m.pt")
    with pytest.raises(UnfitArtifact, match="2 files, expected one"):
        make_network("screening", [screening, screening])


def test_members_of_different_widths_are_refused(tmp_path: Path) -> None:
    other = HybridNetwork(replace(TINY_HYBRID, reads=(24,), widths=(8, 8, 8)))
    with pytest.raises(UnfitArtifact, match="size mismatch"):
        make_hybrid([member(48, tmp_path / "m.pt"), saved(other, tmp_path / "o.pt")])
