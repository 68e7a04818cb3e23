import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.training import distillation
from evaluation.training.commands import ARMS as TITLES
from evaluation.training.commands import distillation as command
from evaluation.training.distillation import ARMS, compare
from models.distillation import distil
from models.distillation.distil import Distillation
from models.distillation.teachers import Teacher, soft_target, weigh
from models.runtime.errors import MissingData, UnfitArtifact
from models.training.data import Cubes
from models.training.hybrid import HybridTask
from models.training.loop import train
from models.training.run_folder import read_log
from models.training.runs import Run
from tests.models.distillation.test_distil import small
from tests.models.training.test_hybrid import HELD, BrightHeat, drawer


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distillation:
    held = Cubes((), ("a", "b"), np.zeros(2), np.zeros(2))
    monkeypatch.setattr(distillation, "load_cubes", lambda *_: held)
    return small(tmp_path, monkeypatch)


def test_a_comparison_that_was_stopped_continues_and_a_finished_one_is_only_read(
    given: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are those of one that was not; students of another loss there are refused."""
    whole = compare(given, seeds=2)
    assert tuple(whole["arms"]) == tuple(ARMS) == tuple(TITLES)
    assert all(len(views["both"]["seeds"]) == 2 for views in whole["arms"].values())
    teachers = whole["teachers"]
    assert [one["name"] for one in teachers] == [*map(str, given.teachers), "mean logit"]
    assert sum(one["weight"] for one in teachers[:2]) == pytest.approx(1)
    assert sum(one["best"] for one in teachers) == 1
    assert {over: len(arms) for over, arms in whole["gained"].items()} == {
        "no teacher": 3, "best teacher": 4, "mean logit": 4
    }  # fmt: skip
    assert 3 * whole["multiply_adds"] > teachers[0]["multiply_adds"] > whole["multiply_adds"]
    assert (whole["regions"]["learnt"], whole["regions"]["held_out"]) == (8, 4)
    assert 0 < whole["regions"]["with_nodule"] < whole["regions"]["taught"] <= 8
    json.dumps(whole, allow_nan=False)
    networks = command.table("networks").of(whole).markdown()
    assert all(f"student, {title} |" in networks for title in TITLES.values())
    assert "no teacher, over mean logit" in command.table("gained").of(whole).markdown()
    stopped, calls = replace(given, out=given.data / "stopped"), count()

    def once(*args: Any) -> nn.Module:
        assert next(calls) < 5
        return train(*args)

    monkeypatch.setattr(distil, "train", once)
    with pytest.raises(AssertionError):
        compare(stopped, seeds=2)
    monkeypatch.setattr(distil, "train", train)
    assert compare(replace(stopped), seeds=2) == whole
    with monkeypatch.context() as finished:
        for name in ("train", "make_chunks", "validation_of"):
            finished.setattr(distil, name, lambda *_: pytest.fail("done before"))
        assert compare(replace(given), seeds=2) == whole
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another weight; expected"):
        compare(replace(given, teaching=replace(given.teaching, weight=0.9)))
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another chunk"):
        compare(replace(given, out=given.data / "new", chunk=2))
    torch.save({}, given.data / "screening.pt")
    with pytest.raises(UnfitArtifact, match=r"screening\.pt: no weights of a hybrid"):
        compare(replace(given, out=given.data / "no", teachers=(given.data / "screening.pt",)))
    assert not (given.data / "no").exists()


def test_the_weights_are_all_that_arms_differ_in() -> None:
    """They add up to 1 in each region; the best single teacher is that of the least loss."""
    logits, label = np.array([[8.0, -8.0], [0.0, 0.0]]), np.array([1.0, 0.0])
    teachers = [Teacher(1.0, logits[0], 0.3), Teacher(1.0, logits[1], 0.2)]
    weights = {arm: way(teachers, label) for arm, way in ARMS.items()}
    targets = {arm: soft_target(teachers, of, 2.0) for arm, of in weights.items()}
    assert np.isnan(targets["none"]).all()
    assert targets["single"] == pytest.approx([0.5, 0.5])
    assert targets["mean"] == pytest.approx([0.741, 0.259], abs=1e-3)
    assert all(of.sum(0) == pytest.approx([1, 1]) for arm, of in weights.items() if arm != "none")
    np.testing.assert_array_equal(weights["dynamic"], weigh(logits, label))
    assert 0.741 < targets["dynamic"][0] < 0.982


def test_the_larger_teacher_is_stopped_after_its_first_round(
    given: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, begun = Run.plan, list[str]()

    def task(*given: Any) -> HybridTask:
        begun.append("trained")
        return HybridTask(drawer(), HELD, given[-1], batch=3, workers=0)

    monkeypatch.setattr(distillation, "committed", lambda *_: given.teachers[0])
    monkeypatch.setattr(distillation, "make_screening", lambda _: BrightHeat())
    monkeypatch.setattr(distillation, "hybrid_task", task)
    monkeypatch.setattr(Run, "plan", lambda *a, **o: replace(plan(*a, **o), steps=4, round_steps=2))
    folder = given.data / "teachers"
    made = [distillation.larger_teacher(given.data, folder, given.teachers[0]) for _ in range(2)]
    assert made == [folder / "teacher-B" / "averaged.pt"] * 2
    assert made[0].exists()
    assert [one["steps"] for one in read_log(made[0].parent)] == [2]
    assert begun == ["trained"]


def test_a_teacher_that_the_history_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="is not in the history of this checkout"):
        distillation.committed(tmp_path, "0000000", "hybrid")
