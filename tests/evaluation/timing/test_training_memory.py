import pytest
import torch

from evaluation.timing.training_memory import (
    blocks,
    make_network,
    measure,
    pool_gradients,
    training,
)
from models.networks.hybrid import HybridNetwork, HybridSpec

SPEC = HybridSpec(side=16, reads=(8, 16), widths=(4, 8, 8), blocks=(1, 1, 1), channels=32, depth=2)


def make(*savings: str) -> HybridNetwork:
    return make_network(savings, SPEC)


def slopes(network: HybridNetwork) -> dict[str, torch.Tensor]:
    """The gradient of every weight after one pass forth and back."""
    x = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    sum(answer.square().mean() for answer in network(x)).backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("saving", ["checkpointing", "recomputation"])
def test_what_is_computed_again_gives_the_same_gradients(saving: str) -> None:
    """Of every weight, to the last bit that float32 gives."""
    wanted, found = slopes(make()), slopes(make(saving))
    assert wanted.keys() == found.keys()
    for name, slope in wanted.items():
        torch.testing.assert_close(found[name], slope, rtol=1e-5, atol=1e-7)


def test_a_checkpointed_block_keeps_less_for_the_way_back() -> None:
    def kept(network: HybridNetwork) -> int:
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            answers = network(torch.rand(2, 1, 16, 16, 16))
        assert answers.logit.requires_grad
        return sum(seen.values())

    assert kept(make("checkpointing")) < 0.7 * kept(make())


def test_the_blocks_of_every_member_are_computed_again() -> None:
    network = make()
    wrapped = blocks(network)
    names = {tuple(n.split(".")[1:3]) for n, m in network.named_modules() if m in wrapped}
    each = {"down2", "down4", "down8", "encoder"}
    assert {part for mm, part in names if mm == "8"} == each
    assert {part for mm, part in names if mm == "16"} == each | {"back4", "back2"}


def test_a_shared_encoder_has_one_layers_weights_in_each_member() -> None:
    plain, shared = make(), make("sharing")
    layer = sum(p.numel() for p in plain.listed()[0].encoder[0].parameters())
    count = [sum(p.numel() for p in n.parameters()) for n in (plain, shared)]
    assert count[0] - count[1] == 2 * layer
    for member in shared.listed():
        assert len(member.encoder) == 2
        assert member.encoder[0] is member.encoder[1]
    once = slopes(shared)["members.8.encoder.0.mix.weight"]
    assert once.any()


def test_gradients_land_in_the_buffer() -> None:
    wanted, network = slopes(make()), make()
    pool_gradients(network)
    for name, slope in slopes(network).items():
        torch.testing.assert_close(slope, wanted[name], rtol=1e-5, atol=1e-7)
    places = [p.grad.data_ptr() for p in network.parameters() if p.grad is not None]
    assert max(places) - min(places) < 4 * sum(p.numel() for p in network.parameters())


def test_a_measurement_says_peak_times_and_losses() -> None:
    """The peak is the process's, and this one has had higher ones before: it is only told."""
    said = measure(["bf16", "sharing"], 2, 1, spec=SPEC)
    assert isinstance(said["peak_bytes"], int)
    assert len(said["took_s"]) == len(said["losses"]) == 1
    assert 0 < said["losses"][0] < 100


def test_buffers_change_no_step_and_stay_where_they_are() -> None:
    (_, plain), (network, pooled) = (
        training(savings, 2, SPEC, torch.device("cpu")) for savings in ([], ["buffers"])
    )
    weight = network.listed()[0].answer.weight
    before, place = weight.detach().clone(), weight.grad.data_ptr()
    torch.testing.assert_close([plain(), plain()], [pooled(), pooled()], rtol=1e-4, atol=0)
    assert not torch.equal(weight, before)
    assert weight.grad.data_ptr() == place
