"""The errors of a study, sorted by what the person at the scanner must do.

StudyError                       a study that cannot be read; it goes to quarantine
├── UnreadableFile               a file is damaged, truncated or of an unknown format
├── NotCt                        the images are not CT, or not images
│   └── OnlyLocalizer            there is nothing but localizer images: the chest is to come
├── IncompleteSeries             slices are missing, duplicated or too few
├── IrregularGeometry            spacing, orientation or tilt that does not make a volume
├── NoLung                       a valid CT volume without lungs
├── SeriesNotFound               the series that was asked for is not there
├── TooLarge                     reading it needs more memory than is allowed
└── TookTooLong                  reading it needs more time than is allowed

A fault of the machine is none of these: it stays an OSError or a MemoryError, since the same study
can be read when it has passed.
"""

import errno
from pathlib import Path

from imaging.volume import Study

MACHINE_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),  # the disk is full or read-only
        *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN),  # it fails
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY),
    }
)
"""Error numbers that speak of disk, network share, memory or open files, and not of a study."""

MAX_REASON = 1000
"""Most characters of a reason: it may quote what a file holds, and stands in reports and logs."""


class StudyError(Exception):
    """A study cannot be read.

    Attributes:
        reason: what is wrong, the value, what is expected, and what to do.
        file: the file, or the folder where no single file is at fault.
        study: what was read before the error; its report then names the patient.
        rule: name of the caller's rule that took the series (`imaging.selection`); empty for none.

    >>> overread.read_study("missing/")
    Traceback (most recent call last):
    imaging.errors.UnreadableFile: missing: does not exist or is not a file: check the path
    """

    study: Study | None = None
    rule: str = ""

    def __init__(self, reason: str, file: Path | str) -> None:
        if len(reason) > MAX_REASON:  # what is wrong comes first, and what to do last
            reason = f"{reason[: MAX_REASON * 2 // 3]} … {reason[-MAX_REASON // 4 :]}"
        super().__init__(f"{file}: {reason}")
        self.reason = reason
        self.file = Path(file)

    @property
    def kind(self) -> str:
        """The class name, as reports and quarantine reasons show it."""
        return type(self).__name__


class UnreadableFile(StudyError):
    """A file is damaged, truncated or of an unknown format: send it again."""


class NotCt(StudyError):
    """The images are not CT, or not images: send the chest CT series."""


class OnlyLocalizer(NotCt):
    """There is nothing but localizer images: it is ignored until the chest series comes."""


class IncompleteSeries(StudyError):
    """Slices are missing, duplicated or too few: send the whole series again."""


class IrregularGeometry(StudyError):
    """Spacing, orientation or gantry tilt does not make a volume: reconstruct again."""


class NoLung(StudyError):
    """The volume holds no lung: check that it is the chest series."""


class SeriesNotFound(StudyError):
    """The series that was asked for is not there: ask for one that is."""


class TooLarge(StudyError):
    """Reading the study needs more memory than is allowed: send one series of the chest."""


class TookTooLong(StudyError):
    """Reading the study needs more time than is allowed: send one series of the chest."""


def is_machine_fault(error: BaseException) -> bool:
    """Return whether the machine is at fault, and not the study: try again later."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, OSError) and error.errno in MACHINE_ERRORS


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; the C++ libraries say so in words."""
    words = ("bad alloc", "bad_alloc", "llocate memory", "nsufficient memory", "can't start new")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
