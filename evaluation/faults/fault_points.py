"""Fault points: the durable steps from association to archive, at which an agent may die.

A `Trigger` chooses the point, and `Order` checks what is on the disk when an image is acknowledged.
Both are shared by the processes of a test.
"""

import errno
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

from edge.dicom_in.received import ReceiveStep
from edge.dicom_out.exports import DeliveryStep, ExportStep
from edge.store.pending import PendingStep
from edge.store.record import Step
from edge.trail.store import TrailStep

ACKNOWLEDGED, AT_TARGET = "instance acknowledged", "object at the archive"
"""Steps whose other side sees them: after the first, and at the second, it kills the agent."""

REPORT, AMENDED, OBJECTS = "report written", "amended report written", "DICOM objects written"
STORED, MORE_TO_COME = "late verdicts stored", "amendment noted, more to come, audit record"
HELD = (STORED, AMENDED, MORE_TO_COME)
"""Steps of a version that waits for more verdicts: the cloud answers a half at a time."""

STEPS: Mapping[str, Enum | None] = {
    "instance written": ReceiveStep.WRITTEN,
    "instance stored in its series": ReceiveStep.STORED,
    ACKNOWLEDGED: ReceiveStep.ACKNOWLEDGED,
    "series marked complete": ReceiveStep.COMPLETED,
    "claim begun": Step.CLAIMING,
    "study claimed, audit record": Step.CLAIMED,
    "reading counted": Step.READING,
    "pending reads saved": PendingStep.SAVED,
    REPORT: None,
    "study reported, export row, audit record": Step.REPORTED,
    "study put away": Step.DONE,
    "retry counted": PendingStep.RETRYING,
    STORED: PendingStep.AMENDING,
    AMENDED: None,
    MORE_TO_COME: PendingStep.PENDING,
    "last amendment noted, audit record": PendingStep.CLOSED,
    OBJECTS: None,
    "objects noted, deliveries begun": ExportStep.MADE,
    "delivery counted": DeliveryStep.TRYING,
    AT_TARGET: None,
    "delivery noted, audit record": DeliveryStep.SENT,
    "audit records in their file": TrailStep.APPENDED,
}
"""The durable steps in their order; those that are None the agent reaches in the stand-ins."""

NAMES = tuple(STEPS)
NAME_OF = {step: name for name, step in STEPS.items() if step is not None}


class Trigger:
    """The step at which an agent dies or fills its disk, shared by all processes.

    Without locks, which a killed process would hold for ever.
    """

    def __init__(self) -> None:
        self._values: Any = RawArray("i", [-1, 0, 0, 0])

    def arm(self, name: str, after: bool, *, skip: int = 0, fills: bool = False) -> None:
        """Act at this step, when it comes for the time after ``skip`` others."""
        self._values[1:4] = [skip, int(fills), int(name in HELD)]
        self._values[0] = 2 * NAMES.index(name) + after

    def disarm(self) -> None:
        """Act no more."""
        self._values[0] = -1

    @property
    def armed(self) -> bool:
        """Whether the step is still to come."""
        return bool(self._values[0] >= 0)

    @property
    def fills(self) -> bool:
        """Whether the disk is filled, and nothing killed; until it has room again."""
        return bool(self._values[2])

    def freed(self) -> None:
        """Note that the disk has room again."""
        self._values[2] = 0

    @property
    def by_halves(self) -> bool:
        """Whether the cloud answers a half of what it is asked for."""
        return bool(self._values[3])

    def met(self, name: str, after: bool) -> bool:
        """Return whether this is the point; it is met once."""
        if self._values[0] != 2 * NAMES.index(name) + after:
            return False
        if self._values[1] > 0:
            self._values[1] -= 1
            return False
        self.disarm()
        return True


class Order:
    """Checks that an instance is acknowledged only after its file and folder are synchronised.

    It sees every synchronisation of the process, and the steps of the receiver.
    """

    def __init__(self) -> None:
        self._counts: Any = RawArray("i", [0, 0, 0])
        self._of: threading.local | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Acknowledgements that were checked, of these of repeats, and those that were wrong."""
        return dict(zip(("checked", "repeats", "wrong"), self._counts, strict=True))

    def watch(self) -> None:
        """Watch this process."""
        self._of, real = threading.local(), os.fsync

        def fsync(handle: Any) -> None:
            real(handle)
            number = handle if isinstance(handle, int) else handle.fileno()
            if not stat.S_ISDIR(os.fstat(number).st_mode):
                self._seen.append("file")
            elif not os.readlink(f"/proc/self/fd/{number}").endswith("/inbox"):
                self._seen.append("folder")  # that of a series

        setattr(os, "fsync", fsync)  # noqa: B010 - for this process alone

    @property
    def _seen(self) -> list[str]:
        seen: list[str] = vars(self._of).setdefault("seen", [])
        return seen

    def on_step(self, step: Enum, durable: bool) -> None:
        """Note a step of the receiver, in the thread of its sender."""
        if step is ReceiveStep.WRITTEN and not durable:
            self._seen.clear()
        elif step is ReceiveStep.STORED:
            self._seen.append("stored" if durable else "storing")
        elif step is ReceiveStep.ACKNOWLEDGED:
            # an image that was stored before is not moved again: its own file is enough
            known = [one for one in self._seen if one in ("storing", "stored")]
            self._counts[0] += 1
            self._counts[1] += not known
            first, *rest = self._seen or ["nothing"]
            sound = first == "file" and (not known or ends_durable(rest))
            self._counts[2] += not sound


def ends_durable(seen: Sequence[str]) -> bool:
    """Return whether a folder was synchronised between the last ``storing`` and ``stored``."""
    if not seen or seen[-1] != "stored" or "storing" not in seen:
        return False
    begun = max(at for at, one in enumerate(seen) if one == "storing")
    return "folder" in seen[begun:]


def fill(ballast: Path) -> None:
    """Write to ``ballast`` until the disk is full to the last byte."""
    with ballast.open("ab", buffering=0) as file:
        for block in (1 << 20, 4096, 1):
            try:
                while file.write(b"\0" * block) == block:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
