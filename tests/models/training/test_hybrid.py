from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import pytest
import torch
from torch import nn

from imaging.roi import cut_roi
from models.networks.hybrid import Answers, HybridNetwork
from models.training import hybrid, regions
from models.training.compose import Composer
from models.training.data import Cubes, Noise, Piece, balls
from models.training.hybrid import (
    EDGE_WEIGHT,
    HybridTask,
    Validation,
    hybrid_loss,
    logits,
    mask_loss,
    validation_of,
)
from models.training.regions import Region, RegionDrawer, as_sample, rated
from models.training.runs import Material, region_drawer
from models.training.screening import peaks_of
from models.training.tiles import TILE
from tests.models.small_networks import TINY_HYBRID
from tests.models.training.test_data import ball, even

SIDE = 48

NOISE = Noise(64, 0)


class BrightHeat(nn.Module):
    """A screening network whose candidates are what is bright, each of 6 mm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 40.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heat = (nn.functional.avg_pool3d(x, 4) - 0.4) * self.weight
        flat = torch.zeros_like(heat).expand(-1, 3, -1, -1, -1)
        return torch.cat([heat, flat, torch.full_like(heat, float(np.log(6)))], 1)


def lung() -> Piece:
    """A plain lung with bright lumps that are no nodules."""
    piece = even((100, 110, 120))
    for z, y, x in ((20, 30, 40), (60, 70, 80), (80, 30, 90), (40, 90, 20)):
        piece.voxels[z : z + 6, y : y + 6, x : x + 6] = 220
    return piece


def lung_with_nodules() -> Piece:
    """The same with four nodules, as in a copy of a scan."""
    piece = lung()
    marks = [(30, 60, 30, 10), (70, 40, 50, 8), (50, 60, 100, 9), (50, 30, 70, 7)]
    mask = balls(piece.voxels.shape, np.array(marks, float))
    return replace(
        piece, voxels=np.maximum(piece.voxels, mask // 255 * 200), mask=mask,
        nodules=np.array(marks, float),
    )  # fmt: skip


def drawer(
    share: float = 0.2, scans: Sequence[Piece] | None = None, screener: nn.Module | None = None
) -> RegionDrawer:
    """Cubes with a ball of 8 or 12 mm in the middle, and a lung with lumps."""
    cubes = [ball((50, 50, 50), (24.6, 25.2, 24.9), d) for d in (8.0, 12.0)]
    ratings = (np.array([0.25, np.nan]), np.array([2, -1]))
    scans, screener = [lung()] if scans is None else scans, screener or BrightHeat()
    composer = Composer(cubes, scans, side=64, noise=NOISE)
    peaks = [[peaks_of(screener, scan.voxels) for scan in scans]]
    return RegionDrawer(composer, ratings, [screener], peaks, NOISE, SIDE, share)


@pytest.fixture(scope="module")
def samples() -> list[list[Region]]:
    rng, source = np.random.default_rng(0), drawer(scans=[lung(), lung_with_nodules()])
    return [source.of_sample(rng) for _ in range(60)]


def of_cubes(seed: int, count: int) -> list[Region]:
    stream = drawer(share=1.0).stream(np.random.default_rng(seed))
    return list(islice((region for region in stream if region.outlined), count))


def test_regions_with_and_without_a_nodule_come_from_the_same_samples(
    samples: list[list[Region]],
) -> None:
    """From most samples come both, as many of each; none has one kind in plenty."""
    counts = [
        (sum(r.nodule == 1 for r in regions), sum(r.nodule == 0 for r in regions))
        for regions in samples
    ]
    both = [pair for pair in counts if min(pair) > 0]
    assert len(both) > len(counts) / 5
    assert all(hits == others for hits, others in both)
    assert all(sum(pair) <= 1 for pair in counts if min(pair) == 0)
    for region in chain(*samples):
        assert region.voxels.shape == region.mask.shape == (SIDE,) * 3
        assert region.voxels.dtype == region.mask.dtype == np.uint8
        assert region.voxels.flags.c_contiguous
        assert not region.outlined
        assert (region.diameter_mm > 0) == (region.nodule == 1)


def test_a_neighbouring_nodule_is_frequent_with_a_nodule_and_without(
    samples: list[list[Region]],
) -> None:
    """So "a nodule elsewhere in view" does not tell what lies in the middle."""
    seen: dict[float, list[bool]] = {0.0: [], 1.0: []}
    away = np.linalg.norm(np.indices((SIDE,) * 3) - 23.5, axis=0)
    for region in chain(*samples):
        elsewhere = away > max(14.0, region.diameter_mm / 2 + 6)
        seen[region.nodule].append(bool((region.mask[elsewhere] > 127).any()))
    shares = {label: float(np.mean(values)) for label, values in seen.items()}
    assert min(map(len, seen.values())) > 15
    assert min(shares.values()) > 0.2, shares


def test_what_is_no_nodule_surrounds_a_candidate_that_lies_on_none(
    samples: list[list[Region]],
) -> None:
    for region in (r for r in chain(*samples) if r.nodule == 0):
        assert (region.mask[22:26, 22:26, 22:26] > 127).mean() < 0.5
        assert np.isnan(region.malignancy)
        assert region.texture == -1


def test_a_whole_scan_gives_its_own_nodules_around_its_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the product reads it: not scaled, in its own surroundings, in one of its mirror images."""
    monkeypatch.setattr(regions, "WHOLE", 1.0)
    monkeypatch.setattr(regions, "NEIGHBOURS", 0.0)
    scan = lung_with_nodules()
    source, rng = drawer(scans=[scan]), np.random.default_rng(4)
    drawn = [region for _ in range(12) for region in source.of_sample(rng)]
    levels = [set(np.unique(region.voxels)) for region in drawn]
    assert {region.diameter_mm for region in drawn} == {0.0, *scan.nodules[:, 3]}
    assert all(seen <= set(np.unique(scan.voxels)) for seen in levels)


def test_half_of_the_whole_scans_have_thick_slices_and_their_own_candidates() -> None:
    nothing = Cubes((), (), np.zeros(0), np.zeros(0))
    source = region_drawer(Material(nothing, (lung(), lung()), (), ()), [BrightHeat()])
    thin, thick = (scan.voxels for scan in source.composer.scans)
    np.testing.assert_array_equal(thin, lung().voxels)
    edges = [np.abs(np.diff(one.astype(int), axis=0)).max() for one in (thin, thick)]
    assert edges[1] < 0.7 * edges[0]
    strongest = [peaks.logit[0] for peaks in source.peaks[0]]
    assert strongest[0] != strongest[1]


def test_a_region_of_a_cube_teaches_ratings_and_outline_and_not_the_label() -> None:
    """Its surroundings end 25 mm from the nodule: they would tell."""
    regions = of_cubes(3, 24)
    assert all(np.isnan(region.nodule) for region in regions)
    assert {region.texture for region in regions} == {2, -1}
    known = [region for region in regions if np.isfinite(region.malignancy)]
    assert known
    assert all(region.malignancy == 0.25 for region in known)
    assert all(abs(np.log(region.diameter_mm / 8)) < 0.3 for region in known)


def test_the_outlined_nodule_lies_near_the_middle_with_its_size() -> None:
    sizes = []
    for region in of_cubes(5, 16):
        inside = np.argwhere(region.mask > 127)
        assert np.linalg.norm(inside - (SIDE - 1) / 2, axis=1).min() < 3
        sizes.append((6 / np.pi * len(inside)) ** (1 / 3) / region.diameter_mm)
    # of some there is a mirror image too, or a part is cut off
    assert np.median(sizes) == pytest.approx(1.0, abs=0.1)


def test_a_region_becomes_what_the_loss_takes() -> None:
    """Without a nodule there is no size; what is not known is NaN, -1 or of weight 0."""
    blank = np.zeros((SIDE,) * 3, np.uint8)
    none = as_sample(Region(blank, blank, 0.0))
    assert none["nodule"] == 0
    assert none["sized"] == none["outlined"] == 0
    assert torch.isnan(none["malignancy"])
    cube = as_sample(Region(blank, blank + 255, float("nan"), 10.0, 0.5, 1, outlined=True))
    assert torch.isnan(cube["nodule"])
    assert cube["sized"] == cube["outlined"] == 1
    assert float(cube["log_diameter"]) == pytest.approx(np.log(10))
    assert cube["mask"].shape == (1, SIDE, SIDE, SIDE)
    assert float(cube["mask"].max()) == 1.0


def test_the_readers_means_become_targets() -> None:
    """Malignancy from 1.5 to 4.5 becomes 0 to 1; texture one of three classes."""
    cubes = Cubes((), (), np.array([1.0, 3.0, 5.0, np.nan]), np.array([1.0, 3.0, 5.0, np.nan]))
    malignancy, texture = rated(cubes)
    np.testing.assert_array_equal(malignancy, [0, 0.5, 1, np.nan])
    np.testing.assert_array_equal(texture, [0, 1, 2, -1])


GREY = np.stack([np.full((SIDE,) * 3, 60 * i, np.uint8) for i in range(4)])

HELD = Validation(GREY[2:], np.array([2.0, 3.0]), GREY[:2], np.array([0.0, 1.0]), scans=1)
"""Bright regions are nodules."""


def task() -> HybridTask:
    """One that draws in this process."""
    torch.manual_seed(0)
    network = HybridNetwork(TINY_HYBRID)
    return HybridTask(drawer(), HELD, network, batch=6, workers=0)


def test_a_batch_holds_all_that_the_loss_compares_with() -> None:
    learning = task()
    batch = next(learning.batches(seed=1))
    assert batch["voxels"].shape == batch["mask"].shape == (6, 1, SIDE, SIDE, SIDE)
    assert batch["voxels"].dtype == torch.uint8
    assert float(batch["mask"].max()) <= 1
    terms = learning.losses(learning.network, batch)
    assert {"nodule", "size", "malignancy", "texture", "voxel", "dice"} == terms.keys()
    assert all(torch.isfinite(term) for term in terms.values())


def test_every_member_learns_and_learns_its_own_answer() -> None:
    """Each has the loss of its answer, not of the mean; the outline is taught to the widest."""
    learning = task()
    terms = learning.losses(learning.network, next(learning.batches(seed=2)))
    torch.stack(list(terms.values())).sum().backward()
    network = learning.network
    assert isinstance(network, HybridNetwork)
    for member in network.listed():
        gradients = [p.grad for p in member.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        assert member.answer.weight.grad is not None
        assert member.answer.weight.grad.any()


def test_the_seed_decides_the_batches() -> None:
    one, same, other = (next(task().batches(seed=seed)) for seed in (3, 3, 4))
    for name, value in one.items():
        torch.testing.assert_close(same[name], value, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(one["voxels"], other["voxels"])


class Brightness(torch.nn.Module):
    """Says the mean brightness as logit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x.mean((2, 3, 4)) * self.weight,)


def test_a_network_is_evaluated_alone_and_with_the_edge() -> None:
    assert task().evaluate(Brightness()) == {"alone": 1.0, "both": 1.0, "edge": 1.0}


def test_the_figures_of_both_weigh_the_edge() -> None:
    """A false positive that the edge alone ranks first is behind the nodule with the cloud."""
    grey = np.stack([np.full((8,) * 3, level, np.uint8) for level in (250, 0)])
    gap = (1 - EDGE_WEIGHT) / EDGE_WEIGHT * (250 / 255)
    for lead, cpm in ((0.9 * gap, 1.0), (1.1 * gap, pytest.approx(4 / 7))):
        held = Validation(grey[:1], np.array([0.0]), grey[1:], np.array([lead]), scans=1)
        figures = HybridTask(drawer(), held, Brightness()).evaluate(Brightness())
        assert figures["both"] == cpm
        assert figures["edge"] == pytest.approx(4 / 7)  # from one false positive a scan on
        assert figures["alone"] == 1.0


def test_the_worst_errors_of_the_network_are_mined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the edge's candidates those that the second reader takes for nodules, not nodules."""
    monkeypatch.setattr(hybrid, "MINED", 1)
    lung = even((100, 110, 120))
    voxels = lung.voxels.copy()
    for z, level in ((30, 200), (50, 255), (70, 255)):
        voxels[z - 3 : z + 4, 52:59, 57:64] = level
    marks = np.array([[70.0, 55.0, 60.0, 8.0]])
    scan = Piece(voxels, lung.mask, marks, lung.ignored, "scan")
    learning = task()
    learning.drawer = drawer(scans=[scan, replace(scan, name="")], screener=BrightHeat())
    learning.refresh(Brightness())
    hard, of_copy = learning.drawer.composer.hard
    assert (len(hard), len(of_copy)) == (1, 0)
    np.testing.assert_allclose(hard[0], [50, 55, 60], atol=3)


def test_validation_reads_nodules_and_false_positives_in_one_context() -> None:
    """A false positive of a scan is cut from its tile, as a nodule is cut from its cube."""
    scan = even((90, 90, 90))
    scan.voxels[20:26, 40:46, 40:46] = 230
    cube = ball((TILE,) * 3, (24.5, 24.5, 24.5), 9.0)
    plain = even((TILE,) * 3)
    missed = replace(plain, nodules=np.array([[24.0, 24, 24, 6]]))
    held = validation_of(BrightHeat(), [cube, missed], [scan])
    assert held.nodules.shape == (2, SIDE, SIDE, SIDE)
    # what the edge does not propose, no reader finds
    assert held.nodule_logit[0] > 0
    for name, (of_nodules, others) in held.scored(Brightness()).items():
        assert np.isfinite(of_nodules).tolist() == [True, False], name
        assert np.isfinite(others).all()
    assert held.scans == 1
    worst = int(held.false_positive_logit.argmax())
    found = held.false_positives[worst]
    assert found[22:26, 22:26, 22:26].mean() > 150
    # the tile ends there and is continued by its mirror image or by air: not by the scan
    peaks = peaks_of(BrightHeat(), scan.voxels)
    assert (found != cut_roi(scan.voxels, peaks.index_zyx[0])).any()


def test_logits_come_in_the_order_of_the_regions() -> None:
    regions = np.stack([np.full((8, 8, 8), 50 * i, np.uint8) for i in range(5)])
    found = logits(Brightness(), regions, batch=2)
    assert found.shape == (5,)
    assert (np.diff(found) > 0).all()
    assert logits(Brightness(), regions[:0], batch=2).shape == (0,)


def batch(nodule: list[float]) -> dict[str, torch.Tensor]:
    """Truth of as many regions, each nodule of 10 mm, suspicious and solid; no mask."""
    count = len(nodule)
    return {
        "nodule": torch.tensor(nodule),
        "sized": (torch.tensor(nodule) > 0).float(),
        "outlined": (torch.tensor(nodule) > 0).float(),
        "log_diameter": torch.full((count,), 10.0).log(),
        "malignancy": torch.where(torch.tensor(nodule) > 0, 1.0, torch.nan),
        "texture": torch.where(torch.tensor(nodule) > 0, 2, -1),
        "mask": torch.zeros(count, 1, 6, 6, 6),
    }


def answers(logit: list[float], diameter_mm: list[float]) -> Answers:
    """What the hybrid says of as many regions: suspicious, solid, nowhere a mask."""
    count = len(logit)
    return Answers(
        torch.tensor(logit)[:, None],
        torch.tensor(diameter_mm).log()[:, None].requires_grad_(),
        torch.full((count, 1), 9.0),
        torch.tensor([[-9.0, -9.0, 9.0]] * count),
        torch.full((count, 1, 6, 6, 6), -20.0),
    )


def test_size_is_learnt_from_nodules_only() -> None:
    said = answers([5.0, -5.0], [20.0, 90.0])
    size = hybrid_loss(said, batch([1.0, 0.0]))["size"]
    size.backward()
    gradient = said.log_diameter.grad
    assert gradient is not None
    assert gradient[0] > 0
    assert gradient[1] == 0
    assert hybrid_loss(answers([5.0, -5.0], [10.0, 90.0]), batch([1.0, 0.0]))["size"] < 1e-6
    assert hybrid_loss(said, batch([0.0, 0.0]))["size"] == 0


def test_hybrid_is_cheap_when_right() -> None:
    truth = batch([1.0, 0.0])
    right = hybrid_loss(answers([5.0, -5.0], [10.0, 10.0]), truth)
    wrong = hybrid_loss(answers([-5.0, 5.0], [10.0, 10.0]), truth)
    assert right["nodule"] < 0.1
    assert wrong["nodule"] > 4
    for name in ("malignancy", "texture", "voxel"):
        assert right[name] < 1e-3, name


def test_kind_is_learnt_where_readers_said_it() -> None:
    said = answers([5.0], [10.0])._replace(
        malignancy=torch.full((1, 1), -9.0), texture=torch.tensor([[9.0, -9.0, -9.0]])
    )
    rated, unrated = (hybrid_loss(said, batch([known])) for known in (1.0, 0.0))
    for name in ("malignancy", "texture"):
        assert rated[name] > 0.5, name
        assert unrated[name] == 0, name


def test_a_region_whose_label_is_not_taught_has_no_part_in_the_answers_loss() -> None:
    """It still teaches size and outline."""
    truth = batch([1.0, 0.0])
    both = hybrid_loss(answers([1.0, 3.0], [10.0, 10.0]), truth)["nodule"]
    said = answers([1.0, 3.0, -9.0], [10.0, 10.0, 30.0])
    more = batch([1.0, 0.0, torch.nan]) | {
        "sized": torch.tensor([1.0, 0.0, 1.0]), "outlined": torch.tensor([0.0, 0.0, 1.0]),
        "mask": torch.ones(3, 1, 6, 6, 6),
    }  # fmt: skip
    terms = hybrid_loss(said, more)
    torch.testing.assert_close(terms["nodule"], both)
    assert terms["size"] > 0.01
    assert terms["voxel"] > 1
    none = hybrid_loss(answers([1.0], [10.0]), batch([torch.nan]))
    assert none["nodule"] == 0


def test_an_unknown_outline_and_a_member_without_one_teach_none() -> None:
    truth = batch([1.0, 0.0]) | {"outlined": torch.zeros(2), "mask": torch.ones(2, 1, 6, 6, 6)}
    said = answers([5.0, -5.0], [10.0, 10.0])
    terms = hybrid_loss(said, truth)
    assert terms["voxel"] == terms["dice"] == 0
    assert {"voxel", "dice"}.isdisjoint(hybrid_loss(said._replace(mask=torch.zeros(0)), truth))


def test_mask_is_cheap_when_right() -> None:
    truth = torch.zeros(2, 1, 6, 6, 6)
    truth[0, 0, 2:4, 2:4, 2:4] = 1
    nodule = torch.tensor([1.0, 0.0])
    right = mask_loss((truth * 2 - 1) * 15, truth, nodule)
    missed = mask_loss(torch.full_like(truth, -15.0), truth, nodule)
    assert right["voxel"] < 1e-4
    assert right["dice"] < 1e-3
    assert missed["voxel"] > 1
    assert missed["dice"] > 0.15
