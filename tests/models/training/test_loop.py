import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.runtime.errors import DamagedArtifact, ModelFailed, UnfitArtifact
from models.training.data import Batch
from models.training.loop import Plan, train
from models.training.run_folder import read_log
from tests.models.small_networks import SmallTask, square_error


def line() -> SmallTask:
    """Learns y = 2 x + 1 with one linear layer."""

    def draw(generator: torch.Generator) -> Batch:
        x = torch.rand(16, 1, generator=generator)
        return {"x": x, "y": 2 * x + 1}

    torch.manual_seed(0)
    return SmallTask(nn.Linear(1, 1), draw, square_error)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_learns_and_logs_each_round(tmp_path: Path) -> None:
    plan = Plan(tmp_path, steps=250, rate=5e-2, round_steps=100, seed=3, facts={"patients": 7})
    network = train(line(), plan)
    assert float(network(torch.ones(1, 1)).detach()) == pytest.approx(3.0, abs=0.1)
    log = logged(tmp_path)
    assert [one["steps"] for one in log] == [100, 200, 250]
    assert log[0]["loss_loss"] > 10 * log[-1]["loss_loss"]
    last = log[-1]
    assert (last["seed"], last["patients"], last["left"]) == (3, 7, 2)
    assert last["core_hours"] >= log[0]["core_hours"] >= 0
    assert last["commit"]
    assert torch.__version__ in last["machine"]
    averaged = torch.load(tmp_path / "averaged.pt", weights_only=True)
    torch.testing.assert_close(averaged, dict(network.state_dict()))


class Stopped(Exception):
    """What ends a run in the middle of a round."""


def stopped(_: nn.Module) -> dict[str, float]:
    raise Stopped


def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(tmp_path: Path) -> None:
    """It begins its last round again, draws the same samples, and ends with the same weights."""
    whole = train(line(), Plan(tmp_path / "whole", steps=60, round_steps=20))
    plan = Plan(tmp_path / "stopped", steps=60, round_steps=20, resume=True)
    task, loss = line(), line().loss

    def stops(network: nn.Module, batch: Batch) -> torch.Tensor:
        if task.drawn > 50:
            raise Stopped
        return loss(network, batch)

    task.loss = stops
    with pytest.raises(Stopped):
        train(task, plan)
    # and once more while its third round is measured
    task = line()
    task.evaluate = stopped
    with pytest.raises(Stopped):
        train(task, plan)
    assert [one["steps"] for one in logged(plan.out)] == [20, 40]
    again = line()
    resumed = train(again, plan)
    assert again.drawn == 20
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [one["steps"] for one in logged(plan.out)] == [20, 40, 60]
    train(finished := line(), plan)
    assert finished.drawn == 0


def test_a_run_goes_on_as_it_began_and_no_other_takes_its_folder(tmp_path: Path) -> None:
    plan = Plan(tmp_path, steps=20, round_steps=10, facts={"fold": 1})
    train(line(), plan)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"seed": 2}, "another seed"), ({"steps": 30}, "another steps"),
        ({"facts": {"fold": 2}}, "another fold"),
    ]  # fmt: skip
    for change, told in changes:
        with pytest.raises(UnfitArtifact, match=told):
            train(line(), replace(plan, resume=True, **change))
    with pytest.raises(UnfitArtifact, match="holds a run; expected --resume"):
        train(line(), plan)
    found = torch.load(tmp_path / "last.pt", weights_only=True)
    del found["plan"]  # of an earlier version
    torch.save(found, tmp_path / "last.pt")
    with pytest.raises(UnfitArtifact, match="of an earlier version, does not state steps, rate"):
        train(line(), replace(plan, resume=True))
    assert [one["steps"] for one in logged(tmp_path)] == [10, 20]


def test_a_damaged_checkpoint_or_one_of_another_network_is_named(tmp_path: Path) -> None:
    plan = Plan(tmp_path, steps=20, round_steps=10, resume=True)
    train(line(), plan)
    other = line()
    other.network = nn.Linear(3, 2)
    with pytest.raises(UnfitArtifact, match=r"last\.pt: of a network of another size"):
        train(other, plan)
    whole, log = (tmp_path / "last.pt").read_bytes(), (tmp_path / "log.jsonl").read_text()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "last.pt").write_bytes(damaged)
        with pytest.raises(DamagedArtifact, match=r"last\.pt: no weights of a run, or damaged"):
            train(line(), plan)
    assert (tmp_path / "log.jsonl").read_text() == log
    for damaged_line in (log.splitlines()[-1][:-9], "3", '{"a": 1}', "[" * 9999, "\xff"):
        text = log.splitlines()[0] + "\n" + damaged_line + "\n"
        (tmp_path / "log.jsonl").write_bytes(text.encode("latin-1"))
        with pytest.raises(DamagedArtifact, match=r"log\.jsonl, line 2: is no round of a run"):
            read_log(tmp_path)


def test_a_finished_run_that_lost_a_file_is_not_taken_for_whole(tmp_path: Path) -> None:
    """The averaged weights are written again; a round that is not in the log is missed."""
    plan = Plan(tmp_path, steps=20, round_steps=10, resume=True)
    train(line(), plan)
    (tmp_path / "averaged.pt").unlink()
    train(line(), plan)
    assert (tmp_path / "averaged.pt").exists()
    first, _ = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text(first + "\n")
    with pytest.raises(UnfitArtifact, match=r"log\.jsonl: lacks the round that ended at step 20"):
        train(line(), plan)
    (tmp_path / "log.jsonl").unlink()
    for lost in ("last.pt", ""):  # what pruning leaves has no checkpoint
        with pytest.raises(UnfitArtifact, match="holds a run; expected --resume or a new folder"):
            train(line(), replace(plan, resume=False))
        (tmp_path / (lost or "other")).unlink(missing_ok=True)


def test_a_run_that_ended_before_its_first_round_is_in_nobodys_way(tmp_path: Path) -> None:
    task = line()
    task.evaluate = stopped
    with pytest.raises(Stopped):
        train(task, Plan(tmp_path, steps=20))
    train(line(), Plan(tmp_path, steps=20))
    assert [one["steps"] for one in logged(tmp_path)] == [20]


def test_a_round_that_was_logged_and_not_saved_is_logged_once(tmp_path: Path) -> None:
    plan = Plan(tmp_path, steps=20, round_steps=10, resume=True)
    train(line(), replace(plan, steps=20))
    first = (tmp_path / "log.jsonl").read_text()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"steps": 30, "core_hours": 0.1}\n')
    train(line(), plan)
    assert (tmp_path / "log.jsonl").read_text() == first
    (tmp_path / "last.pt").unlink()
    with pytest.raises(UnfitArtifact, match=r"last\.pt is missing"):
        train(line(), plan)
    assert (tmp_path / "log.jsonl").read_text() == first
    # of a first round nothing was saved
    (tmp_path / "log.jsonl").write_text(first.splitlines()[0] + "\n")
    train(line(), plan)
    assert [one["steps"] for one in logged(tmp_path)] == [10, 20]


def test_rounds_of_two_seeds_draw_different_samples(tmp_path: Path) -> None:
    drawn: list[int] = []
    for seed in (0, 10):
        task = line()
        batches = task.batches

        def noted(seed: int, batches: Any = batches) -> Iterator[Batch]:
            drawn.append(seed)
            return batches(seed)

        task.batches = noted
        train(task, Plan(tmp_path / str(seed), steps=20, round_steps=10, seed=seed))
    assert len(set(drawn)) == len(drawn) == 4


def test_steps_with_gradients_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    task = line()
    task.loss = lambda network, batch: square_error(network, batch) * (1, torch.nan)[task.drawn % 2]
    network = train(task, Plan(tmp_path, steps=20, rate=1e-2))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["skipped"] == 10
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_a_run_without_a_finite_gradient_is_an_error(tmp_path: Path) -> None:
    """Its weights would be random."""
    task = line()
    task.loss = lambda network, batch: square_error(network, batch) * torch.nan
    with pytest.raises(ModelFailed, match="no gradient of a round was finite; lower the rate"):
        train(task, Plan(tmp_path, steps=20))
    assert not (tmp_path / "averaged.pt").exists()
