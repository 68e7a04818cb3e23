from dataclasses import replace

import pytest
import torch
from torch import nn

from models.networks.hybrid import (
    EncoderLayer,
    HybridNetwork,
    HybridSpec,
    scales,
    shortened,
    without_spare_decoders,
)
from models.networks.screening import MAPS, ScreeningNetwork
from models.runtime.second_reader import TEXTURES
from tests.models.small_networks import TINY_HYBRID


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
    x = torch.rand(1, 1, 144, 16, 16)
    with torch.inference_mode():
        here, there = network(x[:, :, :128]), network(x[:, :, 16:])
    torch.testing.assert_close(here[:, :, 14:18], there[:, :, 10:14], atol=1e-4, rtol=1e-3)


def test_the_hybrid_of_three_scales_answers_all_its_questions() -> None:
    network = HybridNetwork()
    assert list(network.members) == ["24", "32", "48"]
    with torch.inference_mode():
        answers = network.eval()(torch.rand(2, 1, 48, 48, 48))
    shapes = [tuple(answer.shape) for answer in answers]
    assert shapes == [(2, 1), (2, 1), (2, 1), (2, len(TEXTURES)), (2, 1, 48, 48, 48)]


def test_the_answers_are_the_means_over_the_members() -> None:
    """Diameter and outline are those of the widest, which alone sees the whole region."""
    torch.manual_seed(0)
    network = HybridNetwork(TINY_HYBRID).eval()
    x = torch.rand(2, 1, 48, 48, 48)
    with torch.inference_mode():
        answers, each = network(x), network.each(x)
    for name in ("malignancy", "texture"):
        mean = sum(getattr(one, name) for one in each) / 3
        torch.testing.assert_close(getattr(answers, name), mean)
    by_volume = [(48 / mm) ** 3 for mm in (24, 32, 48)]
    told = sum(w * one.logit for w, one in zip(by_volume, each, strict=True)) / sum(by_volume)
    torch.testing.assert_close(answers.logit, told)
    assert torch.equal(answers.log_diameter, each[-1].log_diameter)
    assert torch.equal(answers.mask, each[-1].mask)
    assert all(one.mask.numel() == 0 for one in each[:-1])


def test_a_shorter_network_answers_alike_where_what_it_lacks_adds_nothing() -> None:
    """Of four layers it keeps the second and the last, of the blocks at 1/8 the first two."""
    torch.manual_seed(0)
    network = HybridNetwork(replace(TINY_HYBRID, blocks=(1, 1, 3), depth=4)).eval()
    x = torch.rand(2, 1, 48, 48, 48)
    short = shortened(network, (9, 9, 2), 2).eval()
    assert short.spec == replace(TINY_HYBRID, blocks=(1, 1, 2), depth=2)
    with torch.inference_mode():
        assert not torch.allclose(short(x).logit, network(x).logit, atol=1e-5)
        for member in network.listed():
            member.down8[3] = nn.Identity()
            member.encoder[0] = member.encoder[2] = nn.Identity()
        torch.testing.assert_close(short(x).logit, network(x).logit)


def test_a_layer_asked_for_the_first_tokens_gives_them_as_for_all() -> None:
    torch.manual_seed(0)
    layer, x = EncoderLayer(64, 2), torch.rand(2, 9, 64)
    torch.testing.assert_close(layer(x, 1), layer(x)[:, :1])


@pytest.mark.parametrize("edge", [2, 10, 14, 20])
def test_a_member_does_not_see_beyond_its_scale_and_the_widest_sees_all(edge: int) -> None:
    """Other voxels at ``edge`` from the region's face change the answers of those that see them."""
    torch.manual_seed(0)
    network = HybridNetwork(TINY_HYBRID).double().eval()
    x = torch.rand(1, 1, 48, 48, 48).double()
    y = x.clone()
    y[..., edge - 2 : edge, :, :] = torch.rand(2, 48, 48).double()
    with torch.inference_mode():
        changed = {
            mm: not torch.equal(a.logit, b.logit)
            for mm, a, b in zip(network.spec.reads, network.each(x), network.each(y), strict=True)
        }
    assert changed == {mm: edge > (48 - mm) // 2 for mm in (24, 32, 48)}


def test_a_member_reads_the_middle_magnified() -> None:
    """A ball of 6 mm in the middle fills the same share of a member's view as of its scale."""
    network = HybridNetwork(TINY_HYBRID)
    grid = torch.stack(torch.meshgrid(*[torch.arange(48.0)] * 3, indexing="ij"))
    ball = ((grid - 23.5).square().sum(0) < 3**2).float()[None, None]
    for mm, member in zip(network.spec.reads, network.listed(), strict=True):
        view = member.view(ball)
        assert view.shape == (1, 1, 48, 48, 48)
        volume = float(view.sum() / ball.sum())
        assert volume == pytest.approx((48 / mm) ** 3, rel=0.1)


def test_the_spec_follows_from_the_weights() -> None:
    for spec in (TINY_HYBRID, HybridSpec(reads=(32,), blocks=(1, 2, 1), channels=64, depth=2)):
        assert HybridSpec.of(HybridNetwork(spec).state_dict()) == spec
    with pytest.raises(KeyError):
        HybridSpec.of(ScreeningNetwork().state_dict())


def test_a_member_that_is_not_the_widest_loses_its_decoder() -> None:
    alone = HybridNetwork(HybridSpec(reads=(24,), widths=(4, 8, 8), blocks=(1, 1, 1), channels=32))
    wide = HybridNetwork(HybridSpec(reads=(48,), widths=(4, 8, 8), blocks=(1, 1, 1), channels=32))
    both = alone.state_dict() | wide.state_dict()
    kept = without_spare_decoders(both)
    assert scales(kept) == [24, 48]
    lost = {name.split(".", 1)[1].split(".", 1)[1].split(".")[0] for name in both.keys() - kept}
    assert lost == {"up4", "back4", "up2", "back2", "mask"}
    assert all(name.startswith("members.24.") for name in both.keys() - kept.keys())
