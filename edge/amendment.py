"""The next version of a report: what its findings are with the verdicts that came since."""

from __future__ import annotations

from dataclasses import replace

from edge.changes import changes_between, given_up, numbers_of
from edge.compose import models_used
from edge.exchange import Escalated
from edge.grounds import Grounds
from edge.guarantee import amended_promise
from edge.outcome import Report, Status


def amended(
    grounds: Grounds,
    old: Escalated,
    new: Escalated,
    *,
    created: str,
    open_places: int,
    gives_up: bool,
) -> Report:
    """Version + 1 of the report, without its pictures.

    Args:
        grounds: of the version that is out.
        old: the verdicts that it has.
        new: these, and those that came since.
        created: wall-clock time, ISO 8601 with zone.
        open_places: candidates that no verdict is there for even now.
        gives_up: whether they are not asked for any more; the reason is that of ``new``.
    """
    before = replace(grounds.report, findings=grounds.merged(old).findings)
    merged = grounds.merged(new)
    news = Escalated({i: v for i, v in new.verdicts.items() if i not in old.verdicts})
    numbers = numbers_of(before, merged.findings, grounds.plan)
    changes = changes_between(before, merged.findings, numbers, news, grounds)
    over = open_places == 0
    if open_places and gives_up:
        changes += (given_up(before.version + 1, open_places, new.reason),)
        over = True
    return replace(
        before,
        created=created,
        findings=merged.findings,
        finding_numbers=numbers,
        second_reading=merged.second_reading,
        second_reading_reason=merged.reason,
        models=models_used(before.models["edge"], new),
        guaranteed=amended_promise(before.guaranteed, grounds.plan, new),
        version=before.version + 1,
        changes=before.changes + changes,
        status=Status.FINAL if over else Status.PROVISIONAL,
    )
