import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from evaluation.timing.network import BOX
from evaluation.training.pruning import multiply_adds, parameters_left, weight_scores
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.pruning import channels
from models.pruning.channels import (
    CannotPrune,
    channel_scores,
    choose,
    cost,
    cut,
    groups_of,
    is_gate,
    run_pruned,
    widths,
)
from models.runtime.errors import UnfitArtifact
from models.training import runs
from models.training.compose import Composer
from models.training.data import Noise
from models.training.runs import Run, make_screening
from models.training.screening import ScreeningTask
from tests.models.small_networks import SmallTask
from tests.models.training.test_data import ball, even

SPEC = ScreeningSpec((8, 8, 16, 16), (1, 2, 1))


@pytest.fixture
def network() -> ScreeningNetwork:
    """A small network whose batch norms are not the identity."""
    torch.manual_seed(0)
    made = ScreeningNetwork(SPEC).double()
    for _ in range(3):
        made(torch.rand(2, 1, 32, 32, 32, dtype=torch.float64))
    return made.eval()


def shut(network: ScreeningNetwork, gone: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Zeroes everything that writes to those channels; the others, by group."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            group = groups_of(name)[0]
            if group in gone and is_gate(name, weight):
                weight[gone[group]] = 0
    return {
        group: torch.tensor([c for c in range(width) if c not in gone.get(group, [])])
        for group, width in widths(network.state_dict()).items()
    }


def test_channels_that_are_shut_go_without_a_change(network: ScreeningNetwork) -> None:
    gone = {
        "half": [1], "quarter": [0, 5], "eighth": [3, 4, 15], "sixteenth": [2],
        "down8.1": [0, 1, 7], "down16.1": [9], "smooth": [2, 3], "down4.1": [7],
    }  # fmt: skip
    keep = shut(network, gone)
    x = torch.rand(1, 1, 48, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        whole, smaller = network(x), cut(network, keep)(x)
    torch.testing.assert_close(whole, smaller, rtol=0, atol=1e-12)
    assert float(whole.std()) > 0


def test_a_cut_network_is_read_back_from_its_weights(network: ScreeningNetwork) -> None:
    keep = {"down8.2": torch.arange(4), "quarter": torch.arange(6)}
    smaller = cut(network, keep)
    spec = ScreeningSpec.of(smaller.state_dict())
    assert spec.widths == (8, 6, 16, 16)
    assert spec.inner == ((8,), (16, 4), (16,), (8,))
    ScreeningNetwork(spec).load_state_dict(smaller.state_dict())
    assert ScreeningSpec.of(network.state_dict()) == SPEC


@pytest.mark.parametrize("share", [0.2, 0.42, 0.6])
def test_the_requested_share_is_removed(network: ScreeningNetwork, share: float) -> None:
    weights = network.state_dict()
    scores = {group: torch.rand(width) for group, width in widths(weights).items()}
    smaller = cut(network, choose(weights, scores, share, step=2))
    gone = 1 - parameters_left(smaller) / parameters_left(network)
    assert share <= gone < share + 0.1


def test_what_matters_least_goes_first(network: ScreeningNetwork) -> None:
    weights = network.state_dict()
    scores = {group: torch.full((width,), 1e9) for group, width in widths(weights).items()}
    scores["down16.1"] = torch.tensor([float(i % 4) for i in range(16)])
    kept = choose(weights, scores, 0.05, step=4)
    assert kept["down16.1"].tolist() == [i for i in range(16) if i % 4]


def test_more_than_there_is_cannot_go(network: ScreeningNetwork) -> None:
    weights = network.state_dict()
    scores = {group: torch.ones(width) for group, width in widths(weights).items()}
    with pytest.raises(CannotPrune, match="at most"):
        choose(weights, scores, 0.95, step=8)


def test_the_cost_that_choices_go_by_is_the_networks(network: ScreeningNetwork) -> None:
    weights = network.state_dict()
    parameters, multiply = cost(weights, widths(weights))
    assert parameters == parameters_left(network)
    less_training_head = multiply - 8 / 64
    assert less_training_head * math.prod(BOX) == pytest.approx(multiply_adds(network))


def test_shut_channels_and_their_weights_do_not_matter() -> None:
    """A channel inside a block that nothing gets through, and a shut one of a stage."""
    torch.manual_seed(0)
    task = SmallTask(
        ScreeningNetwork(ScreeningSpec((4, 8, 8, 8), (1, 1, 1))),
        lambda generator: {"voxels": torch.rand(2, 1, 32, 32, 32, generator=generator)},
        lambda network, batch: network(batch["voxels"]).float().square().mean(),
    )
    parts = dict(task.network.named_modules())
    with torch.no_grad():
        for part, channel in (("down8.1.first.1", 3), ("down8.0.1", 5), ("down8.1.second.1", 5)):
            parts[part].weight[channel] = parts[part].bias[channel] = 0
        parts["lateral8"].weight[5] = parts["lateral8"].bias[5] = 0
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    weights, scores = weight_scores(task, 2), channel_scores(task, 1)
    assert all(torch.equal(v, before[n]) for n, v in task.network.state_dict().items())
    assert not weights["down8.1.first.0.weight"][3].any()
    assert weights["down8.1.first.0.weight"][0].any()
    assert {group: len(score) for group, score in scores.items()} == widths(before)
    assert scores["down8.1"][3] == scores["eighth"][5] == 0
    assert int((scores["eighth"] > 0).sum()) == 7
    assert float(scores["quarter"].max()) > 0


def small_task() -> ScreeningTask:
    """Two cubes and an even lung for a network of a few channels."""
    torch.manual_seed(0)
    network = ScreeningNetwork(ScreeningSpec((8, 32, 32, 32), (1, 1, 1)))
    cubes = [ball((48, 48, 48), (24.6, 25.2, 24.9), d) for d in (6.0, 10.0)]
    scan = even((64, 64, 64))
    composer = Composer(cubes, [scan], side=48, noise=Noise(48, 0))
    return ScreeningTask(composer, cubes, [scan], network, batch=2, workers=0)


def test_a_pruned_network_is_fine_tuned_and_starts_a_run_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "BATCHES", 1)
    monkeypatch.setattr(runs, "screening_task", lambda *_: small_task())
    monkeypatch.setattr(Run, "material", lambda _: None)
    start = tmp_path / "start.pt"
    torch.save(small_task().network.state_dict(), start)
    run = Run(tmp_path, tmp_path / "out", 1e-3, (start,), steps=2)
    found = run_pruned(run, 0.42)
    smaller = make_screening(run.out / "averaged.pt")
    assert asdict(ScreeningSpec.of(smaller.state_dict())) == found["spec"]
    assert parameters_left(smaller) < 0.6 * parameters_left(make_screening(start))
    assert {"cpm", "at_8"} <= found["before"].keys() == found["after"].keys()
    with pytest.raises(UnfitArtifact, match="it holds a run; expected a new folder"):
        run_pruned(run, 0.42)
