"""``overread-edge rules test``: what the rules would do with the series of a folder.

Each study is read as the agent reads it, up to its volume, so that the series that is named is the
one that the agent would read. Nothing is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edge.rules.rule import AppliedRule, Received, load_rules
from edge.rules.selection import IgnoredStudy, RuledSeries, preferences, received_in, ruled
from edge.settings.core import EdgeSettings
from imaging.dicom.arrival import files_of
from imaging.dicom.study import peek
from imaging.errors import OnlyLocalizer, StudyError
from imaging.isolation.reader import IsolatedReader, ReadLimits
from imaging.selection import Preference, SeriesSummary
from protos.messages import Priority


@dataclass(frozen=True)
class ExplainedStudy:
    """One study, its series with their rules, and what becomes of it.

    Attributes:
        outcome: ``read``, ``ignored`` or ``refused``.
        reason: why it is not read; empty if it is.
        chosen: the series that would be read, None for none.
        own: priority of series whose rule names none.
    """

    path: Path
    series: tuple[RuledSeries, ...]
    outcome: str
    reason: str
    chosen: RuledSeries | None
    own: Priority

    def applied(self, one: RuledSeries) -> AppliedRule:
        """Return what the rule of a series says."""
        return AppliedRule.of(one.rule, self.own)


def explain(
    path: Path, settings: EdgeSettings, calling_ae: str | None = None, called_ae: str | None = None
) -> list[ExplainedStudy]:
    """Return what the rules of the settings do with each study at or below ``path``.

    An AE title that is given replaces the one with which the series came.

    Raises:
        BadRules: the file of rules cannot be read, or a rule is wrong.
        OSError: a fault of the machine.
    """
    rules = load_rules(settings.rules)

    def received_as(folder: Path, root: Path) -> Received:
        came = received_in(folder, root)
        calling = came.calling_ae if calling_ae is None else calling_ae
        return Received(calling, came.called_ae if called_ae is None else called_ae)

    with IsolatedReader(ReadLimits(settings.read_memory_mb)) as reader:
        rule = partial(ruled, rules, received_as=received_as)
        return [_explained(study, settings, reader, rule) for study in studies_below(path)]


def studies_below(path: Path) -> list[Path]:
    """Return the folders of studies as the inbox would take them, by name.

    ``path`` itself is one, unless its images are of several studies and all lie in sub-folders.
    """
    if not path.is_dir():
        return [path]
    seen = {file: one for file in files_of(path) if (one := peek(file)) is not None}
    uids = {one.header.study_uid for one in seen.values()}
    if len(uids) < 2 or any(file.parent == path for file in seen):
        return [path]
    return sorted({path / file.relative_to(path).parts[0] for file in seen})


def _explained(
    path: Path,
    settings: EdgeSettings,
    reader: IsolatedReader,
    rule: Callable[[tuple[SeriesSummary, ...], Path], tuple[RuledSeries, ...]],
) -> ExplainedStudy:
    found: tuple[RuledSeries, ...] = ()

    def select(series: tuple[SeriesSummary, ...]) -> tuple[Preference, ...]:
        nonlocal found
        found = rule(series, path)
        return preferences(found, path)

    outcome, reason, chosen = "read", "", None
    try:
        uid = reader.read(path, settings.series, select).volume.series_uid
        # what cannot be read of a series with the same UID, such as its localizer, is another one
        same = (one for one in found if one.series.uid == uid and not one.series.unfit)
        chosen = next(same, found[0])
    except (IgnoredStudy, OnlyLocalizer) as error:
        outcome, reason = "ignored", error.reason
    except StudyError as error:
        outcome, reason = "refused", f"{error.kind}: {error}"
    return ExplainedStudy(path, found, outcome, reason, chosen, Priority(settings.priority))


def as_values(study: ExplainedStudy) -> dict[str, Any]:
    """Return the study as JSON values."""
    series = []
    for listed in study.series:
        summary, header, applied = listed.series, listed.series.header, study.applied(listed)
        series.append(
            {
                "series_uid": summary.uid,
                "number": summary.number,
                "images": summary.images,
                "modality": header.modality,
                "description": header.series_description,
                "kernel": list(summary.kernels),
                "slice_thickness_mm": summary.slice_thickness_mm,
                "body_part": summary.body_part,
                "manufacturer": header.manufacturer,
                "image_type": list(summary.image_type),
                "calling_ae": listed.received.calling_ae,
                "called_ae": listed.received.called_ae,
                "unfit": summary.unfit,
                "rule": applied.name,
                "action": applied.action.value,
                "priority": applied.priority.value,
                "screening": applied.screening,
                "read": listed is study.chosen,
            }
        )
    return {
        "path": str(study.path),
        "outcome": study.outcome,
        "reason": study.reason,
        "series": series,
    }
