import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.distillation import compare
from models.distillation.compare import ARMS, VIEWS, Comparison, distil_tables
from models.distillation.regions import answers_of, make_chunks, packed, region_of, values_of
from models.distillation.student import StudentTask, Teaching, student_loss, varied
from models.networks.hybrid import Answers, HybridNetwork
from models.runtime.errors import UnfitArtifact
from models.training.data import Batch, Cubes
from models.training.hybrid import hybrid_loss, losses_of_members
from models.training.loop import Plan, train
from models.training.regions import Region, as_sample
from models.training.runs import Material, Run
from tests.models.small_networks import TINY_HYBRID
from tests.models.training.test_data import ball, even
from tests.models.training.test_hybrid import HELD, BrightHeat, Brightness, drawer

SMALL = replace(TINY_HYBRID, reads=(48,))
TEACHING = Teaching(batch=3, workers=0)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """Two teachers and students of two steps; two cubes and one lung, whose samples are small."""
    cubes = tuple(ball((50, 50, 50), (24.5, 24.5, 24.5), d) for d in (8.0, 12.0))
    held = Cubes(cubes, ("a", "b"), np.zeros(2), np.zeros(2))
    scan = even((52, 52, 48))
    scan.voxels[20:26, 30:36, 24:30] = 220
    marked = replace(scan, nodules=np.array([[22.5, 32.5, 26.5, 6]]), name="c")
    monkeypatch.setattr(Run, "material", lambda _: Material(held, (scan,), cubes, (marked,)))
    monkeypatch.setattr(compare, "make_screening", lambda _: BrightHeat())
    monkeypatch.setattr(compare, "region_drawer", lambda *_: drawer())
    monkeypatch.setattr(compare, "load_cubes", lambda *_: held)
    paths = tuple(tmp_path / name / "averaged.pt" for name in ("x", "y"))
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        path.parent.mkdir()
        torch.save(HybridNetwork(TINY_HYBRID).state_dict(), path)
    return Comparison(
        tmp_path, tmp_path / "out", 1e-3, (), steps=2, screening=paths[:1],
        teachers=paths, regions=tmp_path / "regions", count=5, seeds=2, spec=SMALL,
        teaching=TEACHING, chunk=4,
    )  # fmt: skip


def test_a_comparison_that_was_stopped_continues_and_a_finished_one_is_only_read(
    given: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are those of one that was not; students of another loss there are refused."""
    whole = given.compare()
    assert tuple(whole["arms"]) == tuple(ARMS)
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
    table = distil_tables(whole)
    assert all(title in table for title in (*ARMS.values(), *VIEWS.values()))
    stopped, calls = replace(given, out=given.data / "stopped"), count()

    def once(*args: Any) -> nn.Module:
        assert next(calls) < 5
        return train(*args)

    monkeypatch.setattr(compare, "train", once)
    with pytest.raises(AssertionError):
        stopped.compare()
    monkeypatch.setattr(compare, "train", train)
    assert replace(stopped).compare() == whole
    with monkeypatch.context() as finished:
        for name in ("train", "make_chunks", "validation_of"):
            finished.setattr(compare, name, lambda *_: pytest.fail("done before"))
        assert replace(given).compare() == whole
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another weight; expected"):
        replace(given, teaching=replace(given.teaching, weight=0.9)).compare()
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another seed"):
        replace(given, out=given.data / "new", seed=7).compare()
    torch.save({}, given.data / "screening.pt")
    with pytest.raises(UnfitArtifact, match=r"screening\.pt: no weights of a hybrid"):
        replace(given, out=given.data / "no", teachers=(given.data / "screening.pt",)).compare()
    assert not (given.data / "no").exists()


def test_a_student_goes_on_as_any_run_and_tells_its_teachers(given: Comparison) -> None:
    whole = replace(given, arms=("dynamic",), seeds=1).compare()
    folder = given.out / "dynamic-0"
    line = json.loads((folder / "log.jsonl").read_text())
    assert (line["steps"], line["arm"], line["patients"]) == (2, "dynamic weights", 2)
    assert line["teachers"] == list(map(str, given.teachers))
    assert {"loss_nodule", "loss_soft", "alone", "both"} <= set(line)
    again = replace(
        given, arms=("none",), seeds=1, start=given.teachers[1:], out=given.data / "next"
    )
    found = again.compare()
    assert tuple(found["arms"]) == ("none",)
    assert json.loads((again.out / "none-0" / "log.jsonl").read_text())["teachers"] == []
    assert found["multiply_adds"] == whole["multiply_adds"]  # of the three members the one of 48 mm


@pytest.fixture(scope="module")
def regions() -> list[Region]:
    return list(islice(drawer(share=0.5).stream(np.random.default_rng(0)), 12))


def test_a_region_comes_back_as_it_was(regions: list[Region]) -> None:
    for record, region in zip(packed(regions), regions, strict=True):
        back, wanted = as_sample(region_of(record)), as_sample(region)
        wanted["mask"] = (wanted["mask"] > 0.5).float()
        for name, value in wanted.items():
            torch.testing.assert_close(back[name], value, equal_nan=True)


def test_chunks_and_answers_are_made_once(tmp_path: Path) -> None:
    """One that is missing comes as it was; each has a seed of its own."""
    drawers, teachers = count(), count()

    class Counting(Brightness):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            next(teachers)
            return super().forward(x)

    def chunks() -> list[Path]:
        return make_chunks(tmp_path / "a", 3, lambda: (next(drawers), drawer())[1], seed=1, size=2)

    def answers() -> np.ndarray:
        return answers_of(chunks(), "ab12", Counting())

    first = answers()
    bytes_of = [path.read_bytes() for path in chunks()]
    assert len(set(bytes_of)) == 3
    np.testing.assert_array_equal(answers(), first)
    assert (next(drawers), next(teachers)) == (3, 3)
    chunks()[1].unlink()
    (tmp_path / "a" / "0002.ab12.npy").unlink()
    np.testing.assert_array_equal(answers(), first)
    assert [path.read_bytes() for path in chunks()] == bytes_of
    assert (next(drawers), next(teachers)) == (5, 5)
    assert values_of(chunks(), "nodule").shape == first.shape == (6,)


def test_a_student_without_teacher_learns_as_a_hybrid_does(
    regions: list[Region], tmp_path: Path
) -> None:
    """With one it differs, also if only one region has a soft target."""
    path = tmp_path / "0.npy"
    np.save(path, packed(regions))

    class Plain(StudentTask):
        def losses(self, network: nn.Module, batch: Batch) -> Batch:
            return losses_of_members(network, batch, hybrid_loss)

    def trained(kind: type[StudentTask], soft: float) -> nn.Module:
        target = np.full(len(regions), np.nan)
        target[0] = soft
        torch.manual_seed(0)
        task = kind([path], target, TEACHING, HELD, HybridNetwork(SMALL))
        return train(task, Plan(tmp_path / f"{kind.__name__}{soft}", steps=4, half=False))

    plain, none, taught = (
        torch.cat([p.detach().flatten() for p in trained(*pair).parameters()])
        for pair in ((Plain, np.nan), (StudentTask, np.nan), (StudentTask, 0.5))
    )
    assert torch.equal(plain, none)
    assert not torch.equal(plain, taught)


def test_the_soft_target_draws_the_logit_at_the_temperature(regions: list[Region]) -> None:
    """By w t^2 times its cross-entropy, where there is one; the label alone draws the others."""
    batch = {name: value[None] for name, value in as_sample(regions[0]).items()}
    batch = {name: torch.cat([value] * 2) for name, value in batch.items()}
    batch["soft"] = torch.tensor([0.9, np.nan])
    logit = torch.zeros(2, 1, requires_grad=True)
    blank = torch.zeros(2, 1)
    answers = Answers(logit, blank, blank, torch.zeros(2, 3), torch.zeros(0))
    student_loss(answers, batch, Teaching(0.5, 2.0))["soft"].backward()
    assert logit.grad is not None
    # of w t^2 h(z / t, q): w t (sigmoid(z / t) - q)
    assert logit.grad[:, 0].tolist() == pytest.approx([0.5 * 2 * (0.5 - 0.9), 0])


def test_a_varied_region_is_mirrored_with_its_mask(regions: list[Region]) -> None:
    """And its brightness changes little."""
    region = copy.copy(regions[0])
    region = replace(region, mask=np.where(region.voxels > 127, 255, 0).astype(np.uint8))
    seen: set[bytes] = set()
    for found in _varied(region):
        assert np.corrcoef(found.voxels.ravel(), found.mask.ravel())[0, 1] == pytest.approx(
            np.corrcoef(region.voxels.ravel(), region.mask.ravel())[0, 1], abs=0.02
        )
        assert abs(float(found.voxels.mean()) - float(region.voxels.mean())) < 8
        seen.add(found.mask.tobytes())
    assert len(seen) == 16


def _varied(region: Region) -> Iterator[Region]:
    rng = np.random.default_rng(0)
    return (varied(region, rng) for _ in range(100))
