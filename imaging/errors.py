"""What can be wrong with a study, sorted by what the person at the scanner must do.

StudyError                       a study that cannot be read; it goes to quarantine
├── UnreadableFile               a file is damaged, truncated or of no known format
├── NotCt                        the pictures are not CT of an adult-sized chest stack
├── IncompleteSeries             slices are missing, duplicated or too few
├── IrregularGeometry            spacing, orientation or tilt that no volume can be made of
└── NoLung                       a sound CT volume without lungs in it
"""

from __future__ import annotations

from pathlib import Path


class StudyError(Exception):
    """A study cannot be read.

    ``reason`` says what is wrong with the offending value and what to do; ``file`` names the
    file, or the folder when no single file is at fault.
    """

    def __init__(self, reason: str, file: Path | str) -> None:
        super().__init__(f"{file}: {reason}")
        self.reason = reason
        self.file = Path(file)

    @property
    def kind(self) -> str:
        """The class name, as it stands in reports and quarantine reasons."""
        return type(self).__name__


class UnreadableFile(StudyError):
    """A file is damaged, truncated or of no known format: send it again."""


class NotCt(StudyError):
    """The images are not CT, or not images: send the chest CT series."""


class IncompleteSeries(StudyError):
    """Slices are missing, duplicated or too few: send the whole series again."""


class IrregularGeometry(StudyError):
    """Spacing, orientation or gantry tilt of which no volume can be made: reconstruct again."""


class NoLung(StudyError):
    """No lung in the volume: check that it is the chest series."""
