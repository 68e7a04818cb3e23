"""Errors of an evaluation, sorted by what must be put right.

EvaluationError          the evaluation cannot be run
├── BadTable             a CSV is missing, damaged, or contradicts the others
├── MissingData          a folder of studies or a file of cubes is missing or unusable
├── MissingProgram       a program that the evaluation starts is not installed
└── ServiceFailed        a process that the evaluation started failed
"""

from pathlib import Path


class EvaluationError(Exception):
    """The evaluation cannot be run; the message says what to put right."""


class BadTable(EvaluationError):
    """A CSV is missing, damaged, or contradicts the others; ``line`` counts from 1."""

    def __init__(self, path: Path, reason: str, line: int | None = None) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {reason}")
        self.path = path


class MissingData(EvaluationError):
    """A folder of studies or a file of cubes is missing or unusable."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class MissingProgram(EvaluationError):
    """A program that the evaluation starts is not installed; ``remedy`` installs it."""

    def __init__(self, program: str, remedy: str) -> None:
        super().__init__(f"{program}: not installed. {remedy}")


class ServiceFailed(EvaluationError):
    """A process that the evaluation started failed: it did not start, serve or end as it should."""
