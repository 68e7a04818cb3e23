import pytest
import torch

from models.quantization.operators import Rounding, best_scale, rounded


def test_values_land_on_the_levels_and_within_the_range() -> None:
    x = torch.tensor([-3.0, -0.26, 0.24, 0.26, 9.0])
    found = rounded(x, torch.tensor(0.5), -4, 3)
    assert found.tolist() == [-2.0, -0.5, 0.0, 0.5, 1.5]


def test_the_gradient_passes_inside_the_range_only() -> None:
    x = torch.tensor([0.3, 9.0], requires_grad=True)
    rounded(x, torch.tensor(0.5), -4, 3).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0]


def test_the_scale_learns_what_rounding_loses() -> None:
    """Inside, the scale's gradient is the rounding error in levels; beyond, the last level."""
    scale = torch.tensor(0.5, requires_grad=True)
    rounded(torch.tensor([0.3, 9.0]), scale, -4, 3).sum().backward()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx((1 - 0.6) + 3)


def test_the_zero_point_learns_where_the_values_are() -> None:
    """Values from -1 to 3 in a range of 0 to 3.75: what lies below is cut off at first."""
    x = torch.linspace(-1, 3, 401)
    rounding = Rounding(torch.tensor(0.25), 0, 15, learn_zero=True)
    assert float(rounding(x).min().detach()) == 0
    learner = torch.optim.Adam(rounding.parameters(), lr=0.01)
    for _ in range(80):
        learner.zero_grad()
        (rounding(x) - x).square().mean().backward()
        learner.step()
    assert round(float(rounding.zero.detach())) in (3, 4)
    assert float((rounding(x) - x).detach().abs().max()) < 0.3
    weights = Rounding(torch.tensor(0.25), -8, 7)
    assert not weights.zero_offset.requires_grad


@pytest.mark.parametrize("axis", [0, 1])
def test_the_best_scale_clips_an_outlier(axis: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 400) if axis == 0 else torch.randn(400, 3)
    weight.movedim(axis, 0)[1, 0] = 9.0
    scale = best_scale(weight, 7, axis)
    assert scale.shape == (3,)
    assert float(scale[1]) < 9.0 / 7
