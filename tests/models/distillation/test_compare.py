import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.distillation import compare
from models.distillation import teachers as distil_teachers
from models.distillation.compare import ARMS, Comparison, distil_tables, run_compare, soft_targets
from models.distillation.pool import Pool, draw_pool, load_pool, mark_of, save_pool
from models.distillation.scores import Scores
from models.distillation.student import Teaching, middle_heat
from models.distillation.teachers import Teacher, make_teacher, open_teacher, temperature_of
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.networks.teacher import Kind, TeacherNetwork, TeacherSpec
from models.runtime.errors import UnfitArtifact
from models.training.data import Cubes
from models.training.loop import Plan, train
from models.training.regions import Region
from tests.models.training import test_hybrid
from tests.models.training.test_data import ball
from tests.models.training.test_regions import SIDE

SMALL = ScreeningSpec((4, 8, 8, 8), (1, 1, 1))


def screening() -> ScreeningNetwork:
    torch.manual_seed(0)
    return ScreeningNetwork(SMALL).eval()


def teacher(kind: Kind, folder: Path) -> Path:
    """The weights of a small teacher after a step or two."""
    network = TeacherNetwork(TeacherSpec(kind, SMALL, (4, 8, 8), (1, 1)))
    network.start_from(screening().state_dict())
    task = replace(test_hybrid.task(), network=network, batch=2)
    train(task, Plan(folder, minutes=0.002, evaluation_minutes=1))
    return folder / "averaged.pt"


@pytest.fixture(scope="module")
def made() -> Pool:
    """Twenty regions, and four of validation."""
    cubes = tuple(ball((50, 50, 50), (25, 25, 25), d) for d in (8.0, 12.0))
    val = Cubes(cubes, ("a", "b"), np.zeros(2), np.zeros(2))
    return draw_pool(test_hybrid.task(), val, screening(), count=20, seed=0, workers=0)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, made: Pool) -> Comparison:
    """A comparison with two teachers of different kinds, each trained for a moment."""
    folder = tmp_path_factory.mktemp("distil")
    torch.save(screening().state_dict(), folder / "start.pt")
    kinds = (Kind.RESIDUAL, Kind.CONVNEXT)
    teachers = tuple(teacher(kind, folder / kind.value) for kind in kinds)
    save_pool(made, folder / "pool")
    return Comparison(
        folder / "start.pt", teachers, folder / "pool", folder / "out", seeds=2, minutes=0.002,
        teaching=Teaching(batch=2, workers=0),
    )  # fmt: skip


def test_a_comparison_lists_every_arm(asked: Comparison) -> None:
    result = run_compare(asked)
    assert tuple(result["arms"]) == tuple(ARMS)
    assert all(len(figures["auc"]["seeds"]) == 2 for figures in result["arms"].values())
    assert sum(t["mean_weight"] for t in result["teachers"]) == pytest.approx(1)
    assert {t["name"] for t in result["teachers"]} == {"residual", "convnext"}
    assert result["best_single"] in {"residual", "convnext"}
    assert tuple(result["gained"]) == tuple(ARMS)[1:]
    text = distil_tables(result)
    assert "dynamic weights" in text
    assert "+2.3" in text
    json.dumps(result, allow_nan=False)


def test_a_finished_comparison_is_only_read_and_another_refused(
    asked: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students of another loss in the same folder would be compared with these."""
    first = run_compare(asked)
    monkeypatch.setattr(compare, "train_student", None)
    monkeypatch.setattr(distil_teachers, "logits", None)
    assert run_compare(asked) == first
    with pytest.raises(UnfitArtifact, match=r"plan\.json: .* another weight"):
        run_compare(replace(asked, teaching=replace(asked.teaching, weight=0.9)))


def test_the_soft_target_is_all_that_arms_differ_in() -> None:
    nothing = Scores(np.zeros(0), np.zeros(0), np.zeros(0))
    sure = Teacher("a", "", 1.0, np.array([8.0, -8.0]), nothing)
    unsure = Teacher("b", "", 1.0, np.array([0.0, 0.0]), nothing)
    weights = np.array([[1.0, 1.0], [0.0, 0.0]])
    targets = soft_targets([sure, unsure], weights, unsure, 2.0)
    assert targets["none"] is None
    assert targets["single"] == pytest.approx([0.5, 0.5])
    assert targets["dynamic"] == pytest.approx([0.982, 0.018], abs=1e-3)
    assert targets["mean"] == pytest.approx([0.741, 0.259], abs=1e-3)


def test_a_pool_holds_what_was_drawn_and_comes_back_as_it_was(tmp_path: Path, made: Pool) -> None:
    save_pool(made, tmp_path)
    back = load_pool(tmp_path)
    for field in fields(Pool):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(made, field.name))
    assert back.key == made.key != replace(made, nodules=made.nodules + 1).key
    assert back.learnt == 18
    assert back.voxels.shape == (20, SIDE, SIDE, SIDE)
    assert 0 < back.label.mean() < 1
    for number, label in enumerate(back.label):
        piece = back.piece(number)
        assert len(piece.nodules) == label
        assert piece.voxels.shape == piece.mask.shape == (SIDE, SIDE, SIDE)
        assert set(np.unique(piece.mask)) <= {0, 255}


def test_the_mark_is_where_the_outline_is() -> None:
    off = ball((48, 48, 48), (26.0, 22.0, 23.5), 9.0)
    mark = mark_of(Region(off.voxels, off.mask, 9.0))
    np.testing.assert_allclose(mark, [26, 22, 23.5, 9], atol=0.3)
    blank = np.zeros_like(off.mask)
    assert mark_of(Region(off.voxels, blank, 9.0)).tolist() == [23.5, 23.5, 23.5, 9]
    assert mark_of(Region(off.voxels, blank)).tolist() == [0, 0, 0, 0]


def test_a_score_is_the_highest_heat_in_the_middle() -> None:
    maps = torch.zeros(2, 6, 12, 12, 12)
    maps[0, 0, 5, 6, 5] = 3.0
    maps[0, 0, 4, 6, 6] = 9.0
    maps[1, 1] = 7.0
    assert middle_heat(maps).tolist() == [3.0, 0.0]


def test_the_temperature_makes_a_loud_teacher_quiet() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 5000)
    label = rng.random(5000) < 1 / (1 + np.exp(-logits))
    found = temperature_of(3 * logits[label], 3 * logits[~label])
    assert found == pytest.approx(3.0, rel=0.15)


def test_weights_of_no_teacher_are_refused(asked: Comparison) -> None:
    with pytest.raises(UnfitArtifact, match=r"start\.pt: no weights of a teacher"):
        open_teacher(asked.start)
    with pytest.raises(UnfitArtifact, match="weights of a residual teacher, expected multiscale"):
        make_teacher(asked.teachers[0], Kind.MULTISCALE, screening())
