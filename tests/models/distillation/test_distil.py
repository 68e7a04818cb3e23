import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.distillation import distil
from models.distillation.distil import Lessons, lessons_of, new_student, train_student
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


def small(folder: Path, patch: pytest.MonkeyPatch) -> tuple[Run, Callable[[], Lessons]]:
    """A run of two steps, and lessons of two teachers: two cubes and one lung of small samples."""
    cubes = tuple(ball((50, 50, 50), (24.5, 24.5, 24.5), d) for d in (8.0, 12.0))
    held = Cubes(cubes, ("a", "b"), np.zeros(2), np.zeros(2))
    scan = even((52, 52, 48))
    scan.voxels[20:26, 30:36, 24:30] = 220
    marked = replace(scan, nodules=np.array([[22.5, 32.5, 26.5, 6]]), name="c")
    patch.setattr(Run, "material", lambda _: Material(held, (scan,), cubes, (marked,)))
    patch.setattr(distil, "make_screening", lambda _: BrightHeat())
    patch.setattr(distil, "region_drawer", lambda *_: drawer())
    paths = [folder / name / "averaged.pt" for name in ("x", "y")]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        path.parent.mkdir()
        torch.save(HybridNetwork(TINY_HYBRID).state_dict(), path)
    run = Run(folder, folder / "out", 1e-3, (), steps=2)
    return run, partial(lessons_of, run, paths[:1], paths, count=5, size=4)


def test_a_student_goes_on_as_any_run_and_tells_its_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, make = small(tmp_path, monkeypatch)
    lessons = make()
    first = train_student(run, new_student(run, SMALL), lessons, teaching=TEACHING)
    line = json.loads((run.out / "log.jsonl").read_text())
    assert (line["steps"], line["arm"], line["patients"]) == (2, "dynamic weights", 2)
    assert line["teachers"] == list(map(str, lessons.paths))
    assert {"loss_nodule", "loss_soft", "alone", "both"} <= set(line)
    # of the three members of a start the one of 48 mm
    begun = new_student(replace(run, start=tuple(lessons.paths[1:])), SMALL)
    assert [p.shape for p in begun.parameters()] == [p.shape for p in first.parameters()]
    with pytest.raises(UnfitArtifact, match=r"regions/plan\.json: begun with another miner"):
        lessons_of(run, lessons.paths[:1], lessons.paths[::-1], size=4)


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
