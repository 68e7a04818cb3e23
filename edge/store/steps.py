"""The durable steps of a study, and which may follow which.

Every step is durable before the next begins, so that after a crash at any moment the row and the
files together tell what remains to be done. The work between two steps is in `edge.agent.claim`
and `edge.agent.study`.

    CLAIMING -> CLAIMED -> READING -> REPORTED -> DONE
        |        |  ^         |                    ^
     forgotten   |  +---------+----> QUARANTINING -|--> QUARANTINED
                 +----> JOINING -------------------+

A later part of a study ends JOINING in one transaction that sets its study, which is at DONE or
QUARANTINED, back to CLAIMED (`edge.store.parts`).
"""

from collections.abc import Callable, Mapping
from enum import Enum

from edge.dicom_in.steps import ReceiveStep
from edge.store.exports import DeliveryStep, ExportStep
from edge.store.pending import PendingStep
from edge.trail.store import TrailStep


class Step(Enum):
    """A durable step of a study."""

    CLAIMING = "claiming"  # the row exists; the files may still be in the inbox
    CLAIMED = "claimed"  # the files are in work/
    JOINING = "joining"  # it belongs to an earlier study; its files are moved there
    READING = "reading"  # an attempt has started
    REPORTED = "reported"  # the report is complete in the outbox
    DONE = "done"  # the files are in done/
    QUARANTINING = "quarantining"  # the reason is stored; the files may still be in work/
    QUARANTINED = "quarantined"  # files and reason are in quarantine/


BEFORE: Mapping[Step, tuple[Step, ...]] = {
    Step.CLAIMED: (Step.CLAIMING, Step.READING),
    Step.READING: (Step.CLAIMED, Step.READING),
    Step.REPORTED: (Step.READING,),
    Step.JOINING: (Step.CLAIMED,),
    Step.DONE: (Step.REPORTED, Step.JOINING),
    Step.QUARANTINING: (Step.CLAIMED, Step.READING),
    Step.QUARANTINED: (Step.QUARANTINING,),
}
"""The steps at which a study may be before each step."""

AnyStep = Step | PendingStep | ExportStep | DeliveryStep | TrailStep | ReceiveStep
"""A durable step of anything: in the database, in the trail's files, or of what is received."""

StepHook = Callable[[AnyStep, bool], None]
"""Called with each step twice: just before it is made durable (False) and just after (True)."""
