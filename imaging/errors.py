"""The errors of a study, sorted by what the person at the scanner must do.

StudyError                       a study that cannot be read; it goes to quarantine
├── UnreadableFile               a file is damaged, truncated or of an unknown format
├── NotCt                        the images are not CT, or not images
├── IncompleteSeries             slices are missing, duplicated or too few
├── IrregularGeometry            spacing, orientation or tilt that does not make a volume
└── NoLung                       a valid CT volume without lungs
"""

from pathlib import Path


class StudyError(Exception):
    """A study cannot be read.

    Attributes:
        reason: what is wrong, the value, what is expected, and what to do.
        file: the file, or the folder where no single file is at fault.
    """

    def __init__(self, reason: str, file: Path | str) -> None:
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


class IncompleteSeries(StudyError):
    """Slices are missing, duplicated or too few: send the whole series again."""


class IrregularGeometry(StudyError):
    """Spacing, orientation or gantry tilt does not make a volume: reconstruct again."""


class NoLung(StudyError):
    """The volume holds no lung: check that it is the chest series."""
