"""The check of ``overread-eval nothing-lost``: from the acknowledged images to the archives.

Each study is known by its StudyInstanceUID. What is wrong is sorted by study, so that it can be
told at which step it went wrong.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread

from edge.audit import Event
from edge.folders import DATABASE
from edge.store.steps import Step
from edge.trail.files import records_after
from edge.trail.records import TrailRecord
from edge.trail.verify import verify
from evaluation.recovery.check import compare_versions, versions_of

Kept = Mapping[str, Sequence[str]]
"""Digests of what an archive got, by SOP Instance UID, one for each time that it came."""

ONCE = (
    Event.RECEIVED, Event.JOINED, Event.READ, Event.REJECTED, Event.AMENDED, Event.DELIVERED,
)  # fmt: skip
"""Events of which a study has one for each version, later part and target."""


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


def busy(root: Path, waiting: Collection[str] = ()) -> bool:
    """Return whether the agent has anything left to do; deliveries to ``waiting`` do not count."""
    if any(not path.name.startswith(".") for path in (root / "inbox").iterdir()):
        return True
    marks = ", ".join("?" * len(waiting))
    query = (
        "SELECT (SELECT count(*) FROM studies WHERE step NOT IN (?, ?))"
        " + (SELECT count(*) FROM pending) + (SELECT count(*) FROM trail_records)"
        " + (SELECT count(*) FROM exports WHERE step = 'making')"
        f" + (SELECT count(*) FROM deliveries WHERE step = 'sending' AND target NOT IN ({marks}))"
    )
    try:
        with closing(_opened(root)) as opened:
            values = (Step.DONE.value, Step.QUARANTINED.value, *waiting)
            return bool(opened.execute(query, values).fetchone()[0])
    except sqlite3.OperationalError:  # it has not made its tables yet
        return True


def check(root: Path, sent: Mapping[str, Collection[str]], kept: Mapping[str, Kept]) -> Wrong:
    """Check all that was sent: acknowledged SOP Instance UIDs by StudyInstanceUID.

    ``kept`` is what each target got.
    """
    wrong, expected = Wrong(), dict[str, str]()
    reports = _reports(root / "outbox")
    files = Counter(path.stem for path in (root / "state" / "done").rglob("*.dcm"))
    others = Counter(path.stem for path in root.glob("state/[qw]*/**/*.dcm"))
    for study_uid, images in sent.items():
        wrong.lost[study_uid] += [f"image {one}" for one in images if not files[one] + others[one]]
        wrong.doubled[study_uid] += [f"image {one}" for one in images if files[one] > 1]
        wrong.left += [f"{study_uid}: image {one} is not done" for one in images if others[one]]
        folders = reports.pop(study_uid, [])
        if len(folders) != 1:
            place = wrong.doubled if folders else wrong.lost
            place[study_uid].append(f"{len(folders)} reports")
        for folder in folders[:1]:
            expected |= dict.fromkeys(_report(folder, study_uid, wrong, kept), study_uid)
    wrong.left += [f"a report of {one}, which nobody sent" for one in reports]
    for target, objects in kept.items():
        _objects(target, objects, expected, wrong)
    _trail(root, reports=_reports(root / "outbox"), targets=tuple(kept), wrong=wrong)
    wrong.left += _leftovers(root)
    return wrong


def _reports(outbox: Path) -> dict[str, list[Path]]:
    found = defaultdict[str, list[Path]](list)
    for folder in [path for path in outbox.iterdir() if path.is_dir()]:
        path = folder / "report.json"
        values = json.loads(path.read_bytes()) if path.is_file() else {}
        found[values.get("study", {}).get("study_uid") or f"{folder.name}, without a study"].append(
            folder
        )
    return found


def _report(folder: Path, study_uid: str, wrong: Wrong, kept: Mapping[str, Kept]) -> Iterator[str]:
    """Check the versions of one report; yield the SOP Instance UIDs of its objects."""
    versions, missing = versions_of(folder)
    wrong.lost[study_uid] += missing
    if not versions:
        return
    name, last = "report", versions[-1]
    compare_versions(name, versions, wrong.lost[study_uid], wrong.doubled[study_uid])
    if last["status"] != "final":
        wrong.lost[study_uid].append(f"the last version is {last['status']}")
    wrong.provisional += versions[0]["status"] == "provisional"
    wrong.amendments += len(versions) - 1
    for version in range(1, len(versions) + 1):
        files = sorted((folder / "dicom" / f"v{version}").glob("*.dcm"))
        if not files:
            wrong.lost[study_uid].append(f"the objects of version {version}")
        for file in files:
            uid = str(dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
            for target, objects in kept.items():
                if uid not in objects:
                    what = f"{file.name} of version {version} at {target}"
                    wrong.lost[study_uid].append(what)
            yield uid


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
    for one, count in found.items():
        if count > 1:
            place = study_of.get(one[0], one[0])
            wrong.doubled[place].append(f"audit record, {count} times: {one[1:]}")


def _key(record: TrailRecord) -> tuple[str, str, int, str] | None:
    """Return what must be there once: study key, event, version, and target or later part."""
    if record.event not in ONCE:
        return None
    fields: Mapping[str, Any] = record.fields
    event = str(record.event)
    if record.event in (Event.READ, Event.AMENDED, Event.REJECTED):
        event = "a report"
    other = str(fields.get("target") or fields.get("part") or "")
    return str(fields["study_key"]), event, int(fields.get("version") or 0), other


def _leftovers(root: Path) -> Iterator[str]:
    """Yield what is left of work that has ended."""
    yield from (str(path.relative_to(root)) for path in root.rglob("*.part"))
    yield from (f"work/{path.name}" for path in (root / "state" / "work").iterdir())
    with closing(_opened(root)) as opened:
        for table in ("pending", "pending_rois", "pending_verdicts", "trail_records"):
            if count := opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0]:
                yield f"{count} rows in {table}"
        query = "SELECT count(*) FROM deliveries WHERE step != 'sent'"
        if count := opened.execute(query).fetchone()[0]:
            yield f"{count} deliveries"


def _opened(root: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{root / 'state' / DATABASE}?mode=ro", uri=True)
