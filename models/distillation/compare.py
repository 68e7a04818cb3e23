"""Distillation compared: no teacher, the best one, the mean of all, dynamic weights.

A teacher is a hybrid, and its answer is its logit. The student is a hybrid, too, of fewer
multiply-adds. All students take the same number of steps and, for each seed, begin from the same
weights and see the same regions in the same order; only the soft target differs. What is finished
is kept, so a comparison that was interrupted continues. One arm makes what is shipped.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imaging.roi import ROI_SHAPE
from imaging.volume import FloatArray
from models.comparison import Scores, as_scores, check_plan, digest, figures, gained, kept
from models.distillation.regions import CHUNK, answers_of, make_chunks, values_of
from models.distillation.student import StudentTask, Teaching
from models.distillation.teachers import Teacher, best_of, calibrated, soft_target, weights_of_arms
from models.markdown import Rows, points
from models.networks.hybrid import HybridNetwork, HybridSpec, shortened
from models.training.data import load_cubes
from models.training.hybrid import HybridTask, Validation, validation_of
from models.training.loop import placed, train
from models.training.regions import RegionDrawer
from models.training.runs import Material, Run, make_hybrid, make_screening, ready, region_drawer

ARMS = {
    "none": "no teacher",
    "single": "best single teacher",
    "mean": "fixed mean of all",
    "dynamic": "dynamic weights",
}
"""The soft targets that are compared, with their titles in tables."""

HELD_OUT = 10
"""One chunk of regions is held out for each ten: teachers are calibrated on these."""

VIEWS = {"alone": "alone", "both": "with the edge"}
"""The scores of each CPM, see `Validation.scored`, with their titles in tables."""

_Scored = dict[str, Scores]  # of a network in each of the views


@dataclass(frozen=True)
class Comparison(Run):
    """What is compared: ``seeds`` students of each of the ``arms``.

    A student begins from the weights ``start``, as far as members read the mm of ``spec``, and
    `shortened` to its blocks and depth; without a start it has this size. ``teachers`` are weights
    of hybrids; the first finds the hardest candidates of the networks ``screening`` in whole scans.
    ``regions`` is the folder of the chunks, which hold ``count`` regions or more. Each part is read
    or made where it is first used.
    """

    screening: tuple[Path, ...] = ()
    teachers: tuple[Path, ...] = ()
    regions: Path = Path()
    count: int = 20000
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: int = 3
    spec: HybridSpec = field(default_factory=lambda: HybridSpec(reads=(48,)))
    teaching: Teaching = field(default_factory=Teaching)
    chunk: int = CHUNK

    def compare(self) -> dict[str, Any]:
        """Make the regions and train the students that are missing; return the result as JSON.

        Raises:
            UnfitArtifact: weights do not fit, or a folder holds another comparison or regions of
                other networks.
        """
        options = {"steps": self.steps, "rate": self.rate, **asdict(self.teaching)}
        # weights that do not fit end it before anything is written
        work, _ = multiply_adds(self._new()), (self._hybrids, self._screeners)
        own = {name: getattr(self, name) for name in ("start", "teachers", "count", "spec")}
        check_plan(self.out, {**own, **self._origin, **options}, self.data)
        known = kept(self.out / "teachers.json", self._known)
        students: dict[str, list[_Scored]] = {arm: [] for arm in self.arms}
        for seed, arm in product(range(self.seeds), self.arms):
            path = self.out / f"{arm}-{seed}" / "scores.json"
            students[arm].append(kept(path, partial(self._student, arm, seed)))
        return {"seeds": self.seeds, **options, **result(known, students, work)}

    @property
    def _origin(self) -> dict[str, Any]:
        """What the regions depend on; the first teacher finds hard ones."""
        names = ("screening", "seed", "chunk")
        return {"miner": self.teachers[0], **{name: getattr(self, name) for name in names}}

    @cached_property
    def _material(self) -> Material:
        return self.material()

    @cached_property
    def _screeners(self) -> list[nn.Module]:
        return [make_screening(path).eval() for path in self.screening]

    @cached_property
    def _validation(self) -> Validation:
        known = self._material
        return validation_of(self._screeners[-1], known.val_cubes, known.val_scans)

    @cached_property
    def _hybrids(self) -> list[nn.Module]:
        return [placed(make_hybrid([path]).eval()) for path in self.teachers]

    @cached_property
    def _drawer(self) -> RegionDrawer:
        drawer = region_drawer(self._material, self._screeners)
        task = HybridTask(drawer, self._validation, self._hybrids[0])
        task.refresh(self._hybrids[0])
        return task.drawer

    @cached_property
    def _chunks(self) -> tuple[list[Path], list[Path]]:
        """The files of the regions to learn from, and of those that are held out."""
        check_plan(self.regions, self._origin, self.data)
        count = -(-self.count // self.chunk)
        make = partial(make_chunks, drawer=lambda: self._drawer, size=self.chunk)
        learnt = make(self.regions / "learnt", count, seed=self.seed)
        return learnt, make(self.regions / "held_out", -(-count // HELD_OUT), seed=self.seed + 1)

    @cached_property
    def _teachers(self) -> tuple[list[Teacher], FloatArray]:
        """The teachers, and the label of each region to learn from ``(n,)``, NaN if not taught."""
        found, held_label = [], values_of(self._chunks[1], "nodule")
        for path, hybrid in zip(self.teachers, self._hybrids, strict=True):
            read = partial(answers_of, digest=digest(path), teacher=hybrid)
            learnt, held = map(read, self._chunks)
            found.append(calibrated(learnt, held, held_label))
        return found, values_of(self._chunks[0], "nodule")

    def _new(self) -> HybridNetwork:
        if not self.start:
            return HybridNetwork(self.spec)
        start = make_hybrid(self.start, self.spec.reads)
        return shortened(start, self.spec.blocks, self.spec.depth)

    def _student(self, arm: str, seed: int) -> _Scored:
        """Train one student, which goes on from its last round, and measure it."""
        torch.manual_seed(seed)
        network = ready(self._new(), self.start, self._material)
        teachers, label = self._teachers
        weights = weights_of_arms(teachers, label)[arm]
        soft = soft_target(teachers, weights, self.teaching.temperature)
        soft[np.isnan(label)] = np.nan
        task = StudentTask(self._chunks[0], soft, self.teaching, self._validation, network)
        heard = [str(path) for path, one in zip(self.teachers, weights, strict=True) if one[0] > 0]
        plan = self.plan(self._material, decay=0.05, arm=ARMS[arm], teachers=heard)
        plan = replace(plan, out=self.out / f"{arm}-{seed}", seed=seed, resume=True)
        return self._measured(train(task, plan))

    def _known(self) -> dict[str, Any]:
        """Return what does not depend on students: the teachers, and what all are measured on."""
        teachers, label = self._teachers
        weights = weights_of_arms(teachers, label)["dynamic"][:, np.isfinite(label)]
        return {
            "regions": {
                "learnt": len(label), "held_out": len(values_of(self._chunks[1], "nodule")),
                "taught": weights.shape[1], "with_nodule": int((label == 1).sum()),
            },
            "patients": load_cubes(self.data / "nodules", "val").patients,
            "scans": self._validation.scans,
            "teachers": [
                {
                    "name": str(self.teachers[k]), "best": teacher is best_of(teachers),
                    "temperature": teacher.temperature, "log_loss": teacher.held_out_loss,
                    "weight": float(weights[k].mean()),
                    "multiply_adds": multiply_adds(self._hybrids[k]),
                    "scores": self._measured(self._hybrids[k]),
                }
                for k, teacher in enumerate(teachers)
            ],
        }  # fmt: skip

    def _measured(self, network: nn.Module) -> _Scored:
        found = self._validation.scored(network.eval())
        return {view: as_scores(*found[view]) for view in VIEWS}


def multiply_adds(network: nn.Module) -> int:
    """Count the multiply-adds of one pass over a region."""
    with FlopCounterMode(display=False) as counter:  # a pass that computes shapes only
        copy.deepcopy(network).eval().to("meta")(torch.empty(1, 1, *ROI_SHAPE, device="meta"))
    return int(counter.get_total_flops()) // 2


def result(
    known: Mapping[str, Any], arms: Mapping[str, Sequence[_Scored]], work: int
) -> dict[str, Any]:
    """Return the CPM of teachers and arms in each view, and what each arm gains over others.

    ``known`` is what `Comparison` keeps of teachers; ``arms`` have one student a seed, of ``work``
    multiply-adds.
    """
    scans, patients, teachers = known["scans"], known["patients"], known["teachers"]
    each = [one["scores"] for one in teachers]
    together = {
        view: {part: np.mean([one[view][part] for one in each], 0).tolist() for part in of}
        for view, of in each[0].items()
    }
    best = [one["scores"] for one in teachers if one["best"]]
    none = arms.get("none", [])
    references = {"no teacher": none, "best teacher": best, "mean logit": [together]}
    whole = sum(one["multiply_adds"] for one in teachers)
    mean = {"name": "mean logit", "best": False, "multiply_adds": whole, "scores": together}
    return {
        "claim_points": 2.3,  # the published gain of the system's distillation
        "regions": known["regions"], "scans": scans,
        "nodules": len(patients), "patients": len(set(patients)),
        "multiply_adds": work,
        "teachers": [{**one, "scores": _cpm([one["scores"]], scans)} for one in (*teachers, mean)],
        "arms": {arm: _cpm(of, scans) for arm, of in arms.items()},
        "gained": {
            over: {arm: _gained(of, less, known) for arm, of in arms.items() if of is not less}
            for over, less in references.items()
            if less
        },
    }  # fmt: skip


def _cpm(seeds: Sequence[_Scored], scans: int) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation of the CPM over the seeds, and each seed's, by view."""
    found = {}
    for view in seeds[0]:
        each = [figures(one[view], scans)["cpm"] for one in seeds]
        sd = float(np.std(each, ddof=int(len(each) > 1)))
        found[view] = {"mean": float(np.mean(each)), "sd": sd, "seeds": each}
    return found


def _gained(
    more: Sequence[_Scored], less: Sequence[_Scored], known: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Return the points of CPM that students are above others, or above one network, by view."""
    found = {}
    for view in VIEWS:
        other = [less[n % len(less)][view] for n in range(len(more))]
        mine = [one[view] for one in more]
        found[view] = gained(mine, other, known["patients"], known["scans"])["cpm"]
    return found


def distil_tables(result: Mapping[str, Any]) -> str:
    """Return teachers, students, and what each arm gains, in Markdown."""
    facts = ("temperature", "log_loss", "weight")

    def row(name: str, work: int, cpm: Mapping[str, Any], *more: float) -> list[str]:
        each = (f"{100 * cpm[view]['mean']:.1f} ± {100 * cpm[view]['sd']:.1f}" for view in VIEWS)
        return [name, f"{work / 1e9:.2f}", *each, *(f"{one:.2f}" for one in more)]

    rows = [
        row(f"teacher, {one['name']}", one["multiply_adds"], one["scores"],
            *(one[fact] for fact in facts if fact in one))
        for one in result["teachers"]
    ]  # fmt: skip
    each = result["multiply_adds"]
    rows += [row(f"student, {ARMS[arm]}", each, cpm) for arm, cpm in result["arms"].items()]
    gains = [
        [f"{ARMS[arm]}, over {over}", *(points(of[view]) for view in VIEWS)]
        for over, arms in result["gained"].items()
        for arm, of in arms.items()
    ]
    networks = Rows(["network", "GMAC", *VIEWS.values(), "temperature", "log loss", "weight"], rows)
    table = Rows(["student", *VIEWS.values()], gains).markdown()
    return f"{networks.markdown()}\nPoints of CPM gained (95 % interval):\n\n{table}"
