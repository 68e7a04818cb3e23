"""Why an instance or an association is refused, and the codes that say so to the sender."""

from enum import Enum


class Reason(Enum):
    """Why an instance is refused: the words of log and metrics.

    `status` is the code for C-STORE (PS3.4, table B.2-1; PS3.7, annex C) and for the failure reason
    of STOW-RS (PS3.18, annex I).
    """

    NO_ROOM = "no room"
    STOPPING = "stopping"
    TOO_LARGE = "too large"
    TOO_MANY = "too many"
    SOP_CLASS = "SOP class"
    SYNTAX = "transfer syntax"
    UID = "UID"
    UNREADABLE = "unreadable"
    MISMATCH = "mismatch"
    CONFLICT = "conflict"
    FAULT = "fault"

    @property
    def status(self) -> int:
        """The code for the sender."""
        return _STATUSES[self]


_STATUSES = {
    Reason.NO_ROOM: 0xA700,
    Reason.STOPPING: 0xA700,
    Reason.TOO_LARGE: 0xA701,
    Reason.TOO_MANY: 0xA702,
    Reason.SOP_CLASS: 0x0122,
    Reason.SYNTAX: 0xC122,
    Reason.UID: 0xC001,
    Reason.UNREADABLE: 0xC000,
    Reason.MISMATCH: 0xA900,
    Reason.CONFLICT: 0x0111,
    Reason.FAULT: 0x0110,
}


class Refused(Exception):
    """An instance is not stored; nothing of it is left.

    The text has no patient data and no UID: it goes into logs, and to the sender.

    Attributes:
        sop_class: of the instance; empty if it is not known.
        instance: its SOP Instance UID; empty if it is not known.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason, self.sop_class, self.instance = reason, "", ""


class Rejection(Enum):
    """Why an association is rejected: result, source and reason (PS3.8, table 9-21)."""

    CALLING = (0x01, 0x01, 0x03)
    CALLED = (0x01, 0x01, 0x07)
    LIMIT = (0x02, 0x03, 0x02)
    STOPPING = (0x02, 0x03, 0x01)

    @property
    def words(self) -> str:
        """The reason for log and metrics."""
        return _WORDS[self]


_WORDS = {
    Rejection.CALLING: "calling AE title",
    Rejection.CALLED: "called AE title",
    Rejection.LIMIT: "too many associations",
    Rejection.STOPPING: "stopping",
}
