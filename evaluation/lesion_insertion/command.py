"""``overread-eval lesion-insertion``: sensitivity to lesions inserted into whole scans.

They are real nodules, cut out by their readers' contours; masses are magnified nodules and lesions.
Each nodule is inserted at several places, as for the guarantee. Scans with nodules are read twice:
as they are, and with their slices averaged to `SLICE_MM`.
False positives are those of each scan without insertions, counted once. Of a patient's scan only
some lesions are known, so a few of its false positives may be true.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from edge.decide import Thresholds
from evaluation.accuracy.bootstrap import RATE_COLUMNS, by_patient, difference, widened
from evaluation.accuracy.options import Data, Marks, MoreScans, Scans, Split, marked_scans
from evaluation.accuracy.readers import STAGES, Stage, StageOption, open_agent
from evaluation.lesion_insertion.policies import TABLES, TEST, VAL, bars, compare_policies
from evaluation.lesion_insertion.scans import (
    BoolArray,
    InsertionScore,
    PreparedHost,
    Traits,
    by_subgroup,
    cut_lesions,
    load_host,
    masks,
    only,
    part,
    prepare_host,
    read_donors,
    read_synthetic,
    scored,
)
from evaluation.run import POINTS, SHARE, Bar, CloudModel, Model, Result, Table, command, each, text
from imaging.volume import FloatArray
from models.calibration.guarantee import PLACEMENTS
from models.insertion.donors import Donor
from models.insertion.insert import SyntheticScan, plan_masses, plan_nodules
from models.runtime.second_reader import TEXTURES

NODULES, LARGE, MASSES = "nodules", "nodules of 5 mm and more", "masses of 30 to 60 mm"
GAIN = "edge and cloud minus edge"

SLICE_MM = 5.0
OWN, THICK, THICK_LESS = "as scanned", "5 mm", "5 mm minus as scanned"
"""The slices of the scans with nodules, and the paired difference."""

DECIDED = {
    "kept": "proposed and not dismissed", "finding": "findings", "listed": "in either list"
}  # fmt: skip

MIN_KEPT = {NODULES: 0.975, TEXTURES[0]: 0.88}
MIN_AT_1, MAX_LOST, MIN_GAIN = 0.94, 0.04, 0.03
"""Required: the nodules that the edge keeps, the sensitivity to those of 5 mm and more at one false
positive a scan, the share that slices of 5 mm lose, and the CPM that the cloud adds on validation.
"""


def _bars(result: Result) -> Iterator[Bar]:
    """Yield what is required of inserted nodules, and of our policy."""
    yield from bars(result)
    split = result["split"]
    for row in result.get("reports", ()):
        what, kept = f"inserted {split} {row['lesions']}", MIN_KEPT.get(row["lesions"])
        if row["slices"] == OWN and kept:
            what = f"{what}: proposed and not dismissed"
            yield Bar(what, row["kept"]["value"], kept, SHARE, least=True)
        if row["slices"] == THICK_LESS and row["lesions"] == NODULES:
            what = f"{what}: findings lost in slices of 5 mm"
            yield Bar(what, -row["finding"]["value"], MAX_LOST, SHARE)
    for row in result.get("curves", ()):
        cpm, what = row["cpm"], f"inserted {split} {row['lesions']}"
        if row["lesions"] == LARGE and row["reader"] == result["reader"]:
            (at_1,) = (p for p in row["sensitivity"] if p["false_positives_per_scan"] == 1)
            what = f"{what}: found at 1 false positive a scan"
            yield Bar(what, at_1["value"], MIN_AT_1, SHARE, least=True)
        if row["lesions"] == NODULES and row["reader"] == GAIN:
            # of other patients than those of validation the interval must lie above zero
            key, least = ("value", MIN_GAIN) if split == VAL else ("low", 0.0)
            value = cpm[key] if split == VAL or cpm[key] > least else None
            what = f"{what}: CPM, {GAIN}" + (", lower end" if key == "low" else "")
            yield Bar(what, value, least, "{:.3f}", least=True, shown=text(cpm, "{:.3f}"))


Planned = SyntheticScan[PreparedHost]

_RATES = {key: head for key, head in RATE_COLUMNS.items() if key not in ("sensitivity.0", "cpm")}


@command(
    Table("curves", {
        "lesions": "lesions", "reader": "reader", "nodules": "number", "patients": "patients",
        **RATE_COLUMNS,
    }, title="Sensitivity in % at false positives a scan"),
    Table("reports", {
        "lesions": "nodules", "slices": "slices", "nodules": "number", "patients": "patients",
        **{key: (head, SHARE) for key, head in DECIDED.items()},
    }, title="{nodules} nodules, {placements} places; {false_findings:.2f} false findings a scan"),
    Table("subgroups", {
        "by": "by", "subgroup": "subgroup", "nodules": "nodules", "patients": "patients",
        **{key: (f"at {head}", POINTS) for key, (head, _) in _RATES.items()},
    }, title="Sensitivity in % by subgroup, {reader}"),
    *TABLES,
    "Not placed for lack of room: {not_placed}.",
    bars=_bars,
)  # fmt: skip
def lesion_insertion(
    data: Data,
    split: Split,
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    stage: StageOption = Stage.EDGE,
    model: Model = None,
    cloud_model: CloudModel = None,
    together: Annotated[int, typer.Option(min=1, help="Nodules inserted into one scan.")] = 8,
    policies: Annotated[
        bool, typer.Option("--policies", help="Our policy against fixed thresholds instead.")
    ] = False,
) -> dict[str, Any]:
    """Semi-synthetic whole scans: sensitivity to inserted lesions, and false positives.

    With ``--policies`` our policy is compared with fixed thresholds on studies of ``test``. The
    thresholds are chosen on those of ``val``.
    """
    splits = tuple(split.split(","))
    if policies and set(splits) != {VAL, TEST}:
        raise typer.BadParameter(f"--policies needs --split {VAL},{TEST}, got {split}")
    folders, known = marked_scans(scans, more_scans, truth, splits)
    if policies:
        agent = open_agent(Stage.BOTH, model, cloud_model)
        found = compare_policies(data, folders, known, agent, together)
        return {"split": split, **found}
    donors, traits = read_donors(data, splits)
    agent = open_agent(stage, model, cloud_model)
    reads = agent.reads(stage)
    hosts = [prepare_host(load_host(one, known), reads) for one in each(folders, "scans")]
    nodules, masses, not_placed = _plan(hosts, donors, together)
    limits, every = agent.thresholds, [*nodules, *masses]
    read = [s for scan in each(every, OWN) for s in read_synthetic(scan, reads, limits)]
    thick = [
        s for scan in each(nodules, THICK) for s in read_synthetic(scan, reads, limits, SLICE_MM)
    ]
    return {
        "split": split,
        "reader": STAGES[stage],
        "scans": [one.host.name for one in hosts],
        "not_placed": ", ".join(not_placed) or "none",
        "nodules": len(donors),
        "placements": PLACEMENTS,
        **as_dict(read, thick, hosts, traits, stage, limits),
    }  # fmt: skip


def _plan(
    hosts: Sequence[PreparedHost], donors: Sequence[Donor], together: int
) -> tuple[list[Planned], list[Planned], list[str]]:
    """Return the scans with nodules, those with a mass each, and what has no room."""
    large = [*donors, *(one for host in hosts for one in cut_lesions(host.host, host.space.box))]
    turns = [np.random.default_rng([0, turn]) for turn in range(PLACEMENTS + 1)]
    masses, rest = plan_masses(hosts, large, turns.pop())
    nodules = list[Planned]()
    for rng in turns:
        planned, no_room = plan_nodules(hosts, donors, together, rng)
        nodules += planned
        rest += no_room
    return nodules, masses, [f"{one.donor.name}, {one.diameter_mm:.0f} mm" for one in rest]


def as_dict(
    read: Sequence[InsertionScore],
    thick: Sequence[InsertionScore],
    hosts: Sequence[PreparedHost],
    traits: Traits,
    stage: Stage,
    limits: Thresholds,
) -> dict[str, Any]:
    """Return all figures up to ``stage``; ``traits`` are those of the donors by their number.

    ``thick`` are the nodules of ``read`` in slices of `SLICE_MM`, in the same order.
    """
    nodules, masses = (
        [one for one in read if one.insertion.mass is mass] for mass in (False, True)
    )
    of_nodules = [one.insertion.donor_id for one in nodules]
    kinds = {name: value[of_nodules] for name, value in traits.items()}
    sizes = {NODULES: np.ones(len(nodules), bool), LARGE: kinds["diameter"] >= 5.0}
    parts = {name: (nodules, mask) for name, mask in sizes.items()}
    parts[MASSES] = masses, np.ones(len(masses), bool)
    curves = list[dict[str, Any]]()
    for lesions, (inserted, mask) in parts.items():
        if not mask.any():
            continue
        by = {
            stage_of: only(scored(inserted, hosts, stage_of), mask)
            for stage_of in dict.fromkeys((Stage.EDGE, stage))
        }
        for one, of in by.items():
            curves.append({"lesions": lesions, "reader": STAGES[one], **part(of)})
        if stage is not Stage.EDGE:
            first = {key: curves[-1][key] for key in ("lesions", "nodules", "patients")}
            curves.append({**first, "reader": GAIN, **difference(by[Stage.EDGE], by[stage])})
    subgroups = list(by_subgroup(scored(nodules, hosts, stage), kinds)) if nodules else []
    there = {name: mask for name, mask in sizes.items() if mask.any()}
    there |= masks("texture", kinds["texture"])
    reports = list(_reports(nodules, thick, there, stage, limits))
    false = sum(int((one.false_score[stage] >= limits.finding).sum()) for one in hosts)
    return {"curves": curves, "false_findings": false / len(hosts), "reports": reports,
            "subgroups": subgroups}  # fmt: skip


def _reports(
    own: Sequence[InsertionScore],
    thick: Sequence[InsertionScore],
    parts: Mapping[str, BoolArray],
    stage: Stage,
    limits: Thresholds,
) -> Iterator[dict[str, Any]]:
    """Yield what becomes of nodules at the shipped thresholds, in their own slices and in thick."""
    first, second = (
        np.array([
            (item.kept, item.score[stage] >= limits.finding,
             item.kept and item.score[stage] >= limits.possible)
            for item in of
        ], float)
        for of in (own, thick)
    )  # fmt: skip
    versions = np.stack([first, second, second - first], axis=1)
    for lesions, mask in parts.items():
        of, patients = versions[mask], [o.insertion.donor.patient for o in compress(own, mask)]
        number = len(set(patients))
        found = iter(by_patient(patients, partial(_means, of)))
        for slices, least in ((OWN, 0), (THICK, 0), (THICK_LESS, -1)):
            shares = {key: widened(next(found), number, least).as_dict() for key in DECIDED}
            yield {"lesions": lesions, "slices": slices, "nodules": len(of), "patients": number,
                   **shares}  # fmt: skip


def _means(of: FloatArray, chosen: npt.NDArray[np.int64]) -> list[float]:
    return [float(share) for share in of[chosen].mean(0).ravel()]
