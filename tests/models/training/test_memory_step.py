"""One process's measurement: what it says, and that buffers and bf16 train as the plain step."""

from __future__ import annotations

import torch

from models.networks.hybrid import HybridSpec
from models.networks.screening import ScreeningSpec
from models.training.memory_step import Trainer, measure

SMALL = HybridSpec(
    side=16, known=ScreeningSpec((4, 8, 8, 8), (1, 1, 1)), widths=(4, 8), blocks=(1, 1),
    channels=32, depth=2, heads=1,
)  # fmt: skip


def test_a_measurement_says_peak_times_and_losses() -> None:
    """Tensors hold at least the weights and the batch; a step has a time and a finite loss.

    The peak is the process's, and this one has had higher ones before: it is only told.
    """
    said = measure(["bf16", "sharing"], 2, 1, spec=SMALL)
    assert isinstance(said["peak_bytes"], int)
    assert said["tensor_bytes"] > 4 * said["parameters"] + 2 * 16**3
    assert len(said["took_s"]) == len(said["losses"]) == 1
    assert 0 < said["losses"][0] < 100


def test_buffers_change_no_step() -> None:
    """Two steps give the losses that they give with fresh tensors, and the weights move."""
    device = torch.device("cpu")
    plain, pooled = (Trainer(s, 2, SMALL, device) for s in ([], ["buffers"]))
    before = plain.network.answer.weight.detach().clone()
    torch.testing.assert_close(
        [plain.step(), plain.step()], [pooled.step(), pooled.step()], rtol=1e-4, atol=0
    )
    assert not torch.equal(plain.network.answer.weight, before)
