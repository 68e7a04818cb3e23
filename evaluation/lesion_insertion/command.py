"""``overread-eval lesion-insertion``: sensitivity to lesions inserted into whole scans.

They are real nodules, cut out by their readers' contours; masses are magnified nodules and lesions.
False positives are those of each scan without insertions, counted once. Of a patient's scan only
some lesions are known, so a few of its false positives may be true.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.accuracy.bootstrap import RATE_COLUMNS, operating_point
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.options import Data, Marks, MoreScans, Scans, Split, marked_scans
from evaluation.accuracy.readers import STAGES, Stage, StageOption, open_agent
from evaluation.lesion_insertion.policies import TABLES, TEST, VAL, bars, compare_policies
from evaluation.lesion_insertion.scans import (
    InsertionScore,
    PreparedHost,
    Traits,
    by_subgroup,
    cut_lesions,
    load_host,
    only,
    part,
    prepare_host,
    read_donors,
    read_synthetic,
    scored,
)
from evaluation.run import POINTS, SHARE, CloudModel, Model, Table, command, each
from models.insertion.donors import Donor
from models.insertion.insert import SyntheticScan, plan_masses, plan_nodules

NODULES, LARGE, MASSES = "nodules", "nodules of 5 mm and more", "masses of 30 to 60 mm"

_RATES = {key: head for key, head in RATE_COLUMNS.items() if key not in ("sensitivity.0", "cpm")}


@command(
    Table("curves", {
        "lesions": "lesions", "reader": "reader", "nodules": "number", "patients": "patients",
        **RATE_COLUMNS,
    }, title="Sensitivity in % at false positives a scan"),
    Table("shipped", {
        "lesions": "lesions", "reader": "reader", "found": "findings", "nodules": "of",
        "sensitivity": ("share", SHARE),
        "false_positives_per_scan": ("false findings a scan", "{:.2f}"),
    }, title="At the threshold of findings"),
    Table("subgroups", {
        "by": "by", "subgroup": "subgroup", "nodules": "nodules", "patients": "patients",
        **{key: (f"at {head}", POINTS) for key, (head, _) in _RATES.items()},
    }, title="Sensitivity in % by subgroup, {reader}"),
    *TABLES,
    "Not placed for lack of room: {not_placed}.",
    bars=bars,
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
    planned, not_placed = _plan(hosts, donors, together)
    read = [
        one
        for scan in each(planned, "scans with insertions")
        for one in read_synthetic(scan, reads)
    ]
    return {
        "split": split,
        "reader": STAGES[stage],
        "scans": [one.host.name for one in hosts],
        "not_placed": ", ".join(not_placed) or "none",
        **as_dict(read, hosts, traits, stage, agent.thresholds.finding),
    }  # fmt: skip


def _plan(
    hosts: Sequence[PreparedHost], donors: Sequence[Donor], together: int
) -> tuple[list[SyntheticScan[PreparedHost]], list[str]]:
    large = [*donors, *(one for host in hosts for one in cut_lesions(host.host, host.space.box))]
    rng = np.random.default_rng([0, 0])
    nodules, rest = plan_nodules(hosts, donors, together, rng)
    masses, too_large = plan_masses(hosts, large, rng)
    not_placed = [f"{one.donor.name}, {one.diameter_mm:.0f} mm" for one in (*rest, *too_large)]
    return [*nodules, *masses], not_placed


def as_dict(
    read: Sequence[InsertionScore],
    hosts: Sequence[PreparedHost],
    traits: Traits,
    stage: Stage,
    least: float,
) -> dict[str, Any]:
    """Return all figures up to ``stage``; ``traits`` are those of the donors by their number.

    A finding has a score of ``least`` or more.
    """
    nodules, masses = (
        [one for one in read if one.insertion.mass is mass] for mass in (False, True)
    )
    of_nodules = [one.insertion.donor_id for one in nodules]
    kinds = {name: value[of_nodules] for name, value in traits.items()}
    parts = {
        NODULES: (nodules, np.ones(len(nodules), bool)),
        LARGE: (nodules, kinds["diameter"] >= 5.0),
        MASSES: (masses, np.ones(len(masses), bool)),
    }
    curves, shipped = list[dict[str, Any]](), list[dict[str, Any]]()
    for lesions, (inserted, mask) in parts.items():
        if not mask.any():
            continue
        by = {
            one: only(scored(inserted, hosts, one), mask)
            for one in dict.fromkeys((Stage.EDGE, stage))
        }
        for one, of in by.items():
            head = {"lesions": lesions, "reader": STAGES[one]}
            curves.append({**head, **part(of)})
            shipped.append({**head, **_at(of, least)})
    subgroups = list(by_subgroup(scored(nodules, hosts, stage), kinds)) if nodules else []
    return {"curves": curves, "shipped": shipped, "subgroups": subgroups}


def _at(of: Scored, least: float) -> dict[str, Any]:
    """Return the share of nodules from ``least`` on, by patient, and the false a scan."""
    found, false = of.nodule_score >= least, of.false_scan[of.false_score >= least]
    patients = np.stack([np.bincount(of.nodule_group), np.bincount(of.nodule_group, found)], 1)
    scans = np.bincount(false, minlength=of.scans)
    share, _ = operating_point(np.pad(patients, ((0, 0), (0, 1))))
    _, rate = operating_point(np.pad(scans[:, None], ((0, 0), (2, 0))))
    return {
        "nodules": of.nodule_score.size,
        "found": int(found.sum()),
        "sensitivity": share.as_dict() if share else None,
        "false_positives_per_scan": rate.as_dict(),
    }
