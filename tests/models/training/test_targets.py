import numpy as np
import torch

from models.networks.hybrid import Answers
from models.runtime.detection import find_peaks
from models.training.data import Piece
from models.training.targets import heat_loss, hybrid_loss, make_targets, mask_loss, screening_loss


def sample(nodules: list[list[float]], ignored: list[list[float]] | None = None) -> Piece:
    """A dark sample of 48^3 with the given marks."""
    dark = np.zeros((48, 48, 48), np.uint8)
    marks = [np.array(m or [], float).reshape(-1, 4) for m in (nodules, ignored)]
    return Piece(dark, dark, marks[0], marks[1])


def test_decoding_the_targets_gives_the_nodules_back() -> None:
    nodules = [[12.3, 20.8, 33.1, 5.0], [30.0, 35.5, 10.2, 18.0]]
    targets = make_targets(sample(nodules))
    heat = np.log(np.clip(targets.heat, 1e-4, 1 - 1e-4) / (1 - np.clip(targets.heat, 1e-4, 0.9999)))
    maps = np.concatenate([heat[None], targets.box]).astype(np.float32)
    peaks = find_peaks(maps, least_logit=5, most=9)
    order = np.argsort(peaks.diameter_mm)
    np.testing.assert_allclose(peaks.index_zyx[order], np.array(nodules)[:, :3], atol=0.01)
    np.testing.assert_allclose(peaks.diameter_mm[order], [5, 18], rtol=1e-4)


def test_ignored_marks_weigh_nothing_but_a_nodule_does() -> None:
    """Around an ignored mark the weight is 0; a nodule inside it still counts."""
    targets = make_targets(sample([[22.0, 22, 22, 6]], [[22.0, 22, 22, 20]]))
    assert targets.weight[5, 5, 5] == 1
    assert targets.weight[5, 5, 7] == 0
    assert targets.weight[0, 0, 0] == 1


def test_the_share_is_the_part_of_the_cell_that_is_nodule() -> None:
    piece = sample([[10.0, 10, 10, 6]])
    mask = piece.mask.copy()
    mask[8:10, 8:12, 8:12] = 255
    share = make_targets(Piece(piece.voxels, mask, piece.nodules, piece.ignored)).share
    assert share[2, 2, 2] == 0.5
    assert share.sum() == 0.5


def heat() -> torch.Tensor:
    """One sample of ``(1, 6, 6, 6)`` with one centre and a neighbour of 0.6."""
    found = torch.zeros(1, 6, 6, 6)
    found[0, 2, 3, 4], found[0, 2, 3, 3] = 1.0, 0.6
    return found


def sure(found: torch.Tensor, logit: float = 12.0) -> torch.Tensor:
    """Logits of a network that is sure of every cell, and right where ``found`` is 1."""
    return torch.where(found >= 1, logit, -logit)


def test_heat_is_cheap_when_right_and_dear_when_wrong() -> None:
    """A false positive beside a centre costs less than one elsewhere."""
    truth, all_count = heat(), torch.ones(1, 6, 6, 6)
    perfect = heat_loss(sure(truth), truth, all_count)
    assert 0 <= perfect < 1e-4
    false_positive = sure(truth)
    false_positive[0, 0, 0, 0] = 4.0
    missed = sure(truth)
    missed[0, 2, 3, 4] = -4.0
    assert heat_loss(false_positive, truth, all_count) > 3
    assert heat_loss(missed, truth, all_count) > 3
    near = sure(truth)
    near[0, 2, 3, 3] = 4.0
    assert heat_loss(near, truth, all_count) < 0.05 * heat_loss(false_positive, truth, all_count)


def test_cells_of_no_weight_are_ignored() -> None:
    truth, weight = heat(), torch.ones(1, 6, 6, 6)
    weight[0, 5, 5] = 0
    logit = sure(truth)
    logit[0, 5, 5] = 9.0
    logit.requires_grad_()
    loss = heat_loss(logit, truth, weight)
    loss.backward()
    assert loss < 1e-4
    assert logit.grad is not None
    assert (logit.grad[0, 5, 5] == 0).all()


def test_box_is_learnt_near_nodules_only() -> None:
    truth = heat()
    targets = {
        "heat": truth,
        "weight": torch.ones_like(truth),
        "near": (truth >= 1).float(),
        "box": torch.zeros(1, 4, 6, 6, 6),
        "share": torch.zeros_like(truth),
    }
    maps = torch.zeros(1, 6, 6, 6, 6)
    maps[0, 1:5, 0, 0, 0] = 7.0
    assert screening_loss(maps, targets)["box"] == 0
    maps[0, 1:5, 2, 3, 4] = 7.0
    assert screening_loss(maps, targets)["box"] > 1


def batch(nodule: list[float]) -> dict[str, torch.Tensor]:
    """Truth of as many regions, each nodule of 10 mm, suspicious and solid; no mask."""
    count = len(nodule)
    return {
        "nodule": torch.tensor(nodule),
        "sized": (torch.tensor(nodule) > 0).float(),
        "outlined": (torch.tensor(nodule) > 0).float(),
        "log_diameter": torch.full((count,), 10.0).log(),
        "malignancy": torch.where(torch.tensor(nodule) > 0, 1.0, torch.nan),
        "texture": torch.where(torch.tensor(nodule) > 0, 2, -1),
        "mask": torch.zeros(count, 1, 6, 6, 6),
    }


def answers(logit: list[float], diameter_mm: list[float]) -> Answers:
    """What the hybrid says of as many regions: suspicious, solid, nowhere a mask."""
    count = len(logit)
    return Answers(
        torch.tensor(logit)[:, None],
        torch.tensor(diameter_mm).log()[:, None].requires_grad_(),
        torch.full((count, 1), 9.0),
        torch.tensor([[-9.0, -9.0, 9.0]] * count),
        torch.full((count, 1, 6, 6, 6), -20.0),
    )


def test_size_is_learnt_from_nodules_only() -> None:
    said = answers([5.0, -5.0], [20.0, 90.0])
    size = hybrid_loss(said, batch([1.0, 0.0]))["size"]
    size.backward()
    gradient = said.log_diameter.grad
    assert gradient is not None
    assert gradient[0] > 0
    assert gradient[1] == 0
    assert hybrid_loss(answers([5.0, -5.0], [10.0, 90.0]), batch([1.0, 0.0]))["size"] < 1e-6
    assert hybrid_loss(said, batch([0.0, 0.0]))["size"] == 0


def test_hybrid_is_cheap_when_right() -> None:
    truth = batch([1.0, 0.0])
    right = hybrid_loss(answers([5.0, -5.0], [10.0, 10.0]), truth)
    wrong = hybrid_loss(answers([-5.0, 5.0], [10.0, 10.0]), truth)
    assert right["nodule"] < 0.1
    assert wrong["nodule"] > 4
    for name in ("malignancy", "texture", "voxel"):
        assert right[name] < 1e-3, name


def test_kind_is_learnt_where_readers_said_it() -> None:
    said = answers([5.0], [10.0])._replace(
        malignancy=torch.full((1, 1), -9.0), texture=torch.tensor([[9.0, -9.0, -9.0]])
    )
    rated, unrated = (hybrid_loss(said, batch([known])) for known in (1.0, 0.0))
    for name in ("malignancy", "texture"):
        assert rated[name] > 0.5, name
        assert unrated[name] == 0, name


def test_a_region_whose_label_is_not_taught_has_no_part_in_the_answers_loss() -> None:
    """It still teaches size and outline."""
    truth = batch([1.0, 0.0])
    both = hybrid_loss(answers([1.0, 3.0], [10.0, 10.0]), truth)["nodule"]
    said = answers([1.0, 3.0, -9.0], [10.0, 10.0, 30.0])
    more = batch([1.0, 0.0, torch.nan]) | {
        "sized": torch.tensor([1.0, 0.0, 1.0]), "outlined": torch.tensor([0.0, 0.0, 1.0]),
        "mask": torch.ones(3, 1, 6, 6, 6),
    }  # fmt: skip
    terms = hybrid_loss(said, more)
    torch.testing.assert_close(terms["nodule"], both)
    assert terms["size"] > 0.01
    assert terms["voxel"] > 1
    none = hybrid_loss(answers([1.0], [10.0]), batch([torch.nan]))
    assert none["nodule"] == 0


def test_an_unknown_outline_and_a_member_without_one_teach_none() -> None:
    truth = batch([1.0, 0.0]) | {"outlined": torch.zeros(2), "mask": torch.ones(2, 1, 6, 6, 6)}
    said = answers([5.0, -5.0], [10.0, 10.0])
    terms = hybrid_loss(said, truth)
    assert terms["voxel"] == terms["dice"] == 0
    assert {"voxel", "dice"}.isdisjoint(hybrid_loss(said._replace(mask=torch.zeros(0)), truth))


def test_mask_is_cheap_when_right() -> None:
    truth = torch.zeros(2, 1, 6, 6, 6)
    truth[0, 0, 2:4, 2:4, 2:4] = 1
    nodule = torch.tensor([1.0, 0.0])
    right = mask_loss((truth * 2 - 1) * 15, truth, nodule)
    missed = mask_loss(torch.full_like(truth, -15.0), truth, nodule)
    assert right["voxel"] < 1e-4
    assert right["dice"] < 1e-3
    assert missed["voxel"] > 1
    assert missed["dice"] > 0.15


def test_a_nodule_must_score_the_same_when_it_is_cut_out() -> None:
    """The difference counts where both samples have the nodule, and only there."""
    truth = heat().repeat(2, 1, 1, 1)
    near = (truth >= 1).float()
    targets = {
        "heat": truth,
        "weight": torch.ones_like(truth),
        "near": near,
        "box": torch.zeros(2, 4, 6, 6, 6),
        "share": torch.zeros_like(truth),
        "cut": torch.tensor([False, True]),
    }
    maps = torch.zeros(2, 6, 6, 6, 6)
    maps[1, 0] = 2.0 * (near[1] == 0)  # elsewhere they may differ
    assert screening_loss(maps, targets)["context"] == 0
    maps[1, 0] = -2.0
    assert screening_loss(maps, targets)["context"] > 0.4
