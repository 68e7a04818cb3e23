"""The oracle of ``overread-eval nothing-lost``: from the acknowledged images to the archives.

Each study is known by its StudyInstanceUID. What is wrong is sorted by study, so that it can be
told at which step it went wrong.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydicom import dcmread

from edge.audit import Event
from edge.budget import Budget
from edge.escalation.client import NoSecondReader
from edge.escalation.rois import ROI_SHAPE, cut_one
from edge.findings import Route
from edge.folders import DATABASE
from edge.merge import merge
from edge.pipeline import detect
from edge.report.model import ChangeKind
from edge.settings.core import load_settings
from edge.store.record import Step
from edge.trail.records import TrailRecord, records_after
from edge.trail.verify import verify
from evaluation.faults.agent import box_of, stand_in_pipeline, verdicts_on
from imaging.errors import StudyError
from imaging.read import read_study
from protos.deadline import Deadline

Kept = Mapping[str, Sequence[str]]
"""Digests of what an archive got, by SOP Instance UID, one for each time that it came."""

Report = dict[str, Any]

Essence = tuple[object, ...]
"""List, route, position and probability of a finding."""

ONCE = (
    Event.RECEIVED, Event.JOINED, Event.READ, Event.REJECTED, Event.AMENDED, Event.DELIVERED,
)  # fmt: skip
"""Events of which a study has one for each version, later part and target."""

ENDS = ("done", "quarantine", "work")
"""Folders of the state in which images may be; the last one is empty in the end."""


@dataclass
class Sent:
    """What a scanner sent of one study: the acknowledged images by SOP Instance UID.

    Its report has the name ``folder``. A study that is not ``usable`` must be refused.
    """

    acknowledged: set[str]
    folder: str
    usable: bool = True


@dataclass
class Wrong:
    """What is wrong, by StudyInstanceUID; ``left`` is of no study.

    ``provisional`` counts studies whose first report had a pending read, ``amendments`` the
    versions after the first, ``objects`` what all archives have, ``again`` what came to them more
    than once.
    """

    lost: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    doubled: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left: list[str] = field(default_factory=list)
    provisional: int = 0
    amendments: int = 0
    objects: int = 0
    again: int = 0
    records: int = 0

    def of(self, study_uid: str) -> list[str]:
        """Return all that is wrong with one study."""
        return [*self.lost.get(study_uid, ()), *self.doubled.get(study_uid, ())]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, and what is lost, doubled and left."""
        counts = ("provisional", "amendments", "objects", "again", "records")
        return {
            **{key: getattr(self, key) for key in counts},
            "lost": [text for texts in self.lost.values() for text in texts],
            "doubled": [text for texts in self.doubled.values() for text in texts],
            "left": list(self.left),
        }


def busy(root: Path, waiting: Collection[str] = ()) -> bool:
    """Return whether the agent has anything left to do; deliveries to ``waiting`` do not count."""
    if any(not path.name.startswith(".") for path in (root / "inbox").iterdir()):
        return True
    marks = ", ".join("?" * len(waiting))
    count = _count(
        root,
        "(SELECT count(*) FROM studies WHERE step NOT IN (?, ?))"
        " + (SELECT count(*) FROM pending) + (SELECT count(*) FROM trail_records)"
        " + (SELECT count(*) FROM exports WHERE step = 'making')"
        f" + (SELECT count(*) FROM deliveries WHERE step = 'sending' AND target NOT IN ({marks}))",
        (Step.DONE.value, Step.QUARANTINED.value, *waiting),
    )
    return count != 0


def pending(root: Path) -> bool:
    """Return whether any verdict is pending, or stored for a version that is not out."""
    return bool(_count(root, "(SELECT count(*) FROM pending)"))


def _count(root: Path, what: str, values: Sequence[str] = ()) -> int | None:
    """Count rows of the agent's database; None if it has not made its tables yet."""
    try:
        uri = f"file:{root / 'state' / DATABASE}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as opened:
            return int(opened.execute(f"SELECT {what}", values).fetchone()[0])
    except sqlite3.OperationalError:
        return None


def check(
    root: Path, sent: Mapping[str, Sent], kept: Mapping[str, Kept], *, varied: bool = False
) -> Wrong:
    """Check all that was sent, by StudyInstanceUID; ``kept`` is what each target got.

    ``varied`` tells which candidates the agent's screener proposes.
    """
    wrong, expected = Wrong(), dict[str, str]()
    uids = {study.folder: uid for uid, study in sent.items()}
    reports = _reports(root / "outbox", uids)
    places = {end: list((root / "state" / end).rglob("*.dcm")) for end in ENDS}
    images = {end: Counter(path.stem for path in paths) for end, paths in places.items()}
    # what came again after its study was claimed stays apart, in a folder without a report
    done, keys = root / "state" / "done", _study_keys(reports)
    read = [path for path in places["done"] if path.relative_to(done).parts[0] in keys]
    of_reports = {**images, "done": Counter(path.stem for path in read)}
    for study_uid, study in sent.items():
        right = "done" if study.usable else "quarantine"
        count = images[right]
        elsewhere = sum((images[end] for end in ENDS if end != right), Counter[str]())
        for image in study.acknowledged:
            if not count[image] + elsewhere[image]:
                wrong.lost[study_uid].append(f"image {image}")
            if of_reports[right][image] > 1:
                wrong.doubled[study_uid].append(f"image {image}")
            if elsewhere[image]:
                wrong.left.append(f"{study_uid}: image {image} is not {right}")
        folders = reports.get(study_uid, [])
        if len(folders) != 1:
            place = wrong.doubled if folders else wrong.lost
            place[study_uid].append(f"{len(folders)} reports")
        for out in folders[:1]:
            made = _report(out, study_uid, study, wrong, kept)
            expected |= dict.fromkeys(made, study_uid)
            first = next((p for p in read if p.stem in study.acknowledged), None)
            if first is not None and study.usable and study.acknowledged <= set(count):
                source = done.joinpath(*first.relative_to(done).parts[:2])
                try:
                    _findings(out, source, varied, wrong.lost[study_uid])
                except StudyError as error:  # its images lie in several places
                    wrong.lost[study_uid].append(f"images that can be read: {error}")
    wrong.left += [f"a report of {one}, which nobody sent" for one in reports.keys() - sent.keys()]
    for target, objects in kept.items():
        _objects(target, objects, expected, wrong)
    _trail(root, reports, tuple(kept), wrong)
    wrong.left += _leftovers(root)
    return wrong


def _reports(outbox: Path, uids: Mapping[str, str]) -> dict[str, list[Path]]:
    """Return the folders of reports by StudyInstanceUID; ``uids`` has those of refused studies."""
    found = defaultdict[str, list[Path]](list)
    for folder in [path for path in outbox.iterdir() if path.is_dir()]:
        path = folder / "report.json"
        values = json.loads(path.read_bytes()) if path.is_file() else {}
        uid = (values.get("study") or {}).get("study_uid") or uids.get(folder.name, folder.name)
        found[uid].append(folder)
    return found


def _study_keys(reports: Mapping[str, Sequence[Path]]) -> set[str]:
    """Return the keys of the studies that have a report."""
    last = (versions_of(out)[0][-1:] for folders in reports.values() for out in folders)
    return {str(version["study_key"]) for one in last for version in one}


def _report(
    folder: Path, study_uid: str, study: Sent, wrong: Wrong, kept: Mapping[str, Kept]
) -> Iterator[str]:
    """Check the versions of one report; yield the SOP Instance UIDs of its objects."""
    versions, missing = versions_of(folder)
    wrong.lost[study_uid] += missing
    if not versions:
        return
    status = versions[-1]["status"]
    if status != ("final" if study.usable else "rejected"):
        wrong.lost[study_uid].append(f"the last version is {status}")
    if study.usable:
        _compare_versions(versions, wrong.lost[study_uid], wrong.doubled[study_uid])
    wrong.provisional += versions[0]["status"] == "provisional"
    wrong.amendments += len(versions) - 1
    for version in range(1, len(versions) + 1):
        files = sorted((folder / "dicom" / f"v{version}").glob("*.dcm"))
        if kept and not files:
            wrong.lost[study_uid].append(f"the objects of version {version}")
        for file in files:
            uid = str(dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
            wrong.lost[study_uid] += [
                f"{file.name} of version {version} at {target}"
                for target, objects in kept.items()
                if uid not in objects
            ]
            yield uid


def versions_of(out: Path) -> tuple[list[Report], list[str]]:
    """Return the versions of one report up to the first that is missing, and what that is."""
    newest = out / "report.json"
    if not newest.is_file():
        return [], ["its report"]
    last = json.loads(newest.read_text())
    versions: list[Report] = []
    for version in range(1, last["version"]):
        path = out / f"report.v{version}.json"
        if not path.is_file() or not path.with_suffix(".html").is_file():
            return versions, [f"version {version}"]
        versions.append(json.loads(path.read_text()))
    return [*versions, last], []


def _compare_versions(versions: Sequence[Report], lost: list[str], doubled: list[str]) -> None:
    """Check that each version continues the one before, and no read was given up."""
    for number, (older, newer) in enumerate(pairwise(versions), start=1):
        before, after = older["changes"], newer["changes"]
        if older["version"] != number or after[: len(before)] != before:
            lost.append(f"version {number + 1} does not continue {number}")
        if len(after) == len(before):
            doubled.append(f"version {number + 1} changes nothing")
    changes = versions[-1]["changes"]
    if any(change.get("kind") == ChangeKind.GIVEN_UP.value for change in changes):
        lost.append("a pending read, given up too early")
    # a change for more images has no centre: after it the findings start again
    places = [tuple(c["centre_mm"]) for c in changes if c["centre_mm"] is not None]
    if len(set(places)) < len(places):
        doubled.append("a verdict")


def _findings(out: Path, source: Path, varied: bool, lost: list[str]) -> None:
    """Compare the last report with what it must be once every candidate has its verdict."""
    last = json.loads((out / "report.json").read_bytes())
    found = sorted(
        (name, f["route"], *f["centre_mm"], f["probability"])
        for name in ("findings", "possible_findings")
        for f in last[name]
        if f["route"] != Route.DISMISS.value  # of an audit, whose verdict may be missing
    )
    if found != expected_findings(source, last["study_key"], varied=varied):
        lost.append("a finding, or a verdict on one")


def expected_findings(source: Path, study_key: str, *, varied: bool) -> list[Essence]:
    """Return both lists of a study once every candidate that is sent has its verdict."""
    settings = load_settings()
    pipeline = stand_in_pipeline(NoSecondReader(), varied=varied, settings=settings)
    box = box_of(read_study(source).volume)
    plan = detect(pipeline, box, Budget(Deadline.after(60.0)), study_key).plan
    whole = replace(plan, send=(*plan.uncertain, *plan.characterize), sizes=(), later=())
    rois = [cut_one(plan, number, box, ROI_SHAPE) for number in whole.send]
    thresholds, weights = pipeline.reader.thresholds, pipeline.reader.weights
    merged = merge(whole, verdicts_on(rois), thresholds, weights, box.geometry)
    return sorted(
        (name, f.route.value, *(round(mm, 2) for mm in f.centre_mm), round(f.probability, 4))
        for name, listed in (("findings", merged.findings), ("possible_findings", merged.possible))
        for f in listed
    )


def _objects(target: str, objects: Kept, expected: Mapping[str, str], wrong: Wrong) -> None:
    """Check that a target has no other object, and none with two contents."""
    wrong.objects += len(objects)
    wrong.again += sum(len(digests) - 1 for digests in objects.values())
    for uid, digests in objects.items():
        if uid not in expected:
            wrong.left.append(f"object {uid} at {target}, which is of no report")
        elif len(set(digests)) > 1:
            wrong.doubled[expected[uid]].append(f"object {uid} at {target}, with other content")


def _trail(
    root: Path, reports: Mapping[str, Sequence[Path]], targets: Sequence[str], wrong: Wrong
) -> None:
    """Check the chain of the audit trail, and that each event is in it once."""
    folder = root / "state" / "trail"
    verified = verify(folder, root / "state" / DATABASE)
    wrong.records = verified.records
    if verified.broken is not None:
        wrong.left.append(verified.text)
    found = Counter(key for record in records_after(folder, 0) if (key := _key(record)) is not None)
    study_of = {}
    for study_uid, folders in reports.items():
        for out in folders:
            versions, _ = versions_of(out)
            if not versions:
                continue
            study_key = str(versions[-1]["study_key"])
            study_of[study_key] = study_uid
            for version in range(1, len(versions) + 1):
                needed = [(study_key, "a report", version, "")]
                needed += [(study_key, str(Event.DELIVERED), version, one) for one in targets]
                lost = [one for one in needed if not found[one]]
                wrong.lost[study_uid] += [f"audit record: {one[1:]}" for one in lost]
    for name, count in found.items():
        if count > 1:
            place = study_of.get(name[0], name[0])
            wrong.doubled[place].append(f"audit record, {count} times: {name[1:]}")


def _key(record: TrailRecord) -> tuple[str, str, int, str] | None:
    """Return what must be there once: study key, event, version, and target or later part."""
    if record.event not in ONCE:
        return None
    fields: Mapping[str, Any] = record.fields
    is_report = record.event in (Event.READ, Event.AMENDED, Event.REJECTED)
    event = "a report" if is_report else str(record.event)
    other = str(fields.get("target") or fields.get("part") or "")
    return str(fields["study_key"]), event, int(fields.get("version") or 0), other


def _leftovers(root: Path) -> Iterator[str]:
    yield from (str(path.relative_to(root)) for path in root.rglob("*.part"))
    yield from (f"work/{path.name}" for path in (root / "state" / "work").iterdir())
    for table in ("pending", "pending_rois", "pending_verdicts", "trail_records",
                  "deliveries WHERE step != 'sent'"):  # fmt: skip
        if count := _count(root, f"(SELECT count(*) FROM {table})"):
            yield f"{count} rows in {table}"
