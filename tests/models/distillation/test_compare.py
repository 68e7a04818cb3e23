import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.distillation import compare
from models.distillation.compare import ARMS, Comparison, distil_tables, run_compare, soft_targets
from models.distillation.student import Teaching, losses_of, sample_of, score_at
from models.distillation.teachers import (
    EACH,
    DistillationSample,
    Teacher,
    draw_sample,
    load_sample,
    make_samples,
    read,
    read_teachers,
    save_sample,
    temperature_of,
)
from models.networks.hybrid import HybridNetwork
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.runtime.errors import UnfitArtifact
from models.training.data import Cubes, Piece
from models.training.runs import Material, Run
from tests.models.small_networks import TINY_HYBRID
from tests.models.training.test_data import ball, even
from tests.models.training.test_hybrid import BrightHeat, drawer, lung

SMALL = ScreeningSpec((4, 8, 8, 8), (1, 1, 1))


def hybrid() -> HybridNetwork:
    torch.manual_seed(0)
    return HybridNetwork(replace(TINY_HYBRID, reads=(24, 48))).eval()


@pytest.fixture(scope="module")
def drawn() -> DistillationSample:
    """The first that has a nodule and a false positive."""
    source, teachers = drawer().composer, hybrid()
    drawn = (
        draw_sample(source, BrightHeat(), teachers, np.random.default_rng(seed))
        for seed in range(20)
    )
    return next(one for one in drawn if 0 < one.label.sum() < len(one.label))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison of small networks with two teachers, a few steps each."""
    folder = tmp_path_factory.mktemp("distil")
    torch.manual_seed(0)
    torch.save(ScreeningNetwork(SMALL).state_dict(), folder / "start.pt")
    torch.save(hybrid().state_dict(), folder / "hybrid.pt")
    teaching = Teaching(steps=2, batch=2, workers=0)
    return Comparison(
        folder, folder / "out", 5e-4, (folder / "start.pt",), folder, 0,
        teachers=(folder / "hybrid.pt",), samples=4, seeds=2, teaching=teaching,
    )  # fmt: skip


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Material of two cubes and one lung, whose samples have 64 voxels a side."""
    cubes = tuple(ball((50, 50, 50), (24.5, 24.5, 24.5), d) for d in (8.0, 12.0))
    held = Cubes(cubes, ("a", "b"), np.zeros(2), np.zeros(2))
    scan = even((52, 52, 48))
    scan.voxels[20:26, 30:36, 24:30] = 220
    marked = replace(scan, nodules=np.array([[22.5, 32.5, 26.5, 6]]))
    material = Material(held, (scan,), (), cubes, (marked,))
    small = drawer().composer
    monkeypatch.setattr(Material, "composer", property(lambda _: small))
    monkeypatch.setattr(Run, "material", lambda _: material)
    monkeypatch.setattr(compare, "load_cubes", lambda *_: held)


@pytest.mark.usefixtures("small_data")
def test_a_comparison_lists_every_arm_and_a_finished_one_is_only_read(
    given: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students of another loss in the same folder would be compared with these: refused."""
    found = run_compare(given)
    assert tuple(found["arms"]) == tuple(ARMS)
    assert all(len(figures["cpm"]["seeds"]) == 2 for figures in found["arms"].values())
    assert sum(t["mean_weight"] for t in found["teachers"]) == pytest.approx(1)
    assert [t["name"] for t in found["teachers"]] == ["24 mm", "48 mm"]
    assert found["best_single"] in {"24 mm", "48 mm"}
    assert tuple(found["gained"]) == tuple(ARMS)[1:]
    assert 0 < found["lessons"]["with_nodule"] < found["lessons"]["places"]
    assert found["lessons"]["learnt"] == 4
    text = distil_tables(found)
    assert "dynamic weights" in text
    assert "+2.3" in text
    json.dumps(found, allow_nan=False)
    for module, name in ((compare, "train_student"), (Run, "material"), (compare, "draw_sample")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("done before"))
    assert run_compare(given) == found
    with pytest.raises(UnfitArtifact, match=r"plan\.json: .* another weight"):
        run_compare(replace(given, teaching=replace(given.teaching, weight=0.9)))


def test_teachers_read_nodules_and_false_positives_of_a_sample(drawn: DistillationSample) -> None:
    """Nodules and false positives have a label each, and each member answers."""
    assert drawn.logits.shape == (2, len(drawn.places))
    assert 0 < drawn.label.sum() <= EACH
    assert 0 < (1 - drawn.label).sum() <= EACH
    marks = drawn.sample.nodules
    for place, label in zip(drawn.places, drawn.label, strict=True):
        away = np.linalg.norm(marks[:, :3] - place, axis=1) - marks[:, 3] / 2
        assert (away.min() < 0) == (label > 0)


def test_each_member_answers_of_the_region_around_the_place() -> None:
    scan = lung()
    place = np.array([[23.0, 33, 43]])
    found = read(hybrid(), scan, place)
    region = scan.voxels[None, None, :47, 9:57, 19:67]
    assert found.shape == (2, 1)
    padded = np.concatenate([region[:, :, :1], region], 2)  # beyond the face is the mirror image
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        each = hybrid().each(torch.from_numpy(padded).float() / 255)
    assert found[:, 0].tolist() == pytest.approx([float(one.logit) for one in each], abs=1e-3)
    assert read(hybrid(), scan, np.zeros((0, 3))).shape == (2, 0)


def test_a_sample_comes_back_as_it_was_and_is_drawn_once(
    drawn: DistillationSample, tmp_path: Path
) -> None:
    save_sample(drawn, tmp_path / "a.npz")
    back = load_sample(tmp_path / "a.npz")
    for name in ("voxels", "nodules", "ignored"):
        np.testing.assert_array_equal(getattr(back.sample, name), getattr(drawn.sample, name))
    np.testing.assert_array_equal(back.sample.mask > 127, drawn.sample.mask > 127)
    for name in ("places", "label", "logits"):
        np.testing.assert_array_equal(getattr(back, name), getattr(drawn, name))
    seeds: list[int] = []

    def draw(rng: np.random.Generator) -> DistillationSample:
        seeds.append(int(rng.integers(1 << 30)))
        return drawn

    paths = make_samples(tmp_path / "many", 3, draw, seed=0)
    paths[1].unlink()
    assert make_samples(tmp_path / "many", 3, draw, seed=0) == paths
    assert len(set(seeds)) == 3
    assert seeds[3:] == seeds[1:2]  # the missing one, with the seed that it had


def piece_with_lumps() -> DistillationSample:
    """Two bright lumps at the places, and nothing else."""
    sample = even((48, 48, 48))
    places = np.array([[10.0, 20, 30], [33, 13, 22]])
    for z, y, x in places.astype(int):
        sample.voxels[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = 230
    nodules = np.array([[10.0, 20, 30, 5]])
    return DistillationSample(Piece(sample.voxels, sample.mask, nodules, sample.ignored), places,
                  np.array([1.0, 0.0]), np.zeros((2, 2)))  # fmt: skip


def test_a_mirrored_sample_has_its_places_on_the_same_tissue(tmp_path: Path) -> None:
    save_sample(piece_with_lumps(), tmp_path / "a.npz")
    rng = np.random.default_rng(0)
    for _ in range(8):
        batch = sample_of(tmp_path / "a.npz", np.array([0.9, 0.2]), rng)
        voxels = batch["voxels"].float()[None]
        bright = F.max_pool3d(voxels, 4)[0, 0]
        for k in range(2):
            assert bright[tuple(batch["cells"][k].tolist())] == 230
        assert batch["soft"][:2].tolist() == pytest.approx([0.9, 0.2])
        assert batch["taught"].tolist() == [1.0] * 2 + [0.0] * (2 * EACH - 2)
        assert batch["heat"][tuple(batch["cells"][0].tolist())] > 0.5
    untaught = sample_of(tmp_path / "a.npz", None, rng)
    assert not untaught["taught"].any()


def test_the_score_is_the_highest_heat_of_the_cell_and_its_neighbours() -> None:
    maps = torch.full((1, 6, 6, 6, 6), -9.0)
    maps[0, 0, 2, 3, 4], maps[0, 0, 5, 5, 5], maps[0, 1] = 3.0, 8.0, 99.0
    cells = torch.tensor([[[2, 3, 4], [3, 4, 5], [0, 0, 0], [5, 5, 5]]])
    assert score_at(maps, cells).tolist() == [[3.0, 3.0, -9.0, 8.0]]


def test_a_soft_target_draws_the_heat_at_its_place_and_nothing_without_teacher(
    tmp_path: Path,
) -> None:
    save_sample(piece_with_lumps(), tmp_path / "a.npz")
    rng = np.random.default_rng(0)
    heat = torch.nn.Parameter(torch.zeros(1, 6, 12, 12, 12))

    class Maps(torch.nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return heat

    def slope(soft: np.ndarray | None, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        batch = {n: v[None] for n, v in sample_of(tmp_path / "a.npz", soft, rng).items()}
        heat.grad = None
        sum(losses_of(Maps(), batch, Teaching(weight=weight)).values()).backward()
        assert heat.grad is not None
        return heat.grad[0, 0], batch["cells"][0]

    high, cells = slope(np.array([0.5, 1.0]), 50.0)
    near = tuple(slice(int(c) - 1, int(c) + 2) for c in cells[1])
    assert high[near].sum() < 0  # descent lifts it, against the label
    rng = np.random.default_rng(0)
    none, _ = slope(None, 50.0)
    assert none[near].sum() > 0
    rng = np.random.default_rng(0)
    own, _ = slope(np.array([0.5, 1.0]), 0.0)
    torch.testing.assert_close(own, none)


def test_the_soft_target_is_all_that_arms_differ_in() -> None:
    sure = Teacher("a", 1.0, np.array([8.0, -8.0]), held_out_loss=0.3)
    unsure = Teacher("b", 1.0, np.array([0.0, 0.0]), held_out_loss=0.2)
    weights = np.array([[1.0, 1.0], [0.0, 0.0]])
    targets = soft_targets([sure, unsure], weights, 2.0)
    assert targets["none"] is None
    assert targets["single"] == pytest.approx([0.5, 0.5])
    assert targets["dynamic"] == pytest.approx([0.982, 0.018], abs=1e-3)
    assert targets["mean"] == pytest.approx([0.741, 0.259], abs=1e-3)


def test_teachers_are_judged_and_calibrated_on_the_held_out_samples(tmp_path: Path) -> None:
    """The second answers at random there: it is made quieter and has the larger loss."""
    rng = np.random.default_rng(0)
    label = (np.arange(60) % 2).astype(float)
    right = np.where(label > 0, 3.0, -3.0)
    blank = even((16, 16, 16))
    paths = []
    for name, logits in (
        ("learnt", np.stack([right, right])),
        ("held", np.stack([right, rng.normal(0, 4, 60)])),
    ):
        save_sample(
            DistillationSample(blank, np.zeros((60, 3)), label, logits), tmp_path / f"{name}.npz"
        )
        paths.append([tmp_path / f"{name}.npz"])
    (good, noisy), found = read_teachers((24, 48), *paths)
    np.testing.assert_array_equal(found, label)
    assert good.temperature < 1 < noisy.temperature
    assert good.held_out_loss < noisy.held_out_loss
    np.testing.assert_allclose(noisy.logits * noisy.temperature, right)


def test_the_temperature_makes_a_loud_teacher_quiet() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 5000)
    label = rng.random(5000) < 1 / (1 + np.exp(-logits))
    found = temperature_of(3 * np.where(label, logits, -logits), label)
    assert found == pytest.approx(3.0, rel=0.15)
