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
from evaluation.training.commands import distillation as command
from evaluation.training.distillation import ARMS, compare
from models.distillation import distil
from models.distillation.distil import Weigh, lessons_of
from models.distillation.teachers import Teacher, soft_target, weigh
from models.runtime.errors import UnfitArtifact
from models.training.data import Cubes
from models.training.loop import train
from models.training.runs import Run
from tests.models.distillation.test_distil import SMALL, TEACHING, small


def test_a_comparison_that_was_stopped_continues_and_a_finished_one_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are those of one that was not; students of another loss there are refused."""
    run, make = small(tmp_path, monkeypatch)
    held = Cubes((), ("a", "b"), np.zeros(2), np.zeros(2))
    monkeypatch.setattr(distillation, "load_cubes", lambda *_: held)
    lessons = make()

    def compared(of: Run, **given: Any) -> dict[str, Any]:
        return compare(of, lambda: lessons, seeds=2, spec=SMALL, **{"teaching": TEACHING, **given})

    whole = compared(run)
    teachers, students = whole["networks"][:3], whole["networks"][3:]
    named = [*(f"teacher, {path}" for path in lessons.paths), "teacher, mean logit"]
    assert [one["name"] for one in teachers] == named
    assert [one["name"] for one in students] == [f"student, {arm}" for arm in ARMS]
    assert sum(one["weight"] for one in teachers[:2]) == pytest.approx(1)
    assert sum(one.get("best", False) for one in teachers) == 1
    over = [row["over"] for row in whole["gained"]]
    assert [over.count(one) for one in ("no teacher", "best teacher", "mean logit")] == [3, 4, 4]
    works = [one["multiply_adds"] for one in (*teachers, students[0])]
    assert 3 * works[3] > works[0] > works[3]
    assert works[2] == works[0] + works[1]
    regions = whole["regions"]
    assert (regions["learnt"], regions["held_out"]) == (8, 4)
    assert 0 < regions["with_nodule"] < regions["taught"] <= 8
    json.dumps(whole, allow_nan=False)
    assert "| student, no teacher |" in command.table("networks").of(whole).markdown()
    assert "| no teacher | mean logit |" in command.table("gained").of(whole).markdown()
    stopped, calls = replace(run, out=tmp_path / "stopped"), count()

    def once(*args: Any) -> nn.Module:
        assert next(calls) < 5
        return train(*args)

    monkeypatch.setattr(distil, "train", once)
    with pytest.raises(AssertionError):
        compared(stopped)
    monkeypatch.setattr(distil, "train", train)
    assert compared(stopped) == whole
    monkeypatch.setattr(distil, "train", lambda *_: pytest.fail("done before"))
    assert compared(run) == whole
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another weight; expected"):
        compared(run, teaching=replace(TEACHING, weight=0.9))


def test_a_teacher_of_another_kind_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = small(tmp_path, monkeypatch)
    torch.save({}, tmp_path / "screening.pt")
    with pytest.raises(UnfitArtifact, match=r"screening\.pt: no weights of a hybrid"):
        lessons_of(run, [], [tmp_path / "screening.pt"])
    assert not (tmp_path / "regions").exists()


def test_the_weights_are_all_that_arms_differ_in() -> None:
    """They add up to 1 in each region; the best single teacher is that of the least loss."""
    logits, label = np.array([[8.0, -8.0], [0.0, 0.0]]), np.array([1.0, 0.0])
    teachers = [Teacher(1.0, logits[0], 0.3), Teacher(1.0, logits[1], 0.2)]

    def target(way: Weigh) -> np.ndarray:
        return soft_target(teachers, way(teachers, label), 2.0)

    none, single, mean, dynamic = ARMS.values()
    assert np.isnan(target(none)).all()
    assert target(single) == pytest.approx([0.5, 0.5])
    assert target(mean) == pytest.approx([0.741, 0.259], abs=1e-3)
    for way in (single, mean, dynamic):
        assert way(teachers, label).sum(0) == pytest.approx([1, 1])
    np.testing.assert_array_equal(dynamic(teachers, label), weigh(logits, label))
    assert 0.741 < target(dynamic)[0] < 0.982
