"""Apply the rules to the series of one study: which may be read, in which order, and how urgently.

The reading of a study and ``overread-edge rules test`` both go through `ruled`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from edge.folders import RECEIVED
from edge.rules.rule import Action, AppliedRule, Received, Rule, Rules
from imaging.errors import StudyError, is_machine_fault
from imaging.files import open_plain
from imaging.selection import Preference, SelectSeries, SeriesSummary
from imaging.volume import Geometry, Study, Volume
from protos.messages import Priority

_MAX_BYTES = 1 << 16
_SAMPLE = 32
"""Files whose headers tell how urgent a study is: 2 ms each."""

log = structlog.get_logger()


class IgnoredStudy(StudyError):
    """Rules ignore every series of the study that could be read: it is no error.

    ``applied`` is the first of them.
    """

    def __init__(self, reason: str, file: Path, rule: AppliedRule) -> None:
        super().__init__(reason, file)
        self.applied = rule


@dataclass(frozen=True)
class RuledSeries:
    """One series with the rule that took it, and the place of that rule among the rules."""

    series: SeriesSummary
    received: Received
    rule: Rule
    rank: int

    @property
    def ignored(self) -> bool:
        """Whether the rule says not to read it."""
        return self.rule.action is Action.IGNORE


def ruled(
    rules: Rules,
    series: Sequence[SeriesSummary],
    root: Path,
    received_as: Callable[[Path, Path], Received] | None = None,
) -> tuple[RuledSeries, ...]:
    """Return each series below ``root`` with the rule that takes it.

    ``received_as`` tells how the series of a folder came; None for `received_in`.
    """
    found = []
    for item in series:
        received = (received_as or received_in)(item.folder, root)
        rank, rule = rules.match(item, received)
        found.append(RuledSeries(item, received, rule, rank))
    return tuple(found)


def selection(rules: Rules, root: Path) -> SelectSeries:
    """Return the choice among the series of the study at ``root``, as `imaging.read` asks for it.

    The choice raises `IgnoredStudy` where nothing is left to read.
    """

    def select(series: tuple[SeriesSummary, ...]) -> tuple[Preference, ...]:
        return preferences(ruled(rules, series, root), root)

    return select


def preferences(found: Sequence[RuledSeries], root: Path) -> tuple[Preference, ...]:
    """Return the preference for each series, for `imaging.read`; require one to read.

    A study without CT is left to the reading, which refuses it, unless rules ignore all of it.

    Raises:
        IgnoredStudy: every series that could be read is ignored, or every series at all.
    """
    ignored = [one for one in found if one.ignored]
    fit = [one for one in found if not one.series.unfit]
    is_one_left = any(not one.ignored for one in fit or found)
    if not ignored or is_one_left:
        return tuple(Preference(one.rule.name, one.rank, one.ignored) for one in found)
    first = min(ignored, key=lambda one: (bool(one.series.unfit), one.rank))
    names = ", ".join(repr(name) for name in dict.fromkeys(one.rule.name for one in ignored))
    several = "s" if "," in names else ""
    error = IgnoredStudy(
        f"ignored by the rule{several} {names}", root, AppliedRule.of(first.rule, Priority.ROUTINE)
    )
    header, uid = first.series.header, first.series.uid
    volume = Volume(np.empty((0, 0, 0), np.int16), Geometry(), uid, header.series_description)
    error.study = Study(volume, root, header, tuple(map(_line, found)))
    raise error


def _line(one: RuledSeries) -> str:
    header, count = one.series.header, one.series.images
    name = header.series_description or f"series {one.series.uid or 'without UID'}"
    images = f"{count} image{'s' if count != 1 else ''}"
    reason = f"ignored by the rule {one.rule.name!r}" if one.ignored else one.series.unfit
    return f"{name!r} ({header.modality or 'no modality'}, {images}): {reason}"


def received_in(folder: Path, root: Path) -> Received:
    """Return how the series in ``folder`` came: what is nearest between there and ``root``.

    Nothing is known without the file, or where it cannot be read.

    Raises:
        OSError: a fault of the machine.
    """
    top = root if root.is_dir() else root.parent
    for place in (folder, *folder.parents):
        if not place.is_relative_to(top):
            break
        file = place / RECEIVED
        try:
            if not file.exists():
                continue
            with open_plain(file) as stream:
                values = json.loads(stream.read(_MAX_BYTES))
            titles = (values.get(name, "") for name in ("calling_ae", "called_ae"))
            return Received(*(one.strip() if isinstance(one, str) else "" for one in titles))
        except (StudyError, OSError, ValueError, AttributeError, RecursionError) as error:
            if is_machine_fault(error):
                raise
            log.warning("how a series came cannot be read")  # its name may be a patient's
            break
    return Received()


def priority_of(rules: Rules, own: Priority) -> Callable[[Path], Priority]:
    """Return what says how urgent a study is before it is read: the most urgent of its series.

    Only a sample of its headers is looked at, and none if no rule names a priority. A study of
    which nothing can be seen has the priority ``own``.
    """
    if all(rule.priority in (None, own) for rule in rules.rules):
        return lambda _source: own
    # imported here: they load pydicom, which `screen` needs in its reading process only
    from imaging.dicom.arrival import files_of
    from imaging.dicom.study import peek

    def priority(source: Path) -> Priority:
        try:
            files = files_of(source)
            sample = filter(None, map(peek, files[:: max(1, len(files) // _SAMPLE)]))
            series = list({(one.uid, one.unfit): one for one in sample}.values())
            found = ruled(rules, series, source)
        except OSError as error:
            if is_machine_fault(error):
                raise
            return own
        urgent = {one.rule.priority or own for one in found if not one.ignored}
        if not urgent:
            return own
        return Priority.STAT if Priority.STAT in urgent else Priority.ROUTINE

    return priority
