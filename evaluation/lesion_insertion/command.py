"""``overread-eval lesion-insertion``: sensitivity to lesions inserted into whole scans."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.accuracy.bootstrap import (
    RATE_COLUMNS,
    RESAMPLES,
    difference,
    finite,
    operating_point,
)
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.options import (
    Data,
    Limit,
    Marks,
    MoreScans,
    Resamples,
    Scans,
    Split,
    known_scans,
)
from evaluation.accuracy.readers import STAGES, Stage, StageOption, open_agent
from evaluation.accuracy.truth import scans_of_splits
from evaluation.lesion_insertion.donors import cut_lesions, read_donors
from evaluation.lesion_insertion.policies import TABLES, TEST, VAL, bars, compare_policies
from evaluation.lesion_insertion.scans import (
    PATIENTS,
    PHANTOMS,
    InsertionScore,
    PreparedHost,
    load_host,
    prepare_host,
    read_synthetic,
    scored,
)
from evaluation.lesion_insertion.subgroups import Traits, by_subgroup, only, part
from evaluation.result import POINTS, SHARE, Table
from evaluation.run import CloudModel, Model, Seed, command, each
from imaging.phantom.phantom import TRAINING_SEED
from models.insertion.donors import Donor
from models.insertion.insert import SyntheticScan, plan_masses, plan_nodules

NODULES, LARGE, MASSES = "nodules", "nodules of 5 mm and more", "masses of 30 to 60 mm"

REMARK = (
    "Semi-synthetic: real nodules, cut out by their readers' contours and inserted into whole"
    " scans, in lung and away from wall and mediastinum. They lose what they were attached to and"
    " take on the slice thickness of the scan; masses are magnified nodules and lesions. The"
    " measure that counts is overread-eval whole. False positives are those of each scan without"
    " insertions, counted once. Of a patient's scan only some lesions are known, so a few of its"
    " false positives may be true."
)

_HEAD = {"hosts": "scans of", "lesions": "lesions"}
_RATES = {key: head for key, head in RATE_COLUMNS.items() if key not in ("sensitivity.0", "cpm")}


@command(
    Table("curves", {"reader": "reader", **_HEAD, "nodules": "number", "patients": "patients",
                     **RATE_COLUMNS}, title="Sensitivity in % at false positives a scan"),
    Table("gains", {**_HEAD, **{key: (head, "{:+.3f}") for key, (head, _) in RATE_COLUMNS.items()}},
          title="Sensitivity, {reader} minus edge, paired"),
    Table("shipped", {
        **_HEAD, "reader": "reader", "found": "findings", "nodules": "of",
        "sensitivity": ("share", SHARE),
        "false_positives_per_scan": ("false findings a scan", "{:.2f}"),
    }, title="At the threshold of findings"),
    Table("subgroups", {
        "by": "by", "subgroup": "subgroup", "nodules": "nodules", "patients": "patients",
        **{key: (f"at {head}", POINTS) for key, (head, _) in _RATES.items()},
    }, title="Sensitivity in % by subgroup, scans of patients, {reader}"),
    *TABLES,
    "{remark}",
    "Not placed for lack of room: {not_placed}.",
    bars=bars,
)  # fmt: skip
def lesion_insertion(
    data: Data,
    split: Split,
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Phantoms among the hosts.")] = 3,
    stage: StageOption = Stage.EDGE,
    model: Model = None,
    cloud_model: CloudModel = None,
    together: Annotated[int, typer.Option(min=1, help="Nodules inserted into one scan.")] = 8,
    limit: Limit = 0,
    policies: Annotated[
        bool, typer.Option("--policies", help="Our policy against fixed thresholds instead.")
    ] = False,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Semi-synthetic whole scans: sensitivity to inserted lesions, and false positives.

    With ``--policies`` our policy is compared with fixed thresholds on studies of ``test``. The
    thresholds are chosen on those of ``val``.
    """
    if seed + phantoms > TRAINING_SEED:
        raise typer.BadParameter(f"--seed: seeds from {TRAINING_SEED} on were used in training")
    splits = tuple(split.split(","))
    if policies and set(splits) != {VAL, TEST}:
        raise typer.BadParameter(f"--policies needs --split {VAL},{TEST}, got {split}")
    folders, known = known_scans(scans, more_scans, truth)
    folders = scans_of_splits(folders, known, splits)
    if policies:
        agent = open_agent(Stage.BOTH, model, cloud_model)
        found = compare_policies(data, folders, known, agent, together, limit, seed)
        return {"split": split, "remark": REMARK, **found}
    donors, traits = read_donors(data, splits, most=limit or None)
    agent = open_agent(stage, model, cloud_model)
    reads = agent.reads(stage)
    sources = [*folders, *range(seed, seed + phantoms)]
    hosts = [prepare_host(load_host(one, known), reads) for one in each(sources, "scans")]
    planned, not_placed = _plan(hosts, donors, together, seed)
    read = [
        one
        for scan in each(planned, "scans with insertions")
        for one in read_synthetic(scan, reads)
    ]
    return {
        "split": split,
        "reader": STAGES[stage],
        "scans": [one.host.name for one in hosts if one.host.group == PATIENTS],
        "not_placed": ", ".join(not_placed) or "none",
        "remark": REMARK,
        **as_dict(read, hosts, traits, stage, agent.thresholds.finding,
                  resamples=resamples, seed=seed),
        "raw": {"insertions": [row(one) for one in read]},
    }  # fmt: skip


def _plan(
    hosts: Sequence[PreparedHost], donors: Sequence[Donor], together: int, seed: int
) -> tuple[list[SyntheticScan[PreparedHost]], list[str]]:
    """Plan the synthetic scans of every group; also name what could not be placed."""
    large = [*donors, *(one for host in hosts for one in cut_lesions(host.host, host.space.box))]
    scans: list[SyntheticScan[PreparedHost]] = []
    not_placed: list[str] = []
    for group in dict.fromkeys(host.host.group for host in hosts):
        of = [host for host in hosts if host.host.group == group]
        rng = np.random.default_rng([seed, len(scans)])
        for made, rest in (plan_nodules(of, donors, together, rng), plan_masses(of, large, rng)):
            scans += made
            not_placed += [f"{one.donor.name}, {one.diameter_mm:.0f} mm, {group}" for one in rest]
    return scans, not_placed


def as_dict(
    read: Sequence[InsertionScore],
    hosts: Sequence[PreparedHost],
    traits: Traits,
    stage: Stage,
    least: float,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return all figures of ``stage``; ``traits`` are those of the donors by their number.

    A finding has a score of ``least`` or more. The groups of hosts come one by one.
    """
    drawn: dict[str, int] = {"resamples": resamples, "seed": seed}
    curves, gains, shipped, subgroups = (list[dict[str, Any]]() for _ in range(4))
    for group in (PATIENTS, PHANTOMS):
        of = [host for host in hosts if host.host.group == group]
        own = [one for one in read if one.host.group == group]
        nodules = [one for one in own if not one.insertion.mass]
        if not nodules:
            continue
        kinds = traits.of([one.insertion.donor_id for one in nodules])
        for lesions, inserted, mask in (
            (NODULES, nodules, np.ones(len(nodules), bool)),
            (LARGE, nodules, kinds.diameter_mm >= 5.0),
            (MASSES, masses := [one for one in own if one.insertion.mass],
             np.ones(len(masses), bool)),
        ):  # fmt: skip
            if not mask.any():
                continue
            head = {"hosts": group, "lesions": lesions}
            by = {
                one: only(scored(inserted, of, one), mask)
                for one in dict.fromkeys((Stage.EDGE, stage))
            }
            for one, input_ in by.items():
                named = {"reader": STAGES[one], **head}
                curves.append({**named, **part(input_, **drawn)})
                shipped.append({**named, **_at(input_, least, **drawn)})
            if stage is not Stage.EDGE:
                gains.append({**head, **difference(by[Stage.EDGE], by[stage], **drawn).as_dict()})
        if group == PATIENTS:
            subgroups += by_subgroup(scored(nodules, of, stage), kinds, **drawn)
            subgroups += _by_origin(scored(nodules, of, stage), nodules, **drawn)
    return {"curves": curves, "gains": gains, "shipped": shipped, "subgroups": subgroups}


def _by_origin(
    whole: Scored, nodules: Sequence[InsertionScore], **drawn: int
) -> Iterator[dict[str, Any]]:
    """Yield the figures of nodules that lay freely in the lung, and of others."""
    # from this share of dense surroundings on, a wall or a vessel was there
    attached = np.array([one.insertion.donor.attached >= 0.15 for one in nodules])
    for name, mask in (("freely in the lung", ~attached), ("at wall or vessel", attached)):
        if mask.any():
            found = part(only(whole, mask), **drawn)
            yield {"by": "original location", "subgroup": name, **found}


def _at(of: Scored, least: float, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the share of nodules from ``least`` on, by patient, and the false a scan."""
    found, false = of.nodule_score >= least, of.false_scan[of.false_score >= least]
    patients = np.stack([np.bincount(of.nodule_group), np.bincount(of.nodule_group, found)], 1)
    scans = np.bincount(false, minlength=of.scans)
    point = partial(operating_point, resamples=resamples, seed=seed)
    share, _ = point(np.pad(patients, ((0, 0), (0, 1))))
    _, rate = point(np.pad(scans[:, None], ((0, 0), (2, 0))))
    return {
        "nodules": of.nodule_score.size,
        "found": int(found.sum()),
        "sensitivity": share.as_dict() if share else None,
        "false_positives_per_scan": rate.as_dict(),
    }


def row(one: InsertionScore) -> dict[str, Any]:
    """Return one insertion with its scores for JSON."""
    insertion = one.insertion
    return {
        "donor": insertion.donor.name,
        "scan": one.host.name,
        "mass": insertion.mass,
        "diameter_mm": round(insertion.diameter_mm, 2),
        "centre_mm": [round(v, 1) for v in insertion.centre_mm],
        "attached": round(insertion.donor.attached, 2),
        **{stage.value: finite(score) for stage, score in one.score.items()},
    }
