"""The losses: small where the network is right, larger where it is wrong, blind where told so."""

from __future__ import annotations

import torch

from models.training.losses import heat_loss, hybrid_loss, screening_loss


def heat() -> torch.Tensor:
    """One sample of ``(1, 6, 6, 6)`` with one centre and a neighbour of 0.6."""
    found = torch.zeros(1, 6, 6, 6)
    found[0, 2, 3, 4], found[0, 2, 3, 3] = 1.0, 0.6
    return found


def sure(found: torch.Tensor, logit: float = 12.0) -> torch.Tensor:
    """Logits of a network that is sure of every cell, and right where ``found`` is 1."""
    return torch.where(found >= 1, logit, -logit)


def test_heat_is_cheap_when_right_and_dear_when_wrong() -> None:
    """Next to nothing for a perfect map; more for an alarm, as much again for a miss."""
    truth, all_count = heat(), torch.ones(1, 6, 6, 6)
    perfect = heat_loss(sure(truth), truth, all_count)
    assert 0 <= perfect < 1e-4
    alarm = sure(truth)
    alarm[0, 0, 0, 0] = 4.0
    missed = sure(truth)
    missed[0, 2, 3, 4] = -4.0
    assert heat_loss(alarm, truth, all_count) > 3
    assert heat_loss(missed, truth, all_count) > 3


def test_an_alarm_beside_a_centre_costs_less() -> None:
    """The penalty falls off towards the centre, where nobody can tell the cells apart."""
    truth, all_count = heat(), torch.ones(1, 6, 6, 6)
    near, far = sure(truth), sure(truth)
    near[0, 2, 3, 3] = far[0, 5, 0, 0] = 4.0
    costs = [heat_loss(one, truth, all_count) for one in (near, far)]
    assert costs[0] < 0.05 * costs[1]


def test_cells_of_no_weight_are_not_looked_at() -> None:
    """Whatever the network says at an ignored mark costs nothing and teaches nothing."""
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
    """Offsets and diameters that are wrong elsewhere cost nothing."""
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
    """Truth of as many regions, each nodule of 10 mm, no share."""
    count = len(nodule)
    return {
        "nodule": torch.tensor(nodule),
        "log_diameter": torch.full((count,), 10.0).log(),
        "share": torch.zeros(count, 1, 6, 6, 6),
    }


def outputs(logit: list[float], diameter_mm: list[float]) -> tuple[torch.Tensor, ...]:
    """What the hybrid says of as many regions; nowhere a share."""
    count = len(logit)
    diameters = torch.tensor(diameter_mm).log()[:, None].requires_grad_()
    return torch.tensor(logit)[:, None], diameters, torch.full((count, 1, 6, 6, 6), -20.0)


def test_size_is_learnt_from_nodules_only() -> None:
    """A wrong diameter counts for the region with a nodule, not for the one without."""
    said = outputs([5.0, -5.0], [20.0, 90.0])
    size = hybrid_loss(said, batch([1.0, 0.0]))["size"]
    size.backward()
    gradient = said[1].grad
    assert gradient is not None
    assert gradient[0] > 0
    assert gradient[1] == 0
    assert hybrid_loss(outputs([5.0, -5.0], [10.0, 90.0]), batch([1.0, 0.0]))["size"] < 1e-6
    assert hybrid_loss(said, batch([0.0, 0.0]))["size"] == 0


def test_hybrid_is_cheap_when_right() -> None:
    """The right answer costs little, the opposite one much; of the share nothing is asked."""
    truth = batch([1.0, 0.0])
    right = hybrid_loss(outputs([5.0, -5.0], [10.0, 10.0]), truth)
    wrong = hybrid_loss(outputs([-5.0, 5.0], [10.0, 10.0]), truth)
    assert right["nodule"] < 0.1
    assert wrong["nodule"] > 4
    assert right["share"] < 1e-6
