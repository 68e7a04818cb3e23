"""Make the next version of a report from its stored verdicts: `STAGES`, one after the other.

They may be repeated after a crash at any point: the same verdicts make the same version. A version
that is out already goes through them unchanged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from edge.amend.amendment import AmendmentContext, amend_report
from edge.amend.persist import answers_of, unpacked
from edge.errors import EdgeError
from edge.report.evidence import OUTLINES, EvidenceFiles, outlines_file
from edge.report.folder import take_folder
from edge.report.model import Report
from edge.report.pictures import Pictures, picture_note, redraw
from edge.report.write import version_in, write_version
from edge.store.pending import PendingRead, PendingStore
from protos.messages import Roi


class ForeignReport(EdgeError):
    """The folder in the outbox holds the report of another study."""


@dataclass(frozen=True, eq=False)
class Version:
    """A version of a report on its way to the folder ``out``.

    Attributes:
        context: that of the version before.
        roi_of: returns the ROI of a candidate, None if it is not stored.
        is_last: no version follows.
    """

    report: Report
    context: AmendmentContext
    out: Path
    roi_of: Callable[[int], Roi | None]
    is_last: bool
    pictures: Pictures = field(default_factory=dict)
    evidence: EvidenceFiles = field(default_factory=dict)

    @property
    def is_out(self) -> bool:
        """Whether it is complete in the outbox: a crash has left only the step to be noted."""
        return version_in(self.out, self.report.study_key) == self.report.version


def composed(store: PendingStore, read: PendingRead, out: Path, created: str) -> Version:
    """Compose the next version of the report of a read at AMENDING."""
    key = read.study_key
    context, open_rois = store.context(key), store.open_rois(key)
    rows = [store.verdicts(key, version) for version in (read.version, read.version + 1)]
    old, new = (answers_of(one, read.reason) for one in rows)
    is_last = read.gives_up or not open_rois
    before = AmendmentContext.from_bytes(context)
    report = amend_report(
        before, old, new, created=created, open_rois=open_rois, gives_up=read.gives_up
    )
    # A database that is older than the reports, such as an old backup, overwrites no version.
    if (newest := version_in(out, key)) > report.version:
        report = replace(report, version=newest + 1)
    return Version(report, before, out, partial(_stored, store, key), is_last)


def drawn(version: Version) -> Version:
    """Add the pictures and the outlines.

    Raises:
        ForeignReport: somebody removed the folder, or another agent took its name.
    """
    report, context, out = version.report, version.context, version.out
    if version.is_out:
        return version
    if not take_folder(out, report.study_key):
        raise ForeignReport(f"{out} belongs to another study: move it elsewhere")
    pictures = redraw(report, context.plan, version.roi_of, out)
    outlines = outlines_file(report.listed, context.geometry)
    report = replace(report, picture_note=picture_note(report, pictures))
    return replace(version, report=report, pictures=pictures, evidence={OUTLINES: outlines})


def written(version: Version) -> Version:
    """Write the files."""
    if not version.is_out:
        write_version(version.report, version.pictures, version.out, version.evidence)
    return version


STAGES: Sequence[Callable[[Version], Version]] = (drawn, written)
"""What follows `composed`."""


def _stored(store: PendingStore, key: str, roi_id: int) -> Roi | None:
    data = store.roi(key, roi_id)
    return None if data is None else unpacked(data)
