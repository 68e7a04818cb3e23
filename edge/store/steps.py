"""The durable steps of a study, and which may follow which.

Every step is durable before the next begins, so that after a crash at any moment the row and the
files together tell what remains to be done. The work between two steps is in `edge.agent.claim`
and `edge.agent.study`.

    CLAIMING -> CLAIMED -> READING -> REPORTED -> DONE
        |        |  ^         |                    ^
     forgotten   |  +---------+----> QUARANTINING -|--> QUARANTINED
                 +----> JOINING -------------------+

A later part of a study ends JOINING in one transaction that sets its study, which is at DONE or
QUARANTINED, back to CLAIMED (`edge.store.later_parts`). Where the study cannot be read with it, the
part goes from DONE to QUARANTINING.
"""

from collections.abc import Mapping
from enum import Enum


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
    Step.QUARANTINING: (Step.CLAIMED, Step.READING, Step.DONE),
    Step.QUARANTINED: (Step.QUARANTINING,),
}
"""The steps at which a study may be before each step."""
