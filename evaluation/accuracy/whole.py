"""``overread-eval whole``: whole scans with every nodule marked, through the agent's own code.

The rules are those of LUNA16. A scan without any nodule counts: whatever is found in it is false. A
scan that is refused misses all its nodules, and does not count in a rate a scan. Decisions are at
the shipped thresholds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from edge.findings import Finding
from edge.report.compose import Assessment
from evaluation.accuracy.bootstrap import RATE_COLUMNS, difference, figures, finite, operating_point
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.lung_points import lung_points_mm
from evaluation.accuracy.options import Marks, MoreScans, Scans, marked_scans
from evaluation.accuracy.readers import STAGES, Agent, BoxReading, Stage, StageOption, open_agent
from evaluation.accuracy.truth import ScanScores, Truth, scan_name, score_scan
from evaluation.run import SHARE, Bar, CloudModel, Model, Result, Table, command, each
from imaging.errors import StudyError
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, Triple
from models.data.folder import is_inside
from models.runtime.detection import Candidate

OUTSIDE = "outside of the scan"
"""A nodule there is missed: its coordinates are not those of the scan."""

INDEPENDENT = "independent marks"
"""The scans that nobody marked by eye among the networks' candidates."""

TOGETHER = "all"
"""The group of all scans, beside those of each role."""

AWAY_MM = 10.0
"""A finding is outside the lungs if it is on no mark, and its centre is further from lung tissue
than this and than half of its diameter. Marks in 11 scans of training and validation are at most
9.7 mm away, masses from 29 mm on 14 mm."""

UNCERTAIN, RIGHT = 3.0, 0.75
"""Required: uncertain candidates a test scan, and the share of changed decisions that are right."""


class Counts(NamedTuple):
    """Counts of one report: nodules, and what is false by the rules.

    ``found`` are the nodules among the findings, ``listed`` those among findings and possible
    findings. ``false`` are false findings, the false positives; ``false_possible`` are false
    possible findings.
    """

    nodules: int
    found: int
    listed: int
    false: int
    false_possible: int


@dataclass(frozen=True, eq=False)
class WholeScan:
    """One scan as the agent read it.

    ``ranked`` has the candidates of each stage with the score that counts. A scan that was
    ``refused``, which says why, has no ``reading``. ``outside`` are the numbers of nodules that lie
    outside of its volume. ``lung_mm`` are points in lung tissue ``(n, 3)``.
    """

    name: str
    truth: Truth
    reading: BoxReading | None = None
    ranked: Mapping[Stage, Sequence[Candidate]] = field(default_factory=dict)
    refused: str = ""
    outside: frozenset[int] = frozenset()
    lung_mm: FloatArray = field(default_factory=lambda: np.zeros((0, 3)))

    def scores(self, stage: Stage) -> ScanScores:
        """Return the scores of the nodules and of the false positives."""
        return self._matched([(one.centre_mm, one.score) for one in self.ranked.get(stage, ())])

    def report(self, stage: Stage) -> Assessment | None:
        """Return the report of that stage at the shipped thresholds; None if there is none."""
        if self.reading is None:
            return None
        return self.reading.both if stage is Stage.BOTH else self.reading.alone

    def counts(self, stage: Stage) -> Counts:
        """Return what the report of that stage has of the nodules, and what is false in it."""
        report = self.report(stage)
        findings = () if report is None else report.merged.findings
        possible = () if report is None else report.merged.possible
        in_findings, in_possible, in_either = (
            self._matched([(one.centre_mm, one.probability) for one in listed])
            for listed in (findings, possible, (*findings, *possible))
        )
        false, false_possible = in_findings.false_score.size, in_possible.false_score.size
        nodules = len(self.truth.lesions)
        return Counts(nodules, in_findings.found, in_either.found, false, false_possible)

    def outside_lungs(self, listed: Sequence[Finding]) -> list[str]:
        """Name the places of those that are outside, see `AWAY_MM`."""
        return [
            f"{self.name} at {', '.join(f'{mm:.0f}' for mm in entry.centre_mm)}"
            for entry in listed
            if self.truth.is_false(entry.centre_mm)
            and np.linalg.norm(self.lung_mm - entry.centre_mm, axis=1).min()
            > max(AWAY_MM, entry.diameter_mm / 2)
        ]

    def uncertain(self) -> int:
        """Return how many candidates are between the thresholds of the edge."""
        return 0 if self.reading is None else len(self.reading.alone.plan.uncertain)

    def sent(self) -> int:
        """Return how many regions the edge sends, those for characterization included."""
        both = self.report(Stage.BOTH)
        return 0 if both is None else len(both.plan.send)

    def changes(self) -> Iterator[bool | None]:
        """Yield whether each decision is right that the cloud's verdicts changed.

        They add a candidate to the findings of the edge alone, or keep one out. It is None on a
        place that does not count.
        """
        alone, both = self.report(Stage.EDGE), self.report(Stage.BOTH)
        if alone is None or both is None:
            return
        before, after = reported(alone), reported(both)
        for number in sorted(before.keys() ^ after.keys()):
            one = both.plan.decisions[number].candidate
            hit = any(lesion.hit_by(one.centre_mm) for lesion in self.truth.lesions)
            counts = hit or self.truth.is_false(one.centre_mm)
            yield (number in after) is hit if counts else None

    def _matched(self, detections: Sequence[tuple[Triple, float]]) -> ScanScores:
        return score_scan(detections, self.truth)


def read_whole(folder: Path, truth: Truth, agent: Agent, stage: Stage) -> WholeScan:
    """Read a scan from its files, as the agent does."""
    name = scan_name(folder)
    try:
        volume = read_study(folder).volume
        box = preprocess(volume, folder)
    except StudyError as error:
        return WholeScan(name, truth, refused=f"{error.kind}: {error.reason}")
    outside = {
        number
        for number, lesion in enumerate(truth.lesions)
        if not is_inside(volume, lesion.centre_mm)
    }
    return replace(read_box(name, truth, box, agent, stage), outside=frozenset(outside))


def read_box(name: str, truth: Truth, box: Preprocessed, agent: Agent, stage: Stage) -> WholeScan:
    """Read the lung box of a scan with what ``stage`` needs."""
    reading = agent.read(box, stage)
    ranked: dict[Stage, Sequence[Candidate]] = {Stage.EDGE: reading.candidates}
    if stage is Stage.BOTH:
        ranked[stage] = agent.ranked(reading, box)
    return WholeScan(name, truth, reading, ranked, lung_mm=lung_points_mm(box))


def scored(scans: Sequence[WholeScan], stage: Stage) -> Scored:
    """Return the input of the FROC: nodules and false positives by scan."""
    of = [scan.scores(stage) for scan in scans]
    numbers = np.repeat(np.arange(len(scans)), [one.lesion_score.size for one in of])
    nodules = np.concatenate([one.lesion_score for one in of])
    refused = tuple(number for number, scan in enumerate(scans) if scan.refused)
    false = [one.false_score for one in of]
    return Scored.of(nodules, numbers, false, paired=True, refused=refused)


def reported(report: Assessment) -> dict[int, Finding]:
    """Return the findings of a report by the number of their candidate."""
    return {report.plan.index_of(finding): finding for finding in report.merged.findings}


def nodule_row(scan: WholeScan, number: int, stage: Stage) -> dict[str, Any]:
    """Return the score of a nodule by each stage, and what the reports make of it."""
    lesion = scan.truth.lesions[number]
    return {
        "scan": scan.name,
        "role": scan.truth.role or None,
        "centre_mm": list(lesion.centre_mm),
        "diameter_mm": lesion.diameter_mm if lesion.known else None,
        "edge": _score(scan, number, Stage.EDGE),
        "score": _score(scan, number, stage),
        "by_edge": _fate(scan, number, Stage.EDGE),
        "by_stage": _fate(scan, number, stage),
    }


def _score(scan: WholeScan, number: int, stage: Stage) -> float | None:
    return finite(float(scan.scores(stage).lesion_score[number]))


def _fate(scan: WholeScan, number: int, stage: Stage) -> str:
    report, lesion = scan.report(stage), scan.truth.lesions[number]
    if number in scan.outside or report is None:
        return OUTSIDE if number in scan.outside else "refused"
    for name, listed in (("found", report.merged.findings), ("possible", report.merged.possible)):
        if any(lesion.hit_by(one.centre_mm) for one in listed):
            return name
    return "missed"


def scan_row(scan: WholeScan, stage: Stage) -> dict[str, Any]:
    """Return one scan: what is found and false at the shipped thresholds, and its regions."""
    changes, edge, own = list(scan.changes()), scan.counts(Stage.EDGE), scan.counts(stage)
    return {
        "scan": scan.name,
        "role": scan.truth.role or None,
        "refused": scan.refused or None,
        "nodules": own.nodules,
        "found": own.found,
        "possible": own.listed - own.found,
        "false_of_edge": edge.false,
        "false": own.false,
        "false_possible": own.false_possible,
        "uncertain": scan.uncertain(),
        "sent": scan.sent(),
        "changed": len(changes),
        "changed_rightly": changes.count(True),
    }


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required: no finding outside lungs, and of second readings in test scans."""
    for row in result.get("outside_lungs", ()):
        is_train = any(group["scans"] == "train" for group in result["groups"])
        of = "training" if is_train else "validation and test"
        what = f"findings outside the lungs in {row['scans']} scans of {of}, {row['reader']}"
        yield Bar(what, len(row["findings"]) if row["scans"] else None, 0)
    for row in result["groups"]:
        if row["scans"] == "test":
            what = "uncertain candidates a scan, whole test scans"
            yield Bar(what, row["uncertain_per_scan"], UNCERTAIN, "{:.1f}", least=True)
            count = row["right"] + row["wrong"]
            yield Bar("decisions changed by verdicts that are right, whole test scans",
                      row["right"] / count if count else None, RIGHT, SHARE, least=True,
                      shown=f"{row['right']} of {count}")  # fmt: skip


def _remarks(result: Result) -> Iterator[str]:
    """Name what lies outside the lungs, and what is missed for another reason than a reader."""
    for one in result.get("outside_lungs", ()):
        found, listed = ("; ".join(one[name]) or "none" for name in ("findings", "possible"))
        yield f"Outside the lungs, {one['reader']}: {found}. Possible findings: {listed}."
    refused = [one["scan"] for one in result["raw"]["scans"] if one["refused"]]
    if refused:
        yield (
            f"Refused: {', '.join(refused)}. Their nodules are missed; in a rate a scan they do not"
            " count."
        )
    nodules = result["raw"]["nodules"]
    if outside := [one["scan"] for one in nodules if one["by_edge"] == OUTSIDE]:
        yield (
            f"Nodules outside of their scans count as missed: {', '.join(outside)}. Marks need"
            " coordinates in LPS mm; for RAS change the signs of x and y."
        )


@command(
    Table("curves", {"scans": "scans", "reader": "reader", **RATE_COLUMNS},
          title="Sensitivity in % at false positives a scan"),
    Table("shipped", {
        "scans": "scans", "number": "number", "reader": "reports", "found": "nodules found",
        "nodules": "of", "sensitivity": ("sensitivity", SHARE),
        "false_positives_per_scan": ("false positives a scan", "{:.2f}"),
    }, title="At the shipped thresholds, {model} and {cloud_model}"),
    Table("either", {
        "scans": "scans", "reader": "reports", "found_in_either_list": "nodules in either list",
        "nodules": "of", "sensitivity_of_either_list": ("sensitivity", SHARE),
        "false_possible_per_scan": ("false possible findings a scan", "{:.2f}"),
    }, "shipped", "Findings and possible findings together"),
    Table("verdicts", {
        "scans": "scans", "uncertain_per_scan": ("uncertain candidates a scan", "{:.1f}"),
        "sent_per_scan": ("ROIs sent a scan", "{:.1f}"),
        "both_minus_edge": ("CPM, both minus edge", "{:.3f}"),
        "changed": "decisions changed by verdicts", "right": "of them right", "wrong": "wrong",
        "ignored": "on ignored places",
    }, "groups", "What the cloud is asked, and what its verdicts change"),
    Table("nodules", {
        "scan": "scan", "role": "role", "centre_mm": "x, y, z", "diameter_mm": ("mm", "{:.1f}"),
        "edge": ("score of the edge", "{:.2f}"), "score": ("of the report", "{:.2f}"),
        "by_edge": "edge alone", "by_stage": "report",
    }, lambda result: result["raw"]["nodules"], "Nodules"),
    Table("scans", {
        "scan": "scan", "role": "role", "nodules": "nodules", "found": "found",
        "possible": "possible", "false_of_edge": "false edge", "false": "false",
        "false_possible": "false possible", "uncertain": "uncertain", "sent": "sent",
        "changed": "changed", "changed_rightly": "rightly",
    }, lambda result: result["raw"]["scans"], "Scans at the shipped thresholds"),
    _remarks,
    bars=bars,
)  # fmt: skip
def whole(
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    stage: StageOption = Stage.BOTH,
    split: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", help="Roles of the scans; default: all.")
    ] = None,
    model: Model = None,
    cloud_model: CloudModel = None,
) -> dict[str, Any]:
    """Whole scans with every nodule marked: what is found, what is false, what verdicts change."""
    roles = None if split is None else split.split(",")
    folders, known = marked_scans(scans, more_scans, truth, roles, all_of=True)
    agent = open_agent(stage, model, cloud_model)
    read = [
        read_whole(folder, known[scan_name(folder)], agent, stage)
        for folder in each(folders, "scans")
    ]
    outside = [outside_row(read, one) for one in dict.fromkeys((Stage.EDGE, stage))]
    read = [scan for scan in read if scan.truth.fully_marked]
    return {
        "stage": stage.value,
        "model": agent.label,
        "cloud_model": agent.second_label,
        "thresholds": asdict(agent.thresholds),
        **as_dict(groups_of(read), stage),
        "outside_lungs": outside,
        "raw": {
            "scans": [scan_row(scan, stage) for scan in read],
            "nodules": [
                nodule_row(scan, i, stage) for scan in read for i in range(len(scan.truth.lesions))
            ],
        },
    }


def outside_row(scans: Sequence[WholeScan], stage: Stage) -> dict[str, Any]:
    """Return the places of a stage's findings outside the lungs, also in scans not fully marked.

    Scans without lung tissue do not count.
    """
    known = [scan for scan in scans if len(scan.lung_mm)]
    merged = [(scan, report.merged) for scan in known if (report := scan.report(stage))]
    return {
        "reader": STAGES[stage],
        "scans": len(merged),
        "findings": [at for scan, of in merged for at in scan.outside_lungs(of.findings)],
        "possible": [at for scan, of in merged for at in scan.outside_lungs(of.possible)],
    }


def groups_of(scans: Sequence[WholeScan]) -> dict[str, list[WholeScan]]:
    """Return the scans by role, test first and validation next; all together if there are more.

    Before the first come those of its scans without any mark by eye, if that is a part of them.
    """
    order = ("test", "val")
    roles = sorted({scan.truth.role for scan in scans})
    roles.sort(key=lambda role: order.index(role) if role in order else len(order))
    if len(roles) < 2:
        groups = {(roles[0] if roles else "") or TOGETHER: list(scans)}
    else:
        groups = {role or "no role": [s for s in scans if s.truth.role == role] for role in roles}
        groups[TOGETHER] = list(scans)
    first, of = next(iter(groups.items()))
    independent = [scan for scan in of if not scan.truth.by_eye]
    if 0 < len(independent) < len(of):
        return {f"{first}, {INDEPENDENT}": independent, **groups}
    return groups


def as_dict(groups: Mapping[str, Sequence[WholeScan]], stage: Stage) -> dict[str, Any]:
    """Return the figures of each group of scans; without a nodule there is no sensitivity."""
    stages = tuple(dict.fromkeys((Stage.EDGE, stage)))
    curves, shipped, verdicts = list[dict[str, Any]](), list[dict[str, Any]](), []
    for name, scans in groups.items():
        nodules = sum(len(scan.truth.lesions) for scan in scans)
        of = {one: scored(scans, one) for one in (stages if nodules else ())}
        for one, input_ in of.items():
            found = figures(input_)
            curves.append({"scans": name, "reader": STAGES[one], "nodules": nodules, **found})
        for one in stages:
            head = {"scans": name, "number": len(scans), "reader": STAGES[one]}
            shipped.append({**head, **_shipped(scans, one)})
        both = of.get(Stage.BOTH)
        gain = difference(of[Stage.EDGE], both)["cpm"] if both else None
        verdicts.append({"scans": name, "both_minus_edge": gain, **_verdicts(scans)})
    return {"curves": curves, "shipped": shipped, "groups": verdicts}


def _shipped(scans: Sequence[WholeScan], stage: Stage) -> dict[str, Any]:
    """Return what the reports of a stage have of the nodules, and what is false in them."""
    counts = np.array([(*scan.counts(stage), not scan.refused) for scan in scans], np.float64)
    nodules, found, listed, false, false_possible, _ = counts.sum(axis=0).astype(int).tolist()
    share, rate, either, possible_rate = (
        None if one is None else one.as_dict()
        for columns in ([0, 1, 3, 5], [0, 2, 4, 5])
        for one in operating_point(counts[:, columns])
    )
    return {
        "nodules": nodules,
        "found": found,
        "sensitivity": share,
        "false_positives": false,
        "false_positives_per_scan": rate,
        "found_in_either_list": listed,
        "sensitivity_of_either_list": either,
        "false_possible": false_possible,
        "false_possible_per_scan": possible_rate,
    }


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None


def _verdicts(scans: Sequence[WholeScan]) -> dict[str, Any]:
    """Return how much is uncertain, what is sent, and how often a verdict changed a decision."""
    read = [scan for scan in scans if not scan.refused]
    right = [change for scan in read for change in scan.changes()]
    return {
        "uncertain_per_scan": _mean([scan.uncertain() for scan in read]),
        "sent_per_scan": _mean([scan.sent() for scan in read]),
        "changed": len(right),
        "right": right.count(True),
        "wrong": right.count(False),
        "ignored": right.count(None),
    }
