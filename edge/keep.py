"""Keeps what a report will owe, before the report is out.

A candidate is owed when a second reading was wanted and no verdict came by the deadline: it was
held back for want of time, was not answered, or was refused. So is the description of what the
edge reports, where that was all that was wanted and the cloud said nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edge.compose import Judgement
from edge.decide import Plan
from edge.exchange import Escalated, cut_rois
from edge.finding import Route
from edge.grounds import Grounds
from edge.outcome import Report
from edge.owed import Owed
from edge.screen import EdgeReader
from imaging.preprocess import Preprocessed

Keep = Callable[[Report, Judgement, EdgeReader, Preprocessed], None]
"""Is told of a report that is about to go out, and of all that it was made on."""


def keep_in(owed: Owed, shape: tuple[int, int, int]) -> Keep:
    """Keeps in ``owed`` the regions, voxels of ``shape`` (z, y, x), that lack their verdict."""

    def keep(report: Report, judgement: Judgement, reader: EdgeReader, box: Preprocessed) -> None:
        plan, answers = judgement.plan, judgement.answers
        grounds = Grounds(report, plan, reader.thresholds, reader.weights, box.geometry)
        whole = replace(plan, send=still_owed(plan, answers), sizes=())
        owed.keep(grounds, answers, cut_rois(whole, box, shape))

    return keep


def still_owed(plan: Plan, answers: Escalated) -> tuple[int, ...]:
    """The places whose second reading was wanted and did not come, most valuable first.

    What the edge reports anyway is owed a description only where nothing else was wanted and none
    came; an audit owes nothing.
    """
    if answers.switched_off:
        return ()
    if not plan.uncertain and not any(i in answers.verdicts for i in plan.described):
        return plan.described
    wanted = dict.fromkeys((*plan.send, *plan.later, *plan.uncertain))
    undecided = (i for i in wanted if plan.decisions[i].route is Route.ESCALATE)
    return tuple(i for i in undecided if i not in answers.verdicts)
