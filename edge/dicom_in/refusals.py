"""Why an instance or an association is refused, and the codes that say so to the sender."""

from enum import Enum


class Reason(Enum):
    """Why an instance is refused: the words of log and metrics, and the code for the sender.

    The code is that of C-STORE (PS3.4, table B.2-1; PS3.7, annex C), and the failure reason of
    STOW-RS (PS3.18, annex I).
    """

    NO_ROOM = "no room", 0xA700
    STOPPING = "stopping", 0xA700
    TOO_LARGE = "too large", 0xA701
    TOO_MANY = "too many", 0xA702
    SOP_CLASS = "SOP class", 0x0122
    SYNTAX = "transfer syntax", 0xC122
    UID = "UID", 0xC001
    UNREADABLE = "unreadable", 0xC000
    MISMATCH = "mismatch", 0xA900
    CONFLICT = "conflict", 0x0111
    FAULT = "fault", 0x0110

    def __init__(self, words: str, status: int) -> None:
        self.words, self.status = words, status


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
    """Why an association is rejected: words of log and metrics, and the answer (PS3.8, table 9-21).

    The answer is result, source and reason.
    """

    CALLING = "calling AE title", (0x01, 0x01, 0x03)
    CALLED = "called AE title", (0x01, 0x01, 0x07)
    LIMIT = "too many associations", (0x02, 0x03, 0x02)
    STOPPING = "stopping", (0x02, 0x03, 0x01)

    def __init__(self, words: str, answer: tuple[int, int, int]) -> None:
        self.words, self.answer = words, answer
